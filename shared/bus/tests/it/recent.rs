//! Recent records over real sockets.

use std::{collections::HashMap, time::Duration};

use sekiwake_bus::{
    Controlling, MissingRecent, Source, Stream, Subscribing, names,
    zeromq::{Context, Endpoints, RecentSubscriber},
};
use sekiwake_group::{
    Peer,
    wire::{GetRecent, Message, Number, Range, RecentOutcome},
};
use sekiwake_record::{Name, Topic};
use sekiwake_runtime::Metrics;
use sekiwake_testkit::wait::{wait_for, wait_for_some};

use crate::{
    control::{TestMember, TestProxy, TestStream, dealer},
    support::*,
};

/// Longer ago than the capture time of test records.
const AGES: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A reader that checks that each record is delivered once, and in order.
pub(crate) struct TestReader {
    subscriber: RecentSubscriber,
    metrics: Metrics,
    /// By topic: the first and the next sequence number.
    received: HashMap<Topic, (u64, u64)>,
    count: u64,
    retransmitted: u64,
    missing: Vec<MissingRecent>,
}

impl TestReader {
    pub(crate) fn start(proxy: &TestProxy) -> TestReader {
        TestReader::of(proxy.subscribing(), proxy.controlling(), AGES)
    }

    fn of(from: Subscribing, controlling: Controlling, age: Duration) -> TestReader {
        let metrics = Metrics::new("reader");
        let prefixes = ["syslog/".to_owned()];
        let subscriber =
            RecentSubscriber::connect(&Context::default(), (&from, &controlling), &prefixes, age, &metrics, None)
                .unwrap();
        TestReader { subscriber, metrics, received: HashMap::new(), count: 0, retransmitted: 0, missing: Vec::new() }
    }

    pub(crate) fn pump(&mut self, timeout: Duration) -> bool {
        let delivery = self.subscriber.receive(timeout).unwrap();
        self.missing.extend(std::iter::from_fn(|| self.subscriber.next_missing()));
        let Some(delivery) = delivery else { return false };
        assert!(!delivery.batch.is_empty());
        let count = delivery.batch.len() as u64;
        self.count += count;
        self.retransmitted += if delivery.is_retransmitted { count } else { 0 };
        let first = delivery.first_sequence;
        for (sequence, got) in (first..).zip(delivery.batch.records()) {
            assert_eq!(got.payload, payload(delivery.topic, sequence, got.payload.len()));
        }
        let (_, next) = self.received.entry(delivery.topic).or_insert((first, first));
        assert_eq!(*next, first, "{}: once, in order, without a gap", delivery.topic);
        *next += count;
        true
    }

    fn pump_until(&mut self, what: &str, condition: impl Fn(&TestReader) -> bool) {
        wait_for(what, LONG, || {
            while self.pump(Duration::from_millis(5)) {}
            condition(self)
        })
        .unwrap_or_else(|error| panic!("{error}: {} received\n{}", self.count, self.metrics.text()));
    }

    fn lost(&self) -> u64 {
        value(&self.metrics, names::LOST_RECORDS)
    }
}

#[test]
fn reader_gets_what_was_published_before_it_subscribed() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 64 << 20);
    stream.publish(64, 100);
    wait_for("publication", LONG, || stream.unpublished() == 6_400).unwrap();
    let mut reader = TestReader::start(&proxy);
    // More is published while it catches up.
    for _ in 0..100 {
        stream.publish(64, 10);
        reader.pump(Duration::from_millis(1));
    }
    reader.pump_until("everything", |reader| reader.count == 6_400 + 64_000);
    assert!(reader.retransmitted >= 6_400, "{}", reader.retransmitted);
    assert_eq!((reader.lost(), &reader.missing[..]), (0, &[][..]));
    assert!(reader.received.values().all(|&(first, next)| (first, next) == (0, 1_100)));
    // A second one, which wants nothing that is older than itself.
    let mut other = TestReader::of(proxy.subscribing(), proxy.controlling(), Duration::from_secs(1));
    wait_for("a live record", LONG, || {
        stream.publish(1, 1);
        other.pump(Duration::from_millis(5))
    })
    .unwrap();
    assert_eq!((other.retransmitted, other.lost()), (0, 0));
}

#[test]
fn reader_catches_up_while_a_proxy_is_new() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 64 << 20);
    stream.publish(64, 100);
    wait_for("publication", LONG, || stream.unpublished() == 6_400).unwrap();
    let proxy = proxy.restart();
    let mut reader = TestReader::start(&proxy);
    reader.pump_until("everything", |reader| reader.count == 6_400);
    assert_eq!((reader.lost(), &reader.missing[..]), (0, &[][..]));
}

#[test]
fn proxy_or_publisher_that_cannot_answer_is_named_and_live_data_follows() {
    let proxy = TestProxy::start();
    let mut publisher = TestPublisher::start(&proxy.relay.publish);
    let topic = topics(1);
    // No control connection, and a publisher that the proxy does not know.
    let nowhere = Controlling::from(Endpoints { endpoints: vec!["tcp://127.0.0.1:9".to_owned()], keys: None });
    let mut cut = TestReader::of(proxy.subscribing(), nowhere, AGES);
    let mut reader = TestReader::start(&proxy);
    publisher.wait_for_subscriber();
    wait_for("live records", LONG, || {
        publisher.offer(&topic, 1, 0);
        cut.pump(Duration::from_millis(5));
        reader.pump(Duration::from_millis(5));
        !cut.missing.is_empty() && !reader.missing.is_empty() && cut.count > 0 && reader.count > 0
    })
    .unwrap();
    assert_eq!(cut.missing, [MissingRecent::NoConnection]);
    let [MissingRecent::Gone(stream)] = &reader.missing[..] else { panic!("{:?}", reader.missing) };
    assert_eq!(&*stream.name, "wire-1");
}

#[test]
fn hostile_reader_slows_only_itself() {
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 64 << 20);
    let mut member = TestMember::start(&proxy);
    member.pump_until("all shards", |member| member.owned() == 64);
    stream.publish(64, 1_000);
    member.pump_until("everything", |member| member.received == 64_000);
    // It learns the stream's name and epoch like anybody, and does not wait for answers.
    let mut spy = TestSubscriber::start(&proxy.relay.subscribe, &["syslog/"]);
    let mut published = 64_000;
    let delivery = wait_for_some("a record", LONG, || {
        stream.publish(64, 1);
        published += 64;
        spy.subscriber.receive(SHORT).unwrap()
    })
    .unwrap();
    let stream_name = Name::new(&delivery.stream_name).unwrap();
    let hostile = dealer(&proxy.control);
    let everything = |request: u64| {
        let ranges = topics(64).into_iter().map(|topic| Range { topic, from: Number(0), to: Number(1 << 50) });
        let get = GetRecent {
            requester: Peer::default(),
            request,
            stream: Stream::new(&stream_name, delivery.stream_epoch),
            max_bytes: u64::MAX,
            ranges: ranges.collect(),
            locate: topics(64),
            since_ns: 0,
        };
        Message::from(get).encode()
    };
    let mut requests = 0;
    let mut flood = |count: u64| {
        for _ in 0..count {
            requests += 1;
            hostile.send(everything(requests), 0).unwrap();
        }
    };
    flood(1_000);
    wait_for("the rejections", LONG, || proxy.rejected("reader_requests") > 0).unwrap();
    let mut reader = TestReader::start(&proxy);
    while reader.count < published {
        flood(100);
        stream.publish(64, 1);
        published += 64;
        while reader.pump(Duration::ZERO) {}
        member.pump();
    }
    member.pump_until("everything", |member| member.received == published);
    assert_eq!((reader.lost(), value(&member.metrics, names::LOST_RECORDS), member.owned()), (0, 0, 64));
    // It gets answers too.
    let mut answered = 0;
    while let Ok(frame) = hostile.recv_bytes(zmq::DONTWAIT) {
        let message = Message::decode(&frame).unwrap();
        answered += u64::from(matches!(message, Message::RecentEnd(end) if end.outcome == RecentOutcome::More));
    }
    assert!(answered > 0);
}
