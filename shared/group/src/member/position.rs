//! Where a member stands in one topic of one stream.
//!
//! ```text
//!   handled ≤ received ≤ … what is held, in pieces … ≤ announced
//!      │          └ next to be delivered            └ what the publisher has said to have published
//!      └ everything below is done with: what is committed
//! ```

use std::collections::{BTreeMap, VecDeque};

use crate::UNKNOWN;

/// A batch and what the machine has to know of it.
#[derive(Debug)]
pub struct Arrival<B> {
    /// The sequence number of its first record.
    pub first: u64,
    /// How many records it holds.
    pub count: u32,
    /// What it holds in memory, bytes.
    pub bytes: usize,
    /// The batch.
    pub batch: B,
}

impl<B> Arrival<B> {
    pub(super) fn next(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }
}

#[derive(Debug)]
pub(super) struct Position<B> {
    /// The next record to be delivered; [`UNKNOWN`] until it is located.
    pub(super) received: u64,
    pub(super) announced: u64,
    pub(super) acknowledged: u64,
    /// What has come behind a hole, by its first sequence.
    pub(super) held: BTreeMap<u64, Arrival<B>>,
    pub(super) held_bytes: usize,
    pub(super) outstanding: VecDeque<Outstanding>,
}

/// A batch that was delivered and is not yet handled, or waits for one before it.
#[derive(Debug)]
pub(super) struct Outstanding {
    first: u64,
    bytes: usize,
    done: bool,
}

impl<B> Default for Position<B> {
    fn default() -> Position<B> {
        Position {
            received: UNKNOWN,
            announced: 0,
            acknowledged: UNKNOWN,
            held: BTreeMap::new(),
            held_bytes: 0,
            outstanding: VecDeque::new(),
        }
    }
}

impl<B> Position<B> {
    /// The sequence below which everything is handled.
    pub(super) fn handled(&self) -> u64 {
        self.outstanding.front().map_or(self.received, |oldest| oldest.first)
    }

    pub(super) fn is_idle(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Notes that a batch is being delivered, from `received` on.
    pub(super) fn deliver(&mut self, arrival: &Arrival<B>) {
        self.outstanding.push_back(Outstanding { first: self.received, bytes: arrival.bytes, done: false });
        self.received = arrival.next();
    }

    /// Notes that the batch delivered from `first` on is handled, and gives the bytes that it held.
    pub(super) fn handle(&mut self, first: u64) -> usize {
        let Ok(index) = self.outstanding.binary_search_by_key(&first, |outstanding| outstanding.first) else {
            return 0;
        };
        let outstanding = &mut self.outstanding[index];
        let bytes = std::mem::take(&mut outstanding.bytes);
        outstanding.done = true;
        while self.outstanding.front().is_some_and(|oldest| oldest.done) {
            self.outstanding.pop_front();
        }
        bytes
    }

    pub(super) fn hold(&mut self, arrival: Arrival<B>) {
        self.held_bytes += arrival.bytes;
        if let Some(replaced) = self.held.insert(arrival.first, arrival) {
            self.held_bytes -= replaced.bytes;
        }
    }

    pub(super) fn unhold_first(&mut self) -> Option<Arrival<B>> {
        let (_, arrival) = self.held.pop_first()?;
        self.held_bytes -= arrival.bytes;
        Some(arrival)
    }

    /// The next batch that can be delivered. What has been delivered already is left out.
    pub(super) fn ready(&mut self) -> Option<Arrival<B>> {
        while self.held.first_key_value().is_some_and(|(&first, _)| first <= self.received) {
            let arrival = self.unhold_first()?;
            if arrival.next() > self.received {
                return Some(arrival);
            }
        }
        None
    }

    /// The holes below what is known to have been published.
    pub(super) fn holes(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut from = self.received;
        let ends = self.held.values().map(|arrival| (arrival.first, arrival.next()));
        let known = if self.received == UNKNOWN { 0 } else { self.announced };
        ends.chain([(known, known)]).filter_map(move |(first, next)| {
            let hole = (from, first);
            from = from.max(next);
            (hole.0 < hole.1).then_some(hole)
        })
    }

    pub(super) fn has_hole(&self) -> bool {
        self.received != UNKNOWN && (self.received < self.announced || !self.held.is_empty())
    }

    /// Bytes that were delivered and not handled.
    pub(super) fn outstanding_bytes(&self) -> usize {
        self.outstanding.iter().map(|outstanding| outstanding.bytes).sum()
    }
}
