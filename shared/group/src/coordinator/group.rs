//! One group: its members, and which of them holds which shard. Its commits are in `positions`.
//!
//! ```text
//! shard:   free ──────── granted to its planned owner ──────▶ held by M, generation + 1
//!            ▲                                                  │  another owner is planned, and is prepared
//!            │  released                                        ▼
//!            └───────────────────────────────────────────── release ordered
//!            ▲  the lease of M has expired                      │
//!            └──────────────────────────────────────────────────┘
//! ```
//!
//! In a group with a single active member the shards move together: the next owner is prepared for
//! all of them before the first release is ordered, and gets none of them before the last one is
//! released.
//!
//! **Invariant:** a shard has at most one holder, and the generation of its grants only rises.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use sekiwake_record::{Kind, Name, SHARDS, Shard, Topic};

use super::{
    agreement::Agreement,
    assignment::{Incarnation, assign_all, assign_evenly},
    doubts::Doubts,
    positions::{Positions, Speaker},
};
use crate::{
    BootTime, LEASE, LEASE_MARGIN, MAX_NUMBER, Peer, Stream,
    coverage::{Age, Coverage},
    mutants::Mutants,
    wire::{
        Assignment, Covered, Destination, Doubt, GroupCoverage, Holding, MAX_COVERED_RANGES, Number, Phase, Renew,
        Role, Start, StreamCoverage, StreamStarts,
    },
};

/// The largest generation that is accepted from a member. It leaves as many for later grants.
const MAX_GENERATION: u64 = MAX_NUMBER / 2;

pub(super) struct Group {
    pub(super) kind: Kind,
    pub(super) members: BTreeMap<Incarnation, Member>,
    pub(super) shards: [Slot; SHARDS],
    pub(super) positions: Positions,
    /// What members may have handled that are not here.
    pub(super) doubts: Doubts,
    /// Since when it has no members.
    pub(super) empty_since: Option<BootTime>,
    /// For how long it has existed, as far as any party knows.
    pub(super) age: Age,
    /// Until then its first grants wait for members that return later than the first one: they may
    /// still hold shards, and know what was handled.
    pub(super) waits_until: Option<BootTime>,
    pub(super) next_generation: u64,
    /// Whether the members have the same destinations.
    pub(super) agreement: Agreement,
    /// By shard: the owner that it should have.
    planned: [Option<Incarnation>; SHARDS],
    /// The plan must be recomputed.
    needs_plan: bool,
    mutants: Mutants,
}

/// The parts of a renewal that are not accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RejectedParts {
    pub(super) holdings: u64,
    pub(super) commits: u64,
}

/// What a member is granted.
pub(super) struct Granted {
    pub(super) assignments: Vec<Assignment>,
    pub(super) starts: Vec<StreamStarts>,
    pub(super) coverage: Vec<StreamCoverage>,
    pub(super) doubts: Vec<Doubt>,
}

/// A shard, as the coordinator sees it.
#[derive(Clone, Copy, Default)]
pub(super) struct Slot {
    pub(super) holder: Option<Incarnation>,
    /// The generation of the newest grant.
    pub(super) generation: u64,
    pub(super) release_ordered: bool,
    /// The holder has stopped.
    released: bool,
    /// The holder has reported the shard, so it knows where to start.
    confirmed: bool,
    /// A former holder may act until then: another member has shown a newer generation, and the
    /// former one may not know.
    not_before: BootTime,
}

pub(super) struct Member {
    pub(super) peer: Peer,
    pub(super) label: Name,
    pub(super) renewal: u64,
    pub(super) lease_until: BootTime,
    /// When its run began to renew, if this coordinator is its first one.
    pub(super) began_at: Option<BootTime>,
    pub(super) leaving: bool,
    /// The lowest and the highest protocol that it speaks.
    pub(super) protocols: (u64, u64),
    pub(super) registration: u64,
    pub(super) destinations: Vec<Destination>,
    /// The version of the list of destinations that has this registration; 0 until there is one.
    pub(super) listed_version: u64,
    /// The newest registration that was acknowledged to the member.
    pub(super) acknowledged_registration: u64,
    /// The hash of its destinations; 0 for none.
    pub(super) destinations_digest: u64,
    /// The shards that it is prepared for, one bit each.
    prepared: u64,
    /// The shards that it had under another coordinator, until it has reported what it knew.
    claims: u64,
    /// It requests that one member of the group has all shards.
    single_active: bool,
    /// A grant must be sent to it.
    pub(super) needs_grant: bool,
}

impl Member {
    pub(super) fn new(now: BootTime, peer: Peer, renew: &Renew) -> Member {
        Member {
            peer,
            label: renew.label.clone(),
            renewal: 0,
            lease_until: BootTime::ZERO,
            began_at: (renew.coordinator == 0).then_some(now),
            leaving: renew.leaving,
            protocols: (renew.lowest_protocol, renew.highest_protocol),
            registration: 0,
            destinations: Vec::new(),
            listed_version: 0,
            acknowledged_registration: 0,
            destinations_digest: 0,
            prepared: 0,
            claims: 0,
            single_active: renew.single_active,
            needs_grant: false,
        }
    }
}

impl Group {
    pub(super) fn new(kind: Kind, mutants: Mutants, now: BootTime) -> Group {
        Group {
            kind,
            members: BTreeMap::new(),
            shards: [Slot::default(); SHARDS],
            positions: Positions::new(mutants),
            doubts: Doubts::new(mutants, now),
            empty_since: Some(now),
            age: Age::new(now),
            waits_until: None,
            next_generation: 1,
            agreement: Agreement::default(),
            planned: [None; SHARDS],
            needs_plan: true,
            mutants,
        }
    }

    /// The group's protocol: the lowest of its members' highest; `None` without members.
    pub(super) fn protocol(&self) -> Option<u64> {
        self.members.values().map(|member| member.protocols.1).min()
    }

    /// Whether all members and a new one with these protocols have one in common.
    pub(super) fn speaks(&self, lowest: u64, highest: u64) -> bool {
        let common = self.protocol().map_or(highest, |protocol| protocol.min(highest));
        lowest <= common && self.members.values().all(|member| member.protocols.0 <= common)
    }

    /// Whether nothing needs to be remembered of it.
    pub(super) fn is_unused(&self) -> bool {
        self.members.is_empty() && self.positions.is_empty() && !self.doubts.any()
    }

    /// Adds a member. `returns`: it was in the group before.
    pub(super) fn join(&mut self, now: BootTime, incarnation: Incarnation, member: Member, returns: bool) {
        if self.members.is_empty() && returns && !self.mutants.settles_by_its_clock() {
            self.waits_until = Some(now + LEASE + LEASE_MARGIN);
        }
        if let Some(began_at) = member.began_at {
            self.doubts.restart(began_at, &member.label);
        }
        self.members.insert(incarnation, member);
        self.empty_since = None;
        self.needs_plan = true;
    }

    pub(super) fn remove(&mut self, now: BootTime, incarnation: Incarnation) {
        self.doubts.add(now, now, self.held_by(incarnation), incarnation, &self.members);
        self.members.remove(&incarnation);
        self.needs_plan = true;
        self.shards.iter_mut().filter(|slot| slot.holder == Some(incarnation)).for_each(Slot::free);
        if self.members.is_empty() {
            self.empty_since = Some(now);
        }
        self.compare_destinations(now);
    }

    fn compare_destinations(&mut self, now: BootTime) {
        self.agreement.compare(now, self.members.values().map(|member| member.destinations_digest));
    }

    /// The labels of members whose destinations have differed from this member's for long enough
    /// to be reported.
    pub(super) fn differing_from(&self, now: BootTime, me: Incarnation) -> Vec<Name> {
        let own = self.members.get(&me).map_or(0, |member| member.destinations_digest);
        let members = self.members.values().map(|member| (member.destinations_digest, &member.label));
        self.agreement.others(now, own, members)
    }

    /// Takes the holdings and commits of a renewal. Returns what is not accepted. `epoch` is the
    /// coordinator's own.
    pub(super) fn on_renewal(
        &mut self,
        now: BootTime,
        grace_period_over: bool,
        epoch: u64,
        renew: &Renew,
    ) -> RejectedParts {
        let me = renew.incarnation;
        if let Some(member) = self.members.get_mut(&me) {
            self.needs_plan |= member.leaving != renew.leaving || member.single_active != renew.single_active;
            member.leaving = renew.leaving;
            member.single_active = renew.single_active;
            member.prepared = 0;
            if std::mem::replace(&mut member.destinations_digest, renew.destinations_digest)
                != renew.destinations_digest
            {
                self.compare_destinations(now);
            }
        }
        let mut rejected = RejectedParts::default();
        // With a single active member, no member gets shards back while another holds one.
        let others_hold = self.shards.iter().any(|slot| slot.holder.is_some_and(|holder| holder != me));
        let may_take_back = !(others_hold && self.single_active());
        self.age.learn(now, renew.age_ns);
        for holding in &renew.holdings {
            if holding.generation.0 > MAX_GENERATION {
                rejected.holdings += 1;
                continue;
            }
            // A generation that any member has had is never granted again.
            self.next_generation = self.next_generation.max(holding.generation.0 + 1).min(MAX_NUMBER - 1);
            match holding.phase {
                Phase::Prepared => {
                    if let Some(member) = self.members.get_mut(&me) {
                        member.prepared |= 1 << holding.shard.index();
                    }
                }
                Phase::Owned => self.on_owned(now, me, grace_period_over, may_take_back, holding),
                Phase::Released => self.on_released(me, grace_period_over, holding),
            }
        }
        self.on_commits(now, renew, &mut rejected);
        self.on_witness(now, epoch, renew);
        rejected
    }

    /// Ends doubts about what the member had handled before it met this coordinator, or lost a
    /// shard. Only a renewal that follows a grant of this coordinator reports all of it.
    fn on_witness(&mut self, now: BootTime, epoch: u64, renew: &Renew) {
        let me = renew.incarnation;
        let shards = |is_it: &dyn Fn(&Holding) -> bool| {
            let holdings = renew.holdings.iter().filter(|holding| is_it(holding));
            holdings.fold(0, |shards, holding| shards | 1_u64 << holding.shard.index())
        };
        let Some(member) = self.members.get_mut(&me) else { return };
        if renew.coordinator != epoch {
            if renew.coordinator != 0 {
                let had = shards(&|holding| holding.phase != Phase::Prepared);
                member.claims |= had;
                self.doubts.import(now, &renew.doubts, had);
            }
            return;
        }
        let claims = std::mem::take(&mut member.claims);
        if claims != 0 {
            self.doubts.claim(claims, now - Duration::from_nanos(renew.former_lease_age_ns));
        }
        let slots = &self.shards;
        let acts_on = |holding: &Holding| {
            let slot = &slots[holding.shard.index()];
            holding.phase == Phase::Owned && (slot.holder, slot.generation) != (Some(me), holding.generation.0)
        };
        self.doubts.close(me, !shards(&acts_on));
    }

    /// A member reports that it owns a shard.
    fn on_owned(
        &mut self,
        now: BootTime,
        me: Incarnation,
        grace_period_over: bool,
        may_take_back: bool,
        holding: &Holding,
    ) {
        let generation = holding.generation.0;
        let slot = &mut self.shards[holding.shard.index()];
        if slot.holder == Some(me) && slot.generation == generation {
            slot.confirmed = true;
        } else if slot.generation == generation && generation > 0 && slot.holder.is_none() && may_take_back {
            // Its lease had expired, and no other member has had the shard since.
            slot.take_confirmed(me, generation);
            self.needs_plan = true;
        } else if !grace_period_over && generation > slot.generation {
            // This coordinator is new and learns the holders. The newest generation wins. A member
            // with an older one may act until its lease expires, because it does not know yet.
            let loser = slot.holder.and_then(|loser| self.members.get_mut(&loser));
            self.positions.change_owner(holding.shard, loser.as_ref().map(|loser| &loser.label));
            if let Some(loser) = loser {
                loser.needs_grant = true;
                slot.not_before = slot.not_before.max(loser.lease_until);
                let (loser, over_at) = (slot.holder.unwrap_or(me), slot.not_before);
                self.doubts.add(now, over_at, 1 << holding.shard.index(), loser, &self.members);
            }
            slot.take_confirmed(me, generation);
            self.needs_plan = true;
        }
    }

    /// A member says that it has stopped, and will not start again in this generation.
    fn on_released(&mut self, me: Incarnation, grace_period_over: bool, holding: &Holding) {
        let generation = holding.generation.0;
        let slot = &mut self.shards[holding.shard.index()];
        if slot.holder == Some(me) && slot.generation == generation {
            slot.confirmed = true;
            slot.released = true;
            return;
        }
        if !grace_period_over && slot.holder.is_none() {
            slot.generation = slot.generation.max(generation);
        }
    }

    /// Takes what the member says was handled, also of shards that it no longer holds.
    fn on_commits(&mut self, now: BootTime, renew: &Renew, rejected: &mut RejectedParts) {
        let mut listed = BTreeSet::new();
        for StreamCoverage { stream, covered } in &renew.coverage {
            for covered in covered {
                listed.insert((stream, covered.topic));
                self.on_commit(now, renew, stream, covered.topic, &covered.coverage(), rejected);
            }
        }
        for commit in &renew.commits {
            for position in &commit.positions {
                if !listed.contains(&(&commit.stream, position.topic)) {
                    let covered = Coverage::up_to(position.sequence.0);
                    self.on_commit(now, renew, &commit.stream, position.topic, &covered, rejected);
                }
            }
        }
    }

    fn on_commit(
        &mut self,
        now: BootTime,
        renew: &Renew,
        stream: &Stream,
        topic: Topic,
        covered: &Coverage,
        rejected: &mut RejectedParts,
    ) {
        let holder = self.shards[topic.shard.index()].holder;
        let is_holder = holder == Some(renew.incarnation);
        if topic.kind != self.kind || (self.mutants.refuses_late_positions() && !is_holder) {
            rejected.commits += 1;
            return;
        }
        let speaker = if is_holder { Speaker::Owner(&renew.label) } else { Speaker::Member(&renew.label) };
        match self.positions.merge(now, stream, topic.shard, covered, speaker) {
            None => rejected.commits += 1,
            Some(true) => self.tell_owner(topic.shard),
            Some(false) => {}
        }
    }

    /// Takes what a publisher remembers of the group. Returns how much there is no room for.
    pub(super) fn on_presented(&mut self, now: BootTime, stream: &Stream, known: &GroupCoverage) -> u64 {
        let mut rejected = 0;
        self.age.learn(now, known.age_ns);
        self.doubts.inherit(now);
        for covered in &known.covered {
            let shard = covered.topic.shard;
            let is_ours = covered.topic.kind == self.kind;
            let merged =
                is_ours.then(|| self.positions.merge(now, stream, shard, &covered.coverage(), Speaker::Publisher));
            match merged.flatten() {
                None => rejected += 1,
                Some(true) => self.tell_owner(shard),
                Some(false) => {}
            }
        }
        rejected
    }

    fn tell_owner(&mut self, shard: Shard) {
        if let Some(holder) = self.shards[shard.index()].holder {
            self.mark_for_grant(holder);
        }
    }

    /// Frees shards, orders releases and grants shards, where that is possible now. Members whose
    /// grant changes are marked.
    pub(super) fn reassign(&mut self, now: BootTime, grace_period_over: bool) {
        self.free_released();
        // Before the grace period is over, a lease of the last coordinator may still run.
        if !grace_period_over || self.waits_until.is_some_and(|until| now < until) {
            return;
        }
        self.waits_until = None;
        if std::mem::take(&mut self.needs_plan) {
            self.plan();
        }
        let single_active = self.single_active();
        let all_prepared = (0..SHARDS).all(|index| self.is_prepared(index));
        let others_stopped = self.others_have_stopped(now);
        for index in 0..SHARDS {
            let is_prepared = if single_active { all_prepared } else { self.is_prepared(index) };
            let planned = self.planned[index];
            let slot = &mut self.shards[index];
            if self.mutants.does_not_hold_back() && slot.holder.is_some() && slot.holder != planned {
                slot.free();
            }
            match (slot.holder, planned) {
                (Some(holder), planned) if planned != Some(holder) && is_prepared && !slot.release_ordered => {
                    slot.release_ordered = true;
                    self.mark_for_grant(holder);
                }
                (None, Some(planned)) if others_stopped && now >= slot.not_before => {
                    let generation = self.next_generation;
                    self.next_generation = (generation + 1).min(MAX_NUMBER - 1);
                    slot.take(planned, generation);
                    self.mark_for_grant(planned);
                }
                _ => {}
            }
        }
    }

    fn free_released(&mut self) {
        for slot in &mut self.shards {
            if slot.released {
                if let Some(member) = slot.holder.and_then(|holder| self.members.get_mut(&holder)) {
                    member.needs_grant = true;
                }
                slot.free();
            }
        }
    }

    /// Decides which member should have which shard.
    fn plan(&mut self) {
        let is_staying =
            |incarnation: &Incarnation| self.members.get(incarnation).is_some_and(|member| !member.leaving);
        let mut preferred = [None; SHARDS];
        for (index, preferred) in preferred.iter_mut().enumerate() {
            *preferred = self.planned[index].filter(is_staying).or(self.shards[index].holder.filter(is_staying));
        }
        let staying: Vec<Incarnation> = self.members.keys().copied().filter(is_staying).collect();
        let distributes = !self.single_active() || self.mutants.distributes_single_active();
        self.planned = if distributes { assign_evenly(&preferred, &staying) } else { assign_all(&preferred, &staying) };
        self.members.values_mut().for_each(|member| member.needs_grant = true);
    }

    /// Whether one member must have all shards. The request of one member is enough.
    fn single_active(&self) -> bool {
        self.members.values().any(|member| member.single_active)
    }

    /// Whether the planned owner has the shard, or is prepared for it.
    fn is_prepared(&self, index: usize) -> bool {
        self.planned[index].is_none_or(|planned| {
            self.shards[index].holder == Some(planned) || self.members[&planned].prepared & (1 << index) != 0
        })
    }

    /// With a single active member: whether no other member may act on any shard. Otherwise shards
    /// are independent of each other.
    fn others_have_stopped(&self, now: BootTime) -> bool {
        if !self.single_active() || self.mutants.moves_shard_by_shard() {
            return true;
        }
        let mut slots = self.shards.iter().zip(&self.planned);
        slots.all(|(slot, planned)| now >= slot.not_before && (slot.holder.is_none() || slot.holder == *planned))
    }

    /// The member that has a shard, or is the next one to have it.
    pub(super) fn next_owner(&self, index: usize) -> Option<Incarnation> {
        self.planned[index].filter(|planned| self.members.contains_key(planned)).or(self.shards[index].holder)
    }

    /// When a free shard may be granted that has to wait for a former holder.
    pub(super) fn next_grant(&self) -> Option<BootTime> {
        let slots = self.shards.iter().zip(&self.planned);
        let mut waiting = slots.filter(|(slot, planned)| slot.holder.is_none() && planned.is_some());
        if self.single_active() {
            let last = self.shards.iter().map(|slot| slot.not_before).max().unwrap_or_default();
            let is_waiting = waiting.next().is_some();
            return (last > BootTime::ZERO && is_waiting && self.others_have_stopped(last)).then_some(last);
        }
        waiting.map(|(slot, _)| slot.not_before).filter(|&not_before| not_before > BootTime::ZERO).min()
    }

    fn mark_for_grant(&mut self, incarnation: Incarnation) {
        if let Some(member) = self.members.get_mut(&incarnation) {
            member.needs_grant = true;
        }
    }

    /// Whether a member gets nothing, not even a shard to prepare for.
    pub(super) fn grants_nothing(&self, me: Incarnation) -> bool {
        let mut slots = self.shards.iter().zip(&self.planned);
        !slots.any(|(slot, planned)| slot.holder == Some(me) || (*planned == Some(me) && slot.holder.is_some()))
    }

    /// A member's assignments, and what was handled of the shards that it has not reported yet, or
    /// of which somebody knows more than it has reported. `next` is a stream's next sequence
    /// number, and whether its publisher is live.
    pub(super) fn grant(
        &self,
        now: BootTime,
        me: Incarnation,
        next: impl Fn(&Stream, Topic) -> (u64, bool),
    ) -> Granted {
        let single_active = self.single_active();
        let mut assignments = Vec::new();
        let (mut held, mut unconfirmed) = (0_u64, 0_u64);
        for (index, slot) in self.shards.iter().enumerate() {
            let Some(shard) = Shard::new(index as u8) else { continue };
            if slot.holder == Some(me) {
                let role = if slot.release_ordered { Role::Release } else { Role::Own };
                assignments.push(Assignment { shard, generation: Number(slot.generation), role });
                held |= 1 << index;
                unconfirmed |= u64::from(!slot.confirmed) << index;
            } else if self.planned[index] == Some(me) && (slot.holder.is_some() || single_active) {
                // With a single active member, also shards that are free already wait for the rest.
                assignments.push(Assignment { shard, generation: Number(0), role: Role::Prepare });
            }
        }
        let (mut starts, mut coverage, mut ranges) = (Vec::new(), Vec::new(), 0);
        for (stream, positions) in self.positions.iter().filter(|_| held != 0) {
            let (mut starts_of_stream, mut covered_of_stream) = (Vec::new(), Vec::new());
            for (shard, position) in positions {
                let bit = 1 << shard.index();
                if unconfirmed & bit == 0 && !(position.owner_lacks && held & bit != 0) {
                    continue;
                }
                let topic = Topic { kind: self.kind, shard };
                let (next, is_live) = next(stream, topic);
                let next = next.min(MAX_NUMBER - 1);
                let presenter = position.presenter(now, is_live.then_some(next));
                let mut known = position.covered.clone();
                if self.mutants.clamps_positions() {
                    known = known.clamped(next);
                }
                let Some(prefix) = known.prefix_end() else { continue };
                starts_of_stream.push(Start { topic, sequence: Number(prefix), next: Number(next) });
                ranges += known.spans().len();
                let is_said = known.single().is_some() && presenter.is_none();
                if !is_said && ranges <= MAX_COVERED_RANGES {
                    let covered = Covered::new(topic, &known);
                    covered_of_stream.push(Covered { presenter: presenter.cloned(), ..covered });
                }
            }
            if !starts_of_stream.is_empty() {
                starts.push(StreamStarts { stream: stream.clone(), starts: starts_of_stream });
            }
            if !covered_of_stream.is_empty() {
                coverage.push(StreamCoverage { stream: stream.clone(), covered: covered_of_stream });
            }
        }
        let doubts = self.doubts.of(now, self.kind, held);
        Granted { assignments, starts, coverage, doubts }
    }

    /// What the group has handled of a stream, for its publisher.
    pub(super) fn coverage_of(&self, now: BootTime, name: &Name, stream: &Stream) -> GroupCoverage {
        let covered = self
            .positions
            .of_stream(stream)
            .map(|(shard, position)| Covered::new(Topic { kind: self.kind, shard }, &position.covered));
        GroupCoverage { group: name.clone(), age_ns: self.age.nanos(now), covered: covered.collect() }
    }
}

impl Slot {
    fn take(&mut self, holder: Incarnation, generation: u64) {
        *self = Slot { holder: Some(holder), generation, not_before: self.not_before, ..Slot::default() };
    }

    fn take_confirmed(&mut self, holder: Incarnation, generation: u64) {
        self.take(holder, generation);
        self.confirmed = true;
    }

    /// Leaves it without a holder. The generation stays, because it must only rise.
    fn free(&mut self) {
        *self = Slot { generation: self.generation, not_before: self.not_before, ..Slot::default() };
    }
}
