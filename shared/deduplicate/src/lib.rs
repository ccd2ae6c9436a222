//! Recognises datagrams that several captures, or several interfaces of one capture, have seen.
//!
//! A *view* is a stream and an interface. Datagrams with equal addresses, ports, identification and
//! payload have the same *key*. Each delivered datagram is an *occurrence* of its key, with the
//! views that have shown it.
//!
//! ```text
//! record ─▶ the oldest occurrence of its key, captured within the duration,
//!           that its view has not shown yet ─┬─ exists ─▶ marked with the view: a duplicate
//!                                            └─ no ─────▶ a new occurrence: delivered
//! ```
//!
//! So a view marks or creates one occurrence per record, and never fewer are delivered than the
//! best view has seen. A repetition by the device is shown twice by the same view, so it is a new
//! occurrence. Views see datagrams in the same order, so the oldest occurrence is the right one;
//! the nearest would not be, because clocks differ.
//!
//! An occurrence is forgotten when every live view of its shard has passed its capture time by the
//! duration, or when the memory is used up, the oldest first.
//!
//! **Invariant:** no clock, no socket, no thread; records, announcements and an explicit time go
//! in. In steady state nothing is allocated per record.

mod key;
mod occurrences;
#[cfg(test)]
mod tests;
mod views;

use std::time::Duration;

use sekiwake_group::{BootTime, Stream};
use sekiwake_record::{Record, Shard};

pub use key::Key;
pub use views::{View, ViewCounters};

use self::{
    occurrences::{Found, Occurrence, Occurrences},
    views::Views,
};

/// A publisher's records may reach the bus this much later than they were captured. What it
/// announces about idle views counts only up to then.
const ANNOUNCED_MARGIN_NS: u64 = 1_000_000_000;

/// Settings of a [`Deduplicator`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeduplicateSettings {
    /// The largest difference between the capture times of one datagram.
    pub duration: Duration,
    /// The most memory for occurrences, bytes.
    pub max_bytes: usize,
    /// Random, so that no sender can choose a datagram with the key of another.
    pub seed: u64,
}

/// What is to be done with a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is delivered.
    Deliver,
    /// It was delivered before, with the delivery of this number.
    Duplicate(u32),
}

/// Where a record has come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its view.
    pub view: View,
    /// The shard of its source.
    pub shard: Shard,
    /// Its capture time, nanoseconds since 1970-01-01T00:00:00Z.
    pub captured_at_ns: u64,
    /// The number of its delivery. Numbers increase, and wrap.
    pub delivery: u32,
    /// Whether it was delivered by a former owner of the shard.
    pub is_past: bool,
}

/// What a publisher has announced, and a member has received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamProgress {
    /// The stream.
    pub stream: Stream,
    /// It has ended.
    pub ended: bool,
    /// The publisher's clock, nanoseconds since 1970-01-01T00:00:00Z; `None` if it did not say.
    pub clock_ns: Option<u64>,
    /// The shards of which not everything announced has been delivered, one bit each.
    pub behind: u64,
}

/// Running totals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Occurrences that were forgotten because the memory was used up.
    pub evicted: u64,
    /// Records delivered although their like may have been forgotten.
    pub late: u64,
    /// Records equal to one of another view that was captured further apart than the duration.
    pub apart: u64,
    /// Records delivered because there are more views than can be told apart.
    pub without_view: u64,
}

/// The state. See the crate's documentation.
#[derive(Debug)]
pub struct Deduplicator {
    duration_ns: u64,
    seed: u64,
    occurrences: Occurrences,
    views: Views,
    /// Shards of which nothing is forgotten, one bit each: their past is being read.
    kept: u64,
    counters: Counters,
    newest_apart: Duration,
}

impl Deduplicator {
    /// Without any occurrence.
    pub fn new(settings: DeduplicateSettings) -> Deduplicator {
        Deduplicator {
            duration_ns: u64::try_from(settings.duration.as_nanos()).unwrap_or(u64::MAX),
            seed: settings.seed,
            occurrences: Occurrences::new(settings.max_bytes),
            views: Views::default(),
            kept: 0,
            counters: Counters::default(),
            newest_apart: Duration::ZERO,
        }
    }

    /// What equal datagrams have in common; `None` if the record does not say enough to be
    /// compared, because its capture is of an earlier version.
    pub fn key(&self, record: &Record<'_>) -> Option<Key> {
        Key::of(record, self.seed)
    }

    /// The view of this stream and interface; `None`, counted, if there are too many.
    pub fn view(&mut self, now: BootTime, stream: &Stream, interface: u8) -> Option<View> {
        let view = self.views.get(now, stream, interface, |taken| self.occurrences.forget_view(taken));
        self.counters.without_view += u64::from(view.is_none());
        view
    }

    /// Takes a record of this key.
    pub fn observe(&mut self, key: Key, sighting: Sighting) -> Verdict {
        let Sighting { view, shard, captured_at_ns, is_past, .. } = sighting;
        let is_behind = captured_at_ns < self.views.watermark(view, shard);
        let verdict = match self.occurrences.find(key, view, captured_at_ns, self.duration_ns, is_behind) {
            Found::Occurrence(number) => {
                self.views.count_duplicate(view);
                Verdict::Duplicate(number)
            }
            Found::Nothing { apart_ns } => {
                if let Some(apart_ns) = apart_ns.filter(|_| key.is_identified()) {
                    self.counters.apart += 1;
                    self.newest_apart = Duration::from_nanos(apart_ns);
                }
                let is_late = captured_at_ns.saturating_add(self.duration_ns) < self.views.passed(shard);
                self.counters.late += u64::from(is_late && !is_past);
                self.counters.evicted += self.make_room();
                self.occurrences.push(key, Occurrence::new(sighting));
                Verdict::Deliver
            }
        };
        self.views.captured(view, shard, captured_at_ns);
        verdict
    }

    /// Takes what a publisher has announced.
    pub fn announced(&mut self, now: BootTime, progress: &StreamProgress) {
        self.views.announced(now, progress, ANNOUNCED_MARGIN_NS);
    }

    /// Forgets what every live view has passed. To be called after each batch.
    pub fn expire(&mut self, now: BootTime) {
        self.views.update(now);
        while let Some(oldest) = self.occurrences.oldest() {
            let is_kept = self.kept >> oldest.shard_index() & 1 == 1;
            let until = oldest.captured_at_ns().saturating_add(self.duration_ns);
            if !oldest.is_forgotten() && (is_kept || until >= self.views.passed_index(oldest.shard_index())) {
                break;
            }
            if let Some(view) = oldest.only_view() {
                self.views.count_only(view);
            }
            self.occurrences.pop();
        }
    }

    /// Forgets the occurrences of these shards, one bit each.
    pub fn forget_shards(&mut self, shards: u64) {
        self.occurrences.forget_shards(shards);
        self.views.forget_shards(shards);
    }

    /// Forgets nothing of these shards, one bit each, until it is called again.
    pub fn keep_shards(&mut self, shards: u64) {
        self.kept = shards;
    }

    /// The number of the oldest delivery that a [`Verdict::Duplicate`] may name.
    pub fn oldest_delivery(&self) -> Option<u32> {
        self.occurrences.oldest().map(|oldest| oldest.delivery())
    }

    /// Occurrences in memory.
    pub fn len(&self) -> usize {
        self.occurrences.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.occurrences.len() == 0
    }

    /// Memory in use for occurrences, bytes.
    pub fn memory_bytes(&self) -> usize {
        self.occurrences.memory_bytes()
    }

    /// Running totals.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The difference between the capture times of the newest record of [`Counters::apart`].
    pub fn newest_apart(&self) -> Duration {
        self.newest_apart
    }

    /// The views, with their totals.
    pub fn views(&self) -> impl Iterator<Item = (&Stream, u8, ViewCounters)> {
        self.views.iter()
    }

    /// Views that are heard of.
    pub fn live_views(&self) -> usize {
        self.views.live()
    }

    fn make_room(&mut self) -> u64 {
        let mut evicted = 0;
        while self.occurrences.is_full() {
            evicted += u64::from(self.occurrences.oldest().is_some_and(|oldest| !oldest.is_forgotten()));
            self.occurrences.pop();
        }
        evicted
    }
}
