//! Groups with a single active member.

use sekiwake_record::{Kind, Name, SHARDS, Shard};

use super::*;
use crate::wire::{Assignment, Holding, Number, Phase, Role};

const SETTLED: BootTime = BootTime::from_nanos(3_500_000_000);

/// A coordinator, at a time of its own.
struct Group {
    coordinator: Coordinator,
    now: BootTime,
    renewals: u64,
}

impl Group {
    fn new() -> Group {
        Group {
            coordinator: Coordinator::new(CoordinatorSettings::default(), 9, BootTime::ZERO),
            now: SETTLED,
            renewals: 0,
        }
    }

    /// Renews for a member with `single_active`. Returns its grant.
    fn renews(&mut self, incarnation: u64, leaving: bool, holdings: Vec<Holding>) -> Vec<Assignment> {
        self.renews_as(incarnation, true, leaving, holdings)
    }

    fn renews_as(
        &mut self,
        incarnation: u64,
        single_active: bool,
        leaving: bool,
        holdings: Vec<Holding>,
    ) -> Vec<Assignment> {
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
            coordinator: 0,
            holdings,
            commits: Vec::new(),
            single_active,
            coverage: Vec::new(),
            age_ns: 0,
            destinations_digest: 0,
            doubts: Vec::new(),
            former_lease_age_ns: 0,
        };
        let peer = Peer::new(&incarnation.to_be_bytes()).unwrap();
        self.coordinator.on_message(self.now, &peer, &Message::from(renew).encode());
        let mut granted = None;
        while let Some((to, frame)) = self.coordinator.poll_output() {
            if let (true, Ok(Message::Grant(grant))) = (to == peer, Message::decode(&frame)) {
                granted = Some(grant.assignments);
            }
        }
        granted.unwrap()
    }

    fn owned_shards(&self, incarnation: u64) -> usize {
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

/// Member 7 owns all shards, member 8 stands by.
fn with_a_standby() -> (Group, Vec<Assignment>) {
    let mut group = Group::new();
    let own = group.renews(7, false, Vec::new());
    assert_eq!(count(&own, Role::Own), SHARDS);
    assert_eq!(group.renews(8, false, Vec::new()), []);
    (group, own)
}

#[test]
fn joining_member_stands_by() {
    let (mut group, own) = with_a_standby();
    // The same for a member with the lowest number.
    assert_eq!(group.renews(1, false, Vec::new()), []);
    assert_eq!(group.renews(7, false, holdings(&own, Phase::Owned)), own);
}

#[test]
fn leaving_member_releases_all_shards_to_a_prepared_successor() {
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
    assert_eq!(group.owned_shards(8), 0);
    assert_eq!(count(&group.renews(8, false, prepared(SHARDS)), Role::Prepare), SHARDS, "it stays prepared");
    assert_eq!(group.renews(7, true, holdings(&own, Phase::Released)), []);
    assert_eq!(count(&group.renews(8, false, prepared(SHARDS)), Role::Own), SHARDS);
}

#[test]
fn member_with_an_expired_lease_is_replaced_and_stands_by() {
    let (mut group, own) = with_a_standby();
    group.now += LEASE;
    group.renews(8, false, Vec::new());
    group.now = SETTLED + LEASE + LEASE_MARGIN;
    group.coordinator.on_tick(group.now);
    assert_eq!(count(&group.renews(8, false, Vec::new()), Role::Own), SHARDS);
    assert_eq!(group.renews(7, false, holdings(&own, Phase::Owned)), []);
    assert_eq!(group.owned_shards(8), SHARDS);
}

#[test]
fn new_coordinator_keeps_the_active_member() {
    let (_, own) = with_a_standby();
    let mut group = Group::new();
    group.now = BootTime::ZERO;
    // The standby renews first, and has the lower number.
    assert_eq!(group.renews(1, false, Vec::new()), []);
    assert_eq!(count(&group.renews(7, false, holdings(&own, Phase::Owned)), Role::Own), SHARDS);
    group.now = SETTLED - Duration::from_nanos(1);
    for (member, holdings) in [(1, Vec::new()), (7, holdings(&own, Phase::Owned))] {
        group.renews(member, false, holdings);
    }
    group.now = SETTLED;
    group.coordinator.on_tick(group.now);
    assert_eq!(group.renews(7, false, holdings(&own, Phase::Owned)), own);
    assert_eq!((group.owned_shards(1), group.owned_shards(7)), (0, SHARDS));
}

#[test]
fn one_member_decides_and_shards_are_distributed_once_it_left() {
    let mut group = Group::new();
    let own = group.renews_as(7, false, false, Vec::new());
    assert_eq!(group.renews(8, false, Vec::new()), []);
    group.renews(8, true, Vec::new());
    assert_eq!(count(&group.renews_as(9, false, false, Vec::new()), Role::Prepare), SHARDS / 2);
    assert_eq!(count(&group.renews_as(7, false, false, holdings(&own, Phase::Owned)), Role::Own), SHARDS);
}
