//! An alarm fires once and resolves once, regardless of the number of intervals between.
//!
//! ```text
//! quiet ── anomalous, `consecutive` in a row ──▶ firing ── in a row on the same side ──▶ firing, notified
//!   ▲                                               │                                        │
//!   └──── inside the bands of its first interval, `consecutive` in a row; or `forget` has passed
//! ```
//! It does not resolve because the moving bands have followed a new level. The return from such a
//! level is outside the moving bands, too, but is nothing to notify anybody of.

use serde::{Deserialize, Serialize};

use super::{
    EventKind,
    bands::{Bands, Verdict},
    series::Criteria,
};

/// How many intervals more an alarm is notified if it stays outside the bands of its first interval
/// while the moving bands have followed it.
const LASTING: u32 = 2;

/// The change of an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It fires.
    Fired,
    /// It is to be notified from now on.
    Notified,
    /// It has resolved.
    Recovered,
    /// It has fired for so long that its level is the usual one.
    NewLevel,
}

/// The alarm of one series and kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// The interval that raised it, while it fires.
    since: Option<u64>,
    /// Consecutive intervals in favour of a change.
    run: u32,
    /// In a state entry of its own, which earlier releases ignore.
    #[serde(skip)]
    pub(super) watch: Watch,
}

/// What decides when an alarm is notified, and when it ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    /// The interval that raised the alarm, while it fires: as in the alarm, if both belong
    /// together.
    since: Option<u64>,
    /// The bands of its first interval; also after its end, until the next alarm.
    first: Option<Bands>,
    /// The interval in which it recovered.
    recovered: Option<u64>,
    /// Whether it is notified.
    notified: bool,
    /// Intervals in a row on its side of the moving bands.
    same_side: u32,
    /// Intervals in a row outside the bands of its first interval.
    outside: u32,
    /// The bands that it returns to from the level of an opposite alarm.
    returning: Option<Bands>,
}

/// An interval, as an alarm sees it.
#[derive(Debug, Clone, Copy)]
pub struct Observation {
    /// Its number.
    pub interval: u64,
    /// Messages in it.
    pub count: u64,
    /// The moving bands.
    pub bands: Option<Bands>,
    /// On which side of them it is.
    pub verdict: Verdict,
    /// The bands before an opposite alarm that is firing, or has recovered a moment ago.
    pub before_opposite: Option<Bands>,
}

impl Alarm {
    /// The interval that raised it, while it fires.
    pub fn since(&self) -> Option<u64> {
        self.since
    }

    /// Whether it fires and is notified.
    pub fn is_notified(&self) -> bool {
        self.since.is_some() && self.watch.notified
    }

    /// The bands before it, while it fires and until the window has forgotten it.
    pub(super) fn before(&self, interval: u64, window: usize) -> Option<Bands> {
        let is_recent = |recovered: u64| interval.saturating_sub(recovered) <= window as u64;
        self.watch.first.filter(|_| self.since.is_some() || self.watch.recovered.is_some_and(is_recent))
    }

    /// Takes over a restored state. Without it, the alarm is as in an earlier release: notified
    /// when it fires, and until the count is inside the moving bands.
    pub(super) fn restore(&mut self, watch: Option<Watch>) {
        self.watch = match watch {
            Some(watch) if watch.since == self.since => watch,
            _ => Watch { since: self.since, notified: self.since.is_some(), ..Watch::default() },
        };
    }

    /// Applies an interval. Intervals without a verdict neither count nor interrupt a run.
    pub fn update(&mut self, kind: EventKind, seen: &Observation, criteria: &Criteria) -> Option<Change> {
        let anomalous = match seen.verdict {
            Verdict::High => kind == EventKind::High,
            Verdict::Low => kind == EventKind::Low,
            Verdict::Normal => false,
            Verdict::WarmUp { .. } | Verdict::Unknown => return None,
        };
        let change = match self.since {
            None => self.update_quiet(anomalous, seen, criteria),
            Some(since) => self.update_firing(since, kind, anomalous, seen, criteria),
        };
        change.or_else(|| self.notify(criteria).then_some(Change::Notified))
    }

    fn update_quiet(&mut self, anomalous: bool, seen: &Observation, criteria: &Criteria) -> Option<Change> {
        if !anomalous {
            self.run = 0;
            return None;
        }
        self.run = self.run.saturating_add(1);
        if self.run == 1 {
            self.watch = Watch { first: seen.bands, ..Watch::default() };
        }
        if self.run < criteria.consecutive.max(1) {
            return None;
        }
        self.since = Some(seen.interval);
        self.watch.since = self.since;
        self.watch.same_side = self.run;
        self.watch.outside = self.run;
        self.watch.returning = seen.before_opposite.filter(|bands| is_inside(bands, seen.count));
        self.run = 0;
        Some(Change::Fired)
    }

    fn update_firing(
        &mut self,
        since: u64,
        kind: EventKind,
        anomalous: bool,
        seen: &Observation,
        criteria: &Criteria,
    ) -> Option<Change> {
        let watch = &mut self.watch;
        watch.same_side = if anomalous { watch.same_side.saturating_add(1) } else { 0 };
        if let Some(bands) = watch.returning.filter(|bands| !is_inside(bands, seen.count)) {
            // Not a return after all, but another level.
            (watch.returning, watch.first) = (None, Some(bands));
        }
        let is_outside = match watch.first.filter(|_| watch.returning.is_none()) {
            // A silence keeps its alarm, although 0 may be inside the bands.
            Some(_) if kind == EventKind::Low && seen.count == 0 => true,
            Some(bands) if kind == EventKind::High => seen.count as f64 > bands.upper,
            Some(bands) => (seen.count as f64) < bands.lower,
            None => anomalous,
        };
        if is_outside {
            self.run = 0;
            watch.outside = watch.outside.saturating_add(1);
            let is_usual = seen.interval.saturating_sub(since) >= criteria.forget_intervals;
            return is_usual.then(|| self.end(None, Change::NewLevel));
        }
        watch.outside = 0;
        self.run = self.run.saturating_add(1);
        (self.run >= criteria.consecutive.max(1)).then(|| self.end(Some(seen.interval), Change::Recovered))
    }

    fn end(&mut self, recovered: Option<u64>, change: Change) -> Change {
        let first = self.watch.first.filter(|_| recovered.is_some() && self.watch.returning.is_none());
        *self = Alarm { watch: Watch { first, recovered, ..Watch::default() }, ..Alarm::default() };
        change
    }

    /// Whether it is to be notified from now on.
    pub(super) fn notify(&mut self, criteria: &Criteria) -> bool {
        let needed = criteria.notify_consecutive.max(1);
        let is_lasting = self.watch.same_side >= needed || self.watch.outside >= needed.saturating_add(LASTING);
        let is_due = self.since.is_some() && !self.watch.notified && self.watch.returning.is_none() && is_lasting;
        self.watch.notified |= is_due;
        is_due
    }
}

fn is_inside(bands: &Bands, count: u64) -> bool {
    (bands.lower..=bands.upper).contains(&(count as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::BandSettings;

    const BANDS: Bands = Bands { average: 100.0, lower: 90.0, upper: 110.0 };

    fn criteria(consecutive: u32, notify_consecutive: u32) -> Criteria {
        Criteria { bands: BandSettings::default(), consecutive, notify_consecutive, forget_intervals: 1440 }
    }

    /// The changes for these counts, with verdicts of bands that move with them (`true`: outside).
    fn changes(kind: EventKind, criteria: &Criteria, counts: &[(u64, bool)]) -> Vec<(u64, Change)> {
        let mut alarm = Alarm::default();
        let mut changes = Vec::new();
        for (interval, &(count, is_outside)) in (0..).zip(counts) {
            let verdict = match is_outside {
                true if count > 100 => Verdict::High,
                true => Verdict::Low,
                false => Verdict::Normal,
            };
            let seen = Observation { interval, count, bands: Some(BANDS), verdict, before_opposite: None };
            changes.extend(alarm.update(kind, &seen, criteria).map(|change| (interval, change)));
            if changes.last() == Some(&(interval, Change::Fired)) && alarm.notify(criteria) {
                changes.push((interval, Change::Notified));
            }
        }
        changes
    }

    const NORMAL: (u64, bool) = (100, false);
    const HIGH: (u64, bool) = (300, true);
    const FOLLOWED: (u64, bool) = (300, false);

    #[test]
    fn alarm_fires_once_and_resolves_once() {
        use Change::{Fired, Notified, Recovered};
        let got = changes(EventKind::High, &criteria(1, 1), &[NORMAL, HIGH, HIGH, FOLLOWED, NORMAL, NORMAL]);
        assert_eq!(got, [(1, Fired), (1, Notified), (4, Recovered)]);
        let got = changes(EventKind::High, &criteria(2, 1), &[HIGH, NORMAL, HIGH, HIGH, NORMAL, HIGH, NORMAL, NORMAL]);
        assert_eq!(got, [(3, Fired), (3, Notified), (7, Recovered)]);
    }

    #[test]
    fn single_interval_is_not_notified() {
        use Change::{Fired, Notified, Recovered};
        assert_eq!(changes(EventKind::High, &criteria(1, 2), &[HIGH, NORMAL]), [(0, Fired), (1, Recovered)]);
        let got = changes(EventKind::High, &criteria(1, 2), &[HIGH, HIGH, HIGH, NORMAL]);
        assert_eq!(got, [(0, Fired), (1, Notified), (3, Recovered)]);
        let got = changes(EventKind::Low, &criteria(1, 2), &[(50, true), HIGH, (50, true), (50, true)]);
        assert_eq!(got, [(0, Fired), (1, Recovered), (2, Fired), (3, Notified)]);
        // A level that the moving bands have followed is notified, too, if it lasts.
        let got = changes(EventKind::High, &criteria(1, 2), &[HIGH, FOLLOWED, FOLLOWED, FOLLOWED, FOLLOWED]);
        assert_eq!(got, [(0, Fired), (3, Notified)]);
        // The more anomalous intervals of the two settings decide.
        let got = changes(EventKind::High, &criteria(3, 2), &[HIGH, HIGH, HIGH]);
        assert_eq!(got, [(2, Fired), (2, Notified)]);
    }

    #[test]
    fn new_level_resolves_only_after_it_is_forgotten() {
        let criteria = Criteria { forget_intervals: 50, ..criteria(1, 2) };
        let counts: Vec<(u64, bool)> = [(50, true), (50, true)].into_iter().chain([(50, false); 60]).collect();
        assert_eq!(
            changes(EventKind::Low, &criteria, &counts),
            [(0, Change::Fired), (1, Change::Notified), (50, Change::NewLevel)]
        );
        let silence: Vec<(u64, bool)> = vec![(0, true); 40];
        assert_eq!(changes(EventKind::Low, &criteria, &silence).len(), 2);
    }

    #[test]
    fn alarm_of_an_earlier_release_ends_with_the_moving_bands() {
        let mut alarm = Alarm { since: Some(3), ..Alarm::default() };
        alarm.restore(Some(Watch { since: Some(2), ..Watch::default() }));
        assert!(alarm.is_notified());
        let seen = Observation {
            interval: 5,
            count: 300,
            bands: Some(BANDS),
            verdict: Verdict::Normal,
            before_opposite: None,
        };
        assert_eq!(alarm.update(EventKind::High, &seen, &criteria(1, 2)), Some(Change::Recovered));
    }
}
