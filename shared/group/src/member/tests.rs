//! What a member says of records that it cannot ask for.

use super::*;
use crate::{Coordinator, CoordinatorSettings, Peer, SECOND};

const STEP: u64 = 10 * MILLISECOND;

/// A member, its coordinator, and no publisher that answers.
struct Pair {
    coordinator: Coordinator,
    member: Member<()>,
    now: u64,
    delivered: Vec<u64>,
    given_up: Vec<(u64, u64, GiveUp)>,
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
        }
    }

    /// Lets time pass. Requests for repair are lost; the coordinator answers the rest if it is there.
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
                        if !matches!(Message::decode(&frame), Ok(Message::Repair(_))) && coordinator_is_there =>
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

    fn batch(&mut self, first: u64, count: u32) -> Received {
        let stream = Stream::new(&Name::new("tap0").unwrap(), 1);
        let topic = self.member.topic(0);
        self.member.on_batch(self.now, &stream, topic, Arrival { first, count, bytes: 100, batch: () })
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
