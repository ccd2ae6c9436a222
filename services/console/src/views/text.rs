//! Numbers, times and states as text.

use std::time::Duration;

use jiff::Timestamp;
use maud::{Markup, html};

use crate::model::{Moment, Presence};

/// `1,234,567`.
pub(super) fn number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 datagram`, `2 datagrams`.
pub(super) fn plural(count: u64, noun: &str) -> String {
    format!("{} {noun}{}", number(count), if count == 1 { "" } else { "s" })
}

/// `1,234/s`, or a dash if it is not known.
pub(super) fn rate(rate: Option<f64>) -> String {
    match rate {
        None => "–".to_owned(),
        Some(rate) if rate <= 0.0 => "0/s".to_owned(),
        Some(rate) if rate < 0.1 => "< 0.1/s".to_owned(),
        Some(rate) if rate < 10.0 => format!("{rate:.1}/s"),
        Some(rate) => format!("{}/s", number(rate.round() as u64)),
    }
}

/// `1.5 GiB`.
pub(super) fn bytes(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" || value >= 100.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// `3 s`, `5 min`, `2 h 5 min`, `4 d 3 h`.
pub(super) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

/// A time; the script adds that of the browser's zone.
pub(super) fn moment(at: Moment) -> Markup {
    wall(at.wall)
}

/// As [`moment`], from the time since 1970.
pub(super) fn wall(at: Duration) -> Markup {
    let time = i64::try_from(at.as_secs()).ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let Some(time) = time else { return html! { "?" } };
    let text = time.to_string();
    let clock = text.get(11..19).unwrap_or_default();
    html! { time datetime=(text) { (clock) " UTC" } }
}

/// Whether a service is there.
pub(super) fn presence(presence: Presence, now: Moment) -> Markup {
    match presence {
        Presence::Live => html! { span.state.up { "running" } },
        Presence::Stopped { since } => html! { span.state.off { "stopped since " (moment(since)) } },
        Presence::Silent { since } => html! {
            span.state.down { "silent since " (moment(since)) " (" (duration(now.since(since))) ")" }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_separators_and_units() {
        assert_eq!([0, 999, 1000, 1_234_567].map(number), ["0", "999", "1,000", "1,234,567"]);
        let rates = [None, Some(0.0), Some(0.01), Some(1.25), Some(9876.5)].map(rate);
        assert_eq!(rates, ["–", "0/s", "< 0.1/s", "1.2/s", "9,877/s"]);
        assert_eq!([0, 1023, 1536, 200 << 30].map(bytes), ["0 B", "1023 B", "1.5 KiB", "200 GiB"]);
        let durations = [5, 65, 7500, 90_000].map(|seconds| duration(Duration::from_secs(seconds)));
        assert_eq!(durations, ["5 s", "1 min", "2 h 5 min", "1 d 1 h"]);
    }

    #[test]
    fn times_are_utc_and_never_fail() {
        assert_eq!(wall(Duration::from_secs(0)).0, "<time datetime=\"1970-01-01T00:00:00Z\">00:00:00 UTC</time>");
        assert_eq!(wall(Duration::MAX).0, "?");
    }
}
