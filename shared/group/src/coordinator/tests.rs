//! Hostile messages.

use proptest::prelude::*;
use sekiwake_record::{Kind, Name, Shard};

use super::*;
use crate::{
    LEASE, LEASE_MARGIN,
    wire::{Extent, Holding, Phase, StreamPositions},
};

fn renew(incarnation: u64, renewal: u64) -> Renew {
    Renew {
        group: Name::new("g").unwrap(),
        kind: Kind::Syslog,
        incarnation,
        label: Name::new("m").unwrap(),
        renewal,
        lowest_protocol: 1,
        highest_protocol: 1,
        leaving: false,
        coordinator: 0,
        holdings: Vec::new(),
        commits: Vec::new(),
    }
}

fn peer(number: u8) -> Peer {
    Peer::new(&[number]).unwrap()
}

fn send(coordinator: &mut Coordinator, now: u64, from: u8, message: impl Into<Message>) {
    coordinator.on_message(now, &peer(from), &message.into().encode());
}

/// A settled coordinator whose only member, 7 of peer 1, owns all shards.
fn with_an_owner() -> (Coordinator, u64) {
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 9, 0);
    let now = LEASE + LEASE_MARGIN;
    coordinator.on_tick(now);
    send(&mut coordinator, now, 1, renew(7, 1));
    assert_eq!(coordinator.groups(now)[0].members[0].shards.len(), 64);
    (coordinator, now)
}

#[test]
fn a_flood_of_joins_of_one_peer_is_refused_and_takes_nothing() {
    let (mut coordinator, now) = with_an_owner();
    send(&mut coordinator, now, 2, renew(100, 1));
    (101..1000).for_each(|incarnation| send(&mut coordinator, now, 2, renew(incarnation, 1)));
    (0..1000).for_each(|n| {
        send(&mut coordinator, now, 3, Renew { group: Name::new(&format!("x{n}")).unwrap(), ..renew(n, 1) });
    });
    assert_eq!(coordinator.groups(now).len(), 1 + MAX_MEMBERSHIPS);
    assert_eq!(coordinator.groups(now)[0].members.len(), 2);
    assert_eq!(coordinator.refusals().joins, 899 + 1000 - MAX_MEMBERSHIPS as u64);
}

#[test]
fn a_renewal_in_anothers_name_is_refused() {
    let (mut coordinator, now) = with_an_owner();
    send(&mut coordinator, now, 2, Renew { leaving: true, ..renew(7, 2) });
    assert_eq!(coordinator.refusals().foreign, 1);
    assert_eq!(coordinator.groups(now)[0].members[0].shards.len(), 64);
}

#[test]
fn a_commit_beyond_what_the_stream_announced_waits_and_is_refused() {
    let (mut coordinator, now) = with_an_owner();
    let stream = Stream::new(&Name::new("tap").unwrap(), 5);
    let topic = Topic { kind: Kind::Syslog, shard: Shard::new(0).unwrap() };
    let extents = vec![Extent { topic, oldest: Number(0), next: Number(100) }];
    let advertise = Advertise {
        stream: stream.clone(),
        number: 1,
        ended: false,
        wants_commits: false,
        coordinator: 0,
        list_version: 0,
        extents,
    };
    send(&mut coordinator, now, 4, advertise);
    let generation = Number(coordinator.groups(now)[0].members[0].shards[0].generation);
    let holdings = vec![Holding { shard: topic.shard, generation, phase: Phase::Owned }];
    let commit = |sequence| {
        vec![StreamPositions {
            stream: stream.clone(),
            positions: vec![Position { topic, sequence: Number(sequence) }],
        }]
    };
    let place = PositionView { stream: stream.clone(), shard: 0, committed: 40, lag: 60 };
    send(&mut coordinator, now, 1, Renew { holdings: holdings.clone(), commits: commit(40), ..renew(7, 2) });
    send(&mut coordinator, now, 1, Renew { holdings, commits: commit(101), ..renew(7, 3) });
    assert_eq!(coordinator.groups(now)[0].positions, std::slice::from_ref(&place));
    coordinator.on_tick(now + 3 * SECOND);
    assert_eq!(coordinator.refusals().commits, 1);
    assert_eq!(coordinator.groups(now)[0].positions, [place]);
}

#[test]
fn a_renewal_has_these_bytes() {
    let bytes = Message::from(renew(7, 3)).encode();
    assert_eq!(bytes, [0x9d, 1, 1, 0xa1, b'g', 0, 7, 0xa1, b'm', 3, 1, 1, 0xc2, 0, 0x90, 0x90]);
    assert_eq!(Message::decode(&bytes), Ok(Message::from(renew(7, 3))));
    let appended = [&[0x9e], &bytes[1..], &[0x93, 1, 2, 3]].concat();
    assert_eq!(Message::decode(&appended), Ok(Message::from(renew(7, 3))), "a later version appends");
    assert!(Message::decode(&[&bytes[..], &[0]].concat()).is_err());
}

proptest! {
    #[test]
    fn arbitrary_bytes_change_nothing_for_others(input in proptest::collection::vec(any::<u8>(), 0..2000)) {
        fuzz(&input);
        let (mut coordinator, now) = with_an_owner();
        coordinator.on_message(now, &peer(2), &input);
        prop_assert_eq!(coordinator.groups(now)[0].members[0].shards.len(), 64);
    }
}
