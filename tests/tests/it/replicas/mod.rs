//! Replicas that share the work, and no loss while members, the proxy or capture stop and restart:
//! 10,000 numbered datagrams per second from 64 sources, which any machine can pass on.

mod changes;
mod copies;
mod limits;
mod loops;
mod reports;
mod status;
mod streams;
mod two_captures;

use std::{
    fmt,
    time::{Duration, Instant},
};

use sekiwake_testkit::{
    process::{Process, Signal},
    sink::{Options, Sink},
    wait::wait_for,
};
use sekiwake_tests::{MIRRORED, Service, Services, collector};

use crate::support::*;

/// Datagrams per second of [`LOAD`].
const RATE: u64 = 10_000;
const LOAD: &str = "--from 198.19.0.0/16 --sources 64 --size 200 --rate 10000";
/// How long an expired lease keeps a shard, and how long a new proxy grants no shards.
const LEASE: Duration = Duration::from_millis(3_500);

/// Capture, proxy and members of one group under load, and the collector that counts.
struct Scenario<'a> {
    sink: Sink,
    spine: Services<'a>,
    members: Members<'a>,
    load: Load<'a>,
}

/// The result of a scenario.
struct Outcome {
    sent: u64,
    missing: u64,
    duplicates: u64,
    /// Records that the members have counted as lost.
    lost: u64,
    log: String,
}

impl<'a> Scenario<'a> {
    /// Starts capture, proxy and members, waits for even shares, and starts the load.
    fn start(site: &'a TestSite, members: usize) -> Scenario<'a> {
        Scenario::with_load(site, members, LOAD)
    }

    /// The same with another load.
    fn with_load(site: &'a TestSite, members: usize, load: &str) -> Scenario<'a> {
        let sink = large_sink(site, 0);
        let spine = start_spine(site, "512MiB");
        let mut group = Members::new(site);
        group.start("default", 0, members);
        group.wait_until_even();
        let scenario = Scenario { sink, spine, members: group, load: Load::with(site, load) };
        scenario.flow_for(Duration::from_secs(1));
        scenario
    }

    /// Lets traffic flow for a while.
    fn flow_for(&self, time: Duration) {
        flow_for(&self.sink, time);
    }

    /// Kills the proxy and waits for its end.
    fn kill_proxy(&mut self) {
        self.spine.take(PROXY).kill().unwrap();
    }

    fn start_proxy(&mut self, site: &'a TestSite) {
        self.spine.add(site.start_one(PROXY, &[]));
    }

    /// Stops the load, waits until everything has arrived, stops all services, and compares.
    fn finish(self) -> Outcome {
        let sent = self.load.stop();
        settle(&self.sink, sent);
        let lost = self.members.sum("sekiwake_bus_lost_records_total");
        let log = self.members.log();
        self.members.stop();
        self.spine.stop().unwrap();
        let Completeness { missing, duplicates } = completeness(self.sink, sent);
        println!("{sent} sent, {missing} missing, {duplicates} duplicates");
        Outcome { sent, missing, duplicates, lost, log }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outcome { sent, missing, duplicates, lost, log } = self;
        write!(f, "{sent} sent, {missing} missing, {duplicates} duplicates, {lost} counted as lost\n{log}")
    }
}

/// Starts capture, with this much memory for retention, and the proxy.
fn start_spine<'a>(site: &'a TestSite, retention: &str) -> Services<'a> {
    site.disable_ipv6_on_the_wire();
    site.start(&[CAPTURE, PROXY], &[("SEKIWAKE_RETAIN", retention)])
}

/// Members of groups that forward syslog, each with its own admin port.
pub(crate) struct Members<'a> {
    site: &'a TestSite,
    pub(crate) members: Vec<Service<'a>>,
    started: u16,
    /// Further settings.
    more: Vec<(&'a str, &'a str)>,
}

impl<'a> Members<'a> {
    fn new(site: &'a TestSite) -> Members<'a> {
        Members::with(site, &[])
    }

    /// Members with further settings, such as the bus.
    pub(crate) fn with(site: &'a TestSite, more: &[(&'a str, &'a str)]) -> Members<'a> {
        Members { site, members: Vec::new(), started: 0, more: more.to_vec() }
    }

    /// Members of a second group, whose admin ports differ from those of the first.
    fn of_second_group(site: &'a TestSite) -> Members<'a> {
        Members { started: 50, ..Members::new(site) }
    }

    /// Starts `count` members of a group that forwards to collector `to`, without waiting for them.
    pub(crate) fn start(&mut self, group: &str, to: u8, count: usize) {
        self.start_to(group, &syslog_to(to), count);
    }

    /// Starts `count` members of a group that forwards to these destinations.
    fn start_to(&mut self, group: &str, destinations: &str, count: usize) {
        for _ in 0..count {
            self.started += 1;
            let admin = format!("127.0.0.1:{}", 9700 + self.started);
            let label = format!("m{}", self.started);
            let environment = [
                ("SEKIWAKE_SYSLOG_DESTINATIONS", destinations),
                ("SEKIWAKE_ADMIN", &admin),
                ("SEKIWAKE_GROUP", group),
                ("SEKIWAKE_MEMBER", &label),
            ];
            self.members.push(self.site.start_one(SYSLOG, &[&environment[..], &self.more].concat()));
        }
    }

    /// Stops the member that was started first.
    pub(crate) fn stop_first(&mut self) {
        self.members.remove(0).stop().unwrap();
    }

    /// Records that the members have counted as lost for this reason.
    pub(crate) fn lost(&self, reason: &str) -> u64 {
        let label = format!("reason=\"{reason}\"");
        let lost = |member: &Service<'_>| {
            member.metrics().map_or(0, |samples| samples.count("sekiwake_bus_lost_records_total", &[&label]))
        };
        self.members.iter().map(lost).sum()
    }

    /// Kills the member that was started first.
    pub(crate) fn kill_first(&mut self) {
        self.members.remove(0).kill().unwrap();
    }

    /// Suspends the member that was started first.
    pub(crate) fn pause_first(&self) {
        self.members[0].process.signal(Signal::STOP).unwrap();
    }

    pub(crate) fn resume_first(&self) {
        self.members[0].process.signal(Signal::CONT).unwrap();
    }

    /// Waits until the members own these numbers of shards, in the order in which they were
    /// started.
    fn wait_for_shares(&self, shares: &[u64]) {
        let owned = || -> Vec<u64> { self.members.iter().map(owned_shards).collect() };
        wait_for(&format!("shares of {shares:?}"), LONG, || owned() == shares)
            .unwrap_or_else(|late| panic!("{late}: {:?}\n{}", owned(), self.log()));
    }

    /// Waits until the members own all shards together, evenly to within one.
    pub(crate) fn wait_until_even(&self) {
        let members = self.members.len() as u64;
        let owned = || -> Vec<u64> { self.members.iter().map(owned_shards).collect() };
        let even = || {
            let shares = owned();
            shares.iter().sum::<u64>() == 64
                && shares.iter().all(|share| (64 / members..=64_u64.div_ceil(members)).contains(share))
        };
        wait_for("an even share", LONG, even).unwrap_or_else(|late| {
            let status: Vec<String> = self.members.iter().filter_map(|member| member.page("/status").ok()).collect();
            panic!("{late}: {:?}\n{}\n{}", owned(), status.join("\n"), self.log())
        });
    }

    pub(crate) fn sum(&self, metric: &str) -> u64 {
        self.members.iter().map(|member| member.metrics().map_or(0, |samples| samples.count(metric, &[]))).sum()
    }

    pub(crate) fn stop(mut self) {
        for member in &mut self.members {
            member.stop().unwrap();
        }
    }

    pub(crate) fn log(&self) -> String {
        self.members.iter().flat_map(|member| member.process.stderr()).collect::<Vec<_>>().join("\n")
    }
}

/// The number of shards that a member owns.
pub(crate) fn owned_shards(member: &Service<'_>) -> u64 {
    member.metrics().map_or(0, |samples| samples.count("sekiwake_group_owned_shards", &[]))
}

/// A sender that runs until it is stopped.
pub(crate) struct Load<'a> {
    site: &'a TestSite,
    sender: Process,
    /// Frames that the wire had dropped at the start.
    dropped_before: u64,
}

impl<'a> Load<'a> {
    pub(crate) fn start(site: &'a TestSite) -> Load<'a> {
        Load::with(site, LOAD)
    }

    fn with(site: &'a TestSite, load: &str) -> Load<'a> {
        let dropped_before = site.dropped_by_wire().unwrap();
        Load { site, sender: site.start_sender(&format!("--to {MIRRORED} {load}")), dropped_before }
    }

    /// Stops it, and returns the number of datagrams that were sent and not dropped by the wire.
    pub(crate) fn stop(mut self) -> u64 {
        self.sender.terminate().unwrap();
        let sent = sent_by(&mut self.sender);
        sent - (self.site.dropped_by_wire().unwrap() - self.dropped_before)
    }
}

/// Waits for this time.
pub(crate) fn pause_for(time: Duration) {
    let end = Instant::now() + time;
    wait_for("the end of a pause", time + LONG, || Instant::now() >= end).unwrap();
}

/// Lets traffic flow for this time, and until a datagram has arrived.
pub(crate) fn flow_for(sink: &Sink, time: Duration) {
    let end = Instant::now() + time;
    let before = sink.received();
    wait_for("traffic", time + LONG, || Instant::now() >= end && sink.received() > before).unwrap();
}

/// Waits until everything has arrived, or no more datagrams arrive.
pub(crate) fn settle(sink: &Sink, sent: u64) {
    settle_with_losses(sink, sent, || 0);
}

/// Waits until everything has arrived or is counted as lost, or no more datagrams arrive.
pub(crate) fn settle_with_losses(sink: &Sink, sent: u64, lost: impl Fn() -> u64) {
    if wait_for("everything", LONG, || sink.received() + lost() >= sent).is_err() {
        let _ = sink.wait_for_silence(Duration::from_secs(1), LONG);
    }
    // Duplicates may still arrive.
    let _ = sink.wait_for_silence(Duration::from_millis(500), LONG);
}

/// A sink with room for the burst of a member that catches up.
pub(crate) fn large_sink(site: &TestSite, number: u8) -> Sink {
    let options = Options { receive_buffer_bytes: 512 << 20, ..numbered() };
    site.sink(&[at(collector(number), 514)], options)
}

/// Missing and duplicate datagrams at a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Completeness {
    pub(crate) missing: u64,
    pub(crate) duplicates: u64,
}

/// Every datagram arrived once.
pub(crate) const COMPLETE: Completeness = Completeness { missing: 0, duplicates: 0 };

pub(crate) fn completeness(sink: Sink, sent: u64) -> Completeness {
    let report = sink.finish();
    assert_eq!(report.dropped, Some(0), "the sink itself was too slow");
    assert_eq!(report.sequence.unreadable, 0);
    let duplicates = report.sequence.duplicates;
    Completeness { missing: sent - (report.received - duplicates), duplicates }
}
