//! The relay restarts while data flows.

use std::time::{Duration, Instant};

use sekiwake_bus::{Overflow, names};
use sekiwake_record::Topic;

use crate::support::*;

/// Offers 40 records every two milliseconds or less often while `busy`, and lets `subscriber`
/// receive them.
fn paced(
    publisher: &mut TestPublisher,
    subscriber: &mut TestSubscriber,
    topics: &[Topic],
    mut busy: impl FnMut(&TestPublisher) -> bool,
) {
    let mut next = Instant::now();
    while busy(publisher) {
        // No more at a time than the subscriber's queues hold.
        let missing = publisher.total() - subscriber.count - subscriber.lost();
        if Instant::now() >= next && missing < 20_000 {
            publisher.offer(topics, 40 / topics.len() as u64, 200);
            next = Instant::now() + Duration::from_millis(2);
        }
        subscriber.pump(Duration::from_millis(2));
        while subscriber.pump(Duration::ZERO) {}
    }
}

/// Records of one run.
#[derive(Debug)]
struct Counts {
    offered: u64,
    received: u64,
    lost: u64,
    bus_full: u64,
}

/// Restarts the relay while records are offered.
fn restart_under_load(retain_bytes: usize) -> Counts {
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::with(&relay.publish, retain_bytes, Overflow::Drop);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    publisher.wait_for_subscriber();
    let topics = topics(8);
    paced(&mut publisher, &mut subscriber, &topics, |publisher| publisher.total() < 6_000);
    let restart = std::thread::spawn(move || relay.restart());
    paced(&mut publisher, &mut subscriber, &topics, |_| !restart.is_finished());
    let relay = restart.join().unwrap();
    let enough = publisher.total() + 20_000;
    paced(&mut publisher, &mut subscriber, &topics, |publisher| publisher.total() < enough);
    let offered = publisher.total();
    let metrics = publisher.role.metrics().clone();
    publisher.finish();
    let bus_full = value_of(&metrics, names::UNPUBLISHED_RECORDS, "bus_full");
    subscriber.pump_until("the end of the stream", |subscriber| subscriber.value(names::STREAMS) == 0);
    drop(relay);
    Counts { offered, received: subscriber.count, lost: subscriber.lost(), bus_full }
}

#[test]
fn relay_restart_under_load_loses_nothing() {
    let _alone = alone();
    for _ in 0..3 {
        let counts = restart_under_load(64 << 20);
        assert!(counts.offered >= 26_000);
        assert_eq!((counts.received, counts.lost, counts.bus_full), (counts.offered, 0, 0));
    }
}

#[test]
fn losses_of_a_relay_restart_with_little_memory_are_counted() {
    let _alone = alone();
    let Counts { offered, received, lost, bus_full } = restart_under_load(64 << 10);
    assert!(bus_full > 0);
    assert_eq!((received + lost, lost), (offered, bus_full));
}

#[test]
#[ignore = "a measurement: twenty restarts"]
fn twenty_restarts() {
    for round in 0..20 {
        println!("round {round}: {:?}", restart_under_load(64 << 20));
    }
}

#[test]
fn records_offered_while_the_relay_is_down_arrive_later() {
    let relay = TestRelay::start();
    let publish = relay.publish.clone();
    let subscribe = relay.subscribe.clone();
    let mut publisher = TestPublisher::start(&publish);
    let mut subscriber = TestSubscriber::start(&subscribe, &["syslog/"]);
    publisher.wait_for_subscriber();
    publisher.offer(&topics(16), 100, 200);
    relay.role.stop();
    // More than the socket's pipe has room for.
    for _ in 0..200 {
        publisher.offer(&topics(16), 10, 200);
    }
    let relay = TestRelay::start_at(&publish, &subscribe);
    publisher.offer(&topics(16), 100, 200);
    subscriber.pump_until_received(16 * 2_200);
    assert_eq!((subscriber.lost(), publisher.value(names::UNPUBLISHED_RECORDS)), (0, 0));
    assert_eq!(publisher.value(names::WAITING_BYTES), 0);
    drop(relay);
}
