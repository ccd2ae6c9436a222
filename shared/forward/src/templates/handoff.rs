//! The hand-off state of flows: changed templates are published for the next owner of a shard, and
//! those of earlier owners are learned before anything of the shard is sent.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use sekiwake_bus::{GroupDelivery, HandoffState, HandoffWait};
use sekiwake_flow::Change;
use sekiwake_record::{SHARDS, Shard};

use super::flows::Flows;

/// How often hand-off entries are exchanged.
const EXCHANGE_EVERY: Duration = Duration::from_millis(20);

/// Maximum number of batches that are forwarded before the thread does other work.
const BURST: usize = 64;

/// A generation of a shard, and when it was first seen.
#[derive(Clone, Copy, Debug)]
struct SeenGeneration {
    number: u64,
    since: Instant,
}

/// The batches of a shard that wait for its hand-off state.
#[derive(Debug, Default)]
struct Waiting {
    /// The newest generation of the shard.
    generation: Option<SeenGeneration>,
    /// Its hand-off state is complete, or the wait for it has lasted long enough.
    is_ready: bool,
    batches: VecDeque<GroupDelivery>,
}

/// Exchanges hand-off entries, and delays a shard's batches until its state is complete.
#[derive(Debug)]
pub(crate) struct HandoffBuffer {
    exchanged_at: Option<Instant>,
    /// There may be something to exchange, so the next time must not be missed.
    is_due: bool,
    wait: HandoffWait,
    /// Changes to be published. The next ones are taken only when all of these are.
    changes: VecDeque<Change>,
    /// Reused memory for them.
    taken: Vec<Change>,
    shards: [Waiting; SHARDS],
    waiting_bytes: usize,
    /// Batches that may be forwarded.
    ready: VecDeque<GroupDelivery>,
}

impl Default for HandoffBuffer {
    fn default() -> HandoffBuffer {
        HandoffBuffer {
            exchanged_at: None,
            is_due: true,
            wait: HandoffWait::default(),
            changes: VecDeque::new(),
            taken: Vec::new(),
            shards: std::array::from_fn(|_| Waiting::default()),
            waiting_bytes: 0,
            ready: VecDeque::new(),
        }
    }
}

impl HandoffBuffer {
    /// Learns received entries, and publishes changes.
    pub(crate) fn exchange(&mut self, source: &mut dyn HandoffState, flows: &mut Flows, now: Instant) {
        if self.exchanged_at.is_some_and(|at| now.duration_since(at) < EXCHANGE_EVERY) {
            // Entries may have been received since then.
            self.is_due = true;
            return;
        }
        self.exchanged_at = Some(now);
        self.is_due = false;
        while let Some(entry) = source.take_handoff_entry() {
            flows.learn(entry.key.as_bytes(), entry.value.as_bytes(), entry.at_ns);
            self.wait.entry_arrived(now);
        }
        self.publish(source);
        // Changes that are not taken yet stay with the exporters, because there they are bounded,
        // and a later change of a template replaces an earlier one.
        if self.changes.is_empty() && source.pending_handoff() < HandoffWait::MAX_PENDING_ENTRIES {
            match source.shard_to_present() {
                Some(shard) => {
                    // Another one may follow.
                    self.is_due = true;
                    flows.all_of_shard(shard, &mut self.taken);
                }
                None => flows.take_changes(&mut self.taken),
            }
            self.changes.extend(self.taken.drain(..));
            self.publish(source);
        }
        self.release_ready(source, now);
        self.is_due |= !self.is_published(source);
    }

    /// Whether the next exchange may be late: there is nothing to exchange, and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_due && self.waiting_bytes == 0 && self.ready.is_empty()
    }

    fn publish(&mut self, source: &mut dyn HandoffState) {
        while source.pending_handoff() < HandoffWait::MAX_PENDING_ENTRIES
            && let Some(change) = self.changes.front()
        {
            let shard = Shard::of(change.source());
            if !source.put_handoff_entry(shard, &change.key, &change.value, change.at_ns) {
                return;
            }
            self.changes.pop_front();
        }
    }

    /// Whether the coordinator has all changes, as of the last exchange.
    pub(crate) fn is_published(&self, source: &dyn HandoffState) -> bool {
        self.changes.is_empty() && source.pending_handoff() == 0
    }

    /// Whether so much is waiting that receiving should pause.
    pub(crate) fn is_behind(&self) -> bool {
        self.waiting_bytes >= HandoffWait::MAX_HELD_BYTES || self.ready.len() >= BURST
    }

    /// Adds a batch.
    pub(crate) fn take_in(&mut self, delivery: GroupDelivery, source: &dyn HandoffState, now: Instant) {
        // It may change templates.
        self.is_due = true;
        let (shard, generation) = delivery.ack_token.key();
        let waiting = &mut self.shards[shard.index()];
        if waiting.generation.is_none_or(|seen| seen.number != generation) {
            waiting.generation = Some(SeenGeneration { number: generation, since: now });
            waiting.is_ready = false;
        }
        if waiting.is_ready || self.has_waited(shard, source, now) {
            // Batches of an older generation go first.
            self.release(shard);
            self.ready.push_back(delivery);
        } else {
            self.waiting_bytes += delivery.batch.body_len();
            self.shards[shard.index()].batches.push_back(delivery);
        }
    }

    /// The next batches that may be forwarded, at most a burst.
    pub(crate) fn take_ready(&mut self) -> impl Iterator<Item = GroupDelivery> {
        let count = self.ready.len().min(BURST);
        self.ready.drain(..count)
    }

    /// Releases the batches that no longer have to wait.
    fn release_ready(&mut self, source: &dyn HandoffState, now: Instant) {
        if self.waiting_bytes == 0 {
            return;
        }
        for shard in Shard::all() {
            if !self.shards[shard.index()].batches.is_empty() && self.has_waited(shard, source, now) {
                self.release(shard);
            }
        }
    }

    fn release(&mut self, shard: Shard) {
        let waiting = &mut self.shards[shard.index()];
        waiting.is_ready = true;
        for delivery in waiting.batches.drain(..) {
            self.waiting_bytes -= delivery.batch.body_len();
            self.ready.push_back(delivery);
        }
    }

    /// Whether the shard's hand-off state is complete, or the wait for it has lasted long enough.
    fn has_waited(&self, shard: Shard, source: &dyn HandoffState, now: Instant) -> bool {
        let seen = self.shards[shard.index()].generation;
        source.handoff_complete(shard) || seen.is_none_or(|seen| self.wait.is_over(seen.since, now))
    }
}
