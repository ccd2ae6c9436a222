//! Templates on their way between the owners of a shard: what is learned here is noted for the next owner, and what the owners before have
//! noted is learned before anything of the shard is sent.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use sekiwake_bus::{Frame, GroupDelivery, GroupSubscriber};
use sekiwake_flow::Change;
use sekiwake_record::{SHARDS, Shard};

use crate::Engine;

/// How long a shard that is new here waits for its notes: longer than they ever take while the proxy is there and knows notes.
const WAIT_FOR_NOTES: Duration = Duration::from_secs(1);

/// How often notes are exchanged.
const EXCHANGE_EVERY: Duration = Duration::from_millis(20);

/// So many notes that are not with the coordinator yet are enough: the rest stays here until there is room.
const ENOUGH_WAITING: usize = 4096;

/// See the module. It does nothing for a kind that has no templates.
#[derive(Debug, Default)]
pub(crate) struct Noting {
    is_on: bool,
    exchanged_at: Option<Instant>,
    /// Changes that are still to be noted.
    changes: VecDeque<Change>,
    /// Reused memory for them.
    taken: Vec<Change>,
    /// Batches of shards whose notes have not come yet, in the order in which they were received.
    held: VecDeque<GroupDelivery>,
    /// The generation of each shard, and when it was seen first.
    seen: Vec<Option<(u64, Instant)>>,
    /// Shards whose notes are there, or were waited for long enough.
    ready: Vec<bool>,
}

impl Noting {
    /// Learns what has come, and notes what is new.
    pub(crate) fn exchange(&mut self, subscriber: &mut GroupSubscriber, engine: &mut Engine<Frame>, now: Instant) {
        let is_due = self.exchanged_at.is_none_or(|at| now.duration_since(at) >= EXCHANGE_EVERY);
        let Some(flows) = engine.flows().filter(|_| is_due) else { return };
        self.is_on = true;
        self.exchanged_at = Some(now);
        while let Some(note) = subscriber.take_note() {
            flows.learn(note.key.as_bytes(), note.value.as_bytes(), note.at_ns);
        }
        while let Some(shard) = subscriber.shard_to_present() {
            flows.all_of_shard(shard, &mut self.taken);
            self.changes.extend(self.taken.drain(..));
        }
        flows.take_changes(&mut self.taken);
        self.changes.extend(self.taken.drain(..));
        while subscriber.waiting_notes() < ENOUGH_WAITING
            && let Some(change) = self.changes.pop_front()
        {
            let shard = Shard::of(change.source());
            if !subscriber.put_note(shard, &change.key, &change.value, change.at_ns) {
                self.changes.push_front(change);
                break;
            }
        }
    }

    /// Whether the coordinator has all that is to be noted.
    pub(crate) fn is_noted(&self, subscriber: &GroupSubscriber) -> bool {
        self.changes.is_empty() && subscriber.waiting_notes() == 0
    }

    /// Takes a batch in.
    pub(crate) fn take_in(&mut self, delivery: GroupDelivery, subscriber: &GroupSubscriber, now: Instant) {
        if self.is_on {
            let (shard, generation) = delivery.ticket.key();
            self.seen.resize(SHARDS, None);
            self.ready.resize(SHARDS, false);
            let known = &mut self.seen[shard.index()];
            if known.is_none_or(|(known, _)| known != generation) {
                *known = Some((generation, now));
                self.ready[shard.index()] = false;
            }
            self.see_whether_ready(shard, subscriber, now);
        }
        self.held.push_back(delivery);
    }

    /// The next batch that may be forwarded.
    pub(crate) fn next(&mut self, subscriber: &GroupSubscriber, now: Instant) -> Option<GroupDelivery> {
        if !self.is_on {
            return self.held.pop_front();
        }
        let mut index = 0;
        while index < self.held.len() {
            let (shard, _) = self.held[index].ticket.key();
            if self.see_whether_ready(shard, subscriber, now) {
                return self.held.remove(index);
            }
            index += 1;
        }
        None
    }

    fn see_whether_ready(&mut self, shard: Shard, subscriber: &GroupSubscriber, now: Instant) -> bool {
        let ready = &mut self.ready[shard.index()];
        if !*ready {
            let since = self.seen[shard.index()].map(|(_, since)| since);
            let waited = since.is_none_or(|since| now.duration_since(since) >= WAIT_FOR_NOTES);
            *ready = waited || subscriber.notes_complete(shard);
        }
        *ready
    }
}
