//! Hostile messages.

use proptest::prelude::*;
use sekiwake_record::{Kind, Name, Shard};

use super::*;
use crate::{
    LEASE, LEASE_MARGIN,
    wire::{Extent, Frame, Holding, Phase, Range, Repaired, StreamPositions, Transport},
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
        one_works: false,
    }
}

fn peer(number: u32) -> Peer {
    Peer::new(&number.to_be_bytes()).unwrap()
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn stream(text: &str) -> Stream {
    Stream::new(&name(text), 5)
}

fn topic(shard: u8) -> Topic {
    Topic { kind: Kind::Syslog, shard: Shard::new(shard).unwrap() }
}

fn advertise(stream: &Stream, number: u64, oldest: u64, next: u64) -> Advertise {
    let extents = vec![Extent { topic: topic(0), oldest: Number(oldest), next: Number(next) }];
    let stream = stream.clone();
    Advertise { stream, number, ended: false, wants_commits: false, coordinator: 0, list_version: 0, extents }
}

fn commit(stream: &Stream, shard: u8, sequence: u64) -> Vec<StreamPositions> {
    let positions = vec![Position { topic: topic(shard), sequence: Number(sequence) }];
    vec![StreamPositions { stream: stream.clone(), positions }]
}

fn repair(stream: &Stream, request: u64) -> Repair {
    let ranges = vec![Range { topic: topic(0), from: Number(0), to: Number(10) }];
    let (requester, stream) = (Peer::default(), stream.clone());
    Repair { requester, request, stream, max_bytes: 1000, ranges, locate: Vec::new(), max_age_ns: 0 }
}

fn repaired(stream: &Stream, request: u64, requester: u32, bytes: usize) -> Repaired {
    let (requester, stream) = (peer(requester), stream.clone());
    Repaired { requester, request, stream, topic: topic(0), header: Frame(vec![1]), body: Frame(vec![0; bytes]) }
}

fn done(stream: &Stream, request: u64, requester: u32) -> Done {
    let (requester, stream) = (peer(requester), stream.clone());
    Done { requester, request, stream, outcome: Outcome::Complete, retained: Vec::new(), located: Vec::new() }
}

fn outputs(coordinator: &mut Coordinator) -> Vec<(Peer, Message)> {
    let next = || coordinator.poll_output().map(|(peer, frame)| (peer, Message::decode(&frame).unwrap()));
    std::iter::from_fn(next).collect()
}

/// What an honest member and an honest publisher have of the coordinator.
fn honest(coordinator: &Coordinator, now: u64) -> (Vec<MemberView>, Vec<PositionView>, Vec<StreamView>) {
    let view = coordinator.view(now);
    let groups = view.groups.into_iter().filter(|group| group.name == name("g"));
    let (members, positions): (Vec<_>, Vec<_>) = groups.map(|group| (group.members, group.positions)).unzip();
    (
        members.into_iter().flatten().filter(|member| member.incarnation == 7).collect(),
        positions.into_iter().flatten().collect(),
        view.streams.into_iter().filter(|view| view.stream == stream("tap")).collect(),
    )
}

/// Member 7 of peer 1 owns all shards and has registered a destination, the stream of peer 4 has 100 records, 40 are committed; a
/// hostile peer 2 is member 8 of the same group.
fn with_honest_parties() -> (Coordinator, u64) {
    let (mut coordinator, now) = with_an_owner();
    send(&mut coordinator, now, 4, advertise(&stream("tap"), 1, 10, 100));
    let generation = Number(coordinator.groups(now)[0].members[0].shards[0].generation);
    let holdings = vec![Holding { shard: topic(0).shard, generation, phase: Phase::Owned }];
    send(&mut coordinator, now, 1, Renew { holdings, commits: commit(&stream("tap"), 0, 40), ..renew(7, 2) });
    send(&mut coordinator, now, 1, register(7, 1, 0..1));
    send(&mut coordinator, now, 2, renew(8, 1));
    outputs(&mut coordinator);
    assert_eq!(coordinator.refusals(), Refusals::default());
    (coordinator, now)
}

fn register(incarnation: u64, registration: u64, hosts: std::ops::Range<u32>) -> Register {
    let destinations = hosts.map(|host| Destination::new(std::net::Ipv4Addr::from(host).into(), 514, Transport::Udp));
    Register { group: name("g"), incarnation, registration, destinations: destinations.collect() }
}

/// Has a hostile party do something: it is counted, and changes nothing for the honest.
fn is_refused(hostile: impl FnOnce(&mut Coordinator, u64), expected: Refusals) {
    let (mut coordinator, now) = with_honest_parties();
    let before = honest(&coordinator, now);
    hostile(&mut coordinator, now);
    assert_eq!(coordinator.refusals(), expected);
    assert_eq!(honest(&coordinator, now), before);
    is_bounded(&mut coordinator, now);
}

/// However much has come, it is not more than this that is kept; and time goes on.
fn is_bounded(coordinator: &mut Coordinator, now: u64) {
    assert!(coordinator.groups.len() <= MAX_GROUPS);
    assert!(coordinator.groups.values().all(|group| group.members.len() <= MAX_MEMBERS));
    assert!(coordinator.groups.values().all(|group| group.positions.len() <= MAX_STREAMS));
    assert!(coordinator.streams.len() <= MAX_STREAMS);
    assert!(coordinator.routes.len() <= coordinator.groups.values().map(|group| group.members.len()).sum());
    assert!(coordinator.lingering.len() <= MAX_LINGERING);
    assert!(coordinator.list.len() <= MAX_LISTED);
    outputs(coordinator);
    coordinator.on_tick(now);
    assert!(coordinator.next_deadline() > now);
}

fn send(coordinator: &mut Coordinator, now: u64, from: u32, message: impl Into<Message>) {
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
fn commits_on_shards_of_others_and_of_another_kind_are_refused() {
    let expected = Refusals { commits: 2, ..Refusals::default() };
    is_refused(
        |coordinator, now| {
            let mut commits = commit(&stream("tap"), 0, 90);
            let topic = Topic { kind: Kind::Xflow, ..topic(0) };
            commits[0].positions.push(Position { topic, sequence: Number(90) });
            send(coordinator, now, 2, Renew { commits, ..renew(8, 2) });
        },
        expected,
    );
}

#[test]
fn what_another_group_commits_is_its_own_affair() {
    is_refused(
        |coordinator, now| {
            let renew = |renewal| Renew { group: name("other"), ..renew(9, renewal) };
            send(coordinator, now, 3, renew(1));
            let view = coordinator.groups(now).into_iter().find(|group| group.name == name("other")).unwrap();
            let generation = Number(view.members[0].shards[0].generation);
            let holdings = vec![Holding { shard: topic(0).shard, generation, phase: Phase::Owned }];
            send(coordinator, now, 3, Renew { holdings, commits: commit(&stream("tap"), 0, 99), ..renew(2) });
        },
        Refusals::default(),
    );
}

#[test]
fn a_renewal_in_anothers_name_takes_nothing_from_it() {
    let expected = Refusals { foreign: 2, ..Refusals::default() };
    is_refused(
        |coordinator, now| {
            send(coordinator, now, 2, Renew { leaving: true, commits: commit(&stream("tap"), 0, 90), ..renew(7, 99) });
            send(coordinator, now, 2, register(7, 99, 0..0));
        },
        expected,
    );
}

#[test]
fn messages_that_are_too_large_garbled_or_not_for_a_coordinator_are_refused() {
    let expected = Refusals { malformed: 5, ..Refusals::default() };
    is_refused(
        |coordinator, now| {
            send(coordinator, now, 4, repaired(&stream("tap"), 1, 1, MAX_MESSAGE_BYTES));
            let mut frame = Message::from(repaired(&stream("tap"), 1, 1, 10)).encode();
            frame.pop();
            coordinator.on_message(now, &peer(4), &frame);
            frame.extend([0, 0]);
            coordinator.on_message(now, &peer(4), &frame);
            coordinator.on_message(now, &peer(4), &[0x92, 1, Repaired::NUMBER as u8]);
            let refused = Refused { group: name("g"), incarnation: 7, reason: RefusalReason::Full };
            send(coordinator, now, 2, refused);
        },
        expected,
    );
}

#[test]
fn a_flood_of_joins_of_many_peers_takes_no_shard_from_its_owner() {
    let expected = Refusals { joins: 10_000 - 126, ..Refusals::default() };
    is_refused(
        |coordinator, now| {
            (0..10_000).for_each(|n| send(coordinator, now, 1000 + n, renew(1000 + u64::from(n), 1)));
        },
        expected,
    );
}

#[test]
fn a_generation_that_nobody_can_have_granted_is_refused_while_it_could_be_believed() {
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 9, 0);
    let holding =
        |generation| vec![Holding { shard: topic(0).shard, generation: Number(generation), phase: Phase::Owned }];
    send(&mut coordinator, 0, 1, Renew { holdings: holding(6), ..renew(7, 1) });
    send(&mut coordinator, 0, 2, Renew { holdings: holding(crate::MAX_NUMBER - 1), ..renew(8, 1) });
    assert_eq!(coordinator.refusals(), Refusals { holdings: 1, ..Refusals::default() });
    let view = coordinator.groups(0);
    let kept = ShardView { shard: 0, generation: 6, state: ShardState::Own };
    assert_eq!((view[0].next_generation, view[0].members[0].shards.as_slice()), (7, [kept].as_slice()));
}

#[test]
fn a_flood_of_requests_is_cut_and_one_of_no_member_is_not_passed_on() {
    let expected = Refusals { repairs: 1000 - 200 + 10, ..Refusals::default() };
    is_refused(
        |coordinator, now| {
            (0..1000).for_each(|request| send(coordinator, now, 2, repair(&stream("tap"), request)));
            (0..10).for_each(|request| send(coordinator, now, 9, repair(&stream("tap"), request)));
            let passed = outputs(coordinator);
            assert_eq!(passed.len(), 200);
            assert!(passed.iter().all(|(to, _)| *to == peer(4)));
        },
        expected,
    );
}

#[test]
fn answers_that_nobody_asked_for_are_not_passed_on() {
    let expected = Refusals { repairs: 4, ..Refusals::default() };
    is_refused(
        |coordinator, now| {
            send(coordinator, now, 4, repaired(&stream("tap"), 1, 1, 10));
            send(coordinator, now, 1, repair(&stream("tap"), 1));
            outputs(coordinator);
            send(coordinator, now, 2, repaired(&stream("tap"), 1, 1, 10));
            send(coordinator, now, 4, repaired(&stream("tap"), 2, 1, 10));
            send(coordinator, now, 4, repaired(&stream("tap"), 1, 1, 10));
            send(coordinator, now, 4, done(&stream("tap"), 1, 1));
            send(coordinator, now, 4, repaired(&stream("tap"), 1, 1, 10));
            let passed: Vec<Peer> = outputs(coordinator).into_iter().map(|(to, _)| to).collect();
            assert_eq!(passed, [peer(1), peer(1)]);
        },
        expected,
    );
}

#[test]
fn a_publisher_that_answers_too_much_uses_up_nothing_of_what_another_owes() {
    let (mut coordinator, now) = with_honest_parties();
    send(&mut coordinator, now, 5, advertise(&stream("evil"), 1, 0, 10));
    send(&mut coordinator, now, 1, repair(&stream("tap"), 1));
    send(&mut coordinator, now, 1, repair(&stream("evil"), 2));
    (0..1000).for_each(|_| send(&mut coordinator, now, 5, repaired(&stream("evil"), 2, 1, 60_000)));
    assert_eq!(coordinator.refusals().repairs, 999, "what was asked for, and room for one large record");
    outputs(&mut coordinator);
    send(&mut coordinator, now, 4, repaired(&stream("tap"), 1, 1, 900));
    assert_eq!(outputs(&mut coordinator).len(), 1);
}

#[test]
fn advertisements_that_cannot_be_are_refused() {
    let expected = Refusals { advertisements: 1, foreign: 1, stale: 1, ..Refusals::default() };
    is_refused(
        |coordinator, now| {
            send(coordinator, now, 4, advertise(&stream("tap"), 2, 200, 150));
            send(coordinator, now, 2, advertise(&stream("tap"), u64::MAX, 0, crate::MAX_NUMBER - 1));
            send(coordinator, now, 4, advertise(&stream("tap"), 1, 0, 500));
            send(coordinator, now, 2, advertise(&stream("evil"), u64::MAX, 0, crate::MAX_NUMBER - 1));
        },
        expected,
    );
}

#[test]
fn nobody_else_speaks_for_a_stream_however_long_it_is_silent() {
    let (mut coordinator, now) = with_honest_parties();
    let later = now + 60 * SECOND;
    send(&mut coordinator, later, 2, advertise(&stream("tap"), 9, 0, 1_000_000));
    assert_eq!(coordinator.refusals().foreign, 1);
    assert_eq!(coordinator.streams(later)[0].published[0], 100);
}

#[test]
fn one_peer_speaks_for_few_streams_and_many_peers_for_no_more_than_are_kept() {
    let expected = Refusals { streams: 992 + (1000 - (256 - 9)), ..Refusals::default() };
    is_refused(
        |coordinator, now| {
            (0..1000).for_each(|n| send(coordinator, now, 2, advertise(&stream(&format!("a{n}")), 1, 0, 10)));
            (0..1000).for_each(|n| send(coordinator, now, 1000 + n, advertise(&stream(&format!("b{n}")), 1, 0, 10)));
        },
        expected,
    );
}

#[test]
fn a_registration_for_which_the_list_has_no_room_is_refused_and_pushes_nothing_out() {
    let mut refused = 0;
    let (mut coordinator, now) = with_honest_parties();
    let before = honest(&coordinator, now);
    for n in 0..40 {
        let incarnation = u64::from(n) + 1000;
        send(&mut coordinator, now, 1000 + n, renew(incarnation, 1));
        send(&mut coordinator, now, 1000 + n, register(incarnation, 1, n * 256 + 1..n * 256 + 257));
        refused += u64::from(n >= 15) * 256;
    }
    assert_eq!(coordinator.refusals(), Refusals { destinations: refused, ..Refusals::default() });
    coordinator.on_tick(now + RELIST_SOONEST);
    assert_eq!(honest(&coordinator, now), before);
    assert_eq!(coordinator.list.len(), 1 + 15 * 256);
    is_bounded(&mut coordinator, now + RELIST_SOONEST);
}

#[test]
fn a_peer_that_changes_its_destinations_in_haste_makes_the_list_neither_long_nor_often_new() {
    let (mut coordinator, now) = with_honest_parties();
    let version = coordinator.list_version;
    let mut at = now;
    for n in 0..1000 {
        at += MILLISECOND;
        coordinator.on_tick(at);
        send(&mut coordinator, at, 2, register(8, u64::from(n) + 1, n * 256..n * 256 + 256));
        is_bounded(&mut coordinator, at);
    }
    assert!(coordinator.list_version - version <= 11, "ten a second");
}

#[test]
fn a_member_is_told_that_all_publishers_know_its_destinations_when_they_do() {
    let (mut coordinator, settled_at) = with_honest_parties();
    let now = settled_at + RELIST_SOONEST;
    coordinator.on_tick(now);
    outputs(&mut coordinator);
    let view = coordinator.view(now);
    assert!(!view.groups[0].members[0].destinations_acknowledged);
    let list_version = view.list_version;
    let known = Advertise { coordinator: 9, list_version, ..advertise(&stream("tap"), 2, 10, 100) };
    send(&mut coordinator, now, 4, known);
    let told = |(to, message): &(Peer, Message)| match message {
        Message::Grant(grant) => *to == peer(1) && (grant.registration, grant.heard_registration) == (1, 1),
        _ => false,
    };
    assert_eq!(outputs(&mut coordinator).iter().filter(|output| told(output)).count(), 1);
    assert!(coordinator.view(now).groups[0].members[0].destinations_acknowledged);
}

#[test]
fn a_stream_that_is_over_is_forgotten_and_one_of_which_something_is_left_is_kept() {
    let (mut coordinator, now) = with_honest_parties();
    let over = Advertise { ended: true, ..advertise(&stream("over"), 1, 0, 10) };
    send(&mut coordinator, now, 5, over);
    let later = now + KEEP_DONE_STREAMS + SWEEP_EVERY;
    coordinator.on_tick(later);
    let left: Vec<Stream> = coordinator.streams(later).into_iter().map(|view| view.stream).collect();
    assert_eq!(left, [stream("tap")], "60 records of it are not committed");
    coordinator.on_tick(later + CoordinatorSettings::default().keep_positions);
    assert!(coordinator.streams.is_empty() && coordinator.groups.is_empty());
}

#[test]
fn a_commit_in_a_stream_that_nobody_speaks_for_holds_nothing_back() {
    let (mut coordinator, now) = with_honest_parties();
    let generation = Number(coordinator.groups(now)[0].members[0].shards[0].generation);
    let holdings = vec![Holding { shard: topic(0).shard, generation, phase: Phase::Released }];
    let later = now + CLAIM_WAITS;
    let commits = commit(&stream("gone"), 0, 5);
    send(&mut coordinator, later, 1, Renew { holdings, commits, ..renew(7, 3) });
    assert_eq!(coordinator.refusals(), Refusals { unknown_streams: 1, ..Refusals::default() });
    let shards = coordinator.groups(later).swap_remove(0).members.swap_remove(0).shards;
    assert!(shards[0].generation != generation.0, "released and granted again at once");
}

#[test]
fn the_proxy_is_being_left_while_a_member_leaves_or_a_publisher_drains() {
    let (mut coordinator, now) = with_honest_parties();
    assert!(!coordinator.is_being_left(now));
    let draining = Advertise { wants_commits: true, ..advertise(&stream("tap"), 2, 10, 100) };
    send(&mut coordinator, now, 4, draining);
    assert!(coordinator.is_being_left(now));
    assert!(!coordinator.is_being_left(now + 10 * SECOND), "it is gone");
    send(&mut coordinator, now, 1, Renew { leaving: true, ..renew(7, 3) });
    assert!(coordinator.is_being_left(now + 10 * SECOND));
}

#[test]
fn a_group_without_members_takes_one_of_any_protocol() {
    let (mut coordinator, now) = with_honest_parties();
    let later = now + 10 * SECOND;
    coordinator.on_tick(later);
    assert_eq!(coordinator.groups(later)[0].protocol, None);
    send(&mut coordinator, later, 3, Renew { lowest_protocol: 2, highest_protocol: 3, ..renew(9, 1) });
    assert_eq!((coordinator.groups(later)[0].protocol, coordinator.refusals().joins), (Some(3), 0));
    send(&mut coordinator, later, 5, renew(10, 1));
    assert_eq!(coordinator.refusals().joins, 1, "it speaks 1 only");
}

#[test]
fn a_renewal_has_these_bytes() {
    let bytes = Message::from(renew(7, 3)).encode();
    assert_eq!(bytes, [0x9e, 1, 1, 0xa1, b'g', 0, 7, 0xa1, b'm', 3, 1, 1, 0xc2, 0, 0x90, 0x90, 0xc2]);
    assert_eq!(Message::decode(&bytes), Ok(Message::from(renew(7, 3))));
    let before = [&[0x9d], &bytes[1..16]].concat();
    assert_eq!(Message::decode(&before), Ok(Message::from(renew(7, 3))), "a version before says nothing of who works");
    let one_works = [&bytes[..16], &[0xc3]].concat();
    assert_eq!(Message::decode(&one_works), Ok(Message::from(Renew { one_works: true, ..renew(7, 3) })));
    let appended = [&[0x9f], &bytes[1..], &[0x93, 1, 2, 3]].concat();
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
