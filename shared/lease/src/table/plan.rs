//! What a member writes into keys other than its own: it declares silent members gone, plans the
//! assignment if it is the live member with the lowest incarnation, and deletes keys of members
//! that are gone once the assignment has their positions.

use sekiwake_group::{BootTime, LEASE, LEASE_MARGIN, assign_all, assign_evenly};
use sekiwake_record::{SHARDS, Shard};

use super::{REBUILD_AFTER, Seen, Table, What};
use crate::{
    key::Key,
    value::{Assigned, Assignment, MemberValue, Phase, State},
};

impl Table {
    /// The next write of another key: its key, the expected revision, the value and what it means.
    pub(super) fn next_other(&mut self, now: BootTime) -> Option<(Key, u64, Option<Vec<u8>>, What)> {
        if !self.has_read || self.own.revision == 0 || self.own.is_fenced || self.own.has_left {
            return None;
        }
        // Only a member that itself reaches the servers may judge others.
        if !self.own.passes(now) {
            return None;
        }
        if let Some((member, revision)) = self.silent_member(now) {
            let value = self.gone_value(member);
            let encoded = value.encode();
            return Some((Key::Member(member), revision, Some(encoded), What::Gone(member, value)));
        }
        if !self.is_planner() {
            let assignment = self.restored(now)?;
            let known = self.assignment.as_ref().filter(|_| !self.has_vanished);
            let revision = known.map_or(0, |known| known.revision);
            return Some((Key::Assignment, revision, Some(assignment.encode()), What::Assign(assignment)));
        }
        if self.mutants.deletes_unabsorbed()
            && let Some((member, revision)) = self.absorbed_member()
        {
            return Some((Key::Member(member), revision, None, What::Delete(member)));
        }
        if let Some(assignment) = self.changed_plan(now) {
            let known = self.assignment.as_ref().filter(|_| !self.has_vanished);
            let revision = known.map_or(0, |known| known.revision);
            return Some((Key::Assignment, revision, Some(assignment.encode()), What::Assign(assignment)));
        }
        let (member, revision) = self.absorbed_member().filter(|_| now >= self.delete_from)?;
        Some((Key::Member(member), revision, None, What::Delete(member)))
    }

    /// Whether this member plans: the lowest incarnation that takes part.
    pub(super) fn is_planner(&self) -> bool {
        let lowest = self.members.iter().find(|(_, seen)| seen.value.is_some() && !seen.is_gone());
        lowest.is_some_and(|(member, _)| *member == self.incarnation)
    }

    /// A member whose key was not renewed for longer than a lease lasts, and its revision.
    fn silent_member(&self, now: BootTime) -> Option<(u64, u64)> {
        let limit = if self.mutants.gone_too_soon() { LEASE / 2 } else { LEASE + LEASE_MARGIN };
        let is_silent = |since: BootTime| now - since.max(self.watch_from) >= limit;
        let others = self.members.iter().filter(|(member, seen)| **member != self.incarnation && !seen.is_gone());
        let mut silent =
            others.filter(|(_, seen)| is_silent(seen.since)).map(|(member, seen)| (*member, seen.revision));
        let mut absent =
            self.absent.iter().filter(|(member, since)| **member != self.incarnation && is_silent(**since));
        silent.next().or_else(|| absent.next().map(|(member, _)| (*member, 0)))
    }

    /// What a member's key says, and that it is gone.
    fn gone_value(&self, member: u64) -> MemberValue {
        let value = self.members.get(&member).and_then(|seen| seen.value.clone());
        let mut value =
            value.unwrap_or(MemberValue { number: 0, state: State::Gone, label: None, claims: Vec::new(), digest: 0 });
        value.state = State::Gone;
        value
    }

    /// A member that is gone, that the stored assignment does not name, and whose positions it has.
    fn absorbed_member(&self) -> Option<(u64, u64)> {
        let assignment = self.assignment.as_ref()?.value.as_ref()?;
        let is_absorbed = |member: u64, value: &MemberValue| {
            let is_named = assignment.shards.iter().any(|shard| [shard.owner, shard.next].contains(&Some(member)));
            let is_known = value.claims.iter().all(|claim| {
                let known = &assignment.shards[claim.shard.index()].position;
                !known.clone().merge(&claim.position)
            });
            self.mutants.deletes_unabsorbed() || !is_named && is_known
        };
        let gone = self.members.iter().filter(|(_, seen)| seen.is_gone());
        let mut absorbed =
            gone.filter(|(member, seen)| seen.value.as_ref().is_some_and(|value| is_absorbed(**member, value)));
        absorbed.next().map(|(member, seen)| (*member, seen.revision))
    }

    /// The assignment as it should be, if that is a change.
    fn changed_plan(&self, now: BootTime) -> Option<Assignment> {
        let known = self.assignment.as_ref().filter(|_| !self.has_vanished);
        let known = known.and_then(|known| known.value.as_ref());
        let mut plan = match known {
            Some(known) => known.clone(),
            None if self.missing_long_enough(now) => self.rebuilt()?,
            None => return None,
        };
        self.release(&mut plan);
        self.distribute(&mut plan);
        plan.planner = known.map_or(self.incarnation, |known| known.planner);
        if known == Some(&plan) {
            return None;
        }
        plan.planner = self.incarnation;
        Some(plan)
    }

    /// The assignment that this member remembers, if it has been missing for so long that the
    /// planner does not: one that has joined since.
    fn restored(&self, now: BootTime) -> Option<Assignment> {
        let known = self.assignment.as_ref().filter(|_| !self.has_vanished);
        let is_missing = known.is_none_or(|known| known.value.is_none());
        let is_due = self.missing_since.is_some_and(|since| now - since >= 2 * REBUILD_AFTER);
        if is_missing && is_due && self.has_memory { self.rebuilt() } else { None }
    }

    /// The assignment from what is remembered, and from what the members' keys say. Shards that no
    /// key lists get a generation that no lost assignment can have had: each write of one raises it
    /// by 1 at most, and the revision too.
    fn rebuilt(&self) -> Option<Assignment> {
        let mut plan = self.memory.clone()?;
        let newest = self.members.values().map(|seen| seen.revision).max().unwrap_or(0).max(self.newest_assignment);
        for (member, seen) in &self.members {
            let Some(value) = &seen.value else { continue };
            for claim in &value.claims {
                let shard = &mut plan.shards[claim.shard.index()];
                shard.position.merge(&claim.position);
                if claim.generation > shard.generation {
                    let owner = (claim.phase == Phase::Held && value.state != State::Gone).then_some(*member);
                    *shard = Assigned { owner, next: None, generation: claim.generation, ..std::mem::take(shard) };
                }
            }
        }
        let is_held = |shard: Shard, generation: u64| {
            let claims = self.members.values().filter_map(|seen| seen.value.as_ref()?.claim(shard));
            claims.into_iter().any(|claim| claim.phase == Phase::Held && claim.generation == generation)
        };
        for (shard, assigned) in Shard::all().zip(&mut plan.shards) {
            if !is_held(shard, assigned.generation) {
                assigned.generation = assigned.generation.max(newest);
            }
        }
        Some(plan)
    }

    /// Frees the shards that their owners have released, and takes over positions.
    fn release(&self, plan: &mut Assignment) {
        for shard in Shard::all() {
            let assigned = &mut plan.shards[shard.index()];
            for seen in self.members.values().filter(|seen| seen.is_gone()) {
                let claim = seen.value.as_ref().and_then(|value| value.claim(shard));
                if let Some(claim) = claim
                    && !self.mutants.forgets_positions()
                {
                    assigned.position.merge(&claim.position);
                }
            }
            let Some(owner) = assigned.owner.and_then(|owner| self.members.get(&owner)) else { continue };
            let claim = owner.value.as_ref().and_then(|value| value.claim(shard));
            let released =
                claim.filter(|claim| claim.phase == Phase::Released && claim.generation == assigned.generation);
            if let Some(claim) = released {
                assigned.position.merge(&claim.position);
            }
            if released.is_some() || owner.is_gone() {
                assigned.owner = None;
            }
        }
    }

    /// Gives free shards to members, and says which others are to move.
    fn distribute(&self, plan: &mut Assignment) {
        let is_live = |member: &u64| self.members.get(member).is_some_and(Seen::is_live);
        let live: Vec<u64> =
            self.members.iter().filter(|(_, seen)| seen.is_live()).map(|(member, _)| *member).collect();
        let mut preferred = [None; SHARDS];
        for (preferred, assigned) in preferred.iter_mut().zip(&plan.shards) {
            *preferred = assigned.next.filter(is_live).or(assigned.owner.filter(is_live));
        }
        let is_single = self.settings.single_active;
        let wanted = if is_single { assign_all(&preferred, &live) } else { assign_evenly(&preferred, &live) };
        // A single active member begins when the former one has released everything.
        let has_former = plan
            .shards
            .iter()
            .zip(&wanted)
            .any(|(assigned, wanted)| assigned.owner.is_some() && assigned.owner != *wanted);
        let waits = is_single && has_former && !self.mutants.moves_shard_by_shard();
        for (assigned, wanted) in plan.shards.iter_mut().zip(wanted) {
            let takes = assigned.owner.is_some() && assigned.owner != wanted && self.mutants.takes_unreleased();
            if (assigned.owner.is_none() || takes) && !waits {
                assigned.owner = wanted;
                assigned.next = None;
                assigned.generation += u64::from(wanted.is_some());
            } else if assigned.owner == wanted {
                assigned.next = None;
            } else {
                assigned.next = wanted;
            }
        }
    }
}
