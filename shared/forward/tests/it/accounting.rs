//! Destinations do not delay each other, and the loss ledger adds up.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::Arc,
};

use sekiwake_forward::{Resolution, Resolve};
use sekiwake_runtime::Ending;
use sekiwake_testkit::wait::wait_for;

use crate::rig::*;

/// A resolver that knows no name.
struct Unknown;

impl Resolve for Unknown {
    fn resolve(&self, _host: &str, _port: u16) -> io::Result<Vec<SocketAddr>> {
        Err(io::Error::other("no such name"))
    }
}

fn unknown() -> Resolution {
    Resolution { resolver: Arc::new(Unknown), ..Resolution::default() }
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
fn closed_port_is_down_and_does_not_affect_the_live_one() {
    let rig = Rig::new();
    let (sink, live) = loopback_sink();
    let closed = {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        format!("udp://{}", socket.local_addr().unwrap())
    };
    let mut engine = rig.engine(&format!("{closed} {live}"));
    let payloads = numbered(20_000, 200);
    for (number, part) in payloads.chunks(500).enumerate() {
        // Not more at a time than a slow machine sends before records expire.
        sink.wait_for(number as u64 * 500, PATIENCE).unwrap();
        forward(&mut engine, &samples(part.to_vec()));
    }
    assert!(arrived(sink, payloads.len()) == payloads);
    rig.assert_ledger(&live);
    rig.assert_ledger(&closed);
    let labels = [&*format!("\"{closed}\""), "connection_refused"];
    wait_for("a refusal", PATIENCE, || rig.metric("sekiwake_forward_errors_total", &labels) > 0.0).unwrap();
    assert_eq!(rig.metric("sekiwake_forward_up", &[labels[0]]), 0.0);
    let is_up = || rig.metric("sekiwake_forward_up", &[&format!("\"{live}\"")]) == 1.0;
    wait_for("the live one to be up", PATIENCE, is_up).unwrap();
    rig.stop();
}

#[test]
fn full_queue_drops_the_newest_of_its_destination_only() {
    let rig = Rig::new();
    let (sink, live) = loopback_sink();
    // Nothing listens there.
    let dead = "tcp://127.0.0.1:1";
    let mut engine = rig.engine(&format!("{dead} {live}"));
    // At least 96 MB in all, in records of 60,000 bytes: more than the queue's 64 MiB. On a slow
    // machine records expire while more are queued, so more are needed.
    let mut count = 0;
    while count < 1600 || rig.dropped(dead, "queue_full") == 0 {
        assert!(count < 40_000, "the queue never fills up");
        forward(&mut engine, &samples([vec![count as u8; 60_000]]));
        count += 1;
        if count % 50 == 0 {
            wait_for("the live one", PATIENCE, || sink.received() >= count).unwrap();
        }
    }
    rig.assert_ledger(&live);
    assert_eq!(rig.sent(&live), count);
    rig.assert_ledger(dead);
    assert_eq!(rig.sent(dead), 0);
    rig.stop();
}

#[test]
fn records_beyond_the_queue_of_a_new_name_are_unresolved() {
    for dead in ["udp://nowhere.example:514", "tcp://nowhere.example:514"] {
        let rig = Rig::new();
        let mut engine = rig.engine_with(dead, &unknown());
        forward(&mut engine, &samples(numbered(10, 100)));
        wait_for("the state", PATIENCE, || rig.metric("sekiwake_forward_up", &[dead]) == 0.0).unwrap();
        // More than the 64 MiB of a queue.
        let records = 1_300;
        for _ in 0..records / 100 {
            forward(&mut engine, &samples(numbered(100, 60_000)));
        }
        assert!(!engine.is_behind(), "waiting for a name does not pause the input");
        let dropped = rig.dropped(dead, "unresolved");
        assert!(dropped > 100, "{dropped}");
        assert_eq!(rig.queued(dead) + dropped, 10 + records);
        assert_eq!((rig.sent(dead), rig.dropped(dead, "queue_full")), (0, 0));
        assert!(rig.metric("sekiwake_forward_resolve_failures_total", &[dead]) >= 1.0);
        drop(engine);
        rig.stop();
    }
}

#[test]
fn queued_records_are_sent_when_the_engine_is_dropped() {
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
fn unsent_records_at_the_deadline_count_as_shutdown() {
    let rig = Rig::new();
    let dead = "udp://nowhere.example:514";
    let mut engine = rig.engine_with(dead, &unknown());
    forward(&mut engine, &samples(numbered(10, 100)));
    let scope = rig.scope.clone();
    // The engine is dropped with its receiver, after the stop and well before the deadline.
    let receiver = std::thread::spawn(move || {
        scope.stop().wait_forever();
        drop(engine);
    });
    let metrics = rig.scope.metrics().clone();
    rig.stop();
    receiver.join().unwrap();
    let shutdown = format!("destination=\"{dead}\",reason=\"shutdown\",service=\"test\"}} 10");
    wait_for("the count", PATIENCE, || metrics.text().contains(&shutdown)).unwrap();
}
