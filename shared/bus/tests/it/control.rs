//! The control plane over real sockets: members that share topics, and hostile peers.

use std::{
    cell::RefCell,
    collections::HashMap,
    time::{Duration, Instant},
};

use sekiwake_bus::{
    Controlling, GroupDelivery, GroupSettings, GroupSource, Overflow, Producer, Reporting, StreamSettings, Subscribing,
    names,
    zeromq::{
        ClientKeys, Context, ControlPlane, ControlPlaneSettings, Endpoints, GatekeeperSettings, GroupSubscriber,
        Publisher, ServerKeys,
    },
};
use sekiwake_record::{Kind, Name, Topic};
use sekiwake_runtime::Metrics;
use sekiwake_testkit::{role::TestRole, wait::wait_for};

use crate::support::*;

const GROUP: &str = "syslog-forwarder.default";

/// A relay with its control plane.
pub(crate) struct TestProxy {
    pub(crate) relay: TestRelay,
    pub(crate) control: String,
    /// The keys of its clients.
    keys: Option<ClientKeys>,
}

impl TestProxy {
    pub(crate) fn start() -> TestProxy {
        TestProxy::beside(TestRelay::start(), &Context::default(), ANY_PORT, None)
    }

    /// With a gatekeeper, and clients that have these keys.
    pub(crate) fn guarded(settings: GatekeeperSettings, clients: ClientKeys) -> TestProxy {
        let (role, bus) = (TestRole::start("10s"), Context::default());
        let keys = gatekeeper(&role, &bus, settings);
        let relay = TestRelay::with(role, &bus, ANY_PORT, ANY_PORT, Some(keys.clone()));
        TestProxy { keys: Some(clients), ..TestProxy::beside(relay, &bus, ANY_PORT, Some(keys)) }
    }

    /// Stops it cleanly, and starts another one at the same endpoints.
    pub(crate) fn restart(self) -> TestProxy {
        let TestProxy { relay, control, .. } = self;
        TestProxy::beside(relay.restart(), &Context::default(), &control, None)
    }

    fn beside(relay: TestRelay, bus: &Context, control: &str, keys: Option<ServerKeys>) -> TestProxy {
        let scope = &relay.role.scope;
        let settings = ControlPlaneSettings { endpoints: vec![control.to_owned()], keys };
        let reporting = Reporting::new(scope, "control", "control");
        let plane = ControlPlane::bind(bus, &settings, reporting).unwrap();
        let control = plane.endpoints()[0].clone();
        scope.spawn("control", move |worker| Ok(plane.run(worker)?)).unwrap();
        TestProxy { relay, control, keys: None }
    }

    pub(crate) fn subscribing(&self) -> Subscribing {
        Endpoints { endpoints: vec![self.relay.subscribe.clone()], keys: self.keys.clone() }.into()
    }

    pub(crate) fn controlling(&self) -> Controlling {
        Controlling::from(Endpoints { endpoints: vec![self.control.clone()], keys: self.keys.clone() })
    }

    pub(crate) fn rejected(&self, reason: &str) -> u64 {
        let label = format!("reason=\"{reason}\"");
        value_of(self.relay.role.metrics(), names::CONTROL_REJECTED, &label)
    }
}

/// A publisher that retransmits.
pub(crate) struct TestStream {
    producer: Producer,
    role: TestRole,
    /// By topic: the next sequence number.
    next: RefCell<HashMap<Topic, u64>>,
}

impl TestStream {
    pub(crate) fn start(proxy: &TestProxy, retain_bytes: usize) -> TestStream {
        let role = TestRole::start("2s");
        let settings = StreamSettings {
            name: Name::new("wire-1").unwrap(),
            publishing: Endpoints { endpoints: vec![proxy.relay.publish.clone()], keys: proxy.keys.clone() }.into(),
            retain_bytes: [retain_bytes; 3],
            overflow: Overflow::Drop,
        };
        let scope = &role.scope;
        let latch = scope.readiness("bus");
        let (mut publisher, producer) = Publisher::new(&Context::default(), settings, scope.metrics(), latch).unwrap();
        let reporting = Reporting::new(scope, "control", "stream");
        let control = publisher.control(&proxy.controlling(), reporting).unwrap();
        scope.spawn("control", move |worker| Ok(control.run(worker)?)).unwrap();
        scope.spawn("publisher", move |worker| Ok(publisher.run(worker).map(drop)?)).unwrap();
        TestStream { producer, role, next: RefCell::default() }
    }

    /// Publishes `count` records of 200 bytes on each of the first topics. Payloads contain their
    /// topic and sequence number.
    pub(crate) fn publish(&self, topics: usize, count: u64) {
        let mut batcher = sekiwake_record::Batcher::default();
        let mut next = self.next.borrow_mut();
        for _ in 0..count {
            for topic in crate::support::topics(topics) {
                let number = next.entry(topic).or_default();
                batcher.push(topic, &record(&payload(topic, *number, 200)));
                *number += 1;
            }
        }
        assert_eq!(self.producer.offer(batcher.take_all()), 0);
    }

    /// Records that were retained and not sent, because nobody subscribed.
    pub(crate) fn unpublished(&self) -> u64 {
        value_of(self.role.metrics(), names::UNPUBLISHED_RECORDS, "no_subscriber")
    }
}

/// A member that acknowledges every delivery at once.
pub(crate) struct TestMember {
    subscriber: GroupSubscriber,
    pub(crate) metrics: Metrics,
    role: TestRole,
    pub(crate) received: u64,
    /// The next sequence number, by topic.
    next: HashMap<Topic, u64>,
}

impl TestMember {
    pub(crate) fn start(proxy: &TestProxy) -> TestMember {
        TestMember::of(proxy, false)
    }

    fn of(proxy: &TestProxy, single_active: bool) -> TestMember {
        let role = TestRole::start("2s");
        let settings = GroupSettings {
            subscribing: proxy.subscribing(),
            controlling: proxy.controlling(),
            group: Name::new(GROUP).unwrap(),
            label: Name::new("m1").unwrap(),
            kind: Kind::Syslog,
            start_age: Duration::from_secs(30),
            single_active,
            handoff: false,
            deduplicate: None,
        };
        let reporting = Reporting::new(&role.scope, "lease", "group");
        let subscriber = GroupSubscriber::connect(&Context::default(), settings, reporting).unwrap();
        TestMember { subscriber, metrics: role.metrics().clone(), role, received: 0, next: HashMap::new() }
    }

    pub(crate) fn pump_until(&mut self, what: &str, condition: impl Fn(&TestMember) -> bool) {
        let end = Instant::now() + LONG;
        while !condition(self) {
            assert!(Instant::now() < end, "{what}: {} received\n{}", self.received, self.metrics.text());
            self.pump();
        }
    }

    pub(crate) fn pump(&mut self) {
        if let Some(delivery) = self.subscriber.receive(Duration::from_millis(20)).unwrap() {
            self.take(&delivery);
        }
    }

    /// Takes a delivery, and checks its sequence numbers and times.
    fn take(&mut self, delivery: &GroupDelivery) {
        let count = delivery.batch.len() as u64;
        self.received += count;
        let next = self.next.insert(delivery.topic, delivery.first_sequence + count);
        assert!(next.is_none_or(|next| next == delivery.first_sequence));
        assert_eq!(&*delivery.stream.name, "wire-1");
        let at = record(&[]).captured_at_ns;
        assert_eq!((delivery.first_captured_at_ns, delivery.last_captured_at_ns), (at, at));
    }

    pub(crate) fn owned(&self) -> u64 {
        value(&self.metrics, names::OWNED_SHARDS)
    }
}

#[test]
fn late_member_receives_everything_from_retained_memory() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 16 << 20);
    stream.publish(64, 100);
    wait_for("publication without a subscriber", LONG, || stream.unpublished() == 6_400).unwrap();
    let mut member = TestMember::start(&proxy);
    member.pump_until("everything", |member| member.received == 6_400);
    assert_eq!(value(&member.metrics, names::LOST_RECORDS), 0);
    assert!(value(&member.metrics, names::REPAIRED_BATCHES) >= 64);
    stream.publish(64, 10);
    member.pump_until("the live records", |member| member.received == 7_040);
    assert_eq!(value(stream.role.metrics(), names::WAITING_RECORDS), 0);
}

/// Both members receive until the condition holds.
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
fn standby_member_takes_over_when_the_active_one_leaves() {
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
    // The second member begins at the sequence number at which the first has stopped.
    assert!(one.next.values().all(|next| *next == 100) && other.next.values().all(|next| *next == 200));
    assert_eq!((one.next.len(), other.next.len()), (64, 64));
}

#[test]
fn remaining_member_takes_over_the_shards_of_a_leaving_one() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 16 << 20);
    let mut one = TestMember::start(&proxy);
    let mut other = TestMember::start(&proxy);
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

/// A foreign DEALER socket.
pub(crate) fn dealer(endpoint: &str) -> zmq::Socket {
    #[expect(clippy::disallowed_methods, reason = "a foreign peer")]
    let context = zmq::Context::new();
    let socket = context.socket(zmq::DEALER).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_sndhwm(0).unwrap();
    socket.connect(endpoint).unwrap();
    socket
}

#[test]
fn hostile_control_messages_do_not_affect_a_member() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 16 << 20);
    let mut honest = TestMember::start(&proxy);
    honest.pump_until("all shards", |member| member.owned() == 64);
    let evil = dealer(&proxy.control);
    for number in 0..10_000_u32 {
        evil.send(&number.to_be_bytes()[..], 0).unwrap();
    }
    evil.send_multipart([b"one".as_slice(), b"two", b"three"], 0).unwrap();
    // A truncated renewal.
    evil.send(&[0x9d, 1, 1, 0xa1, b'g'][..], 0).unwrap();
    honest.pump_until("the rejections", |_| proxy.rejected("malformed") >= 10_002);
    // An oversized message closes its connection and no other.
    let large = dealer(&proxy.control);
    large.send(vec![0; 2 << 20], 0).unwrap();
    // Many peers with invalid messages.
    let crowd: Vec<zmq::Socket> = (0..100).map(|_| dealer(&proxy.control)).collect();
    for peer in &crowd {
        peer.send("hello", 0).unwrap();
    }
    honest.pump_until("the rejections of the other peers", |_| proxy.rejected("malformed") >= 10_102);
    stream.publish(64, 100);
    honest.pump_until("everything", |member| member.received == 6_400);
    assert_eq!((honest.owned(), value(&honest.metrics, names::LOST_RECORDS)), (64, 0));
    wait_for("the control connection of the publisher", LONG, || {
        value(stream.role.metrics(), names::CONTROL_CONNECTED) == 1
    })
    .unwrap();
    drop(honest.role);
}
