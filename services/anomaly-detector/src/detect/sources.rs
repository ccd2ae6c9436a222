//! A bounded number of sources, each with its counts, its alarms and its silence detection.

use std::{collections::HashMap, net::IpAddr, time::Duration};

use sekiwake_record::WallTime;
use serde::{Deserialize, Serialize};

use super::{
    event::{Event, EventKind, EventState, Reason, Span},
    key::Key,
    series::{FiringAlarm, Series},
};

/// The most pauses per source.
const PAUSES: usize = 16;

/// The least pauses before a silence is reported: a device that has sent a few messages has no
/// usual pause yet.
const PAUSES_NEEDED: usize = 8;

/// Shorter pauses are within one burst.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);

/// A source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Source {
    pub(super) series: Series,
    /// Capture time of its last message.
    pub(super) last_seen: WallTime,
    /// Its last pauses of at least one second, milliseconds, newest last.
    pauses: Vec<u32>,
    /// Capture time of its last message, while it is reported as silent.
    pub(super) silent_since: Option<WallTime>,
}

/// All tracked sources.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources {
    pub(super) tracked: HashMap<IpAddr, Source>,
    /// Sources evicted.
    pub(super) evicted: u64,
    /// Ends of the alarms of evicted sources.
    pub(super) resolved: Vec<FiringAlarm>,
    /// Evicted sources whose state entries have to be deleted.
    pub(super) deleted: Vec<IpAddr>,
}

impl Source {
    /// Records a message. Returns the end of a reported silence.
    pub(super) fn observe(&mut self, source: IpAddr, captured_at: WallTime) -> Option<Event> {
        let pause = captured_at - self.last_seen;
        let is_first = self.last_seen == WallTime::EPOCH;
        self.last_seen = self.last_seen.max(captured_at);
        // A reported silence does not count as a usual pause.
        if !is_first && pause >= SHORTEST_PAUSE && self.silent_since.is_none() {
            if self.pauses.len() >= PAUSES {
                self.pauses.remove(0);
            }
            self.pauses.push(u32::try_from(pause.as_millis()).unwrap_or(u32::MAX));
        }
        let since = self.silent_since.take()?;
        self.series.is_dirty = true;
        let span = Span { start: since, end: captured_at };
        Some(Event::new(Key::Source(source), EventKind::SilentSource, EventState::Resolved, since, span))
    }

    /// Its usual pause: the longest of the last ones; `None` with too few of them.
    pub(super) fn usual_pause(&self) -> Option<Duration> {
        let is_known = self.pauses.len() >= PAUSES_NEEDED;
        self.pauses.iter().max().filter(|_| is_known).map(|&pause| Duration::from_millis(u64::from(pause)))
    }

    /// Returns an event if it has newly been silent for too long.
    pub(super) fn check_silence(
        &mut self,
        source: IpAddr,
        factor: f64,
        least: Duration,
        now: WallTime,
    ) -> Option<Event> {
        let usual = self.usual_pause().filter(|_| self.silent_since.is_none())?;
        if now - self.last_seen <= usual.mul_f64(factor).max(least) {
            return None;
        }
        self.silent_since = Some(self.last_seen);
        self.series.is_dirty = true;
        let span = Span { start: self.last_seen, end: now };
        let event = Event::new(Key::Source(source), EventKind::SilentSource, EventState::Firing, span.start, span);
        Some(Event { usual_pause_seconds: Some(usual.as_secs_f64()), ..event })
    }

    pub(super) fn is_valid(&self) -> bool {
        self.pauses.len() <= PAUSES
    }
}

impl Sources {
    /// The source of a message, tracked from now on.
    pub(super) fn get(&mut self, source: IpAddr, max: usize, now: WallTime, interval: Duration) -> &mut Source {
        if !self.tracked.contains_key(&source) && self.tracked.len() >= max {
            self.make_room(max, now, interval);
        }
        self.tracked
            .entry(source)
            .or_insert_with(|| Source { series: Series { is_dirty: true, ..Series::default() }, ..Source::default() })
    }

    /// Evicts the least recently seen, several at once, because finding one costs as much as
    /// finding many.
    fn make_room(&mut self, max: usize, now: WallTime, interval: Duration) {
        let mut by_age: Vec<(WallTime, IpAddr)> =
            self.tracked.iter().map(|(source, known)| (known.last_seen, *source)).collect();
        let count = (max / 16 + 1).min(by_age.len());
        if count < by_age.len() {
            by_age.select_nth_unstable(count);
        }
        for (_, source) in by_age.into_iter().take(count) {
            let Some(evicted) = self.tracked.remove(&source) else { continue };
            self.evicted += 1;
            self.deleted.push(source);
            let key = Key::Source(source);
            let silent = evicted.silent_since.map(|since| {
                let span = Span { start: since, end: now };
                let event = Event::new(key, EventKind::SilentSource, EventState::Firing, since, span);
                FiringAlarm { event, is_notified: true }
            });
            let firing = evicted.series.firing(key, interval).into_iter().chain(silent);
            self.resolved.extend(firing.map(|alarm| FiringAlarm {
                event: Event {
                    state: EventState::Resolved,
                    reason: Some(Reason::Forgotten),
                    start: now,
                    end: now,
                    ..alarm.event
                },
                ..alarm
            }));
        }
        // Bounded, because the state entries may not be collected for a while.
        let surplus = self.deleted.len().saturating_sub(max);
        self.deleted.drain(..surplus);
    }
}
