//! A rolling update of proxy, members and capture from another version, and the way back, under
//! load.

use std::{
    fmt,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::ensure;
use sekiwake_testkit::{
    process::{Process, Signal},
    wait::wait_for,
};

use super::{
    OutageSite,
    site::{LONG, PROXY_ADDRESS, Program},
};
use crate::Service;

/// How long a part is away: longer than a member waits for an answer, so that others take over.
const AWAY: Duration = Duration::from_secs(3);

/// What is replaced in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The proxy.
    Proxy,
    /// One of the two members.
    Member(usize),
    /// The capture.
    Capture,
}

/// A rolling update: each part is stopped with SIGTERM and started from the other version, in this
/// order, and then back in the same order.
#[derive(Clone, Debug)]
pub struct Update {
    /// The order.
    pub order: Vec<Part>,
    /// Datagrams per second.
    pub rate: u64,
}

impl Update {
    /// Every order of the parts. The members are alike.
    #[must_use]
    pub fn orders(rate: u64) -> Vec<Update> {
        fn extend(order: &[Part], left: &[Part], orders: &mut Vec<Vec<Part>>) {
            if left.is_empty() {
                orders.push(order.to_vec());
            }
            for (index, &part) in left.iter().enumerate() {
                if part == Part::Member(1) && !order.contains(&Part::Member(0)) {
                    continue;
                }
                let rest = [&left[..index], &left[index + 1..]].concat();
                extend(&[order, &[part]].concat(), &rest, orders);
            }
        }
        let mut orders = Vec::new();
        extend(&[], &[Part::Proxy, Part::Member(0), Part::Member(1), Part::Capture], &mut orders);
        orders.into_iter().map(|order| Update { order, rate }).collect()
    }
}

impl fmt::Display for Update {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |part: &Part| match part {
            Part::Proxy => "proxy",
            Part::Member(_) => "member",
            Part::Capture => "capture",
        };
        let names: Vec<&str> = self.order.iter().map(name).collect();
        write!(f, "{} | {}", names.join(", "), self.rate)
    }
}

/// The fate of the datagrams of an update.
#[derive(Clone, Copy, Debug, Default)]
pub struct UpdateAccount {
    /// Datagrams sent.
    pub sent: u64,
    /// Of these, never received by the collector.
    pub missing: u64,
    /// Received more than once.
    pub duplicates: u64,
    /// Counted as lost, for any reason, on the way to this version.
    pub counted_there: u64,
    /// Counted as lost, for any reason, on the way back.
    pub counted_back: u64,
    /// Of these, with the reason `unknown`, or what that was called.
    pub unknown_back: u64,
    /// The slowest step, from SIGTERM until traffic is back.
    pub slowest: Duration,
}

/// The running services, and what those that were stopped had counted.
struct Running<'a> {
    programs: Vec<Program<'a>>,
    /// The proxy, the capture, the members.
    services: Vec<Service<'a>>,
    counted: Counted,
    /// The log lines of stopped services about losses.
    losses: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counted {
    lost: u64,
    unknown: u64,
    /// Packets dropped before the capture.
    dropped: u64,
}

impl Counted {
    fn of(service: &Service<'_>) -> Option<Counted> {
        let samples = service.metrics().ok()?;
        let lost = "sekiwake_bus_lost_records_total";
        // Its name in the version before.
        let unknown = ["reason=\"unknown\"", "reason=\"not_located\""].map(|label| samples.count(lost, &[label]));
        let unknown = unknown.iter().sum();
        Some(Counted {
            lost: samples.count(lost, &[]) - unknown,
            unknown,
            dropped: samples.count("sekiwake_capture_dropped_packets_total", &[]),
        })
    }

    fn all(self) -> u64 {
        self.lost + self.unknown
    }

    fn add(&mut self, other: Counted) {
        self.lost += other.lost;
        self.unknown += other.unknown;
        self.dropped += other.dropped;
    }
}

impl Running<'_> {
    /// Stops a service, and starts it from the directory, or from this version's.
    fn replace(&mut self, index: usize, directory: Option<&Path>) -> anyhow::Result<()> {
        let service = &mut self.services[index];
        let mut last = Counted::of(service).unwrap_or_default();
        service.process.terminate()?;
        // It counts until it ends.
        wait_for("the end of a service", LONG, || {
            last = Counted::of(service).unwrap_or(last);
            !service.process.is_running().unwrap_or(true)
        })?;
        service.wait_for_end()?;
        self.counted.add(last);
        self.losses.extend(losses(service));
        wait_until(Instant::now() + AWAY)?;
        let program = &self.programs[index];
        self.services[index] = match directory {
            Some(directory) => program.start_from(directory)?,
            None => program.start()?,
        };
        self.services[index].wait_until_ready()
    }

    fn counted(&self) -> Counted {
        let mut counted = self.counted;
        self.services.iter().filter_map(Counted::of).for_each(|more| counted.add(more));
        counted
    }
}

impl OutageSite {
    /// Runs a rolling update from the version in `old` to this one and back, under load.
    ///
    /// The load pauses while there is no capture, because nothing else would see what passes.
    ///
    /// # Errors
    /// When a service cannot be started or stopped, or traffic does not resume.
    pub fn update(&self, update: &Update, old: &Path) -> anyhow::Result<UpdateAccount> {
        let sink = self.sink()?;
        let host = PROXY_ADDRESS.to_string();
        let mut programs = vec![self.proxy_program(), self.capture_program(&host, "1GiB")];
        programs.extend(self.member_programs(&host));
        let services = programs.iter().map(|program| program.start_from(old)).collect::<anyhow::Result<Vec<_>>>()?;
        services.iter().try_for_each(Service::wait_until_ready)?;
        let mut running = Running { programs, services, counted: Counted::default(), losses: Vec::new() };
        let mut load = self.start_load(update.rate)?;
        wait_for("traffic", LONG, || sink.received() > 2 * update.rate)?;
        let mut slowest = Duration::ZERO;
        let mut there = Counted::default();
        for directory in [None, Some(old)] {
            there = running.counted();
            for &part in &update.order {
                let started = Instant::now();
                match part {
                    Part::Proxy => running.replace(0, directory)?,
                    Part::Member(number) => running.replace(2 + number, directory)?,
                    Part::Capture => {
                        load.signal(Signal::STOP)?;
                        running.replace(1, directory)?;
                        load.signal(Signal::CONT)?;
                    }
                }
                let before = sink.received();
                wait_for("traffic after the update", LONG, || sink.received() > before + update.rate)?;
                slowest = slowest.max(started.elapsed());
            }
            // What nobody answers for is counted by then.
            wait_until(Instant::now() + AWAY)?;
        }
        let sent = sent(&mut load)?;
        let _ = wait_for("everything", LONG, || {
            let report = sink.report();
            report.received - report.sequence.duplicates >= sent
        });
        sink.wait_for_silence(Duration::from_secs(1), LONG)?;
        let all = running.counted();
        ensure!(all.dropped == 0, "the kernel dropped {} packets before the capture", all.dropped);
        let Running { mut services, losses: lines, .. } = running;
        for line in lines.into_iter().chain(services.iter().flat_map(losses)) {
            eprintln!("{update}: {line}");
        }
        services.iter_mut().rev().try_for_each(Service::stop)?;
        let report = sink.finish();
        ensure!(report.dropped == Some(0), "the sink itself dropped datagrams");
        let duplicates = report.sequence.duplicates;
        Ok(UpdateAccount {
            sent,
            missing: sent.saturating_sub(report.received - duplicates),
            duplicates,
            counted_there: there.all(),
            counted_back: all.all() - there.all(),
            unknown_back: all.unknown - there.unknown,
            slowest,
        })
    }
}

/// The log lines about losses.
fn losses(service: &Service<'_>) -> Vec<String> {
    let lines = service.process.stderr();
    lines.into_iter().filter(|line| line.contains("lost for this group")).collect()
}

fn wait_until(end: Instant) -> anyhow::Result<()> {
    Ok(wait_for("the end of a pause", LONG, || Instant::now() >= end)?)
}

/// Ends the load. Returns how many datagrams it has sent.
fn sent(load: &mut Process) -> anyhow::Result<u64> {
    load.terminate()?;
    ensure!(load.wait(LONG)?.success(), "sender: {}", load.stderr().join("\n"));
    let line = load.stdout().pop().unwrap_or_default();
    let summary: serde_json::Value = serde_json::from_str(&line)?;
    summary["sent"].as_u64().ok_or_else(|| anyhow::anyhow!("no number of datagrams in {line:?}"))
}
