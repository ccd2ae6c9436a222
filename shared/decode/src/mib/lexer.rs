//! Tokens of ASN.1 as MIB modules use it.

/// A token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// An identifier, type or keyword: letters, digits, hyphens, and the underscores of vendors.
    Word(&'a str),
    /// A number of digits; `None` above 2^63.
    Number(Option<i64>),
    /// A quoted string, without its quotes.
    Text(&'a [u8]),
    /// `::=`
    Assign,
    /// Any other character, and the `..` of ranges.
    Sign(u8),
}

/// Reads tokens. Characters that ASN.1 has not are signs of their own.
#[derive(Clone, Debug)]
pub(super) struct Lexer<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Lexer<'a> {
        // Some editors write a byte order mark.
        Lexer { text: text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text), at: 0 }
    }

    /// The number of the line that has been read last.
    pub(super) fn line(&self) -> usize {
        self.text[..self.at].iter().filter(|&&byte| byte == b'\n').count() + 1
    }

    /// The length of the run of bytes from `at` that are like this.
    fn run(&self, is_like: impl Fn(u8) -> bool) -> usize {
        self.text[self.at..].iter().take_while(|&&byte| is_like(byte)).count()
    }

    fn skip_space_and_comments(&mut self) {
        loop {
            self.at += self.run(|byte| byte.is_ascii_whitespace() || matches!(byte, 0 | 0x0b));
            if !self.text[self.at..].starts_with(b"--") {
                return;
            }
            // ASN.1 also ends a comment at its next `--`, but vendors' lines of hyphens do not.
            self.at += self.run(|byte| !matches!(byte, b'\n' | b'\r'));
        }
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.skip_space_and_comments();
        let rest = &self.text[self.at..];
        let first = *rest.first()?;
        let (token, length) = match first {
            b'a'..=b'z' | b'A'..=b'Z' => {
                let mut length = self.run(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
                // Two hyphens begin a comment.
                if let Some(comment) = rest[..length].windows(2).position(|two| two == b"--") {
                    length = comment;
                }
                (Token::Word(std::str::from_utf8(&rest[..length]).unwrap_or_default()), length)
            }
            b'0'..=b'9' => {
                let length = self.run(|byte| byte.is_ascii_digit());
                let number = std::str::from_utf8(&rest[..length]).unwrap_or_default().parse().ok();
                (Token::Number(number), length)
            }
            b'"' => {
                let end = rest[1..].iter().position(|&byte| byte == b'"').unwrap_or(rest.len() - 1);
                (Token::Text(&rest[1..=end]), (end + 2).min(rest.len()))
            }
            // Binary and hexadecimal strings are values of no interest here.
            b'\'' => {
                let end = rest[1..].iter().position(|&byte| matches!(byte, b'\'' | b'\n')).unwrap_or(rest.len() - 1);
                let length = (end + 2).min(rest.len());
                let base = matches!(rest.get(length), Some(b'H' | b'h' | b'B' | b'b'));
                (Token::Sign(b'\''), length + usize::from(base))
            }
            b':' if rest.starts_with(b"::=") => (Token::Assign, 3),
            sign => (Token::Sign(sign), 1),
        };
        self.at += length;
        Some(token)
    }
}
