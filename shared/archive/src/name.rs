//! Names of stored files.
//!
//! ```text
//! 2026-11-25/syslog@20261125T140000Z-3600s@host1@7-2.jsonl.zst
//! └ path ─────────┘ └ period ────────────┘ │     │   │     └ when closed and compressed
//!   of the setting    its start, UTC, and  member│   └ jsonl or log: JSON lines or text;
//!                     its length                 │     xflow.pcapng or snmptrap.pcapng: packets
//!                                                └ the member's 7th run, its 2nd file
//!
//! 2026-11-25/syslog.open@20261125T140000Z-3600s@host1@7-2.jsonl      while it is written to
//! ```
//! All messages in a file were captured within its period, so that a search can skip files by name.
//! The state is in the name, because some file systems have no modes. The mark is a part of the
//! path, so that releases that do not know it also recognise the file, and judge it by its mode.

use std::fmt;

use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use sekiwake_record::{Kind, Name, WallTime};

/// The longest period, seconds.
pub const MAX_PERIOD: u32 = 86_400;

/// The end of the path of a file that is open for writing.
const OPEN_MARK: &str = ".open";

/// The longest path of a file below the directory, bytes.
const MAX_PATH_BYTES: usize = 512;

/// The format of the lines in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LineFormat {
    /// JSON lines.
    Json,
    /// One line of text per message, for people and `grep`.
    Text,
}

impl LineFormat {
    /// The extension of such files.
    pub const fn extension(self) -> &'static str {
        match self {
            LineFormat::Json => "jsonl",
            LineFormat::Text => "log",
        }
    }
}

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileFormat {
    /// Lines of syslog.
    Lines(LineFormat),
    /// Packets of a kind other than syslog.
    Pcapng(Kind),
}

impl FileFormat {
    /// Every format.
    pub const ALL: [FileFormat; 4] = [
        FileFormat::Lines(LineFormat::Json),
        FileFormat::Lines(LineFormat::Text),
        FileFormat::Pcapng(Kind::Xflow),
        FileFormat::Pcapng(Kind::SnmpTrap),
    ];

    /// The extension of such files.
    pub const fn extension(self) -> &'static str {
        match self {
            FileFormat::Lines(format) => format.extension(),
            FileFormat::Pcapng(Kind::Xflow) => "xflow.pcapng",
            FileFormat::Pcapng(Kind::SnmpTrap) => "snmptrap.pcapng",
            FileFormat::Pcapng(Kind::Syslog) => "syslog.pcapng",
        }
    }

    /// The kind of the datagrams in such files.
    pub const fn kind(self) -> Kind {
        match self {
            FileFormat::Lines(_) => Kind::Syslog,
            FileFormat::Pcapng(kind) => kind,
        }
    }
}

impl From<LineFormat> for FileFormat {
    fn from(format: LineFormat) -> FileFormat {
        FileFormat::Lines(format)
    }
}

/// A period of capture time, including its start and excluding its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Period {
    /// Its start, seconds since 1970-01-01T00:00:00Z.
    pub start: u64,
    /// Its length, seconds, 1 to [`MAX_PERIOD`].
    pub length: u32,
}

impl Period {
    /// The period of this length that contains a time. Periods start at multiples of their length.
    pub const fn of(captured_at: WallTime, length: u32) -> Period {
        let seconds = captured_at.as_nanos() / 1_000_000_000;
        Period { start: seconds - seconds % length as u64, length }
    }

    /// Its start.
    pub const fn start_time(self) -> WallTime {
        WallTime::from_nanos(self.start.saturating_mul(1_000_000_000))
    }

    /// The first time after it.
    pub const fn end_time(self) -> WallTime {
        WallTime::from_nanos(self.start.saturating_add(self.length as u64).saturating_mul(1_000_000_000))
    }

    /// Whether a time is in it.
    pub fn contains(self, time: WallTime) -> bool {
        (self.start_time()..self.end_time()).contains(&time)
    }
}

/// Makes names unique: a member numbers its runs, and the files of each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Part {
    /// The run, from 1.
    pub run: u32,
    /// The file, from 1.
    pub number: u32,
}

/// The name of a file below the store's directory. Names sort by period first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PartName {
    /// The capture times in it.
    pub period: Period,
    /// The part of the path from the setting: names and slashes.
    pub path: String,
    /// The member that wrote it.
    pub member: Name,
    /// Its run and number.
    pub part: Part,
    /// Its format.
    pub format: FileFormat,
    /// The state of the file.
    pub state: FileState,
}

/// The state of a stored file. Where a file exists in several, the last one is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FileState {
    /// It is written to, or a crash has left it like that.
    Open,
    /// It is complete.
    Closed,
    /// It is complete and compressed.
    Compressed,
}

impl PartName {
    /// The name of the same file in another state.
    pub fn in_state(&self, state: FileState) -> PartName {
        PartName { state, ..self.clone() }
    }

    /// Parses the path of a file below the directory; `None` if it is not a stored file.
    pub fn parse(path: &str) -> Option<PartName> {
        if path.len() > MAX_PATH_BYTES {
            return None;
        }
        let (rest, compressed) = path.strip_suffix(".zst").map_or((path, false), |rest| (rest, true));
        let (rest, format) = FileFormat::ALL.into_iter().find_map(|format| {
            let rest = rest.strip_suffix(format.extension())?.strip_suffix('.')?;
            Some((rest, format))
        })?;
        let mut fields = rest.split('@');
        let path = fields.next()?;
        let period = fields.next()?;
        let member = fields.next()?;
        let part = fields.next()?;
        let (path, state) = match path.strip_suffix(OPEN_MARK) {
            _ if compressed => (path, FileState::Compressed),
            Some(path) => (path, FileState::Open),
            None => (path, FileState::Closed),
        };
        if fields.next().is_some() || !is_path(path) {
            return None;
        }
        Some(PartName {
            period: parse_period(period)?,
            path: path.to_owned(),
            member: Name::new(member).ok()?,
            part: parse_part(part)?,
            format,
            state,
        })
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PartName { path, period, member, part, format, state } = self;
        let mark = if *state == FileState::Open { OPEN_MARK } else { "" };
        let compressed = if *state == FileState::Compressed { ".zst" } else { "" };
        write!(f, "{path}{mark}@{period}@{member}@{part}.{}{compressed}", format.extension())
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
    // Reject other spellings, such as leading zeros.
    (part.run > 0 && part.number > 0 && part.to_string() == text).then_some(part)
}

fn parse_period(text: &str) -> Option<Period> {
    let (start, length) = text.strip_suffix('s')?.split_once("Z-")?;
    let start =
        DateTime::strptime("%Y%m%dT%H%M%S", start).ok()?.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp().as_second();
    let length: u32 = length.parse().ok().filter(|length| (1..=MAX_PERIOD).contains(length))?;
    let period = Period { start: u64::try_from(start).ok()?, length };
    // Reject other spellings, such as leading zeros.
    (period.to_string() == text).then_some(period)
}

/// Whether the name of a file with this path would be taken for one that is open.
pub fn is_marked_open(path: &str) -> bool {
    path.ends_with(OPEN_MARK)
}

/// Whether this may be the path of a file: names and slashes, nothing hidden, nothing that leaves
/// the directory. An IPv6 address is a valid name.
pub fn is_path(path: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b':');
    path.split('/').all(|name| !name.is_empty() && !name.starts_with('.') && name.bytes().all(is_allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_round_trips_through_its_fields() {
        let text = "2026-11-25/syslog@20261125T140000Z-3600s@host1.example.net@12-3.jsonl.zst";
        let name = PartName::parse(text).unwrap();
        assert_eq!(name.period, Period::of(WallTime::from_nanos(1_795_615_200_000_000_000), 3600));
        assert_eq!(
            (name.path.as_str(), name.part, name.state),
            ("2026-11-25/syslog", Part { run: 12, number: 3 }, FileState::Compressed)
        );
        assert_eq!((name.member.as_str(), name.format), ("host1.example.net", LineFormat::Json.into()));
        assert_eq!(name.to_string(), text);
        for format in FileFormat::ALL {
            let name = PartName { format, ..name.clone() };
            assert_eq!(PartName::parse(&name.to_string()), Some(name));
        }
    }

    #[test]
    fn state_is_in_the_name() {
        for (text, path, state) in [
            ("d/syslog.open@20261125T140000Z-3600s@h@1-1.jsonl", "d/syslog", FileState::Open),
            ("d/syslog@20261125T140000Z-3600s@h@1-1.jsonl", "d/syslog", FileState::Closed),
            ("d/syslog@20261125T140000Z-3600s@h@1-1.jsonl.zst", "d/syslog", FileState::Compressed),
            // An older release has compressed a file that was left open.
            ("d/syslog.open@20261125T140000Z-3600s@h@1-1.jsonl.zst", "d/syslog.open", FileState::Compressed),
        ] {
            let name = PartName::parse(text).unwrap();
            assert_eq!((name.path.as_str(), name.state, name.to_string().as_str()), (path, state, text));
        }
        assert_eq!(PartName::parse("d/.open@20261125T140000Z-3600s@h@1-1.jsonl"), None);
    }

    #[test]
    fn other_file_names_are_rejected() {
        for invalid in [
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
            assert_eq!(PartName::parse(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn every_time_has_a_period_that_round_trips() {
        for at in [0, 1, 1_795_615_200_000_000_001, u64::MAX].map(WallTime::from_nanos) {
            let period = Period::of(at, 3600);
            assert!(period.start_time() <= at && at <= period.end_time(), "{at:?}");
            assert_eq!(parse_period(&period.to_string()), Some(period));
        }
    }
}
