//! Replicas that send over TCP: datagrams in flight are sent again when a connection, a lease or a
//! process ends.

use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
};

use sekiwake_traffic::sequence_of;

use super::*;

/// Identifies a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    stream: u64,
    sequence: u64,
}

/// A receiver of octet-counted syslog (RFC 6587 §3.4.1) that counts each number.
///
/// Not `syslog-ng` or a crate: it must report malformed frames, and read many connections at once.
#[derive(Clone, Default)]
struct StreamSink {
    /// How often each datagram arrived.
    counts: Arc<Mutex<HashMap<Key, u32>>>,
    received: Arc<AtomicU64>,
    malformed: Arc<AtomicU64>,
}

impl StreamSink {
    fn start(site: &TestSite) -> StreamSink {
        let listener = site.collectors.enter(|| TcpListener::bind(at(collector(0), 514))).unwrap().unwrap();
        let sink = StreamSink::default();
        let accepting = sink.clone();
        // The threads end with the test's process.
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let sink = accepting.clone();
                thread::spawn(move || sink.read(connection));
            }
        });
        sink
    }

    fn read(&self, connection: TcpStream) {
        let mut reader = BufReader::with_capacity(1 << 20, connection);
        let mut length = Vec::new();
        let mut message = Vec::new();
        loop {
            length.clear();
            match reader.read_until(b' ', &mut length) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let digits = length.strip_suffix(b" ").and_then(|digits| std::str::from_utf8(digits).ok());
            let Some(bytes) = digits.and_then(|digits| digits.parse::<usize>().ok()) else {
                // The end of a connection may truncate a length.
                self.malformed.fetch_add(u64::from(length.ends_with(b" ")), Relaxed);
                return;
            };
            message.resize(bytes, 0);
            if reader.read_exact(&mut message).is_err() {
                return;
            }
            match sequence_of(&message) {
                Some(number) => {
                    let key = Key { stream: number.stream(), sequence: number.sequence };
                    *self.counts.lock().unwrap().entry(key).or_default() += 1;
                    self.received.fetch_add(1, Relaxed);
                }
                None => {
                    self.malformed.fetch_add(1, Relaxed);
                }
            }
        }
    }

    fn distinct(&self) -> u64 {
        self.counts.lock().unwrap().len() as u64
    }

    fn flow_for(&self, time: Duration) {
        let end = Instant::now() + time;
        let before = self.received.load(Relaxed);
        wait_for("traffic", time + LONG, || Instant::now() >= end && self.received.load(Relaxed) > before).unwrap();
    }

    /// Waits for everything that was sent, and compares.
    fn completeness(&self, sent: u64) -> Completeness {
        let _ = wait_for("everything", LONG, || self.distinct() >= sent);
        assert_eq!(self.malformed.load(Relaxed), 0, "malformed frames");
        let distinct = self.distinct();
        Completeness { missing: sent - distinct, duplicates: self.received.load(Relaxed) - distinct }
    }
}

fn destination() -> String {
    format!("tcp://{}:514", collector(0))
}

#[test]
fn membership_changes_over_tcp_lose_nothing() {
    let Some(site) = site() else { return };
    let sink = StreamSink::start(&site);
    let spine = start_spine(&site, "512MiB");
    let mut members = Members::new(&site);
    members.start_to("default", &destination(), 2);
    members.wait_until_even();
    let load = Load::start(&site);
    sink.flow_for(Duration::from_secs(1));
    members.start_to("default", &destination(), 1);
    members.wait_until_even();
    sink.flow_for(Duration::from_secs(1));
    members.stop_first();
    members.wait_until_even();
    sink.flow_for(Duration::from_secs(1));
    members.kill_first();
    members.wait_for_shares(&[64]);
    sink.flow_for(Duration::from_secs(1));
    let sent = load.stop();
    let Completeness { missing, duplicates } = sink.completeness(sent);
    println!("{sent} sent, {missing} missing, {duplicates} duplicates");
    assert_eq!(missing, 0, "{}", members.log());
    members.stop();
    spine.stop().unwrap();
}

#[test]
fn paused_member_over_tcp_sends_no_shard_it_has_lost() {
    let Some(site) = site() else { return };
    let sink = StreamSink::start(&site);
    let spine = start_spine(&site, "512MiB");
    let mut members = Members::new(&site);
    members.start_to("default", &destination(), 2);
    members.wait_until_even();
    let load = Load::start(&site);
    sink.flow_for(Duration::from_secs(3));
    members.pause_first();
    let other_has_all = || owned_shards(&members.members[1]) == 64;
    wait_for("the other member to take over", LONG, other_has_all).unwrap();
    sink.flow_for(Duration::from_secs(1));
    members.resume_first();
    members.wait_until_even();
    sink.flow_for(Duration::from_secs(1));
    let sent = load.stop();
    let Completeness { missing, duplicates } = sink.completeness(sent);
    println!("{sent} sent, {missing} missing, {duplicates} duplicates");
    assert_eq!(missing, 0, "{}", members.log());
    // Datagrams that were written to its connection and not yet committed are sent again: half a
    // second's worth or a little more.
    assert!(duplicates <= 2 * RATE, "{duplicates} duplicates");
    members.stop();
    spine.stop().unwrap();
}

#[test]
fn shards_move_while_a_tcp_destination_never_reads() {
    let Some(site) = site() else { return };
    // The kernel accepts connections that no process reads.
    let _stalled = site.collectors.enter(|| TcpListener::bind(at(collector(1), 514))).unwrap().unwrap();
    let sink = large_sink(&site, 0);
    let spine = start_spine(&site, "512MiB");
    let destinations = format!("{} tcp://{}:514", syslog_to(0), collector(1));
    let mut members = Members::new(&site);
    members.start_to("default", &destinations, 1);
    members.wait_for_shares(&[64]);
    let load = Load::start(&site);
    flow_for(&sink, Duration::from_secs(4));
    members.start_to("default", &destinations, 1);
    members.wait_until_even();
    flow_for(&sink, Duration::from_secs(1));
    members.stop_first();
    members.wait_for_shares(&[64]);
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.stop();
    settle(&sink, sent);
    let log = members.log();
    members.stop();
    spine.stop().unwrap();
    let Completeness { missing, duplicates } = completeness(sink, sent);
    println!("{sent} sent, {missing} missing, {duplicates} duplicates");
    assert_eq!(missing, 0, "{log}");
    // Per move at most the datagrams that the stalled connection has not yet given up after 2 s.
    assert!(duplicates <= 2 * 2 * RATE, "{duplicates} duplicates\n{log}");
}
