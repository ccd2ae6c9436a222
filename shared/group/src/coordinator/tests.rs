//! Hostile messages.

use proptest::prelude::*;
use sekiwake_record::{Kind, Name, Shard};

use super::{
    destination_list::{MAX_LINGERING, MAX_LISTED, MIN_UPDATE_PAUSE},
    streams::KEEP_COMPLETE_STREAMS,
    *,
};
use crate::{
    LEASE, LEASE_MARGIN,
    coverage::{Coverage, Span},
    time::{MILLISECOND, SECOND},
    wire::{
        Advertise, Covered, Destination, Done, Extent, Frame, GroupCoverage, Holding, MAX_DOUBTS, MAX_STREAMS, Number,
        Outcome, Phase, Position, Range, Register, Repair, Repaired, StreamCoverage, StreamPositions, Transport,
    },
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
        single_active: false,
        coverage: Vec::new(),
        age_ns: 0,
        destinations_digest: 0,
        doubts: Vec::new(),
        former_lease_age_ns: 0,
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
    Advertise {
        stream,
        number,
        ended: false,
        wants_commits: false,
        coordinator: 0,
        list_version: 0,
        extents,
        groups: Vec::new(),
        former_age_ns: 0,
        left_alone: Vec::new(),
    }
}

fn commit(stream: &Stream, shard: u8, sequence: u64) -> Vec<StreamPositions> {
    let positions = vec![Position { topic: topic(shard), sequence: Number(sequence) }];
    vec![StreamPositions { stream: stream.clone(), positions }]
}

fn repair(stream: &Stream, request: u64) -> Repair {
    let ranges = vec![Range { topic: topic(0), from: Number(0), to: Number(10) }];
    let (requester, stream) = (Peer::default(), stream.clone());
    Repair { requester, request, stream, max_bytes: 1000, ranges, locate: Vec::new(), max_age_ns: 0, group: None }
}

fn repaired(stream: &Stream, request: u64, requester: u32, bytes: usize) -> Repaired {
    let (requester, stream) = (peer(requester), stream.clone());
    Repaired { requester, request, stream, topic: topic(0), header: Frame(vec![1]), body: Frame(vec![0; bytes]) }
}

fn done(stream: &Stream, request: u64, requester: u32) -> Done {
    let (requester, stream) = (peer(requester), stream.clone());
    Done {
        requester,
        request,
        stream,
        outcome: Outcome::Complete,
        retained: Vec::new(),
        located: Vec::new(),
        covered: Vec::new(),
    }
}

fn outputs(coordinator: &mut Coordinator) -> Vec<(Peer, Message)> {
    let next = || coordinator.poll_output().map(|(peer, frame)| (peer, Message::decode(&frame).unwrap()));
    std::iter::from_fn(next).collect()
}

/// The coordinator's state about the honest member and the honest publisher.
fn honest(coordinator: &Coordinator, now: BootTime) -> (Vec<MemberView>, Vec<PositionView>, Vec<StreamView>) {
    let view = coordinator.view(now);
    let groups = view.groups.into_iter().filter(|group| group.name == name("g"));
    let (members, positions): (Vec<_>, Vec<_>) = groups.map(|group| (group.members, group.positions)).unzip();
    (
        members.into_iter().flatten().filter(|member| member.incarnation == 7).collect(),
        positions.into_iter().flatten().collect(),
        view.streams.into_iter().filter(|view| view.stream == stream("tap")).collect(),
    )
}

/// Member 7 of peer 1 owns all shards and has registered a destination, the stream of peer 4 has
/// 100 records, 40 are committed; a hostile peer 2 is member 8 of the same group.
fn with_honest_parties() -> (Coordinator, BootTime) {
    let (mut coordinator, now) = with_an_owner();
    send(&mut coordinator, now, 4, advertise(&stream("tap"), 1, 10, 100));
    let generation = Number(coordinator.groups(now)[0].members[0].shards[0].generation);
    let holdings = vec![Holding { shard: topic(0).shard, generation, phase: Phase::Owned }];
    send(&mut coordinator, now, 1, Renew { holdings, commits: commit(&stream("tap"), 0, 40), ..renew(7, 2) });
    send(&mut coordinator, now, 1, register(7, 1, 0..1));
    send(&mut coordinator, now, 2, renew(8, 1));
    outputs(&mut coordinator);
    assert_eq!(coordinator.rejections(), Rejections::default());
    (coordinator, now)
}

fn register(incarnation: u64, registration: u64, hosts: std::ops::Range<u32>) -> Register {
    let destinations = hosts.map(|host| Destination::new(std::net::Ipv4Addr::from(host).into(), 514, Transport::Udp));
    Register { group: name("g"), incarnation, registration, destinations: destinations.collect() }
}

/// Lets a hostile party act, which must be counted and change nothing for the honest parties.
fn is_rejected(hostile: impl FnOnce(&mut Coordinator, BootTime), expected: Rejections) {
    let (mut coordinator, now) = with_honest_parties();
    let before = honest(&coordinator, now);
    hostile(&mut coordinator, now);
    assert_eq!(coordinator.rejections(), expected);
    assert_eq!(honest(&coordinator, now), before);
    is_bounded(&mut coordinator, now);
}

/// Checks the limits of all tables, and that no deadline is overdue.
fn is_bounded(coordinator: &mut Coordinator, now: BootTime) {
    assert!(coordinator.groups.len() <= MAX_GROUPS);
    assert!(coordinator.groups.values().all(|group| group.members.len() <= MAX_MEMBERS));
    assert!(coordinator.groups.values().all(|group| group.positions.streams() <= MAX_STREAMS));
    assert!(coordinator.groups.values().all(|group| group.doubts.len() <= MAX_DOUBTS));
    assert!(coordinator.streams.len() <= MAX_STREAMS);
    assert!(coordinator.routes.len() <= coordinator.groups.values().map(|group| group.members.len()).sum());
    assert!(coordinator.list.lingering() <= MAX_LINGERING);
    assert!(coordinator.list.entries().len() <= MAX_LISTED);
    outputs(coordinator);
    coordinator.on_tick(now);
    assert!(coordinator.next_deadline() > now);
}

fn send(coordinator: &mut Coordinator, now: BootTime, from: u32, message: impl Into<Message>) {
    coordinator.on_message(now, &peer(from), &message.into().encode());
}

/// A coordinator after its grace period, whose only member, 7 of peer 1, owns all shards.
fn with_an_owner() -> (Coordinator, BootTime) {
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 9, BootTime::ZERO);
    let now = BootTime::ZERO + LEASE + LEASE_MARGIN;
    coordinator.on_tick(now);
    send(&mut coordinator, now, 1, renew(7, 1));
    assert_eq!(coordinator.groups(now)[0].members[0].shards.len(), 64);
    (coordinator, now)
}

/// A member returns to a new coordinator with a shard that it had under the last one. Whether
/// another member may have had it afterwards, if the member's lease began and the last coordinator
/// was last heard so long ago.
fn may_have_had_another_owner(leased: Duration, heard: Duration) -> bool {
    let mut now = BootTime::ZERO + 20 * SECOND;
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 9, now);
    let holdings = vec![Holding { shard: topic(0).shard, generation: Number(5), phase: Phase::Owned }];
    let commits = commit(&stream("tap"), 0, 40);
    let renewed = Renew { holdings, commits, ..renew(7, 1) };
    send(&mut coordinator, now, 1, Renew { coordinator: 8, ..renewed.clone() });
    let former_age_ns = heard.as_nanos() as u64;
    let advertised = Advertise { coordinator: 9, former_age_ns, ..advertise(&stream("tap"), 1, 50, 100) };
    send(&mut coordinator, now, 4, advertised);
    outputs(&mut coordinator);
    now += SECOND;
    let former_lease_age_ns = (leased + SECOND).as_nanos() as u64;
    send(&mut coordinator, now, 1, Renew { coordinator: 9, renewal: 2, former_lease_age_ns, ..renewed });
    let granted = outputs(&mut coordinator).into_iter().find_map(|(_, message)| match message {
        Message::Grant(grant) => Some(grant),
        _ => None,
    });
    let ends = granted.unwrap().doubts.into_iter().flat_map(|doubt| doubt.ends);
    ends.flat_map(|ends| ends.positions).any(|end| end.topic == topic(0))
}

#[test]
fn owner_was_the_last_one_if_its_lease_outlived_the_last_coordinator() {
    let leased = 10 * SECOND;
    // The shard was granted again after 3.5 s, and a coordinator is heard every second.
    assert!(!may_have_had_another_owner(leased, leased + SECOND));
    assert!(!may_have_had_another_owner(leased, leased - 2500 * MILLISECOND));
    assert!(may_have_had_another_owner(leased, leased - 2501 * MILLISECOND));
    assert!(may_have_had_another_owner(leased, SECOND));
}

#[test]
fn flood_of_joins_of_one_peer_is_rejected() {
    let (mut coordinator, now) = with_an_owner();
    send(&mut coordinator, now, 2, renew(100, 1));
    (101..1000).for_each(|incarnation| send(&mut coordinator, now, 2, renew(incarnation, 1)));
    (0..1000).for_each(|n| {
        send(&mut coordinator, now, 3, Renew { group: Name::new(&format!("x{n}")).unwrap(), ..renew(n, 1) });
    });
    assert_eq!(coordinator.groups(now).len(), 1 + MAX_MEMBERSHIPS);
    assert_eq!(coordinator.groups(now)[0].members.len(), 2);
    assert_eq!(coordinator.rejections().joins, 899 + 1000 - MAX_MEMBERSHIPS as u64);
}

#[test]
fn renewal_in_another_name_is_rejected() {
    let (mut coordinator, now) = with_an_owner();
    send(&mut coordinator, now, 2, Renew { leaving: true, ..renew(7, 2) });
    assert_eq!(coordinator.rejections().foreign, 1);
    assert_eq!(coordinator.groups(now)[0].members[0].shards.len(), 64);
}

#[test]
fn position_beyond_the_announced_records_is_kept() {
    let (mut coordinator, now) = with_honest_parties();
    send(&mut coordinator, now, 1, Renew { commits: commit(&stream("tap"), 0, 101), ..renew(7, 3) });
    send(&mut coordinator, now, 1, Renew { commits: commit(&stream("unknown"), 0, 5), ..renew(7, 4) });
    let place = |name, committed| PositionView { stream: stream(name), shard: 0, committed, lag: 0 };
    assert_eq!(coordinator.groups(now)[0].positions, [place("tap", 101), place("unknown", 5)]);
    assert_eq!(coordinator.rejections(), Rejections::default());
}

/// What the newest grant to a peer says of shard 0 in stream `tap`.
fn told(coordinator: &mut Coordinator, to: u32) -> Option<(Vec<u64>, Option<Name>)> {
    let grants = outputs(coordinator).into_iter().filter(|(peer_of, _)| *peer_of == peer(to));
    let coverage = grants.filter_map(|(_, message)| match message {
        Message::Grant(grant) => Some(grant.coverage),
        _ => None,
    });
    let covered = coverage.last()?.into_iter().flat_map(|of_stream| of_stream.covered);
    let told = covered.map(|covered| (covered.ranges.iter().map(|end| end.0).collect(), covered.presenter));
    told.last()
}

#[test]
fn owner_is_told_what_another_member_presents_and_by_whom() {
    let (mut coordinator, now) = with_honest_parties();
    let coverage = vec![StreamCoverage {
        stream: stream("tap"),
        covered: vec![Covered { topic: topic(0), ranges: [0, 20, 60, 90].map(Number).to_vec(), presenter: None }],
    }];
    let commits = commit(&stream("tap"), 0, 20);
    send(&mut coordinator, now, 2, Renew { label: name("other"), coverage, commits, ..renew(8, 2) });
    let expected = (vec![0, 40, 60, 90], Some(name("other")));
    assert_eq!(told(&mut coordinator, 1), Some(expected.clone()), "at once");
    send(&mut coordinator, now, 1, renew(7, 3));
    assert_eq!(told(&mut coordinator, 1), Some(expected), "until the owner reports it");
    let coverage = vec![StreamCoverage {
        stream: stream("tap"),
        covered: vec![Covered { topic: topic(0), ranges: [0, 41, 60, 90].map(Number).to_vec(), presenter: None }],
    }];
    send(&mut coordinator, now, 1, Renew { coverage, ..renew(7, 4) });
    assert_eq!(told(&mut coordinator, 1), None);
    assert_eq!(coordinator.groups(now)[0].positions[0].lag, 100 - 41 - 30);
    assert_eq!(coordinator.rejections(), Rejections::default());
}

#[test]
fn former_owner_that_was_ahead_of_its_stream_is_named() {
    let (mut coordinator, now) = with_honest_parties();
    send(&mut coordinator, now, 1, Renew { commits: commit(&stream("tap"), 0, 1000), ..renew(7, 3) });
    let later = now + LEASE + LEASE_MARGIN;
    send(&mut coordinator, later, 4, advertise(&stream("tap"), 2, 10, 110));
    coordinator.on_tick(later);
    outputs(&mut coordinator);
    send(&mut coordinator, later, 3, renew(9, 1));
    assert_eq!(told(&mut coordinator, 3), Some((vec![0, 1000], Some(name("m")))));
}

#[test]
fn newer_owner_is_told_what_the_former_one_reported_first() {
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 9, BootTime::ZERO);
    let now = BootTime::ZERO + SECOND;
    let owned =
        |generation| vec![Holding { shard: topic(0).shard, generation: Number(generation), phase: Phase::Owned }];
    let commits = commit(&stream("tap"), 0, 40);
    send(&mut coordinator, now, 1, Renew { holdings: owned(6), commits: commits.clone(), ..renew(7, 1) });
    send(&mut coordinator, now, 2, Renew { holdings: owned(9), ..renew(8, 1) });
    let expected = (vec![0, 40], Some(name("m")));
    assert_eq!(told(&mut coordinator, 2), Some(expected.clone()));
    send(&mut coordinator, now, 2, Renew { holdings: owned(9), ..renew(8, 2) });
    assert_eq!(told(&mut coordinator, 2), Some(expected), "until it reports it");
    send(&mut coordinator, now, 2, Renew { holdings: owned(9), commits, ..renew(8, 3) });
    assert_eq!(told(&mut coordinator, 2), None);
}

#[test]
fn publisher_presents_a_group_that_nobody_else_knows() {
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 9, BootTime::ZERO);
    let now = BootTime::ZERO + LEASE + LEASE_MARGIN;
    coordinator.on_tick(now);
    let covered = vec![Covered { topic: topic(0), ranges: [0, 40, 60, 90].map(Number).to_vec(), presenter: None }];
    let groups = vec![GroupCoverage { group: name("g"), age_ns: 5_000_000_000, covered: covered.clone() }];
    send(&mut coordinator, now, 4, Advertise { groups, ..advertise(&stream("tap"), 1, 10, 100) });
    let notice = outputs(&mut coordinator).into_iter().find_map(|(_, message)| match message {
        Message::Notice(notice) => Some(notice.groups),
        _ => None,
    });
    assert_eq!(notice, Some(vec![GroupCoverage { group: name("g"), age_ns: 5_000_000_000, covered }]));
    send(&mut coordinator, now, 1, renew(7, 1));
    assert_eq!(told(&mut coordinator, 1), Some((vec![0, 40, 60, 90], None)));
}

#[test]
fn group_that_returns_waits_for_its_other_members() {
    let (mut coordinator, now) = with_honest_parties();
    let later = now + 60 * SECOND;
    coordinator.on_tick(later);
    send(&mut coordinator, later, 1, Renew { coordinator: 9, ..renew(7, 9) });
    assert_eq!(coordinator.groups(later)[0].unowned.len(), 64);
    let waited = later + LEASE + LEASE_MARGIN - MILLISECOND;
    send(&mut coordinator, waited, 1, Renew { coordinator: 9, ..renew(7, 10) });
    assert_eq!(coordinator.groups(waited)[0].unowned.len(), 64);
    assert_eq!(coordinator.next_deadline(), waited + MILLISECOND);
    coordinator.on_tick(waited + MILLISECOND);
    assert_eq!(coordinator.groups(waited)[0].unowned.len(), 0);
}

#[test]
fn positions_of_another_kind_are_rejected() {
    let expected = Rejections { commits: 1, ..Rejections::default() };
    is_rejected(
        |coordinator, now| {
            let mut commits = commit(&stream("tap"), 0, 40);
            let topic = Topic { kind: Kind::Xflow, ..topic(0) };
            commits[0].positions.push(Position { topic, sequence: Number(90) });
            send(coordinator, now, 2, Renew { commits, ..renew(8, 2) });
        },
        expected,
    );
}

#[test]
fn commits_of_one_group_do_not_affect_another() {
    is_rejected(
        |coordinator, now| {
            let renew = |renewal| Renew { group: name("other"), ..renew(9, renewal) };
            send(coordinator, now, 3, renew(1));
            let view = coordinator.groups(now).into_iter().find(|group| group.name == name("other")).unwrap();
            let generation = Number(view.members[0].shards[0].generation);
            let holdings = vec![Holding { shard: topic(0).shard, generation, phase: Phase::Owned }];
            send(coordinator, now, 3, Renew { holdings, commits: commit(&stream("tap"), 0, 99), ..renew(2) });
        },
        Rejections::default(),
    );
}

#[test]
fn renewal_in_another_name_changes_nothing_for_the_member() {
    let expected = Rejections { foreign: 2, ..Rejections::default() };
    is_rejected(
        |coordinator, now| {
            send(coordinator, now, 2, Renew { leaving: true, commits: commit(&stream("tap"), 0, 90), ..renew(7, 99) });
            send(coordinator, now, 2, register(7, 99, 0..0));
        },
        expected,
    );
}

#[test]
fn large_malformed_and_misdirected_messages_are_rejected() {
    let expected = Rejections { malformed: 5, ..Rejections::default() };
    is_rejected(
        |coordinator, now| {
            send(coordinator, now, 4, repaired(&stream("tap"), 1, 1, MAX_MESSAGE_BYTES));
            let mut frame = Message::from(repaired(&stream("tap"), 1, 1, 10)).encode();
            frame.pop();
            coordinator.on_message(now, &peer(4), &frame);
            frame.extend([0, 0]);
            coordinator.on_message(now, &peer(4), &frame);
            coordinator.on_message(now, &peer(4), &[0x92, 1, Repaired::NUMBER as u8]);
            let rejected = Rejected { group: name("g"), incarnation: 7, reason: RejectionReason::Full };
            send(coordinator, now, 2, rejected);
        },
        expected,
    );
}

#[test]
fn flood_of_joins_of_many_peers_takes_no_shard_away() {
    let expected = Rejections { joins: 10_000 - 126, ..Rejections::default() };
    is_rejected(
        |coordinator, now| {
            (0..10_000).for_each(|n| send(coordinator, now, 1000 + n, renew(1000 + u64::from(n), 1)));
        },
        expected,
    );
}

#[test]
fn impossible_generation_is_rejected_in_the_grace_period() {
    let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 9, BootTime::ZERO);
    let holding =
        |generation| vec![Holding { shard: topic(0).shard, generation: Number(generation), phase: Phase::Owned }];
    send(&mut coordinator, BootTime::ZERO, 1, Renew { holdings: holding(6), ..renew(7, 1) });
    send(&mut coordinator, BootTime::ZERO, 2, Renew { holdings: holding(crate::MAX_NUMBER - 1), ..renew(8, 1) });
    assert_eq!(coordinator.rejections(), Rejections { holdings: 1, ..Rejections::default() });
    let view = coordinator.groups(BootTime::ZERO);
    let kept = ShardView { shard: 0, generation: 6, state: ShardState::Own };
    assert_eq!((view[0].next_generation, view[0].members[0].shards.as_slice()), (7, [kept].as_slice()));
}

#[test]
fn requests_over_the_rate_or_not_from_a_member_are_rejected() {
    let expected = Rejections { repairs: 1000 - 200 + 10, ..Rejections::default() };
    is_rejected(
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
fn unrequested_answers_are_not_passed_on() {
    let expected = Rejections { repairs: 4, ..Rejections::default() };
    is_rejected(
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
fn excess_answers_of_one_publisher_do_not_affect_another() {
    let (mut coordinator, now) = with_honest_parties();
    send(&mut coordinator, now, 5, advertise(&stream("evil"), 1, 0, 10));
    send(&mut coordinator, now, 1, repair(&stream("tap"), 1));
    send(&mut coordinator, now, 1, repair(&stream("evil"), 2));
    (0..1000).for_each(|_| send(&mut coordinator, now, 5, repaired(&stream("evil"), 2, 1, 60_000)));
    assert_eq!(coordinator.rejections().repairs, 999, "the requested bytes, and one large record");
    outputs(&mut coordinator);
    send(&mut coordinator, now, 4, repaired(&stream("tap"), 1, 1, 900));
    assert_eq!(outputs(&mut coordinator).len(), 1);
}

#[test]
fn impossible_advertisements_are_rejected() {
    let expected = Rejections { advertisements: 1, foreign: 1, stale: 1, ..Rejections::default() };
    is_rejected(
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
fn no_other_peer_can_take_over_a_silent_stream() {
    let (mut coordinator, now) = with_honest_parties();
    let later = now + 60 * SECOND;
    send(&mut coordinator, later, 2, advertise(&stream("tap"), 9, 0, 1_000_000));
    assert_eq!(coordinator.rejections().foreign, 1);
    assert_eq!(coordinator.streams(later)[0].published[0], 100);
}

#[test]
fn streams_per_peer_and_in_all_are_limited() {
    let expected = Rejections { streams: 992 + (1000 - (256 - 9)), ..Rejections::default() };
    is_rejected(
        |coordinator, now| {
            (0..1000).for_each(|n| send(coordinator, now, 2, advertise(&stream(&format!("a{n}")), 1, 0, 10)));
            (0..1000).for_each(|n| send(coordinator, now, 1000 + n, advertise(&stream(&format!("b{n}")), 1, 0, 10)));
        },
        expected,
    );
}

#[test]
fn registration_beyond_the_list_is_rejected_and_evicts_nothing() {
    let mut rejected = 0;
    let (mut coordinator, now) = with_honest_parties();
    let before = honest(&coordinator, now);
    for n in 0..40 {
        let incarnation = u64::from(n) + 1000;
        send(&mut coordinator, now, 1000 + n, renew(incarnation, 1));
        send(&mut coordinator, now, 1000 + n, register(incarnation, 1, n * 256 + 1..n * 256 + 257));
        rejected += u64::from(n >= 15) * 256;
    }
    assert_eq!(coordinator.rejections(), Rejections { destinations: rejected, ..Rejections::default() });
    coordinator.on_tick(now + MIN_UPDATE_PAUSE);
    assert_eq!(honest(&coordinator, now), before);
    assert_eq!(coordinator.list.entries().len(), 1 + 15 * 256);
    is_bounded(&mut coordinator, now + MIN_UPDATE_PAUSE);
}

#[test]
fn rapid_registrations_neither_grow_nor_renew_the_list_much() {
    let (mut coordinator, now) = with_honest_parties();
    let version = coordinator.list.version();
    let mut at = now;
    for n in 0..1000 {
        at += MILLISECOND;
        coordinator.on_tick(at);
        send(&mut coordinator, at, 2, register(8, u64::from(n) + 1, n * 256..n * 256 + 256));
        is_bounded(&mut coordinator, at);
    }
    assert!(coordinator.list.version() - version <= 11, "ten per second");
}

#[test]
fn registration_is_acknowledged_once_all_publishers_know_it() {
    let (mut coordinator, grants_from) = with_honest_parties();
    let now = grants_from + MIN_UPDATE_PAUSE;
    coordinator.on_tick(now);
    outputs(&mut coordinator);
    let view = coordinator.view(now);
    assert!(!view.groups[0].members[0].destinations_acknowledged);
    let list_version = view.list_version;
    let known = Advertise { coordinator: 9, list_version, ..advertise(&stream("tap"), 2, 10, 100) };
    send(&mut coordinator, now, 4, known);
    let acknowledged_registration = |(to, message): &(Peer, Message)| match message {
        Message::Grant(grant) => *to == peer(1) && (grant.registration, grant.known_registration) == (1, 1),
        _ => false,
    };
    assert_eq!(outputs(&mut coordinator).iter().filter(|output| acknowledged_registration(output)).count(), 1);
    assert!(coordinator.view(now).groups[0].members[0].destinations_acknowledged);
}

#[test]
fn ended_stream_is_forgotten_unless_records_are_left() {
    let (mut coordinator, now) = with_honest_parties();
    let over = Advertise { ended: true, ..advertise(&stream("over"), 1, 0, 10) };
    send(&mut coordinator, now, 5, over);
    let later = now + KEEP_COMPLETE_STREAMS + SWEEP_EVERY;
    coordinator.on_tick(later);
    let left: Vec<Stream> = coordinator.streams(later).into_iter().map(|view| view.stream).collect();
    assert_eq!(left, [stream("tap")], "60 records of it are not committed");
    coordinator.on_tick(later + CoordinatorSettings::default().keep_positions);
    assert!(coordinator.streams.is_empty() && coordinator.groups.is_empty());
}

#[test]
fn ended_stream_with_a_gap_is_kept() {
    let (mut coordinator, now) = with_honest_parties();
    let over = Advertise { ended: true, ..advertise(&stream("over"), 1, 0, 10) };
    send(&mut coordinator, now, 5, over);
    let covered = Coverage::of([Span { from: 0, to: 10 }, Span { from: 12, to: 20 }]);
    let coverage = vec![StreamCoverage { stream: stream("over"), covered: vec![Covered::new(topic(0), &covered)] }];
    send(&mut coordinator, now, 1, Renew { coverage, ..renew(7, 3) });
    coordinator.on_tick(now + KEEP_COMPLETE_STREAMS + SWEEP_EVERY);
    assert!(coordinator.streams.contains_key(&stream("over")), "10 and 11 are owed");
}

#[test]
fn proxy_is_being_left_while_members_leave_or_publishers_drain() {
    let (mut coordinator, now) = with_honest_parties();
    assert!(!coordinator.is_being_left(now));
    let draining = Advertise { wants_commits: true, ..advertise(&stream("tap"), 2, 10, 100) };
    send(&mut coordinator, now, 4, draining);
    assert!(coordinator.is_being_left(now));
    assert!(!coordinator.is_being_left(now + 10 * SECOND), "the publisher is silent");
    send(&mut coordinator, now, 1, Renew { leaving: true, ..renew(7, 3) });
    assert!(coordinator.is_being_left(now + 10 * SECOND));
}

#[test]
fn group_without_members_admits_any_protocol() {
    let (mut coordinator, now) = with_honest_parties();
    let later = now + 10 * SECOND;
    coordinator.on_tick(later);
    assert_eq!(coordinator.groups(later)[0].protocol, None);
    send(&mut coordinator, later, 3, Renew { lowest_protocol: 2, highest_protocol: 3, ..renew(9, 1) });
    assert_eq!((coordinator.groups(later)[0].protocol, coordinator.rejections().joins), (Some(3), 0));
    send(&mut coordinator, later, 5, renew(10, 1));
    assert_eq!(coordinator.rejections().joins, 1, "the group speaks only 1");
}

#[test]
fn renewal_has_these_bytes() {
    let bytes = Message::from(renew(7, 3)).encode();
    assert_eq!(
        bytes,
        [0xdc, 0, 19, 1, 1, 0xa1, b'g', 0, 7, 0xa1, b'm', 3, 1, 1, 0xc2, 0, 0x90, 0x90, 0xc2, 0x90, 0, 0, 0x90, 0]
    );
    assert_eq!(Message::decode(&bytes), Ok(Message::from(renew(7, 3))));
    let before = [&[0x9d], &bytes[3..18]].concat();
    assert_eq!(Message::decode(&before), Ok(Message::from(renew(7, 3))), "an older version lacks the appended fields");
    let single_active = [&[0x9e], &bytes[3..18], &[0xc3]].concat();
    assert_eq!(Message::decode(&single_active), Ok(Message::from(Renew { single_active: true, ..renew(7, 3) })));
    let appended = [&[0xdc, 0, 20], &bytes[3..], &[0x93, 1, 2, 3]].concat();
    assert_eq!(Message::decode(&appended), Ok(Message::from(renew(7, 3))), "a later version appends");
    assert!(Message::decode(&[&bytes[..], &[0]].concat()).is_err());
}

fn events(coordinator: &mut Coordinator) -> Vec<CoordinatorEvent> {
    std::iter::from_fn(|| coordinator.poll_event()).collect()
}

#[test]
fn expired_lease_names_the_member_its_shards_and_their_takers() {
    let (mut coordinator, now) = with_honest_parties();
    let later = now + 3 * SECOND;
    send(&mut coordinator, later, 2, renew(8, 2));
    send(&mut coordinator, later, 4, advertise(&stream("tap"), 2, 10, 150));
    assert_eq!(events(&mut coordinator), []);
    coordinator.on_tick(now + LEASE + LEASE_MARGIN);
    let expected = LeaseExpired {
        group: name("g"),
        member: name("m"),
        silent_for: LEASE + LEASE_MARGIN,
        shards: u64::MAX,
        takers: vec![Taker { member: name("m"), shards: u64::MAX }],
        unacknowledged: 110,
    };
    assert_eq!(events(&mut coordinator), [CoordinatorEvent::LeaseExpired(expected)]);
    coordinator.on_tick(later + LEASE + LEASE_MARGIN);
    let last = events(&mut coordinator);
    let [CoordinatorEvent::LeaseExpired(last)] = &last[..] else { panic!("{last:?}") };
    assert_eq!((&*last.takers, last.shards), (&[][..], u64::MAX), "nobody is left");
}

#[test]
fn member_that_leaves_in_order_has_no_expired_lease() {
    let (mut coordinator, now) = with_honest_parties();
    send(&mut coordinator, now, 2, Renew { leaving: true, ..renew(8, 2) });
    coordinator.on_tick(now + SECOND);
    assert_eq!(events(&mut coordinator), [CoordinatorEvent::Left { group: name("g"), member: name("m") }]);
}

#[test]
fn members_with_different_destinations_are_told_after_a_minute() {
    let (mut coordinator, mut now) = with_honest_parties();
    let mut renewal = 10;
    let mut renew_all = |coordinator: &mut Coordinator, now: BootTime, digests: [u64; 2]| {
        renewal += 1;
        for (incarnation, digest) in [7, 8].into_iter().zip(digests).rev() {
            let renew = Renew { destinations_digest: digest, ..renew(incarnation, renewal) };
            send(coordinator, now, incarnation as u32 - 6, renew);
        }
        let grants = outputs(coordinator).into_iter().filter_map(|(_, message)| match message {
            Message::Grant(grant) => Some((grant.incarnation, grant.differing)),
            _ => None,
        });
        grants.collect::<BTreeMap<_, _>>().into_values().flatten().count()
    };
    assert_eq!(renew_all(&mut coordinator, now, [5, 5]), 0);
    for _ in 0..60 {
        assert_eq!(renew_all(&mut coordinator, now, [5, 6]), 0);
        let difference = coordinator.groups(now)[0].difference.clone().unwrap();
        assert!(!difference.is_reported && difference.sets.len() == 2);
        now += SECOND;
    }
    assert_eq!(renew_all(&mut coordinator, now, [5, 6]), 2, "each is told of the other");
    assert!(coordinator.groups(now)[0].difference.clone().unwrap().is_reported);
    // A member of an older version sends none.
    assert_eq!(renew_all(&mut coordinator, now, [5, 0]), 0);
    assert_eq!(renew_all(&mut coordinator, now, [5, 6]), 0, "the minute begins again");
    assert_eq!(renew_all(&mut coordinator, now, [6, 6]), 0);
    assert_eq!(coordinator.groups(now)[0].difference, None);
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
