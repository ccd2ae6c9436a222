//! What a member says of records that it cannot ask for.

use super::*;
use crate::{Coordinator, CoordinatorSettings, Peer, SECOND};

const STEP: u64 = 10 * MILLISECOND;

fn tap() -> Stream {
    Stream::new(&Name::new("tap0").unwrap(), 1)
}

/// A member, its coordinator, and no publisher that answers.
struct Pair {
    coordinator: Coordinator,
    member: Member<()>,
    now: u64,
    delivered: Vec<u64>,
    given_up: Vec<(u64, u64, GiveUp)>,
    /// Requests for repair reach the coordinator.
    passes_repairs: bool,
}

impl Pair {
    fn new() -> Pair {
        let group = Name::new("syslog-forwarder.default").unwrap();
        let settings = MemberSettings::new(group, Kind::Syslog, Name::new("m0").unwrap());
        Pair {
            coordinator: Coordinator::new(CoordinatorSettings::default(), 1, 0),
            member: Member::new(settings, 7, 0),
            now: 0,
            delivered: Vec::new(),
            given_up: Vec::new(),
            passes_repairs: false,
        }
    }

    /// Lets time pass. Requests for repair are lost, if they are not passed on; the coordinator answers the rest if it is there.
    fn run(&mut self, duration: u64, coordinator_is_there: bool) {
        let peer = Peer::new(b"member").unwrap();
        let end = self.now + duration;
        while self.now < end {
            self.now += STEP;
            self.member.on_tick(self.now);
            self.coordinator.on_tick(self.now);
            while let Some(output) = self.member.poll_output() {
                match output {
                    MemberOutput::Send(frame)
                        if coordinator_is_there
                            && (self.passes_repairs || !matches!(Message::decode(&frame), Ok(Message::Repair(_)))) =>
                    {
                        self.coordinator.on_message(self.now, &peer, &frame);
                    }
                    MemberOutput::Deliver { first_sequence, .. } => self.delivered.push(first_sequence),
                    MemberOutput::GaveUp { from, to, reason, .. } => self.given_up.push((from, to, reason)),
                    _ => {}
                }
            }
            while let Some((_, frame)) = self.coordinator.poll_output() {
                if coordinator_is_there {
                    self.member.on_message(self.now, &frame);
                }
            }
        }
    }

    /// The publisher says that it has so many records on the first topic, and then no more.
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
        };
        let frame = Message::from(advertise).encode();
        self.coordinator.on_message(self.now, &Peer::new(b"publisher").unwrap(), &frame);
    }

    /// The same in band, where no record has none.
    fn announce(&mut self, next_sequence: u64, ended: bool) {
        let topic = self.member.topic(0);
        let positions = vec![sekiwake_record::TopicPosition { topic, oldest_sequence: 0, next_sequence }];
        let announcement = Announcement { stream_name: "tap0".to_owned(), stream_epoch: 1, ended, positions };
        self.member.on_announcement(self.now, &announcement);
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
fn what_is_before_a_start_that_nobody_can_tell_is_counted_as_lost() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert_eq!(pair.batch(10, 5), Received::Taken);
    assert_eq!(pair.batch(20, 5), Received::Taken);
    pair.run(SECOND, true);
    assert_eq!(pair.given_up, [], "the publisher has two seconds");
    pair.run(3 * SECOND, true);
    assert_eq!(pair.given_up, [(0, 10, GiveUp::NotLocated), (15, 20, GiveUp::Unanswered)]);
    assert_eq!(pair.delivered, [10, 20]);
}

#[test]
fn a_start_at_the_first_record_loses_nothing() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert_eq!(pair.batch(0, 5), Received::Taken);
    pair.run(4 * SECOND, true);
    assert_eq!((pair.given_up.as_slice(), pair.delivered.as_slice()), ([].as_slice(), [0].as_slice()));
}

#[test]
fn nothing_is_given_up_while_the_coordinator_is_silent() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert_eq!(pair.batch(10, 5), Received::Taken);
    pair.run(20 * SECOND, false);
    assert_eq!((pair.given_up.len(), pair.delivered.len()), (0, 0));
}

#[test]
fn the_tail_of_a_publisher_that_died_is_lost_with_its_stream() {
    let mut pair = Pair::new();
    pair.passes_repairs = true;
    pair.run(4 * SECOND, true);
    pair.advertise(30);
    assert_eq!(pair.batch(0, 10), Received::Taken);
    pair.run(3 * SECOND, true);
    pair.announce(30, false);
    pair.run(8 * SECOND, true);
    assert_eq!(pair.given_up, [(10, 30, GiveUp::StreamGone)]);
    assert_eq!(pair.member.counters().given_up, [0, 20, 0, 0]);
}

#[test]
fn the_tail_of_a_publisher_that_died_with_the_owner_is_counted_by_the_next_owner() {
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
    pair.run(5 * SECOND, false);
    pair.member = Member::new(settings, 8, pair.now);
    pair.run(10 * SECOND, true);
    assert_eq!(pair.given_up, [(10, 30, GiveUp::StreamGone)]);
    assert_eq!(pair.coordinator.groups(pair.now)[0].positions[0].lag, 0);
}

#[test]
fn a_stream_that_ended_is_forgotten_when_nothing_of_it_is_left() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    pair.batch(0, 10);
    pair.run(3 * SECOND, true);
    pair.announce(10, true);
    pair.run(FOLLOW_ENDED + 2 * SWEEP_EVERY, true);
    assert_eq!(pair.member.status(pair.now).streams.len(), 1, "a delivery is in hand");
    pair.handle(0);
    pair.run(2 * SWEEP_EVERY, true);
    assert_eq!(pair.member.status(pair.now).streams.len(), 0);
}

#[test]
fn a_member_that_handles_much_renews_early_and_not_too_often() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert!(pair.member.owns_all() && pair.member.is_leased(pair.now));
    pair.announce(0, false);
    let (before, mut first) = (pair.member.counters().renewals, 0);
    let topic = pair.member.topic(0);
    for _ in 0..100 {
        for _ in 0..2 {
            let arrival = Arrival { first, count: 1, bytes: 5 << 20, batch: () };
            assert_eq!(pair.member.on_batch(pair.now, &tap(), topic, arrival), Received::Taken);
            pair.handle(first);
            first += 1;
        }
        pair.run(STEP, true);
    }
    let renewals = pair.member.counters().renewals - before;
    assert!((18..=21).contains(&renewals), "{renewals} in a second: every 50 ms");
}

#[test]
fn numbers_beyond_belief_are_refused_and_the_member_stays_in_its_group() {
    let mut pair = Pair::new();
    pair.run(4 * SECOND, true);
    assert_eq!(pair.batch(u64::MAX - 3, 3), Received::NotOurs);
    assert_eq!(pair.batch(MAX_NUMBER - 1, 5), Received::NotOurs);
    pair.run(5 * SECOND, true);
    assert!(pair.member.is_leased(pair.now));
    assert_eq!(pair.member.counters().refused, 2);
    assert_eq!(pair.coordinator.refusals(), Default::default());
}

#[test]
fn a_member_that_the_coordinator_forgot_registers_again() {
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
fn reasons_have_names() {
    let names = GiveUp::ALL.map(GiveUp::as_str);
    assert_eq!(names, ["not_retained", "stream_gone", "unanswered", "not_located"]);
    assert!(GiveUp::ALL.iter().enumerate().all(|(index, &reason)| reason as usize == index));
}
