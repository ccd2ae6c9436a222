//! The alarms of one series: when one starts, is notified, and ends.
//!
//! ```text
//!                          outside the moving bands
//!            ┌──────────────────────────────────────────────┐
//!            │                                              ▼
//!        ┌───┴───┐                                      ┌────────┐──┐ beyond its usual counts on
//!        │ Usual │◀─ inside its usual counts, ──────────│ Firing │  │ the other side: it ends,
//!        └───────┘   no trace; or `forget` has passed   └────────┘◀─┘ and the opposite one starts
//!            ▲                                            │    ▲
//!            │ the trace has ended   inside its usual     │    │ outside the kept and the moving
//!        ┌───┴──────┐                counts, with a trace │    │ bands, on the same side
//!        │ Returned │◀────────────────────────────────────┘    │
//!        │ kept     │──────────────────────────────────────────┘
//!        └──────────┘
//! ```
//! Each of these changes takes `consecutive` intervals in a row.
//!
//! *Usual counts* are the bands of the first interval outside them. While an alarm fires, the
//! moving bands follow its level, so they decide neither its end nor what is opposite to it.
//!
//! After its end, its level is still in the window. An alarm that was notified, or has lasted for
//! half of the window, leaves a *trace*: its usual counts are kept for twice as long as it lasted,
//! at most for a window. (A short alarm only widens the moving bands, and old counts may soon be
//! unusual.) They are also those of an alarm that starts meanwhile, so a return is never compared
//! with the level that it returns from.
//!
//! The first interval of a return contains both levels. Its count is between them, so it is still
//! on the alarm's side of the usual counts, or inside them, but never beyond: it starts no alarm.

use serde::{Deserialize, Serialize};

use super::{
    bands::{Side, Usual},
    event::Reason,
    series::Criteria,
};

/// How many intervals more an alarm is notified if it stays outside its usual counts while the
/// moving bands have followed it.
const LASTING: u32 = 2;

/// A change of an alarm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Change {
    /// What has changed.
    pub what: What,
    /// The side that the alarm is on.
    pub side: Side,
    /// The interval in which it started.
    pub since: u64,
    /// Its usual counts.
    pub usual: Usual,
}

/// What has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It fires.
    Fired,
    /// It is to be notified from now on.
    Notified,
    /// It has ended.
    Ended {
        /// Why.
        reason: Reason,
        /// Whether it was notified.
        was_notified: bool,
    },
}

/// An interval with a verdict.
#[derive(Debug, Clone, Copy)]
pub struct Observation {
    /// Its number.
    pub interval: u64,
    /// Messages in it.
    pub count: u64,
    /// What the moving bands say is usual.
    pub usual: Usual,
    /// On which side of the moving bands it is.
    pub side: Option<Side>,
}

/// The alarms of one series. At most one fires at a time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Alarms {
    state: State,
    /// Intervals that may start an alarm.
    run: Option<Run>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
enum State {
    /// No alarm fires, and the moving bands are those of usual counts.
    #[default]
    Usual,
    /// An alarm fires.
    Firing(Alarm),
    /// No alarm fires, but the window has intervals of one.
    Returned { kept: Usual, left: u32 },
}

/// A firing alarm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// The side that it is on.
    pub side: Side,
    /// The interval that raised it.
    pub since: u64,
    /// What was usual before it.
    pub usual: Usual,
    /// Whether it is notified.
    pub is_notified: bool,
    /// For how many intervals its usual counts are kept after its end.
    trace: u32,
    /// Intervals in a row outside its usual counts on its side, and at first also outside the
    /// moving bands.
    same_side: u32,
    /// Intervals in a row outside its usual counts on its side.
    outside: u32,
    /// Intervals in a row not outside them on its side.
    back: u32,
}

/// Intervals in a row on one side, of which no alarm has been raised yet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Run {
    side: Side,
    length: u32,
    usual: Usual,
}

impl Alarms {
    /// The firing alarm.
    pub fn firing(&self) -> Option<&Alarm> {
        match &self.state {
            State::Firing(alarm) => Some(alarm),
            State::Usual | State::Returned { .. } => None,
        }
    }

    /// Applies an interval with a verdict. Intervals without one neither count nor interrupt a run.
    pub fn update(&mut self, seen: &Observation, criteria: &Criteria) -> Vec<Change> {
        let consecutive = criteria.consecutive.max(1);
        self.extend_run(seen);
        let mut changes = Vec::new();
        let mut trace = 0;
        match &mut self.state {
            State::Usual => {}
            State::Returned { left, .. } => {
                trace = *left;
                *left = left.saturating_sub(1);
                if *left == 0 {
                    self.state = State::Usual;
                }
            }
            State::Firing(alarm) => {
                changes.extend(alarm.update(seen, criteria));
                let Some(What::Ended { reason, .. }) = changes.last().map(|change| change.what) else { return changes };
                // A level that counts as usual is that of the moving bands.
                trace = if reason == Reason::Recovered { alarm.trace } else { 0 };
                let kept = alarm.usual;
                self.state = if trace > 0 { State::Returned { kept, left: trace } } else { State::Usual };
            }
        }
        if let Some(run) = self.run.take_if(|run| run.length >= consecutive) {
            let mut alarm = Alarm::new(&run, seen.interval, trace);
            changes.push(alarm.change(What::Fired));
            changes.extend(alarm.notify(criteria));
            self.state = State::Firing(alarm);
        }
        changes
    }

    fn extend_run(&mut self, seen: &Observation) {
        let beyond = |usual: &Usual| usual.side(seen.count);
        let (side, usual) = match &self.state {
            State::Usual => (seen.side, seen.usual),
            // The kept counts may be out of date, so the moving bands have to agree.
            State::Returned { kept, .. } => (beyond(kept).filter(|side| seen.side == Some(*side)), *kept),
            State::Firing(alarm) => {
                let is_opposite = |side: &Side| *side != alarm.side && (alarm.trace > 0 || seen.side == Some(*side));
                (beyond(&alarm.usual).filter(is_opposite), alarm.usual)
            }
        };
        self.run = side.map(|side| match self.run.filter(|run| run.side == side) {
            Some(run) => Run { length: run.length.saturating_add(1), ..run },
            None => Run { side, length: 1, usual },
        });
    }
}

impl Alarm {
    fn new(run: &Run, since: u64, trace: u32) -> Alarm {
        let Run { side, length, usual } = *run;
        Alarm { side, since, usual, is_notified: false, trace, same_side: length, outside: length, back: 0 }
    }

    fn change(&self, what: What) -> Change {
        Change { what, side: self.side, since: self.since, usual: self.usual }
    }

    fn update(&mut self, seen: &Observation, criteria: &Criteria) -> Option<Change> {
        let end = |reason, was_notified| What::Ended { reason, was_notified };
        if self.usual.side(seen.count) != Some(self.side) {
            (self.same_side, self.outside) = (0, 0);
            self.trace = self.trace.saturating_sub(u32::from(!self.is_notified));
            self.back = self.back.saturating_add(1);
            let has_recovered = self.back >= criteria.consecutive.max(1);
            return has_recovered.then(|| self.change(end(Reason::Recovered, self.is_notified)));
        }
        self.back = 0;
        self.outside = self.outside.saturating_add(1);
        let is_anomalous = self.trace > 0 || seen.side == Some(self.side);
        self.same_side = if is_anomalous { self.same_side.saturating_add(1) } else { 0 };
        if self.age(seen) >= criteria.forget_intervals {
            return Some(self.change(end(Reason::NewLevel, self.is_notified)));
        }
        self.trace = self.trace.saturating_sub(u32::from(!self.is_notified));
        let change = self.notify(criteria);
        let lasted = self.age(seen).saturating_add(1).saturating_mul(2);
        let window = criteria.bands.window as u64;
        if self.is_notified || lasted >= window {
            self.trace = self.trace.max(u32::try_from(lasted.min(window)).unwrap_or(u32::MAX));
        }
        change
    }

    /// How long ago it started, in intervals.
    fn age(&self, seen: &Observation) -> u64 {
        seen.interval.saturating_sub(self.since)
    }

    /// Notifies it, if that is due.
    fn notify(&mut self, criteria: &Criteria) -> Option<Change> {
        let needed = criteria.notify_consecutive.max(1);
        let is_lasting = self.same_side >= needed || self.outside >= needed.saturating_add(LASTING);
        if self.is_notified || !is_lasting {
            return None;
        }
        self.is_notified = true;
        Some(self.change(What::Notified))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::detect::{BandSettings, Event, EventKind, EventState, Interval, Key, Series};

    const HIGH: EventKind = EventKind::High;
    const LOW: EventKind = EventKind::Low;
    const FIRING: EventState = EventState::Firing;
    const RESOLVED: EventState = EventState::Resolved;

    fn criteria(consecutive: u32, notify_consecutive: u32) -> Criteria {
        Criteria { bands: BandSettings::default(), consecutive, notify_consecutive, forget_intervals: 1440 }
    }

    /// The settings of the end-to-end tests.
    fn short() -> Criteria {
        let bands = BandSettings { window: 4, min_width: 80.0, ..BandSettings::default() };
        Criteria { bands, ..criteria(1, 1) }
    }

    /// Events of a series of counts.
    #[derive(Default)]
    struct Course {
        announced: Vec<Event>,
        notified: Vec<Event>,
    }

    /// Evaluates these counts after a full window of `usual`. The first of them is interval 0.
    fn course(criteria: &Criteria, usual: u64, counts: &[u64]) -> Course {
        let window = criteria.bands.window;
        let mut series = Series::default();
        (0..window).for_each(|_| series.window.push(&criteria.bands, usual));
        let mut course = Course::default();
        for (number, &count) in (0..).zip(counts) {
            series.evaluate(Key::Total, criteria, Interval { number, length: Duration::from_secs(1) }, count);
            course.announced.extend(series.take_announcements());
            course.notified.append(&mut series.pending);
        }
        course
    }

    fn brief(events: &[Event]) -> Vec<(u64, EventKind, EventState)> {
        events.iter().map(|event| (event.start.as_nanos() / 1_000_000_000, event.kind, event.state)).collect()
    }

    fn announced(criteria: &Criteria, counts: &[u64]) -> Vec<(u64, EventKind, EventState)> {
        brief(&course(criteria, 100, counts).announced)
    }

    fn notified(criteria: &Criteria, counts: &[u64]) -> Vec<(u64, EventKind, EventState)> {
        brief(&course(criteria, 100, counts).notified)
    }

    #[test]
    fn alarm_fires_once_and_resolves_once() {
        for events in [announced, notified] {
            let got = events(&criteria(1, 1), &[100, 300, 300, 200, 100, 100]);
            assert_eq!(got, [(1, HIGH, FIRING), (4, HIGH, RESOLVED)]);
            let got = events(&criteria(2, 1), &[300, 100, 600, 600, 100, 600, 100, 100]);
            assert_eq!(got, [(3, HIGH, FIRING), (7, HIGH, RESOLVED)]);
        }
    }

    #[test]
    fn single_interval_is_announced_but_not_notified() {
        let blip = [300, 100];
        assert_eq!(announced(&criteria(1, 2), &blip), [(0, HIGH, FIRING), (1, HIGH, RESOLVED)]);
        assert_eq!(notified(&criteria(1, 2), &blip), []);
        let got = notified(&criteria(1, 2), &[300, 600, 600, 100]);
        assert_eq!(got, [(1, HIGH, FIRING), (3, HIGH, RESOLVED)]);
        // A level that the moving bands have followed is notified, too, if it lasts.
        assert_eq!(notified(&criteria(1, 2), &[150, 111, 111, 111]), [(3, HIGH, FIRING)]);
        // The larger of the two settings decides.
        assert_eq!(notified(&criteria(3, 2), &[300, 1000, 3000]), [(2, HIGH, FIRING)]);
    }

    #[test]
    fn new_level_resolves_only_after_it_is_forgotten() {
        let criteria = Criteria { forget_intervals: 50, ..criteria(1, 2) };
        let course = course(&criteria, 100, &[50; 60]);
        assert_eq!(brief(&course.announced), [(0, LOW, FIRING), (50, LOW, RESOLVED)]);
        assert_eq!(course.announced[1].reason, Some(Reason::NewLevel));
        assert_eq!(brief(&course.notified), [(1, LOW, FIRING), (50, LOW, RESOLVED)]);
        assert_eq!(announced(&criteria, &[0; 40]), [(0, LOW, FIRING)]);
    }

    /// As in the end-to-end test: a window of a few intervals still has the burst.
    #[test]
    fn silence_after_a_burst_is_compared_with_the_counts_before_the_burst() {
        let counts = [1400, 3400, 2100, 400, 402, 263, 0, 0, 0, 0, 0, 0, 263, 400, 400, 400];
        let Course { announced, notified } = course(&short(), 400, &counts);
        let expected = [(0, HIGH, FIRING), (3, HIGH, RESOLVED), (6, LOW, FIRING), (13, LOW, RESOLVED)];
        assert_eq!(brief(&notified), expected);
        assert_eq!(brief(&announced), expected);
        for event in &notified {
            assert_eq!(event.bands.map(|bands| (bands.lower, bands.upper)), Some((320.0, 480.0)), "{event:?}");
        }
        // Longer bursts and silences, with any counts of the intervals in which they begin and end.
        for mixed in 0..=8 {
            let part = |from: u64, to: u64| (from * (8 - mixed) + to * mixed) / 8;
            for (burst, between, silence) in [(1, 1, 3), (2, 0, 9), (3, 4, 1), (9, 2, 9), (9, 0, 9), (9, 9, 2)] {
                let counts = [
                    &[part(400, 3400)][..],
                    &vec![3400; burst],
                    &[part(3400, 400)],
                    &vec![400; between],
                    &[part(400, 0)],
                    &vec![0; silence],
                    &[part(0, 400)],
                    &[400; 9],
                ];
                let events = course(&short(), 400, &counts.concat()).notified;
                let got: Vec<_> = events.iter().map(|event| (event.kind, event.state)).collect();
                let expected = [(HIGH, FIRING), (HIGH, RESOLVED), (LOW, FIRING), (LOW, RESOLVED)];
                assert_eq!(got, expected, "{mixed}/8, {burst}, {between}, {silence}");
            }
        }
    }

    #[test]
    fn return_from_a_long_storm_or_outage_is_no_alarm() {
        for level in [0, 50, 200, 300, 10_000] {
            let kind = if level < 100 { LOW } else { HIGH };
            for mixed in 0..=8 {
                let first = (100 * (8 - mixed) + level * mixed) / 8;
                let last = (level * (8 - mixed) + 100 * mixed) / 8;
                for length in [2, 5, 17, 18, 19, 20, 21, 40, 200] {
                    let counts = [&[first][..], &vec![level; length], &[last], &[100; 60]].concat();
                    let course = course(&criteria(1, 2), 100, &counts);
                    for events in [&course.announced, &course.notified] {
                        let got: Vec<_> = events.iter().map(|event| (event.kind, event.state)).collect();
                        assert_eq!(got, [(kind, FIRING), (kind, RESOLVED)], "{level} {mixed}/8 {length}");
                        assert_eq!(events[1].reason, Some(Reason::Recovered));
                    }
                }
            }
        }
    }

    #[test]
    fn opposite_alarm_fires_at_once_and_ends_at_the_rate_before() {
        for (level, opposite) in [(300, 30), (300, 0), (2000, 60), (0, 300), (40, 160)] {
            let (first, second) = if level > 100 { (HIGH, LOW) } else { (LOW, HIGH) };
            for length in [2, 5, 10, 20, 60] {
                let counts = [&vec![level; length][..], &vec![opposite; length], &[(opposite + 100) / 2], &[100; 40]];
                let change = length as u64;
                let course = course(&criteria(1, 2), 100, &counts.concat());
                let expected = [(first, 0, 1), (first, change, change), (second, change, change + 1)];
                let mut expected: Vec<_> = expected.into_iter().zip([FIRING, RESOLVED, FIRING]).collect();
                let back = 2 * change + 1;
                expected.push(((second, back, back), RESOLVED));
                let at = format!("{level}, then {opposite}, {length} intervals each");
                let announced = expected.iter().map(|&((kind, at, _), state)| (at, kind, state)).collect::<Vec<_>>();
                assert_eq!(brief(&course.announced), announced, "{at}");
                let notified = expected.iter().map(|&((kind, _, at), state)| (at, kind, state)).collect::<Vec<_>>();
                assert_eq!(brief(&course.notified), notified, "{at}");
            }
        }
    }

    #[test]
    fn zero_is_no_alarm_where_it_was_usual_before_a_storm() {
        let sparse: Vec<u64> = (0..20).map(|number| if number % 4 == 0 { 40 } else { 0 }).collect();
        let counts = [&sparse[..], &[500; 40], &sparse, &sparse].concat();
        let got = brief(&course(&criteria(1, 2), 0, &counts).notified);
        assert_eq!(got, [(21, HIGH, FIRING), (60, HIGH, RESOLVED)]);
        // But it is one where it was not, even if the lower band is negative.
        let noisy: Vec<u64> = (0..20).map(|number| if number % 2 == 0 { 30 } else { 5 }).collect();
        let counts = [&noisy[..], &[500; 40], &[0; 40], &noisy, &noisy].concat();
        let course = course(&criteria(1, 2), 17, &counts);
        assert!(course.notified[0].bands.is_some_and(|bands| bands.lower < 0.0), "{:?}", course.notified[0]);
        let expected = [(21, HIGH, FIRING), (60, HIGH, RESOLVED), (61, LOW, FIRING), (100, LOW, RESOLVED)];
        assert_eq!(brief(&course.notified), expected);
    }

    #[test]
    fn usual_counts_are_kept_for_one_window_after_an_alarm() {
        // The new level within the window is compared with the counts before the storm, after it
        // with the moving bands, which have followed.
        for (pause, is_alarm) in [(2, true), (20, true), (21, false)] {
            let mut alarms = Alarms::default();
            let usual = |average: f64| {
                let bands = crate::detect::Bands { average, lower: average - 10.0, upper: average + 10.0 };
                Usual { bands, excludes_zero: true }
            };
            let mut update = |interval: u64, count: u64, moving: f64| {
                let usual = usual(moving);
                let seen = Observation { interval, count, usual, side: usual.side(count) };
                alarms.update(&seen, &criteria(1, 2));
                alarms.firing().copied()
            };
            (0..30).for_each(|interval| assert!(update(interval, 300, 100.0).is_some()));
            (30..30 + pause).for_each(|interval| assert_eq!(update(interval, 100, 300.0), None));
            let alarm = update(30 + pause, 150, 120.0).unwrap();
            assert_eq!(alarm.usual, usual(if is_alarm { 100.0 } else { 120.0 }), "{pause}");
        }
    }

    #[test]
    fn short_noise_leaves_no_trace() {
        let mut alarms = Alarms::default();
        let usual =
            Usual { bands: crate::detect::Bands { average: 100.0, lower: 90.0, upper: 110.0 }, excludes_zero: true };
        for (interval, count) in [(0, 120), (1, 100)] {
            let seen = Observation { interval, count, usual, side: usual.side(count) };
            assert_eq!(alarms.update(&seen, &criteria(1, 2)).len(), 1);
        }
        assert_eq!(alarms, Alarms::default());
    }
}
