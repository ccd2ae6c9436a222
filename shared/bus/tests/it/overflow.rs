//! A full bus.

use std::time::Duration;

use sekiwake_bus::{Overflow, names};
use sekiwake_testkit::wait::wait_for;

use crate::support::*;

/// An XSUB that subscribes to everything and never reads.
fn stalled_relay() -> (zmq::Context, zmq::Socket, String) {
    #[expect(clippy::disallowed_methods, reason = "a foreign peer")]
    let context = zmq::Context::new();
    let socket = context.socket(zmq::XSUB).unwrap();
    socket.set_linger(0).unwrap();
    socket.set_rcvhwm(1).unwrap();
    socket.set_rcvbuf(4096).unwrap();
    socket.bind(ANY_PORT).unwrap();
    socket.send(&[1u8][..], 0).unwrap();
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    (context, socket, endpoint)
}

/// Waits until the publisher has received the subscription. libzmq sends it when the stalled
/// relay's socket is used next.
fn introduce(relay: &zmq::Socket, publisher: &TestPublisher) {
    wait_for("the subscription", LONG, || {
        relay.get_events().unwrap();
        publisher.watch.wait(SHORT, Duration::ZERO, || false)
    })
    .unwrap();
}

#[test]
fn oldest_waiting_records_are_dropped_when_memory_is_full() {
    let _alone = alone();
    let (_context, relay, endpoint) = stalled_relay();
    let mut publisher = TestPublisher::draining(&endpoint, 1 << 20, Overflow::Drop, "1s");
    introduce(&relay, &publisher);
    wait_for("a full bus", LONG, || {
        for _ in 0..100 {
            publisher.offer(&topics(1), 1, 10_000);
        }
        publisher.reason("bus_full") > 1_000
    })
    .unwrap();
    let waiting = publisher.value(names::WAITING_BYTES);
    // The memory is full of batches of one record, all of which are in the waiting queue.
    assert!(((1 << 20) - 25_000..=1 << 20).contains(&waiting), "{waiting}");
    let accounted = |publisher: &TestPublisher| {
        let counters = [names::PUBLISHED_RECORDS, names::WAITING_RECORDS, names::UNPUBLISHED_RECORDS];
        counters.iter().map(|name| publisher.value(name)).sum::<u64>()
    };
    wait_for("all hand-overs", LONG, || accounted(&publisher) == publisher.total()).unwrap();
    // Nothing is read until the drain deadline: then waiting records are dropped and counted too.
    publisher.role.request_stop();
    let total = publisher.total();
    let (outcome, role) = publisher.finish();
    let (published, unpublished) =
        (value(role.metrics(), names::PUBLISHED_RECORDS), value(role.metrics(), names::UNPUBLISHED_RECORDS));
    assert_eq!((outcome.offered, outcome.unpublished, outcome.cut_short), (total, unpublished, true));
    assert_eq!(published + unpublished, total);
    drop(relay);
}

#[test]
fn small_waiting_batches_use_little_memory() {
    let _alone = alone();
    let (_context, relay, endpoint) = stalled_relay();
    let mut publisher = TestPublisher::draining(&endpoint, 4 << 20, Overflow::Drop, "0s");
    introduce(&relay, &publisher);
    // A batch of one record of 50 bytes takes well under a kilobyte.
    wait_for("thousands of batches in four megabytes", LONG, || {
        for _ in 0..100 {
            publisher.offer(&topics(1), 1, 50);
        }
        publisher.value(names::WAITING_RECORDS) > 8_000
    })
    .unwrap();
}

#[test]
fn waiting_producer_resumes_without_loss() {
    let _alone = alone();
    let relay = TestRelay::start();
    let publish = relay.publish.clone();
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    let mut publisher = TestPublisher::with(&publish, 64 << 10, Overflow::Wait);
    publisher.wait_for_subscriber();
    let subscribe = relay.subscribe.clone();
    relay.role.stop();
    let metrics = publisher.role.metrics().clone();
    let producer = std::thread::spawn(move || {
        for _ in 0..4_000 {
            assert_eq!(publisher.offer(&topics(1), 10, 1_000), 0);
        }
        publisher
    });
    // Socket, waiting queue and channel are full.
    wait_for("a full publisher", LONG, || value(&metrics, names::WAITING_BYTES) >= 32 << 10).unwrap();
    let waiting = value(&metrics, names::WAITING_BYTES);
    assert!(waiting < 64 << 10, "{waiting}");
    assert!(!producer.is_finished());
    let _relay = TestRelay::start_at(&publish, &subscribe);
    subscriber.pump_until_received(40_000);
    let (outcome, _member) = producer.join().unwrap().finish();
    assert_eq!((outcome.offered, outcome.unpublished, subscriber.lost()), (40_000, 0, 0));
    assert!(!outcome.cut_short);
}

#[test]
fn waiting_producer_is_released_when_the_publisher_ends() {
    let _alone = alone();
    let (_context, relay, endpoint) = stalled_relay();
    let mut publisher = TestPublisher::draining(&endpoint, 64 << 10, Overflow::Wait, "1s");
    introduce(&relay, &publisher);
    let metrics = publisher.role.metrics().clone();
    let stop = publisher.role.stop_handle();
    let producer = std::thread::spawn(move || {
        while publisher.offer(&topics(1), 1, 10_000) == 0 {}
        // From here on batches are rejected at once.
        assert_eq!(publisher.offer(&topics(1), 1, 10_000), 1);
        publisher
    });
    wait_for("a full publisher", LONG, || value(&metrics, names::WAITING_BYTES) >= 32 << 10).unwrap();
    stop.stop("otherwise the producer waits endlessly");
    let publisher = producer.join().unwrap();
    let accounted = publisher.value(names::PUBLISHED_RECORDS) + publisher.value(names::UNPUBLISHED_RECORDS);
    assert_eq!(accounted, publisher.total());
}

#[test]
fn stalled_subscriber_counts_its_losses_and_delays_no_other() {
    let _alone = alone();
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::with(&relay.publish, 256 << 20, Overflow::Wait);
    let mut healthy = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    let mut stalled = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    let topics = topics(4);
    join(&mut publisher, &topics, &mut [&mut healthy, &mut stalled]);
    let before = healthy.count;
    let stalled_before = stalled.count;
    let start = publisher.total();
    // The healthy one has each burst before the next is offered, so that its queues have room.
    let mut burst = || {
        for _ in 0..100 {
            publisher.offer(&topics, 1, 4_000);
        }
        healthy.pump_until_received(before + publisher.total() - start);
    };
    // Batches of one large record, until its two queues and the kernel's buffers are full.
    wait_for("a full queue", LONG, || {
        burst();
        relay.value(names::RELAY_QUEUE_FULL) > 0
    })
    .unwrap();
    for _ in 0..4 {
        burst();
    }
    assert_eq!(healthy.lost(), 0);
    // It resumes, and receives the newest records again.
    wait_for("the newest records", LONG, || {
        publisher.offer(&topics, 1, 100);
        while stalled.pump(SHORT) {}
        topics.iter().all(|topic| stalled.received[topic].last() == Some(&(publisher.offered[topic] - 1)))
    })
    .unwrap();
    let total = publisher.total();
    publisher.finish();
    stalled.pump_until("the end of the stream", |subscriber| subscriber.value(names::STREAMS) == 0);
    assert!(stalled.lost() > 1_000, "{}", stalled.lost());
    assert_eq!(stalled.count - stalled_before + stalled.lost(), total - start);
}
