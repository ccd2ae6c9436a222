//! Text in messages, with every character visible.

use std::borrow::Cow;

/// The mark at the beginning of files that some editors save (U+FEFF, in UTF-8).
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The text with characters that do not print, such as a zero-width space, escaped as `\u{200b}`.
/// Line feeds, quotes and backslashes stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    let is_plain = |character: char| matches!(character, '\n' | '"' | '\'' | '\\');
    let is_visible = |character: char| is_plain(character) || character.escape_debug().len() == 1;
    if text.chars().all(is_visible) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for character in text.chars() {
        match is_visible(character) {
            true => shown.push(character),
            false => shown.extend(character.escape_debug()),
        }
    }
    Cow::Owned(shown)
}

/// The text of a file without a byte order mark at its beginning.
pub fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_do_not_print_are_escaped() {
        assert_eq!(printable("port \"51\u{200b}4\"\n\\ü"), "port \"51\\u{200b}4\"\n\\ü");
        assert_eq!(printable("\u{feff}udp\t\u{1b}[1m\0"), "\\u{feff}udp\\t\\u{1b}[1m\\0");
        assert!(matches!(printable("udp://a:514 \"b\""), Cow::Borrowed(_)));
    }

    #[test]
    fn only_the_first_byte_order_mark_is_left_out() {
        assert_eq!(without_byte_order_mark("\u{feff}udp"), "udp");
        assert_eq!(without_byte_order_mark("u\u{feff}dp"), "u\u{feff}dp");
    }
}
