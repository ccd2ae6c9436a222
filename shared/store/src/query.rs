//! What is searched for.

use std::str::FromStr;

use jiff::Timestamp;
use sekiwake_identify::syslog::{Priority, parse_severity};
use sekiwake_record::Prefix;

use crate::Message;

/// The longest text that is searched for, bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// The most prefixes.
const MAX_SOURCES: usize = 1024;

/// What a search is for. All that is set must agree.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Captured then or later, nanoseconds since 1970-01-01T00:00:00Z.
    pub from_ns: u64,
    /// Captured before.
    pub to_ns: u64,
    /// From one of these; from anybody, where there is none.
    pub sources: Vec<Prefix>,
    /// Of this severity, 0 to 7, or one that is more severe. A message without a PRI counts as notice (RFC 3164 §4.3.3).
    pub max_severity: Option<u8>,
    /// With these bytes somewhere in its payload, ASCII letters in lower case; they stand for both.
    pub text: Option<Vec<u8>>,
    /// At most so many.
    pub limit: Option<u64>,
}

/// A query that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?}: expected {expected}")]
pub struct QueryError {
    name: String,
    value: String,
    expected: &'static str,
}

impl Default for Query {
    fn default() -> Query {
        Query { from_ns: 0, to_ns: u64::MAX, sources: Vec::new(), max_severity: None, text: None, limit: None }
    }
}

impl Query {
    /// Reads names and values as they stand in an address: `from`, `to`, `source`, `severity`, `text`, `limit`. What is `now`, nanoseconds since
    /// 1970-01-01T00:00:00Z, is for times that are counted from it.
    ///
    /// # Errors
    /// The first name that is none, comes twice, or has a value that is none.
    pub fn parse<'a>(now_ns: u64, pairs: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Query, QueryError> {
        let (mut query, mut seen) = (Query::default(), Vec::new());
        for (name, value) in pairs {
            let wrong = |expected| QueryError { name: shown(name), value: shown(value), expected };
            if seen.contains(&name) && name != "source" {
                return Err(wrong("each parameter once, but for source"));
            }
            seen.push(name);
            const TIME: &str = "a time such as 2026-01-02T03:04:05Z, now, -15m, or seconds since 1970";
            match name {
                "from" => query.from_ns = time(now_ns, value).ok_or_else(|| wrong(TIME))?,
                "to" => query.to_ns = time(now_ns, value).ok_or_else(|| wrong(TIME))?,
                "source" => {
                    for prefix in value.split(',') {
                        let prefix = Prefix::from_str(prefix.trim());
                        query
                            .sources
                            .push(prefix.map_err(|()| wrong("addresses or prefixes such as 10.0.0.0/8, by commas"))?);
                    }
                    if query.sources.len() > MAX_SOURCES {
                        return Err(wrong("1024 prefixes at most"));
                    }
                }
                "severity" => {
                    let severity = parse_severity(value);
                    query.max_severity = Some(severity.ok_or_else(|| wrong("a severity such as err, or 0 to 7"))?);
                }
                "text" if value.is_empty() || value.len() > MAX_TEXT_BYTES => {
                    return Err(wrong("1 to 4096 bytes"));
                }
                "text" => query.text = Some(value.to_ascii_lowercase().into_bytes()),
                "limit" => {
                    let is_plain = value.bytes().all(|byte| byte.is_ascii_digit());
                    let limit = value.parse().ok().filter(|&limit: &u64| is_plain && limit > 0);
                    query.limit = Some(limit.ok_or_else(|| wrong("a number from 1"))?);
                }
                _ => return Err(wrong("one of the parameters from, to, source, severity, text and limit")),
            }
        }
        Ok(query)
    }

    /// Whether a message is one of those that are searched for, whatever its time.
    pub fn matches(&self, message: &Message<'_>) -> bool {
        if !self.sources.is_empty() && !self.sources.iter().any(|prefix| prefix.contains(message.source)) {
            return false;
        }
        if let Some(most) = self.max_severity
            && message.priority().unwrap_or(Priority::ABSENT).severity() > most
        {
            return false;
        }
        self.text.as_ref().is_none_or(|text| contains(&message.payload, text))
    }

    /// Whether a time is in the range.
    pub fn is_in_range(&self, captured_at_ns: u64) -> bool {
        (self.from_ns..self.to_ns).contains(&captured_at_ns)
    }
}

/// What is shown of nonsense.
fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Whether a payload has a text in it that is in lower case.
fn contains(payload: &[u8], text: &[u8]) -> bool {
    let Some((first, rest)) = text.split_first() else { return true };
    let Some(last) = payload.len().checked_sub(text.len()) else { return false };
    let upper = first.to_ascii_uppercase();
    let (mut at, candidates) = (0, &payload[..=last]);
    while let Some(found) = memchr::memchr2(*first, upper, &candidates[at..]) {
        at += found + 1;
        if payload[at..at + rest.len()].eq_ignore_ascii_case(rest) {
            return true;
        }
    }
    false
}

fn time(now_ns: u64, text: &str) -> Option<u64> {
    if text == "now" {
        return Some(now_ns);
    }
    if let Some(age) = text.strip_prefix('-') {
        return Some(now_ns.saturating_sub(duration_ns(age)?));
    }
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return text.parse::<u64>().ok()?.checked_mul(1_000_000_000);
    }
    // 64 bits of nanoseconds end in the year 2554.
    u64::try_from(text.parse::<Timestamp>().ok()?.as_nanosecond()).ok()
}

/// `15m`, `1h`, `7d`.
fn duration_ns(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.find(|character: char| !character.is_ascii_digit())?);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()?.saturating_mul(seconds * 1_000_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_615_200_000_000_000;

    fn parse(text: &str) -> Result<Query, QueryError> {
        Query::parse(NOW, text.split('&').filter_map(|pair| pair.split_once('=')))
    }

    #[test]
    fn times_are_absolute_or_ages() {
        for (text, at) in [
            ("2026-11-25T14:00:00Z", NOW),
            ("2026-11-25T15:00:00.5+01:00", NOW + 500_000_000),
            ("1795615200", NOW),
            ("now", NOW),
            ("-15m", NOW - 900_000_000_000),
            ("-1d", NOW - 86_400_000_000_000),
            ("-99999w", 0),
        ] {
            assert_eq!(parse(&format!("from={text}")).map(|query| query.from_ns), Ok(at), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_name() {
        for text in [
            "from=yesterday",
            "from=-",
            "from=-5",
            "from=-5x",
            "from=99999999999999999999",
            "from=1969-01-01T00:00:00Z",
            "to=",
            "source=x",
            "source=",
            "source=10.0.0.0/33",
            "severity=loud",
            "severity=8",
            "text=",
            "limit=0",
            "limit=-1",
            "limit=+1",
            "colour=red",
            "=",
            "limit=1&limit=2",
        ] {
            let wrong = parse(text).unwrap_err().to_string();
            assert!(wrong.starts_with(text.split(['=', '&']).next().unwrap()), "{text}: {wrong}");
        }
        assert_eq!(
            parse("source=10.0.0.0/8&source=2001:db8::/32,198.51.100.7").map(|query| query.sources.len()),
            Ok(3)
        );
    }

    #[test]
    fn text_is_found_in_either_case_and_anywhere() {
        for (payload, text, is_found) in [
            ("<13>LINK-3-UPDOWN", "link-3", true),
            ("abcABD", "abd", true),
            ("aab", "ab", true),
            ("ab", "abc", false),
            ("", "a", false),
            ("x", "x", true),
            ("<13>\u{e9}", "\u{e9}", true),
            ("ababac", "abac", true),
        ] {
            assert_eq!(contains(payload.as_bytes(), text.as_bytes()), is_found, "{payload} {text}");
        }
    }
}
