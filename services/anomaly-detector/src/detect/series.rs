//! One series of counts: its window, and its alarms.

use std::time::Duration;

use sekiwake_record::WallTime;
use serde::{Deserialize, Serialize};

use super::{
    alarm::{Alarm, Change, Observation, Watch},
    bands::{BandSettings, Bands, Verdict, Window},
    event::{Event, EventKind, EventState, Reason, Span},
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

/// An event, and where it goes.
struct Report {
    event: Event,
    /// To log and bus.
    is_announced: bool,
    /// To the notifiers.
    is_notified: bool,
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
    /// The alarms for too many and for too few messages.
    pub(super) alarms: [Alarm; 2],
    /// Events that have not been delivered to the notifiers.
    pub(super) pending: Vec<Event>,
    /// Events for log and bus.
    #[serde(skip)]
    pub(super) announcements: Vec<Event>,
    /// Whether the last state entry had a watch, which has to be deleted.
    #[serde(skip)]
    pub(super) had_watches: bool,
    /// The last evaluated interval, for the status page.
    #[serde(skip)]
    pub(super) last: Option<Evaluation>,
    /// Whether it has changed since its last state entry.
    #[serde(skip)]
    pub(super) is_dirty: bool,
}

const KINDS: [EventKind; 2] = [EventKind::High, EventKind::Low];

impl Series {
    /// Evaluates a complete interval, and adds it to the window.
    pub fn evaluate(&mut self, key: Key, criteria: &Criteria, interval: Interval, count: u64) -> Evaluation {
        let (bands, mut verdict) = self.window.evaluate(&criteria.bands, count);
        // A silence keeps its alarm, even when the average has adapted to it.
        if count == 0 && self.alarms[1].since().is_some() && bands.is_some() {
            verdict = Verdict::Low;
        }
        let before = self.alarms.map(|alarm| alarm.before(interval.number, criteria.bands.window));
        let mut resolved = Vec::new();
        let mut fired = Vec::new();
        for (index, kind) in KINDS.into_iter().enumerate() {
            let alarm = &mut self.alarms[index];
            let since = alarm.since();
            let was_notified = alarm.is_notified();
            let seen =
                Observation { interval: interval.number, count, bands, verdict, before_opposite: before[1 - index] };
            let Some(change) = alarm.update(kind, &seen, criteria) else { continue };
            let number = since.or(alarm.since()).unwrap_or(interval.number);
            let since = Interval { number, ..interval }.start();
            let event = |state| Event { count, bands, ..Event::new(key, kind, state, since, interval.span()) };
            match change {
                Change::Fired => fired.push(Report {
                    event: event(EventState::Firing),
                    is_announced: true,
                    is_notified: alarm.notify(criteria),
                }),
                Change::Notified => {
                    fired.push(Report { event: event(EventState::Firing), is_announced: false, is_notified: true });
                }
                Change::Recovered => resolved.push(Report {
                    event: event(EventState::Resolved),
                    is_announced: true,
                    is_notified: was_notified,
                }),
                Change::NewLevel => resolved.push(Report {
                    event: Event { reason: Some(Reason::NewLevel), ..event(EventState::Resolved) },
                    is_announced: true,
                    is_notified: was_notified,
                }),
            }
        }
        // Resolved alarms come before new ones.
        for Report { event, is_announced, is_notified } in resolved.into_iter().chain(fired) {
            if is_announced {
                self.announcements.push(event.clone());
            }
            if is_notified {
                self.pending.push(event);
            }
        }
        // Newer events supersede the oldest.
        for events in [&mut self.pending, &mut self.announcements] {
            let surplus = events.len().saturating_sub(MAX_PENDING);
            events.drain(..surplus);
        }
        self.window.push(&criteria.bands, count);
        self.is_dirty = true;
        let evaluation = Evaluation { count, bands, verdict };
        self.last = Some(evaluation);
        evaluation
    }

    /// Adds an event for log, bus and notifiers.
    pub(super) fn report(&mut self, event: Event) {
        self.announcements.push(event.clone());
        self.pending.push(event);
    }

    /// The firing alarms as events, each from the start of its first interval.
    pub(super) fn firing(&self, key: Key, length: Duration) -> impl Iterator<Item = FiringAlarm> {
        let count = self.last.map_or(0, |last| last.count);
        let bands = self.last.and_then(|last| last.bands);
        let alarms = self.alarms.iter().zip(KINDS);
        alarms.filter_map(move |(alarm, kind)| {
            let span = Interval { number: alarm.since()?, length }.span();
            let event = Event { count, bands, ..Event::new(key, kind, EventState::Firing, span.start, span) };
            Some(FiringAlarm { event, is_notified: alarm.is_notified() })
        })
    }

    /// What is needed to notify and end its alarms; `None` if there is nothing to know.
    pub(super) fn watches(&self) -> Option<[Watch; 2]> {
        let watches = self.alarms.map(|alarm| alarm.watch);
        (watches != <[Watch; 2]>::default()).then_some(watches)
    }

    /// Takes over restored watches, or that there are none.
    pub(super) fn restore_watches(&mut self, watches: Option<[Watch; 2]>) {
        self.had_watches = watches.is_some();
        for (index, alarm) in self.alarms.iter_mut().enumerate() {
            alarm.restore(watches.map(|watches| watches[index]));
        }
    }

    /// Whether an alarm is firing and notified.
    pub fn is_notified(&self) -> bool {
        self.alarms.iter().any(Alarm::is_notified)
    }

    /// Whether an alarm is firing.
    pub fn is_firing(&self) -> bool {
        self.alarms.iter().any(|alarm| alarm.since().is_some())
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
