//! Sizes in bytes.

use std::fmt;

use crate::Setting;

/// The units, the largest first. Binary ones only, because `MB` is ambiguous.
const UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// A number of bytes: `256MiB`, `64KiB`, `1GiB`, or plain `16384`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl Setting for ByteSize {
    fn takes() -> &'static str {
        "a size such as 256MiB, 64KiB or 1GiB"
    }

    fn parse(text: &str) -> Result<ByteSize, String> {
        let end_of_number = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end_of_number);
        let number = u64::parse(number)?;
        let factor = match unit {
            "" => 1,
            _ => UNITS
                .into_iter()
                .find(|(name, _)| *name == unit)
                .map(|(_, factor)| factor)
                .ok_or_else(|| format!("unknown unit {unit}, expected B, KiB, MiB, GiB or TiB"))?,
        };
        number.checked_mul(factor).map(ByteSize).ok_or_else(|| "too large".to_owned())
    }
}

/// In the largest unit of which it is a multiple.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS.into_iter().find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
