//! Roles with nothing in them but a scope, and what publishes, relays and subscribes in them.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
    sync::Mutex,
    thread::JoinHandle,
    time::Duration,
};

use crossbeam_channel::Receiver;
use sekiwake_bus::{
    Batcher, Bus, ClientKeys, Delivery, Gatekeeper, GatekeeperSettings, Outcome, Overflow, Producer, Publisher,
    PublisherSettings, Relay, RelaySettings, ServerKeys, Subscriber, Subscribing,
};
use sekiwake_record::{Flags, Format, Name, Record, Topic, Vlans};
use sekiwake_runtime::{About, Ending, Metrics, Process, Role, Scope, StopHandle};
use sekiwake_settings::{Environment, Reader};
use sekiwake_testkit::wait::wait_for;

pub(crate) const LONG: Duration = Duration::from_secs(20);
pub(crate) const SHORT: Duration = Duration::from_millis(20);
pub(crate) const ANY_PORT: &str = "tcp://127.0.0.1:0";

thread_local! {
    static SCOPE: RefCell<Option<Scope>> = const { RefCell::new(None) };
}

struct Empty;

impl Role for Empty {
    const ABOUT: About = About { service: "toy", binary: "toy", summary: "", admin_port: 0 };
    type Settings = ();
    fn read(_: &mut Reader) {}
    fn start((): (), scope: &Scope) -> anyhow::Result<()> {
        SCOPE.with_borrow_mut(|slot| *slot = Some(scope.clone()));
        Ok(scope.idle()?)
    }
}

/// A role that runs until it is stopped, with workers added from outside.
pub(crate) struct Member {
    pub(crate) scope: Scope,
    stop: StopHandle,
    running: Option<JoinHandle<Ending>>,
}

impl Member {
    pub(crate) fn new(drain: &str) -> Member {
        let environment = Environment::from_pairs([("SEKIWAKE_ADMIN", "127.0.0.1:0"), ("SEKIWAKE_DRAIN", drain)]);
        let running = Process::of::<Empty>().read(&environment).unwrap().start().unwrap();
        let scope = SCOPE.with_borrow_mut(Option::take).unwrap();
        let stop = running.stop_handle();
        Member { scope, stop, running: Some(std::thread::spawn(move || running.run())) }
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        self.scope.metrics()
    }

    pub(crate) fn stop_handle(&self) -> StopHandle {
        self.stop.clone()
    }

    pub(crate) fn tell_to_stop(&self) {
        self.stop.stop("the test says so");
    }

    /// Stops it and waits for its end.
    pub(crate) fn stop(mut self) -> Ending {
        self.end().unwrap()
    }

    fn end(&mut self) -> Option<Ending> {
        self.tell_to_stop();
        self.running.take().map(|running| running.join().unwrap())
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.end();
    }
}

/// The sum of a counter or gauge over its labels, of those lines that contain `label`.
pub(crate) fn value_of(metrics: &Metrics, name: &str, label: &str) -> u64 {
    let text = metrics.text();
    let lines = text.lines().filter(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
    lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

pub(crate) fn value(metrics: &Metrics, name: &str) -> u64 {
    value_of(metrics, name, "")
}

pub(crate) struct TestRelay {
    pub(crate) member: Member,
    pub(crate) publish: String,
    pub(crate) subscribe: String,
}

impl TestRelay {
    pub(crate) fn start() -> TestRelay {
        TestRelay::start_at(ANY_PORT, ANY_PORT)
    }

    pub(crate) fn start_at(publish: &str, subscribe: &str) -> TestRelay {
        TestRelay::with(Member::new("10s"), &Bus::default(), publish, subscribe, None)
    }

    /// As the proxy does it: the gatekeeper first.
    pub(crate) fn guarded(publish: &str, subscribe: &str, settings: GatekeeperSettings) -> TestRelay {
        let (member, bus) = (Member::new("10s"), Bus::default());
        let gatekeeper = Gatekeeper::bind(&bus, settings, member.metrics()).unwrap();
        let keys = gatekeeper.keys();
        member.scope.spawn("gatekeeper", move |worker| Ok(gatekeeper.run(worker)?)).unwrap();
        TestRelay::with(member, &bus, publish, subscribe, Some(keys))
    }

    pub(crate) fn with(
        member: Member,
        bus: &Bus,
        publish: &str,
        subscribe: &str,
        keys: Option<ServerKeys>,
    ) -> TestRelay {
        let settings = RelaySettings { publish: vec![publish.to_owned()], subscribe: vec![subscribe.to_owned()], keys };
        let relay = Relay::bind(bus, &settings, member.metrics()).unwrap();
        let (publish, subscribe) = (relay.publish_endpoints()[0].clone(), relay.subscribe_endpoints()[0].clone());
        member.scope.spawn("relay", move |worker| Ok(relay.run(worker)?)).unwrap();
        TestRelay { member, publish, subscribe }
    }

    /// Stops it in order, and starts another one in its place.
    pub(crate) fn restart(self) -> TestRelay {
        let TestRelay { member, publish, subscribe } = self;
        assert_eq!(member.stop(), Ending::Done);
        TestRelay::start_at(&publish, &subscribe)
    }

    pub(crate) fn value(&self, name: &str) -> u64 {
        value(self.member.metrics(), name)
    }
}

pub(crate) struct TestPublisher {
    /// Goes before the member, whose end waits until there are no producers.
    pub(crate) producer: Producer,
    pub(crate) member: Member,
    pub(crate) watch: sekiwake_bus::SubscriptionWatch,
    outcome: Receiver<Outcome>,
    /// Records offered, by topic: the sequence number of the next.
    pub(crate) offered: HashMap<Topic, u64>,
}

impl TestPublisher {
    pub(crate) fn start(endpoint: &str) -> TestPublisher {
        TestPublisher::with(endpoint, 64 << 20, Overflow::Drop)
    }

    pub(crate) fn with(endpoint: &str, hold_bytes: usize, overflow: Overflow) -> TestPublisher {
        TestPublisher::draining(endpoint, hold_bytes, overflow, "10s")
    }

    pub(crate) fn draining(endpoint: &str, hold_bytes: usize, overflow: Overflow, drain: &str) -> TestPublisher {
        TestPublisher::of(&Bus::default(), endpoint, hold_bytes, overflow, drain, None)
    }

    pub(crate) fn keyed(endpoint: &str, keys: Option<ClientKeys>) -> TestPublisher {
        TestPublisher::of(&Bus::default(), endpoint, 64 << 20, Overflow::Drop, "2s", keys)
    }

    pub(crate) fn of(
        bus: &Bus,
        endpoint: &str,
        hold_bytes: usize,
        overflow: Overflow,
        drain: &str,
        keys: Option<ClientKeys>,
    ) -> TestPublisher {
        let member = Member::new(drain);
        let name = Name::new("wire-1").unwrap();
        let endpoints = vec![endpoint.to_owned()];
        let settings = PublisherSettings { name, endpoints, keys, retain_bytes: [hold_bytes; 3], overflow };
        let latch = member.scope.readiness("bus");
        let (publisher, producer) = Publisher::new(bus, settings, member.metrics(), latch).unwrap();
        let (sender, outcome) = crossbeam_channel::bounded(1);
        let watch = publisher.subscription_watch();
        let run = move |worker: &sekiwake_runtime::Worker| Ok(sender.send(publisher.run(worker)?)?);
        member.scope.spawn("publisher", run).unwrap();
        TestPublisher { member, producer, watch, outcome, offered: HashMap::new() }
    }

    /// Waits until somebody has subscribed to data.
    pub(crate) fn wait_for_subscriber(&self) {
        assert!(self.watch.wait(LONG, Duration::ZERO, || false));
    }

    /// Offers `count` records of `size` bytes on each of these topics. A payload says its topic and sequence number.
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
        value(self.member.metrics(), name)
    }

    pub(crate) fn reason(&self, reason: &str) -> u64 {
        value_of(self.member.metrics(), sekiwake_bus::names::UNPUBLISHED_RECORDS, reason)
    }

    /// Drops the last producer, and gives what the publisher says it has done.
    pub(crate) fn finish(self) -> (Outcome, Member) {
        let TestPublisher { member, producer, outcome, .. } = self;
        drop(producer);
        (outcome.recv_timeout(LONG).unwrap(), member)
    }
}

pub(crate) fn payload(topic: Topic, number: u64, size: usize) -> Vec<u8> {
    let mut payload = format!("{topic} {number} ").into_bytes();
    payload.resize(size.max(payload.len()), b'x');
    payload
}

pub(crate) fn record(payload: &[u8]) -> Record<'_> {
    Record {
        captured_at_ns: 1_700_000_000_000_000_000,
        source: IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
        source_port: 40_000,
        destination: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
        destination_port: 514,
        format: Format::Rfc3164,
        flags: Flags::default(),
        payload,
        vlans: Vlans::new(),
        dscp_ttl: 64,
    }
}

pub(crate) fn topics(count: usize) -> Vec<Topic> {
    Topic::all().take(count).collect()
}

pub(crate) struct TestSubscriber {
    pub(crate) subscriber: Subscriber,
    pub(crate) metrics: Metrics,
    /// The sequence numbers that came, in order.
    pub(crate) received: HashMap<Topic, Vec<u64>>,
    pub(crate) count: u64,
}

impl TestSubscriber {
    pub(crate) fn start(endpoint: &str, prefixes: &[&str]) -> TestSubscriber {
        TestSubscriber::of(&Bus::default(), endpoint, prefixes, None)
    }

    pub(crate) fn keyed(endpoint: &str, prefixes: &[&str], keys: Option<ClientKeys>) -> TestSubscriber {
        TestSubscriber::of(&Bus::default(), endpoint, prefixes, keys)
    }

    pub(crate) fn of(bus: &Bus, endpoint: &str, prefixes: &[&str], keys: Option<ClientKeys>) -> TestSubscriber {
        let prefixes: Vec<String> = prefixes.iter().map(|&prefix| prefix.to_owned()).collect();
        let metrics = Metrics::new("subscriber");
        let from = Subscribing { endpoints: vec![endpoint.to_owned()], keys };
        let subscriber = Subscriber::connect(bus, &from, &prefixes, &metrics, None).unwrap();
        TestSubscriber { subscriber, metrics, received: HashMap::new(), count: 0 }
    }

    /// Takes one delivery, if one comes soon. Every byte of it is compared.
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
        self.pump_until(&format!("the arrival of {count} records"), |subscriber| subscriber.count >= count);
        assert_eq!(self.count, count);
    }

    pub(crate) fn value(&self, name: &str) -> u64 {
        value(&self.metrics, name)
    }

    pub(crate) fn lost(&self) -> u64 {
        self.value(sekiwake_bus::names::LOST_RECORDS)
    }
}

/// Publishes until each of the subscribers has received something of each topic: from here on they miss nothing without noticing.
pub(crate) fn join(publisher: &mut TestPublisher, topics: &[Topic], subscribers: &mut [&mut TestSubscriber]) {
    publisher.wait_for_subscriber();
    wait_for("the first arrival at every subscriber", LONG, || {
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

/// One at a time for those that load the machine: two cores are shared by all.
pub(crate) fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
