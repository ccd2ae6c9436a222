//! Search queries.

use sekiwake_identify::syslog::{Priority, parse_facility, parse_severity};
use sekiwake_record::{Format, Kind, Prefix, WallTime};

use crate::{Message, time};

/// The most texts to search for.
const MAX_TEXTS: usize = 16;

/// The longest text to search for, bytes.
const MAX_TEXT_BYTES: usize = 4096;

/// The most source prefixes.
const MAX_SOURCES: usize = 1024;

/// A search query. A message must match every filter that is set.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// Of one of these kinds; empty for syslog only.
    pub kinds: Vec<Kind>,
    /// Captured at or after this time.
    pub from: WallTime,
    /// Captured before this time.
    pub to: WallTime,
    /// Sent by one of these; empty for any source.
    pub sources: Vec<Prefix>,
    /// Of one of these facilities, 0 to 23; empty for any. A syslog message without a PRI counts as
    /// user; datagrams of other kinds have none.
    pub facilities: Vec<u8>,
    /// Of this severity, 0 to 7, or more severe. A message without a PRI counts as notice (RFC 3164
    /// §4.3.3).
    pub max_severity: Option<u8>,
    /// Of one of these formats; empty for any.
    pub formats: Vec<Format>,
    /// Containing all of these texts: bytes in lower case, where ASCII letters match either case.
    pub texts: Vec<Vec<u8>>,
    /// The order of the messages.
    pub order: Order,
    /// The most messages to return.
    pub limit: Option<u64>,
    /// Whether messages are to be shown decoded. Searching is the same.
    pub decode: bool,
}

/// The order of messages, by capture time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The oldest message first.
    #[default]
    Oldest,
    /// The newest message first.
    Newest,
}

/// An invalid query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}={value:?}: expected {expected}")]
pub struct QueryError {
    name: String,
    value: String,
    expected: &'static str,
}

impl Default for Query {
    fn default() -> Query {
        Query {
            kinds: Vec::new(),
            from: WallTime::EPOCH,
            to: WallTime::MAX,
            sources: Vec::new(),
            facilities: Vec::new(),
            max_severity: None,
            formats: Vec::new(),
            texts: Vec::new(),
            order: Order::Oldest,
            limit: None,
            decode: false,
        }
    }
}

impl Query {
    /// Parses names and values of a URL query: `kind`, `from`, `to`, `source`, `facility`,
    /// `severity`, `format`, `text`, `order`, `limit`, `decode`. Only a text may be other than
    /// UTF-8. Relative times count back from `now`.
    ///
    /// # Errors
    /// The first parameter that is unknown, repeated, or has an invalid value.
    pub fn parse<'a>(now: WallTime, pairs: impl Iterator<Item = (&'a str, &'a [u8])>) -> Result<Query, QueryError> {
        const TIME: &str = "a time such as 2026-01-02T03:04:05Z, 2026-01-02, now, -15m, or seconds since 1970";
        const SOURCES: &str = "addresses or prefixes such as 10.0.0.0/8, separated by commas";
        const FACILITIES: &str = "facilities such as local7, or 0 to 23, separated by commas";
        const FORMATS: &str = "formats such as rfc5424 or netflow9, separated by commas";
        const KINDS: &str = "syslog, xflow or snmptrap, or several separated by commas, or all";
        let mut query = Query::default();
        let mut seen = Vec::new();
        for (name, value) in pairs {
            let text = str::from_utf8(value).unwrap_or_default();
            let invalid =
                |expected| QueryError { name: shown(name), value: shown(&String::from_utf8_lossy(value)), expected };
            if seen.contains(&name) && !matches!(name, "source" | "facility" | "format" | "text") {
                return Err(invalid("each parameter at most once, except source, facility, format and text"));
            }
            seen.push(name);
            match name {
                "from" => query.from = time::parse(now, text).ok_or_else(|| invalid(TIME))?,
                "to" => query.to = time::parse(now, text).ok_or_else(|| invalid(TIME))?,
                "source" => {
                    let sources = list(text, |prefix| prefix.parse::<Prefix>().ok());
                    query.sources.extend(sources.ok_or_else(|| invalid(SOURCES))?);
                    if query.sources.len() > MAX_SOURCES {
                        return Err(invalid("at most 1024 prefixes"));
                    }
                }
                "kind" if text == "all" => query.kinds.extend(Kind::ALL),
                "kind" => query.kinds.extend(list(text, Kind::from_name).ok_or_else(|| invalid(KINDS))?),
                "facility" => {
                    query.facilities.extend(list(text, parse_facility).ok_or_else(|| invalid(FACILITIES))?);
                }
                "severity" => {
                    let severity = parse_severity(text);
                    query.max_severity = Some(severity.ok_or_else(|| invalid("a severity such as err, or 0 to 7"))?);
                }
                "format" => {
                    let formats = list(text, |name| Format::ALL.into_iter().find(|format| format.as_str() == name));
                    query.formats.extend(formats.ok_or_else(|| invalid(FORMATS))?);
                }
                "text" if value.is_empty() || value.len() > MAX_TEXT_BYTES => {
                    return Err(invalid("1 to 4096 bytes"));
                }
                "text" if query.texts.len() >= MAX_TEXTS => return Err(invalid("at most 16 texts")),
                "text" => query.texts.push(value.to_ascii_lowercase()),
                "order" => {
                    query.order = match text {
                        "oldest" => Order::Oldest,
                        "newest" => Order::Newest,
                        _ => return Err(invalid("oldest or newest, whichever is to be first")),
                    }
                }
                "limit" => {
                    let is_plain = value.iter().all(u8::is_ascii_digit);
                    let limit = text.parse().ok().filter(|&limit: &u64| is_plain && limit > 0);
                    query.limit = Some(limit.ok_or_else(|| invalid("a number of at least 1"))?);
                }
                "decode" => {
                    query.decode = match text {
                        "true" => true,
                        "false" => false,
                        _ => return Err(invalid("true or false")),
                    }
                }
                _ => {
                    return Err(invalid(
                        "one of the parameters kind, from, to, source, facility, severity, format, text, order, limit and \
                         decode",
                    ));
                }
            }
        }
        Ok(query)
    }

    /// Whether datagrams of this kind are wanted.
    pub fn has_kind(&self, kind: Kind) -> bool {
        if self.kinds.is_empty() { kind == Kind::Syslog } else { self.kinds.contains(&kind) }
    }

    /// Whether a message matches, regardless of its kind and time.
    pub fn matches(&self, message: &Message<'_>) -> bool {
        if !self.sources.is_empty() && !self.sources.iter().any(|prefix| prefix.contains(message.source)) {
            return false;
        }
        if !self.formats.is_empty() && !self.formats.contains(&message.format) {
            return false;
        }
        if self.max_severity.is_some() || !self.facilities.is_empty() {
            if message.kind != Kind::Syslog {
                return false;
            }
            let priority = message.priority().unwrap_or(Priority::ABSENT);
            let is_severe = self.max_severity.is_none_or(|most| priority.severity() <= most);
            let is_of_facility = self.facilities.is_empty() || self.facilities.contains(&priority.facility());
            if !is_severe || !is_of_facility {
                return false;
            }
        }
        self.texts.iter().all(|text| contains(&message.payload, text))
    }

    /// Whether a time is in the range.
    pub fn is_in_range(&self, captured_at: WallTime) -> bool {
        (self.from..self.to).contains(&captured_at)
    }
}

/// Parses values separated by commas.
fn list<T>(text: &str, parse: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
    text.split(',').map(|value| parse(value.trim())).collect()
}

/// The part of an invalid value that an error shows.
fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

/// Whether a payload contains a text, which is in lower case.
fn contains(payload: &[u8], text: &[u8]) -> bool {
    let Some((first, rest)) = text.split_first() else { return true };
    let Some(last) = payload.len().checked_sub(text.len()) else { return false };
    let upper = first.to_ascii_uppercase();
    let mut at = 0;
    let candidates = &payload[..=last];
    while let Some(found) = memchr::memchr2(*first, upper, &candidates[at..]) {
        at += found + 1;
        if payload[at..at + rest.len()].eq_ignore_ascii_case(rest) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: WallTime = WallTime::from_nanos(1_795_615_200_000_000_000);

    fn parse(text: &str) -> Result<Query, QueryError> {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        Query::parse(NOW, pairs.map(|(name, value)| (name, value.as_bytes())))
    }

    #[test]
    fn invalid_parameter_is_rejected_with_its_name() {
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
            "facility=x",
            "facility=24",
            "format=netflow",
            "kind=",
            "kind=flows",
            "kind=syslog,",
            "order=up",
            "order=newest&order=newest",
            "decode=",
            "decode=yes",
            "decode=true&decode=true",
            "colour=red",
            "=",
            "limit=1&limit=2",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(text.split(['=', '&']).next().unwrap()), "{text}: {error}");
        }
        assert_eq!(
            parse("source=10.0.0.0/8&source=2001:db8::/32,198.51.100.7").map(|query| query.sources.len()),
            Ok(3)
        );
        assert_eq!(
            ["decode=true", "decode=false", "limit=1"].map(|text| parse(text).unwrap().decode),
            [true, false, false]
        );
        let too_many = "text=a&".repeat(MAX_TEXTS + 1);
        assert!(parse(&too_many).is_err());
    }

    #[test]
    fn bytes_of_any_charset_are_a_text() {
        let query = Query::parse(NOW, [("text", &b"\xc5\xe4\xd6\xc3"[..]), ("text", b"CFM")].into_iter()).unwrap();
        assert_eq!(query.texts, [&b"\xc5\xe4\xd6\xc3"[..], b"cfm"]);
        let error = Query::parse(NOW, [("from", &b"\xc5"[..])].into_iter()).unwrap_err().to_string();
        assert!(error.starts_with("from="), "{error}");
    }

    #[test]
    fn text_matches_anywhere_in_either_case() {
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
