//! The control plane over real sockets: members that share topics, and peers that mean no good.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use sekiwake_bus::{
    Bus, ControlPlane, ControlPlaneSettings, Controlling, GroupDelivery, GroupSubscriber, GroupSubscriberSettings,
    Overflow, Producer, Publisher, PublisherSettings, Subscribing, names,
};
use sekiwake_record::{Kind, Name, Topic};
use sekiwake_runtime::Metrics;
use sekiwake_testkit::wait::wait_for;

use crate::support::*;

const GROUP: &str = "syslog-forwarder.default";

/// A relay with its control plane.
pub(crate) struct TestProxy {
    pub(crate) relay: TestRelay,
    pub(crate) control: String,
}

impl TestProxy {
    pub(crate) fn start() -> TestProxy {
        TestProxy::beside(TestRelay::start(), ANY_PORT)
    }

    /// Stops it in order, and starts another one in its place.
    pub(crate) fn restart(self) -> TestProxy {
        let TestProxy { relay, control } = self;
        TestProxy::beside(relay.restart(), &control)
    }

    fn beside(relay: TestRelay, control: &str) -> TestProxy {
        let scope = &relay.member.scope;
        let settings = ControlPlaneSettings { endpoints: vec![control.to_owned()], keys: None };
        let told = (scope.readiness("control"), scope.status("control"));
        let plane = ControlPlane::bind(&Bus::default(), &settings, scope.metrics(), told).unwrap();
        let control = plane.endpoints()[0].clone();
        scope.spawn("control", move |worker| Ok(plane.run(worker)?)).unwrap();
        TestProxy { relay, control }
    }

    pub(crate) fn controlling(&self) -> Controlling {
        Controlling { endpoints: vec![self.control.clone()], keys: None }
    }

    pub(crate) fn refused(&self, reason: &str) -> u64 {
        let label = format!("reason=\"{reason}\"");
        value_of(self.relay.member.metrics(), names::CONTROL_REFUSED, &label)
    }
}

/// A publisher that answers repairs.
struct TestStream {
    producer: Producer,
    member: Member,
}

impl TestStream {
    fn start(proxy: &TestProxy, retain_bytes: usize) -> TestStream {
        let member = Member::new("2s");
        let settings = PublisherSettings {
            name: Name::new("wire-1").unwrap(),
            endpoints: vec![proxy.relay.publish.clone()],
            keys: None,
            retain_bytes: [retain_bytes; 3],
            overflow: Overflow::Drop,
        };
        let scope = &member.scope;
        let latch = scope.readiness("bus");
        let (mut publisher, producer) = Publisher::new(&Bus::default(), settings, scope.metrics(), latch).unwrap();
        let told = (scope.readiness("control"), scope.status("stream"));
        let control = publisher.control(&proxy.controlling(), scope.metrics(), told).unwrap();
        scope.spawn("control", move |worker| Ok(control.run(worker)?)).unwrap();
        scope.spawn("publisher", move |worker| Ok(publisher.run(worker).map(drop)?)).unwrap();
        TestStream { producer, member }
    }

    /// Publishes so many records of 200 bytes on each of the first topics.
    fn publish(&self, topics: usize, count: u64) {
        let mut batcher = sekiwake_bus::Batcher::default();
        for number in 0..count {
            for topic in crate::support::topics(topics) {
                batcher.push(topic, &record(&payload(topic, number, 200)));
            }
        }
        assert_eq!(self.producer.offer(batcher.take_all()), 0);
    }
}

/// A member that takes what it is given and is done with it at once.
struct TestMember {
    subscriber: GroupSubscriber,
    metrics: Metrics,
    member: Member,
    received: u64,
    /// By topic: the sequence number after the last that came.
    next: HashMap<Topic, u64>,
}

impl TestMember {
    fn start(proxy: &TestProxy) -> TestMember {
        TestMember::of(proxy, false)
    }

    fn of(proxy: &TestProxy, one_works: bool) -> TestMember {
        let member = Member::new("2s");
        let settings = GroupSubscriberSettings {
            subscribing: Subscribing { endpoints: vec![proxy.relay.subscribe.clone()], keys: None },
            controlling: proxy.controlling(),
            group: Name::new(GROUP).unwrap(),
            label: Name::new("m1").unwrap(),
            kind: Kind::Syslog,
            start_age: Duration::from_secs(30),
            one_works,
            notes: false,
        };
        let told = (member.scope.readiness("lease"), member.scope.status("group"));
        let subscriber = GroupSubscriber::connect(&Bus::default(), settings, member.metrics(), told).unwrap();
        TestMember { subscriber, metrics: member.metrics().clone(), member, received: 0, next: HashMap::new() }
    }

    fn pump_until(&mut self, what: &str, condition: impl Fn(&TestMember) -> bool) {
        let end = Instant::now() + LONG;
        while !condition(self) {
            assert!(Instant::now() < end, "{what}: {} received\n{}", self.received, self.metrics.text());
            if let Some(delivery) = self.subscriber.receive(Duration::from_millis(20)).unwrap() {
                self.take(&delivery);
            }
        }
    }

    /// Takes a delivery, which says where it stands.
    fn take(&mut self, delivery: &GroupDelivery) {
        let count = delivery.batch.len() as u64;
        self.received += count;
        let next = self.next.insert(delivery.topic, delivery.first_sequence + count);
        assert!(next.is_none_or(|next| next == delivery.first_sequence));
        assert_eq!(&*delivery.stream.name, "wire-1");
        let at = record(&[]).captured_at_ns;
        assert_eq!((delivery.first_captured_at_ns, delivery.last_captured_at_ns), (at, at));
    }

    fn owned(&self) -> u64 {
        value(&self.metrics, names::OWNED_SHARDS)
    }
}

#[test]
fn a_member_that_comes_after_the_data_is_given_all_of_it_from_the_publishers_memory() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 16 << 20);
    stream.publish(64, 100);
    let mut member = TestMember::start(&proxy);
    member.pump_until("everything", |member| member.received == 6_400);
    assert_eq!(value(&member.metrics, names::LOST_RECORDS), 0);
    assert!(value(&member.metrics, names::REPAIRED_BATCHES) >= 64);
    stream.publish(64, 10);
    member.pump_until("what came live", |member| member.received == 7_040);
    assert_eq!(value(stream.member.metrics(), names::WAITING_RECORDS), 0);
}

/// Both take what comes until the condition holds.
fn both(
    one: &mut TestMember,
    other: &mut TestMember,
    what: &str,
    condition: &dyn Fn(&TestMember, &TestMember) -> bool,
) {
    let end = Instant::now() + LONG;
    while !condition(one, other) {
        assert!(Instant::now() < end, "{what}: {} and {} owned", one.owned(), other.owned());
        for member in [&mut *one, &mut *other] {
            while let Some(delivery) = member.subscriber.receive(Duration::from_millis(5)).unwrap() {
                member.take(&delivery);
            }
        }
    }
}

#[test]
fn where_one_works_the_other_gets_nothing_until_the_first_leaves_and_then_everything_that_follows() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 16 << 20);
    let mut one = TestMember::of(&proxy, true);
    one.pump_until("all shards", |member| member.owned() == 64);
    let mut other = TestMember::of(&proxy, true);
    other.pump_until("a lease", |member| member.subscriber.has_lease());
    stream.publish(64, 100);
    both(&mut one, &mut other, "everything", &|one, _| one.received == 6_400);
    assert!(one.subscriber.owns_all() && one.subscriber.has_received_all());
    assert_eq!((other.received, other.owned()), (0, 0));
    one.subscriber.leave();
    both(&mut one, &mut other, "all shards", &|one, other| {
        assert!(!one.subscriber.owns_all() || !other.subscriber.owns_all());
        one.subscriber.has_left() && other.subscriber.owns_all()
    });
    stream.publish(64, 100);
    both(&mut one, &mut other, "the rest", &|_, other| other.received == 6_400);
    assert_eq!(one.received, 6_400);
    // Each delivery says where it stands: the second member begins where the first has stopped.
    assert!(one.next.values().all(|next| *next == 100) && other.next.values().all(|next| *next == 200));
    assert_eq!((one.next.len(), other.next.len()), (64, 64));
}

#[test]
fn two_members_of_one_process_share_the_shards_and_what_one_leaves_the_other_gets() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 16 << 20);
    let (mut one, mut other) = (TestMember::start(&proxy), TestMember::start(&proxy));
    both(&mut one, &mut other, "an even share", &|one, other| (one.owned(), other.owned()) == (32, 32));
    stream.publish(64, 100);
    both(&mut one, &mut other, "everything", &|one, other| one.received + other.received == 6_400);
    assert_eq!((one.received, other.received), (3_200, 3_200));
    one.subscriber.leave();
    both(&mut one, &mut other, "all shards", &|one, other| one.subscriber.has_left() && other.owned() == 64);
    stream.publish(64, 100);
    both(&mut one, &mut other, "the rest", &|_, other| other.received == 3_200 + 6_400);
    assert_eq!(one.received, 3_200);
}

/// A DEALER that is not ours.
pub(crate) fn dealer(endpoint: &str) -> zmq::Socket {
    #[expect(clippy::disallowed_methods, reason = "a peer that is not ours")]
    let context = zmq::Context::new();
    let socket = context.socket(zmq::DEALER).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_sndhwm(0).unwrap();
    socket.connect(endpoint).unwrap();
    socket
}

#[test]
fn garbage_floods_and_oversized_messages_are_refused_and_the_honest_member_notices_nothing() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 16 << 20);
    let mut honest = TestMember::start(&proxy);
    honest.pump_until("all shards", |member| member.owned() == 64);
    let evil = dealer(&proxy.control);
    for number in 0..10_000_u32 {
        evil.send(&number.to_be_bytes()[..], 0).unwrap();
    }
    evil.send_multipart([b"one".as_slice(), b"two", b"three"], 0).unwrap();
    // A renewal, cut short.
    evil.send(&[0x9d, 1, 1, 0xa1, b'g'][..], 0).unwrap();
    honest.pump_until("the refusals", |_| proxy.refused("malformed") >= 10_002);
    // What is too large ends that connection and no other.
    let large = dealer(&proxy.control);
    large.send(vec![0; 2 << 20], 0).unwrap();
    // Many peers that connect and say nothing that makes sense.
    let crowd: Vec<zmq::Socket> = (0..100).map(|_| dealer(&proxy.control)).collect();
    for peer in &crowd {
        peer.send("hello", 0).unwrap();
    }
    honest.pump_until("the crowd's refusals", |_| proxy.refused("malformed") >= 10_102);
    stream.publish(64, 100);
    honest.pump_until("everything", |member| member.received == 6_400);
    assert_eq!((honest.owned(), value(&honest.metrics, names::LOST_RECORDS)), (64, 0));
    wait_for("an answer of the publisher", LONG, || value(stream.member.metrics(), names::CONTROL_CONNECTED) == 1)
        .unwrap();
    drop(honest.member);
}
