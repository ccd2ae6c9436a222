//! What a stored file is called.
//!
//! ```text
//! 2026-11-25/syslog@20261125T140000Z-3600s@host1@7-2.jsonl.zst
//! └ path ─────────┘ └ period ────────────┘ │     │   │     └ once it is closed and compressed
//!   of the setting    its begin, UTC, and  member│   └ jsonl or log: JSON lines or text
//!                     its length                 └ the member's 7th run, its 2nd file
//! ```
//! All messages in a file were captured within its period: the name alone says whether a search has to look into it.

use std::fmt;

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use sekiwake_record::Name;

/// The longest period, seconds.
pub const MAX_PERIOD: u32 = 86_400;

/// The longest path of a file below the directory, bytes.
const MAX_PATH_BYTES: usize = 512;

/// How messages stand in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LineFormat {
    /// JSON lines.
    Json,
    /// A line of text a message, for people and `grep`.
    Text,
}

impl LineFormat {
    /// How the names of such files end.
    pub const fn extension(self) -> &'static str {
        match self {
            LineFormat::Json => "jsonl",
            LineFormat::Text => "log",
        }
    }
}

/// A span of capture time, from its begin to just before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Period {
    /// Its begin, seconds since 1970-01-01T00:00:00Z.
    pub start: u64,
    /// Its length, seconds, 1 to [`MAX_PERIOD`].
    pub length: u32,
}

impl Period {
    /// The period of this length that a time falls into; periods begin at multiples of their length.
    pub const fn of(captured_at_ns: u64, length: u32) -> Period {
        let seconds = captured_at_ns / 1_000_000_000;
        Period { start: seconds - seconds % length as u64, length }
    }

    /// Its first nanosecond, since 1970-01-01T00:00:00Z.
    pub const fn start_ns(self) -> u64 {
        self.start.saturating_mul(1_000_000_000)
    }

    /// The first nanosecond after it.
    pub const fn end_ns(self) -> u64 {
        self.start.saturating_add(self.length as u64).saturating_mul(1_000_000_000)
    }
}

/// What makes a name one that was never there before: a member counts its runs, and the files that it begins in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    /// The run, from 1.
    pub run: u32,
    /// The file, from 1.
    pub number: u32,
}

/// The name of a file below the store's directory. Two are ordered by period first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartName {
    /// The capture times in it.
    pub period: Period,
    /// The part of the path that the setting gives: names and slashes.
    pub path: String,
    /// Who wrote it.
    pub member: Name,
    /// Which file of which run.
    pub part: Part,
    /// How messages stand in it.
    pub format: LineFormat,
    /// Whether it is compressed.
    pub packed: bool,
}

impl PartName {
    /// Reads the path of a file below the directory; `None` for what is no stored file.
    pub fn parse(path: &str) -> Option<PartName> {
        if path.len() > MAX_PATH_BYTES {
            return None;
        }
        let (rest, packed) = path.strip_suffix(".zst").map_or((path, false), |rest| (rest, true));
        let (rest, extension) = rest.rsplit_once('.')?;
        let format = [LineFormat::Json, LineFormat::Text].into_iter().find(|format| format.extension() == extension)?;
        let mut fields = rest.split('@');
        let (path, period, member, part) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        if fields.next().is_some() || !is_path(path) {
            return None;
        }
        Some(PartName {
            period: parse_period(period)?,
            path: path.to_owned(),
            member: Name::new(member).ok()?,
            part: parse_part(part)?,
            format,
            packed,
        })
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PartName { path, period, member, part, format, packed } = self;
        write!(f, "{path}@{period}@{member}@{part}.{}{}", format.extension(), if *packed { ".zst" } else { "" })
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.run, self.number)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // 64 bits of nanoseconds end in the year 2554, jiff's timestamps in 9999.
        let seconds = i64::try_from(self.start).unwrap_or(i64::MAX);
        let start = Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX);
        write!(f, "{}-{}s", start.strftime("%Y%m%dT%H%M%SZ"), self.length)
    }
}

fn parse_part(text: &str) -> Option<Part> {
    let (run, number) = text.split_once('-')?;
    let part = Part { run: run.parse().ok()?, number: number.parse().ok()? };
    // One way to write each.
    (part.run > 0 && part.number > 0 && part.to_string() == text).then_some(part)
}

fn parse_period(text: &str) -> Option<Period> {
    let (start, length) = text.strip_suffix('s')?.split_once("Z-")?;
    let start = DateTime::strptime("%Y%m%dT%H%M%S", start).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp().as_second();
    let length: u32 = length.parse().ok().filter(|length| (1..=MAX_PERIOD).contains(length))?;
    let period = Period { start: u64::try_from(start).ok()?, length };
    // One way to write each.
    (period.to_string() == text).then_some(period)
}

/// Whether this may be the path of a file: names and slashes, nothing hidden, nothing that leaves the directory. An address of
/// IPv6 is a name.
pub fn is_path(path: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    path.split('/').all(|name| !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_is_in_the_file() {
        let text = "2026-11-25/syslog@20261125T140000Z-3600s@host1.example.net@12-3.jsonl.zst";
        let name = PartName::parse(text).unwrap();
        assert_eq!(name.period, Period::of(1_795_615_200_000_000_000, 3600));
        assert_eq!(
            (name.path.as_str(), name.part, name.packed),
            ("2026-11-25/syslog", Part { run: 12, number: 3 }, true)
        );
        assert_eq!((name.member.as_str(), name.format), ("host1.example.net", LineFormat::Json));
        assert_eq!(name.to_string(), text);
    }

    #[test]
    fn what_is_no_stored_file_is_none() {
        for wrong in [
            "",
            "x",
            "../syslog@20261125T140000Z-3600s@h@1-1.jsonl",
            "/etc/syslog@20261125T140000Z-3600s@h@1-1.jsonl",
            "a//b@20261125T140000Z-3600s@h@1-1.jsonl",
            ".a@20261125T140000Z-3600s@h@1-1.jsonl",
            "a@20261125T140000Z-3600s@h@01-1.jsonl",
            "a@20261125T140000Z-3600s@h@1-+1.jsonl",
            "a@20261125T140000Z-3600s@h@1-0.jsonl",
            "a@20261125T140000Z-3600s@h@1.jsonl",
            "a@20261125T140000Z-0s@h@1-1.jsonl",
            "a@20261125T140000Z-03600s@h@1-1.jsonl",
            "a@20261325T140000Z-3600s@h@1-1.jsonl",
            "a@20261125T140000Z-3600s@h@1-1.json",
            "a@20261125T140000Z-3600s@h@1-1@2.jsonl",
            "a@20261125T140000Z-3600s@h@1-1.jsonl.zst.zst",
        ] {
            assert_eq!(PartName::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn every_time_has_a_period_and_a_name() {
        for at in [0, 1, 1_795_615_200_000_000_001, u64::MAX] {
            let period = Period::of(at, 3600);
            assert!(period.start_ns() <= at && at <= period.end_ns(), "{at}");
            assert_eq!(parse_period(&period.to_string()), Some(period));
        }
    }
}
