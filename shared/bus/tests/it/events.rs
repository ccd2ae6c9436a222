//! Events through the relay.

use std::time::Duration;

use sekiwake_bus::{
    Bus, EVENT_PREFIX, Event, EventPublisher, EventSubscriber, MAX_EVENT_BYTES, Publishing, Subscribing, names,
};
use sekiwake_record::Name;
use sekiwake_runtime::Metrics;
use sekiwake_testkit::wait::wait_for;

use crate::support::*;

fn publisher(endpoint: &str, metrics: &Metrics) -> EventPublisher {
    let to = Publishing { endpoints: vec![endpoint.to_owned()], keys: None };
    EventPublisher::connect(&Bus::default(), &to, &Name::new("watch-1").unwrap(), metrics).unwrap()
}

fn subscriber(endpoint: &str, prefix: &str, metrics: &Metrics) -> EventSubscriber {
    let from = Subscribing { endpoints: vec![endpoint.to_owned()], keys: None };
    EventSubscriber::connect(&Bus::default(), &from, &[prefix.to_owned()], metrics).unwrap()
}

/// Events by what became of them.
fn events(metrics: &Metrics, outcome: &str) -> u64 {
    value_of(metrics, names::EVENTS, &format!("outcome=\"{outcome}\""))
}

/// Publishes until the first event comes: events are not kept for those who are not there yet.
fn first(publisher: &mut EventPublisher, subscriber: &mut EventSubscriber) -> Event {
    let mut came = None;
    wait_for("an event", LONG, || {
        publisher.publish(br#"{"kind": "high"}"#);
        came = subscriber.receive(SHORT).unwrap();
        came.is_some()
    })
    .unwrap();
    came.unwrap()
}

#[test]
fn events_pass_the_relay_to_those_who_listen_and_to_nobody_else() {
    let relay = TestRelay::start();
    let (metrics, other) = (Metrics::new("toy"), Metrics::new("toy"));
    let mut publisher = publisher(&relay.publish, &metrics);
    let mut all = subscriber(&relay.subscribe, EVENT_PREFIX, &metrics);
    let mut of_another = subscriber(&relay.subscribe, "anomaly/watch-2/", &other);
    let mut of_data = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    let event = first(&mut publisher, &mut all);
    assert_eq!((event.publisher.as_str(), event.json.as_str()), ("watch-1", r#"{"kind":"high"}"#));
    while all.receive(SHORT).unwrap().is_some() {}
    for number in 0..100 {
        assert!(publisher.publish(format!("{{\"number\":\n{number}}}").as_bytes()));
    }
    for number in 0..100 {
        let event = all.receive(LONG).unwrap().unwrap();
        assert_eq!(event.json, format!("{{\"number\":{number}}}"));
    }
    assert_eq!(of_another.receive(Duration::from_millis(100)).unwrap(), None);
    assert!(!of_data.pump(SHORT));
    assert_eq!(of_data.value(names::MALFORMED_MESSAGES), 0);
    assert!(relay.value(names::RELAY_EVENTS) >= 101);
    // A relay that comes back finds both again.
    let relay = relay.restart();
    first(&mut publisher, &mut all);
    drop(relay);
}

#[test]
fn what_finds_no_room_while_the_relay_is_away_is_counted_and_the_rest_comes_when_it_is_back() {
    let relay = TestRelay::start();
    let metrics = Metrics::new("toy");
    let mut publisher = publisher(&relay.publish, &metrics);
    let mut all = subscriber(&relay.subscribe, EVENT_PREFIX, &metrics);
    first(&mut publisher, &mut all);
    while all.receive(SHORT).unwrap().is_some() {}
    let TestRelay { member, publish, subscribe } = relay;
    member.stop();
    let before = events(&metrics, "published");
    wait_for("the end of all room", LONG, || {
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
fn who_subscribes_to_everything_gets_events_too_and_takes_none_for_broken_data() {
    let relay = TestRelay::start();
    let metrics = Metrics::new("toy");
    let mut publisher = publisher(&relay.publish, &metrics);
    let mut of_events = subscriber(&relay.subscribe, "", &metrics);
    let mut of_data = TestSubscriber::start(&relay.subscribe, &[""]);
    first(&mut publisher, &mut of_events);
    let mut tap = TestPublisher::start(&relay.publish);
    join(&mut tap, &topics(1), &mut [&mut of_data]);
    assert_eq!(of_data.value(names::MALFORMED_MESSAGES), 0);
}

#[test]
fn a_subscription_to_events_does_not_let_a_publisher_of_data_believe_that_somebody_listens() {
    let relay = TestRelay::start();
    let metrics = Metrics::new("toy");
    let mut publisher = publisher(&relay.publish, &metrics);
    let mut all = subscriber(&relay.subscribe, EVENT_PREFIX, &metrics);
    let data = TestPublisher::start(&relay.publish);
    first(&mut publisher, &mut all);
    assert!(!data.watch.wait(Duration::from_millis(300), Duration::ZERO, || false));
    let _of_data = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    data.wait_for_subscriber();
}

#[test]
fn what_is_no_event_is_refused_and_without_a_relay_nothing_waits() {
    let metrics = Metrics::new("toy");
    let mut alone = publisher("tcp://127.0.0.1:1", &metrics);
    let started = std::time::Instant::now();
    for _ in 0..2000 {
        assert!(!alone.publish(b"{}"));
    }
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(events(&metrics, "no_subscriber"), 2000);
    for wrong in [&b""[..], b"[]", b"{text", b"{\"a\":\"\xff\"}", &[b'{'; MAX_EVENT_BYTES + 1]] {
        assert!(!alone.publish(wrong));
    }
    assert_eq!(events(&metrics, "refused"), 5);
    // Whatever is sent under the topic of events, what comes out is an object on one line.
    let relay = TestRelay::start();
    #[expect(clippy::disallowed_methods, reason = "a peer that is not ours")]
    let context = zmq::Context::new();
    let raw = context.socket(zmq::PUB).unwrap();
    raw.set_linger(0).unwrap();
    raw.connect(&relay.publish).unwrap();
    let mut all = subscriber(&relay.subscribe, EVENT_PREFIX, &metrics);
    let send = |topic: &str, frames: &[&[u8]]| {
        let parts = std::iter::once(topic.as_bytes()).chain(frames.iter().copied());
        raw.send_multipart(parts, 0).unwrap();
    };
    wait_for("the way to be open", LONG, || {
        send("anomaly/x/", &[b"{}"]);
        all.receive(SHORT).unwrap().is_some()
    })
    .unwrap();
    while all.receive(SHORT).unwrap().is_some() {}
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
    assert_eq!(all.receive(LONG).unwrap().unwrap().publisher.as_str(), "last");
    assert_eq!(value_of(&metrics, names::MALFORMED_MESSAGES, "malformed"), 3);
}
