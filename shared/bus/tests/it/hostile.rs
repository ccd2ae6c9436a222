//! Peers that are not ours.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sekiwake_bus::{MAX_MESSAGE_BYTES, names};
use sekiwake_record::{Announcement, Header, TopicPosition};
use sekiwake_testkit::wait::wait_for;

use crate::support::*;

struct Peer {
    socket: zmq::Socket,
    _context: zmq::Context,
}

impl Peer {
    fn new(kind: zmq::SocketType) -> Peer {
        #[expect(clippy::disallowed_methods, reason = "a peer that is not ours")]
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

    /// Reads subscriptions until this one comes.
    fn wait_for_subscription(&self, prefix: &str) {
        self.socket.set_rcvtimeo(20_000).unwrap();
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
    Announcement { stream_name: "evil".to_owned(), stream_epoch: 1, ended: false, positions }.encode(&mut frame);
    frame
}

/// A body of one small record.
fn body() -> Vec<u8> {
    let mut builder = sekiwake_record::BatchBuilder::new(Vec::new());
    builder.push(&record(b"evil"));
    builder.close().unwrap().body
}

#[test]
fn garbage_from_publishers_is_counted_and_harms_nobody() {
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
    // What a later version might append, but more of it than fits: an array of 7 + 1,024 elements.
    assert_eq!(header[0], 0x97);
    evil.send(&[b"syslog/00", &[b"\xdc\x04\x07", &header[1..], &[0; 1_024]].concat(), &body()]);
    evil.send(&[b"@stream/evil/"]);
    wait_for("seven malformed messages", LONG, || malformed(&relay) == 7).unwrap();
    evil.send(&[b"syslog/40", &header, b"x"]);
    evil.send(&[b"syslog/000", &header, b"x"]);
    evil.send(&[b"@stream", b"x"]);
    evil.send(&[b"@str\xff/", b"x"]);
    wait_for("four unknown topics", LONG, || unknown(&relay) == 4).unwrap();
    for number in 0..10_000 {
        evil.send(&[format!("@stream/{number}/").as_bytes(), b"garbage"]);
    }
    // What is too large ends that connection and no other.
    evil.send(&[b"syslog/00", &header, &vec![0; MAX_MESSAGE_BYTES as usize + 1]]);

    publisher.offer(&topics(2), 1_000, 100);
    subscriber.pump_until_received(before + 2_000);
    let malformed_messages = |subscriber: &TestSubscriber| subscriber.value(names::MALFORMED_MESSAGES);
    subscriber
        .pump_until("ten thousand malformed announcements", |subscriber| malformed_messages(subscriber) == 10_000);
    assert_eq!((subscriber.lost(), subscriber.value(names::STREAMS)), (0, 1));
}

fn malformed(relay: &TestRelay) -> u64 {
    value_of(relay.member.metrics(), names::RELAY_REFUSED_MESSAGES, "malformed")
}

fn unknown(relay: &TestRelay) -> u64 {
    value_of(relay.member.metrics(), names::RELAY_REFUSED_MESSAGES, "unknown_topic")
}

#[test]
fn absurd_subscriptions_are_refused_and_harm_nobody() {
    let _alone = alone();
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let evil = Peer::connected(zmq::XSUB, &relay.subscribe);
    for number in 0..200_000 {
        evil.send(&[format!("\x01nonsense/{number}").as_bytes()]);
    }
    let refused = || relay.value(names::RELAY_REFUSED_SUBSCRIPTIONS);
    wait_for("200,000 refusals", LONG, || refused() == 200_000).unwrap();
    assert_eq!(relay.value(names::RELAY_SUBSCRIPTIONS), 0);
    // Ends of what was never held, a prefix that is held, own topics beyond the bound, and what is no subscription.
    evil.send(&[b"\0nonsense/1"]);
    evil.send(&[b"\0syslog/"]);
    evil.send(&[b"\x01snmptrap/"]);
    for number in 0..2_000 {
        evil.send(&[format!("\x01@stream/{number}/").as_bytes()]);
    }
    evil.send(&[b"hello"]);
    evil.send(&[b""]);
    evil.send(&[b"hello", b"\x02"]);
    wait_for("the refusals", LONG, || refused() == 200_000 + 2_000 - 1_024 + 3).unwrap();
    assert_eq!(relay.value(names::RELAY_SUBSCRIPTIONS), 1_025);
    // One that is far too long ends that connection, and with it everything it held.
    evil.send(&[&[b"\x01".as_slice(), &[b's'; 100_000]].concat()]);
    drop(evil);
    wait_for("the end of what it held", LONG, || relay.value(names::RELAY_SUBSCRIPTIONS) == 0).unwrap();

    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    join(&mut publisher, &topics(2), &mut [&mut subscriber]);
    // An announcement may come before the subscription has reached the publisher, and then tells of what it was too early for.
    let before_it_came = subscriber.lost();
    publisher.offer(&topics(2), 100, 0);
    subscriber.pump_until("what comes now", |subscriber| {
        let is_last =
            |topic| subscriber.received[topic].last().map(|last| last + 1) == publisher.offered.get(topic).copied();
        topics(2).iter().all(is_last)
    });
    assert_eq!((subscriber.lost() - before_it_came, relay.value(names::RELAY_SUBSCRIPTIONS)), (0, 2));
    drop(subscriber);
    wait_for("no subscriptions", LONG, || relay.value(names::RELAY_SUBSCRIPTIONS) == 0).unwrap();
}

#[test]
fn a_subscriber_cannot_make_publishers_hold() {
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
    // These two select announcements too; what comes after them has been seen by the publisher after them.
    for prefix in ["@", "", "xflow/"] {
        evil.socket.set_subscribe(prefix.as_bytes()).unwrap();
    }
    wait_for("the last subscription", LONG, || {
        value_of(publisher.member.metrics(), names::WANTED_TOPICS, "xflow") == 64
            && relay.value(names::RELAY_SUBSCRIPTIONS) == 5
    })
    .unwrap();
    assert_eq!(relay.value(names::RELAY_REFUSED_SUBSCRIPTIONS), 3);
    publisher.offer(&topics(2), 100, 100);
    subscriber.pump_until_received(before + 200);
    assert_eq!((subscriber.lost(), publisher.value(names::WAITING_RECORDS)), (0, 0));
}

/// Subscribes to a thousand prefixes in turn and takes each back at once, as fast as it can, until told to stop. Gives how
/// often.
fn flood(endpoint: &str, prefix: &'static str, over: &Arc<AtomicBool>) -> std::thread::JoinHandle<u64> {
    let (peer, over) = (Peer::new(zmq::XSUB), Arc::clone(over));
    // Past this it drops.
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
fn data_flows_completely_while_subscribers_flood_with_subscriptions() {
    let _alone = alone();
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    let topics = topics(5);
    join(&mut publisher, &topics, &mut [&mut subscriber]);
    let (before, over) = (subscriber.count, Arc::new(AtomicBool::new(false)));
    let floods = ["nonsense/", "@stream/"].map(|prefix| flood(&relay.subscribe, prefix, &over));
    wait_for("a flood", LONG, || relay.value(names::RELAY_REFUSED_SUBSCRIPTIONS) > 1_000).unwrap();
    // Three seconds at 5,000 a second. How far the subscriber is behind at the end of it says whether anything starves.
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
    println!("sent {sent:?}, refused {}, delayed {delayed:?}", relay.value(names::RELAY_REFUSED_SUBSCRIPTIONS));
    assert_eq!((subscriber.lost(), publisher.value(names::UNPUBLISHED_RECORDS)), (0, 0));
    assert!(delayed < Duration::from_secs(2), "{delayed:?}");
}

#[test]
fn a_hostile_publisher_is_counted_by_a_subscriber_that_it_reaches() {
    let _alone = alone();
    let evil = Peer::new(zmq::XPUB);
    evil.socket.bind(ANY_PORT).unwrap();
    let endpoint = evil.socket.get_last_endpoint().unwrap().unwrap();
    let mut subscriber = TestSubscriber::start(&endpoint, &["syslog/"]);
    evil.wait_for_subscription("syslog/");
    let body = body();
    let beyond = 1 << 53;
    let (one, two, far, farthest) = (header(0, 1), header(0, 2), header(beyond, 1), header(u64::MAX, u32::MAX));
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
    let (incredible, nested) = (announcement(u64::MAX), vec![0x91; 60_000]);
    messages.push(vec![b"@stream/evil/", &incredible]);
    messages.push(vec![b"@stream/evil/", &nested]);
    messages.push(vec![b"syslog/00", &nested, &nested]);
    for message in &messages {
        evil.send(message);
    }
    let count = messages.len() as u64;
    // "syslog/99" is not subscribed by the letter of its topic but by its prefix, so it comes too.
    subscriber.pump_until("every one of them", |subscriber| subscriber.value(names::MALFORMED_MESSAGES) == count);
    assert_eq!((subscriber.count, subscriber.lost(), subscriber.value(names::RECEIVED_RECORDS)), (0, 0, 0));

    // A flood of streams is bounded, and a receiver that gets nothing but garbage still comes back in time.
    for number in 0..1_000u64 {
        let mut frame = Vec::new();
        let stream =
            Announcement { stream_name: "evil".to_owned(), stream_epoch: number, ended: false, positions: vec![] };
        stream.encode(&mut frame);
        evil.send(&[b"@stream/evil/", &frame]);
    }
    subscriber.pump_until("the streams", |subscriber| subscriber.value(names::STREAMS) == 256);
    subscriber.pump_until("the forgotten streams", |subscriber| {
        value_of(&subscriber.metrics, names::MALFORMED_MESSAGES, "too_many_streams") == 1_000 - 256
    });
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let flood = std::thread::spawn(move || {
        // Short enough a pause that there is always something to read.
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
    // It still takes what is right.
    evil.send(&[b"syslog/00", &header(0, 1), &body]);
    let delivery = wait_for_delivery(&mut subscriber);
    assert_eq!(delivery.batch.get(0), Some(record(b"evil")));
}

fn wait_for_delivery(subscriber: &mut TestSubscriber) -> sekiwake_bus::Delivery {
    sekiwake_testkit::wait::wait_for_some("a delivery", LONG, || subscriber.subscriber.receive(SHORT).unwrap()).unwrap()
}
