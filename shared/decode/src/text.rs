//! Text from the network, for a terminal.

use std::fmt::{self, Write as _};

use serde::{Serialize, Serializer};

/// The number of bytes that are shown of a field or datagram that cannot be decoded.
const MAX_BYTES: usize = 1024;

/// Bytes in hexadecimal digits, at most 1,024 of them.
pub(crate) struct Hexadecimal<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Hexadecimal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in self.0.iter().take(MAX_BYTES) {
            f.write_char(char::from(DIGITS[usize::from(byte >> 4)]))?;
            f.write_char(char::from(DIGITS[usize::from(byte & 15)]))?;
        }
        f.write_str(if self.0.len() > MAX_BYTES { "..." } else { "" })
    }
}

impl Serialize for Hexadecimal<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Text in quotation marks if it contains spaces. Characters that could change what a terminal
/// shows (controls, directions of writing) are escaped.
pub(crate) struct Plain<'a>(pub(crate) &'a str);

impl fmt::Display for Plain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_quoted = self.0.is_empty() || self.0.contains([' ', '"', '=', '[', ']', '{', '}']);
        if is_quoted {
            f.write_char('"')?;
        }
        for character in self.0.chars() {
            match character {
                '"' | '\\' => write!(f, "\\{character}")?,
                _ if is_unsafe(character) => write!(f, "{}", character.escape_unicode())?,
                _ => f.write_char(character)?,
            }
        }
        f.write_str(if is_quoted { "\"" } else { "" })
    }
}

fn is_unsafe(character: char) -> bool {
    let is_direction = matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    character.is_control() || is_direction || matches!(character, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controls_do_not_reach_a_terminal() {
        assert_eq!(Plain("Gi0/1").to_string(), "Gi0/1");
        assert_eq!(Plain("to core").to_string(), "\"to core\"");
        assert_eq!(Plain("\u{1b}[2J\n\u{9b}\u{202e}").to_string(), "\"\\u{1b}[2J\\u{a}\\u{9b}\\u{202e}\"");
    }

    #[test]
    fn long_bytes_are_cut() {
        assert_eq!(Hexadecimal(&[0, 0xaf]).to_string(), "00af");
        assert_eq!(Hexadecimal(&[1; 2000]).to_string().len(), 2 * MAX_BYTES + 3);
    }
}
