//! Syslog: a PRI, and behind it either the header of RFC 5424 or anything at all.

use sekiwake_record::Format;

/// Facility 23, severity 7 (RFC 5424 §6.2.1).
const MAX_PRIVAL: u16 = 191;

/// The longest HOSTNAME, APP-NAME, PROCID and MSGID (RFC 5424 §6).
const MAX_FIELD_LENGTHS: [usize; 4] = [255, 48, 128, 32];

/// RFC 5424, or RFC 3164 for whatever else begins with a PRI, or nothing.
pub(crate) fn identify(payload: &[u8]) -> Option<Format> {
    let after_pri = strip_pri(payload)?;
    Some(if is_rfc5424(after_pri) { Format::Rfc5424 } else { Format::Rfc3164 })
}

/// What follows `<PRIVAL>`: one to three digits, at most 191.
///
/// Leading zeros, which RFC 3164 §4.1.1 forbids, are taken: devices send them and every receiver reads them.
fn strip_pri(payload: &[u8]) -> Option<&[u8]> {
    let mut value = 0;
    let mut rest = payload.strip_prefix(b"<")?;
    for digits in 0..=3 {
        let (&byte, after) = rest.split_first()?;
        match byte {
            b'0'..=b'9' => value = value * 10 + u16::from(byte - b'0'),
            b'>' if digits > 0 && value <= MAX_PRIVAL => return Some(after),
            _ => return None,
        }
        rest = after;
    }
    None
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
        let end = rest.iter().take(max_length + 1).position(|byte| !byte.is_ascii_graphic());
        let Some(length) = end.filter(|&length| length > 0 && rest[length] == b' ') else { return false };
        rest = &rest[length + 1..];
    }
    matches!(rest, [b'-'] | [b'-', b' ', ..] | [b'[', ..])
}
