//! Payloads as escaped text, and back.
//!
//! Hand-written rather than serde_json's escaping, because that lets DEL, C1 and the Unicode line
//! separators through, and this is the storer's hot path: whole blocks of plain text are copied at
//! once.

use std::borrow::Cow;

/// Appends text inside the quotes of a JSON string.
pub(super) fn json(text: &str, out: &mut Vec<u8>) {
    let mut rest = text.as_bytes();
    loop {
        let plain = plain_length(rest);
        out.extend_from_slice(&rest[..plain]);
        let Some(&byte) = rest.get(plain) else { return };
        let length = match (byte, &rest[plain + 1..]) {
            (b'"' | b'\\', _) => {
                out.extend_from_slice(&[b'\\', byte]);
                1
            }
            (b'\n', _) => short(out, b'n'),
            (b'\r', _) => short(out, b'r'),
            (b'\t', _) => short(out, b't'),
            (0..0x20 | 0x7f, _) => unicode(out, u16::from(byte), 1),
            // U+0080 to U+009F: the second byte of these two equals the code point.
            (0xc2, [second @ 0x80..0xa0, ..]) => unicode(out, u16::from(*second), 2),
            (0xe2, [0x80, third @ (0xa8 | 0xa9), ..]) => unicode(out, 0x2000 | u16::from(*third & 0x3f), 3),
            // Any other non-ASCII byte is copied unchanged.
            _ => {
                out.push(byte);
                1
            }
        };
        rest = &rest[plain + length..];
    }
}

fn short(out: &mut Vec<u8>, letter: u8) -> usize {
    out.extend_from_slice(&[b'\\', letter]);
    1
}

fn unicode(out: &mut Vec<u8>, code: u16, length: usize) -> usize {
    out.extend_from_slice(b"\\u");
    for shift in [12, 8, 4, 0] {
        out.push(DIGITS[usize::from(code >> shift & 15)]);
    }
    length
}

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The length of the prefix that needs no escaping: printable ASCII without quotes and backslashes.
fn plain_length(bytes: &[u8]) -> usize {
    length_while(bytes, is_plain)
}

/// The length of the prefix whose bytes all satisfy a predicate. Blocks are tested without a branch
/// per byte, so that the compiler emits vector instructions.
#[inline(always)]
fn length_while(bytes: &[u8], accepts: impl Fn(u8) -> bool) -> usize {
    let (blocks, _) = bytes.as_chunks::<32>();
    let all_accepted = |block: &[u8; 32]| block.iter().fold(true, |all, &byte| all & accepts(byte));
    let whole = blocks.iter().position(|block| !all_accepted(block)).unwrap_or(blocks.len()) * 32;
    let rest = &bytes[whole..];
    whole + rest.iter().position(|&byte| !accepts(byte)).unwrap_or(rest.len())
}

#[inline(always)]
fn is_plain(byte: u8) -> bool {
    (0x20..0x7f).contains(&byte) & (byte != b'"') & (byte != b'\\')
}

/// Appends any bytes as text on one line.
pub(super) fn text(payload: &[u8], out: &mut Vec<u8>) {
    match std::str::from_utf8(payload) {
        Ok(valid) => valid_text(valid.as_bytes(), out),
        Err(_) => {
            for chunk in payload.utf8_chunks() {
                valid_text(chunk.valid().as_bytes(), out);
                bytes(out, chunk.invalid(), chunk.invalid().len());
            }
        }
    }
}

fn valid_text(mut rest: &[u8], out: &mut Vec<u8>) {
    loop {
        let plain = length_while(rest, |byte| is_plain(byte) | (byte == b'"'));
        out.extend_from_slice(&rest[..plain]);
        rest = &rest[plain..];
        let length = match rest {
            [] => return,
            [b'\\', ..] => short(out, b'\\'),
            [b'\n', ..] => short(out, b'n'),
            [b'\r', ..] => short(out, b'r'),
            [b'\t', ..] => short(out, b't'),
            [0..0x20 | 0x7f, ..] => bytes(out, rest, 1),
            [0xc2, 0x80..0xa0, ..] => bytes(out, rest, 2),
            [0xe2, 0x80, 0xa8 | 0xa9, ..] => bytes(out, rest, 3),
            [byte, ..] => {
                out.push(*byte);
                1
            }
        };
        rest = &rest[length..];
    }
}

fn bytes(out: &mut Vec<u8>, from: &[u8], length: usize) -> usize {
    for &byte in &from[..length] {
        out.extend_from_slice(&[b'\\', b'x', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
    length
}

/// Reverses the escapes of [`text`]; `None` for text that it does not write.
pub(super) fn from_text(line: &[u8]) -> Option<Cow<'_, [u8]>> {
    let Some(first) = line.iter().position(|&byte| byte == b'\\') else { return Some(Cow::Borrowed(line)) };
    let mut payload = Vec::with_capacity(line.len());
    payload.extend_from_slice(&line[..first]);
    let mut rest = &line[first..];
    loop {
        match rest {
            [] => return Some(Cow::Owned(payload)),
            [b'\\', b'x', high, low, after @ ..] => {
                payload.push(digit(*high)? << 4 | digit(*low)?);
                rest = after;
            }
            [b'\\', letter, after @ ..] => {
                payload.push(match letter {
                    b'\\' => b'\\',
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    _ => return None,
                });
                rest = after;
            }
            [b'\\'] => return None,
            [byte, after @ ..] => {
                payload.push(*byte);
                rest = after;
            }
        }
    }
}

fn digit(byte: u8) -> Option<u8> {
    DIGITS.iter().position(|digit| *digit == byte).map(|value| value as u8)
}
