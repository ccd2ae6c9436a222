//! Broken connections: messages in flight are sent again, in order, and none is missing.

use std::{
    io::{BufRead, BufReader, Read},
    net::Shutdown,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rustls::{ServerConnection, StreamOwned, version::TLS13};
use sekiwake_forward::stream::{Framing, StreamSettings};
use sekiwake_testkit::{netns::namespaces_or_skipped, wait::wait_for};

use super::{
    Stream, numbered,
    peer::{Book, Peer, listener, read_frames},
    settings,
    tls::Authority,
    with_tls,
};
use crate::rig::{PATIENCE, batches, samples};

#[test]
fn payloads_are_framed_exactly_and_empty_ones_dropped() {
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
    stream.assert_ledger();
    assert_eq!(stream.dropped("empty"), 2);
    stream.stop();
}

#[test]
fn receiver_of_lines_gets_one_per_message() {
    let listener = listener();
    let address = listener.local_addr().unwrap();
    let lines = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        BufReader::new(stream).split(b'\n').map(Result::unwrap).collect::<Vec<Vec<u8>>>()
    });
    let mut stream = Stream::start(StreamSettings { framing: Framing::Newline, ..settings(address) });
    stream.forward([&b"<13>one"[..], b"<13>two\n", b"<13>three\nand more\n\n", b"\n"].map(<[u8]>::to_vec));
    stream.wait_until_sent(3);
    stream.assert_ledger();
    assert_eq!(stream.dropped("empty"), 1);
    stream.stop();
    assert_eq!(lines.join().unwrap(), [&b"<13>one"[..], b"<13>two", b"<13>three and more"]);
}

#[test]
fn peer_that_ends_every_connection_gets_all_in_order() {
    // It closes its sending side after a second, when the connection is certainly trusted, and
    // still reads what is in flight.
    let peer = Peer::serve(listener(), |mut stream, book, page| {
        let mut other = stream.try_clone().unwrap();
        let opened = Instant::now();
        let mut is_ended = false;
        let _ = read_frames(&mut stream, book, page, |_| {
            if !is_ended && opened.elapsed() >= Duration::from_secs(1) {
                is_ended = true;
                other.shutdown(Shutdown::Write).unwrap();
            }
            false
        });
        let _ = other.set_nonblocking(false);
        drop(std::mem::replace(&mut other, stream));
    });
    let mut stream = Stream::start(settings(peer.address));
    let count = 100_000;
    stream.forward_as_sent(0..count, 20_000);
    let retransmitted = peer.book.assert_in_order(count);
    let connections = peer.book.connections().len();
    println!("{connections} connections, {retransmitted} messages retransmitted");
    assert!(connections > 3, "{connections}");
    stream.wait_until_sent(count);
    stream.assert_ledger();
    assert_eq!(stream.sent(), count);
    stream.stop();
}

/// Reads more slowly than data is written, so that some is in flight.
fn read_slowly(stream: &mut impl Read, book: &Book, page: usize) {
    // It ends with an error when the connection is reset.
    let _ = read_frames(stream, book, page, |messages| {
        if messages % 100 == 0 {
            thread::sleep(Duration::from_millis(1));
        }
        false
    });
}

/// Destroys the sender's sockets while data is in flight: acknowledged data is in the peer's
/// buffer, which it still reads.
fn tear_connections(peer: &Peer, mut stream: Stream) {
    let mut torn = 0;
    let mut number = 0;
    while torn < 8 {
        let before = stream.sent();
        stream.forward((number..number + 1_000).map(numbered));
        number += 1_000;
        wait_for("a connection", PATIENCE, || peer.book.connections().len() > torn).unwrap();
        wait_for("something to be sent", PATIENCE, || stream.sent() > before).unwrap();
        stream.forward((number..number + 20_000).map(numbered));
        number += 20_000;
        let filter = ["-K", "dst", "127.0.0.1", "dport", "=", &format!(":{}", peer.address.port())];
        let output = Command::new("ss").args(filter).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        torn += 1;
        // Before more follows, so that nothing waits too long.
        stream.wait_until_sent(number);
    }
    let retransmitted = peer.book.assert_in_order(number);
    println!("{torn} connections reset, {retransmitted} of {number} messages retransmitted");
    stream.wait_until_sent(number);
    stream.assert_ledger();
    assert_eq!(stream.sent(), number);
    assert!(stream.metric("sekiwake_forward_retransmitted_datagrams_total") > 0);
    stream.stop();
}

#[test]
fn reset_connections_lose_nothing_in_flight() {
    if !namespaces_or_skipped() {
        return;
    }
    let peer = Peer::serve(listener(), |mut stream, book, page| read_slowly(&mut stream, book, page));
    tear_connections(&peer, Stream::start(settings(peer.address)));
}

#[test]
fn reset_tls_connections_lose_nothing_in_flight() {
    if !namespaces_or_skipped() {
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

/// A measurement of the rate: `cargo test --release -p sekiwake-forward -- --ignored
/// --nocapture how_fast`.
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
        let settings = if secure { with_tls(peer.address, tls.clone()) } else { settings(peer.address) };
        let mut stream = Stream::start(settings);
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
        println!("TLS {secure}: {:.0} messages of 200 bytes per second", 1e6 / took.as_secs_f64());
        stream.stop();
    }
}
