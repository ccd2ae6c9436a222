//! Groups of which one member works and the others stand by.

use sekiwake_record::{Kind, Name, SHARDS, Shard};

use super::*;
use crate::wire::{Assignment, Holding, Phase, Role};

const SETTLED: u64 = LEASE + LEASE_MARGIN;

/// A coordinator and what its members were told last.
struct Group {
    coordinator: Coordinator,
    now: u64,
    renewals: u64,
}

impl Group {
    fn new() -> Group {
        Group { coordinator: Coordinator::new(CoordinatorSettings::default(), 9, 0), now: SETTLED, renewals: 0 }
    }

    /// A member renews, saying that one is to work, and is told these shards.
    fn renews(&mut self, incarnation: u64, leaving: bool, holdings: Vec<Holding>) -> Vec<Assignment> {
        self.says(incarnation, true, leaving, holdings)
    }

    fn says(&mut self, incarnation: u64, one_works: bool, leaving: bool, holdings: Vec<Holding>) -> Vec<Assignment> {
        self.renewals += 1;
        let renew = Renew {
            group: Name::new("g").unwrap(),
            kind: Kind::Syslog,
            incarnation,
            label: Name::new("m").unwrap(),
            renewal: self.renewals,
            lowest_protocol: 1,
            highest_protocol: 1,
            leaving,
            coordinator: 9,
            holdings,
            commits: Vec::new(),
            one_works,
        };
        let peer = Peer::new(&incarnation.to_be_bytes()).unwrap();
        self.coordinator.on_message(self.now, &peer, &Message::from(renew).encode());
        let mut told = None;
        while let Some((to, frame)) = self.coordinator.poll_output() {
            if let (true, Ok(Message::Grant(grant))) = (to == peer, Message::decode(&frame)) {
                told = Some(grant.assignments);
            }
        }
        told.unwrap()
    }

    fn held(&self, incarnation: u64) -> usize {
        let groups = self.coordinator.groups(self.now);
        groups[0].members.iter().find(|member| member.incarnation == incarnation).unwrap().shards.len()
    }
}

fn count(assignments: &[Assignment], role: Role) -> usize {
    assignments.iter().filter(|assignment| assignment.role == role).count()
}

fn holdings(assignments: &[Assignment], phase: Phase) -> Vec<Holding> {
    let holding = |given: &Assignment| Holding { shard: given.shard, generation: given.generation, phase };
    assignments.iter().map(holding).collect()
}

fn prepared(shards: usize) -> Vec<Holding> {
    let shards = (0..shards).map(|index| Shard::new(index as u8).unwrap());
    shards.map(|shard| Holding { shard, generation: Number(0), phase: Phase::Prepared }).collect()
}

/// Member 7 owns everything, member 8 stands by.
fn with_a_standby() -> (Group, Vec<Assignment>) {
    let mut group = Group::new();
    let own = group.renews(7, false, Vec::new());
    assert_eq!(count(&own, Role::Own), SHARDS);
    assert_eq!(group.renews(8, false, Vec::new()), []);
    (group, own)
}

#[test]
fn a_member_that_joins_changes_nothing_and_is_given_nothing() {
    let (mut group, own) = with_a_standby();
    // Also one whose number is the lowest.
    assert_eq!(group.renews(1, false, Vec::new()), []);
    assert_eq!(group.renews(7, false, holdings(&own, Phase::Owned)), own);
}

#[test]
fn who_leaves_is_asked_for_its_shards_when_the_next_is_prepared_for_all_and_the_next_gets_none_before_the_last() {
    let (mut group, own) = with_a_standby();
    assert_eq!(count(&group.renews(7, true, holdings(&own, Phase::Owned)), Role::Own), SHARDS);
    assert_eq!(count(&group.renews(8, false, Vec::new()), Role::Prepare), SHARDS);
    group.renews(8, false, prepared(SHARDS - 1));
    assert_eq!(count(&group.renews(7, true, holdings(&own, Phase::Owned)), Role::Release), 0);
    group.renews(8, false, prepared(SHARDS));
    assert_eq!(count(&group.renews(7, true, holdings(&own, Phase::Owned)), Role::Release), SHARDS);
    let (first, last) = own.split_at(SHARDS - 1);
    let most = [holdings(first, Phase::Released), holdings(last, Phase::Owned)].concat();
    assert_eq!(count(&group.renews(7, true, most), Role::Release), 1);
    assert_eq!(group.held(8), 0);
    assert_eq!(count(&group.renews(8, false, prepared(SHARDS)), Role::Prepare), SHARDS, "it stays prepared");
    assert_eq!(group.renews(7, true, holdings(&own, Phase::Released)), []);
    assert_eq!(count(&group.renews(8, false, prepared(SHARDS)), Role::Own), SHARDS);
}

#[test]
fn whose_lease_runs_out_is_followed_by_one_and_comes_back_to_stand_by() {
    let (mut group, own) = with_a_standby();
    group.now += LEASE;
    group.renews(8, false, Vec::new());
    group.now = SETTLED + LEASE + LEASE_MARGIN;
    group.coordinator.on_tick(group.now);
    assert_eq!(count(&group.renews(8, false, Vec::new()), Role::Own), SHARDS);
    assert_eq!(group.renews(7, false, holdings(&own, Phase::Owned)), []);
    assert_eq!(group.held(8), SHARDS);
}

#[test]
fn a_new_coordinator_leaves_everything_with_who_has_it() {
    let (_, own) = with_a_standby();
    let mut group = Group::new();
    group.now = 0;
    // The one that stands by is heard of first, and has the lower number.
    assert_eq!(group.renews(1, false, Vec::new()), []);
    assert_eq!(count(&group.renews(7, false, holdings(&own, Phase::Owned)), Role::Own), SHARDS);
    group.now = SETTLED - 1;
    for (member, holdings) in [(1, Vec::new()), (7, holdings(&own, Phase::Owned))] {
        group.renews(member, false, holdings);
    }
    group.now = SETTLED;
    group.coordinator.on_tick(group.now);
    assert_eq!(group.renews(7, false, holdings(&own, Phase::Owned)), own);
    assert_eq!((group.held(1), group.held(7)), (0, SHARDS));
}

#[test]
fn one_that_says_so_is_enough_and_when_it_has_gone_the_shards_are_shared_out() {
    let mut group = Group::new();
    let own = group.says(7, false, false, Vec::new());
    assert_eq!(group.renews(8, false, Vec::new()), []);
    group.renews(8, true, Vec::new());
    assert_eq!(count(&group.says(9, false, false, Vec::new()), Role::Prepare), SHARDS / 2);
    assert_eq!(count(&group.says(7, false, false, holdings(&own, Phase::Owned)), Role::Own), SHARDS);
}
