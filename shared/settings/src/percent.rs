//! Percent-encoding, as it stands in addresses.

/// Text with `%` and two hexadecimal digits for a byte, decoded (RFC 3986 §2.1).
///
/// # Errors
/// What was expected, in a few words.
pub fn percent_decoded(text: &str) -> Result<String, &'static str> {
    const EXPECTED: &str = "expected two hexadecimal digits after %";
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).ok_or(EXPECTED)?;
        let digits = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
        bytes.push(u8::from_str_radix(digits.ok_or(EXPECTED)?, 16).map_err(|_| EXPECTED)?);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| "expected UTF-8")
}
