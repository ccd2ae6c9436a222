//! Destinations do not hurt each other, and everything is accounted for.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use sekiwake_forward::{Resolution, Resolve};
use sekiwake_runtime::Ending;
use sekiwake_testkit::wait::wait_for;

use crate::rig::*;

/// A resolver that knows no name.
struct Ignorant;

impl Resolve for Ignorant {
    fn resolve(&self, _host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("no such name"))
    }
}

fn ignorant() -> Resolution {
    Resolution { resolver: Arc::new(Ignorant), ..Resolution::default() }
}

fn numbered(count: u32, length: usize) -> Vec<Vec<u8>> {
    let payload = |number: u32| {
        let mut payload = vec![0; length];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        payload
    };
    (0..count).map(payload).collect()
}

#[test]
fn a_destination_whose_port_is_closed_is_down_and_costs_the_live_one_nothing() {
    let rig = Rig::new();
    let (sink, live) = loopback_sink();
    let closed = {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        format!("udp://{}", socket.local_addr().unwrap())
    };
    let mut engine = rig.engine(&format!("{closed} {live}"));
    let payloads = numbered(20_000, 200);
    for part in payloads.chunks(500) {
        forward(&mut engine, &samples(part.to_vec()));
    }
    assert!(arrived(sink, payloads.len()) == payloads);
    rig.assert_accounts_close(&live);
    rig.assert_accounts_close(&closed);
    let labels = [&*format!("\"{closed}\""), "connection_refused"];
    wait_for("a refusal", PATIENCE, || rig.metric("sekiwake_forward_errors_total", &labels) > 0.0).unwrap();
    assert_eq!(rig.metric("sekiwake_forward_up", &[labels[0]]), 0.0);
    let is_up = || rig.metric("sekiwake_forward_up", &[&format!("\"{live}\"")]) == 1.0;
    wait_for("the live one to be up", PATIENCE, is_up).unwrap();
    rig.stop();
}

#[test]
fn a_queue_that_is_full_drops_the_newest_and_the_live_one_gets_everything() {
    let rig = Rig::new();
    let (sink, live) = loopback_sink();
    let dead = "udp://nowhere.example:514";
    let mut engine = rig.engine_with(&format!("{dead} {live}"), &ignorant());
    // 96 MB in all, in records of 60,000 bytes: more than the queue's 64 MiB.
    let count = 1600;
    for number in 0..count {
        forward(&mut engine, &samples([vec![number as u8; 60_000]]));
        if number % 50 == 49 {
            wait_for("the live one", PATIENCE, || sink.received() > number).unwrap();
        }
    }
    assert!(rig.dropped(dead, "queue_full") > 0);
    rig.assert_accounts_close(&live);
    assert_eq!(rig.sent(&live), count);
    rig.assert_accounts_close(dead);
    assert_eq!(rig.sent(dead), 0);
    rig.stop();
}

#[test]
fn records_wait_two_seconds_for_a_name_then_they_are_counted_as_unresolved() {
    let rig = Rig::new();
    let dead = "udp://nowhere.example:514";
    let mut engine = rig.engine_with(dead, &ignorant());
    forward(&mut engine, &samples(numbered(10, 100)));
    assert_eq!((rig.queued(dead), rig.dropped(dead, "unresolved")), (10, 0));
    wait_for("the end of their wait", Duration::from_secs(5), || rig.dropped(dead, "unresolved") == 10).unwrap();
    rig.assert_accounts_close(dead);
    assert_eq!(rig.metric("sekiwake_forward_up", &[dead]), 0.0);
    assert!(rig.metric("sekiwake_forward_resolve_failures_total", &[dead]) >= 1.0);
    rig.stop();
}

#[test]
fn what_is_queued_when_the_engine_ends_is_sent() {
    let rig = Rig::new();
    let (sink, uri) = loopback_sink();
    let mut engine = rig.engine(&uri);
    let payloads = numbered(2000, 300);
    forward(&mut engine, &samples(payloads.clone()));
    drop(engine);
    assert!(arrived(sink, payloads.len()) == payloads);
    assert_eq!(rig.stop(), Ending::Done);
}

#[test]
fn what_cannot_be_sent_until_the_deadline_is_counted_as_shutdown() {
    let rig = Rig::new();
    let dead = "udp://nowhere.example:514";
    let mut engine = rig.engine_with(dead, &ignorant());
    forward(&mut engine, &samples(numbered(10, 100)));
    let scope = rig.scope.clone();
    // The engine ends with its receiver, after the word to stop and well before the deadline.
    let receiver = std::thread::spawn(move || {
        scope.stop().wait_forever();
        drop(engine);
    });
    let metrics = rig.scope.metrics().clone();
    rig.stop();
    receiver.join().unwrap();
    let shutdown = format!("destination=\"{dead}\",reason=\"shutdown\",service=\"syslog-forwarder\"}} 10");
    wait_for("the count", PATIENCE, || metrics.text().contains(&shutdown)).unwrap();
}
