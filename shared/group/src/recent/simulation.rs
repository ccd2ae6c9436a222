//! Readers, a desk and publishers against each other, from a seed.
//!
//! ```text
//! RecentReader ── loses, delays ──▶ RecentDesk    ── loses, delays ──▶ RecentAnswers + Retention
//!      ▲       ◀─ loses, delays ──  + Coordinator ◀─ loses, delays ──  PublisherControl
//!      └──────────── batches and announcements, in order, subscribed at some time ─────────┘
//! ```
//!
//! Publishers publish all the time, one retains little, one is of an earlier version. The proxy
//! restarts. Readers come and go, and a hostile one requests everything in every step. Whatever
//! happens, a reader delivers a record once, and those of a topic in order; it delivers every
//! record from the beginning that it located on, except those that it counts as lost. On a good
//! network it begins with the first record of the time that it asked for.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use sekiwake_record::{Kind, Name, Topic};

use super::{MissingPart, RecentAnswers, RecentDelivery, RecentDesk, RecentReader, RecentReaderSettings};
use crate::{
    BootTime, Coordinator, CoordinatorSettings, Peer, PublisherControl, PublisherControlSettings, Retained, Retention,
    Stream,
    mutants::{Mutant, Mutants},
    simulation::{random::Random, seeds},
    time::{MILLISECOND, SECOND},
    wire::{GetRecent, Message, Number, Range, is_recent},
};

const STEP: Duration = Duration::from_millis(10);
const TOPICS: usize = 3;
const PUBLISHERS: usize = 3;
/// The publisher that does not know the requests.
const OLD: usize = 1;
/// The publisher that retains little.
const FORGETFUL: usize = 2;

struct Link<T>(VecDeque<(BootTime, T)>);

impl<T> Link<T> {
    fn new() -> Link<T> {
        Link(VecDeque::new())
    }

    fn send(&mut self, now: BootTime, item: T, random: &mut Random) {
        let after = self.0.back().map_or(now, |&(at, _)| at.max(now));
        let at = after.max(now + random.duration(Duration::ZERO..20 * MILLISECOND));
        self.0.push_back((at, item));
    }

    fn arrived(&mut self, now: BootTime) -> Option<T> {
        self.0.pop_front_if(|(at, _)| *at <= now).map(|(_, item)| item)
    }
}

/// What subscribers get.
#[derive(Clone)]
enum Data {
    Batch { stream: Stream, topic: Topic, first: u64, count: u32 },
    Announcement { stream: Stream, next: Vec<(Topic, u64)> },
}

struct Publisher {
    stream: Stream,
    peer: Peer,
    control: PublisherControl,
    answers: RecentAnswers,
    retention: Retention<Vec<u8>>,
    announce_at: BootTime,
    /// By topic: the capture time of each record.
    captured_ns: BTreeMap<Topic, Vec<u64>>,
    up: Link<Vec<u8>>,
    down: Link<Vec<u8>>,
}

struct Party {
    peer: Peer,
    since_ns: u64,
    topics: Vec<Topic>,
    reader: RecentReader<(Stream, Topic, u64, u32)>,
    data: Link<Data>,
    /// When its subscriptions to topics take effect.
    subscribed_at: BootTime,
    up: Link<Vec<u8>>,
    down: Link<Vec<u8>>,
    /// By stream and topic: the delivered sequence numbers.
    delivered: BTreeMap<(Stream, Topic), Vec<u64>>,
    lost: u64,
    /// What a record must not be.
    fault: Option<String>,
    missing: Vec<(Option<Stream>, MissingPart)>,
}

struct World {
    now: BootTime,
    random: Random,
    mutant: Option<Mutant>,
    is_bad: bool,
    epoch: u64,
    proxy: Option<(Coordinator, RecentDesk)>,
    proxy_back_at: BootTime,
    publishers: Vec<Publisher>,
    parties: Vec<Party>,
    peers: u64,
    hostile_sent: u64,
    hostile_received: u64,
}

fn topics() -> Vec<Topic> {
    Topic::all().filter(|topic| topic.kind == Kind::Syslog).take(TOPICS).collect()
}

fn hostile() -> Peer {
    Peer::new(b"hostile").unwrap()
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> World {
        let now = BootTime::ZERO + SECOND;
        let publishers = (0..PUBLISHERS).map(|index| {
            let stream = Stream::new(&Name::new(&format!("wire-{index}")).unwrap(), 7);
            let settings = PublisherControlSettings { stream: stream.clone(), repair_bytes_per_second: 1 << 20 };
            let limit = if index == FORGETFUL { 6_000 } else { 100 << 20 };
            Publisher {
                peer: Peer::new(&[b'p', index as u8]).unwrap(),
                control: PublisherControl::new(settings, now),
                answers: RecentAnswers::new(stream.clone(), now),
                retention: Retention::new([limit; Kind::ALL.len()]),
                announce_at: now,
                captured_ns: BTreeMap::new(),
                up: Link::new(),
                down: Link::new(),
                stream,
            }
        });
        World {
            now,
            random: Random::new(seed),
            mutant,
            is_bad: false,
            epoch: 0,
            proxy: None,
            proxy_back_at: now,
            publishers: publishers.collect(),
            parties: Vec::new(),
            peers: 0,
            hostile_sent: 0,
            hostile_received: 0,
        }
    }

    fn join(&mut self, age: Duration) {
        self.peers += 1;
        let since_ns = (self.now - age).as_nanos();
        let mut topics = topics();
        topics.truncate(1 + self.random.index(TOPICS));
        let mut settings = RecentReaderSettings::new(topics.clone(), since_ns, 64 << 20);
        settings.mutants = Mutants(self.mutant);
        self.parties.push(Party {
            peer: Peer::new(&self.peers.to_be_bytes()).unwrap(),
            since_ns,
            topics,
            reader: RecentReader::new(settings, self.now),
            data: Link::new(),
            subscribed_at: self.now + self.random.duration(Duration::ZERO..300 * MILLISECOND),
            up: Link::new(),
            down: Link::new(),
            delivered: BTreeMap::new(),
            lost: 0,
            fault: None,
            missing: Vec::new(),
        });
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        if self.proxy.is_none() && now >= self.proxy_back_at {
            self.epoch += 1;
            let coordinator = Coordinator::new(CoordinatorSettings::default(), self.epoch, now);
            self.proxy = Some((coordinator, RecentDesk::new(self.epoch, now)));
        }
        for index in 0..self.publishers.len() {
            self.publish(index);
        }
        self.run_proxy();
        for index in 0..self.parties.len() {
            self.read(index);
        }
    }

    /// Publishes some batches, and answers.
    fn publish(&mut self, index: usize) {
        let now = self.now;
        let World { publishers, parties, random, is_bad, .. } = self;
        let publisher = &mut publishers[index];
        let mut data = Vec::new();
        for topic in topics() {
            if !random.once_in(3) {
                continue;
            }
            let count = random.within(1..5) as u32;
            let captured = publisher.captured_ns.entry(topic).or_default();
            let first = captured.len() as u64;
            captured.extend((0..count).map(|_| now.as_nanos()));
            publisher.retention.store(
                topic,
                Retained {
                    first_sequence: first,
                    count,
                    first_captured_at_ns: now.as_nanos(),
                    last_captured_at_ns: now.as_nanos(),
                    published_at: now,
                    body: vec![0; 100],
                },
            );
            data.push(Data::Batch { stream: publisher.stream.clone(), topic, first, count });
        }
        if now >= publisher.announce_at {
            publisher.announce_at = now + SECOND;
            let next = publisher.captured_ns.iter().map(|(&topic, captured)| (topic, captured.len() as u64)).collect();
            data.push(Data::Announcement { stream: publisher.stream.clone(), next });
        }
        for party in parties.iter_mut() {
            for item in &data {
                let is_subscribed = match item {
                    Data::Batch { topic, .. } => now >= party.subscribed_at && party.topics.contains(topic),
                    Data::Announcement { .. } => true,
                };
                if is_subscribed && !(*is_bad && random.once_in(50)) {
                    party.data.send(now, item.clone(), random);
                }
            }
        }
        while let Some(frame) = publisher.down.arrived(now) {
            match is_recent(&frame) {
                true if index == OLD => {}
                true => publisher.answers.on_message(&frame, &publisher.retention),
                false => publisher.control.on_message(now, &frame, &mut publisher.retention),
            }
        }
        publisher.control.on_tick(now, &publisher.retention);
        publisher.answers.on_tick(now, &publisher.retention);
        while let Some(frame) = publisher.control.poll_output().or_else(|| publisher.answers.poll_output()) {
            if !(*is_bad && random.once_in(12)) {
                publisher.up.send(now, frame, random);
            }
        }
    }

    fn run_proxy(&mut self) {
        let now = self.now;
        let World { proxy, publishers, parties, random, is_bad, hostile_sent, hostile_received, .. } = self;
        let mut received = Vec::new();
        for publisher in publishers.iter_mut() {
            received
                .extend(std::iter::from_fn(|| publisher.up.arrived(now)).map(|frame| (publisher.peer.clone(), frame)));
        }
        for party in parties.iter_mut() {
            received.extend(std::iter::from_fn(|| party.up.arrived(now)).map(|frame| (party.peer.clone(), frame)));
        }
        for publisher in publishers.iter() {
            *hostile_sent += 1;
            let everything = topics().into_iter().map(|topic| Range { topic, from: Number(0), to: Number(1 << 50) });
            let get = GetRecent {
                requester: Peer::default(),
                request: *hostile_sent,
                stream: publisher.stream.clone(),
                max_bytes: u64::MAX,
                ranges: everything.collect(),
                locate: topics(),
                since_ns: 0,
            };
            received.push((hostile(), Message::from(get).encode()));
        }
        // Messages to a stopped proxy are lost.
        let Some((coordinator, desk)) = proxy else { return };
        for (peer, frame) in received {
            if is_recent(&frame) {
                desk.on_message(now, &peer, &frame);
            } else {
                coordinator.on_message(now, &peer, &frame);
            }
        }
        if now >= coordinator.next_deadline() {
            coordinator.on_tick(now);
        }
        if now >= desk.next_deadline() {
            desk.on_tick(now, coordinator);
        }
        desk.check();
        while let Some((peer, frame)) = coordinator.poll_output().or_else(|| desk.poll_output()) {
            if *is_bad && random.once_in(12) {
                continue;
            }
            if let Some(publisher) = publishers.iter_mut().find(|publisher| publisher.peer == peer) {
                publisher.down.send(now, frame, random);
            } else if let Some(party) = parties.iter_mut().find(|party| party.peer == peer) {
                party.down.send(now, frame, random);
            } else if peer == hostile() {
                *hostile_received += frame.len() as u64;
            }
        }
    }

    fn read(&mut self, index: usize) {
        let now = self.now;
        let party = &mut self.parties[index];
        while let Some(data) = party.data.arrived(now) {
            match data {
                Data::Batch { stream, topic, first, count } => {
                    let batch = (stream.clone(), topic, first, count);
                    party.reader.on_live(now, (&stream, topic), first, count, 100, batch);
                }
                Data::Announcement { stream, next } => party.reader.on_announced(now, &stream, next, false),
            }
        }
        while let Some(frame) = party.down.arrived(now) {
            party.reader.on_message(now, &frame);
        }
        party.reader.on_tick(now);
        while let Some(frame) = party.reader.poll_output() {
            if !(self.is_bad && self.random.once_in(12)) {
                party.up.send(now, frame, &mut self.random);
            }
        }
        while let Some(delivery) = party.reader.poll_delivery() {
            let (stream, topic, first, count, skip) = match delivery {
                RecentDelivery::Live { batch: (stream, topic, first, count), skip } => {
                    (stream, topic, first, count, skip)
                }
                RecentDelivery::Retransmitted { stream, topic, first_sequence, count, skip, body } => {
                    assert_eq!(body.len(), 100, "unchanged");
                    (stream, topic, first_sequence, count, skip)
                }
            };
            assert!(skip < count, "no empty delivery");
            let delivered = party.delivered.entry((stream, topic)).or_default();
            for sequence in first + u64::from(skip)..first + u64::from(count) {
                if delivered.last().is_some_and(|&last| last >= sequence) {
                    party.fault = Some(format!("{topic} {sequence} is delivered twice, or late"));
                }
                delivered.push(sequence);
            }
        }
        while let Some(missing) = party.reader.poll_missing() {
            party.missing.push((missing.stream, missing.part));
        }
        party.lost += party.reader.take_lost().iter().sum::<u64>();
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now + duration;
        while self.now < end {
            self.step();
        }
    }

    fn run_until_over(&mut self) {
        let end = self.now + 90 * SECOND;
        while self.now < end && !self.parties.iter().all(|party| party.reader.is_over()) {
            self.step();
        }
    }

    /// Every record from the first delivered one on was delivered or is counted as lost.
    fn verdict(&self, party: &Party) -> Result<(), String> {
        if !party.reader.is_over() {
            return Err("a reader does not end".to_owned());
        }
        if let Some(fault) = &party.fault {
            return Err(fault.clone());
        }
        let mut gaps = 0;
        for delivered in party.delivered.values() {
            gaps += delivered.windows(2).map(|pair| pair[1] - pair[0] - 1).sum::<u64>();
        }
        // What is lost at the beginning or the end shows as no gap.
        if gaps > party.lost {
            return Err(format!("{gaps} records are missing, and {} are counted as lost", party.lost));
        }
        Ok(())
    }

    /// On a good network, everything of the time is delivered that was retained.
    fn complete(&self, party: &Party) -> Result<(), String> {
        for (index, publisher) in self.publishers.iter().enumerate() {
            let stream = &publisher.stream;
            let missing: Vec<MissingPart> =
                party.missing.iter().filter(|(of, _)| of.as_ref() == Some(stream)).map(|&(_, part)| part).collect();
            let expected = if index == OLD { vec![MissingPart::Silent] } else { Vec::new() };
            if missing != expected {
                return Err(format!("{stream}: {missing:?} is missing, expected {expected:?}"));
            }
            if index == OLD || index == FORGETFUL {
                continue;
            }
            for topic in &party.topics {
                let captured = &publisher.captured_ns[topic];
                let expected = captured.iter().position(|&at_ns| at_ns >= party.since_ns).unwrap_or(captured.len());
                let delivered = &party.delivered[&(stream.clone(), *topic)];
                // What was published last is still on its way.
                let is_whole = delivered.iter().copied().eq(expected as u64..expected as u64 + delivered.len() as u64);
                if !is_whole || delivered.len() + 40 < captured.len() - expected {
                    return Err(format!(
                        "{stream} {topic}: from {expected} to {} expected, {} from {:?} delivered",
                        captured.len(),
                        delivered.len(),
                        delivered.first()
                    ));
                }
            }
        }
        if !party.missing.iter().all(|(stream, _)| stream.is_some()) {
            return Err("the proxy did not answer".to_owned());
        }
        Ok(())
    }
}

fn run(seed: u64, mutant: Option<Mutant>) -> Result<(u64, u64), String> {
    let mut world = World::new(seed, mutant);
    // A good network, first.
    world.run(8 * SECOND);
    for _ in 0..3 {
        let age = world.random.duration(Duration::ZERO..6 * SECOND);
        world.join(age);
        world.run(200 * MILLISECOND);
    }
    world.run_until_over();
    for party in &world.parties {
        world.verdict(party)?;
        world.complete(party)?;
    }
    let delivered = world.parties.iter().flat_map(|party| party.delivered.values()).map(|list| list.len() as u64).sum();
    // Messages are lost, and the proxy restarts.
    world.parties.clear();
    world.is_bad = true;
    for _ in 0..5 {
        let age = world.random.duration(Duration::ZERO..20 * SECOND);
        world.join(age);
        let pause = world.random.duration(Duration::ZERO..2 * SECOND);
        world.run(pause);
        if world.random.once_in(3) {
            let away = world.random.duration(Duration::ZERO..5 * SECOND);
            (world.proxy, world.proxy_back_at) = (None, world.now + away);
        }
    }
    world.run_until_over();
    for party in &world.parties {
        world.verdict(party)?;
    }
    Ok((delivered, world.hostile_received))
}

#[test]
fn readers_of_recent_records_get_each_once_and_in_order() {
    let mut sums = (0, 0);
    let mut runs = 0;
    for seed in seeds().step_by(60) {
        let ran = run(seed, None);
        let (delivered, hostile) = ran.unwrap_or_else(|failure| {
            panic!("{failure}; again with: TEST_SEKIWAKE_SEED={seed} cargo test -p sekiwake-group recent")
        });
        runs += 1;
        sums = (sums.0 + delivered, sums.1 + hostile);
    }
    println!("recent: {runs} seeds, {} records delivered, {} bytes to a hostile reader", sums.0, sums.1);
    assert!(sums.0 > 0 && sums.1 > 0);
}

/// The first failure in a few seeds.
fn found(mutant: Mutant) -> Option<String> {
    (0..20).find_map(|seed| run(seed, Some(mutant)).err())
}

#[test]
fn reader_that_holds_nothing_is_found() {
    let failure = found(Mutant::HoldsNothing);
    assert!(failure.as_ref().is_some_and(|failure| failure.contains("expected")), "{failure:?}");
}

#[test]
fn reader_that_does_not_check_what_arrived_is_found() {
    let failure = found(Mutant::BelievesTheEnd);
    assert!(failure.as_ref().is_some_and(|failure| failure.contains("are missing")), "{failure:?}");
}
