//! How fast a member catches up, with a round trip of 5 ms and the default budgets, while new
//! records arrive.

use std::{collections::VecDeque, time::Duration};

use sekiwake_record::{Announcement, Header, Kind, Name, SHARDS, Topic, TopicPosition};

use crate::{
    Arrival, BootTime, Coordinator, CoordinatorSettings, Member, MemberOutput, MemberSettings, Peer, PublisherControl,
    PublisherControlSettings, Retained, Retention, Stream, time::SECOND,
};

const STEP: Duration = Duration::from_micros(250);
/// A quarter of the round trip from the member through the coordinator to the publisher and back.
const HOP: Duration = Duration::from_micros(1250);
/// The missed batches: 400 MB in all topics of a kind.
const MISSED_BATCHES: u64 = 25_600;
const RECORDS: u32 = 63;
const BODY: &[u8] = &[0; 16_384];
/// Between two new batches: 50,000 records per second.
const LIVE_EVERY: Duration = Duration::from_nanos(1_000_000_000 * RECORDS as u64 / 50_000);

/// Messages in flight, with their times of arrival.
type Link<T> = VecDeque<(BootTime, T)>;

fn arrived<T>(link: &mut Link<T>, now: BootTime) -> Option<T> {
    link.pop_front_if(|(at, _)| *at <= now).map(|(_, message)| message)
}

struct World {
    now: BootTime,
    coordinator: Coordinator,
    publisher: PublisherControl,
    retention: Retention<&'static [u8]>,
    member: Member<()>,
    to_coordinator: Link<(Peer, Vec<u8>)>,
    to_publisher: Link<Vec<u8>>,
    to_member: Link<Vec<u8>>,
    data: Link<(Topic, u64)>,
}

impl World {
    fn new() -> World {
        let stream = Stream::new(&Name::new("tap").unwrap(), 5);
        let repair_bytes_per_second = 64 << 20;
        let settings = MemberSettings::new(Name::new("g").unwrap(), Kind::Xflow, Name::new("m").unwrap());
        World {
            now: BootTime::ZERO,
            coordinator: Coordinator::new(CoordinatorSettings::default(), 1, BootTime::ZERO),
            publisher: PublisherControl::new(
                PublisherControlSettings { stream, repair_bytes_per_second },
                BootTime::ZERO,
            ),
            retention: Retention::new([1 << 30; Kind::ALL.len()]),
            member: Member::new(settings, 7, BootTime::ZERO),
            to_coordinator: Link::new(),
            to_publisher: Link::new(),
            to_member: Link::new(),
            data: Link::new(),
        }
    }

    fn publish(&mut self, topic: Topic) -> u64 {
        let first_sequence = self.retention.next_sequence(topic);
        let batch = Retained {
            first_sequence,
            count: RECORDS,
            first_captured_at_ns: 0,
            last_captured_at_ns: 0,
            published_at: self.now,
            body: BODY,
        };
        self.retention.store(topic, batch);
        first_sequence
    }

    fn announce(&mut self) {
        let position = |topic| TopicPosition {
            topic,
            oldest_sequence: self.retention.oldest_sequence(topic),
            next_sequence: self.retention.next_sequence(topic),
        };
        let positions = topics().map(position).filter(|position| position.next_sequence > 0).collect();
        let announcement =
            Announcement { stream_name: "tap".to_owned(), stream_epoch: 5, ended: false, positions, clock_ns: None };
        self.member.on_announcement(self.now, &announcement);
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        let at = now + HOP;
        while let Some((peer, frame)) = arrived(&mut self.to_coordinator, now) {
            self.coordinator.on_message(now, &peer, &frame);
        }
        while let Some(frame) = arrived(&mut self.to_publisher, now) {
            self.publisher.on_message(now, &frame, &mut self.retention);
        }
        while let Some(frame) = arrived(&mut self.to_member, now) {
            self.member.on_message(now, &frame);
            self.drain_member();
        }
        while let Some((topic, first)) = arrived(&mut self.data, now) {
            self.receive(topic, first, RECORDS);
            self.drain_member();
        }
        self.coordinator.on_tick(now);
        while let Some((peer, frame)) = self.coordinator.poll_output() {
            let link = if peer.as_bytes() == b"m" { &mut self.to_member } else { &mut self.to_publisher };
            link.push_back((at, frame));
        }
        while self.publisher.next_deadline() <= now {
            self.publisher.on_tick(now, &self.retention);
            while let Some(frame) = self.publisher.poll_output() {
                self.to_coordinator.push_back((at, (Peer::new(b"p").unwrap(), frame)));
            }
        }
        self.publisher.applied(now, self.publisher.list().number);
        self.member.on_tick(now);
        self.drain_member();
    }

    fn receive(&mut self, topic: Topic, first: u64, count: u32) {
        let stream = Stream::new(&Name::new("tap").unwrap(), 5);
        self.member.on_batch(self.now, &stream, topic, Arrival { first, count, bytes: BODY.len(), batch: () });
    }

    fn drain_member(&mut self) {
        while let Some(output) = self.member.poll_output() {
            match output {
                MemberOutput::Send(frame) => {
                    self.to_coordinator.push_back((self.now + HOP, (Peer::new(b"m").unwrap(), frame)));
                }
                MemberOutput::Deliver { stream, topic, generation, first_sequence, .. } => {
                    self.member.handled(self.now, &stream, topic.shard, generation, first_sequence);
                }
                MemberOutput::Repaired { topic, header, .. } => {
                    let header = Header::decode(&header).unwrap();
                    self.receive(topic, header.first_sequence, header.count);
                }
                MemberOutput::GaveUp { reason, .. } => panic!("gave up: {reason:?}"),
                _ => {}
            }
        }
    }
}

fn topics() -> impl Iterator<Item = Topic> {
    Topic::all().filter(|topic| topic.kind == Kind::Xflow)
}

#[test]
fn member_catches_up_at_fifty_megabytes_per_second() {
    let mut world = World::new();
    while !world.member.owns_all() || !world.publisher.may_publish() {
        world.step();
    }
    world.announce();
    let topics: Vec<Topic> = topics().collect();
    for n in 0..MISSED_BATCHES {
        world.publish(topics[n as usize % SHARDS]);
    }
    let began = world.now;
    let mut live = 0_u32;
    world.announce();
    let is_behind =
        |world: &World| world.member.status(world.now).streams[0].lag > 10 * SHARDS as u64 * u64::from(RECORDS);
    while world.now - began < 60 * SECOND && (!live.is_multiple_of(100) || is_behind(&world)) {
        world.step();
        while began + LIVE_EVERY * live < world.now {
            let topic = topics[live as usize % SHARDS];
            let first = world.publish(topic);
            world.data.push_back((world.now + 2 * HOP, (topic, first)));
            live += 1;
            if live.is_multiple_of(800) {
                world.announce();
            }
        }
    }
    assert!(!is_behind(&world), "it never catches up");
    let seconds = (world.now - began).as_secs_f64();
    let repaired = world.publisher.retransmitted_bytes() as f64 / 1e6;
    let requests = world.member.counters().requests;
    println!("caught up {repaired:.0} MB in {seconds:.1} s: {:.1} MB/s, {requests} requests", repaired / seconds);
    assert!(repaired / seconds >= 50.0);
    assert_eq!(world.coordinator.rejections(), Default::default());
}
