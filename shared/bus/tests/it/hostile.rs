//! Hostile peers.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sekiwake_bus::{Source, names, zeromq::MAX_MESSAGE_BYTES};
use sekiwake_record::{Announcement, Header, TopicPosition};
use sekiwake_testkit::wait::wait_for;

use crate::support::*;

struct Peer {
    socket: zmq::Socket,
    _context: zmq::Context,
}

impl Peer {
    fn new(kind: zmq::SocketType) -> Peer {
        #[expect(clippy::disallowed_methods, reason = "a foreign peer")]
        let context = zmq::Context::new();
        let socket = context.socket(kind).unwrap();
        socket.set_linger(0).unwrap();
        socket.set_sndhwm(0).unwrap();
        Peer { socket, _context: context }
    }

    fn connected(kind: zmq::SocketType, endpoint: &str) -> Peer {
        let peer = Peer::new(kind);
        peer.socket.connect(endpoint).unwrap();
        peer
    }

    fn send(&self, parts: &[&[u8]]) {
        self.socket.send_multipart(parts, 0).unwrap();
    }

    /// Reads subscriptions until it finds this one.
    fn wait_for_subscription(&self, prefix: &str) {
        self.socket.set_rcvtimeo(LONG.as_millis() as i32).unwrap();
        while self.socket.recv_bytes(0).unwrap()[1..] != *prefix.as_bytes() {}
    }
}

fn header(first_sequence: u64, count: u32) -> Vec<u8> {
    let mut frame = Vec::new();
    let header = Header {
        stream_name: "evil",
        stream_epoch: 1,
        first_sequence,
        count,
        first_captured_at_ns: 0,
        last_captured_at_ns: u64::MAX,
    };
    header.encode(&mut frame);
    frame
}

fn announcement(next_sequence: u64) -> Vec<u8> {
    let mut frame = Vec::new();
    let position = |topic| TopicPosition { topic, oldest_sequence: 0, next_sequence };
    let positions = topics(192).into_iter().map(position).collect();
    Announcement { stream_name: "evil".to_owned(), stream_epoch: 1, ended: false, positions, clock_ns: None }
        .encode(&mut frame);
    frame
}

/// A body of one small record.
fn body() -> Vec<u8> {
    let mut builder = sekiwake_record::BatchBuilder::new(Vec::new());
    builder.push(&record(b"evil"));
    builder.close().unwrap().body
}

#[test]
fn malformed_messages_of_publishers_are_counted() {
    let _alone = alone();
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/", "@"]);
    join(&mut publisher, &topics(2), &mut [&mut subscriber]);
    let before = subscriber.count;

    let evil = Peer::connected(zmq::XPUB, &relay.publish);
    evil.wait_for_subscription("syslog/");
    let header = header(0, 1);
    evil.send(&[b"syslog/00"]);
    evil.send(&[b"syslog/00", &header]);
    evil.send(&[b"syslog/00", &header, b"x", b"y"]);
    evil.send(&[b"syslog/00", b"\xff\xff", b"x"]);
    evil.send(&[b"syslog/00", b"", b""]);
    // Appended elements, as in a later version, but too many: an array of 7 + 1,024 elements.
    assert_eq!(header[0], 0x97);
    evil.send(&[b"syslog/00", &[b"\xdc\x04\x07", &header[1..], &[0; 1_024]].concat(), &body()]);
    evil.send(&[b"@stream/evil/"]);
    wait_for("seven malformed messages", LONG, || malformed(&relay) == 7).unwrap();
    evil.send(&[b"syslog/40", &header, b"x"]);
    evil.send(&[b"syslog/000", &header, b"x"]);
    evil.send(&[b"@stream", b"x"]);
    evil.send(&[b"@str\xff/", b"x"]);
    wait_for("four unknown topics", LONG, || unknown(&relay) == 4).unwrap();
    // No more than the subscriber's queue in the relay has room for.
    for number in 0..4_000 {
        evil.send(&[format!("@stream/{number}/").as_bytes(), b"garbage"]);
    }
    // An oversized message closes its connection and no other.
    evil.send(&[b"syslog/00", &header, &vec![0; MAX_MESSAGE_BYTES as usize + 1]]);

    publisher.offer(&topics(2), 1_000, 100);
    subscriber.pump_until_received(before + 2_000);
    let malformed_messages = |subscriber: &TestSubscriber| subscriber.value(names::MALFORMED_MESSAGES);
    subscriber.pump_until("the malformed announcements", |subscriber| malformed_messages(subscriber) == 4_000);
    assert_eq!((subscriber.lost(), subscriber.value(names::STREAMS)), (0, 1));
}

fn malformed(relay: &TestRelay) -> u64 {
    value_of(relay.role.metrics(), names::RELAY_REJECTED_MESSAGES, "malformed")
}

fn unknown(relay: &TestRelay) -> u64 {
    value_of(relay.role.metrics(), names::RELAY_REJECTED_MESSAGES, "unknown_topic")
}

#[test]
fn invalid_subscriptions_are_rejected_and_counted() {
    let _alone = alone();
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let evil = Peer::connected(zmq::XSUB, &relay.subscribe);
    for number in 0..3_000 {
        evil.send(&[format!("\x01nonsense/{number}").as_bytes()]);
    }
    let rejected = || relay.value(names::RELAY_REJECTED_SUBSCRIPTIONS);
    wait_for("the first rejections", LONG, || rejected() == 3_000).unwrap();
    assert_eq!(relay.value(names::RELAY_SUBSCRIPTIONS), 0);
    // Unsubscriptions of unknown prefixes, a valid prefix, too many reserved topics, and messages
    // that are not subscriptions.
    evil.send(&[b"\0nonsense/1"]);
    evil.send(&[b"\0syslog/"]);
    evil.send(&[b"\x01snmptrap/"]);
    for number in 0..2_000 {
        evil.send(&[format!("\x01@stream/{number}/").as_bytes()]);
    }
    evil.send(&[b"hello"]);
    evil.send(&[b""]);
    evil.send(&[b"hello", b"\x02"]);
    wait_for("the rejections", LONG, || rejected() == 3_000 + 2_000 - 1_024 + 3).unwrap();
    assert_eq!(relay.value(names::RELAY_SUBSCRIPTIONS), 1_025);
    // An oversized subscription closes its connection, which removes all of its subscriptions.
    evil.send(&[&[b"\x01".as_slice(), &[b's'; 100_000]].concat()]);
    drop(evil);
    wait_for("the removal of its subscriptions", LONG, || relay.value(names::RELAY_SUBSCRIPTIONS) == 0).unwrap();

    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    join(&mut publisher, &topics(2), &mut [&mut subscriber]);
    // An announcement may arrive before the subscription has reached the publisher; the records
    // missed until then count as lost.
    let lost_before = subscriber.lost();
    publisher.offer(&topics(2), 100, 0);
    subscriber.pump_until("the following records", |subscriber| {
        let is_last =
            |topic| subscriber.received[topic].last().map(|last| last + 1) == publisher.offered.get(topic).copied();
        topics(2).iter().all(is_last)
    });
    assert_eq!((subscriber.lost() - lost_before, relay.value(names::RELAY_SUBSCRIPTIONS)), (0, 2));
    drop(subscriber);
    wait_for("no subscriptions", LONG, || relay.value(names::RELAY_SUBSCRIPTIONS) == 0).unwrap();
}

#[test]
fn subscriber_cannot_pause_publishers() {
    let _alone = alone();
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    join(&mut publisher, &topics(2), &mut [&mut subscriber]);
    let before = subscriber.count;
    let evil = Peer::connected(zmq::SUB, &relay.subscribe);
    for prefix in ["@relay/hold/", "@relay/", "@r"] {
        evil.socket.set_subscribe(prefix.as_bytes()).unwrap();
    }
    // The first two also select announcements. The publisher handles subscriptions in order, so
    // once it has the last one it has them all.
    for prefix in ["@", "", "xflow/"] {
        evil.socket.set_subscribe(prefix.as_bytes()).unwrap();
    }
    wait_for("the last subscription", LONG, || {
        value_of(publisher.role.metrics(), names::SUBSCRIBED_TOPICS, "xflow") == 64
            && relay.value(names::RELAY_SUBSCRIPTIONS) == 5
    })
    .unwrap();
    assert_eq!(relay.value(names::RELAY_REJECTED_SUBSCRIPTIONS), 3);
    publisher.offer(&topics(2), 100, 100);
    subscriber.pump_until_received(before + 200);
    assert_eq!((subscriber.lost(), publisher.value(names::WAITING_RECORDS)), (0, 0));
}

/// Subscribes to a thousand prefixes in turn and unsubscribes at once, as fast as it can, until it
/// is stopped. Returns how often.
fn flood(endpoint: &str, prefix: &'static str, over: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let peer = Peer::new(zmq::XSUB);
    let over = Arc::clone(over);
    // Beyond this it drops subscriptions.
    peer.socket.set_sndhwm(10_000).unwrap();
    peer.socket.connect(endpoint).unwrap();
    std::thread::spawn(move || {
        let mut count = 0;
        while !over.load(Ordering::Relaxed) {
            for added in [1, 0] {
                let topic = format!("{prefix}{}/", count % 1_000);
                peer.send(&[&[&[added], topic.as_bytes()].concat()]);
            }
            count += 1;
        }
        count
    })
}

#[test]
fn data_flows_completely_during_a_flood_of_subscriptions() {
    let _alone = alone();
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    let topics = topics(5);
    join(&mut publisher, &topics, &mut [&mut subscriber]);
    let before = subscriber.count;
    let over = Arc::new(AtomicBool::new(false));
    let floods = ["nonsense/", "@stream/"].map(|prefix| flood(&relay.subscribe, prefix, &over));
    wait_for("a flood", LONG, || relay.value(names::RELAY_REJECTED_SUBSCRIPTIONS) > 1_000).unwrap();
    // Three seconds at 5,000 records per second.
    let started = Instant::now();
    let mut offered = 0;
    while offered < 15_000 {
        let due = ((started.elapsed().as_secs_f64() * 5_000.0) as u64).min(15_000) / 5 * 5;
        if due > offered {
            publisher.offer(&topics, (due - offered) / 5, 200);
            offered = due;
        }
        subscriber.pump(Duration::from_millis(1));
    }
    let all_offered = Instant::now();
    subscriber.pump_until_received(before + 15_000);
    let delayed = all_offered.elapsed();
    over.store(true, Ordering::Relaxed);
    let sent: Vec<u64> = floods.into_iter().map(|flood| flood.join().unwrap()).collect();
    println!("sent {sent:?}, rejected {}, delayed {delayed:?}", relay.value(names::RELAY_REJECTED_SUBSCRIPTIONS));
    assert_eq!((subscriber.lost(), publisher.value(names::UNPUBLISHED_RECORDS)), (0, 0));
}

#[test]
fn subscriber_counts_messages_of_a_hostile_publisher() {
    let _alone = alone();
    let evil = Peer::new(zmq::XPUB);
    evil.socket.bind(ANY_PORT).unwrap();
    let endpoint = evil.socket.get_last_endpoint().unwrap().unwrap();
    let mut subscriber = TestSubscriber::start(&endpoint, &["syslog/"]);
    evil.wait_for_subscription("syslog/");
    let body = body();
    let beyond = 1 << 53;
    let one = header(0, 1);
    let two = header(0, 2);
    let far = header(beyond, 1);
    let farthest = header(u64::MAX, u32::MAX);
    let mut messages: Vec<Vec<&[u8]>> = vec![
        vec![b"syslog/00"],
        vec![b"syslog/00", &one],
        vec![b"syslog/00", &one, &body, &body],
        vec![b"syslog/99", &one, &body],
        vec![b"syslog/00", &two, &body],
        vec![b"syslog/00", &one, b"\xdc\xff\xff"],
        vec![b"syslog/00", &one, b"\xdd\xff\xff\xff\xff"],
        vec![b"syslog/00", &one, b""],
        vec![b"syslog/00", &far, &body],
        vec![b"syslog/00", &farthest, &body],
        vec![b"@stream/evil/", b"\xc1"],
        vec![b"@stream/evil/", b"x", b"y"],
    ];
    let out_of_range = announcement(u64::MAX);
    let nested = vec![0x91; 60_000];
    messages.push(vec![b"@stream/evil/", &out_of_range]);
    messages.push(vec![b"@stream/evil/", &nested]);
    messages.push(vec![b"syslog/00", &nested, &nested]);
    for message in &messages {
        evil.send(message);
    }
    let count = messages.len() as u64;
    // "syslog/99" is not a topic, but the prefix selects it, so it is received and counted too.
    subscriber.pump_until("every one of them", |subscriber| subscriber.value(names::MALFORMED_MESSAGES) == count);
    assert_eq!((subscriber.count, subscriber.lost(), subscriber.value(names::RECEIVED_RECORDS)), (0, 0, 0));

    // The number of streams is bounded, and `receive` returns after its timeout even if it gets
    // only malformed messages.
    for number in 0..1_000u64 {
        let mut frame = Vec::new();
        let stream = Announcement {
            stream_name: "evil".to_owned(),
            stream_epoch: number,
            ended: false,
            positions: vec![],
            clock_ns: None,
        };
        stream.encode(&mut frame);
        evil.send(&[b"@stream/evil/", &frame]);
    }
    subscriber.pump_until("the streams", |subscriber| subscriber.value(names::STREAMS) == 256);
    subscriber.pump_until("the forgotten streams", |subscriber| {
        value_of(&subscriber.metrics, names::MALFORMED_MESSAGES, "too_many_streams") == 1_000 - 256
    });
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let flood = std::thread::spawn(move || {
        // The pause is short, so that there is always something to read.
        while stopped.recv_timeout(Duration::from_micros(20)).is_err_and(|error| error.is_timeout()) {
            evil.send(&[b"syslog/00", b"garbage"]);
        }
        evil
    });
    for _ in 0..20 {
        assert!(subscriber.subscriber.receive(Duration::from_millis(5)).unwrap().is_none());
    }
    drop(stop);
    let evil = flood.join().unwrap();
    // It still accepts valid messages.
    evil.send(&[b"syslog/00", &header(0, 1), &body]);
    let delivery = wait_for_delivery(&mut subscriber);
    assert_eq!(delivery.batch.get(0), Some(record(b"evil")));
}

fn wait_for_delivery(subscriber: &mut TestSubscriber) -> sekiwake_bus::Delivery {
    sekiwake_testkit::wait::wait_for_some("a delivery", LONG, || subscriber.subscriber.receive(SHORT).unwrap()).unwrap()
}
