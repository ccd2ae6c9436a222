//! Events through the relay.

use std::time::Duration;

use sekiwake_bus::{
    EVENT_PREFIX, Event, EventSink, EventSource, MAX_EVENT_BYTES, Publishing, Subscribing, names,
    zeromq::{Context, Endpoints, EventPublisher, EventSubscriber},
};
use sekiwake_record::Name;
use sekiwake_runtime::Metrics;
use sekiwake_testkit::wait::wait_for;

use crate::support::*;

fn publisher(endpoint: &str, metrics: &Metrics) -> EventPublisher {
    let to = Publishing::from(Endpoints { endpoints: vec![endpoint.to_owned()], keys: None });
    EventPublisher::connect(&Context::default(), &to, &Name::new("watch-1").unwrap(), metrics).unwrap()
}

fn subscriber(endpoint: &str, prefix: &str, metrics: &Metrics) -> EventSubscriber {
    let from = Subscribing::from(Endpoints { endpoints: vec![endpoint.to_owned()], keys: None });
    EventSubscriber::connect(&Context::default(), &from, &[prefix.to_owned()], metrics).unwrap()
}

/// Events by outcome.
fn events(metrics: &Metrics, outcome: &str) -> u64 {
    value_of(metrics, names::EVENTS, &format!("outcome=\"{outcome}\""))
}

/// Publishes until the first event is received: events are not kept for later subscribers. Then
/// receives the rest of them.
fn first(publisher: &mut EventPublisher, subscriber: &mut EventSubscriber) -> Event {
    let mut received = None;
    wait_for("an event", LONG, || {
        publisher.publish(br#"{"kind": "high"}"#);
        received = subscriber.receive(SHORT).unwrap();
        received.is_some()
    })
    .unwrap();
    wait_for("the last event", LONG, || publisher.publish(br#"{"kind": "last"}"#)).unwrap();
    while !subscriber.receive(LONG).unwrap().expect("the last event").json.contains("last") {}
    received.unwrap()
}

#[test]
fn events_reach_only_their_subscribers() {
    let relay = TestRelay::start();
    let metrics = Metrics::new("toy");
    let other = Metrics::new("toy");
    let mut publisher = publisher(&relay.publish, &metrics);
    let mut all = subscriber(&relay.subscribe, EVENT_PREFIX, &metrics);
    let mut other_events = subscriber(&relay.subscribe, "anomaly/watch-2/", &other);
    let mut data = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    let event = first(&mut publisher, &mut all);
    assert_eq!((event.publisher(), event.json.as_str()), (Name::new("watch-1").ok(), r#"{"kind":"high"}"#));
    for number in 0..100 {
        assert!(publisher.publish(format!("{{\"number\":\n{number}}}").as_bytes()));
    }
    for number in 0..100 {
        let event = all.receive(LONG).unwrap().unwrap();
        assert_eq!(event.json, format!("{{\"number\":{number}}}"));
    }
    assert_eq!(other_events.receive(Duration::from_millis(100)).unwrap(), None);
    assert!(!data.pump(SHORT));
    assert_eq!(data.value(names::MALFORMED_MESSAGES), 0);
    assert!(relay.value(names::RELAY_EVENTS) >= 101);
    // Both reconnect to a restarted relay.
    let relay = relay.restart();
    first(&mut publisher, &mut all);
    drop(relay);
}

#[test]
fn events_without_room_are_counted_while_the_relay_is_down() {
    let relay = TestRelay::start();
    let metrics = Metrics::new("toy");
    let mut publisher = publisher(&relay.publish, &metrics);
    let mut all = subscriber(&relay.subscribe, EVENT_PREFIX, &metrics);
    first(&mut publisher, &mut all);
    let TestRelay { role, publish, subscribe } = relay;
    role.stop();
    let before = events(&metrics, "published");
    wait_for("a full queue", LONG, || {
        publisher.publish(b"{}");
        events(&metrics, "no_room") > 0
    })
    .unwrap();
    assert!(events(&metrics, "published") > before);
    let relay = TestRelay::start_at(&publish, &subscribe);
    first(&mut publisher, &mut all);
    drop(relay);
}

#[test]
fn empty_prefix_selects_events_without_decode_errors() {
    let relay = TestRelay::start();
    let metrics = Metrics::new("toy");
    let mut publisher = publisher(&relay.publish, &metrics);
    let mut events_too = subscriber(&relay.subscribe, "", &metrics);
    let mut data = TestSubscriber::start(&relay.subscribe, &[""]);
    first(&mut publisher, &mut events_too);
    let mut tap = TestPublisher::start(&relay.publish);
    join(&mut tap, &topics(1), &mut [&mut data]);
    assert_eq!(data.value(names::MALFORMED_MESSAGES), 0);
}

#[test]
fn event_subscription_is_not_a_data_subscription() {
    let relay = TestRelay::start();
    let metrics = Metrics::new("toy");
    let mut publisher = publisher(&relay.publish, &metrics);
    let mut all = subscriber(&relay.subscribe, EVENT_PREFIX, &metrics);
    let producer = TestPublisher::start(&relay.publish);
    first(&mut publisher, &mut all);
    assert!(!producer.watch.wait(Duration::from_millis(300), Duration::ZERO, || false));
    let _data = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    producer.wait_for_subscriber();
}

#[test]
fn invalid_events_are_rejected_and_do_not_wait() {
    let metrics = Metrics::new("toy");
    let mut alone = publisher("tcp://127.0.0.1:1", &metrics);
    for _ in 0..2000 {
        assert!(!alone.publish(b"{}"));
    }
    assert_eq!(events(&metrics, "no_subscriber"), 2000);
    for wrong in [&b""[..], b"[]", b"{text", b"{\"a\":\"\xff\"}", &[b'{'; MAX_EVENT_BYTES + 1]] {
        assert!(!alone.publish(wrong));
    }
    assert_eq!(events(&metrics, "rejected"), 5);
    // Subscribers receive an object on one line, or nothing.
    let relay = TestRelay::start();
    #[expect(clippy::disallowed_methods, reason = "a foreign peer")]
    let context = zmq::Context::new();
    let raw = context.socket(zmq::PUB).unwrap();
    raw.set_linger(0).unwrap();
    raw.connect(&relay.publish).unwrap();
    let mut all = subscriber(&relay.subscribe, EVENT_PREFIX, &metrics);
    let send = |topic: &str, frames: &[&[u8]]| {
        let parts = std::iter::once(topic.as_bytes()).chain(frames.iter().copied());
        raw.send_multipart(parts, 0).unwrap();
    };
    wait_for("the first event", LONG, || {
        send("anomaly/x/", &[b"{}"]);
        all.receive(SHORT).unwrap().is_some()
    })
    .unwrap();
    send("anomaly/begin/", &[b"{}"]);
    while all.receive(LONG).unwrap().expect("the beginning").publisher() != Name::new("begin").ok() {}
    for (topic, frames) in [
        ("anomaly/x/", &[&b"{"[..]][..]),
        ("anomaly/x/", &[b"[1]"]),
        ("anomaly/x/", &[b"\xff"]),
        ("anomaly/x/", &[b"{}", b"{}"]),
        ("anomaly/x/", &[&vec![b' '; MAX_EVENT_BYTES + 1]]),
        ("anomaly/x", &[b"{}"]),
        ("anomaly//", &[b"{}"]),
        ("anomaly/a b/", &[b"{}"]),
    ] {
        send(topic, frames);
    }
    send("anomaly/last/", &[b"{\"last\": true}"]);
    assert_eq!(all.receive(LONG).unwrap().unwrap().publisher(), Name::new("last").ok());
    assert_eq!(value_of(&metrics, names::MALFORMED_MESSAGES, "malformed"), 3);
}
