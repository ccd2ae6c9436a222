//! Syslog: a PRI, and behind it either the header of RFC 5424 or anything at all.

use std::ops::Range;

use sekiwake_record::Format;

/// Facility 23, severity 7 (RFC 5424 §6.2.1).
const MAX_PRIVAL: u16 = 191;

/// The longest HOSTNAME, APP-NAME, PROCID and MSGID (RFC 5424 §6).
const MAX_FIELD_LENGTHS: [usize; 4] = [255, 48, 128, 32];

/// The longest TIMESTAMP: with six digits of a second and an offset it is 32, and careless devices write more.
const MAX_TIMESTAMP: usize = 64;

/// RFC 5424, or RFC 3164 for whatever else begins with a PRI, or nothing.
pub(crate) fn identify(payload: &[u8]) -> Option<Format> {
    let (_, after_pri) = split_pri(payload)?;
    Some(if is_rfc5424(after_pri) { Format::Rfc5424 } else { Format::Rfc3164 })
}

/// What a PRI says (RFC 5424 §6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Priority(u8);

impl Priority {
    /// What a message without a PRI counts as: facility 1 (user), severity 5 (notice), by RFC 3164 §4.3.3.
    pub const ABSENT: Priority = Priority(13);

    /// The priority of a message, whatever follows the PRI; `None` when it begins with none.
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

/// The keywords of facilities 0 to 23, as syslog.h and the field's daemons have them (RFC 5424 §6.2.1 has only the meanings).
const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];

/// The keywords of severities 0 to 7, and the longer and older names that people write.
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

/// A facility by its keyword or number.
pub fn parse_facility(text: &str) -> Option<u8> {
    let by_name = FACILITIES.iter().position(|name| *name == text);
    by_name.map(|index| index as u8).or_else(|| number(text, 23))
}

/// A severity by a keyword or its number.
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

/// Where the STRUCTURED-DATA of an RFC 5424 message is: the range that holds `-` or its elements. `None` where the header is not
/// all there, or the structured data is not well-formed.
pub fn structured_data(payload: &[u8]) -> Option<Range<usize>> {
    let (_, after_pri) = split_pri(payload)?;
    let mut rest = after_pri.strip_prefix(b"1 ")?;
    let timestamp = rest.iter().take(MAX_TIMESTAMP + 1).position(|&byte| byte == b' ').filter(|&length| length > 0)?;
    rest = &rest[timestamp + 1..];
    for max_length in MAX_FIELD_LENGTHS {
        rest = after_field(rest, max_length)?;
    }
    let start = payload.len() - rest.len();
    let length = structured_data_length(rest)?;
    // What follows is a space and the message, or nothing.
    matches!(rest.get(length), None | Some(b' ')).then_some(start..start + length)
}

/// How long the STRUCTURED-DATA at the beginning of `text` is (RFC 5424 §6.3).
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

/// How long the element of STRUCTURED-DATA at the beginning of `text` is, its closing bracket included.
pub fn element_length(text: &[u8]) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    let end = text.iter().position(|&byte| {
        let ends = byte == b']' && !quoted;
        // Only within a value, and only these three may be escaped; whatever else a backslash stands before is plain.
        quoted ^= byte == b'"' && !escaped;
        escaped = byte == b'\\' && quoted && !escaped;
        ends
    })?;
    Some(end + 1)
}

/// Splits `<PRIVAL>` off: one to three digits, at most 191.
///
/// Leading zeros, which RFC 3164 §4.1.1 forbids, are taken: devices send them and every receiver reads them.
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

/// What follows a header field of at most this length and the space behind it.
fn after_field(text: &[u8], max_length: usize) -> Option<&[u8]> {
    let end = text.iter().take(max_length + 1).position(|byte| !byte.is_ascii_graphic());
    let length = end.filter(|&length| length > 0 && text[length] == b' ')?;
    Some(&text[length + 1..])
}

/// Whether what follows the PRI is VERSION 1 and a TIMESTAMP (RFC 5424 §6).
///
/// A date and time right behind the version occurs in no other dialect, so what comes after is not looked at: a device that gets its
/// structured data wrong still speaks RFC 5424. A NILVALUE is one hyphen and proves nothing, so then the whole header has to be there.
fn is_rfc5424(after_pri: &[u8]) -> bool {
    let Some(timestamp) = after_pri.strip_prefix(b"1 ") else { return false };
    match timestamp.strip_prefix(b"- ") {
        Some(after_nil) => has_fields_and_structured_data(after_nil),
        None => begins_with_date_time(timestamp),
    }
}

/// `YYYY-MM-DDThh:mm:ss`, by its shape. Fraction and offset follow or, from careless devices, do not.
fn begins_with_date_time(text: &[u8]) -> bool {
    const SHAPE: &[u8; 19] = b"0000-00-00T00:00:00";
    text.first_chunk::<19>().is_some_and(|text| {
        SHAPE.iter().zip(text).all(|(&shape, &byte)| if shape == b'0' { byte.is_ascii_digit() } else { byte == shape })
    })
}

/// `HOSTNAME SP APP-NAME SP PROCID SP MSGID SP STRUCTURED-DATA`, the last by its first byte.
fn has_fields_and_structured_data(mut rest: &[u8]) -> bool {
    for max_length in MAX_FIELD_LENGTHS {
        let Some(after) = after_field(rest, max_length) else { return false };
        rest = after;
    }
    matches!(rest, [b'-'] | [b'-', b' ', ..] | [b'[', ..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn structured(text: &str) -> Option<&str> {
        structured_data(text.as_bytes()).map(|range| &text[range])
    }

    #[test]
    fn a_priority_is_read_whatever_follows_it() {
        let priority = Priority::of(b"<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I").unwrap();
        assert_eq!((priority.value(), priority.facility(), priority.severity()), (189, 23, 5));
        assert_eq!(Priority::of(b"<192>x"), None);
        assert_eq!(Priority::of(b"no PRI"), None);
        assert_eq!((Priority::ABSENT.facility(), Priority::ABSENT.severity()), (1, 5));
    }

    #[test]
    fn structured_data_is_found_by_its_quotes() {
        let header = "<34>1 2003-10-11T22:14:15.003Z host app 1 ID47";
        assert_eq!(structured(&format!("{header} - message")), Some("-"));
        assert_eq!(structured(&format!("{header} -")), Some("-"));
        let data = r#"[a x="\"]" y="\\"][b]"#;
        assert_eq!(structured(&format!("{header} {data} [not this]")), Some(data));
        assert_eq!(structured("<34>1 - - - - - - -"), Some("-"));
    }

    #[test]
    fn a_header_that_is_not_all_there_has_none() {
        let header = "<34>1 2003-10-11T22:14:15.003Z host app 1 ID47";
        for tail in ["", " ", " message", " -message", r#" [a x="]"#, r#" [a x="1"]message"#] {
            assert_eq!(structured(&format!("{header}{tail}")), None, "{tail:?}");
        }
        assert_eq!(structured("<34>Oct 11 22:14:15 host su: - "), None);
    }
}
