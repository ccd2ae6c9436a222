//! One series of counts: its window, and its alarms.

use std::time::Duration;

use sekiwake_record::WallTime;
use serde::{Deserialize, Serialize};

use super::{
    alarm::{Alarm, Alarms, Change, Observation, What},
    bands::{BandSettings, Bands, Side, Verdict, Window},
    event::{Event, EventKind, EventState, Span},
    key::Key,
};

/// The most events of a series that wait for delivery; only the newest are kept.
const MAX_PENDING: usize = 8;

/// How counts are evaluated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Criteria {
    /// Window and bands.
    pub bands: BandSettings,
    /// Intervals in a row that raise or resolve an alarm.
    pub consecutive: u32,
    /// Intervals in a row on the same side after which an alarm is notified.
    pub notify_consecutive: u32,
    /// Intervals after which the level of an alarm is the usual one.
    pub forget_intervals: u64,
}

/// An interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Interval {
    /// Its number, counted in intervals since 1970-01-01T00:00:00Z.
    pub number: u64,
    /// Its length.
    pub length: Duration,
}

impl Interval {
    /// Its start.
    pub fn start(self) -> WallTime {
        let nanos = self.length.as_nanos().saturating_mul(u128::from(self.number));
        u64::try_from(nanos).map_or(WallTime::MAX, WallTime::from_nanos)
    }

    pub(super) fn span(self) -> Span {
        Span { start: self.start(), end: self.start() + self.length }
    }
}

/// The result of evaluating one interval of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Messages.
    pub count: u64,
    /// The bands, unless the series is warming up.
    pub bands: Option<Bands>,
    /// The verdict.
    pub verdict: Verdict,
}

/// A firing alarm.
#[derive(Debug, Clone)]
pub(super) struct FiringAlarm {
    pub(super) event: Event,
    pub(super) is_notified: bool,
}

/// The state of one series.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub(super) window: Window,
    pub(super) alarms: Alarms,
    /// Events that have not been delivered to the notifiers.
    pub(super) pending: Vec<Event>,
    /// Events for log and bus.
    #[serde(skip)]
    pub(super) announcements: Vec<Event>,
    /// The last evaluated interval, for the status page.
    #[serde(skip)]
    pub(super) last: Option<Evaluation>,
    /// Whether it has changed since its last state entry.
    #[serde(skip)]
    pub(super) is_dirty: bool,
}

impl Series {
    /// Evaluates a complete interval, and adds it to the window.
    pub fn evaluate(&mut self, key: Key, criteria: &Criteria, interval: Interval, count: u64) -> Evaluation {
        let usual = self.window.usual(&criteria.bands);
        let mut verdict = self.window.verdict(usual.as_ref(), count);
        if let Some(usual) = usual {
            // A silence keeps its alarm, even when the average has adapted to it.
            if count == 0 && self.firing_alarm().is_some_and(|alarm| alarm.side == Side::Low) {
                verdict = Verdict::Low;
            }
            let seen = Observation { interval: interval.number, count, usual, side: verdict.side() };
            for change in self.alarms.update(&seen, criteria) {
                self.apply(change, key, interval, count);
            }
        }
        // Newer events supersede the oldest.
        for events in [&mut self.pending, &mut self.announcements] {
            let surplus = events.len().saturating_sub(MAX_PENDING);
            events.drain(..surplus);
        }
        self.window.push(&criteria.bands, count);
        self.is_dirty = true;
        let evaluation = Evaluation { count, bands: usual.map(|usual| usual.bands), verdict };
        self.last = Some(evaluation);
        evaluation
    }

    fn apply(&mut self, Change { what, side, since, usual }: Change, key: Key, interval: Interval, count: u64) {
        let since = Interval { number: since, ..interval }.start();
        let state = match what {
            What::Fired | What::Notified => EventState::Firing,
            What::Ended { .. } => EventState::Resolved,
        };
        let event = Event::new(key, EventKind::from(side), state, since, interval.span());
        let event = Event { count, bands: Some(usual.bands), ..event };
        match what {
            What::Fired => self.announcements.push(event),
            What::Notified => self.pending.push(event),
            What::Ended { reason, was_notified } => {
                let event = Event { reason: Some(reason), ..event };
                self.pending.extend(was_notified.then(|| event.clone()));
                self.announcements.push(event);
            }
        }
    }

    /// Adds an event for log, bus and notifiers.
    pub(super) fn report(&mut self, event: Event) {
        self.announcements.push(event.clone());
        self.pending.push(event);
    }

    /// The firing alarm as an event, from the start of its first interval.
    pub(super) fn firing(&self, key: Key, length: Duration) -> Option<FiringAlarm> {
        let alarm = self.firing_alarm()?;
        let count = self.last.map_or(0, |last| last.count);
        let span = Interval { number: alarm.since, length }.span();
        let event = Event::new(key, EventKind::from(alarm.side), EventState::Firing, span.start, span);
        let event = Event { count, bands: Some(alarm.usual.bands), ..event };
        Some(FiringAlarm { event, is_notified: alarm.is_notified })
    }

    /// Events for log and bus since the last call.
    pub fn take_announcements(&mut self) -> impl Iterator<Item = Event> + '_ {
        self.announcements.drain(..)
    }

    /// The firing alarm.
    pub fn firing_alarm(&self) -> Option<&Alarm> {
        self.alarms.firing()
    }

    /// The window.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// The last evaluated interval.
    pub fn last(&self) -> Option<Evaluation> {
        self.last
    }

    /// Whether a decoded series is within its bounds.
    pub(super) fn is_valid(&self, bands: &BandSettings) -> bool {
        self.window.counts().len() <= bands.window.max(1) && self.pending.len() <= MAX_PENDING
    }
}
