//! The times of a query: the forms that `date`, Python and JavaScript print, and ages.
//!
//! ```text
//! date    2026-11-25T14:00:00+00:00 (-Is)   2026-11-25T14:00:00,123456789+00:00 (-Ins)   2026-11-25 (-I)
//!         2026-11-25 14:00:00+00:00 (--rfc-3339=s)      Wed, 25 Nov 2026 14:00:00 +0000 (-R)
//!         Wed Nov 25 14:00:00 UTC 2026    1795615200 (+%s)    1795615200123456789 (+%s%N)
//! Python  2026-11-25T14:00:00.123456 (isoformat)        2026-11-25 14:00:00+00:00 (str)
//!         1795615200.123456 (time.time())               Wed Nov 25 14:00:00 2026 (time.ctime())
//! JS      2026-11-25T14:00:00.123Z (toISOString)        Wed, 25 Nov 2026 14:00:00 GMT (toUTCString)
//!         1795615200123 (Date.now())                    Wed Nov 25 2026 14:00:00 GMT+0000 (toString)
//! ```
//! A time without a zone is UTC. In a URL that was not encoded the `+` of a zone is a space.

use std::{borrow::Cow, time::Duration};

use jiff::{Timestamp, civil::DateTime, fmt::rfc2822, fmt::strtime, tz::TimeZone};
use sekiwake_record::WallTime;

/// The longest time, bytes.
const MAX_BYTES: usize = 128;

/// `None` if this is not a time between 1970 and 2554. An age is counted back from `now`.
pub(crate) fn parse(now: WallTime, text: &str) -> Option<WallTime> {
    let text = text.trim();
    if text == "now" {
        return Some(now);
    }
    if let Some(age) = text.strip_prefix('-') {
        return Some(now - parse_age(age)?);
    }
    if text.len() > MAX_BYTES {
        return None;
    }
    if text.starts_with(|first: char| first.is_ascii_digit())
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return since_1970(text);
    }
    let text = with_plus(text);
    // 64 bits of nanoseconds end in the year 2554.
    u64::try_from(iso(&text).or_else(|| named(&text))?.as_nanosecond()).ok().map(WallTime::from_nanos)
}

/// Seconds, with a fraction or without. Longer numbers are milliseconds, microseconds or
/// nanoseconds, because as seconds they would be after the year 5138.
fn since_1970(text: &str) -> Option<WallTime> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let number: u64 = whole.parse().ok()?;
    let unit: u64 = match whole.len() {
        ..12 => 1_000_000_000,
        12..15 => 1_000_000,
        15..18 => 1000,
        _ => 1,
    };
    if fraction.contains('.') {
        return None;
    }
    let nine_digits = format!("{fraction:0<9}");
    let part: u64 = nine_digits.get(..9)?.parse().ok()?;
    // At most 10^18.
    number.checked_mul(unit)?.checked_add(part * unit / 1_000_000_000).map(WallTime::from_nanos)
}

/// With the `+` before a zone at the end, if that has become a space: `11 00:00`, `11 0000`.
fn with_plus(text: &str) -> Cow<'_, str> {
    let is_zone = |zone: &str| {
        let digits = zone.bytes().filter(u8::is_ascii_digit).count();
        match zone.len() {
            4 => digits == 4,
            5 => digits == 4 && zone.as_bytes()[2] == b':',
            _ => false,
        }
    };
    // The name of a zone that JavaScript prints behind it.
    let text = text.split_once(" (").map_or(text, |(before, _)| before);
    match text.rsplit_once(' ') {
        // Not the time behind a date, and not the year at the end.
        Some((before, zone))
            if is_zone(zone) && (before.contains(':') || before.ends_with("GMT")) && !is_dated(text) =>
        {
            Cow::Owned(format!("{before}+{zone}"))
        }
        _ => Cow::Borrowed(text),
    }
}

/// Whether the year is at the end, as `date` prints it.
fn is_dated(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic()) && !text.contains("GMT") && !text.contains(',')
}

/// ISO 8601 and RFC 3339, also only a date, and with a space or without minutes.
fn iso(text: &str) -> Option<Timestamp> {
    if let Ok(at) = text.parse::<Timestamp>() {
        return Some(at);
    }
    // jiff's civil times ignore a zone.
    let has_zone = text.get(10..).is_some_and(|time| time.contains(['Z', 'z', '+', '-', '[']));
    let civil = text.parse::<DateTime>().ok().filter(|_| !has_zone)?;
    Some(civil.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp())
}

/// The forms with names of days and months.
fn named(text: &str) -> Option<Timestamp> {
    // RFC 2822, whose zone a URL may have attached to the time.
    let spaced = text.replace('+', " +").replace("  ", " ");
    if let Ok(at) = rfc2822::parse(&spaced) {
        return Some(at.timestamp());
    }
    let zoned = ["%a %b %d %Y %H:%M:%S GMT%z"];
    if let Some(at) = zoned.iter().find_map(|format| strtime::parse(format, text).ok()?.to_timestamp().ok()) {
        return Some(at);
    }
    let words: Vec<&str> = text.split_whitespace().filter(|word| !matches!(*word, "UTC" | "GMT" | "Z")).collect();
    let text = words.join(" ");
    let civil = ["%a %b %e %H:%M:%S %Y", "%a %b %e %I:%M:%S %p %Y", "%a %b %e %Y %H:%M:%S", "%a %d %b %H:%M:%S %Y"];
    let at = civil.iter().find_map(|format| strtime::parse(format, &text).ok()?.to_datetime().ok())?;
    Some(at.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp())
}

/// `15m`, `1h`, `7d`, `2w`. Not the settings' parser, because that accepts ms and us.
fn parse_age(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|character: char| !character.is_ascii_digit())?);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 7 * 86_400,
        _ => return None,
    };
    Some(Duration::from_secs(number.parse::<u64>().ok()?.saturating_mul(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_615_200_000_000_000;

    fn parsed(text: &str) -> Option<u64> {
        parse(WallTime::from_nanos(NOW), text).map(WallTime::as_nanos)
    }

    #[test]
    fn time_is_absolute_or_an_age() {
        for (text, at) in [
            ("2026-11-25T14:00:00Z", NOW),
            ("2026-11-25T15:00:00.5+01:00", NOW + 500_000_000),
            ("1795615200", NOW),
            ("now", NOW),
            ("-15m", NOW - 900_000_000_000),
            ("-1d", NOW - 86_400_000_000_000),
            ("-99999w", 0),
        ] {
            assert_eq!(parsed(text), Some(at), "{text}");
        }
    }

    #[test]
    fn forms_that_programs_print_are_times() {
        for text in [
            "2026-11-25T14:00:00+00:00",
            "2026-11-25T14:00:00 00:00",
            "2026-11-25T16:00:00 02:00",
            "2026-11-25T16:00:00 0200",
            "2026-11-25T16:00:00+0200",
            "2026-11-25T09:00:00-05:00",
            "2026-11-25T14:00:00,000000000+00:00",
            "2026-11-25T14:00:00,000000000 00:00",
            "2026-11-25T14:00+00:00",
            "2026-11-25T14:00 00:00",
            "2026-11-25T14+00:00",
            "2026-11-25 14:00:00+00:00",
            "2026-11-25 14:00:00 00:00",
            "2026-11-25 14:00:00",
            "2026-11-25 14:00",
            "2026-11-25T14:00:00",
            "2026-11-25T14:00:00.000000",
            "2026-11-25T14:00:00.000Z",
            "20261125T140000Z",
            "Wed, 25 Nov 2026 14:00:00 +0000",
            "Wed, 25 Nov 2026 14:00:00  0000",
            "Wed, 25 Nov 2026 16:00:00 +0200",
            "Wed, 25 Nov 2026 16:00:00  0200",
            "Wed, 25 Nov 2026 09:00:00 -0500",
            "Wed, 25 Nov 2026 14:00:00 GMT",
            "Wed Nov 25 14:00:00 UTC 2026",
            "Wed Nov 25 02:00:00 PM UTC 2026",
            "Wed Nov 25 14:00:00 2026",
            "Wed 25 Nov 14:00:00 UTC 2026",
            "Wed Nov 25 2026 14:00:00 GMT+0000 (Coordinated Universal Time)",
            "Wed Nov 25 2026 16:00:00 GMT 0200 (Eastern European Standard Time)",
            "1795615200.0",
            "1795615200.000000",
            "1795615200000",
            "1795615200000.5",
            "1795615200000000",
            "1795615200000000000",
        ] {
            let at = parsed(text).unwrap_or_else(|| panic!("{text} is not parsed"));
            assert_eq!(at / 1_000_000_000, NOW / 1_000_000_000, "{text}");
        }
        assert_eq!(parsed("2026-11-25"), Some(NOW - 14 * 3_600_000_000_000));
        assert_eq!(parsed("1795615200.25"), Some(NOW + 250_000_000));
        assert_eq!(parsed("1795615200123"), Some(NOW + 123_000_000));
        assert_eq!(parsed("2026-11-25T14:00:00.123Z"), Some(NOW + 123_000_000));
    }

    #[test]
    fn anything_else_is_not_a_time() {
        for text in [
            "",
            "-",
            "yesterday",
            "-5",
            "-5x",
            "99999999999999999999",
            "1.2.3",
            ".5",
            "1969-01-01T00:00:00Z",
            "2026-11-25T14:00:00 CET",
            "Wed Nov 25 14:00:00 CET 2026",
            "2026-13-25",
            "2026-11-25T14:00:00+99:00",
            &"1".repeat(1000),
        ] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }
}
