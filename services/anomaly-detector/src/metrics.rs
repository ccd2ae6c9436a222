//! The detector's metrics. None has a source as a label, because sources are unbounded.

use std::{collections::BTreeMap, time::Duration};

use prometheus::{Gauge, IntCounter, IntGauge};
use sekiwake_runtime::Metrics;

use crate::detect::{Closed, Key, Losses, Verdict};

/// Metric names.
pub mod names {
    /// Messages in the last evaluated interval, by series.
    pub const COUNT: &str = "sekiwake_anomaly_messages";
    /// Average of the window before that interval, messages. NaN while the window is not full.
    pub const AVERAGE: &str = "sekiwake_anomaly_average";
    /// Upper band, messages.
    pub const UPPER: &str = "sekiwake_anomaly_upper";
    /// Lower band, messages, at least 0.
    pub const LOWER: &str = "sekiwake_anomaly_lower";
    /// 1 above the upper band, -1 below the lower one, 0 between them, NaN without a verdict.
    pub const STATE: &str = "sekiwake_anomaly_state";
    /// Length of an interval, seconds.
    pub const INTERVAL: &str = "sekiwake_anomaly_interval_seconds";
    /// End of the last closed interval, seconds since 1970; 0 before the first.
    pub const CLOSED: &str = "sekiwake_anomaly_closed_timestamp_seconds";
    /// 1 while this detector is active, 0 while it is on standby.
    pub const ACTIVE: &str = "sekiwake_anomaly_active";
    /// Intervals evaluated.
    pub const EVALUATED: &str = "sekiwake_anomaly_evaluated_intervals_total";
    /// Spans of consecutive unknown intervals.
    pub const UNKNOWN: &str = "sekiwake_anomaly_unknown_intervals_total";
    /// Records counted.
    pub const COUNTED: &str = "sekiwake_anomaly_counted_records_total";
    /// Records that are in no evaluated interval, by reason: `late`, `ahead`, `unknown`.
    pub const UNCOUNTED: &str = "sekiwake_anomaly_uncounted_records_total";
    /// Events published, by kind and state.
    pub const EVENTS: &str = "sekiwake_anomaly_events_total";
    /// Events dropped because too many waited for delivery.
    pub const DROPPED_EVENTS: &str = "sekiwake_anomaly_dropped_events_total";
    /// Invalid hand-off entries received, and own entries too large to publish.
    pub const REJECTED_HANDOFF_ENTRIES: &str = "sekiwake_anomaly_rejected_handoff_entries_total";
    /// Sources tracked.
    pub const SOURCES: &str = "sekiwake_anomaly_sources";
    /// Sources with a firing alarm.
    pub const FIRING_SOURCES: &str = "sekiwake_anomaly_firing_sources";
    /// Sources evicted.
    pub const EVICTED: &str = "sekiwake_anomaly_evicted_sources_total";
    /// Failures to write the state file.
    pub const STATE_FAILURES: &str = "sekiwake_anomaly_state_failures_total";
    /// Notifications accepted, by notifier. Does not include repetitions for Alertmanager.
    pub const NOTIFY_SENT: &str = "sekiwake_notify_sent_total";
    /// Notifications dropped, by notifier and reason.
    pub const NOTIFY_DROPPED: &str = "sekiwake_notify_dropped_total";
    /// Delivery attempts failed and retried.
    pub const NOTIFY_RETRIES: &str = "sekiwake_notify_retries_total";
    /// Notifications queued.
    pub const NOTIFY_QUEUE: &str = "sekiwake_notify_queue";
    /// 1 if the last attempt succeeded, 0 if it failed; 1 before the first.
    pub const NOTIFY_UP: &str = "sekiwake_notify_up";
}

/// The detector's metrics, resolved once.
pub(crate) struct AnomalyMetrics {
    series: BTreeMap<String, SeriesGauges>,
    closed: Gauge,
    pub(crate) active: IntGauge,
    evaluated: IntCounter,
    unknown: IntCounter,
    pub(crate) counted: IntCounter,
    late: IntCounter,
    ahead: IntCounter,
    in_unknown: IntCounter,
    dropped_events: IntCounter,
    rejected_entries: IntCounter,
    sources: IntGauge,
    firing_sources: IntGauge,
    evicted: IntCounter,
    evicted_before: u64,
    losses: Losses,
}

struct SeriesGauges {
    count: Gauge,
    average: Gauge,
    upper: Gauge,
    lower: Gauge,
    state: Gauge,
}

impl AnomalyMetrics {
    /// `series` are the evaluated series except sources. Their gauges exist from the start, as NaN.
    pub(crate) fn new(metrics: &Metrics, interval: Duration, series: impl Iterator<Item = Key>) -> AnomalyMetrics {
        let by_series = |name, help| metrics.float_gauge_vec(name, help, &["series"]);
        let uncounted = |reason| {
            let help = "Records that are in no evaluated interval, by reason.";
            metrics.counter(names::UNCOUNTED, help, &[("reason", reason)])
        };
        let counter = |name, help| metrics.counter(name, help, &[]);
        metrics.float_gauge(names::INTERVAL, "Length of an interval, seconds.", &[]).set(interval.as_secs_f64());
        let families = [
            by_series(names::COUNT, "Messages in the last evaluated interval."),
            by_series(names::AVERAGE, "Average of the window, messages per interval."),
            by_series(names::LOWER, "Lower band, messages per interval."),
            by_series(names::UPPER, "Upper band, messages per interval."),
            by_series(
                names::STATE,
                "1 above the upper band, -1 below the lower one, 0 between them, NaN without a verdict.",
            ),
        ];
        let gauges = series.map(|key| {
            let name = key.to_string();
            let [count, average, lower, upper, state] =
                families.each_ref().map(|family| family.with_label_values(&[name.as_str()]));
            (name, SeriesGauges { count, average, lower, upper, state })
        });
        let mut shown = AnomalyMetrics {
            series: gauges.collect(),
            closed: metrics.float_gauge(names::CLOSED, "End of the last closed interval, seconds since 1970.", &[]),
            active: metrics.gauge(names::ACTIVE, "1 while this detector is active, 0 while it is on standby.", &[]),
            evaluated: counter(names::EVALUATED, "Intervals evaluated."),
            unknown: counter(names::UNKNOWN, "Spans of consecutive unknown intervals."),
            counted: counter(names::COUNTED, "Records counted."),
            late: uncounted("late"),
            ahead: uncounted("ahead"),
            in_unknown: uncounted("unknown"),
            dropped_events: counter(names::DROPPED_EVENTS, "Events dropped because too many waited for delivery."),
            rejected_entries: counter(
                names::REJECTED_HANDOFF_ENTRIES,
                "Invalid hand-off entries received, or own entries too large to publish.",
            ),
            sources: metrics.gauge(names::SOURCES, "Sources tracked.", &[]),
            firing_sources: metrics.gauge(names::FIRING_SOURCES, "Sources with a firing alarm.", &[]),
            evicted: counter(names::EVICTED, "Sources evicted."),
            evicted_before: 0,
            losses: Losses::default(),
        };
        shown.stand_by();
        shown
    }

    /// Shows a closed interval.
    pub(crate) fn show(&mut self, closed: &Closed) {
        self.closed.set(closed.end.as_secs_f64());
        match closed.series.is_empty() {
            true => self.unknown.inc(),
            false => self.evaluated.inc(),
        }
        for result in &closed.series {
            let Some(shown) = self.series.get(&result.series) else { continue };
            shown.count.set(result.count as f64);
            shown.average.set(result.bands.map_or(f64::NAN, |bands| bands.average));
            shown.upper.set(result.bands.map_or(f64::NAN, |bands| bands.upper));
            shown.lower.set(result.bands.map_or(f64::NAN, |bands| bands.lower_shown()));
            shown.state.set(match result.verdict {
                Verdict::High => 1.0,
                Verdict::Low => -1.0,
                Verdict::Normal => 0.0,
                Verdict::WarmUp { .. } | Verdict::Unknown => f64::NAN,
            });
        }
        self.sources.set(closed.sources.tracked as i64);
        self.firing_sources.set(closed.sources.firing as i64);
        self.evicted.inc_by(closed.sources.evicted.saturating_sub(self.evicted_before));
        self.evicted_before = closed.sources.evicted;
    }

    /// Starts over for a new detector, whose sums start at 0.
    pub(crate) fn reset(&mut self) {
        self.losses = Losses::default();
        self.evicted_before = 0;
    }

    /// Adds the losses since the last call.
    pub(crate) fn count_losses(&mut self, now: Losses) {
        let before = std::mem::replace(&mut self.losses, now);
        for (counter, now, before) in [
            (&self.late, now.late, before.late),
            (&self.ahead, now.ahead, before.ahead),
            (&self.in_unknown, now.unknown, before.unknown),
            (&self.dropped_events, now.events, before.events),
            (&self.rejected_entries, now.handoff_entries, before.handoff_entries),
        ] {
            counter.inc_by(now.saturating_sub(before));
        }
    }

    /// A state entry is too large for the proxy.
    pub(crate) fn reject_entry(&self) {
        self.rejected_entries.inc();
    }

    /// Clears the gauges on standby, because the active detector shows them.
    pub(crate) fn stand_by(&mut self) {
        for shown in self.series.values() {
            for gauge in [&shown.count, &shown.average, &shown.upper, &shown.lower, &shown.state] {
                gauge.set(f64::NAN);
            }
        }
        self.active.set(0);
    }
}
