//! Outages between the parties and the proxy, and rolling updates, under load.

mod site;
mod update;

use std::{
    fmt,
    time::{Duration, Instant},
};

use anyhow::ensure;
use sekiwake_testkit::wait::wait_for;
use sekiwake_traffic::sink::Sink;

use self::site::{Hosts, LONG, MOVED_ADDRESS, PROXY_ADDRESS, PROXY_NAME, Program};
pub use self::{
    site::OutageSite,
    update::{Part, Update, UpdateAccount},
};
use crate::Service;

/// Which connections an outage cuts off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// Leases, positions, repairs: port 5561.
    Control,
    /// Records: ports 5559 and 5560.
    Data,
    /// All three ports.
    Both,
}

/// The parties that are cut off from the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parties {
    /// One of the two members.
    Member,
    /// The capture.
    Capture,
    /// All of them.
    All,
}

/// One outage.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// The connections that are cut off.
    pub plane: Plane,
    /// The parties.
    pub parties: Parties,
    /// Its duration; with a restart, from the readiness of the new proxy.
    pub duration: Duration,
    /// Whether the proxy is killed and started again behind the outage.
    pub proxy_restart: bool,
    /// `SEKIWAKE_RETAIN` of the capture.
    pub retain: &'static str,
    /// Datagrams per second.
    pub rate: u64,
}

/// The fate of the datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// Datagrams that reached the capture's interface.
    pub sent: u64,
    /// Of these, never received by the collector.
    pub missing: u64,
    /// Received more than once.
    pub duplicates: u64,
    /// `sekiwake_bus_lost_records_total` of both members, all reasons but `unknown`.
    pub lost: u64,
    /// The same, reason `unknown`: an upper bound.
    pub unknown: u64,
    /// `sekiwake_bus_unpublished_records_total{reason="bus_full"}` of the capture.
    pub unpublished: u64,
    /// `sekiwake_forward_dropped_datagrams_total` of both members: they were too slow, as on a
    /// machine that is busy with something else.
    pub dropped: u64,
    /// From the end of the outage until the collector had everything that was sent before it.
    pub recovery: Duration,
}

impl Account {
    /// Datagrams that some counter reports as lost.
    #[must_use]
    pub fn counted(&self) -> u64 {
        self.lost + self.unknown
    }
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Outage { plane, parties, duration, proxy_restart, retain, rate } = self;
        let plane = format!("{plane:?}").to_lowercase();
        let parties = format!("{parties:?}").to_lowercase();
        let restart = if *proxy_restart { "restarted" } else { "" };
        write!(f, "{plane} | {parties} | {} s | {restart} | {retain} | {rate}", duration.as_secs())
    }
}

impl OutageSite {
    fn start_proxy(&self) -> anyhow::Result<Service<'_>> {
        let proxy = self.proxy_program().start()?;
        proxy.wait_until_ready()?;
        Ok(proxy)
    }

    /// Starts the capture and then the members, and waits until they are ready.
    fn start_clients(&self, host: &str, retain: &str) -> anyhow::Result<Vec<Service<'_>>> {
        let mut programs = vec![self.capture_program(host, retain)];
        programs.extend(self.member_programs(host));
        let services: Vec<Service<'_>> = programs.iter().map(Program::start).collect::<anyhow::Result<_>>()?;
        services.iter().try_for_each(Service::wait_until_ready)?;
        Ok(services)
    }

    /// The proxy's address begins to swallow packets, and `duration` later its name moves to
    /// another address, as when a Service finds a new endpoint. Returns the time from the move
    /// until traffic is back.
    ///
    /// # Errors
    /// When a service cannot be started, or traffic does not come back.
    pub fn move_proxy(&self, duration: Duration, rate: u64) -> anyhow::Result<Duration> {
        let parties = self.parties(Parties::All);
        let hosts = parties
            .iter()
            .map(|party| Hosts::new(&party.namespace, PROXY_ADDRESS))
            .collect::<anyhow::Result<Vec<Hosts>>>()?;
        let sink = self.sink()?;
        let mut proxy = self.start_proxy()?;
        let mut services = self.start_clients(PROXY_NAME, "1GiB")?;
        let mut load = self.start_load(rate)?;
        wait_for("traffic", LONG, || sink.received() > 2 * rate)?;
        parties.iter().try_for_each(|party| party.swallow())?;
        let end = Instant::now() + duration;
        wait_for("the end of the outage", duration + LONG, || Instant::now() >= end)?;
        let before = sink.received();
        hosts.iter().try_for_each(|hosts| hosts.set(MOVED_ADDRESS))?;
        let moved = Instant::now();
        wait_for("traffic after the move", LONG, || sink.received() > before)?;
        let recovery = moved.elapsed();
        load.terminate()?;
        ensure!(load.wait(LONG)?.success(), "sender: {}", load.stderr().join("\n"));
        services.iter_mut().try_for_each(Service::stop)?;
        proxy.stop()?;
        Ok(recovery)
    }

    /// Runs one outage under load, and returns the fate of the datagrams.
    ///
    /// # Errors
    /// When a service cannot be started, or traffic does not resume.
    pub fn run(&self, outage: &Outage) -> anyhow::Result<Account> {
        let sink = self.sink()?;
        let mut proxy = self.start_proxy()?;
        let mut services = self.start_clients(&PROXY_ADDRESS.to_string(), outage.retain)?;
        let shares = |services: &[Service<'_>]| -> Vec<u64> {
            services[1..].iter().map(|member| count(member, "sekiwake_group_owned_shards", &[])).collect()
        };
        wait_for("an even share", LONG, || shares(&services) == [32, 32])?;
        let mut load = self.start_load(outage.rate)?;
        wait_for("traffic", LONG, || sink.received() > 2 * outage.rate)?;

        self.filter("-A", outage.parties, outage.plane)?;
        if outage.proxy_restart {
            proxy.kill()?;
            proxy = self.start_proxy()?;
        }
        let end = Instant::now() + outage.duration;
        wait_for("the end of the outage", outage.duration + LONG, || Instant::now() >= end)?;
        self.filter("-D", outage.parties, outage.plane)?;
        let lifted = Instant::now();
        let before = claimed(&services[0]);
        let done = |sink: &Sink| {
            let report = sink.report();
            report.received - report.sequence.duplicates + counted(&services) >= before
        };
        // Uncounted lost datagrams never arrive: then the wait times out, and they show as missing.
        let _ = wait_for("the datagrams sent before its end", LONG, || done(&sink));
        let recovery = lifted.elapsed();
        wait_for("both members to own shards", LONG, || shares(&services) == [32, 32])?;

        load.terminate()?;
        ensure!(load.wait(LONG)?.success(), "sender: {}", load.stderr().join("\n"));
        let sent = claimed(&services[0]);
        let _ = wait_for("everything", LONG, || {
            let report = sink.report();
            report.received - report.sequence.duplicates + counted(&services) >= sent
        });
        sink.wait_for_silence(Duration::from_secs(1), LONG)?;
        let [lost, unknown] = members_lost(&services);
        let dropped = members_dropped(&services);
        let unpublished = count(&services[0], "sekiwake_bus_unpublished_records_total", &["reason=\"bus_full\""]);
        services.iter_mut().try_for_each(Service::stop)?;
        proxy.stop()?;
        let report = sink.finish();
        ensure!(report.dropped == Some(0), "the sink itself dropped datagrams");
        let duplicates = report.sequence.duplicates;
        let missing = sent.saturating_sub(report.received - duplicates);
        Ok(Account { sent, missing, duplicates, lost, unknown, unpublished, dropped, recovery })
    }
}

fn count(service: &Service<'_>, metric: &str, labels: &[&str]) -> u64 {
    service.metrics().map_or(0, |samples| samples.count(metric, labels))
}

/// Datagrams that the capture has put into batches.
fn claimed(capture: &Service<'_>) -> u64 {
    let labels = ["kind=\"syslog\""];
    let mut last = 0;
    // The counters are copied once per tick: two equal readings are a stable one.
    let _ = wait_for("a stable count", Duration::from_secs(5), || {
        let now = count(capture, "sekiwake_capture_claimed_datagrams_total", &labels);
        std::mem::replace(&mut last, now) == now
    });
    last
}

/// Records that the members count as lost: by all reasons but `unknown`, and by that one.
fn members_lost(services: &[Service<'_>]) -> [u64; 2] {
    let all: u64 = services[1..].iter().map(|member| count(member, "sekiwake_bus_lost_records_total", &[])).sum();
    let label = ["reason=\"unknown\""];
    let unknown: u64 =
        services[1..].iter().map(|member| count(member, "sekiwake_bus_lost_records_total", &label)).sum();
    [all - unknown, unknown]
}

fn members_dropped(services: &[Service<'_>]) -> u64 {
    services[1..].iter().map(|member| count(member, "sekiwake_forward_dropped_datagrams_total", &[])).sum()
}

/// Datagrams that the members count as lost, or as dropped.
fn counted(services: &[Service<'_>]) -> u64 {
    members_lost(services).iter().sum::<u64>() + members_dropped(services)
}
