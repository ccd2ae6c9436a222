//! A member's position in one topic of one stream.
//!
//! ```text
//! [0 ══════ covered ═══) gap [═ covered ═) … reorder buffer, with gaps … announced
//!  ═ handled ═)  └ outstanding            └ received: the next record to deliver
//! ```
//!
//! `covered` is delivered, counted as lost, handled by others, or before the place where the group
//! began. `handled` is the part of it that is not outstanding: this is reported. Gaps within
//! `covered` were left behind, and are delivered late.

use std::collections::{BTreeMap, VecDeque};

use crate::coverage::{Coverage, Span};

/// A batch, and its extent.
#[derive(Debug)]
pub struct Arrival<B> {
    /// The sequence number of its first record.
    pub first: u64,
    /// How many records it has.
    pub count: u32,
    /// The memory that it occupies, bytes.
    pub bytes: usize,
    /// The batch.
    pub batch: B,
}

impl<B> Arrival<B> {
    /// The sequence number after its last record.
    pub(super) fn next(&self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }
}

#[derive(Debug)]
pub(super) struct Position<B> {
    /// Empty until the start is known.
    pub(super) covered: Coverage,
    /// The part of `covered` that is not outstanding.
    pub(super) handled: Coverage,
    /// The start is a guess: nobody has answered where to begin.
    pub(super) is_guess: bool,
    /// The record after the last one that is known to be published.
    pub(super) announced: u64,
    /// The oldest record that the publisher has announced to retain.
    pub(super) oldest: u64,
    /// The end of what another party says was handled, while it is beyond `announced`.
    skips_to: u64,
    /// What is missing before is no longer retained, and in doubt.
    pub(super) undecided: u64,
    /// The newest report that the coordinator has acknowledged.
    pub(super) acknowledged: Option<Coverage>,
    /// Batches that came behind a gap, by first sequence number.
    pub(super) reorder: BTreeMap<u64, Arrival<B>>,
    pub(super) reorder_bytes: usize,
    /// Deliveries in order, from the oldest that is not handled.
    outstanding: VecDeque<Outstanding>,
    /// The same, of gaps that were left behind.
    late: VecDeque<Outstanding>,
}

/// A delivery that is not handled, or follows one that is not.
#[derive(Debug)]
struct Outstanding {
    first: u64,
    to: u64,
    bytes: usize,
    is_handled: bool,
}

impl<B> Default for Position<B> {
    fn default() -> Position<B> {
        Position {
            covered: Coverage::default(),
            handled: Coverage::default(),
            is_guess: false,
            announced: 0,
            oldest: 0,
            skips_to: 0,
            undecided: 0,
            acknowledged: None,
            reorder: BTreeMap::new(),
            reorder_bytes: 0,
            outstanding: VecDeque::new(),
            late: VecDeque::new(),
        }
    }
}

impl<B> Position<B> {
    /// Nothing more will be handled: what was, behind deliveries that were not, is reported too.
    pub(super) fn stop(&mut self) {
        for queue in [&self.outstanding, &self.late] {
            for handled in queue.iter().filter(|outstanding| outstanding.is_handled) {
                self.handled.insert(handled.first, handled.to);
            }
        }
    }

    /// What stays known of a position whose shard another member has: what was handled, and what
    /// the stream has announced.
    pub(super) fn facts(&self) -> Position<B> {
        Position {
            covered: self.handled.clone(),
            handled: self.handled.clone(),
            is_guess: self.is_guess,
            announced: self.announced,
            oldest: self.oldest,
            acknowledged: self.acknowledged.clone(),
            ..Position::default()
        }
    }

    /// The next record to deliver; `None` until the start is known.
    pub(super) fn received(&self) -> Option<u64> {
        self.covered.end()
    }

    /// The sequence number below which everything is handled.
    pub(super) fn committed(&self) -> u64 {
        self.handled.prefix_end().unwrap_or(0)
    }

    /// Whether every delivery is handled.
    pub(super) fn is_idle(&self) -> bool {
        self.outstanding.is_empty() && self.late.is_empty()
    }

    /// Begins at this record: nothing before it is owed, as far as is known.
    pub(super) fn begin(&mut self, at: u64) {
        self.covered.insert(at, at);
        self.handled.insert(at, at);
    }

    /// These records are known to be published. Returns how many of them are skipped because
    /// another party says that they were handled.
    pub(super) fn announce(&mut self, next: u64) -> u64 {
        let skipped = self.skips_to.min(next).saturating_sub(self.announced);
        self.announced = self.announced.max(next);
        skipped
    }

    /// Takes what other parties have handled. Returns how many known records that skips, without
    /// those in doubt; `None` if nothing of it is new. `counts`: what lies beyond the known records
    /// counts as well, once it is known.
    pub(super) fn learn(&mut self, facts: &Coverage, counts: bool) -> Option<u64> {
        let known = Span { from: 0, to: self.announced };
        let before = self.covered.count_within(known) + self.in_doubt();
        self.handled.union(facts);
        if !self.covered.union(facts) {
            return None;
        }
        if counts {
            self.skips_to = self.skips_to.max(facts.end().unwrap_or(0));
        }
        self.is_guess &= self.covered.first() != Some(0);
        // Too many ranges are trimmed, so there may also be less.
        Some((self.covered.count_within(known) + self.in_doubt()).saturating_sub(before))
    }

    /// Records that a batch is delivered, from `first` on.
    pub(super) fn mark_delivered(&mut self, first: u64, to: u64, bytes: usize) {
        let delivery = Outstanding { first, to, bytes, is_handled: false };
        let is_next = self.received() == Some(first);
        if is_next {
            self.outstanding.push_back(delivery)
        } else {
            self.late.push_back(delivery)
        }
        self.covered.insert(first, to);
    }

    /// Records that these records are counted as lost. They are handled once everything before is.
    pub(super) fn mark_lost(&mut self, gap: Span) {
        let lost = Outstanding { first: gap.from, to: gap.to, bytes: 0, is_handled: true };
        let is_next = self.received() == Some(gap.from);
        if is_next {
            self.outstanding.push_back(lost)
        } else {
            self.late.push_back(lost)
        }
        self.covered.insert(gap.from, gap.to);
        self.settle();
    }

    /// Records that the delivery that began at `first` is handled. Returns the bytes that this
    /// frees.
    pub(super) fn mark_handled(&mut self, first: u64) -> usize {
        let is_it = |outstanding: &&mut Outstanding| outstanding.first == first && !outstanding.is_handled;
        let found = match self.outstanding.binary_search_by_key(&first, |outstanding| outstanding.first) {
            Ok(index) => self.outstanding.get_mut(index).filter(is_it),
            Err(_) => None,
        };
        let Some(outstanding) = found.or_else(|| self.late.iter_mut().find(is_it)) else { return 0 };
        let bytes = std::mem::take(&mut outstanding.bytes);
        outstanding.is_handled = true;
        self.settle();
        bytes
    }

    /// Deliveries are handled in any order, but only what is handled without a gap is reported.
    fn settle(&mut self) {
        for queue in [&mut self.outstanding, &mut self.late] {
            while let Some(oldest) = queue.pop_front_if(|oldest| oldest.is_handled) {
                self.handled.insert(oldest.first, oldest.to);
            }
        }
        if self.is_idle() {
            self.handled.union(&self.covered);
        }
    }

    /// Puts a batch into the reorder buffer.
    pub(super) fn insert(&mut self, arrival: Arrival<B>) {
        self.reorder_bytes += arrival.bytes;
        if let Some(replaced) = self.reorder.insert(arrival.first, arrival) {
            self.reorder_bytes -= replaced.bytes;
        }
    }

    /// Takes the first batch out of the reorder buffer.
    pub(super) fn pop_first(&mut self) -> Option<Arrival<B>> {
        let (_, arrival) = self.reorder.pop_first()?;
        self.reorder_bytes -= arrival.bytes;
        Some(arrival)
    }

    /// Takes the next deliverable batch out of the reorder buffer. Batches that are already
    /// delivered completely are dropped.
    pub(super) fn pop_ready(&mut self) -> Option<Arrival<B>> {
        let received = self.received()?;
        while self.reorder.first_key_value().is_some_and(|(&first, _)| first <= received) {
            let arrival = self.pop_first()?;
            if arrival.next() > received {
                return Some(arrival);
            }
        }
        None
    }

    /// The first record in the reorder buffer.
    pub(super) fn first_buffered(&self) -> Option<u64> {
        self.reorder.first_key_value().map(|(&first, _)| first)
    }

    /// The gap that a batch begins to fill, of those that were left behind.
    pub(super) fn late_gap(&self, arrival: &Arrival<B>) -> Option<Span> {
        self.covered.gaps().find(|gap| (arrival.first..arrival.next()).contains(&gap.from))
    }

    /// Goes on at `from`. What lies before is owed.
    pub(super) fn leave_behind(&mut self, from: u64) {
        self.covered.insert(from, from);
    }

    /// What is owed and not buffered: the gaps that were left behind, and those up to what is known
    /// to be published, without what is in doubt. Before the start is known there are none.
    pub(super) fn gaps(&self) -> impl Iterator<Item = Span> {
        let mut from = self.received().unwrap_or(0);
        let buffered = self.reorder.values().map(|arrival| Span { from: arrival.first, to: arrival.next() });
        // An empty piece at the end closes the last gap.
        let end = if self.covered.is_empty() { 0 } else { self.announced };
        let ahead = buffered.chain([Span { from: end, to: end }]).filter_map(move |piece| {
            let gap = Span { from, to: piece.from.max(from) };
            from = from.max(piece.to);
            (gap.from < gap.to).then_some(gap)
        });
        let decided = self.covered.gaps().map(|gap| Span { from: gap.from.max(self.undecided), ..gap });
        decided.filter(|gap| gap.from < gap.to).chain(ahead)
    }

    /// How many missing records are in doubt.
    pub(super) fn in_doubt(&self) -> u64 {
        self.covered.gaps().map(|gap| gap.to.min(self.undecided).saturating_sub(gap.from)).sum()
    }

    /// How many records are owed: known to be published and not covered.
    pub(super) fn owed(&self) -> u64 {
        let behind: u64 = self.covered.gaps().map(Span::len).sum();
        behind - self.in_doubt() + self.received().map_or(0, |received| self.announced.saturating_sub(received))
    }

    pub(super) fn has_gap(&self) -> bool {
        self.owed() > 0 || (!self.covered.is_empty() && !self.reorder.is_empty())
    }

    /// Whether a publisher has to say where to begin.
    pub(super) fn needs_start(&self) -> bool {
        self.is_guess || (self.covered.is_empty() && (self.announced > 0 || !self.reorder.is_empty()))
    }

    /// Bytes that are delivered and not handled.
    pub(super) fn outstanding_bytes(&self) -> usize {
        self.outstanding.iter().chain(&self.late).map(|outstanding| outstanding.bytes).sum()
    }
}
