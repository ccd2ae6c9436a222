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

/// How long a shard that is new here waits for its notes, and how long while notes still come.
const WAIT_FOR_NOTES: Duration = Duration::from_secs(1);
const WAIT_WHILE_THEY_COME: Duration = Duration::from_secs(5);

/// Notes that follow each other within this time still come.
const STILL_COMING: Duration = Duration::from_millis(300);

/// How often notes are exchanged.
const EXCHANGE_EVERY: Duration = Duration::from_millis(20);

/// So many notes that are not with the coordinator yet are enough: the rest stays where it is until there is room.
const ENOUGH_WAITING: usize = 4096;

/// What waits for notes is bounded: with so many bytes no more is received for the moment.
const ENOUGH_HELD_BYTES: usize = 16 << 20;

/// The most batches that are forwarded before other things have their turn.
const BURST: usize = 64;

/// What a shard waits with.
#[derive(Debug, Default)]
struct Waiting {
    /// Which of its generations was seen last, and since when.
    seen: Option<(u64, Instant)>,
    /// Its notes are there, or were waited for long enough.
    is_ready: bool,
    held: VecDeque<GroupDelivery>,
}

/// See the module. It does nothing for a kind that has no templates.
#[derive(Debug)]
pub(crate) struct Noting {
    is_on: bool,
    exchanged_at: Option<Instant>,
    noted_at: Option<Instant>,
    /// Changes that are still to be noted: those of one look, no more are taken before these are gone.
    changes: VecDeque<Change>,
    /// Reused memory for them.
    taken: Vec<Change>,
    shards: [Waiting; SHARDS],
    held_bytes: usize,
    /// Batches that may be forwarded.
    ready: VecDeque<GroupDelivery>,
}

impl Default for Noting {
    fn default() -> Noting {
        Noting {
            is_on: false,
            exchanged_at: None,
            noted_at: None,
            changes: VecDeque::new(),
            taken: Vec::new(),
            shards: std::array::from_fn(|_| Waiting::default()),
            held_bytes: 0,
            ready: VecDeque::new(),
        }
    }
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
            self.noted_at = Some(now);
        }
        self.put(subscriber);
        // What is not taken stays where it is bounded, and where a later change of a template takes the place of an earlier one.
        if self.changes.is_empty() && subscriber.waiting_notes() < ENOUGH_WAITING {
            match subscriber.shard_to_present() {
                Some(shard) => flows.all_of_shard(shard, &mut self.taken),
                None => flows.take_changes(&mut self.taken),
            }
            self.changes.extend(self.taken.drain(..));
            self.put(subscriber);
        }
        self.let_go(subscriber, now);
    }

    fn put(&mut self, subscriber: &mut GroupSubscriber) {
        while subscriber.waiting_notes() < ENOUGH_WAITING
            && let Some(change) = self.changes.front()
        {
            let shard = Shard::of(change.source());
            if !subscriber.put_note(shard, &change.key, &change.value, change.at_ns) {
                return;
            }
            self.changes.pop_front();
        }
    }

    /// Whether the coordinator has all that was to be noted when it was looked last.
    pub(crate) fn is_noted(&self, subscriber: &GroupSubscriber) -> bool {
        self.changes.is_empty() && subscriber.waiting_notes() == 0
    }

    /// Whether so much waits that no more should be received for the moment.
    pub(crate) fn is_behind(&self) -> bool {
        self.held_bytes >= ENOUGH_HELD_BYTES || self.ready.len() >= BURST
    }

    /// Takes a batch in.
    pub(crate) fn take_in(&mut self, delivery: GroupDelivery, subscriber: &GroupSubscriber, now: Instant) {
        if !self.is_on {
            return self.ready.push_back(delivery);
        }
        let (shard, generation) = delivery.ticket.key();
        let waiting = &mut self.shards[shard.index()];
        if waiting.seen.is_none_or(|(seen, _)| seen != generation) {
            waiting.seen = Some((generation, now));
            waiting.is_ready = false;
        }
        if waiting.is_ready || self.has_waited(shard, subscriber, now) {
            // What was held of an older generation goes first.
            self.release(shard);
            self.ready.push_back(delivery);
        } else {
            self.held_bytes += delivery.batch.body_len();
            self.shards[shard.index()].held.push_back(delivery);
        }
    }

    /// The next batches that may be forwarded, a burst at most.
    pub(crate) fn take_ready(&mut self) -> impl Iterator<Item = GroupDelivery> {
        let count = self.ready.len().min(BURST);
        self.ready.drain(..count)
    }

    /// Lets go of what no longer has to wait.
    fn let_go(&mut self, subscriber: &GroupSubscriber, now: Instant) {
        if self.held_bytes == 0 {
            return;
        }
        for shard in Shard::all() {
            if !self.shards[shard.index()].held.is_empty() && self.has_waited(shard, subscriber, now) {
                self.release(shard);
            }
        }
    }

    fn release(&mut self, shard: Shard) {
        let waiting = &mut self.shards[shard.index()];
        waiting.is_ready = true;
        for delivery in waiting.held.drain(..) {
            self.held_bytes -= delivery.batch.body_len();
            self.ready.push_back(delivery);
        }
    }

    /// Whether the shard's notes are there, or were waited for long enough.
    fn has_waited(&self, shard: Shard, subscriber: &GroupSubscriber, now: Instant) -> bool {
        let since = self.shards[shard.index()].seen.map(|(_, since)| since);
        let waited = since.map_or(WAIT_WHILE_THEY_COME, |since| now.duration_since(since));
        let still_come = self.noted_at.is_some_and(|at| now.duration_since(at) < STILL_COMING);
        subscriber.notes_complete(shard) || waited >= WAIT_WHILE_THEY_COME || waited >= WAIT_FOR_NOTES && !still_come
    }
}
