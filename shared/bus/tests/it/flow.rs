//! Published records arrive, in whatever order publisher, relay and subscriber start.

use sekiwake_bus::names;
use sekiwake_record::{Kind, Topic};
use sekiwake_runtime::Ending;
use sekiwake_testkit::wait::wait_for;

use crate::support::*;

#[test]
fn two_subscribers_receive_every_byte() {
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let all = ["syslog/", "xflow/", "snmptrap/"];
    let mut first = TestSubscriber::start(&relay.subscribe, &all);
    let mut second = TestSubscriber::start(&relay.subscribe, &[""]);
    let topics: Vec<Topic> = Topic::all().collect();
    join(&mut publisher, &topics, &mut [&mut first, &mut second]);
    let before = (first.count, second.count);
    for size in [0, 200, 1_400, 9_000, 65_527] {
        publisher.offer(&topics, if size > 9_000 { 1 } else { 10 }, size);
    }
    first.pump_until_received(before.0 + 192 * 41);
    second.pump_until_received(before.1 + 192 * 41);
    assert_eq!((first.lost(), second.lost()), (0, 0));
    assert_eq!(relay.value(names::RELAY_RECEIVED_RECORDS), relay.value(names::RELAY_SENT_RECORDS));
    assert_eq!(relay.value(names::RELAY_RECEIVED_RECORDS), publisher.value(names::PUBLISHED_RECORDS));
    assert_eq!(
        publisher.value(names::UNPUBLISHED_RECORDS) + publisher.value(names::PUBLISHED_RECORDS),
        publisher.total()
    );
}

#[test]
fn any_order_of_start_works() {
    // A port that was free a moment ago.
    let spare = TestRelay::start();
    let publish = spare.publish.clone();
    let subscribe = spare.subscribe.clone();
    assert_eq!(spare.role.stop(), Ending::Done);
    for order in ["prs", "psr", "rps", "rsp", "spr", "srp"] {
        let mut relay = None;
        let mut publisher = None;
        let mut subscriber = None;
        for part in order.chars() {
            match part {
                'p' => publisher = Some(TestPublisher::start(&publish)),
                'r' => relay = Some(TestRelay::start_at(&publish, &subscribe)),
                _ => subscriber = Some(TestSubscriber::start(&subscribe, &["syslog/"])),
            }
        }
        let mut publisher = publisher.unwrap();
        let mut subscriber = subscriber.unwrap();
        publisher.wait_for_subscriber();
        publisher.offer(&topics(64), 10, 100);
        subscriber.pump_until_received(640);
        assert_eq!(subscriber.lost(), 0, "{order}");
        assert_eq!(publisher.value(names::PUBLISHED_RECORDS), 640, "{order}");
        drop((publisher, subscriber));
        assert_eq!(relay.unwrap().role.stop(), Ending::Done, "{order}");
    }
}

#[test]
fn publisher_sends_only_subscribed_shards() {
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["xflow/2a"]);
    publisher.wait_for_subscriber();
    let topics: Vec<Topic> = Topic::all().collect();
    publisher.offer(&topics, 7, 100);
    subscriber.pump_until_received(7);
    let topic = Topic::parse(b"xflow/2a").unwrap();
    assert_eq!(subscriber.received[&topic], (0..7).collect::<Vec<u64>>());
    // The subscriber has its records before the publisher has counted the others.
    let counts = || (publisher.value(names::PUBLISHED_RECORDS), publisher.reason("no_subscriber"));
    wait_for("all counts", LONG, || counts() == (7, 7 * 191)).unwrap();
    // The following announcements list all topics, of which only the subscribed one counts.
    publisher.offer(&topics, 1, 100);
    let (outcome, _member) = publisher.finish();
    assert_eq!((outcome.offered, outcome.unpublished), (8 * 192, 8 * 191));
    subscriber.pump_until_received(8);
    subscriber.pump_until("the end of the stream", |subscriber| subscriber.value(names::STREAMS) == 0);
    assert_eq!(subscriber.lost(), 0);
}

#[test]
fn late_subscriber_counts_no_loss() {
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut first = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    publisher.wait_for_subscriber();
    publisher.offer(&topics(8), 1_000, 100);
    first.pump_until_received(8_000);
    let mut late = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    join(&mut publisher, &topics(8), &mut [&mut first, &mut late]);
    publisher.offer(&topics(8), 10, 100);
    publisher.finish();
    for subscriber in [&mut first, &mut late] {
        subscriber.pump_until("the end of the stream", |subscriber| subscriber.value(names::STREAMS) == 0);
        assert_eq!(subscriber.lost(), 0);
    }
}

#[test]
fn stream_ends_after_all_records_have_arrived() {
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["snmptrap/"]);
    publisher.wait_for_subscriber();
    let topic = [Topic { kind: Kind::SnmpTrap, ..topics(1)[0] }];
    for _ in 0..100 {
        publisher.offer(&topic, 100, 500);
    }
    let (outcome, role) = publisher.finish();
    assert_eq!((outcome.offered, outcome.unpublished), (10_000, 0));
    assert_eq!(role.stop(), Ending::Done);
    subscriber.pump_until_received(10_000);
    subscriber.pump_until("the end of the stream", |subscriber| subscriber.value(names::STREAMS) == 0);
    assert_eq!(subscriber.lost(), 0);
}

#[test]
fn stopped_relay_sends_all_received_records() {
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    join(&mut publisher, &topics(4), &mut [&mut subscriber]);
    for _ in 0..50 {
        publisher.offer(&topics(4), 100, 1_000);
    }
    let publisher_metrics = publisher.role.metrics().clone();
    let (_, role) = publisher.finish();
    let relay_metrics = relay.role.metrics().clone();
    assert_eq!((relay.role.stop(), role.stop()), (Ending::Done, Ending::Done));
    let published = value(&publisher_metrics, names::PUBLISHED_RECORDS);
    assert_eq!(value(&relay_metrics, names::RELAY_RECEIVED_RECORDS), published);
    subscriber.pump_until_received(published);
    assert_eq!(subscriber.lost(), 0);
}

#[test]
fn connection_state_follows_a_restarted_relay() {
    let relay = TestRelay::start();
    let publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    let publish = relay.publish.clone();
    let subscribe = relay.subscribe.clone();
    let mut both = |wanted: u64| {
        wait_for("the state of both connections", LONG, || {
            subscriber.pump(SHORT);
            subscriber.value(names::CONNECTED) == wanted && publisher.value(names::CONNECTED) == wanted
        })
        .unwrap();
    };
    both(1);
    relay.role.stop();
    both(0);
    // A listener that closes every connection at once is not a relay.
    let address = publish.strip_prefix("tcp://").unwrap();
    let listener = std::net::TcpListener::bind(address).unwrap();
    for _ in 0..3 {
        drop(listener.accept().unwrap());
    }
    drop(listener);
    both(0);
    let relay = TestRelay::start_at(&publish, &subscribe);
    both(1);
    drop(relay);
    both(0);
}
