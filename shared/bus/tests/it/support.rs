//! Publishers, relays and subscribers, each in a role of its own.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use crossbeam_channel::Receiver;
use sekiwake_bus::{
    Delivery, Outcome, Overflow, Producer, Source, StreamSettings, Subscribing,
    zeromq::{
        ClientKeys, Context, Endpoints, Gatekeeper, GatekeeperSettings, Publisher, Relay, RelaySettings, ServerKeys,
        Subscriber,
    },
};
use sekiwake_record::{Batcher, Name, Topic};
use sekiwake_runtime::{Ending, Metrics};
use sekiwake_testkit::{role::TestRole, wait::wait_for};

pub(crate) use sekiwake_testkit::fixtures::record;

pub(crate) const LONG: Duration = Duration::from_secs(60);
pub(crate) const SHORT: Duration = Duration::from_millis(20);
pub(crate) const ANY_PORT: &str = "tcp://127.0.0.1:0";

/// The sum of a counter or gauge over its label sets that contain `label`.
pub(crate) fn value_of(metrics: &Metrics, name: &str, label: &str) -> u64 {
    let text = metrics.text();
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

pub(crate) fn value(metrics: &Metrics, name: &str) -> u64 {
    value_of(metrics, name, "")
}

pub(crate) struct TestRelay {
    pub(crate) role: TestRole,
    pub(crate) publish: String,
    pub(crate) subscribe: String,
}

impl TestRelay {
    pub(crate) fn start() -> TestRelay {
        TestRelay::start_at(ANY_PORT, ANY_PORT)
    }

    pub(crate) fn start_at(publish: &str, subscribe: &str) -> TestRelay {
        TestRelay::with(TestRole::start("10s"), &Context::default(), publish, subscribe, None)
    }

    /// With a gatekeeper, which is bound first, as the proxy does it.
    pub(crate) fn guarded(publish: &str, subscribe: &str, settings: GatekeeperSettings) -> TestRelay {
        let role = TestRole::start("10s");
        let bus = Context::default();
        let keys = gatekeeper(&role, &bus, settings);
        TestRelay::with(role, &bus, publish, subscribe, Some(keys))
    }

    pub(crate) fn with(
        role: TestRole,
        bus: &Context,
        publish: &str,
        subscribe: &str,
        keys: Option<ServerKeys>,
    ) -> TestRelay {
        let settings = RelaySettings { publish: vec![publish.to_owned()], subscribe: vec![subscribe.to_owned()], keys };
        let relay = Relay::bind(bus, &settings, role.metrics()).unwrap();
        let publish = relay.publish_endpoints()[0].clone();
        let subscribe = relay.subscribe_endpoints()[0].clone();
        role.scope.spawn("relay", move |worker| Ok(relay.run(worker)?)).unwrap();
        TestRelay { role, publish, subscribe }
    }

    /// Stops it cleanly, and starts another one at the same endpoints.
    pub(crate) fn restart(self) -> TestRelay {
        let TestRelay { role, publish, subscribe } = self;
        assert_eq!(role.stop(), Ending::Done);
        TestRelay::start_at(&publish, &subscribe)
    }

    pub(crate) fn value(&self, name: &str) -> u64 {
        value(self.role.metrics(), name)
    }
}

pub(crate) fn gatekeeper(role: &TestRole, bus: &Context, settings: GatekeeperSettings) -> ServerKeys {
    let gatekeeper = Gatekeeper::bind(bus, settings, role.metrics()).unwrap();
    let keys = gatekeeper.keys();
    role.scope.spawn("gatekeeper", move |worker| Ok(gatekeeper.run(worker)?)).unwrap();
    keys
}

pub(crate) struct TestPublisher {
    /// Dropped before the role, whose end waits until there are no producers.
    pub(crate) producer: Producer,
    pub(crate) role: TestRole,
    pub(crate) watch: sekiwake_bus::SubscriptionWatch,
    outcome: Receiver<Outcome>,
    /// Records offered by topic, which is also the next sequence number.
    pub(crate) offered: HashMap<Topic, u64>,
}

impl TestPublisher {
    pub(crate) fn start(endpoint: &str) -> TestPublisher {
        TestPublisher::with(endpoint, 64 << 20, Overflow::Drop)
    }

    pub(crate) fn with(endpoint: &str, retain_bytes: usize, overflow: Overflow) -> TestPublisher {
        TestPublisher::draining(endpoint, retain_bytes, overflow, "10s")
    }

    pub(crate) fn draining(endpoint: &str, retain_bytes: usize, overflow: Overflow, drain: &str) -> TestPublisher {
        TestPublisher::of(&Context::default(), endpoint, retain_bytes, overflow, drain, None)
    }

    pub(crate) fn keyed(endpoint: &str, keys: Option<ClientKeys>) -> TestPublisher {
        TestPublisher::of(&Context::default(), endpoint, 64 << 20, Overflow::Drop, "2s", keys)
    }

    pub(crate) fn of(
        bus: &Context,
        endpoint: &str,
        retain_bytes: usize,
        overflow: Overflow,
        drain: &str,
        keys: Option<ClientKeys>,
    ) -> TestPublisher {
        let role = TestRole::start(drain);
        let name = Name::new("wire-1").unwrap();
        let publishing = Endpoints { endpoints: vec![endpoint.to_owned()], keys }.into();
        let settings = StreamSettings { name, publishing, retain_bytes: [retain_bytes; 3], overflow };
        let latch = role.scope.readiness("bus");
        let (publisher, producer) = Publisher::new(bus, settings, role.metrics(), latch).unwrap();
        let (sender, outcome) = crossbeam_channel::bounded(1);
        let watch = publisher.subscription_watch();
        let run = move |worker: &sekiwake_runtime::Worker| Ok(sender.send(publisher.run(worker)?)?);
        role.scope.spawn("publisher", run).unwrap();
        TestPublisher { role, producer, watch, outcome, offered: HashMap::new() }
    }

    /// Waits for a subscription to data.
    pub(crate) fn wait_for_subscriber(&self) {
        assert!(self.watch.wait(LONG, Duration::ZERO, || false));
    }

    /// Offers `count` records of `size` bytes on each of these topics. Payloads contain their topic
    /// and sequence number.
    pub(crate) fn offer(&mut self, topics: &[Topic], count: u64, size: usize) -> u64 {
        let mut batcher = Batcher::default();
        for _ in 0..count {
            for &topic in topics {
                let number = self.offered.entry(topic).or_default();
                batcher.push(topic, &record(&payload(topic, *number, size)));
                *number += 1;
            }
        }
        self.producer.offer(batcher.take_all())
    }

    pub(crate) fn total(&self) -> u64 {
        self.offered.values().sum()
    }

    pub(crate) fn value(&self, name: &str) -> u64 {
        value(self.role.metrics(), name)
    }

    pub(crate) fn reason(&self, reason: &str) -> u64 {
        value_of(self.role.metrics(), sekiwake_bus::names::UNPUBLISHED_RECORDS, reason)
    }

    /// Drops the last producer, and returns the publisher's outcome.
    pub(crate) fn finish(self) -> (Outcome, TestRole) {
        let TestPublisher { role, producer, outcome, .. } = self;
        drop(producer);
        (outcome.recv_timeout(LONG).unwrap(), role)
    }
}

pub(crate) fn payload(topic: Topic, number: u64, size: usize) -> Vec<u8> {
    let mut payload = format!("{topic} {number} ").into_bytes();
    payload.resize(size.max(payload.len()), b'x');
    payload
}

pub(crate) fn topics(count: usize) -> Vec<Topic> {
    Topic::all().take(count).collect()
}

pub(crate) struct TestSubscriber {
    pub(crate) subscriber: Subscriber,
    pub(crate) metrics: Metrics,
    /// The received sequence numbers, in order.
    pub(crate) received: HashMap<Topic, Vec<u64>>,
    pub(crate) count: u64,
}

impl TestSubscriber {
    pub(crate) fn start(endpoint: &str, prefixes: &[&str]) -> TestSubscriber {
        TestSubscriber::of(&Context::default(), endpoint, prefixes, None)
    }

    pub(crate) fn keyed(endpoint: &str, prefixes: &[&str], keys: Option<ClientKeys>) -> TestSubscriber {
        TestSubscriber::of(&Context::default(), endpoint, prefixes, keys)
    }

    pub(crate) fn of(bus: &Context, endpoint: &str, prefixes: &[&str], keys: Option<ClientKeys>) -> TestSubscriber {
        let prefixes: Vec<String> = prefixes.iter().map(|&prefix| prefix.to_owned()).collect();
        let metrics = Metrics::new("subscriber");
        let from = Subscribing::from(Endpoints { endpoints: vec![endpoint.to_owned()], keys });
        let subscriber = Subscriber::connect(bus, &from, &prefixes, &metrics, None).unwrap();
        TestSubscriber { subscriber, metrics, received: HashMap::new(), count: 0 }
    }

    /// Takes one delivery, if one is received within `timeout`. Every byte of it is compared.
    pub(crate) fn pump(&mut self, timeout: Duration) -> bool {
        let Some(delivery) = self.subscriber.receive(timeout).unwrap() else { return false };
        self.take(&delivery);
        true
    }

    pub(crate) fn take(&mut self, delivery: &Delivery) {
        assert!(!delivery.batch.is_empty());
        let numbers = self.received.entry(delivery.topic).or_default();
        for (sequence, got) in (delivery.first_sequence..).zip(delivery.batch.records()) {
            assert_eq!(got, record(&payload(delivery.topic, sequence, got.payload.len())));
            assert!(numbers.last().is_none_or(|last| *last < sequence));
            numbers.push(sequence);
            self.count += 1;
        }
    }

    /// Takes deliveries until `condition` holds.
    pub(crate) fn pump_until(&mut self, what: &str, condition: impl Fn(&TestSubscriber) -> bool) {
        wait_for(what, LONG, || {
            while self.pump(Duration::ZERO) {}
            condition(self)
        })
        .unwrap_or_else(|error| panic!("{error}: {} received\n{}", self.count, self.metrics.text()));
    }

    pub(crate) fn pump_until_received(&mut self, count: u64) {
        self.pump_until(&format!("receiving {count} records"), |subscriber| subscriber.count >= count);
        assert_eq!(self.count, count);
    }

    pub(crate) fn value(&self, name: &str) -> u64 {
        value(&self.metrics, name)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.value(sekiwake_bus::names::LOST_RECORDS)
    }
}

/// Publishes until each subscriber has received a record of each topic: from here on they detect
/// every missing record.
pub(crate) fn join(publisher: &mut TestPublisher, topics: &[Topic], subscribers: &mut [&mut TestSubscriber]) {
    publisher.wait_for_subscriber();
    wait_for("the first record at every subscriber", LONG, || {
        publisher.offer(topics, 1, 0);
        subscribers.iter_mut().all(|subscriber| {
            while subscriber.pump(Duration::from_millis(5)) {}
            topics.iter().all(|topic| subscriber.received.contains_key(topic))
        })
    })
    .unwrap();
    for subscriber in subscribers {
        subscriber.pump_until("everything so far", |subscriber| {
            topics.iter().all(|topic| {
                subscriber.received[topic].last().map(|last| last + 1) == publisher.offered.get(topic).copied()
            })
        });
    }
}

/// Serialises the tests that load the machine.
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
