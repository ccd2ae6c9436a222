//! Peers that end the connection at some messages: these are dropped, all others arrive.

use std::{
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use sekiwake_testkit::wait::wait_for;

use super::{
    LABEL, Stream, numbered,
    peer::{Peer, Refusing, listener, visit_frames},
    settings, with_spool,
};
use crate::rig::PATIENCE;

/// A message that the peers here do not accept.
fn bad(number: u64) -> Vec<u8> {
    format!("<13>Nov 29 00:00:00 sw1: number={number} \x07").into_bytes()
}

fn is_bad(message: &[u8]) -> bool {
    message.starts_with(b"<13>Nov")
}

/// A peer that closes the connection at each bad message, and throws away what it has read behind
/// that.
fn picky(listener: TcpListener) -> Peer {
    Peer::serve(listener, |mut stream, book, page| {
        let _ = visit_frames(&mut stream, book, |message| {
            if !is_bad(message) {
                book.write(page, message.to_vec());
            }
            is_bad(message)
        });
    })
}

#[test]
fn messages_around_rejected_ones_arrive() {
    let peer = picky(listener());
    let mut stream = Stream::start(settings(peer.address));
    // Several in a row, then one of five every 250 ms: connections end before they are trusted. The
    // machine's speed decides how many messages wait for too long, so this goes on until enough of
    // the others have arrived.
    stream.forward((0..12).map(|number| if number == 7 { bad(number) } else { numbered(number) }));
    let mut number = 12;
    let started = Instant::now();
    while peer.book.distinct() < 50 || stream.dropped("rejected") < 2 {
        assert!(started.elapsed() < PATIENCE, "{} arrived", peer.book.distinct());
        stream.forward([if number % 5 == 2 { bad(number) } else { numbered(number) }]);
        number += 1;
        thread::sleep(Duration::from_millis(50));
    }
    wait_for("an empty queue", PATIENCE, || stream.rig.queued(LABEL) == 0).unwrap();
    let late = stream.dropped("disconnected") + stream.dropped("expired");
    let all_bad = 1 + (12..number).filter(|number| number % 5 == 2).count() as u64;
    assert_eq!(stream.sent() + stream.dropped("rejected") + late, number);
    assert!(stream.dropped("rejected") <= all_bad);
    // The peer may have thrown away some behind a bad one, which its kernel had acknowledged.
    let arrived = || peer.book.distinct() as u64;
    wait_for("nearly all others", PATIENCE, || arrived() * 10 >= (number - all_bad - late) * 9)
        .unwrap_or_else(|error| panic!("{error}: {} of {number}, {late} late", arrived()));
    stream.assert_ledger();
    stream.stop();
}

#[test]
fn rejected_message_in_the_spool_does_not_hold_up_others() {
    let folder = tempfile::tempdir().unwrap();
    let refusing = Refusing::new();
    let mut stream = Stream::start(with_spool(refusing.address(), folder.path(), 1 << 20, 5_000));
    stream.forward((0..200).map(|number| if number == 100 { bad(number) } else { numbered(number) }));
    wait_for("the spool", PATIENCE, || stream.metric("sekiwake_forward_spool_datagrams") == 200).unwrap();
    let peer = picky(refusing.listen());
    for number in 200..260 {
        stream.forward([numbered(number)]);
        thread::sleep(Duration::from_millis(25));
    }
    peer.book.wait_for_distinct(259);
    wait_for("an empty spool", PATIENCE, || stream.metric("sekiwake_forward_spool_datagrams") == 0).unwrap();
    stream.wait_until_sent(259);
    assert_eq!(stream.dropped("rejected"), 1);
    stream.assert_ledger();
    // The peer gets a message again while the bad one is searched, and not for ever.
    assert!(peer.book.count() < 259 + 3 * 200, "{} messages in all", peer.book.count());
    stream.stop();
}

#[test]
fn balancer_without_a_backend_rejects_no_message() {
    let folder = tempfile::tempdir().unwrap();
    // It reads nothing, or discards what it has read.
    let peer = Peer::serve(listener(), |stream, _, page| {
        if page % 2 == 0 {
            thread::sleep(Duration::from_millis(10));
        }
        drop(stream);
    });
    let mut stream = Stream::start(with_spool(peer.address, folder.path(), 1 << 20, 5_000));
    stream.forward((0..50).map(numbered));
    wait_for("some connections", PATIENCE, || peer.book.connections().len() >= 12).unwrap();
    assert_eq!((stream.sent(), stream.dropped("rejected")), (0, 0));
    assert_eq!(stream.metric("sekiwake_forward_spool_datagrams"), 50);
    stream.assert_ledger();
    stream.stop();
}
