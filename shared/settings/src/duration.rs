//! Durations with a unit.

use std::time::Duration;

use crate::Setting;
use crate::setting::digits;

/// The units and what they are in microseconds, the largest first.
const UNITS: [(&str, u64); 6] =
    [("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000), ("us", 1)];

/// A whole number and its unit: `500us`, `2ms`, `10s`, `1m`, `1h`, `7d`.
impl Setting for Duration {
    fn takes() -> &'static str {
        "a duration such as 2ms, 10s or 1m"
    }

    fn parse(text: &str) -> Result<Duration, String> {
        let end_of_number = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end_of_number);
        let number: u64 = digits(number)?.parse().map_err(|_| "too large".to_owned())?;
        if unit.is_empty() {
            return Err("a unit is missing: us, ms, s, m, h or d".to_owned());
        }
        let (_, microseconds) = UNITS
            .into_iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(|| format!("no such unit: {unit}; there are us, ms, s, m, h and d"))?;
        number.checked_mul(microseconds).map(Duration::from_micros).ok_or_else(|| "too large".to_owned())
    }

    fn show(&self) -> String {
        show_duration(*self)
    }
}

/// The duration as a setting would say it, in the largest unit that leaves it whole. What is under a microsecond is cut off.
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
