//! Display hints (RFC 2579 §3.1).
//!
//! ```text
//! INTEGER        d | d-2 | x | o | b
//! OCTET STRING   [*] length (d | x | o | a | t) [separator [terminator]] …   the last repeats
//! ```

use std::fmt::Write as _;

/// The longest text of a value, bytes. What is longer is cut.
pub(super) const MAX_TEXT: usize = 4096;

/// An INTEGER as its hint shows it. `None` if the hint is not one of an INTEGER.
pub(super) fn integer(hint: &str, number: i64) -> Option<String> {
    let sign = if number < 0 { "-" } else { "" };
    let magnitude = number.unsigned_abs();
    match hint {
        "d" => Some(number.to_string()),
        "x" => Some(format!("{sign}{magnitude:x}")),
        "o" => Some(format!("{sign}{magnitude:o}")),
        "b" => Some(format!("{sign}{magnitude:b}")),
        _ => {
            let places: usize = hint.strip_prefix("d-")?.parse().ok().filter(|&places| places <= 20)?;
            let digits = format!("{magnitude:0width$}", width = places + 1);
            let (whole, fraction) = digits.split_at(digits.len() - places);
            let point = if places > 0 { "." } else { "" };
            Some(format!("{sign}{whole}{point}{fraction}"))
        }
    }
}

/// One specification of an OCTET STRING's hint.
#[derive(Clone, Copy)]
struct Specification {
    is_repeated: bool,
    length: usize,
    format: u8,
    separator: Option<u8>,
    terminator: Option<u8>,
}

impl Specification {
    /// Splits the first one off a hint.
    fn split(hint: &[u8]) -> Option<(Specification, &[u8])> {
        let (is_repeated, hint) = hint.strip_prefix(b"*").map_or((false, hint), |rest| (true, rest));
        let digits = hint.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let length = std::str::from_utf8(&hint[..digits]).ok()?.parse().ok()?;
        let (&format, mut hint) = hint[digits..].split_first()?;
        let mut sign = || {
            let (&first, rest) = hint.split_first()?;
            let is_sign = !first.is_ascii_digit() && first != b'*';
            is_sign.then(|| hint = rest)?;
            Some(first)
        };
        let separator = sign();
        let terminator = separator.filter(|_| is_repeated).and_then(|_| sign());
        let is_known = matches!(format, b'd' | b'x' | b'o' | b'a' | b't');
        let specification = Specification { is_repeated, length, format, separator, terminator };
        is_known.then_some((specification, hint))
    }
}

/// An OCTET STRING as its hint shows it. `None` if the hint is not one of an OCTET STRING.
pub(super) fn octets(hint: &str, octets: &[u8]) -> Option<String> {
    let mut hint = hint.as_bytes();
    let mut left = octets;
    let mut text = String::new();
    let mut specification = None;
    while !left.is_empty() && text.len() < MAX_TEXT {
        if !hint.is_empty() {
            let (first, rest) = Specification::split(hint)?;
            (specification, hint) = (Some(first), rest);
        }
        let current = specification?;
        let before = left.len();
        let mut count = 1;
        if current.is_repeated {
            count = usize::from(left[0]);
            left = &left[1..];
        }
        for index in 0..count {
            let (part, rest) = left.split_at(current.length.min(left.len()));
            left = rest;
            append(&mut text, current, part);
            if left.is_empty() || text.len() >= MAX_TEXT {
                break;
            }
            let sign = if index + 1 == count { current.terminator.or(current.separator) } else { current.separator };
            text.extend(sign.map(char::from));
        }
        // Nothing would ever be read.
        if left.len() == before && hint.is_empty() {
            return None;
        }
    }
    (!hint.is_empty() || specification.is_some()).then_some(text)
}

fn append(text: &mut String, specification: Specification, part: &[u8]) {
    if part.is_empty() {
        return;
    }
    match specification.format {
        b'a' | b't' => text.push_str(&String::from_utf8_lossy(part)),
        // Every octet, as other managers show it: a number would lose leading zeros.
        b'x' => part.iter().for_each(|octet| {
            let _ = write!(text, "{octet:02x}");
        }),
        format => {
            let number = part.iter().take(16).fold(0_u128, |value, &octet| value << 8 | u128::from(octet));
            let _ = if format == b'd' { write!(text, "{number}") } else { write!(text, "{number:o}") };
        }
    }
}
