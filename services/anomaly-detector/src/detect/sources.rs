//! Sources, a bounded number of them: counts and alarms of each, and whether it still talks.

use std::{collections::HashMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::{
    event::{Event, EventKind, EventState, Reason},
    series::{Key, Series},
};

/// Pauses of a source that are remembered.
const PAUSES: usize = 16;

/// So many pauses must be known before one can be too long: a device that has been heard a few times has no habits yet.
const PAUSES_NEEDED: usize = 8;

/// Shorter ones are within one burst, milliseconds.
const SHORTEST_PAUSE: u64 = 1000;

const MILLISECOND: u64 = 1_000_000;

/// A source.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Source {
    pub(super) series: Series,
    /// When it spoke last, by capture time, nanoseconds since 1970-01-01T00:00:00Z.
    pub(super) seen_ns: u64,
    /// Its last pauses of at least a second, milliseconds, the newest last.
    pauses: Vec<u32>,
    /// When it spoke last, while it is reported as silent.
    pub(super) silent_since: Option<u64>,
}

/// All sources that are known.
#[derive(Debug, Clone, Default)]
pub(super) struct Sources {
    pub(super) known: HashMap<IpAddr, Source>,
    /// Those that had to make room.
    pub(super) evicted: u64,
    /// Ends of alarms of those.
    pub(super) forgotten: Vec<Event>,
    /// Those that are gone, whose notes are to go.
    pub(super) gone: Vec<IpAddr>,
}

impl Source {
    /// It has spoken. Gives the end of a silence that had been reported.
    pub(super) fn heard(&mut self, source: IpAddr, captured_at_ns: u64) -> Option<Event> {
        let pause = captured_at_ns.saturating_sub(self.seen_ns) / MILLISECOND;
        let is_first = self.seen_ns == 0;
        self.seen_ns = self.seen_ns.max(captured_at_ns);
        // The end of a silence is no habit.
        if !is_first && pause >= SHORTEST_PAUSE && self.silent_since.is_none() {
            if self.pauses.len() >= PAUSES {
                self.pauses.remove(0);
            }
            self.pauses.push(u32::try_from(pause).unwrap_or(u32::MAX));
        }
        let since_ns = self.silent_since.take()?;
        self.series.is_dirty = true;
        let span = (since_ns, captured_at_ns);
        Some(Event::new(Key::Source(source), EventKind::SilentSource, EventState::Resolved, since_ns, span))
    }

    /// Its usual pause, milliseconds: the longest of the last ones. `None` while too few are known.
    pub(super) fn usual_pause(&self) -> Option<u64> {
        let is_known = self.pauses.len() >= PAUSES_NEEDED;
        self.pauses.iter().max().filter(|_| is_known).map(|&pause| u64::from(pause))
    }

    /// Whether it has been silent for too long, and that is new: then what is to be told.
    pub(super) fn falls_silent(&mut self, source: IpAddr, factor: f64, least_ns: u64, now_ns: u64) -> Option<Event> {
        let usual = self.usual_pause().filter(|_| self.silent_since.is_none())?;
        let limit_ns = (usual as f64 * factor) * MILLISECOND as f64;
        if (now_ns.saturating_sub(self.seen_ns) as f64) <= limit_ns.max(least_ns as f64) {
            return None;
        }
        self.silent_since = Some(self.seen_ns);
        self.series.is_dirty = true;
        let span = (self.seen_ns, now_ns);
        let event = Event::new(Key::Source(source), EventKind::SilentSource, EventState::Firing, self.seen_ns, span);
        Some(Event { usual_pause_seconds: Some(usual as f64 / 1000.0), ..event })
    }

    pub(super) fn is_sound(&self) -> bool {
        self.pauses.len() <= PAUSES
    }
}

impl Sources {
    /// A source that has spoken; known from now on.
    pub(super) fn get(&mut self, source: IpAddr, max: usize, now_ns: u64, interval_ns: u64) -> &mut Source {
        if !self.known.contains_key(&source) && self.known.len() >= max {
            self.make_room(max, now_ns, interval_ns);
        }
        self.known
            .entry(source)
            .or_insert_with(|| Source { series: Series { is_dirty: true, ..Series::default() }, ..Source::default() })
    }

    /// The least recently seen go, some at once: to find one costs as much as to find many.
    fn make_room(&mut self, max: usize, now_ns: u64, interval_ns: u64) {
        let mut by_age: Vec<(u64, IpAddr)> =
            self.known.iter().map(|(source, known)| (known.seen_ns, *source)).collect();
        let going = (max / 16 + 1).min(by_age.len());
        if going < by_age.len() {
            by_age.select_nth_unstable(going);
        }
        for (_, source) in by_age.into_iter().take(going) {
            let Some(gone) = self.known.remove(&source) else { continue };
            self.evicted += 1;
            self.gone.push(source);
            let key = Key::Source(source);
            let silent = gone.silent_since.map(|since_ns| {
                Event::new(key, EventKind::SilentSource, EventState::Firing, since_ns, (since_ns, now_ns))
            });
            self.forgotten.extend(gone.series.firing(key, interval_ns).chain(silent).map(|firing| Event {
                state: EventState::Resolved,
                reason: Some(Reason::Forgotten),
                start_ns: now_ns,
                end_ns: now_ns,
                ..firing
            }));
        }
        // Nobody may be there to take them.
        let surplus = self.gone.len().saturating_sub(max);
        self.gone.drain(..surplus);
    }
}
