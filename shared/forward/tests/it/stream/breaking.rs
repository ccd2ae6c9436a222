//! Connections that break: what was on its way comes again, in order, and nothing is missing.

use std::{net::Shutdown, process::Command};

use sekiwake_testkit::{netns::available_or_skipped, wait::wait_for};

use super::{
    Stream, numbered,
    peer::{Peer, listener, read_frames},
    settings,
};
use crate::rig::PATIENCE;

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

#[test]
fn connections_that_are_torn_down_lose_nothing_that_was_on_its_way() {
    if !available_or_skipped("connections_that_are_torn_down_lose_nothing_that_was_on_its_way") {
        return;
    }
    // It reads slower than it is given data, so that there is something on its way.
    let peer = Peer::serve(listener(), |mut stream, book, page| {
        let outcome = read_frames(&mut stream, book, page, |messages| {
            if messages % 100 == 0 {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            false
        });
        assert!(outcome.is_ok() || !book.is_stopping());
    });
    let mut stream = Stream::start(settings(peer.address));
    let (mut torn, mut number) = (0, 0);
    while torn < 8 {
        stream.forward((number..number + 1_000).map(numbered));
        number += 1_000;
        wait_for("a connection", PATIENCE, || peer.book.connections().len() > torn).unwrap();
        let before = stream.sent();
        wait_for("something to be sent", PATIENCE, || stream.sent() > before).unwrap();
        stream.forward((number..number + 20_000).map(numbered));
        number += 20_000;
        // The sender's socket is destroyed: the peer still has in its buffer what it acknowledged, and reads it.
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
