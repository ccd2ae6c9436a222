//! Peers that refuse connections, do not read, or vanish: waiting messages are dropped by reason,
//! memory is bounded, and sending resumes afterwards.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sekiwake_forward::{Host, Registry, Resolution, Resolve, stream::StreamSettings};
use sekiwake_runtime::Ending;
use sekiwake_testkit::{
    netns::{End, Link, Namespace, namespaces_or_skipped},
    wait::wait_for,
};

use super::{
    Stream, number_of, numbered,
    peer::{Peer, Refusing, listener, read_frames},
    settings,
};
use crate::rig::{PATIENCE, Rig};

#[test]
fn refused_destination_is_down_until_it_listens() {
    let refusing = Refusing::new();
    let before = Instant::now();
    let mut stream = Stream::start(settings(refusing.address()));
    stream.forward((0..100).map(numbered));
    wait_for("the drops", PATIENCE, || stream.dropped("disconnected") == 100).unwrap();
    assert_eq!(stream.up(), 0.0);
    stream.assert_ledger();
    let refusals = stream.rig.metric("sekiwake_forward_errors_total", &["connection_refused"]);
    // Pauses are at least half of 0.2, 0.4, 0.8 … s, so the nth attempt is not before
    // 0.1 s * (2^(n-1) - 1): six attempts in two seconds, one more in twice the time.
    let most = 1.0 + (before.elapsed().as_secs_f64() / 0.1 + 1.0).log2();
    assert!((2.0..=most).contains(&refusals), "{refusals} of {most} attempts");
    let peer = Peer::reading(refusing.listen());
    wait_for("a connection", PATIENCE, || stream.up() == 1.0).unwrap();
    stream.forward((100..200).map(numbered));
    stream.wait_until_sent(100);
    peer.book.wait_for_distinct(100);
    let numbers: Vec<u64> = peer.book.messages().iter().map(|message| number_of(message)).collect();
    assert!(numbers.into_iter().eq(100..200));
    stream.stop();
}

#[test]
fn stalled_peer_stays_connected_and_gets_live_messages() {
    let reads = Arc::new(AtomicBool::new(false));
    let peer_reads = Arc::clone(&reads);
    let peer = Peer::serve(listener(), move |mut stream, book, page| {
        while !peer_reads.load(Ordering::Relaxed) && !book.is_stopping() {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = read_frames(&mut stream, book, page, |_| false);
    });
    let mut stream = Stream::start(settings(peer.address));
    wait_for("a connection", PATIENCE, || stream.up() == 1.0).unwrap();
    let started = Instant::now();
    let mut number = 0;
    let mut most_queued = 0;
    // Longer than the 20 s after which a silent peer is considered dead, and than the kernel's
    // TCP_USER_TIMEOUT would be.
    while started.elapsed() < Duration::from_secs(26) || stream.dropped("stalled") <= 100_000 {
        assert!(started.elapsed() < Duration::from_secs(180), "{} stalled", stream.dropped("stalled"));
        stream.forward_paced(number..number + 2_000, 10_000);
        number += 2_000;
        most_queued = most_queued.max(stream.metric("sekiwake_forward_queue_bytes"));
    }
    assert_eq!(stream.up(), 0.0, "nothing has been read for two seconds");
    assert!(most_queued < 48 << 20, "{most_queued} bytes queued");
    reads.store(true, Ordering::Relaxed);
    wait_for("the peer to be up", PATIENCE, || stream.up() == 1.0).unwrap();
    wait_for("an empty queue", PATIENCE, || stream.metric("sekiwake_forward_queue_records") == 0).unwrap();
    let before = number;
    stream.forward((before..before + 1_000).map(numbered));
    let last = |number| peer.book.messages().last().is_some_and(|message| number_of(message) == number);
    wait_for("the live messages", PATIENCE, || last(before + 999)).unwrap();
    stream.assert_ledger();
    assert_eq!(peer.book.connections().len(), 1, "the connection is the same");
    let messages = peer.book.messages();
    assert_eq!(messages.len() as u64, stream.sent());
    assert!(messages.is_sorted_by_key(|message| number_of(message)));
    println!("{} of {} dropped, at most {most_queued} bytes queued", stream.dropped("stalled"), stream.given);
    stream.stop();
}

#[test]
fn vanished_peer_is_detected_and_reconnected() {
    if !namespaces_or_skipped() {
        return;
    }
    let here = Namespace::new("skw-here").unwrap();
    let there = Namespace::new("skw-there").unwrap();
    Link::new(End::new(&here, "out0").address("198.18.0.1/24"), End::new(&there, "in0").address("198.18.0.2/24"))
        .create()
        .unwrap();
    let bind = || std::net::TcpListener::bind("198.18.0.2:0").unwrap();
    let peer = there.enter(|| Peer::reading(bind())).unwrap();
    let mut stream = here.enter(|| Stream::start(settings(peer.address))).unwrap();
    wait_for("a connection", PATIENCE, || stream.up() == 1.0).unwrap();
    stream.forward((0..10).map(numbered));
    stream.wait_until_sent(10);
    // A black hole: packets to it are silently dropped.
    let rule = "add table ip hole; add chain ip hole in { type filter hook input priority 0; }; add rule ip hole in tcp dport 1-65535 drop";
    let output = there.command("nft").arg(rule).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let vanished = Instant::now();
    stream.forward((10..20).map(numbered));
    let timed_out = || stream.rig.metric("sekiwake_forward_errors_total", &["timed_out"]) >= 1.0;
    wait_for("the silence to be detected", 2 * PATIENCE, timed_out).unwrap();
    println!("detected after {:?}", vanished.elapsed());
    assert!(vanished.elapsed() > Duration::from_secs(15));
    assert_eq!(stream.up(), 0.0);
    // An attempt to connect fails after five seconds, then there is a pause.
    let twice = || stream.rig.metric("sekiwake_forward_errors_total", &["timed_out"]) >= 2.0;
    wait_for("a connection that fails", PATIENCE, twice).unwrap();
    assert_eq!(stream.dropped("disconnected"), 10, "they had waited for more than two seconds");
    assert!(there.command("nft").arg("delete table ip hole").status().unwrap().success());
    wait_for("a connection", PATIENCE, || stream.up() == 1.0).unwrap();
    stream.forward((20..30).map(numbered));
    stream.wait_until_sent(20);
    stream.assert_ledger();
    let has_last = || peer.book.messages().iter().any(|message| number_of(message) == 29);
    wait_for("the last message", PATIENCE, has_last).unwrap();
    stream.stop();
}

/// A name whose address changes.
struct Moving(Arc<AtomicBool>, [SocketAddr; 2]);

impl Resolve for Moving {
    fn resolve(&self, _host: &str, _port: u16) -> std::io::Result<Vec<SocketAddr>> {
        Ok(vec![self.1[usize::from(self.0.load(Ordering::Relaxed))]])
    }
}

#[test]
fn new_address_is_used_in_order_once_captures_know_it() {
    let old = Peer::reading(listener());
    let new = Peer::reading(listener());
    let moved = Arc::new(AtomicBool::new(false));
    let resolver = Arc::new(Moving(Arc::clone(&moved), [old.address, new.address]));
    let every = Duration::from_millis(50);
    let resolution = Resolution { resolver, every, retry: every };
    let registry = Registry::new();
    let named = StreamSettings { host: Host::Name("siem.example".to_owned()), ..settings(old.address) };
    let mut stream = Stream::start_with(named, &resolution, &registry);
    stream.forward((0..100).map(numbered));
    wait_for("an address to approve", PATIENCE, || registry.number() == 1).unwrap();
    thread::sleep(Duration::from_millis(300));
    assert_eq!(old.book.connections().len(), 0, "captures do not know it yet");
    registry.approve(registry.number());
    stream.wait_until_sent(100);
    moved.store(true, Ordering::Relaxed);
    wait_for("another address", PATIENCE, || registry.list().addresses.len() == 2).unwrap();
    stream.forward((100..200).map(numbered));
    stream.wait_until_sent(200);
    registry.approve(registry.number());
    wait_for("a connection", PATIENCE, || new.book.connections().len() == 1).unwrap();
    stream.forward((200..300).map(numbered));
    stream.wait_until_sent(300);
    old.book.wait_for_distinct(200);
    new.book.wait_for_distinct(100);
    let numbers = |peer: &Peer| peer.book.messages().iter().map(|message| number_of(message)).collect::<Vec<u64>>();
    assert!(numbers(&old).into_iter().eq(0..200));
    assert!(numbers(&new).into_iter().eq(200..300));
    assert_eq!(
        registry.list().addresses.iter().map(|registered| registered.address).collect::<Vec<_>>(),
        [new.address]
    );
    stream.stop();
}

#[test]
fn stop_sends_what_it_can_and_drops_the_rest() {
    let peer = Peer::reading(listener());
    let rig = Rig::draining("60s");
    let mut stream = Stream::start_in(rig, settings(peer.address), &Resolution::default(), &Registry::open());
    stream.forward((0..20_000).map(numbered));
    let Stream { rig, destination, .. } = stream;
    drop(destination);
    assert_eq!(rig.stop(), Ending::Done);
    assert_eq!(peer.book.assert_in_order(20_000), 0);

    let refusing = Refusing::new();
    let mut stream = Stream::start(settings(refusing.address()));
    stream.forward((0..100).map(numbered));
    let Stream { rig, destination, .. } = stream;
    drop(destination);
    let scope = rig.scope.clone();
    assert_eq!(rig.stop(), Ending::Done);
    let text = scope.metrics().text();
    let shutdown = text.lines().find(|line| line.contains("dropped_datagrams") && line.contains("\"shutdown\""));
    assert!(shutdown.unwrap().ends_with(" 100"), "{shutdown:?}");
}
