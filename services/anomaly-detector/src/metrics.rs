//! The names of the detector's metrics. None is labelled by a source.

use std::collections::BTreeMap;

use prometheus::{Gauge, IntCounter, IntGauge};
use sekiwake_runtime::Metrics;

use crate::detect::{Closed, Key, Losses, Verdict};

/// Metric names.
pub mod names {
    /// Messages in the interval that was judged last, by series.
    pub const COUNT: &str = "sekiwake_anomaly_messages";
    /// The average of the window that it was judged against. NaN while that is not full.
    pub const AVERAGE: &str = "sekiwake_anomaly_average";
    /// The upper band.
    pub const UPPER: &str = "sekiwake_anomaly_upper";
    /// The lower band, 0 at least.
    pub const LOWER: &str = "sekiwake_anomaly_lower";
    /// 1 over the upper band, -1 under the lower one, 0 between; NaN while nothing can be said.
    pub const STATE: &str = "sekiwake_anomaly_state";
    /// Seconds of an interval.
    pub const INTERVAL: &str = "sekiwake_anomaly_interval_seconds";
    /// The end of the interval that was closed last, seconds since 1970; 0 before the first.
    pub const CLOSED: &str = "sekiwake_anomaly_closed_timestamp_seconds";
    /// 1 where this detector counts, 0 where it stands by.
    pub const ACTIVE: &str = "sekiwake_anomaly_active";
    /// Intervals that were judged.
    pub const JUDGED: &str = "sekiwake_anomaly_judged_intervals_total";
    /// Spans of intervals of which nothing is known.
    pub const UNKNOWN: &str = "sekiwake_anomaly_unknown_intervals_total";
    /// Messages that were counted, each once.
    pub const COUNTED: &str = "sekiwake_anomaly_counted_records_total";
    /// Messages that are in no judged interval, by reason: `late`, `ahead`, `unknown`.
    pub const UNCOUNTED: &str = "sekiwake_anomaly_uncounted_records_total";
    /// Changes that were told, by kind and state.
    pub const EVENTS: &str = "sekiwake_anomaly_events_total";
    /// Changes that nobody was there to take.
    pub const LOST_EVENTS: &str = "sekiwake_anomaly_lost_events_total";
    /// Notes of other detectors that are none, and own ones that are too large.
    pub const REFUSED_NOTES: &str = "sekiwake_anomaly_refused_notes_total";
    /// Sources that are known.
    pub const SOURCES: &str = "sekiwake_anomaly_sources";
    /// Sources of which an alarm is on.
    pub const FIRING_SOURCES: &str = "sekiwake_anomaly_firing_sources";
    /// Sources that had to make room.
    pub const EVICTED: &str = "sekiwake_anomaly_evicted_sources_total";
    /// Failures to write the file with the state.
    pub const STATE_FAILURES: &str = "sekiwake_anomaly_state_failures_total";
}

/// The detector's metrics, resolved once.
pub(crate) struct AnomalyMetrics {
    series: BTreeMap<String, OfSeries>,
    closed: Gauge,
    pub(crate) active: IntGauge,
    judged: IntCounter,
    unknown: IntCounter,
    pub(crate) counted: IntCounter,
    late: IntCounter,
    ahead: IntCounter,
    in_unknown: IntCounter,
    lost_events: IntCounter,
    refused_notes: IntCounter,
    sources: IntGauge,
    firing_sources: IntGauge,
    evicted: IntCounter,
    evicted_before: u64,
    losses: Losses,
}

struct OfSeries {
    count: Gauge,
    average: Gauge,
    upper: Gauge,
    lower: Gauge,
    state: Gauge,
}

impl AnomalyMetrics {
    /// `series` are those that are going to be judged, but for sources: they are there from the start, and nothing is known of them.
    pub(crate) fn new(metrics: &Metrics, interval_seconds: f64, series: impl Iterator<Item = Key>) -> AnomalyMetrics {
        let by_series = |name, help| metrics.float_gauge_vec(name, help, &["series"]);
        let uncounted = |reason| {
            let help = "Messages that are in no judged interval, by reason.";
            metrics.counter(names::UNCOUNTED, help, &[("reason", reason)])
        };
        let counter = |name, help| metrics.counter(name, help, &[]);
        metrics.float_gauge(names::INTERVAL, "Seconds of an interval.", &[]).set(interval_seconds);
        let families = [
            by_series(names::COUNT, "Messages in the interval that was judged last."),
            by_series(names::AVERAGE, "The average that it was judged against."),
            by_series(names::LOWER, "The lower band."),
            by_series(names::UPPER, "The upper band."),
            by_series(names::STATE, "1 over the upper band, -1 under the lower one, 0 between, NaN unknown."),
        ];
        let of_series = series.map(|key| {
            let name = key.to_string();
            let [count, average, lower, upper, state] =
                families.each_ref().map(|family| family.with_label_values(&[name.as_str()]));
            (name, OfSeries { count, average, lower, upper, state })
        });
        let mut shown = AnomalyMetrics {
            series: of_series.collect(),
            closed: metrics.float_gauge(names::CLOSED, "The end of the interval that was closed last.", &[]),
            active: metrics.gauge(names::ACTIVE, "1 where this detector counts, 0 where it stands by.", &[]),
            judged: counter(names::JUDGED, "Intervals that were judged."),
            unknown: counter(names::UNKNOWN, "Spans of intervals of which nothing is known."),
            counted: counter(names::COUNTED, "Messages that were counted, each once."),
            late: uncounted("late"),
            ahead: uncounted("ahead"),
            in_unknown: uncounted("unknown"),
            lost_events: counter(names::LOST_EVENTS, "Changes that nobody was there to take."),
            refused_notes: counter(
                names::REFUSED_NOTES,
                "Notes of other detectors that are none, and own ones that are too large.",
            ),
            sources: metrics.gauge(names::SOURCES, "Sources that are known.", &[]),
            firing_sources: metrics.gauge(names::FIRING_SOURCES, "Sources of which an alarm is on.", &[]),
            evicted: counter(names::EVICTED, "Sources that had to make room."),
            evicted_before: 0,
            losses: Losses::default(),
        };
        shown.stand_by();
        shown
    }

    /// An interval was closed.
    pub(crate) fn show(&mut self, closed: &Closed) {
        self.closed.set(closed.end_ns as f64 / 1e9);
        match closed.series.is_empty() {
            true => self.unknown.inc(),
            false => self.judged.inc(),
        }
        for judged in &closed.series {
            let Some(shown) = self.series.get(&judged.series) else { continue };
            shown.count.set(judged.count as f64);
            shown.average.set(judged.bands.map_or(f64::NAN, |bands| bands.average));
            shown.upper.set(judged.bands.map_or(f64::NAN, |bands| bands.upper));
            shown.lower.set(judged.bands.map_or(f64::NAN, |bands| bands.lower_shown()));
            shown.state.set(match judged.verdict {
                Verdict::High => 1.0,
                Verdict::Low => -1.0,
                Verdict::Normal => 0.0,
                Verdict::WarmUp { .. } | Verdict::Unknown => f64::NAN,
            });
        }
        self.sources.set(closed.sources.known as i64);
        self.firing_sources.set(closed.sources.firing as i64);
        self.evicted.inc_by(closed.sources.evicted.saturating_sub(self.evicted_before));
        self.evicted_before = closed.sources.evicted;
    }

    /// Another detector begins: its sums begin at 0.
    pub(crate) fn begin(&mut self) {
        (self.losses, self.evicted_before) = (Losses::default(), 0);
    }

    /// What was lost since the last call.
    pub(crate) fn count_losses(&mut self, now: Losses) {
        let before = std::mem::replace(&mut self.losses, now);
        for (counter, now, before) in [
            (&self.late, now.late, before.late),
            (&self.ahead, now.ahead, before.ahead),
            (&self.in_unknown, now.unknown, before.unknown),
            (&self.lost_events, now.events, before.events),
            (&self.refused_notes, now.notes, before.notes),
        ] {
            counter.inc_by(now.saturating_sub(before));
        }
    }

    /// A note is too large for the proxy.
    pub(crate) fn lost_note(&self) {
        self.refused_notes.inc();
    }

    /// This detector stands by: what it knew is somebody else's to show.
    pub(crate) fn stand_by(&mut self) {
        for shown in self.series.values() {
            for gauge in [&shown.count, &shown.average, &shown.upper, &shown.lower, &shown.state] {
                gauge.set(f64::NAN);
            }
        }
        self.active.set(0);
    }
}
