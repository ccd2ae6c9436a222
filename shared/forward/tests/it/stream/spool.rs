//! The spool: what a destination missed arrives later, whatever happens in between, and live traffic does not wait for it.

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
fn what_an_outage_cost_is_replayed_in_order_at_the_capped_rate_while_live_traffic_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let refusing = Refusing::new();
    let mut stream = Stream::start(with_spool(refusing.address(), folder.path(), 64 * MEBIBYTE, 4_000));
    let missed = 20_000;
    stream.forward_paced(0..missed, 5_000);
    wait_for("the spool", PATIENCE, || stream.metric("sekiwake_forward_spool_datagrams") == missed).unwrap();
    assert_eq!(stream.up(), 0.0);
    stream.assert_accounts_close();
    let peer = Peer::reading(refusing.listen());
    wait_for("a connection", Duration::from_secs(40), || stream.up() == 1.0).unwrap();
    let connected = Instant::now();
    // Live traffic, 2,000 a second, for half of the time that replaying takes.
    stream.forward_paced(missed..missed + 5_000, 2_000);
    let live = numbers(&peer).iter().filter(|&&number| number >= missed).count();
    assert!(live >= 4_900, "{live} live messages have arrived while the spool is replayed");
    wait_for("the replay", PATIENCE, || stream.metric("sekiwake_forward_replayed_datagrams_total") == missed).unwrap();
    let took = connected.elapsed();
    assert!(took >= Duration::from_millis(4_800), "{took:?} for 20,000 messages at 4,000 a second");
    assert!(took <= Duration::from_secs(8), "{took:?} for 20,000 messages at 4,000 a second");
    let all = numbers(&peer);
    let (old, new): (Vec<u64>, Vec<u64>) = all.iter().partition(|&&number| number < missed);
    assert!(old.into_iter().eq(0..missed), "the spool's order");
    assert!(new.into_iter().eq(missed..missed + 5_000), "the live order");
    stream.wait_until_sent(missed + 5_000);
    stream.assert_accounts_close();
    let text = stream.rig.scope.metrics().text();
    let latency = |suffix: &str| {
        let prefix = format!("sekiwake_forward_latency_seconds_{suffix}");
        text.lines()
            .filter(|line| line.starts_with(&prefix))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum::<f64>()
    };
    println!("replayed in {took:?}; mean latency of live messages {:.3} ms", 1e3 * latency("sum") / latency("count"));
    assert!(latency("sum") / latency("count") < 0.02);
    stream.stop();
}

#[test]
fn what_a_peer_that_does_not_read_misses_is_replayed_when_it_reads_again() {
    let reads = Arc::new(AtomicBool::new(false));
    let of_peer = Arc::clone(&reads);
    let peer = Peer::serve(listener(), move |mut stream, book, page| {
        while !of_peer.load(Ordering::Relaxed) && !book.is_stopping() {
            thread::sleep(Duration::from_millis(5));
        }
        let _ = read_frames(&mut stream, book, page, |_| false);
    });
    let folder = tempfile::tempdir().unwrap();
    let mut stream = Stream::start(with_spool(peer.address, folder.path(), 64 * MEBIBYTE, 50_000));
    let count = 60_000;
    stream.forward_paced(0..count, 10_000);
    let spooled = stream.metric("sekiwake_forward_spooled_datagrams_total");
    assert!(spooled > count / 3, "{spooled} spooled");
    reads.store(true, Ordering::Relaxed);
    stream.wait_until_sent(count);
    stream.assert_accounts_close();
    let mut all = numbers(&peer);
    assert_eq!(peer.book.connections().len(), 1);
    all.sort_unstable();
    assert!(all.into_iter().eq(0..count), "each once, for the connection did not break");
    stream.stop();
}

#[test]
fn the_spool_is_bounded_and_what_is_evicted_is_counted() {
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
    stream.assert_accounts_close();
    let peer = Peer::reading(refusing.listen());
    stream.wait_until_sent(count - evicted);
    assert!(numbers(&peer).into_iter().eq(evicted..count), "the oldest went first");
    stream.assert_accounts_close();
    assert_eq!(stream.metric("sekiwake_forward_spool_datagrams"), 0);
    stream.stop();
}

#[test]
fn what_is_queued_when_the_service_stops_is_sent_by_the_next_start() {
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
    stream.assert_accounts_close();
    assert_eq!(peer.book.assert_in_order(100), 0);
    stream.stop();
}

#[test]
fn a_disk_that_refuses_is_counted_and_messages_are_dropped_as_without_a_spool() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("spool");
    let refusing = Refusing::new();
    let mut stream = Stream::start(with_spool(refusing.address(), &dir, MEBIBYTE, 5_000));
    std::fs::remove_dir_all(&dir).unwrap();
    stream.forward((0..100).map(numbered));
    wait_for("the drops", PATIENCE, || stream.dropped("disconnected") == 100).unwrap();
    assert!(stream.metric("sekiwake_forward_spool_errors_total") >= 1);
    let peer = Peer::reading(refusing.listen());
    wait_for("a connection", PATIENCE, || stream.up() == 1.0).unwrap();
    stream.forward((100..200).map(numbered));
    wait_for("live messages", PATIENCE, || numbers(&peer).contains(&199)).unwrap();
    stream.stop();
}

/// Not a test by itself: what [`a_process_that_is_killed_in_an_outage_loses_nothing_that_was_spooled`] kills.
#[test]
#[ignore = "a process of another test"]
fn forwards_until_it_is_killed() {
    let Ok(told) = env::var("TEST_SEKIWAKE_CHILD") else { return };
    let mut words = told.split(' ');
    let mut word = || words.next().unwrap();
    let address: SocketAddr = word().parse().unwrap();
    let (dir, first): (&str, u64) = (word(), word().parse().unwrap());
    let mut stream = Stream::start(with_spool(address, Path::new(dir), 64 * MEBIBYTE, 5_000));
    let (mut number, mut said) = (first, 0);
    loop {
        stream.forward_paced(number..number + 100, 2_000);
        number += 100;
        // What is done: sent, or in the spool.
        let done = stream.metric("sekiwake_forward_spooled_datagrams_total");
        if done > said {
            said = done;
            println!("spooled {done}");
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
fn a_process_that_is_killed_in_an_outage_loses_nothing_that_was_spooled() {
    let folder = tempfile::tempdir().unwrap();
    let refusing = Refusing::new();
    let mut process = child(refusing.address(), folder.path(), 0);
    wait_for("some seconds of outage", PATIENCE, || spooled(&process) >= 6_000).unwrap();
    process.signal(Signal::KILL).unwrap();
    process.wait(PATIENCE).unwrap();
    let first = spooled(&process);

    // The second life: still an outage, then killed while it replays.
    let mut process = child(refusing.address(), folder.path(), 1_000_000);
    wait_for("more outage", PATIENCE, || spooled(&process) >= 2_000).unwrap();
    let peer = Peer::reading(refusing.listen());
    wait_for("a part of the replay", Duration::from_secs(40), || peer.book.count() > 3_000).unwrap();
    let second = spooled(&process);
    process.signal(Signal::KILL).unwrap();
    process.wait(PATIENCE).unwrap();
    let before = peer.book.count();

    // The third gets to the end.
    let stream = Stream::start(with_spool(peer.address, folder.path(), 64 * MEBIBYTE, 50_000));
    wait_for("the rest", PATIENCE, || stream.metric("sekiwake_forward_spool_datagrams") == 0).unwrap();
    stream.assert_accounts_close();
    let mut all = numbers(&peer);
    let came = all.len();
    all.sort_unstable();
    all.dedup();
    let missing = |numbers: std::ops::Range<u64>| numbers.filter(|number| all.binary_search(number).is_err()).count();
    assert_eq!((missing(0..first), missing(1_000_000..1_000_000 + second)), (0, 0));
    println!("{first} + {second} spooled, {before} came before the second kill; {} came twice", came - all.len());
    assert!(all.len() as u64 >= first + second);
    thread::sleep(Duration::from_millis(1));
    stream.stop();
}
