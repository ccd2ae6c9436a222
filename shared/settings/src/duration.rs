//! Durations with a unit. Written by hand because humantime accepts several forms of one duration.

use std::time::Duration;

use crate::{Setting, setting::digits};

/// The units in microseconds, the largest first.
const UNITS: [(&str, u64); 7] = [
    ("w", 604_800_000_000),
    ("d", 86_400_000_000),
    ("h", 3_600_000_000),
    ("m", 60_000_000),
    ("s", 1_000_000),
    ("ms", 1_000),
    ("us", 1),
];

/// A whole number and a unit: `500us`, `2ms`, `10s`, `1m`, `1h`, `7d`, `2w`.
impl Setting for Duration {
    fn takes() -> &'static str {
        "a duration such as 2ms, 10s or 1m"
    }

    fn parse(text: &str) -> Result<Duration, String> {
        let end_of_number = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end_of_number);
        let number: u64 = digits(number)?.parse().map_err(|_| "too large".to_owned())?;
        if unit.is_empty() {
            return Err("missing unit, expected us, ms, s, m, h, d or w".to_owned());
        }
        let (_, microseconds) = UNITS
            .into_iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| format!("unknown unit {unit}, expected us, ms, s, m, h, d or w"))?;
        number.checked_mul(microseconds).map(Duration::from_micros).ok_or_else(|| "too large".to_owned())
    }

    fn show(&self) -> String {
        show_duration(*self)
    }
}

/// A duration on a command line: as in a setting, but longer than 0.
///
/// # Errors
/// The problem with the text, or the expected form.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    let duration = Duration::parse(text)?;
    if duration.is_zero() { Err("expected a duration longer than 0, such as 500ms".to_owned()) } else { Ok(duration) }
}

/// The duration as a setting, in the largest unit of which it is a multiple. Fractions of a
/// microsecond are truncated.
pub fn show_duration(duration: Duration) -> String {
    let microseconds = duration.as_micros();
    if microseconds == 0 {
        return "0s".to_owned();
    }
    UNITS
        .into_iter()
        .find(|(_, unit)| microseconds.is_multiple_of(u128::from(*unit)))
        .map(|(name, unit)| format!("{}{name}", microseconds / u128::from(unit)))
        .unwrap_or_default()
}
