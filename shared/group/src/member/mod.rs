//! A member of a group, in a subscriber's process.
//!
//! ```text
//! of a shard:            Prepare                Own g                  Release g             everything handled
//!               (none) ──────────▶ Preparing ──────────▶ Owned g ──────────────▶ Releasing g ──────────▶ Released g
//!                  └────────────── Own g ────────────────▲  │                                              │  ▲
//!                  ▲ not in the grant                       │ lease ran out, and another coordinator grants │  │
//!                  └────────────────────────────────────────┴──────────────────────────────────────────────┴──┘
//! of a stream:  a hole ─▶ asking ─ Repaired … Done ─▶ asking again, or whole
//!                            └ no answer for 2 s, or not retained ─▶ given up, counted, the position moves past it
//! ```
//!
//! Preparing buffers, Owned delivers, Releasing delivers no more and waits for what was delivered to be handled. Released is
//! remembered until the coordinator has heard of it, so that a grant that was on its way cannot bring the shard back.

mod permit;
mod position;
mod repair;
mod status;
#[cfg(test)]
mod tests;

use std::{collections::VecDeque, sync::Arc};

use sekiwake_record::{Announcement, Kind, Name, SHARDS, Shard, Topic};

pub use permit::{Permission, Permit};
pub use position::Arrival;
use position::Position;
use repair::Asking;
pub use status::{HoldState, MemberCounters, MemberStatus, ShardStatus, StreamStatus};

use crate::{
    LEASE, MAX_NUMBER, MILLISECOND, REGISTER_WITHIN, RENEW_EVERY, SECOND, Stream, UNKNOWN,
    wire::{
        self, Destination, Grant, HIGHEST_PROTOCOL, Holding, LOWEST_PROTOCOL, MAX_STREAMS, Message, Number, Phase,
        Refused, Register, Renew, Role, StreamPositions,
    },
};

/// The least time between two renewals, when something changes.
const RENEW_SOONEST: u64 = 5 * MILLISECOND;
/// Bytes that are handled after a renewal until the next comes early: a publisher that reads a file waits for commits.
const RENEW_AFTER_BYTES: usize = 4 << 20;
/// The least time between two renewals, when that is why.
const RENEW_FOR_BYTES_SOONEST: u64 = 50 * MILLISECOND;
/// How long a stream is followed after it was last heard of, when nothing of it is missing. One that ended says nothing more; one that
/// did not may be cut off.
const FOLLOW_ENDED: u64 = 300 * SECOND;
const FOLLOW_SILENT: u64 = 24 * 3600 * SECOND;
/// How often streams to be forgotten are looked for.
const SWEEP_EVERY: u64 = 60 * SECOND;
/// Of a stream that has been silent for so long, the coordinator is not told again what it has acknowledged.
const TELL_WHILE_HEARD: u64 = 60 * SECOND;
/// Of so many renewals one tells all commits, acknowledged or not: the coordinator may have had no use for them at the time.
const TELL_ALL_EVERY: u64 = 8;
/// Renewals whose time of sending is remembered.
const RENEWALS: usize = 16;

/// Settings of a [`Member`].
#[derive(Clone, Debug)]
pub struct MemberSettings {
    /// The group, `<service>.<name>`.
    pub group: Name,
    /// What it works on.
    pub kind: Kind,
    /// What people call this member.
    pub label: Name,
    /// Where to begin where nobody knows: at the oldest record that was published no longer ago than this, ns.
    pub start_age: u64,
    /// The most bytes that are held behind holes in one topic of one stream.
    pub held_bytes_per_topic: usize,
    /// The most bytes that are held behind holes in all.
    pub held_bytes: usize,
    /// The most bytes that are delivered and not handled while more is asked for. More than one destination that is dead holds among
    /// others that are not: those are not to go without repairs for its sake.
    pub outstanding_bytes: usize,
    /// The most bytes that one request for repair asks for.
    pub request_bytes: u64,
    /// Of its group one member has all shards, and the others stand by.
    pub one_works: bool,
    /// The lowest and the highest protocol that it speaks; the group runs the lowest of its members' highest.
    pub protocols: (u64, u64),
    /// A fault, to show that the simulation finds it.
    #[cfg(test)]
    pub(crate) mutant: Option<crate::simulation::Mutant>,
}

impl MemberSettings {
    /// The defaults for a member of this group.
    pub fn new(group: Name, kind: Kind, label: Name) -> MemberSettings {
        MemberSettings {
            group,
            kind,
            label,
            start_age: 30 * SECOND,
            held_bytes_per_topic: 4 << 20,
            held_bytes: 64 << 20,
            outstanding_bytes: 96 << 20,
            request_bytes: 1 << 20,
            one_works: false,
            protocols: (LOWEST_PROTOCOL, HIGHEST_PROTOCOL),
            #[cfg(test)]
            mutant: None,
        }
    }
}

/// What a member's machine wants done.
#[derive(Debug)]
pub enum MemberOutput<B> {
    /// Send this to the coordinator.
    Send(Vec<u8>),
    /// Subscribe to the topic.
    Subscribe(Topic),
    /// Unsubscribe from it.
    Unsubscribe(Topic),
    /// Act on the batch from record `skip` on, as long as the [`Permit`] allows, and then call [`Member::handled`].
    Deliver {
        /// The stream.
        stream: Stream,
        /// The topic.
        topic: Topic,
        /// For [`Permit::may_act`] and [`Member::handled`].
        generation: u64,
        /// The sequence number of the first record to act on; names the delivery in [`Member::handled`].
        first_sequence: u64,
        /// Records at the batch's beginning that have been delivered before.
        skip: u32,
        /// The batch.
        batch: B,
    },
    /// A batch came again. Check it as one from the data plane, and give it to [`Member::on_batch`].
    Repaired {
        /// Its topic.
        topic: Topic,
        /// Its header frame.
        header: Vec<u8>,
        /// Its body frame.
        body: Vec<u8>,
    },
    /// Records are lost for this group.
    GaveUp {
        /// The stream.
        stream: Stream,
        /// The topic.
        topic: Topic,
        /// The first that is lost.
        from: u64,
        /// The one after the last.
        to: u64,
        /// Why.
        reason: GiveUp,
    },
    /// The coordinator does not take this member.
    Refused(wire::RefusalReason),
}

/// Why records are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GiveUp {
    /// The publisher no longer has them.
    NotRetained,
    /// The publisher is gone.
    StreamGone,
    /// Nobody has answered in time.
    Unanswered,
    /// Nobody could say where the group stands, so it begins with what has come. All that is before is counted: an upper bound,
    /// as the group may have handled some of it.
    NotLocated,
}

impl GiveUp {
    /// All reasons.
    pub const ALL: [GiveUp; 4] = [GiveUp::NotRetained, GiveUp::StreamGone, GiveUp::Unanswered, GiveUp::NotLocated];

    /// Its name, as metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            GiveUp::NotRetained => "not_retained",
            GiveUp::StreamGone => "stream_gone",
            GiveUp::Unanswered => "unanswered",
            GiveUp::NotLocated => "not_located",
        }
    }
}

/// What became of a batch that was given to [`Member::on_batch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Delivered, or held until it can be.
    Taken,
    /// All of it had come before.
    Repeated,
    /// The shard is another member's, or its numbers are beyond belief.
    NotOurs,
    /// There is no room to hold it; it will be asked for again.
    NoRoom,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    Nothing,
    Preparing,
    Owned(u64),
    Releasing(u64),
    Released(u64),
}

#[derive(Debug)]
struct Followed<B> {
    stream: Stream,
    heard: u64,
    /// When a batch or an announcement last came.
    heard_at: u64,
    ended: bool,
    /// By shard.
    positions: Vec<Position<B>>,
    asking: Asking,
}

impl<B> Followed<B> {
    /// Whether nothing of it is held or in hand.
    fn is_idle(&self) -> bool {
        self.positions.iter().all(|position| position.is_idle() && position.held.is_empty())
    }
}

/// The machine of one member.
#[derive(Debug)]
pub struct Member<B> {
    settings: MemberSettings,
    incarnation: u64,
    permit: Arc<Permit>,
    holds: [Hold; SHARDS],
    /// The generation of each shard that was had last and given up: it never comes back.
    given_up: [u64; SHARDS],
    streams: Vec<Followed<B>>,
    held_bytes: usize,
    outstanding_bytes: usize,
    /// Whoever is delivered to has enough for the moment.
    has_enough: bool,
    /// Counts calls, to tell which stream was heard of last.
    calls: u64,
    renewal: u64,
    renewals: VecDeque<(u64, u64)>,
    renewed_at: Option<u64>,
    renew_at: u64,
    /// The commits of the newest renewal.
    unacknowledged: Vec<StreamPositions>,
    coordinator: u64,
    granted: (u64, u64),
    /// When the newest renewal that was granted was sent.
    heard_at: Option<u64>,
    leaving_since: Option<u64>,
    left: bool,
    registration: u64,
    registered: u64,
    /// The newest registration that the coordinator has heard of.
    heard_registration: u64,
    register_by: u64,
    destinations: Vec<Destination>,
    requests: u64,
    protocol: u64,
    /// Since the last renewal.
    handled_bytes: usize,
    sweep_at: u64,
    outputs: VecDeque<MemberOutput<B>>,
    counters: MemberCounters,
}

impl<B> Member<B> {
    /// A member that nobody has heard of. `incarnation` is random.
    pub fn new(settings: MemberSettings, incarnation: u64, now: u64) -> Member<B> {
        Member {
            settings,
            incarnation,
            permit: Arc::new(Permit::new()),
            holds: [Hold::Nothing; SHARDS],
            given_up: [0; SHARDS],
            streams: Vec::new(),
            held_bytes: 0,
            outstanding_bytes: 0,
            has_enough: false,
            calls: 0,
            renewal: 0,
            renewals: VecDeque::new(),
            renewed_at: None,
            renew_at: now,
            unacknowledged: Vec::new(),
            coordinator: 0,
            granted: (0, 0),
            heard_at: None,
            leaving_since: None,
            left: false,
            registration: 0,
            registered: 0,
            heard_registration: 0,
            register_by: 0,
            destinations: Vec::new(),
            requests: 0,
            protocol: 0,
            handled_bytes: 0,
            sweep_at: now,
            outputs: VecDeque::new(),
            counters: MemberCounters::default(),
        }
    }

    /// What the sending threads ask.
    pub fn permit(&self) -> Arc<Permit> {
        Arc::clone(&self.permit)
    }

    /// Takes a message of the coordinator.
    pub fn on_message(&mut self, now: u64, frame: &[u8]) {
        match Message::decode(frame) {
            Ok(Message::Grant(grant)) if self.is_me(&grant.group, grant.incarnation) => self.on_grant(now, &grant),
            Ok(Message::Refused(Refused { group, incarnation, reason })) if self.is_me(&group, incarnation) => {
                // Whoever is not in the group has nothing to give back.
                self.left |= self.leaving_since.is_some() && self.owned().next().is_none();
                self.outputs.push_back(MemberOutput::Refused(reason));
            }
            Ok(Message::Repaired(repaired)) => self.on_repaired(now, repaired),
            Ok(Message::Done(done)) => self.on_done(now, &done),
            _ => self.counters.refused += 1,
        }
    }

    /// Does what is due.
    pub fn on_tick(&mut self, now: u64) {
        if now >= self.renew_at {
            self.renew(now);
        }
        self.ask(now);
    }

    /// When [`Member::on_tick`] has something to do.
    pub fn next_deadline(&self) -> u64 {
        self.ask_at().min(self.renew_at)
    }

    /// The next thing that the machine wants done. To be polled until there is none, before time goes on: a repaired batch that waits
    /// here would be asked for again.
    pub fn poll_output(&mut self) -> Option<MemberOutput<B>> {
        self.outputs.pop_front()
    }

    /// Takes a batch from the data plane, or a repaired one, that has been checked.
    pub fn on_batch(&mut self, now: u64, stream: &Stream, topic: Topic, arrival: Arrival<B>) -> Received {
        let hold = self.holds[topic.shard.index()];
        if topic.kind != self.settings.kind || !matches!(hold, Hold::Owned(_) | Hold::Preparing) {
            return Received::NotOurs;
        }
        if arrival.next() >= MAX_NUMBER {
            // The coordinator would not read a commit like that.
            self.counters.refused += 1;
            return Received::NotOurs;
        }
        let Some(index) = self.follow(now, stream) else { return Received::NoRoom };
        let position = &mut self.streams[index].positions[topic.shard.index()];
        if let Hold::Owned(generation) = hold
            && position.received != UNKNOWN
        {
            if arrival.next() <= position.received {
                return Received::Repeated;
            }
            if arrival.first <= position.received {
                self.deliver(index, topic, generation, arrival);
                self.deliver_held(index, topic, generation);
                return Received::Taken;
            }
        }
        self.hold(now, index, topic, hold, arrival)
    }

    /// Takes what a publisher says of its stream, in band.
    pub fn on_announcement(&mut self, now: u64, announcement: &Announcement) {
        let Ok(name) = Name::new(&announcement.stream_name) else { return };
        let Some(index) = self.follow(now, &Stream::new(&name, announcement.stream_epoch)) else { return };
        let followed = &mut self.streams[index];
        followed.ended |= announcement.ended;
        let mut needs = false;
        for position in &announcement.positions {
            if position.topic.kind == self.settings.kind && position.next_sequence < MAX_NUMBER {
                let known = &mut followed.positions[position.topic.shard.index()];
                known.announced = known.announced.max(position.next_sequence);
            }
        }
        for (hold, position) in self.holds.iter().zip(&mut followed.positions) {
            if matches!(hold, Hold::Owned(_)) {
                // A topic that is not listed has had no record: its first will be number 0.
                if position.received == UNKNOWN && position.announced == 0 && position.held.is_empty() {
                    position.received = 0;
                }
                needs |= position.received < position.announced || (position.received == UNKNOWN);
            }
        }
        if needs {
            followed.asking.begin(now);
        }
    }

    /// Everything of the delivery that began at `first_sequence` is done with: for every destination each record was given to the
    /// kernel, synced, or counted as dropped.
    pub fn handled(&mut self, now: u64, stream: &Stream, shard: Shard, generation: u64, first_sequence: u64) {
        let hold = self.holds[shard.index()];
        let ours = matches!(hold, Hold::Owned(g) | Hold::Releasing(g) | Hold::Released(g) if g == generation);
        let Some(index) = self.find(stream).filter(|_| ours) else { return };
        let bytes = self.streams[index].positions[shard.index()].handle(first_sequence);
        self.outstanding_bytes -= bytes;
        self.handled_bytes += bytes;
        if self.handled_bytes >= RENEW_AFTER_BYTES {
            let soonest = self.renewed_at.map_or(now, |at| now.max(at + RENEW_FOR_BYTES_SOONEST));
            self.renew_at = self.renew_at.min(soonest);
        }
        if let Hold::Releasing(generation) = hold {
            self.release_if_idle(now, shard, generation);
        }
    }

    /// Whether whoever is delivered to has enough for the moment, so that nothing is to be asked for again.
    pub fn set_has_enough(&mut self, has_enough: bool) {
        self.has_enough = has_enough;
    }

    /// Replaces the destinations that publishers have to know.
    pub fn set_destinations(&mut self, now: u64, destinations: Vec<Destination>) {
        self.registration += 1;
        self.destinations = destinations;
        self.destinations.truncate(wire::MAX_DESTINATIONS);
        self.register_by = now + REGISTER_WITHIN;
        self.renew_soon(now);
    }

    /// Whether the newest destinations may be sent to: every publisher knows them, or has had the time.
    pub fn may_use_destinations(&self, now: u64) -> bool {
        self.registered == self.registration || now >= self.register_by
    }

    /// Gives all shards back, and then the membership.
    pub fn leave(&mut self, now: u64) {
        if self.leaving_since.is_none() {
            self.leaving_since = Some(self.renewal + 1);
            self.renew_soon(now);
        }
    }

    /// Whether the coordinator has taken all shards back.
    pub fn has_left(&self) -> bool {
        self.left
    }

    /// The shards that it acts on, or would with a lease.
    pub fn owned(&self) -> impl Iterator<Item = (Shard, u64)> {
        self.holds.iter().enumerate().filter_map(|(index, hold)| match hold {
            Hold::Owned(generation) | Hold::Releasing(generation) => Some((Shard::new(index as u8)?, *generation)),
            _ => None,
        })
    }

    /// Whether it acts on every shard, or would with a lease.
    pub fn owns_all(&self) -> bool {
        self.holds.iter().all(|hold| matches!(hold, Hold::Owned(_)))
    }

    /// When the lease ends, ns.
    pub fn lease_until(&self) -> u64 {
        self.permit.until()
    }

    /// Bytes that are held behind holes.
    pub fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    fn is_me(&self, group: &Name, incarnation: u64) -> bool {
        *group == self.settings.group && incarnation == self.incarnation
    }

    fn topic(&self, shard: usize) -> Topic {
        Topic::from_index(self.settings.kind.index() * SHARDS + shard).expect("a shard is below the number of shards")
    }

    fn renew_soon(&mut self, now: u64) {
        let soonest = self.renewed_at.map_or(now, |at| now.max(at + RENEW_SOONEST));
        self.renew_at = self.renew_at.min(soonest);
    }

    fn renew(&mut self, now: u64) {
        self.renewal += 1;
        self.counters.renewals += 1;
        (self.renewed_at, self.renew_at, self.handled_bytes) = (Some(now), now + RENEW_EVERY, 0);
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            self.forget_streams(now);
        }
        if self.renewals.len() == RENEWALS {
            self.renewals.pop_front();
        }
        self.renewals.push_back((self.renewal, now));
        if self.renewal.is_multiple_of(TELL_ALL_EVERY) {
            self.forget_acknowledgements(now.saturating_sub(TELL_WHILE_HEARD));
        }
        self.unacknowledged = self.commits();
        let holding = |(index, hold): (usize, &Hold)| {
            let (generation, phase) = match *hold {
                Hold::Nothing => return None,
                Hold::Preparing => (0, Phase::Prepared),
                Hold::Owned(generation) | Hold::Releasing(generation) => (generation, Phase::Owned),
                Hold::Released(generation) => (generation, Phase::Released),
            };
            Some(Holding { shard: Shard::new(index as u8)?, generation: Number(generation), phase })
        };
        let renew = Renew {
            group: self.settings.group.clone(),
            kind: self.settings.kind,
            incarnation: self.incarnation,
            label: self.settings.label.clone(),
            renewal: self.renewal,
            lowest_protocol: self.settings.protocols.0,
            highest_protocol: self.settings.protocols.1,
            leaving: self.leaving_since.is_some(),
            coordinator: self.coordinator,
            holdings: self.holds.iter().enumerate().filter_map(holding).collect(),
            commits: self.unacknowledged.clone(),
            one_works: self.settings.one_works,
        };
        self.send(renew);
        if self.heard_registration < self.registration {
            let (group, destinations) = (self.settings.group.clone(), self.destinations.clone());
            let (incarnation, registration) = (self.incarnation, self.registration);
            self.send(Register { group, incarnation, registration, destinations });
        }
    }

    /// Commits that the coordinator has not acknowledged, and all of shards that are released.
    fn commits(&self) -> Vec<StreamPositions> {
        let mut commits = Vec::new();
        for followed in &self.streams {
            let mut positions = Vec::new();
            for (shard, (hold, position)) in self.holds.iter().zip(&followed.positions).enumerate() {
                let sequence = self.commit(position);
                let wanted = match hold {
                    Hold::Owned(_) | Hold::Releasing(_) => sequence != position.acknowledged,
                    Hold::Released(_) => true,
                    Hold::Nothing | Hold::Preparing => false,
                };
                if wanted && sequence != UNKNOWN {
                    positions.push(wire::Position { topic: self.topic(shard), sequence: Number(sequence) });
                }
            }
            if !positions.is_empty() {
                commits.push(StreamPositions { stream: followed.stream.clone(), positions });
            }
        }
        commits
    }

    fn commit(&self, position: &Position<B>) -> u64 {
        #[cfg(test)]
        if self.settings.mutant == Some(crate::simulation::Mutant::CommitBeforeSend) {
            return position.received;
        }
        position.handled()
    }

    fn on_grant(&mut self, now: u64, grant: &Grant) {
        let another = grant.coordinator != self.coordinator;
        if grant.renewal < self.granted.0 || (!another && grant.number <= self.granted.1) {
            return;
        }
        self.granted = (grant.renewal, grant.number);
        if another {
            self.coordinator = grant.coordinator;
            self.registered = 0;
            self.forget_acknowledgements(0);
            // What ran out before the new coordinator answered, the old one may have given away without its knowledge.
            if now >= self.permit.until()
                && self.holds.iter().any(|hold| matches!(hold, Hold::Owned(_) | Hold::Releasing(_)))
            {
                self.drop_all();
                return self.renew_soon(now);
            }
        }
        self.protocol = grant.protocol;
        // A coordinator that has forgotten this member has forgotten where it sends to.
        self.heard_registration = grant.heard_registration;
        self.registered = self.registered.max(grant.registration.min(self.registration));
        if grant.renewal == self.renewal {
            self.acknowledge();
        }
        let mut assigned = [None; SHARDS];
        for assignment in &grant.assignments {
            assigned[assignment.shard.index()] = Some((assignment.role, assignment.generation.0));
        }
        for (shard, assignment) in assigned.into_iter().enumerate() {
            self.apply(now, shard, assignment, grant);
        }
        let sent_at = self.renewals.iter().find(|(renewal, _)| *renewal == grant.renewal).map(|&(_, at)| at);
        if let Some(sent_at) = sent_at {
            if another || self.heard_at.is_some_and(|heard_at| sent_at > heard_at + 2 * RENEW_EVERY) {
                self.streams.iter_mut().for_each(|followed| followed.asking.was_deaf(now));
            }
            self.heard_at = self.heard_at.max(Some(sent_at));
            self.permit.extend(self.lease_from(now, sent_at) + LEASE);
        }
        self.left |= self.leaving_since.is_some_and(|since| grant.renewal >= since) && grant.assignments.is_empty();
    }

    fn lease_from(&self, _now: u64, sent_at: u64) -> u64 {
        #[cfg(test)]
        if self.settings.mutant == Some(crate::simulation::Mutant::LeaseFromArrival) {
            return _now;
        }
        sent_at
    }

    /// The coordinator is to hear of every commit again, in the streams that have been heard of since then.
    fn forget_acknowledgements(&mut self, heard_since: u64) {
        let streams = self.streams.iter_mut().filter(|followed| followed.heard_at >= heard_since);
        let positions = streams.flat_map(|followed| &mut followed.positions);
        positions.for_each(|position| position.acknowledged = UNKNOWN);
    }

    fn acknowledge(&mut self) {
        for commit in std::mem::take(&mut self.unacknowledged) {
            let Some(index) = self.find(&commit.stream) else { continue };
            for position in commit.positions {
                self.streams[index].positions[position.topic.shard.index()].acknowledged = position.sequence.0;
            }
        }
    }

    fn apply(&mut self, now: u64, shard: usize, assignment: Option<(Role, u64)>, grant: &Grant) {
        let hold = self.holds[shard];
        match (hold, assignment) {
            (Hold::Nothing, None) => {}
            (Hold::Owned(own), Some((Role::Own, granted))) if own == granted => {}
            (Hold::Owned(own), Some((Role::Release, granted))) if own == granted => self.begin_release(now, shard, own),
            (Hold::Releasing(own) | Hold::Released(own), Some((Role::Own | Role::Release, granted)))
                if own == granted =>
            {
                self.renew_if_released(now, hold);
            }
            (Hold::Preparing, Some((Role::Prepare, _))) => {}
            (_, None) => self.forget(shard),
            (_, Some((Role::Own, generation))) if generation != self.given_up[shard] => {
                self.own(now, shard, generation, grant)
            }
            (_, Some((Role::Prepare, _))) => {
                self.forget(shard);
                self.holds[shard] = Hold::Preparing;
                self.outputs.push_back(MemberOutput::Subscribe(self.topic(shard)));
                self.renew_soon(now);
            }
            // What it is to release it does not have, or no longer: it says so.
            (_, Some((Role::Own | Role::Release, generation))) => {
                self.forget(shard);
                self.holds[shard] = Hold::Released(generation);
                self.renew_soon(now);
            }
        }
    }

    /// The coordinator has not heard of the release yet, or its grant was on the way: the next renewal says it again.
    fn renew_if_released(&mut self, now: u64, hold: Hold) {
        if matches!(hold, Hold::Released(_)) {
            let at = self.renewed_at.unwrap_or(now) + 50 * MILLISECOND;
            self.renew_at = self.renew_at.min(at.max(now));
        }
    }

    fn own(&mut self, now: u64, shard: usize, generation: u64, grant: &Grant) {
        let topic = self.topic(shard);
        if self.holds[shard] != Hold::Preparing {
            self.forget(shard);
            self.outputs.push_back(MemberOutput::Subscribe(topic));
        }
        self.holds[shard] = Hold::Owned(generation);
        self.permit.set(topic.shard, generation);
        for start in &grant.starts {
            let Some(index) = self.follow(now, &start.stream) else { continue };
            for place in start.starts.iter().filter(|place| place.topic == topic) {
                let position = &mut self.streams[index].positions[shard];
                // What the publisher had before it fell silent is missed even if it never says so again.
                position.announced = position.announced.max(place.next.0);
                (position.received, position.acknowledged) = (place.sequence.0, place.sequence.0);
            }
        }
        for index in 0..self.streams.len() {
            self.deliver_held(index, topic, generation);
            let position = &self.streams[index].positions[shard];
            if position.received == UNKNOWN || position.has_hole() {
                self.streams[index].asking.begin(now);
            }
        }
        self.renew_soon(now);
    }

    fn begin_release(&mut self, now: u64, shard: usize, generation: u64) {
        let topic = self.topic(shard);
        self.holds[shard] = Hold::Releasing(generation);
        self.clear_held(shard);
        self.outputs.push_back(MemberOutput::Unsubscribe(topic));
        self.release_if_idle(now, topic.shard, generation);
    }

    fn release_if_idle(&mut self, now: u64, shard: Shard, generation: u64) {
        if self.streams.iter().all(|followed| followed.positions[shard.index()].is_idle()) {
            self.permit.set(shard, 0);
            self.holds[shard.index()] = Hold::Released(generation);
            self.renew_soon(now);
        }
    }

    /// Stops at once whatever it does, and says so with the next renewal.
    fn drop_all(&mut self) {
        for shard in 0..SHARDS {
            let topic = self.topic(shard);
            match self.holds[shard] {
                Hold::Owned(generation) | Hold::Releasing(generation) => {
                    if matches!(self.holds[shard], Hold::Owned(_)) {
                        self.outputs.push_back(MemberOutput::Unsubscribe(topic));
                    }
                    self.permit.set(topic.shard, 0);
                    self.clear_held(shard);
                    self.holds[shard] = Hold::Released(generation);
                }
                Hold::Preparing => self.forget(shard),
                Hold::Nothing | Hold::Released(_) => {}
            }
        }
    }

    /// Knows nothing of the shard any more.
    fn forget(&mut self, shard: usize) {
        let topic = self.topic(shard);
        self.permit.set(topic.shard, 0);
        if let Hold::Owned(generation) | Hold::Releasing(generation) | Hold::Released(generation) = self.holds[shard] {
            self.given_up[shard] = generation;
        }
        if matches!(self.holds[shard], Hold::Owned(_) | Hold::Preparing) {
            self.outputs.push_back(MemberOutput::Unsubscribe(topic));
        }
        self.holds[shard] = Hold::Nothing;
        self.clear_held(shard);
        for followed in &mut self.streams {
            let announced = followed.positions[shard].announced;
            self.outstanding_bytes -= followed.positions[shard].outstanding_bytes();
            followed.positions[shard] = Position { announced, ..Position::default() };
        }
    }

    fn clear_held(&mut self, shard: usize) {
        for followed in &mut self.streams {
            let position = &mut followed.positions[shard];
            self.held_bytes -= position.held_bytes;
            position.held.clear();
            position.held_bytes = 0;
        }
    }

    fn deliver(&mut self, index: usize, topic: Topic, generation: u64, arrival: Arrival<B>) {
        let followed = &mut self.streams[index];
        let position = &mut followed.positions[topic.shard.index()];
        let first_sequence = position.received;
        position.deliver(&arrival);
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

    fn deliver_held(&mut self, index: usize, topic: Topic, generation: u64) {
        loop {
            let position = &mut self.streams[index].positions[topic.shard.index()];
            if position.received == UNKNOWN {
                return;
            }
            let before = position.held_bytes;
            let ready = position.ready();
            self.held_bytes -= before - position.held_bytes;
            let Some(arrival) = ready else { return };
            self.deliver(index, topic, generation, arrival);
        }
    }

    fn hold(&mut self, now: u64, index: usize, topic: Topic, hold: Hold, arrival: Arrival<B>) -> Received {
        let followed = &mut self.streams[index];
        let position = &mut followed.positions[topic.shard.index()];
        let (before, bytes) = (position.held_bytes, arrival.bytes);
        if hold == Hold::Preparing {
            // The start will be near the end: what is older can be asked for.
            while position.held_bytes + bytes > self.settings.held_bytes_per_topic && position.unhold_first().is_some()
            {
            }
        } else {
            followed.asking.begin(now);
        }
        let in_all = self.held_bytes - (before - position.held_bytes) + bytes;
        let fits =
            position.held_bytes + bytes <= self.settings.held_bytes_per_topic && in_all <= self.settings.held_bytes;
        // That it was published is known in any case.
        position.announced = position.announced.max(arrival.next());
        if fits {
            position.hold(arrival);
        }
        self.held_bytes = self.held_bytes - before + position.held_bytes;
        if fits { Received::Taken } else { Received::NoRoom }
    }

    fn find(&self, stream: &Stream) -> Option<usize> {
        self.streams
            .iter()
            .position(|followed| followed.stream.epoch == stream.epoch && followed.stream.name == stream.name)
    }

    /// The stream's place. One more than the most that are followed takes the place of one that has ended, or else of the one
    /// unheard of for longest, if it has nothing in hand.
    fn follow(&mut self, now: u64, stream: &Stream) -> Option<usize> {
        self.calls += 1;
        let known = self.find(stream);
        if let Some(index) = known {
            (self.streams[index].heard, self.streams[index].heard_at) = (self.calls, now);
            return known;
        }
        if self.streams.len() >= MAX_STREAMS {
            let candidates = self.streams.iter().enumerate().filter(|(_, followed)| followed.is_idle());
            let (oldest, _) = candidates.min_by_key(|(_, followed)| (!followed.ended, followed.heard))?;
            self.streams.swap_remove(oldest);
        }
        self.streams.push(Followed {
            stream: stream.clone(),
            heard: self.calls,
            heard_at: now,
            ended: false,
            positions: (0..SHARDS).map(|_| Position::default()).collect(),
            asking: Asking::default(),
        });
        Some(self.streams.len() - 1)
    }

    /// Forgets streams that are over: of which nothing has come for long, and nothing is missing or in hand.
    fn forget_streams(&mut self, now: u64) {
        let holds = &self.holds;
        let is_whole = |followed: &Followed<B>| {
            let mut owned = holds.iter().zip(&followed.positions).filter(|(hold, _)| matches!(hold, Hold::Owned(_)));
            followed.is_idle() && owned.all(|(_, position)| !position.has_hole())
        };
        self.streams.retain(|followed| {
            let limit = if followed.ended { FOLLOW_ENDED } else { FOLLOW_SILENT };
            now < followed.heard_at.saturating_add(limit) || followed.asking.is_open() || !is_whole(followed)
        });
    }

    fn send(&mut self, message: impl Into<Message>) {
        self.outputs.push_back(MemberOutput::Send(message.into().encode()));
    }
}
