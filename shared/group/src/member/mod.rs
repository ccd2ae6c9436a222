//! A member of a group, in a subscriber's process.
//!
//! ```text
//! shard:         Prepare                Own g                  Release g            everything handled
//!        (none) ──────────▶ Preparing ──────────▶ Owned g ──────────────▶ Releasing g ─────────▶ Released g
//!           └────────────── Own g ────────────────▲  │                                             │  ▲
//!           ▲ not in the grant                       │ lease expired, another coordinator grants   │  │
//!           └────────────────────────────────────────┴─────────────────────────────────────────────┴──┘
//! gap:     request ─ Repaired … Done ─▶ next request, or complete
//!             ├ no answer for 2 s ─▶ left behind: delivery goes on, it is requested slowly and delivered late
//!             └ no longer retained, or the stream is over ─▶ lost, counted
//! ```
//!
//! A shard that is Preparing buffers, Owned delivers, Releasing delivers nothing new and waits
//! until everything delivered is handled. Released is remembered until the coordinator knows of it,
//! so that a grant that was in flight cannot bring the shard back.
//!
//! The shell calls four types of methods:
//!
//! - **Inputs** carry an event: [`Member::on_message`] a message of the coordinator,
//!   [`Member::on_batch`] and [`Member::on_announcement`] the data plane, [`Member::handled`] the
//!   end of a delivery. [`Member::set_destinations`] and [`Member::leave`] come from the service.
//! - [`Member::on_tick`] performs the actions that are due.
//! - [`Member::next_deadline`] says when to call `on_tick` next. It may change with every other
//!   call.
//! - [`Member::poll_output`] returns one action after another. Poll it after every input and tick,
//!   until it returns `None`.

mod api;
mod doubts;
mod permit;
mod position;
mod registration;
mod renewals;
mod repair;
mod shards;
mod status;
mod streams;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc};

use sekiwake_record::{Announcement, Name, SHARDS, Shard, Topic};

pub use self::{
    api::{GiveUp, MemberOutput, MemberSettings, Received},
    permit::{Permission, Permit},
    position::Arrival,
    status::{MemberCounters, MemberStatus, ShardPhase, ShardStatus, StreamStatus},
};
use self::{
    doubts::Doubts, position::Position, registration::Registration, renewals::Renewals, repair::RepairState,
    shards::Ownership, streams::FollowedStream,
};
use crate::{
    BootTime, MAX_NUMBER, Stream,
    coverage::Age,
    wire::{Message, Rejected},
};

/// The machine of one member.
#[derive(Debug)]
pub struct Member<B> {
    settings: MemberSettings,
    incarnation: u64,
    permit: Arc<Permit>,
    /// By shard.
    ownership: [Ownership; SHARDS],
    /// By shard: the generation that the member owned last and has given back. It never owns it
    /// again.
    retired: [u64; SHARDS],
    streams: Vec<FollowedStream<B>>,
    /// Bytes in all reorder buffers.
    reorder_bytes: usize,
    /// Bytes that are delivered and not handled.
    outstanding_bytes: usize,
    /// The consumer is full: repairs would only add to its backlog.
    consumer_is_full: bool,
    /// Counts uses of streams, to find the least recently used one.
    stream_uses: u64,
    renewals: Renewals,
    registration: Registration,
    /// The hash of the destinations; 0 for none.
    destinations_digest: u64,
    /// The labels of members whose destinations differ, as the newest grant says.
    differing: Vec<Name>,
    doubts: Doubts,
    /// The epoch of the coordinator whose grants it follows; 0 for none.
    coordinator: u64,
    /// For how long the group has existed; `None` before the first grant.
    age: Option<Age>,
    /// The group's protocol; 0 before the first grant.
    protocol: u64,
    /// The first renewal that says that the member is leaving.
    leaving_from_renewal: Option<u64>,
    left: bool,
    /// Counts requests for repair.
    requests: u64,
    outputs: VecDeque<MemberOutput<B>>,
    counters: MemberCounters,
}

impl<B> Member<B> {
    /// A member that the coordinator does not know yet. `incarnation` is a random number.
    pub fn new(settings: MemberSettings, incarnation: u64, now: BootTime) -> Member<B> {
        Member {
            settings,
            incarnation,
            permit: Arc::new(Permit::new()),
            ownership: [Ownership::None; SHARDS],
            retired: [0; SHARDS],
            streams: Vec::new(),
            reorder_bytes: 0,
            outstanding_bytes: 0,
            consumer_is_full: false,
            stream_uses: 0,
            renewals: Renewals::new(now),
            registration: Registration::default(),
            destinations_digest: 0,
            differing: Vec::new(),
            doubts: Doubts::default(),
            coordinator: 0,
            age: None,
            protocol: 0,
            leaving_from_renewal: None,
            left: false,
            requests: 0,
            outputs: VecDeque::new(),
            counters: MemberCounters::default(),
        }
    }

    /// The permit that sending threads check.
    pub fn permit(&self) -> Arc<Permit> {
        Arc::clone(&self.permit)
    }

    /// Takes a message of the coordinator.
    pub fn on_message(&mut self, now: BootTime, frame: &[u8]) {
        match Message::decode(frame) {
            Ok(Message::Grant(grant)) if self.is_me(&grant.group, grant.incarnation) => self.on_grant(now, &grant),
            Ok(Message::Rejected(Rejected { group, incarnation, reason })) if self.is_me(&group, incarnation) => {
                // A member that is not in the group has no shards to release.
                self.left |= self.leaving_from_renewal.is_some() && self.owned().next().is_none();
                self.outputs.push_back(MemberOutput::Rejected(reason));
            }
            Ok(Message::Repaired(repaired)) => self.on_repaired(now, repaired),
            Ok(Message::Done(done)) => self.on_done(now, &done),
            _ => self.counters.rejected += 1,
        }
    }

    /// Performs the actions that are due.
    pub fn on_tick(&mut self, now: BootTime) {
        if self.renewals.is_due(now) {
            self.renew(now);
        }
        self.request_repairs(now);
    }

    /// When [`Member::on_tick`] has something to do.
    pub fn next_deadline(&self) -> BootTime {
        self.next_repair_at().min(self.renewals.next_at())
    }

    /// The next action. Poll until there is none before time advances: a repaired batch that waits
    /// here would be requested again.
    pub fn poll_output(&mut self) -> Option<MemberOutput<B>> {
        self.outputs.pop_front()
    }

    /// Takes a batch that has been checked, from the data plane or from a repair.
    pub fn on_batch(&mut self, now: BootTime, stream: &Stream, topic: Topic, arrival: Arrival<B>) -> Received {
        let ownership = self.ownership[topic.shard.index()];
        if topic.kind != self.settings.kind || !matches!(ownership, Ownership::Owned(_) | Ownership::Preparing) {
            return Received::NotOwned;
        }
        if arrival.next() >= MAX_NUMBER {
            // The coordinator would reject a commit with such a number.
            self.counters.rejected += 1;
            return Received::NotOwned;
        }
        let Some(index) = self.follow(now, stream) else { return Received::NoRoom };
        let position = &mut self.streams[index].positions[topic.shard.index()];
        if let Ownership::Owned(generation) = ownership
            && let Some(received) = position.received()
        {
            if arrival.first <= received && received < arrival.next() {
                self.deliver(index, topic, generation, received, arrival);
                self.deliver_ready(index, topic, generation);
                return Received::Accepted;
            }
            if arrival.next() <= received {
                let Some(gap) = position.late_gap(&arrival) else { return Received::Duplicate };
                self.counters.late += (arrival.next() - gap.from).min(gap.len());
                self.deliver(index, topic, generation, gap.from, arrival);
                return Received::Accepted;
            }
        }
        self.buffer(now, index, topic, ownership, arrival)
    }

    /// Takes an announcement that a publisher makes of its stream on the data plane.
    pub fn on_announcement(&mut self, now: BootTime, announcement: &Announcement) {
        let Ok(name) = Name::new(&announcement.stream_name) else { return };
        let Some(index) = self.follow(now, &Stream::new(&name, announcement.stream_epoch)) else { return };
        let followed = &mut self.streams[index];
        followed.ended |= announcement.ended;
        for position in &announcement.positions {
            if position.topic.kind == self.settings.kind && position.next_sequence < MAX_NUMBER {
                let known = &mut followed.positions[position.topic.shard.index()];
                known.oldest = known.oldest.max(position.oldest_sequence.min(position.next_sequence));
                self.counters.skipped += known.announce(position.next_sequence);
            }
        }
        let mut needs_repair = false;
        for (ownership, position) in self.ownership.iter().zip(&mut followed.positions) {
            if matches!(ownership, Ownership::Owned(_)) {
                // A topic that is not listed has no records yet: its first one will be number 0.
                if position.covered.is_empty() && position.announced == 0 && position.reorder.is_empty() {
                    position.begin(0);
                }
                needs_repair |= position.needs_start() || position.owed() > 0;
            }
        }
        if needs_repair {
            followed.repair.schedule(now);
        }
    }

    /// The delivery that began at `first_sequence` is handled: for every destination, each of its
    /// records was passed to the kernel, synced, or counted as dropped.
    pub fn handled(&mut self, now: BootTime, stream: &Stream, shard: Shard, generation: u64, first_sequence: u64) {
        let ownership = self.ownership[shard.index()];
        let ours = ownership.generation() == Some(generation);
        let Some(index) = self.find(stream).filter(|_| ours) else { return };
        let bytes = self.streams[index].positions[shard.index()].mark_handled(first_sequence);
        self.outstanding_bytes -= bytes;
        self.renewals.on_handled(now, bytes);
        if let Ownership::Releasing(generation) = ownership {
            self.release_if_idle(now, shard, generation);
        }
    }

    /// Sets whether the consumer is full. While it is, nothing is requested again.
    pub fn set_consumer_is_full(&mut self, is_full: bool) {
        self.consumer_is_full = is_full;
    }

    /// Sets the hash of the destinations as they are configured, without secrets. Members of a
    /// group must have the same; 0 is not compared.
    pub fn set_destinations_digest(&mut self, digest: u64) {
        self.destinations_digest = digest;
    }

    /// The labels of members, eight at most, whose destinations have differed from this member's
    /// for a minute.
    pub fn differing(&self) -> &[Name] {
        &self.differing
    }

    /// Begins to release all shards, and then to leave the group.
    pub fn leave(&mut self, now: BootTime) {
        if self.leaving_from_renewal.is_none() {
            self.leaving_from_renewal = Some(self.renewals.next_number());
            self.renewals.schedule_soon(now);
        }
    }

    /// Whether the coordinator has confirmed the release of all shards.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// When the lease ends.
    pub fn lease_until(&self) -> BootTime {
        self.permit.until()
    }

    /// Bytes in the reorder buffers: batches that wait behind gaps.
    pub fn reorder_bytes(&self) -> usize {
        self.reorder_bytes
    }

    fn is_me(&self, group: &Name, incarnation: u64) -> bool {
        *group == self.settings.group && incarnation == self.incarnation
    }

    fn topic(&self, shard: usize) -> Topic {
        Topic::from_index(self.settings.kind.index() * SHARDS + shard).expect("a shard is below the number of shards")
    }

    /// Delivers a batch from `first_sequence` on.
    fn deliver(&mut self, index: usize, topic: Topic, generation: u64, first_sequence: u64, arrival: Arrival<B>) {
        let followed = &mut self.streams[index];
        let position = &mut followed.positions[topic.shard.index()];
        position.mark_delivered(first_sequence, arrival.next(), arrival.bytes);
        self.counters.skipped += position.announce(arrival.next());
        self.outstanding_bytes += arrival.bytes;
        self.outputs.push_back(MemberOutput::Deliver {
            stream: followed.stream.clone(),
            topic,
            generation,
            first_sequence,
            skip: (first_sequence - arrival.first) as u32,
            batch: arrival.batch,
        });
    }

    /// Delivers the buffered batches that follow without a gap.
    fn deliver_ready(&mut self, index: usize, topic: Topic, generation: u64) {
        loop {
            let position = &mut self.streams[index].positions[topic.shard.index()];
            let Some(received) = position.received() else { return };
            let before = position.reorder_bytes;
            let ready = position.pop_ready();
            self.reorder_bytes -= before - position.reorder_bytes;
            let Some(arrival) = ready else { return };
            self.deliver(index, topic, generation, received, arrival);
        }
    }

    /// Puts a batch that is not next into the reorder buffer, if there is room.
    fn buffer(
        &mut self,
        now: BootTime,
        index: usize,
        topic: Topic,
        ownership: Ownership,
        arrival: Arrival<B>,
    ) -> Received {
        let followed = &mut self.streams[index];
        let position = &mut followed.positions[topic.shard.index()];
        let limit = self.settings.reorder_bytes_per_topic;
        let bytes = arrival.bytes;
        let before = position.reorder_bytes;
        if ownership == Ownership::Preparing {
            // The start will be near the newest record, so the oldest batches make room. If they
            // are needed after all, a repair fetches them.
            while position.reorder_bytes + bytes > limit && position.pop_first().is_some() {}
        } else {
            followed.repair.schedule(now);
        }
        let total = self.reorder_bytes - (before - position.reorder_bytes) + bytes;
        let fits = position.reorder_bytes + bytes <= limit && total <= self.settings.reorder_bytes;
        // Even without room it is known now that these records were published.
        self.counters.skipped += position.announce(arrival.next());
        if fits {
            position.insert(arrival);
        }
        self.reorder_bytes = self.reorder_bytes - before + position.reorder_bytes;
        if fits { Received::Accepted } else { Received::NoRoom }
    }

    fn send(&mut self, message: impl Into<Message>) {
        self.outputs.push_back(MemberOutput::Send(message.into().encode()));
    }
}
