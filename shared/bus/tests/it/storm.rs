//! Clients that speak ZMTP (ZeroMQ RFC 23) badly on purpose: no client can end the proxy's process.
//! libzmq aborts where a connection's input is stopped, so the storms stop it in every way known.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use sekiwake_bus::names::{CUT_CONNECTIONS, DENIED_CONNECTIONS, LOST_RECORDS};
use sekiwake_testkit::{random::Random, wait::wait_for};

use crate::{
    control::{TestMember, TestProxy, TestStream},
    curve::Keys,
    support::*,
};

/// The rounds of each storm.
const ROUNDS: usize = 100;

/// A raw connection that has completed the NULL handshake.
struct Raw(TcpStream);

impl Raw {
    fn connect(endpoint: &str, socket_type: &str, routing_id: &[u8]) -> io::Result<Raw> {
        let mut stream = TcpStream::connect(endpoint.trim_start_matches("tcp://"))?;
        stream.set_read_timeout(Some(LONG))?;
        stream.set_write_timeout(Some(Duration::from_millis(200)))?;
        stream.write_all(&greeting("NULL"))?;
        stream.read_exact(&mut [0; 64])?;
        stream.write_all(&ready(socket_type, routing_id))?;
        // The server's READY has begun, so its handshake is over.
        stream.read_exact(&mut [0; 2])?;
        Ok(Raw(stream))
    }

    /// Sends as much as the server takes.
    fn send(&mut self, bytes: &[u8]) {
        // The server may close the connection, or not read it in time.
        let _ = self.0.write_all(bytes);
    }

    /// Ends the connection with a reset instead of its orderly end.
    fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.0, Some(Duration::ZERO)).unwrap();
    }
}

fn greeting(mechanism: &str) -> [u8; 64] {
    let mut greeting = [0; 64];
    greeting[0] = 0xff;
    greeting[9] = 0x7f;
    greeting[10] = 3;
    greeting[12..12 + mechanism.len()].copy_from_slice(mechanism.as_bytes());
    greeting
}

fn ready(socket_type: &str, routing_id: &[u8]) -> Vec<u8> {
    let mut ready = b"\x05READY".to_vec();
    for (name, value) in [("Socket-Type", socket_type.as_bytes()), ("Identity", routing_id)] {
        ready.push(name.len() as u8);
        ready.extend(name.as_bytes());
        ready.extend((value.len() as u32).to_be_bytes());
        ready.extend(value);
    }
    frame(4, &ready)
}

/// A short ZMTP frame: flag 4 is a command, flag 1 a part that is not the last one.
fn frame(flags: u8, body: &[u8]) -> Vec<u8> {
    [&[flags, body.len() as u8], body].concat()
}

/// Asks for a PONG, and announces the next message within `ttl` tenths of a second.
fn ping(ttl: u16) -> Vec<u8> {
    frame(4, &[&b"\x04PING"[..], &ttl.to_be_bytes()].concat())
}

/// Floods with a message, with PINGs in between, and hangs up.
fn flood(endpoint: &str, socket_type: &str, routing_id: &[u8], message: &[u8]) {
    for round in 0..ROUNDS {
        let Ok(mut peer) = Raw::connect(endpoint, socket_type, routing_id) else { continue };
        let burst = message.repeat(3_000);
        let ping = ping((round % 3) as u16);
        peer.send(&[&burst[..], &ping, &burst, &ping, &burst].concat());
        if round % 2 == 0 {
            peer.reset();
        }
    }
}

fn batch() -> Vec<u8> {
    [frame(1, b"syslog/00"), frame(1, b"no header"), frame(0, b"no body")].concat()
}

#[test]
fn floods_with_pings_and_resets_end_no_proxy() {
    let _alone = alone();
    let relay = TestRelay::start();
    let proxy = TestProxy::start();
    let stream = TestStream::start(&proxy, 16 << 20);
    let mut member = TestMember::start(&proxy);
    member.pump_until("all shards", |member| member.owned() == 64);
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    join(&mut publisher, &topics(2), &mut [&mut subscriber]);
    let before = subscriber.count;
    let storms = [
        storm(&relay.publish, |endpoint| flood(endpoint, "XPUB", b"", &batch())),
        storm(&proxy.relay.publish, |endpoint| flood(endpoint, "XPUB", b"", &batch())),
        storm(&proxy.control, |endpoint| flood(endpoint, "DEALER", b"", &frame(0, b"x"))),
        storm(&proxy.control, equal_routing_ids),
        storm(&relay.subscribe, stopped_readers),
        storm(&relay.subscribe, subscriptions_and_resets),
    ];
    let (mut offered, mut published) = (0, 0);
    while !storms.iter().all(std::thread::JoinHandle::is_finished) {
        publisher.offer(&topics(2), 10, 100);
        stream.publish(1, 100);
        offered += 20;
        published += 100;
        // No more at a time than the queues hold.
        wait_for("the records", LONG, || {
            while subscriber.pump(Duration::ZERO) {}
            member.pump();
            (subscriber.count, member.received) == (before + offered, published)
        })
        .unwrap();
    }
    storms.into_iter().for_each(|storm| storm.join().unwrap());
    assert_eq!(subscriber.lost(), 0);
    assert_eq!(value(&member.metrics, LOST_RECORDS), 0);
    // A relay that gets no processor for a while may turn new subscribers away.
    let cut_publishers = value_of(relay.role.metrics(), CUT_CONNECTIONS, "publish");
    assert_eq!((cut_publishers, value(proxy.relay.role.metrics(), CUT_CONNECTIONS)), (0, 0));
}

fn storm(endpoint: &str, attack: impl Fn(&str) + Send + 'static) -> std::thread::JoinHandle<()> {
    let endpoint = endpoint.to_owned();
    std::thread::spawn(move || attack(&endpoint))
}

/// A second connection with the routing id of the first, which goes on sending and hangs up.
fn equal_routing_ids(endpoint: &str) {
    let message = frame(0, b"x");
    for round in 0..ROUNDS {
        let Ok(mut first) = Raw::connect(endpoint, "DEALER", b"equal") else { continue };
        first.send(&message);
        let Ok(mut second) = Raw::connect(endpoint, "DEALER", b"equal") else { continue };
        second.send(&message);
        first.send(&[message.repeat(50), ping(1), message.repeat(50)].concat());
        first.reset();
        second.send(&[message.repeat(50), ping(1), message.repeat(50)].concat());
        if round % 2 == 0 {
            second.reset();
        }
    }
}

/// Subscribes to everything, reads nothing, and hangs up.
fn stopped_readers(endpoint: &str) {
    for round in 0..ROUNDS {
        let Ok(mut peer) = Raw::connect(endpoint, "SUB", b"") else { continue };
        peer.send(&[frame(0, b"\x01"), ping(1)].concat());
        if round % 2 == 0 {
            peer.reset();
        }
    }
}

/// Subscribes often, asks for a PONG all the time, and hangs up before this has been read.
fn subscriptions_and_resets(endpoint: &str) {
    for round in 0..5 * ROUNDS {
        let Ok(mut peer) = Raw::connect(endpoint, "SUB", b"") else { continue };
        let ping = ping((round % 3) as u16);
        let some = (0..50).flat_map(|number| frame(0, format!("\x01{round} {number}").as_bytes()));
        let some: Vec<u8> = some.chain(ping).collect();
        peer.send(&some.repeat(40));
        peer.reset();
    }
}

/// Sends until the connection is cut.
fn send_until_cut(mut peer: Raw, metrics: &sekiwake_runtime::Metrics, mut next: impl FnMut(u64) -> Vec<u8>) {
    let mut sent = 0;
    wait_for("the end of the connection", LONG, || {
        let bytes: Vec<u8> = (0..1_000).flat_map(|number| next(sent + number)).collect();
        sent += 1_000;
        peer.0.write_all(&bytes).is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
    })
    .unwrap();
    wait_for("the count", LONG, || value(metrics, CUT_CONNECTIONS) == 1).unwrap();
}

#[test]
fn flood_of_subscriptions_is_cut_and_data_flows() {
    let _alone = alone();
    let relay = TestRelay::start();
    let mut publisher = TestPublisher::start(&relay.publish);
    let mut subscriber = TestSubscriber::start(&relay.subscribe, &["syslog/"]);
    join(&mut publisher, &topics(2), &mut [&mut subscriber]);
    let before = subscriber.count;
    let peer = Raw::connect(&relay.subscribe, "SUB", b"").unwrap();
    let metrics = relay.role.metrics().clone();
    let flood = std::thread::spawn(move || {
        send_until_cut(peer, &metrics, |number| {
            [frame(0, format!("\x01{number}").as_bytes()), frame(0, format!("\0{number}").as_bytes())].concat()
        });
    });
    let mut offered = 0;
    while !flood.is_finished() {
        publisher.offer(&topics(2), 10, 100);
        offered += 20;
        subscriber.pump_until_received(before + offered);
    }
    flood.join().unwrap();
    assert_eq!((subscriber.lost(), value_of(relay.role.metrics(), CUT_CONNECTIONS, "subscribe")), (0, 1));
}

#[test]
fn rejected_subscriptions_end_their_connection() {
    let _alone = alone();
    let relay = TestRelay::start();
    let mut peer = Raw::connect(&relay.subscribe, "SUB", b"").unwrap();
    for number in 0..5_000 {
        peer.send(&frame(0, format!("\x01no topic {number}").as_bytes()));
    }
    wait_for("the count", LONG, || relay.value(CUT_CONNECTIONS) == 1).unwrap();
}

#[test]
fn connection_is_not_cut_for_an_earlier_one() {
    let _alone = alone();
    let relay = TestRelay::start();
    // The relay reads the last rejections of a connection after its descriptor is used again.
    let subscriptions = (0..6_000).flat_map(|number| frame(0, format!("\x01no topic {number}").as_bytes()));
    let subscriptions: Vec<u8> = subscriptions.collect();
    for _ in 0..20 {
        let mut peer = Raw::connect(&relay.subscribe, "SUB", b"").unwrap();
        peer.send(&subscriptions);
        peer.reset();
        let honest = Raw::connect(&relay.subscribe, "SUB", b"").unwrap();
        honest.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        // The rest of the proxy's READY, and then nothing.
        let mut rest = Vec::new();
        let error = (&honest.0).read_to_end(&mut rest).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}

#[test]
fn second_connection_with_a_routing_id_is_bounded() {
    let _alone = alone();
    let proxy = TestProxy::start();
    let mut first = Raw::connect(&proxy.control, "DEALER", b"equal").unwrap();
    first.send(&frame(0, b"x"));
    // The proxy has read the first connection's message.
    wait_for("the first connection", LONG, || {
        value(proxy.relay.role.metrics(), sekiwake_bus::names::CONTROL_BYTES) > 0
    })
    .unwrap();
    let second = Raw::connect(&proxy.control, "DEALER", b"equal").unwrap();
    send_until_cut(second, proxy.relay.role.metrics(), |_| frame(0, &[b'x'; 200]));
    first.send(&frame(0, b"x"));
}

#[test]
fn endless_message_is_bounded_at_the_publishers_port() {
    let _alone = alone();
    let relay = TestRelay::start();
    // The port is open to publishers once the relay is ready.
    wait_for("the port", LONG, || Raw::connect(&relay.publish, "XPUB", b"").is_ok()).unwrap();
    // A connection whose messages end may send any amount.
    let mut honest = Raw::connect(&relay.publish, "XPUB", b"").unwrap();
    honest.0.set_write_timeout(Some(LONG)).unwrap();
    let messages = [frame(1, b"syslog/00"), frame(1, b"no header"), frame(0, &[b'x'; 250])].concat().repeat(1_000);
    for _ in 0..100 {
        honest.0.write_all(&messages).unwrap();
    }
    wait_for("all messages", LONG, || {
        value_of(relay.role.metrics(), sekiwake_bus::names::RELAY_REJECTED_MESSAGES, "malformed") == 100_000
    })
    .unwrap();
    assert_eq!(relay.value(CUT_CONNECTIONS), 0);
    let peer = Raw::connect(&relay.publish, "XPUB", b"").unwrap();
    send_until_cut(peer, relay.role.metrics(), |_| frame(1, &[b'x'; 200]));
}

/// What a client may send instead of a CURVE handshake (ZeroMQ RFC 26), each on a connection of its
/// own: garbage, other mechanisms with messages behind them, and the handshake of a client without
/// keys, cut off anywhere.
fn bad_handshakes(socket_type: &str, random: &mut Random) -> Vec<Vec<u8>> {
    let curve = greeting("CURVE");
    let hello = frame(4, &[&b"\x05HELLO\x01\0"[..], &[0; 72], &random.bytes(120)].concat());
    // A long command, with its length in eight bytes.
    let initiate = [&b"\x06\0\0\0\0\0\0\x01\x01\x08INITIATE"[..], &random.bytes(248)].concat();
    let whole = [&curve[..], &hello, &initiate].concat();
    let cut_off = (1..=whole.len()).step_by(7).map(|end| whole[..end].to_vec());
    let garbage = [1, 11, 64, 65, 1_000, 100_000].map(|length| random.bytes(length));
    let messages = [ready(socket_type, b"honest"), frame(0, b"\x01"), batch(), ping(1)].concat();
    let others = ["NULL", "PLAIN", "CURVE", "", "CURVEX"];
    let others = others.map(|mechanism| [&greeting(mechanism)[..], &messages].concat());
    let endless = [&curve[..], b"\x06\x7f\xff\xff\xff\xff\xff\xff\xff", &random.bytes(100_000)].concat();
    let no_name = [&curve[..], &frame(4, b""), &frame(4, b"\xffHELLO")].concat();
    cut_off.chain(garbage).chain(others).chain([endless, no_name]).collect()
}

/// Sends each of them. A third of the clients hang up, a third reset the connection, and the others
/// wait until the server ends it.
fn attack_handshake(endpoint: &str, socket_type: &str) {
    let mut random = Random::new(1);
    let mut waiting = Vec::new();
    for round in 0..3 {
        for (number, bytes) in bad_handshakes(socket_type, &mut random).into_iter().enumerate() {
            let Ok(stream) = TcpStream::connect(endpoint.trim_start_matches("tcp://")) else { continue };
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            let mut peer = Raw(stream);
            peer.send(&bytes);
            match (number + round) % 3 {
                0 => drop(peer),
                1 => peer.reset(),
                _ => waiting.push(peer),
            }
        }
    }
    for mut peer in waiting {
        let end = io::copy(&mut peer.0, &mut io::sink());
        let is_late = end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        assert!(!is_late, "the server keeps a connection without a handshake");
    }
}

#[test]
fn bad_handshakes_at_ports_with_keys_end_no_proxy() {
    let _alone = alone();
    let keys = Keys::new();
    let proxy = TestProxy::guarded(keys.gatekeeper_settings(), keys.client_keys().unwrap());
    let stream = TestStream::start(&proxy, 16 << 20);
    let mut member = TestMember::start(&proxy);
    member.pump_until("all shards", |member| member.owned() == 64);
    let storms = [
        storm(&proxy.relay.publish, |endpoint| attack_handshake(endpoint, "XPUB")),
        storm(&proxy.relay.subscribe, |endpoint| attack_handshake(endpoint, "SUB")),
        storm(&proxy.control, |endpoint| attack_handshake(endpoint, "DEALER")),
    ];
    let mut published = 0;
    while published == 0 || !storms.iter().all(std::thread::JoinHandle::is_finished) {
        stream.publish(1, 100);
        published += 100;
        member.pump_until("the records", |member| member.received == published);
    }
    storms.into_iter().for_each(|storm| storm.join().unwrap());
    // Clients with keys are still accepted at each port.
    let mut late = TestSubscriber::keyed(&proxy.relay.subscribe, &["syslog/"], keys.client_keys());
    let mut second = TestPublisher::keyed(&proxy.relay.publish, keys.client_keys());
    join(&mut second, &topics(1), &mut [&mut late]);
    drop(member);
    let mut next = TestMember::start(&proxy);
    next.pump_until("all shards", |next| next.owned() == 64);
    assert_eq!(value(&next.metrics, LOST_RECORDS) + late.lost(), 0);
    assert!(value_of(proxy.relay.role.metrics(), DENIED_CONNECTIONS, "not_encrypted") > 0);
}

#[test]
fn connection_that_was_idle_is_cut_when_it_floods() {
    let _alone = alone();
    let relay = TestRelay::start();
    wait_for("the port", LONG, || Raw::connect(&relay.publish, "XPUB", b"").is_ok()).unwrap();
    let mut peer = Raw::connect(&relay.publish, "XPUB", b"").unwrap();
    peer.0.set_write_timeout(Some(LONG)).unwrap();
    // Checks become rare meanwhile.
    std::thread::sleep(Duration::from_secs(1));
    let parts = frame(1, &[b'x'; 200]).repeat(1_000);
    let mut sent = 0;
    while peer.0.write_all(&parts).is_ok() {
        sent += parts.len();
    }
    println!("{} MiB sent before the connection was cut", sent >> 20);
    wait_for("the count", LONG, || relay.value(CUT_CONNECTIONS) == 1).unwrap();
}
