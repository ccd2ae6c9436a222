//! Replicas that share the work, and what must not be lost when they, the proxy or capture come and go: 50,000 datagrams a second
//! from 64 sources, a number in every one of them.

mod changes;
mod limits;
mod loops;
mod status;
mod streams;

use std::time::{Duration, Instant};

use sekiwake_testkit::{process::Process, sink::Sink, wait::wait_for};
use sekiwake_tests::{MIRRORED, Service, collector};

use crate::support::*;

/// What changes hands while it flows.
const LOAD: &str = "--from 198.19.0.0/16 --sources 64 --size 200 --rate 50000";
/// How long a lease that nobody renews keeps a shard, and how long a new proxy grants nothing.
const LEASE: Duration = Duration::from_millis(3_500);
/// How long catching up may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The members of groups that forward syslog, with admin ports of their own.
struct Members<'a> {
    site: &'a TestSite,
    members: Vec<Service<'a>>,
    started: u16,
}

impl<'a> Members<'a> {
    fn new(site: &'a TestSite) -> Members<'a> {
        Members { site, members: Vec::new(), started: 0 }
    }

    /// Starts so many members of a group that forwards to this collector; does not wait for them.
    fn start(&mut self, group: &str, to: u8, count: usize) {
        self.start_to(group, &syslog_to(to), count);
    }

    /// The same, of a group that forwards to these destinations.
    fn start_to(&mut self, group: &str, destinations: &str, count: usize) {
        for _ in 0..count {
            self.started += 1;
            let (admin, label) = (format!("127.0.0.1:{}", 9700 + self.started), format!("m{}", self.started));
            let environment = [
                ("SEKIWAKE_SYSLOG_DESTINATIONS", destinations.to_owned()),
                ("SEKIWAKE_ADMIN", admin),
                ("SEKIWAKE_GROUP", group.to_owned()),
                ("SEKIWAKE_MEMBER", label),
            ];
            let environment = environment.each_ref().map(|(name, value)| (*name, value.as_str()));
            self.members.push(self.site.start_one(SYSLOG, &environment));
        }
    }

    /// Waits until the members own these numbers of shards, in the order in which they were started.
    fn wait_for_shares(&self, shares: &[u64]) {
        let owned = || -> Vec<u64> { self.members.iter().map(owned_shards).collect() };
        wait_for(&format!("shares of {shares:?}"), PATIENCE, || owned() == shares).unwrap_or_else(|late| {
            let said: Vec<String> = self.members.iter().flat_map(|member| member.process.stderr()).collect();
            panic!("{late}: {:?}\n{}", owned(), said.join("\n"))
        });
    }

    /// Waits until all members together own all shards, evenly to within one.
    fn wait_until_even(&self) {
        let members = self.members.len() as u64;
        let even = || {
            let shares: Vec<u64> = self.members.iter().map(owned_shards).collect();
            shares.iter().sum::<u64>() == 64
                && shares.iter().all(|share| (64 / members..=64_u64.div_ceil(members)).contains(share))
        };
        wait_for("an even share", PATIENCE, even).unwrap();
    }

    fn sum(&self, metric: &str) -> u64 {
        self.members.iter().map(|member| member.metrics().map_or(0, |samples| samples.count(metric, &[]))).sum()
    }

    fn stop(mut self) {
        for member in &mut self.members {
            member.stop().unwrap();
        }
    }

    fn said(&self) -> String {
        self.members.iter().flat_map(|member| member.process.stderr()).collect::<Vec<_>>().join("\n")
    }
}

/// How many shards a member owns.
pub(crate) fn owned_shards(member: &Service<'_>) -> u64 {
    member.metrics().map_or(0, |samples| samples.count("sekiwake_group_owned_shards", &[]))
}

/// A sender that goes on until it is told to stop.
struct Load<'a> {
    site: &'a TestSite,
    sender: Process,
    /// Frames that the wire had dropped before.
    dropped_before: u64,
}

impl<'a> Load<'a> {
    fn start(site: &'a TestSite) -> Load<'a> {
        Load::of(site, LOAD)
    }

    fn of(site: &'a TestSite, load: &str) -> Load<'a> {
        let dropped_before = site.dropped_by_wire().unwrap();
        Load { site, sender: site.start_sender(&format!("--to {MIRRORED} {load}")), dropped_before }
    }

    /// Ends it, and gives the number of datagrams that it has sent and the wire has not dropped.
    fn end(mut self) -> u64 {
        self.sender.terminate().unwrap();
        let sent = sent_by(&mut self.sender);
        sent - (self.site.dropped_by_wire().unwrap() - self.dropped_before)
    }
}

/// Lets traffic flow for a while: the tests' subject is what happens in between.
fn flow_for(sink: &Sink, time: Duration) {
    let end = Instant::now() + time;
    let before = sink.received();
    wait_for("traffic", time + PATIENCE, || Instant::now() >= end && sink.received() > before).unwrap();
}

/// Waits until everything has arrived, or nothing more does.
fn settle(sink: &Sink, sent: u64) {
    if sink.wait_for(sent, PATIENCE).is_err() {
        let _ = sink.wait_for_silence(Duration::from_secs(1), PATIENCE);
    }
    // Doubled ones would come now.
    let _ = sink.wait_for_silence(Duration::from_millis(500), PATIENCE);
}

/// A sink that has room for what a member sends when it catches up.
fn patient_sink(site: &TestSite, number: u8) -> Sink {
    let options = sekiwake_testkit::sink::Options { receive_buffer_bytes: 512 << 20, ..numbered() };
    site.sink(&[at(collector(number), 514)], options)
}

/// What is missing at a sink, and what came twice.
fn judge(sink: Sink, sent: u64) -> (u64, u64) {
    let report = sink.finish();
    assert_eq!(report.dropped, Some(0), "the sink itself was too slow");
    assert_eq!(report.sequence.unreadable, 0);
    let distinct = report.received - report.sequence.doubled;
    (sent - distinct, report.sequence.doubled)
}
