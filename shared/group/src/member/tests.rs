//! Losses, renewals and registrations of a member.

use std::time::Duration;

use sekiwake_record::Kind;

use super::{renewals::SWEEP_EVERY, streams::FOLLOW_ENDED, *};
use crate::{
    Coordinator, CoordinatorSettings, Peer,
    coverage::{Coverage, Span},
    time::SECOND,
    wire::{self, Destination, Number},
};

const STEP: Duration = Duration::from_millis(10);

fn tap() -> Stream {
    Stream::new(&Name::new("tap0").unwrap(), 1)
}

/// A member, its coordinator, and no publisher that answers.
struct Pair {
    coordinator: Coordinator,
    member: Member<()>,
    now: BootTime,
    delivered: Vec<u64>,
    given_up: Vec<(u64, u64, GiveUp)>,
    skipped: Vec<(u64, Option<String>)>,
    /// Requests for repair reach the coordinator.
    passes_repairs: bool,
}

impl Pair {
    fn new() -> Pair {
        let group = Name::new("syslog-forwarder.default").unwrap();
        let settings = MemberSettings::new(group, Kind::Syslog, Name::new("m0").unwrap());
        Pair {
            coordinator: Coordinator::new(CoordinatorSettings::default(), 1, BootTime::ZERO),
            member: Member::new(settings, 7, BootTime::ZERO),
            now: BootTime::ZERO,
            delivered: Vec::new(),
            given_up: Vec::new(),
            skipped: Vec::new(),
            passes_repairs: false,
        }
    }

    /// Lets time pass. Requests for repair are lost unless they are passed on. The coordinator
    /// answers everything else if it is available.
    fn run(&mut self, duration: Duration, coordinator_is_available: bool) {
        let peer = Peer::new(b"member").unwrap();
        let end = self.now + duration;
        while self.now < end {
            self.now += STEP;
            self.member.on_tick(self.now);
            self.coordinator.on_tick(self.now);
            while let Some(output) = self.member.poll_output() {
                match output {
                    MemberOutput::Send(frame)
                        if coordinator_is_available
                            && (self.passes_repairs || !matches!(Message::decode(&frame), Ok(Message::Repair(_)))) =>
                    {
                        self.coordinator.on_message(self.now, &peer, &frame);
                    }
                    MemberOutput::Deliver { first_sequence, .. } => self.delivered.push(first_sequence),
                    MemberOutput::GaveUp { from, to, reason, .. } => self.given_up.push((from, to, reason)),
                    MemberOutput::Skipped { records, presenter, .. } => {
                        self.skipped.push((records, presenter.map(|name| name.to_string())));
                    }
                    _ => {}
                }
            }
            while let Some((_, frame)) = self.coordinator.poll_output() {
                if coordinator_is_available {
                    self.member.on_message(self.now, &frame);
                }
            }
        }
    }

    /// The publisher advertises this many records in the first topic once, and falls silent.
    fn advertise(&mut self, next: u64) {
        let extents = vec![wire::Extent { topic: self.member.topic(0), oldest: Number(0), next: Number(next) }];
        let advertise = wire::Advertise {
            stream: tap(),
            number: 1,
            ended: false,
            wants_commits: false,
            coordinator: 0,
            list_version: 0,
            extents,
            groups: Vec::new(),
            former_age_ns: 0,
            left_alone: Vec::new(),
        };
        let frame = Message::from(advertise).encode();
        self.coordinator.on_message(self.now, &Peer::new(b"publisher").unwrap(), &frame);
    }

    /// The publisher announces this many records in the first topic on the data plane.
    fn announce(&mut self, next_sequence: u64, ended: bool) {
        let topic = self.member.topic(0);
        let positions = vec![sekiwake_record::TopicPosition { topic, oldest_sequence: 0, next_sequence }];
        let announcement =
            Announcement { stream_name: "tap0".to_owned(), stream_epoch: 1, ended, positions, clock_ns: None };
        self.member.on_announcement(self.now, &announcement);
    }

    /// The publisher runs again, with the same name.
    fn run_again(&mut self) {
        let now = self.now + 10 * SECOND;
        let announcement = Announcement {
            stream_name: "tap0".to_owned(),
            stream_epoch: 2,
            ended: false,
            positions: Vec::new(),
            clock_ns: None,
        };
        self.run(10 * SECOND, true);
        self.member.on_announcement(now, &announcement);
    }

    /// Another member says that this much of the first topic was handled.
    fn claim(&mut self, covered: &Coverage) {
        let covered = vec![wire::Covered::new(self.member.topic(0), covered)];
        let renew = wire::Renew {
            group: self.member.settings.group.clone(),
            kind: Kind::Syslog,
            incarnation: 66,
            label: Name::new("liar").unwrap(),
            renewal: 1,
            lowest_protocol: 1,
            highest_protocol: 1,
            leaving: true,
            coordinator: 0,
            holdings: Vec::new(),
            commits: Vec::new(),
            single_active: false,
            coverage: vec![wire::StreamCoverage { stream: tap(), covered }],
            age_ns: 0,
            destinations_digest: 0,
            doubts: Vec::new(),
            former_lease_age_ns: 0,
        };
        self.coordinator.on_message(self.now, &Peer::new(b"liar").unwrap(), &Message::from(renew).encode());
    }

    fn handle(&mut self, first: u64) {
        let generation = self.member.owned().next().unwrap().1;
        self.member.handled(self.now, &tap(), self.member.topic(0).shard, generation, first);
    }

    fn batch(&mut self, first: u64, count: u32) -> Received {
        let topic = self.member.topic(0);
        self.member.on_batch(self.now, &tap(), topic, Arrival { first, count, bytes: 100, batch: () })
    }
}

#[test]
fn unanswered_gaps_are_left_behind_and_not_lost() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert_eq!(pair.batch(10, 5), Received::Accepted);
    assert_eq!(pair.batch(20, 5), Received::Accepted);
    pair.run(SECOND, true);
    assert_eq!(pair.delivered, [], "the publisher has two seconds");
    pair.run(3 * SECOND, true);
    assert_eq!(pair.delivered, [10, 20]);
    pair.run(60 * SECOND, true);
    assert_eq!(pair.given_up, [], "the publisher may return");
    assert_eq!(pair.batch(15, 5), Received::Accepted);
    assert_eq!(pair.batch(15, 5), Received::Duplicate);
    pair.run(SECOND, true);
    assert_eq!(pair.delivered, [10, 20, 15]);
    assert_eq!(pair.member.counters().late, 5);
    [10, 20, 15].into_iter().for_each(|first| pair.handle(first));
    pair.run(SECOND, true);
    assert_eq!(pair.coordinator.groups(pair.now)[0].positions[0].committed, 25);
}

#[test]
fn stream_of_unknown_position_that_is_over_counts_as_unknown() {
    let mut pair = Pair::new();
    pair.passes_repairs = true;
    pair.run(4 * SECOND, true);
    pair.batch(10, 5);
    pair.run(4 * SECOND, true);
    pair.run_again();
    pair.run(8 * SECOND, true);
    assert_eq!(pair.given_up, [(0, 10, GiveUp::Unknown)]);
}

#[test]
fn what_another_member_claims_is_skipped_counted_and_named() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    pair.announce(0, false);
    pair.batch(0, 10);
    pair.handle(0);
    pair.run(SECOND, true);
    pair.claim(&Coverage::up_to(1000));
    pair.run(SECOND, true);
    assert_eq!(pair.skipped, [(990, Some("liar".to_owned()))]);
    assert_eq!(pair.batch(10, 5), Received::Duplicate);
    pair.announce(15, false);
    assert_eq!(pair.member.counters().skipped, 5, "of those only five exist");
    pair.announce(2000, false);
    assert_eq!(pair.member.counters().skipped, 990);
    pair.batch(1000, 1000);
    pair.run(SECOND, true);
    assert_eq!((pair.delivered.as_slice(), pair.given_up.as_slice()), ([0, 1000].as_slice(), [].as_slice()));
}

#[test]
fn invented_streams_evict_no_live_one() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    pair.announce(0, false);
    pair.batch(0, 10);
    pair.handle(0);
    let topic = pair.member.topic(0);
    for n in 0..20_000 {
        let stream = Stream::new(&Name::new(&format!("invented{n}")).unwrap(), 1);
        pair.member.on_batch(pair.now, &stream, topic, Arrival { first: 5, count: 1, bytes: 10, batch: () });
        if n % 20 == 0 {
            pair.announce(10, false);
            pair.run(STEP, true);
        }
    }
    assert_eq!(pair.batch(0, 10), Received::Duplicate);
    assert!(pair.member.counters().refused_streams > 10_000);
}

#[test]
fn start_at_the_first_record_loses_nothing() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert_eq!(pair.batch(0, 5), Received::Accepted);
    pair.run(4 * SECOND, true);
    assert_eq!((pair.given_up.as_slice(), pair.delivered.as_slice()), ([].as_slice(), [0].as_slice()));
}

#[test]
fn nothing_is_given_up_while_the_coordinator_is_silent() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert_eq!(pair.batch(10, 5), Received::Accepted);
    pair.run(20 * SECOND, false);
    assert_eq!((pair.given_up.len(), pair.delivered.len()), (0, 0));
}

#[test]
fn unsent_records_of_a_killed_publisher_count_as_lost() {
    let mut pair = Pair::new();
    pair.passes_repairs = true;
    pair.run(4 * SECOND, true);
    pair.advertise(30);
    assert_eq!(pair.batch(0, 10), Received::Accepted);
    pair.run(3 * SECOND, true);
    pair.announce(30, false);
    pair.run(8 * SECOND, true);
    assert_eq!(pair.given_up, [], "the publisher may return");
    pair.run_again();
    pair.run(8 * SECOND, true);
    assert_eq!(pair.given_up, [(10, 30, GiveUp::StreamGone)]);
    assert_eq!(pair.member.counters().given_up, [0, 20, 0]);
}

#[test]
fn gap_beyond_the_announced_records_counts_as_lost() {
    let mut pair = Pair::new();
    pair.passes_repairs = true;
    pair.run(4 * SECOND, true);
    pair.announce(0, false);
    pair.batch(0, 10);
    pair.claim(&Coverage::of([Span { from: 0, to: 5 }, Span { from: 12, to: 20 }]));
    pair.run(SECOND, true);
    pair.run_again();
    pair.run(8 * SECOND, true);
    assert_eq!(pair.given_up, [(10, 12, GiveUp::StreamGone)]);
    assert!(pair.member.has_received_all() && !pair.member.streams[0].repair.is_scheduled());
}

#[test]
fn next_owner_counts_losses_of_a_killed_publisher() {
    let mut pair = Pair::new();
    pair.passes_repairs = true;
    pair.run(4 * SECOND, true);
    pair.announce(0, false);
    pair.advertise(30);
    pair.batch(0, 10);
    pair.handle(0);
    pair.run(SECOND, true);
    assert_eq!(pair.coordinator.groups(pair.now)[0].positions[0].lag, 20);
    let settings = pair.member.settings.clone();
    pair.member.leave(pair.now);
    pair.run(SECOND, true);
    assert!(pair.member.has_left());
    pair.member = Member::new(settings, 8, pair.now);
    pair.run(10 * SECOND, true);
    pair.run_again();
    pair.run(8 * SECOND, true);
    assert_eq!(pair.given_up, [(10, 30, GiveUp::StreamGone)]);
    assert_eq!(pair.coordinator.groups(pair.now)[0].positions[0].lag, 0);
}

/// A member is killed with ten records handled and announced, then the publisher. A member with
/// this label follows.
fn loss_after_a_kill(label: &str, wait: Duration) -> Vec<(u64, u64, GiveUp)> {
    let mut pair = Pair::new();
    pair.passes_repairs = true;
    pair.run(4 * SECOND, true);
    pair.announce(0, false);
    pair.advertise(30);
    pair.batch(0, 10);
    pair.handle(0);
    pair.run(SECOND, true);
    let mut settings = pair.member.settings.clone();
    pair.run(5 * SECOND, false);
    settings.label = Name::new(label).unwrap();
    pair.member = Member::new(settings, 8, pair.now);
    pair.run(5 * SECOND, true);
    pair.run_again();
    pair.run(8 * SECOND, true);
    let in_doubt = pair.member.status(pair.now).in_doubt;
    let counted: u64 = pair.given_up.iter().map(|(from, to, _)| to - from).sum();
    assert_eq!(in_doubt + counted, 20);
    assert!(pair.member.has_received_all());
    pair.run(wait, true);
    pair.given_up
}

#[test]
fn what_a_killed_member_may_have_handled_is_in_doubt_for_ten_minutes() {
    assert_eq!(loss_after_a_kill("other", 500 * SECOND), []);
    assert_eq!(loss_after_a_kill("other", 600 * SECOND), [(10, 30, GiveUp::Unknown)]);
}

#[test]
fn restarted_member_does_not_return_as_its_former_run() {
    assert_eq!(loss_after_a_kill("m0", Duration::ZERO), [(10, 30, GiveUp::Unknown)]);
}

#[test]
fn ended_stream_is_forgotten_once_nothing_is_outstanding() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    pair.batch(0, 10);
    pair.run(3 * SECOND, true);
    pair.announce(10, true);
    pair.run(FOLLOW_ENDED + 2 * SWEEP_EVERY, true);
    assert_eq!(pair.member.status(pair.now).streams.len(), 1, "a delivery is outstanding");
    pair.handle(0);
    pair.run(2 * SWEEP_EVERY, true);
    assert_eq!(pair.member.status(pair.now).streams.len(), 0);
}

#[test]
fn member_that_handles_much_renews_early_but_not_too_often() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert!(pair.member.owns_all() && pair.member.is_leased(pair.now));
    pair.announce(0, false);
    let (before, mut first) = (pair.member.counters().renewals, 0);
    let topic = pair.member.topic(0);
    for _ in 0..100 {
        for _ in 0..2 {
            let arrival = Arrival { first, count: 1, bytes: 5 << 20, batch: () };
            assert_eq!(pair.member.on_batch(pair.now, &tap(), topic, arrival), Received::Accepted);
            pair.handle(first);
            first += 1;
        }
        pair.run(STEP, true);
    }
    let renewals = pair.member.counters().renewals - before;
    assert!((18..=21).contains(&renewals), "{renewals} per second: every 50 ms");
}

#[test]
fn out_of_range_sequence_numbers_are_rejected() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert_eq!(pair.batch(u64::MAX - 3, 3), Received::NotOwned);
    assert_eq!(pair.batch(MAX_NUMBER - 1, 5), Received::NotOwned);
    pair.run(5 * SECOND, true);
    assert!(pair.member.is_leased(pair.now));
    assert_eq!(pair.member.counters().rejected, 2);
    assert_eq!(pair.coordinator.rejections(), Default::default());
}

#[test]
fn member_that_the_coordinator_forgot_registers_again() {
    let mut pair = Pair::new();
    let destination = Destination::new(std::net::Ipv4Addr::LOCALHOST.into(), 514, wire::Transport::Udp);
    pair.member.set_destinations(pair.now, vec![destination]);
    pair.run(4 * SECOND, true);
    assert!(pair.member.may_use_destinations(pair.now));
    pair.run(20 * SECOND, false);
    assert_eq!(pair.coordinator.view(pair.now).destinations, 0);
    pair.run(2 * SECOND, true);
    assert_eq!(pair.coordinator.view(pair.now).destinations, 1);
}

#[test]
fn reasons_have_distinct_names() {
    let names = GiveUp::ALL.map(GiveUp::as_str);
    assert_eq!(names, ["not_retained", "stream_gone", "unknown"]);
    assert!(GiveUp::ALL.iter().enumerate().all(|(index, &reason)| reason as usize == index));
}
