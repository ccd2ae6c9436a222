//! The trait of types that a setting can have, and its implementation for plain types.

use std::{
    fmt::Debug,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
};

use sekiwake_record::Name;

/// A type that a variable's text can be parsed into.
pub trait Setting: Sized {
    /// The accepted values, to follow "expected": `a duration such as 2ms, 10s or 1m`.
    fn takes() -> &'static str;

    /// Parses text that is trimmed and not empty. The error describes the problem in a few words;
    /// it is empty if [`Setting::takes`] is enough.
    fn parse(text: &str) -> Result<Self, String>;

    /// The value as text that could be parsed, for the bounds of a range.
    fn show(&self) -> String
    where
        Self: Debug,
    {
        format!("{self:?}")
    }
}

/// Whole numbers are digits only: no sign, no white space, no separators.
macro_rules! whole_number {
    ($($number:ty),*) => { $(
        impl Setting for $number {
            fn takes() -> &'static str {
                "a whole number"
            }

            fn parse(text: &str) -> Result<$number, String> {
                digits(text)?.parse().map_err(|_| format!("over {}", <$number>::MAX))
            }
        }
    )* };
}

whole_number!(u16, u32, u64, usize);

/// Digits, optionally with a decimal point between them: no sign, no exponent, finite.
impl Setting for f64 {
    fn takes() -> &'static str {
        "a number such as 3 or 2.5"
    }

    fn parse(text: &str) -> Result<f64, String> {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        digits(whole)?;
        digits(fraction)?;
        text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| "too large".to_owned())
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    fn takes() -> &'static str {
        "true or false"
    }

    fn parse(text: &str) -> Result<bool, String> {
        text.parse().map_err(|_| String::new())
    }
}

impl Setting for String {
    fn takes() -> &'static str {
        "text"
    }

    fn parse(text: &str) -> Result<String, String> {
        Ok(text.to_owned())
    }
}

impl Setting for PathBuf {
    fn takes() -> &'static str {
        "a path"
    }

    fn parse(text: &str) -> Result<PathBuf, String> {
        Ok(PathBuf::from(text))
    }
}

/// `192.0.2.1:9600`, `[2001:db8::1]:9600`, and `:9600` for port 9600 on all IPv4 interfaces. Port 0
/// lets the kernel choose.
impl Setting for SocketAddr {
    fn takes() -> &'static str {
        "an address with a port such as 127.0.0.1:9600, [::1]:9600 or :9600"
    }

    fn parse(text: &str) -> Result<SocketAddr, String> {
        match text.strip_prefix(':') {
            Some(port) => Ok(SocketAddr::from((Ipv4Addr::UNSPECIFIED, u16::parse(port)?))),
            None => text.parse().map_err(|_| String::new()),
        }
    }
}

impl Setting for Name {
    fn takes() -> &'static str {
        "a name of 1 to 63 letters, digits, dots, underscores and hyphens"
    }

    fn parse(text: &str) -> Result<Name, String> {
        Name::new(text).map_err(|_| String::new())
    }
}

/// The text, if it consists of digits. `str::parse` would accept a leading plus sign.
pub(crate) fn digits(text: &str) -> Result<&str, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) { Ok(text) } else { Err(String::new()) }
}
