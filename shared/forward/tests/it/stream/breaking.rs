//! Connections that break: what was on its way comes again, in order, and nothing is missing.

use std::{
    io::Read,
    net::Shutdown,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::{ServerConnection, StreamOwned, version::TLS13};
use sekiwake_testkit::{netns::available_or_skipped, wait::wait_for};

use super::{
    Stream, numbered,
    peer::{Book, Peer, listener, read_frames},
    settings,
    tls::Authority,
    with_tls,
};
use crate::rig::{PATIENCE, batches, samples};

#[test]
fn frames_are_exact_whatever_is_in_them_and_an_empty_datagram_is_dropped() {
    let peer = Peer::reading(listener());
    let mut stream = Stream::start(settings(peer.address));
    let mut payloads: Vec<Vec<u8>> = vec![
        b"<13>one\nline\r\nand more\n".to_vec(),
        b"\0\0<13>\0".to_vec(),
        b" 5 looks like a frame".to_vec(),
        vec![0xff; 65_507],
        b"x".to_vec(),
        vec![b'\n'; 16 * 1024],
    ];
    for length in [9, 10, 99, 100, 999, 1_000, 9_999, 10_000, 16_379, 16_380, 65_000] {
        payloads.push((0..length).map(|byte| byte as u8).collect());
    }
    stream.forward(payloads.iter().cloned());
    stream.forward([Vec::new(), b"<13>last".to_vec(), Vec::new()]);
    payloads.push(b"<13>last".to_vec());
    wait_for("all messages", PATIENCE, || peer.book.count() == payloads.len()).unwrap();
    assert!(peer.book.messages() == payloads);
    stream.wait_until_sent(payloads.len() as u64);
    stream.assert_accounts_close();
    assert_eq!(stream.dropped("empty"), 2);
    stream.stop();
}

#[test]
fn a_peer_that_ends_every_connection_gets_everything_in_order() {
    // It says after each 2,000 messages that it reads no more, and takes what is on its way.
    let peer = Peer::serve(listener(), |mut stream, book, page| {
        let mut other = stream.try_clone().unwrap();
        let _ = read_frames(&mut stream, book, page, |messages| {
            if messages == 2_000 {
                other.shutdown(Shutdown::Write).unwrap();
            }
            false
        });
        let _ = other.set_nonblocking(false);
        drop(std::mem::replace(&mut other, stream));
    });
    let mut stream = Stream::start(settings(peer.address));
    let count = 40_000;
    stream.forward_paced(0..count, 20_000);
    peer.book.wait_for_distinct(count as usize);
    let repeated = peer.book.assert_in_order(count);
    let connections = peer.book.connections().len();
    println!("{connections} connections, {repeated} messages came again");
    assert!(connections > 3, "{connections}");
    stream.wait_until_sent(count);
    stream.assert_accounts_close();
    assert_eq!(stream.sent(), count);
    stream.stop();
}

/// Reads slower than it is given data, so that there is something on its way.
fn read_slowly(stream: &mut impl Read, book: &Book, page: usize) {
    // It ends with an error whenever the connection is torn.
    let _ = read_frames(stream, book, page, |messages| {
        if messages % 100 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        false
    });
}

/// Destroys the sender's sockets while data is on its way: the peer still has in its buffer what it acknowledged, and reads it.
fn tear_connections(peer: &Peer, mut stream: Stream) {
    let (mut torn, mut number) = (0, 0);
    while torn < 8 {
        stream.forward((number..number + 1_000).map(numbered));
        number += 1_000;
        wait_for("a connection", PATIENCE, || peer.book.connections().len() > torn).unwrap();
        let before = stream.sent();
        wait_for("something to be sent", PATIENCE, || stream.sent() > before).unwrap();
        stream.forward((number..number + 20_000).map(numbered));
        number += 20_000;
        let filter = ["-K", "dst", "127.0.0.1", "dport", "=", &format!(":{}", peer.address.port())];
        let output = Command::new("ss").args(filter).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        torn += 1;
    }
    peer.book.wait_for_distinct(number as usize);
    let repeated = peer.book.assert_in_order(number);
    println!("{torn} connections torn, {repeated} of {number} messages came again");
    stream.wait_until_sent(number);
    stream.assert_accounts_close();
    assert_eq!(stream.sent(), number);
    assert!(stream.metric("sekiwake_forward_repeated_datagrams_total") > 0);
    stream.stop();
}

#[test]
fn connections_that_are_torn_down_lose_nothing_that_was_on_its_way() {
    if !available_or_skipped("connections_that_are_torn_down_lose_nothing_that_was_on_its_way") {
        return;
    }
    let peer = Peer::serve(listener(), |mut stream, book, page| read_slowly(&mut stream, book, page));
    tear_connections(&peer, Stream::start(settings(peer.address)));
}

#[test]
fn tls_connections_that_are_torn_down_lose_nothing_that_was_on_its_way() {
    if !available_or_skipped("tls_connections_that_are_torn_down_lose_nothing_that_was_on_its_way") {
        return;
    }
    let authority = Authority::new();
    let identity = authority.identity("server", &["127.0.0.1"], false);
    let config = authority.server(&identity, &TLS13, false);
    let peer = Peer::serve(listener(), move |stream, book, page| {
        let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
        read_slowly(&mut stream, book, page);
    });
    tear_connections(&peer, Stream::start(with_tls(peer.address, authority.trusting().load("127.0.0.1").unwrap())));
}

/// How fast it is, and what a message costs: `cargo test --release -p sekiwake-forward -- --ignored --nocapture how_fast`.
#[test]
#[ignore = "a measurement"]
fn how_fast() {
    let authority = Authority::new();
    let identity = authority.identity("server", &["127.0.0.1"], false);
    let config = authority.server(&identity, &TLS13, false);
    let swallow = |stream: &mut dyn Read, book: &Book| {
        let mut buffer = vec![0; 1 << 20];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !book.is_stopping() => {}
                Err(_) => return,
            }
        }
    };
    let tls = authority.trusting().load("127.0.0.1").unwrap();
    for secure in [false, true] {
        let config = Arc::clone(&config);
        let peer = Peer::serve(listener(), move |mut stream, book, _| match secure {
            false => swallow(&mut stream, book),
            true => swallow(&mut StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream), book),
        });
        let of_stream = if secure { with_tls(peer.address, tls.clone()) } else { settings(peer.address) };
        let mut stream = Stream::start(of_stream);
        let batches = batches(&samples((0..100_000).map(|_| vec![b'x'; 200])));
        wait_for("a connection", PATIENCE, || stream.up() == 1.0).unwrap();
        thread::sleep(Duration::from_millis(600));
        let started = Instant::now();
        for round in 1..=10 {
            batches.iter().for_each(|batch| stream.forward_batch(batch));
            wait_for("the round", PATIENCE, || stream.sent() >= round * 95_000).unwrap();
        }
        stream.wait_until_sent(1_000_000);
        let took = started.elapsed();
        println!("TLS {secure}: {:.0} messages of 200 bytes a second", 1e6 / took.as_secs_f64());
        stream.stop();
    }
}
