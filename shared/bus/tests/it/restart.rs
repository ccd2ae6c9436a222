//! The relay goes and comes back while data flows.

use std::time::{Duration, Instant};

use sekiwake_bus::{Overflow, names};
use sekiwake_record::Topic;

use crate::support::*;

/// Offers on `topics` at about `rate` records a second for as long as `subscriber` is pumped and `busy` says so.
fn paced(
    publisher: &mut TestPublisher,
    subscriber: &mut TestSubscriber,
    topics: &[Topic],
    rate: f64,
    mut busy: impl FnMut() -> bool,
) {
    let started = Instant::now();
    let mut offered = 0;
    while busy() {
        let due = (started.elapsed().as_secs_f64() * rate) as u64 / topics.len() as u64;
        if due > offered {
            publisher.offer(topics, due - offered, 200);
            offered = due;
        }
        subscriber.pump(Duration::from_millis(2));
    }
}

/// Stops the relay and starts another while records are offered, and gives offered, received and lost since the beginning.
fn restart_under_load(hold_bytes: usize) -> (u64, u64, u64, u64) {
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::with(&relay.publish, hold_bytes, Overflow::Drop);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    publisher.wait_for_subscriber();
    let topics = topics(8);
    let end = Instant::now() + Duration::from_millis(300);
    paced(&mut publisher, &mut subscriber, &topics, 20_000.0, || Instant::now() < end);
    let restart = std::thread::spawn(move || relay.restart());
    paced(&mut publisher, &mut subscriber, &topics, 20_000.0, || !restart.is_finished());
    let relay = restart.join().unwrap();
    let end = Instant::now() + Duration::from_millis(1_000);
    paced(&mut publisher, &mut subscriber, &topics, 20_000.0, || Instant::now() < end);
    let (total, bus_full) = (publisher.total(), publisher.member.metrics().clone());
    publisher.finish();
    let bus_full = value_of(&bus_full, names::UNPUBLISHED_RECORDS, "bus_full");
    subscriber.pump_until("the end of the stream", |subscriber| subscriber.value(names::STREAMS) == 0);
    drop(relay);
    (total, subscriber.count, subscriber.lost(), bus_full)
}

#[test]
fn an_orderly_restart_of_the_relay_under_load_loses_nothing() {
    let _alone = alone();
    for _ in 0..3 {
        let (offered, received, lost, bus_full) = restart_under_load(64 << 20);
        assert!(offered > 20_000);
        assert_eq!((received, lost, bus_full), (offered, 0, 0));
    }
}

#[test]
fn what_a_restart_of_the_relay_loses_when_the_memory_is_small_is_counted() {
    let _alone = alone();
    let (offered, received, lost, bus_full) = restart_under_load(64 << 10);
    assert!(bus_full > 0);
    assert_eq!((received + lost, lost), (offered, bus_full));
}

#[test]
#[ignore = "a measurement: twenty restarts"]
fn twenty_restarts() {
    for round in 0..20 {
        let (offered, received, lost, bus_full) = restart_under_load(64 << 20);
        println!("round {round}: offered {offered} received {received} lost {lost} bus_full {bus_full}");
    }
}

#[test]
fn records_offered_before_during_and_after_an_absence_of_the_relay_all_arrive() {
    let relay = TestRelay::start();
    let (publish, subscribe) = (relay.publish.clone(), relay.subscribe.clone());
    let mut publisher = TestPublisher::start(&publish);
    let mut subscriber = TestSubscriber::start(&subscribe, &["syslog/"]);
    publisher.wait_for_subscriber();
    publisher.offer(&topics(16), 100, 200);
    relay.member.stop();
    // More than the pipe of the socket holds.
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
