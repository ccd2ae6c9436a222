//! The spool: missed messages arrive later, after kills and restarts, and live traffic does not
//! wait for them.

use std::{
    env,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use sekiwake_testkit::{
    process::{Process, Signal},
    wait::wait_for,
};

use super::{
    Stream, number_of, numbered,
    peer::{Peer, Refusing, listener, read_frames},
    with_spool,
};
use crate::rig::PATIENCE;

const MEBIBYTE: u64 = 1 << 20;

fn numbers(peer: &Peer) -> Vec<u64> {
    peer.book.messages().iter().map(|message| number_of(message)).collect()
}

#[test]
fn live_traffic_does_not_wait_for_the_replay() {
    let folder = tempfile::tempdir().unwrap();
    let refusing = Refusing::new();
    let address = refusing.address();
    let rate = 100;
    let mut stream = Stream::start(with_spool(address, folder.path(), 64 * MEBIBYTE, rate));
    let missed = 20_000;
    stream.forward_paced(0..missed, 5_000);
    wait_for("the spool", PATIENCE, || stream.metric("sekiwake_forward_spool_datagrams") == missed).unwrap();
    assert_eq!(stream.up(), 0.0);
    stream.assert_ledger();

    // At this rate the replay takes 200 s: all live messages arrive long before.
    let before = Instant::now();
    let peer = Peer::reading(refusing.listen());
    wait_for("a connection", PATIENCE, || stream.up() == 1.0).unwrap();
    stream.forward_paced(missed..missed + 5_000, 2_000);
    let live = |peer: &Peer| numbers(peer).into_iter().filter(|&number| number >= missed).collect::<Vec<u64>>();
    wait_for("all live messages", PATIENCE, || live(&peer).len() == 5_000).unwrap();
    let replayed = numbers(&peer).len() as u64 - 5_000;
    let most = (f64::from(rate) * (before.elapsed().as_secs_f64() + 1.0)) as u64;
    assert!(replayed <= most, "{replayed} of {most} messages at the capped rate");
    assert!(stream.metric("sekiwake_forward_spool_datagrams") > 0, "the replay goes on");
    assert!(live(&peer).into_iter().eq(missed..missed + 5_000), "the live order");
    stream.stop();

    // The rest, at once.
    let stream = Stream::start(with_spool(address, folder.path(), 64 * MEBIBYTE, 50_000));
    wait_for("the replay", PATIENCE, || stream.metric("sekiwake_forward_spool_datagrams") == 0).unwrap();
    stream.assert_ledger();
    peer.book.wait_for_distinct(missed as usize + 5_000);
    let mut next = 0;
    for connection in peer.book.connections() {
        let spooled = connection.iter().map(|message| number_of(message)).filter(|&number| number < missed);
        for (index, number) in spooled.enumerate() {
            // A connection begins with the messages that were not acknowledged on the one before.
            if index == 0 {
                assert!(number <= next, "{number} after {next}");
                next = number;
            }
            assert_eq!(number, next, "the spool's order");
            next += 1;
        }
    }
    assert_eq!(next, missed);
    stream.stop();
}

#[test]
fn replay_starts_when_a_stalled_peer_reads_again() {
    let reads = Arc::new(AtomicBool::new(false));
    let peer_reads = Arc::clone(&reads);
    let peer = Peer::serve(listener(), move |mut stream, book, page| {
        while !peer_reads.load(Ordering::Relaxed) && !book.is_stopping() {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = read_frames(&mut stream, book, page, |_| false);
    });
    let folder = tempfile::tempdir().unwrap();
    let mut stream = Stream::start(with_spool(peer.address, folder.path(), 64 * MEBIBYTE, 50_000));
    let count = 60_000;
    stream.forward_paced(0..count, 10_000);
    let spooled = || stream.metric("sekiwake_forward_spooled_datagrams_total");
    wait_for("the spool", PATIENCE, || spooled() > count / 3)
        .unwrap_or_else(|late| panic!("{late}: {} spooled", spooled()));
    reads.store(true, Ordering::Relaxed);
    stream.wait_until_sent(count);
    stream.assert_ledger();
    peer.book.wait_for_distinct(count as usize);
    let mut all = numbers(&peer);
    assert_eq!(peer.book.connections().len(), 1);
    all.sort_unstable();
    all.dedup();
    // Messages that the connection had taken before the peer stopped reading are in the spool as
    // well, and arrive twice.
    assert!(all.into_iter().eq(0..count), "none is missing");
    stream.stop();
}

#[test]
fn full_spool_evicts_and_counts_the_oldest() {
    let folder = tempfile::tempdir().unwrap();
    let refusing = Refusing::new();
    let mut stream = Stream::start(with_spool(refusing.address(), folder.path(), MEBIBYTE, 1_000_000));
    let count = 20_000;
    for first in (0..count).step_by(2_000) {
        stream.forward((first..first + 2_000).map(numbered));
        wait_for("the spool", PATIENCE, || stream.metric("sekiwake_forward_spooled_datagrams_total") == first + 2_000)
            .unwrap();
    }
    let evicted = stream.dropped("spool_full");
    assert!(evicted > 5_000, "{evicted} evicted");
    assert!(stream.metric("sekiwake_forward_spool_bytes") <= MEBIBYTE);
    stream.assert_ledger();
    let peer = Peer::reading(refusing.listen());
    stream.wait_until_sent(count - evicted);
    peer.book.wait_for_distinct((count - evicted) as usize);
    assert!(numbers(&peer).into_iter().eq(evicted..count), "the oldest were evicted first");
    stream.assert_ledger();
    assert_eq!(stream.metric("sekiwake_forward_spool_datagrams"), 0);
    stream.stop();
}

#[test]
fn queued_messages_survive_a_stop_in_the_spool() {
    let folder = tempfile::tempdir().unwrap();
    let refusing = Refusing::new();
    let mut stream = Stream::start(with_spool(refusing.address(), folder.path(), MEBIBYTE, 5_000));
    stream.forward((0..100).map(numbered));
    stream.stop();
    let address = refusing.address();
    let stream = Stream::start(with_spool(address, folder.path(), MEBIBYTE, 5_000));
    assert_eq!(stream.spooled_before, 100);
    let peer = Peer::reading(refusing.listen());
    stream.wait_until_sent(100);
    stream.assert_ledger();
    assert_eq!(peer.book.assert_in_order(100), 0);
    stream.stop();
}

#[test]
fn disk_errors_are_counted_and_messages_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("spool");
    let refusing = Refusing::new();
    let mut stream = Stream::start(with_spool(refusing.address(), &dir, MEBIBYTE, 5_000));
    std::fs::remove_dir_all(&dir).unwrap();
    // Where a file is, no folder can be made.
    std::fs::write(&dir, "").unwrap();
    stream.forward((0..100).map(numbered));
    wait_for("the drops", PATIENCE, || stream.dropped("disconnected") == 100).unwrap();
    assert!(stream.metric("sekiwake_forward_spool_errors_total") >= 1);
    let peer = Peer::reading(refusing.listen());
    wait_for("a connection", PATIENCE, || stream.up() == 1.0).unwrap();
    stream.forward((100..200).map(numbered));
    wait_for("live messages", PATIENCE, || numbers(&peer).contains(&199)).unwrap();
    stream.stop();
}

#[test]
fn removed_spool_folder_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("spool");
    let refusing = Refusing::new();
    let mut stream = Stream::start(with_spool(refusing.address(), &dir, MEBIBYTE, 5_000));
    std::fs::remove_dir_all(&dir).unwrap();
    stream.forward((0..100).map(numbered));
    wait_for("the spool", PATIENCE, || stream.metric("sekiwake_forward_spooled_datagrams_total") == 100).unwrap();
    let peer = Peer::reading(refusing.listen());
    stream.wait_until_sent(100);
    stream.assert_ledger();
    assert_eq!(peer.book.assert_in_order(100), 0);
    stream.stop();
}

/// Not a test by itself: the process that [`killed_process_loses_no_spooled_message`] kills.
#[test]
#[ignore = "a process of another test"]
fn forwards_until_it_is_killed() {
    let Ok(arguments) = env::var("TEST_SEKIWAKE_CHILD") else { return };
    let mut words = arguments.split(' ');
    let mut word = || words.next().unwrap();
    let address: SocketAddr = word().parse().unwrap();
    let (dir, first): (&str, u64) = (word(), word().parse().unwrap());
    let mut stream = Stream::start(with_spool(address, Path::new(dir), 64 * MEBIBYTE, 5_000));
    let mut number = first;
    let mut reported = 0;
    loop {
        stream.forward_paced(number..number + 100, 2_000);
        number += 100;
        let spooled = stream.metric("sekiwake_forward_spooled_datagrams_total");
        if spooled > reported {
            reported = spooled;
            println!("spooled {spooled}");
        }
    }
}

fn child(address: SocketAddr, dir: &Path, first: u64) -> Process {
    let mut command = Command::new(env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", "stream::spool::forwards_until_it_is_killed"]);
    command.env("TEST_SEKIWAKE_CHILD", format!("{address} {} {first}", dir.display()));
    Process::spawn(command).unwrap()
}

fn spooled(process: &Process) -> u64 {
    let lines = process.stdout();
    let last = lines.iter().rev().find_map(|line| line.strip_prefix("spooled "));
    last.map_or(0, |count| count.parse().unwrap())
}

#[test]
fn killed_process_loses_no_spooled_message() {
    let folder = tempfile::tempdir().unwrap();
    let refusing = Refusing::new();
    let mut process = child(refusing.address(), folder.path(), 0);
    wait_for("some seconds of outage", PATIENCE, || spooled(&process) >= 6_000).unwrap();
    process.signal(Signal::KILL).unwrap();
    process.wait(PATIENCE).unwrap();
    let first = spooled(&process);

    // The second process: still an outage, then killed during the replay.
    let mut process = child(refusing.address(), folder.path(), 1_000_000);
    wait_for("more outage", PATIENCE, || spooled(&process) >= 2_000).unwrap();
    let peer = Peer::reading(refusing.listen());
    wait_for("a part of the replay", PATIENCE, || peer.book.count() > 3_000).unwrap();
    let second = spooled(&process);
    process.signal(Signal::KILL).unwrap();
    process.wait(PATIENCE).unwrap();
    let before = peer.book.count();

    // The third process finishes the replay.
    let stream = Stream::start(with_spool(peer.address, folder.path(), 64 * MEBIBYTE, 50_000));
    wait_for("the rest", PATIENCE, || stream.metric("sekiwake_forward_spool_datagrams") == 0).unwrap();
    stream.assert_ledger();
    let all = || {
        let mut all = numbers(&peer);
        all.sort_unstable();
        all.dedup();
        all
    };
    let missing = || {
        let all = all();
        let spooled = (0..first).chain(1_000_000..1_000_000 + second);
        spooled.filter(|number| all.binary_search(number).is_err()).count()
    };
    // What the kernel has acknowledged may not have been read yet.
    wait_for("all spooled messages", PATIENCE, || missing() == 0)
        .unwrap_or_else(|late| panic!("{late}: {} missing", missing()));
    let (arrived, all) = (numbers(&peer).len(), all());
    println!(
        "{first} + {second} spooled, {before} arrived before the second kill; {} arrived twice",
        arrived - all.len()
    );
    assert!(all.len() as u64 >= first + second);
    stream.stop();
}
