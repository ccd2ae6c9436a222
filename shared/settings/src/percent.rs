//! Percent-encoding in addresses.
//!
//! Written by hand because the crate percent-encoding leaves invalid sequences unchanged, whereas a
//! mistake must be reported here.

/// Text with `%` and two hexadecimal digits for a byte, decoded (RFC 3986 §2.1).
///
/// # Errors
/// The expectation that was not met, in a few words.
pub fn percent_decoded(text: &str) -> Result<String, &'static str> {
    String::from_utf8(percent_decoded_bytes(text)?).map_err(|_| "expected UTF-8")
}

/// The same for what may be other than UTF-8, such as bytes of a message or a password.
///
/// # Errors
/// The expectation that was not met, in a few words.
pub fn percent_decoded_bytes(text: &str) -> Result<Vec<u8>, &'static str> {
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
    Ok(bytes)
}
