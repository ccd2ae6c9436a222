//! Syslog: a PRI, followed by the header of RFC 5424 or by any text.
//!
//! ```text
//! RFC 5424  <PRIVAL>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID STRUCTURED-DATA [MSG]
//! RFC 3164  <PRIVAL>anything else
//! ```

use std::ops::Range;

use sekiwake_record::Format;

/// Facility 23, severity 7 (RFC 5424 §6.2.1).
const MAX_PRIVAL: u16 = 191;

/// The longest HOSTNAME, APP-NAME, PROCID and MSGID (RFC 5424 §6).
const MAX_FIELD_LENGTHS: [usize; 4] = [255, 48, 128, 32];

/// The longest TIMESTAMP, bytes: 32 with microseconds and an offset, but some devices write more.
const MAX_TIMESTAMP: usize = 64;

/// RFC 5424, RFC 3164 for all other payloads with a PRI, or `None`.
pub(crate) fn identify(payload: &[u8]) -> Option<Format> {
    let (_, after_pri) = split_pri(payload)?;
    Some(if is_rfc5424(after_pri) { Format::Rfc5424 } else { Format::Rfc3164 })
}

/// The value of a PRI (RFC 5424 §6.2.1): facility and severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority(u8);

impl Priority {
    /// The priority of a message without a PRI: facility 1 (user), severity 5 (notice), RFC 3164
    /// §4.3.3.
    pub const ABSENT: Priority = Priority(13);

    /// The priority of a message, in either format; `None` without a valid PRI.
    pub fn of(payload: &[u8]) -> Option<Priority> {
        split_pri(payload).map(|(priority, _)| priority)
    }

    /// PRIVAL, 0 to 191.
    pub const fn value(self) -> u8 {
        self.0
    }

    /// 0 (kern) to 23 (local7).
    pub const fn facility(self) -> u8 {
        self.0 >> 3
    }

    /// 0 (emergency) to 7 (debug): the lower, the more severe.
    pub const fn severity(self) -> u8 {
        self.0 & 7
    }
}

/// The keywords of facilities 0 to 23 in syslog.h and syslog daemons (RFC 5424 §6.2.1 has only
/// descriptions).
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// The keywords of severities 0 to 7, each followed by its longer and older names.
const SEVERITIES: [&[&str]; 8] = [
    &["emerg", "emergency", "panic"],
    &["alert"],
    &["crit", "critical"],
    &["err", "error"],
    &["warning", "warn"],
    &["notice"],
    &["info", "informational"],
    &["debug"],
];

/// Parses a facility: its keyword or number.
pub fn parse_facility(text: &str) -> Option<u8> {
    let by_name = FACILITIES.iter().position(|name| *name == text);
    by_name.map(|index| index as u8).or_else(|| number(text, 23))
}

/// Parses a severity: one of its keywords or its number.
pub fn parse_severity(text: &str) -> Option<u8> {
    let by_name = SEVERITIES.iter().position(|names| names.contains(&text));
    by_name.map(|index| index as u8).or_else(|| number(text, 7))
}

fn number(text: &str, most: u8) -> Option<u8> {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&number: &u8| is_plain && number <= most)
}

/// The keyword of a facility, 0 to 23; `None` above.
pub fn facility_keyword(facility: u8) -> Option<&'static str> {
    FACILITIES.get(usize::from(facility)).copied()
}

/// The keyword of a severity, 0 to 7; `None` above.
pub fn severity_keyword(severity: u8) -> Option<&'static str> {
    SEVERITIES.get(usize::from(severity)).map(|names| names[0])
}

/// The range of the STRUCTURED-DATA in an RFC 5424 message, in bytes: `-` or its elements. `None`
/// if the message is not identified as RFC 5424, its header is incomplete, or the structured data
/// is not well-formed.
pub fn structured_data(payload: &[u8]) -> Option<Range<usize>> {
    let (_, after_pri) = split_pri(payload)?;
    let rest = behind_fields(after_timestamp(after_pri)?)?;
    let start = payload.len() - rest.len();
    let length = structured_data_length(rest)?;
    // The end of the payload, or a space and the message, must follow.
    matches!(rest.get(length), None | Some(b' ')).then_some(start..start + length)
}

/// The length of the STRUCTURED-DATA at the start of `text`, bytes (RFC 5424 §6.3).
fn structured_data_length(text: &[u8]) -> Option<usize> {
    if text.first() == Some(&b'-') {
        return Some(1);
    }
    let mut at = 0;
    while text.get(at) == Some(&b'[') {
        at += element_length(&text[at..])?;
    }
    (at > 0).then_some(at)
}

/// The length of the element of STRUCTURED-DATA at the start of `text`, bytes, including its
/// closing bracket. `None` if it does not end.
pub fn element_length(text: &[u8]) -> Option<usize> {
    let mut quoted = false;
    let mut escaped = false;
    let end = text.iter().position(|&byte| {
        let ends = byte == b']' && !quoted;
        // A backslash escapes the next byte inside a value only. RFC 5424 §6.3.3 defines it for
        // `"`, `\` and `]`; before any other byte it makes no difference here.
        quoted ^= byte == b'"' && !escaped;
        escaped = byte == b'\\' && quoted && !escaped;
        ends
    })?;
    Some(end + 1)
}

/// Splits off `<PRIVAL>`: one to three digits, at most 191.
///
/// Leading zeros are accepted although RFC 3164 §4.1.1 forbids them, because devices send them and
/// other receivers accept them.
fn split_pri(payload: &[u8]) -> Option<(Priority, &[u8])> {
    let mut value = 0;
    let mut rest = payload.strip_prefix(b"<")?;
    for digits in 0..=3 {
        let (&byte, after) = rest.split_first()?;
        match byte {
            b'0'..=b'9' => value = value * 10 + u16::from(byte - b'0'),
            b'>' if digits > 0 && value <= MAX_PRIVAL => return Some((Priority(value as u8), after)),
            _ => return None,
        }
        rest = after;
    }
    None
}

/// The text after a header field of at most this length and a space.
fn after_field(text: &[u8], max_length: usize) -> Option<&[u8]> {
    let end = text.iter().take(max_length + 1).position(|byte| !byte.is_ascii_graphic());
    let length = end.filter(|&length| length > 0 && text[length] == b' ')?;
    Some(&text[length + 1..])
}

/// Whether the text after the PRI begins with VERSION 1 and a TIMESTAMP (RFC 5424 §6).
fn is_rfc5424(after_pri: &[u8]) -> bool {
    after_timestamp(after_pri).is_some()
}

/// The text behind VERSION 1 and a TIMESTAMP (RFC 5424 §6) and a space; empty where that is
/// missing.
/// `None` if it does not begin with these.
///
/// No other dialect has a date and time after the version, so the rest is not checked: a message
/// with wrong structured data is still RFC 5424. A NILVALUE is only a hyphen, which is too little
/// evidence, so the whole header is required then.
fn after_timestamp(after_pri: &[u8]) -> Option<&[u8]> {
    let timestamp = after_pri.strip_prefix(b"1 ")?;
    if let Some(after_nil) = timestamp.strip_prefix(b"- ") {
        let rest = behind_fields(after_nil)?;
        return matches!(rest, [b'-'] | [b'-', b' ', ..] | [b'[', ..]).then_some(after_nil);
    }
    let length = timestamp.iter().take(MAX_TIMESTAMP + 1).position(|&byte| byte == b' ');
    begins_with_date_time(timestamp).then(|| length.map_or(&[][..], |length| &timestamp[length + 1..]))
}

/// The text behind HOSTNAME, APP-NAME, PROCID and MSGID.
fn behind_fields(text: &[u8]) -> Option<&[u8]> {
    MAX_FIELD_LENGTHS.iter().try_fold(text, |rest, max_length| after_field(rest, *max_length))
}

/// Whether the text begins with the shape of `YYYY-MM-DDThh:mm:ss`. Fraction and offset, which some
/// devices omit, are not required.
fn begins_with_date_time(text: &[u8]) -> bool {
    const SHAPE: &[u8; 19] = b"0000-00-00T00:00:00";
    text.first_chunk::<19>().is_some_and(|text| {
        SHAPE.iter().zip(text).all(|(&shape, &byte)| if shape == b'0' { byte.is_ascii_digit() } else { byte == shape })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structured(text: &str) -> Option<&str> {
        structured_data(text.as_bytes()).map(|range| &text[range])
    }

    #[test]
    fn priority_is_parsed_whatever_follows_it() {
        let priority = Priority::of(b"<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I").unwrap();
        assert_eq!((priority.value(), priority.facility(), priority.severity()), (189, 23, 5));
        assert_eq!(Priority::of(b"<192>x"), None);
        assert_eq!(Priority::of(b"no PRI"), None);
        assert_eq!((Priority::ABSENT.facility(), Priority::ABSENT.severity()), (1, 5));
    }

    #[test]
    fn structured_data_ends_outside_of_quotes() {
        let header = "<34>1 2003-10-11T22:14:15.003Z host app 1 ID47";
        assert_eq!(structured(&format!("{header} - message")), Some("-"));
        assert_eq!(structured(&format!("{header} -")), Some("-"));
        let data = r#"[a x="\"]" y="\\"][b]"#;
        assert_eq!(structured(&format!("{header} {data} [not this]")), Some(data));
        assert_eq!(structured("<34>1 - - - - - - -"), Some("-"));
    }

    #[test]
    fn incomplete_header_has_no_structured_data() {
        let header = "<34>1 2003-10-11T22:14:15.003Z host app 1 ID47";
        for tail in ["", " ", " message", " -message", r#" [a x="]"#, r#" [a x="1"]message"#] {
            assert_eq!(structured(&format!("{header}{tail}")), None, "{tail:?}");
        }
        for other in [
            "<34>Oct 11 22:14:15 host su: - ",
            "<134>1 2025-02-03 04:05:06 gw-1 CheckPoint 4711 - [action:\"Accept\"; ]",
            "<134>1 1650972789.42 MX events a b - dst",
        ] {
            assert_eq!(identify(other.as_bytes()), Some(Format::Rfc3164));
            assert_eq!(structured(other), None, "{other}");
        }
    }
}
