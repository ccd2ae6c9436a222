//! Replicas that send over TCP: what a connection, a lease or a process takes along is sent again, and never missing.

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

use sekiwake_sender::sequence_of;
use sekiwake_testkit::process::Signal;

use super::*;

/// 10,000 a second: one reader and one thread a member are on the same two cores.
const SLOWER_LOAD: &str = "--from 198.19.0.0/16 --sources 64 --size 200 --rate 10000";

/// A receiver of octet-counted syslog that knows which numbers came, and how often.
#[derive(Clone, Default)]
struct StreamSink {
    numbers: Arc<Mutex<HashMap<(u64, u64), u32>>>,
    received: Arc<AtomicU64>,
    broken: Arc<AtomicU64>,
}

impl StreamSink {
    fn start(site: &TestSite) -> StreamSink {
        let listener = site.collectors.enter(|| TcpListener::bind(at(collector(0), 514))).unwrap().unwrap();
        let sink = StreamSink::default();
        let accepting = sink.clone();
        // It ends with the test's process, as its connections' threads do with their peers.
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
        let (mut length, mut message) = (Vec::new(), Vec::new());
        loop {
            length.clear();
            match reader.read_until(b' ', &mut length) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let digits = length.strip_suffix(b" ").and_then(|digits| std::str::from_utf8(digits).ok());
            let Some(bytes) = digits.and_then(|digits| digits.parse::<usize>().ok()) else {
                // The end of a connection may cut a length.
                self.broken.fetch_add(u64::from(length.ends_with(b" ")), Relaxed);
                return;
            };
            message.resize(bytes, 0);
            if reader.read_exact(&mut message).is_err() {
                return;
            }
            match sequence_of(&message) {
                Some(number) => {
                    *self.numbers.lock().unwrap().entry((number.stream(), number.sequence)).or_default() += 1;
                    self.received.fetch_add(1, Relaxed);
                }
                None => {
                    self.broken.fetch_add(1, Relaxed);
                }
            }
        }
    }

    fn distinct(&self) -> u64 {
        self.numbers.lock().unwrap().len() as u64
    }

    fn flow_for(&self, time: Duration) {
        let (end, before) = (Instant::now() + time, self.received.load(Relaxed));
        wait_for("traffic", time + PATIENCE, || Instant::now() >= end && self.received.load(Relaxed) > before).unwrap();
    }

    /// Waits for all that was sent; gives what is missing and what came twice.
    fn judge(&self, sent: u64) -> (u64, u64) {
        let _ = wait_for("everything", PATIENCE, || self.distinct() >= sent);
        assert_eq!(self.broken.load(Relaxed), 0, "frames that are none");
        (sent - self.distinct(), self.received.load(Relaxed) - self.distinct())
    }
}

fn destination() -> String {
    format!("tcp://{}:514", collector(0))
}

#[test]
fn over_tcp_nothing_is_missing_when_members_come_go_and_are_killed() {
    let Some(site) = site("over_tcp_nothing_is_missing_when_members_come_go_and_are_killed") else { return };
    site.switch_ipv6_off_on_the_wire();
    let sink = StreamSink::start(&site);
    let spine = site.start(&[CAPTURE, PROXY], &[("SEKIWAKE_RETAIN", "512MiB")]);
    let mut members = Members::new(&site);
    members.start_to("default", &destination(), 2);
    members.wait_until_even();
    let load = Load::of(&site, SLOWER_LOAD);
    sink.flow_for(Duration::from_secs(1));
    members.start_to("default", &destination(), 1);
    members.wait_until_even();
    sink.flow_for(Duration::from_secs(1));
    members.members.remove(0).stop().unwrap();
    members.wait_until_even();
    sink.flow_for(Duration::from_secs(1));
    let mut victim = members.members.remove(0);
    victim.process.signal(Signal::KILL).unwrap();
    victim.process.wait(LONG).unwrap();
    members.wait_for_shares(&[64]);
    sink.flow_for(Duration::from_secs(1));
    let sent = load.end();
    let (missing, doubled) = sink.judge(sent);
    println!("of {sent} {missing} missing, {doubled} doubled");
    assert_eq!(missing, 0, "{}", members.said());
    members.stop();
    spine.stop().unwrap();
}

#[test]
fn over_tcp_a_member_that_was_stopped_sends_nothing_of_what_is_no_longer_its_own() {
    let Some(site) = site("over_tcp_a_member_that_was_stopped_sends_nothing_of_what_is_no_longer_its_own") else {
        return;
    };
    site.switch_ipv6_off_on_the_wire();
    let sink = StreamSink::start(&site);
    let spine = site.start(&[CAPTURE, PROXY], &[("SEKIWAKE_RETAIN", "512MiB")]);
    let mut members = Members::new(&site);
    members.start_to("default", &destination(), 2);
    members.wait_until_even();
    let load = Load::of(&site, SLOWER_LOAD);
    sink.flow_for(Duration::from_secs(1));
    members.members[0].process.signal(Signal::STOP).unwrap();
    let other_has_all = || owned_shards(&members.members[1]) == 64;
    wait_for("the other to take over", PATIENCE, other_has_all).unwrap();
    sink.flow_for(Duration::from_secs(1));
    members.members[0].process.signal(Signal::CONT).unwrap();
    members.wait_until_even();
    sink.flow_for(Duration::from_secs(1));
    let sent = load.end();
    let (missing, doubled) = sink.judge(sent);
    println!("of {sent} {missing} missing, {doubled} doubled");
    assert_eq!(missing, 0, "{}", members.said());
    // What it had given to its connection and not committed before it stopped comes twice, and half a second's worth at most.
    assert!(doubled <= 10_000, "{doubled}");
    members.stop();
    spine.stop().unwrap();
}

#[test]
fn a_tcp_destination_that_never_reads_keeps_no_shard_from_moving_and_costs_the_other_nothing() {
    let test = "a_tcp_destination_that_never_reads_keeps_no_shard_from_moving_and_costs_the_other_nothing";
    let Some(site) = site(test) else { return };
    site.switch_ipv6_off_on_the_wire();
    // The kernel takes connections, and nobody takes what comes.
    let _stalled = site.collectors.enter(|| TcpListener::bind(at(collector(1), 514))).unwrap().unwrap();
    let sink = patient_sink(&site, 0);
    let spine = site.start(&[CAPTURE, PROXY], &[("SEKIWAKE_RETAIN", "512MiB")]);
    let destinations = format!("{} tcp://{}:514", syslog_to(0), collector(1));
    let mut members = Members::new(&site);
    members.start_to("default", &destinations, 1);
    members.wait_for_shares(&[64]);
    let load = Load::of(&site, SLOWER_LOAD);
    flow_for(&sink, Duration::from_secs(4));
    members.start_to("default", &destinations, 1);
    members.wait_until_even();
    flow_for(&sink, Duration::from_secs(1));
    members.members.remove(0).stop().unwrap();
    members.wait_for_shares(&[64]);
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.end();
    settle(&sink, sent);
    let said = members.said();
    members.stop();
    spine.stop().unwrap();
    assert_eq!(judge(sink, sent), (0, 0), "missing and doubled of {sent}\n{said}");
}
