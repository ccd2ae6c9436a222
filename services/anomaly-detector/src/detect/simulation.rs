//! How often the default settings notify of noise, and how soon of a tripled rate: the figures of
//! docs/anomaly-detection.md.

use sekiwake_settings::Environment;
use sekiwake_testkit::random::Random;

use super::*;
use crate::settings::read_detection;

const RATES: [u64; 6] = [5, 20, 60, 120, 300, 1000];
const MINUTES_PER_WEEK: u64 = 7 * 24 * 60;

/// A number between 0 and 1, exclusive.
fn uniform(random: &mut Random) -> f64 {
    (random.below(1 << 53) as f64 + 0.5) / (1_u64 << 53) as f64
}

/// A Poisson-distributed number: exactly (Knuth) for small averages, as a rounded normal
/// distribution for others.
fn poisson(random: &mut Random, average: f64) -> u64 {
    if average > 100.0 {
        let radius = (-2.0 * uniform(random).ln()).sqrt();
        let normal = radius * (std::f64::consts::TAU * uniform(random)).cos();
        return (average + normal * average.sqrt()).round().max(0.0) as u64;
    }
    let limit = (-average).exp();
    let mut count = 0;
    let mut product = uniform(random);
    while product > limit {
        count += 1;
        product *= uniform(random);
    }
    count
}

/// Notified alarms of a series of counts, as the intervals in which they were notified.
fn notified(counts: impl Iterator<Item = u64>) -> Vec<u64> {
    let settings = sekiwake_settings::read(&Environment::from_pairs([("", ""); 0]), read_detection).unwrap();
    let criteria = settings.criteria();
    let mut series = Series::default();
    let mut notified = Vec::new();
    for (number, count) in (0..).zip(counts) {
        series.evaluate(Key::Total, &criteria, Interval { number, length: settings.interval }, count);
        let is_firing = |event: &Event| event.state == EventState::Firing;
        notified.extend(series.pending.drain(..).filter(is_firing).map(|_| number));
    }
    notified
}

/// Notifications per week of noise of this rate.
fn of_noise(random: &mut Random, rate: u64, weeks: u64) -> f64 {
    let counts = (0..weeks * MINUTES_PER_WEEK).map(|_| poisson(random, rate as f64));
    notified(counts).len() as f64 / weeks as f64
}

/// The part of runs in which a rate that is tripled at any time within an interval is notified by
/// the end of the second whole interval after that.
fn of_tripled_rate(random: &mut Random, rate: u64, runs: u64) -> f64 {
    const BEFORE: u64 = 60;
    let rate = rate as f64;
    let in_time = (0..runs).filter(|_| {
        let tripled = uniform(random);
        let counts = (0..BEFORE + 3).map(|minute| match minute {
            ..BEFORE => poisson(random, rate),
            BEFORE => poisson(random, rate * (1.0 + 2.0 * tripled)),
            _ => poisson(random, rate * 3.0),
        });
        notified(counts).iter().any(|&at| at >= BEFORE)
    });
    in_time.count() as f64 / runs as f64
}

#[test]
fn noise_notifies_less_than_once_a_week_and_a_tripled_rate_in_time() {
    for rate in RATES {
        let mut random = Random::new(rate);
        let per_week = of_noise(&mut random, rate, 20);
        assert!(per_week < 1.0, "{per_week} notifications per week of {rate} messages a minute");
        if rate >= 60 {
            let in_time = of_tripled_rate(&mut random, rate, 300);
            assert!(in_time >= 0.95, "{rate} messages a minute: {in_time} in time");
        }
    }
}

/// `cargo test --release -p sekiwake-anomaly-detector -- --ignored --nocapture
/// measure_notifications`
#[test]
#[ignore = "a measurement"]
fn measure_notifications() {
    for rate in RATES {
        let mut random = Random::new(rate);
        let per_week = of_noise(&mut random, rate, 500);
        let in_time = of_tripled_rate(&mut random, rate, 10_000) * 100.0;
        println!("{rate} messages a minute: noise {per_week:.2} per week, tripled {in_time:.1} % in time");
    }
}
