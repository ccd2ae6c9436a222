//! How often the default settings notify of noise, and how soon of a tripled rate: the figures of
//! docs/anomaly-detection.md. What they notify of a storm or an outage, and of the return from it.

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

/// Events for the notifiers, for a series of counts.
fn events(counts: impl Iterator<Item = u64>) -> Vec<Event> {
    let settings = sekiwake_settings::read(&Environment::from_pairs([("", ""); 0]), read_detection).unwrap();
    let criteria = settings.criteria();
    let mut series = Series::default();
    let mut events = Vec::new();
    for (number, count) in (0..).zip(counts) {
        series.evaluate(Key::Total, &criteria, Interval { number, length: settings.interval }, count);
        events.append(&mut series.pending);
    }
    events
}

/// The minutes in which alarms were notified.
fn notified(counts: impl Iterator<Item = u64>) -> Vec<u64> {
    let is_firing = |event: &Event| event.state == EventState::Firing;
    events(counts).into_iter().filter(is_firing).map(|event| minute(&event)).collect()
}

fn minute(event: &Event) -> u64 {
    event.start.as_nanos() / 60_000_000_000
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

/// Counts of noise at this rate, which is multiplied by a factor from one time to another (minutes,
/// at any time within one).
fn with_another_rate(random: &mut Random, rate: f64, factor: f64, from: f64, to: f64, minutes: u64) -> Vec<u64> {
    let counts = (0..minutes).map(|minute| {
        let start = minute as f64;
        let share = (to.min(start + 1.0) - from.max(start)).max(0.0);
        poisson(random, rate * (1.0 + (factor - 1.0) * share))
    });
    counts.collect()
}

#[test]
fn storm_or_outage_of_any_length_is_one_alarm_that_ends_with_it() {
    const RATE: f64 = 1000.0;
    const FROM: u64 = 60;
    const SEEDS: u64 = 64;
    let mut noise = 0;
    let mut runs = 0;
    for (factor, kind) in [(2.0, EventKind::High), (3.0, EventKind::High), (0.5, EventKind::Low), (0.0, EventKind::Low)]
    {
        for length in [10_u32, 30, 60, 120] {
            for seed in 0..SEEDS {
                let at = format!("{factor} times the rate for {length} minutes, seed {seed}");
                let random = &mut Random::new(seed);
                let from = FROM as f64 + uniform(random);
                // Each phase of the return is tried, from the first to the last second of a minute.
                let to = (from + f64::from(length)).floor() + seed as f64 / (SEEDS - 1) as f64;
                let minutes = to as u64 + 60;
                let counts = with_another_rate(random, RATE, factor, from, to, minutes);
                let events = events(counts.into_iter());
                let ours = |event: &&Event| (FROM - 1..=FROM + 1).contains(&(event.since.as_nanos() / 60_000_000_000));
                let change: Vec<&Event> = events.iter().filter(ours).collect();
                let [firing, resolved] = change[..] else { panic!("{at}: {events:?}") };
                assert_eq!((firing.kind, firing.state), (kind, EventState::Firing), "{at}");
                assert_eq!((resolved.kind, resolved.state), (kind, EventState::Resolved), "{at}");
                assert_eq!(resolved.reason, Some(Reason::Recovered), "{at}");
                // Noise may keep a recovered alarm for a minute or two.
                assert!((to as u64..to as u64 + 5).contains(&minute(resolved)), "{at}: {resolved:?}");
                let others = events.iter().filter(|event| !ours(event) && event.state == EventState::Firing);
                noise += others.count();
                let open = events.iter().filter(|event| event.state == EventState::Firing).count() * 2 - events.len();
                assert_eq!(open, 0, "{at}: an alarm has stayed: {events:?}");
                runs += 1;
            }
        }
    }
    // Two hours of noise each.
    assert!(noise * 200 < runs, "{noise} other alarms in {runs} runs");
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
