//! One group: its members, who has which shard, and where it stands.
//!
//! ```text
//! of a shard:   free ──── the one that should have it ───▶ held by M, generation + 1
//!                 ▲                                          │  another should have it, and is prepared
//!                 │  released, and its commits believed      ▼
//!                 └────────────────────────────────────── release ordered
//!                 ▲  the lease of M has run out              │
//!                 └──────────────────────────────────────────┘
//! ```
//!
//! Where one member has everything and the others stand by, the shards change hands together: the next is prepared for all of them
//! before the first release is ordered, and given none of them before the last is released.

use std::collections::{BTreeMap, BTreeSet};

use sekiwake_record::{Kind, Name, SHARDS, Shard, Topic};

use super::assignment::{Incarnation, assign, one};
use crate::{
    MAX_NUMBER, Peer, Stream, UNKNOWN,
    wire::{Assignment, Destination, MAX_STREAMS, Number, Phase, Renew, Role, Start, StreamStarts},
};

/// How long a commit beyond what its stream has announced waits for an announcement.
pub(super) const CLAIM_WAITS: u64 = 3 * crate::SECOND;
/// The largest generation that a member is believed to hold: so many are left to be granted after it.
const MAX_GENERATION: u64 = MAX_NUMBER / 2;

pub(super) struct Group {
    pub(super) kind: Kind,
    pub(super) members: BTreeMap<Incarnation, Member>,
    pub(super) shards: [Slot; SHARDS],
    pub(super) positions: BTreeMap<Stream, Box<[u64; SHARDS]>>,
    pub(super) empty_since: Option<u64>,
    /// By shard: commits beyond what their streams have announced.
    claims: [Claims; SHARDS],
    pub(super) next_generation: u64,
    desired: [Option<Incarnation>; SHARDS],
    moved: bool,
    #[cfg(test)]
    pub(super) mutant: Option<crate::simulation::Mutant>,
}

/// What is not taken of a renewal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NotTaken {
    pub(super) holdings: u64,
    pub(super) commits: u64,
    /// Commits in streams that nobody speaks for.
    pub(super) unknown: u64,
}

/// What is known of a stream when a commit in it comes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Announced {
    /// It has said that its next record has this number.
    Next(u64),
    /// It has not been heard of yet, and may be.
    Awaited,
    /// Nobody speaks for it.
    Unknown,
}

/// Commits that wait for their streams to bear them out, all of a shard until the same time.
#[derive(Default)]
struct Claims {
    sequences: BTreeMap<Stream, u64>,
    until: u64,
}

#[derive(Clone, Copy, Default)]
pub(super) struct Slot {
    pub(super) holder: Option<Incarnation>,
    pub(super) generation: u64,
    pub(super) release_ordered: bool,
    released: bool,
    /// The holder has presented it: it knows where to begin.
    confirmed: bool,
    /// A holder that lost it to an older claim may act until then, if it has not heard of it.
    not_before: u64,
}

pub(super) struct Member {
    pub(super) peer: Peer,
    pub(super) label: Name,
    pub(super) renewal: u64,
    pub(super) lease_until: u64,
    pub(super) leaving: bool,
    pub(super) protocols: (u64, u64),
    pub(super) registration: u64,
    pub(super) destinations: Vec<Destination>,
    /// The list of destinations that holds this member's newest; 0 until there is one.
    pub(super) listed_in: u64,
    /// The newest registration that it was told to be acknowledged.
    pub(super) told: u64,
    prepared: u64,
    /// It says that one member of the group is to have all shards.
    one_works: bool,
    pub(super) dirty: bool,
}

impl Member {
    pub(super) fn new(peer: Peer, renew: &Renew) -> Member {
        Member {
            peer,
            label: renew.label.clone(),
            renewal: 0,
            lease_until: 0,
            leaving: renew.leaving,
            protocols: (renew.lowest_protocol, renew.highest_protocol),
            registration: 0,
            destinations: Vec::new(),
            listed_in: 0,
            told: 0,
            prepared: 0,
            one_works: renew.one_works,
            dirty: false,
        }
    }
}

impl Group {
    pub(super) fn new(kind: Kind) -> Group {
        Group {
            kind,
            members: BTreeMap::new(),
            shards: [Slot::default(); SHARDS],
            positions: BTreeMap::new(),
            empty_since: None,
            claims: std::array::from_fn(|_| Claims::default()),
            next_generation: 1,
            desired: [None; SHARDS],
            moved: true,
            #[cfg(test)]
            mutant: None,
        }
    }

    /// The lowest of the highest protocols present; `None` without members.
    pub(super) fn protocol(&self) -> Option<u64> {
        self.members.values().map(|member| member.protocols.1).min()
    }

    /// Whether all members, with this one, have a protocol in common.
    pub(super) fn speaks(&self, lowest: u64, highest: u64) -> bool {
        let common = self.protocol().map_or(highest, |protocol| protocol.min(highest));
        lowest <= common && self.members.values().all(|member| member.protocols.0 <= common)
    }

    pub(super) fn join(&mut self, incarnation: Incarnation, member: Member) {
        self.members.insert(incarnation, member);
        self.empty_since = None;
        self.moved = true;
    }

    pub(super) fn remove(&mut self, now: u64, incarnation: Incarnation) {
        self.members.remove(&incarnation);
        self.moved = true;
        self.shards.iter_mut().filter(|slot| slot.holder == Some(incarnation)).for_each(Slot::free);
        if self.members.is_empty() {
            self.empty_since = Some(now);
        }
    }

    /// Takes what a member says it holds, and its commits. Gives what is refused.
    pub(super) fn present(
        &mut self,
        now: u64,
        settled: bool,
        renew: &Renew,
        announced: impl Fn(&Stream, Topic) -> Announced,
    ) -> NotTaken {
        let (me, mut refused) = (renew.incarnation, NotTaken::default());
        if let Some(member) = self.members.get_mut(&me) {
            self.moved |= member.leaving != renew.leaving || member.one_works != renew.one_works;
            member.leaving = renew.leaving;
            member.one_works = renew.one_works;
            member.prepared = 0;
        }
        // Where one member works, nobody gets a part of it back while another has one.
        let others = self.shards.iter().any(|slot| slot.holder.is_some_and(|holder| holder != me));
        let may_come_back = !(others && self.one_works());
        let mut stopped = 0_u64;
        for holding in &renew.holdings {
            let (index, generation) = (holding.shard.index(), holding.generation.0);
            let slot = &mut self.shards[index];
            if generation > MAX_GENERATION {
                refused.holdings += 1;
                continue;
            }
            if holding.phase == Phase::Prepared {
                if let Some(member) = self.members.get_mut(&me) {
                    member.prepared |= 1 << index;
                }
                continue;
            }
            let released = holding.phase == Phase::Released;
            if slot.holder == Some(me) && slot.generation == generation {
                slot.confirmed = true;
                slot.released |= released;
            } else if released {
                // It has stopped, and never starts again in this generation: all it may still say is where.
                if !settled && slot.holder.is_none() {
                    slot.generation = slot.generation.max(generation);
                    self.next_generation = self.next_generation.max(generation + 1).min(MAX_NUMBER - 1);
                }
                if slot.holder.is_none() && slot.generation == generation {
                    stopped |= 1 << index;
                }
            } else if slot.generation == generation && generation > 0 && slot.holder.is_none() && may_come_back {
                // Its lease had run out, and nobody has had the shard since.
                slot.take(me, generation);
                slot.confirmed = true;
                self.moved = true;
            } else if !settled && generation > slot.generation {
                // This coordinator is new, and the shard has been this member's. An older generation loses.
                if let Some(loser) = slot.holder.and_then(|loser| self.members.get_mut(&loser)) {
                    loser.dirty = true;
                    slot.not_before = slot.not_before.max(loser.lease_until);
                }
                slot.take(me, generation);
                slot.confirmed = true;
                self.next_generation = self.next_generation.max(generation + 1).min(MAX_NUMBER - 1);
                self.moved = true;
            }
        }
        for commit in &renew.commits {
            let stream = &commit.stream;
            for position in &commit.positions {
                let shard = position.topic.shard;
                let speaks = self.shards[shard.index()].holder == Some(me) || stopped & (1 << shard.index()) != 0;
                if position.topic.kind != self.kind || !speaks {
                    refused.commits += 1;
                    continue;
                }
                match announced(stream, position.topic) {
                    Announced::Next(next) if position.sequence.0 <= next => {
                        refused.commits += u64::from(!self.commit(stream, shard, position.sequence.0));
                    }
                    // To wait for its word would only hold back the shard.
                    Announced::Unknown => refused.unknown += 1,
                    _ if self.claims[shard.index()].sequences.len() < MAX_STREAMS => {
                        let claims = &mut self.claims[shard.index()];
                        if claims.sequences.is_empty() {
                            claims.until = now + CLAIM_WAITS;
                        }
                        claims.sequences.insert(stream.clone(), position.sequence.0);
                    }
                    _ => refused.commits += 1,
                }
            }
        }
        refused
    }

    fn commit(&mut self, stream: &Stream, shard: Shard, sequence: u64) -> bool {
        if !self.positions.contains_key(stream) && self.positions.len() >= MAX_STREAMS {
            return false;
        }
        let places = self.positions.entry(stream.clone()).or_insert_with(|| Box::new([UNKNOWN; SHARDS]));
        let place = &mut places[shard.index()];
        *place = if *place == UNKNOWN { sequence } else { sequence.max(*place) };
        self.claims[shard.index()].sequences.remove(stream);
        true
    }

    /// Streams that have to say where they stand before commits can be believed.
    pub(super) fn claimed(&self) -> BTreeSet<Stream> {
        self.claims.iter().flat_map(|claims| claims.sequences.keys().cloned()).collect()
    }

    /// When the first claim has waited long enough.
    pub(super) fn claims_end(&self) -> Option<u64> {
        self.claims.iter().filter(|claims| !claims.sequences.is_empty()).map(|claims| claims.until).min()
    }

    /// Believes the claims that a stream's announcement bears out.
    pub(super) fn announced(&mut self, stream: &Stream, announced: impl Fn(Topic) -> u64) {
        for index in 0..SHARDS {
            let Some(shard) = Shard::new(index as u8) else { continue };
            let claim = self.claims[index].sequences.get(stream).copied();
            if let Some(sequence) = claim.filter(|&sequence| sequence <= announced(Topic { kind: self.kind, shard })) {
                self.commit(stream, shard, sequence);
            }
        }
    }

    /// Refuses claims that have waited too long, and says how many.
    pub(super) fn refuse_claims(&mut self, now: u64) -> u64 {
        let late = self.claims.iter_mut().filter(|claims| now >= claims.until);
        late.map(|claims| std::mem::take(&mut claims.sequences).len() as u64).sum()
    }

    /// Frees, orders and grants what can be. Members whose grant has changed are marked.
    pub(super) fn settle(&mut self, now: u64, settled: bool) {
        let claimed: Vec<bool> = self.claims.iter().map(|claims| !claims.sequences.is_empty()).collect();
        for (index, slot) in self.shards.iter_mut().enumerate() {
            if slot.released && !claimed[index] {
                if let Some(member) = slot.holder.and_then(|holder| self.members.get_mut(&holder)) {
                    member.dirty = true;
                }
                slot.free();
            }
        }
        // A new coordinator gives nothing away before every lease that the last one granted has run out.
        if !settled {
            return;
        }
        if std::mem::take(&mut self.moved) {
            self.reassign();
        }
        let one_works = self.one_works();
        let all_prepared = (0..SHARDS).all(|index| self.is_prepared(index));
        let all_stopped = self.all_stopped(now);
        for (index, claimed) in claimed.into_iter().enumerate() {
            let prepared = if one_works { all_prepared } else { self.is_prepared(index) };
            let (wanted, slot) = (self.desired[index], &mut self.shards[index]);
            #[cfg(test)]
            if self.mutant == Some(crate::simulation::Mutant::NoHoldBack)
                && slot.holder.is_some()
                && slot.holder != wanted
            {
                slot.free();
            }
            match (slot.holder, wanted) {
                (Some(holder), wanted) if wanted != Some(holder) && prepared && !slot.release_ordered => {
                    slot.release_ordered = true;
                    self.mark(holder);
                }
                // Where the last holder says it has stopped is waited for, as long as claims are.
                (None, Some(wanted)) if !claimed && all_stopped && now >= slot.not_before => {
                    let generation = self.next_generation;
                    self.next_generation = (generation + 1).min(MAX_NUMBER - 1);
                    slot.take(wanted, generation);
                    self.mark(wanted);
                }
                _ => {}
            }
        }
    }

    /// Whether one member is to have everything.
    fn one_works(&self) -> bool {
        self.members.values().any(|member| member.one_works)
    }

    /// Whether the one that should have the shard has it, or is ready to take it.
    fn is_prepared(&self, index: usize) -> bool {
        self.desired[index].is_none_or(|wanted| {
            self.shards[index].holder == Some(wanted) || self.members[&wanted].prepared & (1 << index) != 0
        })
    }

    /// Where one member works: whether nobody but the one that should have everything may act on any shard. Elsewhere each shard is
    /// for itself.
    fn all_stopped(&self, now: u64) -> bool {
        #[cfg(test)]
        if self.mutant == Some(crate::simulation::Mutant::ShardByShard) {
            return true;
        }
        let mut slots = self.shards.iter().zip(&self.desired);
        !self.one_works()
            || slots.all(|(slot, wanted)| now >= slot.not_before && (slot.holder.is_none() || slot.holder == *wanted))
    }

    /// When a shard that is free may be given away.
    pub(super) fn next_grant(&self) -> Option<u64> {
        if self.one_works() {
            let last = self.shards.iter().map(|slot| slot.not_before).max().unwrap_or(0);
            let is_free = |((slot, wanted), claims): ((&Slot, &Option<Incarnation>), &Claims)| {
                slot.holder.is_none() && wanted.is_some() && claims.sequences.is_empty()
            };
            let waits = self.shards.iter().zip(&self.desired).zip(&self.claims).any(is_free);
            return (last > 0 && waits && self.all_stopped(last)).then_some(last);
        }
        let slots = self.shards.iter().zip(&self.desired).zip(&self.claims);
        let free = slots.filter(|((slot, wanted), claims)| {
            slot.holder.is_none() && wanted.is_some() && claims.sequences.is_empty()
        });
        free.map(|((slot, _), _)| slot.not_before).filter(|&not_before| not_before > 0).min()
    }

    fn reassign(&mut self) {
        let staying = |incarnation: &Incarnation| self.members.get(incarnation).is_some_and(|member| !member.leaving);
        let mut wish = [None; SHARDS];
        for (index, wish) in wish.iter_mut().enumerate() {
            *wish = self.desired[index].filter(staying).or(self.shards[index].holder.filter(staying));
        }
        let staying: Vec<Incarnation> = self.members.keys().copied().filter(staying).collect();
        self.desired = if self.one_works() { one(&wish, &staying) } else { assign(&wish, &staying) };
        #[cfg(test)]
        if self.mutant == Some(crate::simulation::Mutant::Even) {
            self.desired = assign(&wish, &staying);
        }
        self.members.values_mut().for_each(|member| member.dirty = true);
    }

    fn mark(&mut self, incarnation: Incarnation) {
        if let Some(member) = self.members.get_mut(&incarnation) {
            member.dirty = true;
        }
    }

    /// Whether a member is to have nothing, not even to prepare.
    pub(super) fn grants_nothing(&self, me: Incarnation) -> bool {
        let mut slots = self.shards.iter().zip(&self.desired);
        !slots.any(|(slot, desired)| slot.holder == Some(me) || (*desired == Some(me) && slot.holder.is_some()))
    }

    /// A member's shards, and where to begin on those that it has not presented yet.
    pub(super) fn granted(
        &self,
        me: Incarnation,
        next: impl Fn(&Stream, Topic) -> u64,
    ) -> (Vec<Assignment>, Vec<StreamStarts>) {
        let (mut assignments, mut new) = (Vec::new(), 0_u64);
        let one_works = self.one_works();
        for (index, slot) in self.shards.iter().enumerate() {
            let Some(shard) = Shard::new(index as u8) else { continue };
            if slot.holder == Some(me) {
                let role = if slot.release_ordered { Role::Release } else { Role::Own };
                assignments.push(Assignment { shard, generation: Number(slot.generation), role });
                new |= u64::from(!slot.confirmed) << index;
            } else if self.desired[index] == Some(me) && (slot.holder.is_some() || one_works) {
                // Where one works, what is free already waits for the rest.
                assignments.push(Assignment { shard, generation: Number(0), role: Role::Prepare });
            }
        }
        let mut starts = Vec::new();
        for (stream, places) in self.positions.iter().filter(|_| new != 0) {
            let known =
                places.iter().enumerate().filter(|&(index, &place)| new & (1 << index) != 0 && place != UNKNOWN);
            let places: Vec<Start> = known
                .filter_map(|(index, &place)| {
                    let topic = Topic { kind: self.kind, shard: Shard::new(index as u8)? };
                    let next = next(stream, topic).clamp(place, MAX_NUMBER - 1);
                    Some(Start { topic, sequence: Number(place), next: Number(next) })
                })
                .collect();
            if !places.is_empty() {
                starts.push(StreamStarts { stream: stream.clone(), starts: places });
            }
        }
        (assignments, starts)
    }

    /// Where the group stands on a topic of its kind.
    pub(super) fn committed(&self, stream: &Stream, shard: Shard) -> Option<u64> {
        self.positions.get(stream).map(|places| places[shard.index()]).filter(|&place| place != UNKNOWN)
    }
}

impl Slot {
    fn take(&mut self, holder: Incarnation, generation: u64) {
        *self = Slot { holder: Some(holder), generation, not_before: self.not_before, ..Slot::default() };
    }

    /// Nobody's. The generation stays: it may only rise.
    fn free(&mut self) {
        *self = Slot { generation: self.generation, not_before: self.not_before, ..Slot::default() };
    }
}
