//! Three NATS servers with real faults, under load, and the fate of every datagram.
//!
//! ```text
//!                    server 0   server 1   server 2      nats-server, one cluster
//!                           └───────┐ │ ┌───────┘
//!  devices ──wire── capture ──────── router ──────── member 0, 1, 2 ──── collector
//!                                                    three forwarders each
//! ```

mod site;

use std::{
    cell::Cell,
    fmt,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use sekiwake_testkit::{
    process::{Process, Signal},
    wait::{TimedOut, wait_for},
};
use sekiwake_traffic::sink::Sink;
use serde_json::json;

pub use self::site::ServersSite;
use self::site::{FORWARDERS, HEALTH, Party, SERVERS, StoredServer};
use crate::{
    Service, get,
    nats::{NatsServer, api},
};

/// Time limit of every wait.
const LONG: Duration = Duration::from_secs(180);
/// How often a condition is checked: it may ask every process.
const CHECK_EVERY: Duration = Duration::from_millis(50);
/// Members from the beginning.
const FIRST_MEMBERS: usize = 2;
/// What a server logs of a write that fails because the disk is full: the text of ENOSPC in Go.
const NO_ROOM: &str = "no space left on device";
/// The stream whose leader a fault hits.
const STREAM: &str = "SEKIWAKE_SYSLOG";

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The leader of a stream is killed, and started again.
    LeaderKilled,
    /// A server that does not lead that stream is killed, and started again.
    FollowerKilled,
    /// The leader of a stream is suspended (SIGSTOP), and goes on.
    LeaderSuspended,
    /// The leader of a stream is cut off from everything.
    LeaderCutOff,
    /// A member's host is cut off.
    MemberCutOff,
    /// The capture is cut off.
    CaptureCutOff,
    /// Two of three servers are killed, and started again.
    TwoKilled,
    /// All servers are killed at once, and started again.
    AllKilled,
    /// Each server is stopped with SIGTERM and started again, one after the other.
    RollingRestart,
    /// The disk of a stream's leader becomes full; later there is room again and the server is
    /// started again.
    FullDisk,
    /// A member is suspended, and goes on.
    MemberSuspended,
    /// A member is killed, and started again.
    MemberKilled,
    /// A member joins, one is killed and one is stopped while a stream has no leader.
    LeaderKilledAndMembersChanged,
}

impl Fault {
    /// All of them.
    pub const ALL: [Fault; 13] = [
        Fault::LeaderKilled,
        Fault::FollowerKilled,
        Fault::LeaderSuspended,
        Fault::LeaderCutOff,
        Fault::MemberCutOff,
        Fault::CaptureCutOff,
        Fault::TwoKilled,
        Fault::AllKilled,
        Fault::RollingRestart,
        Fault::FullDisk,
        Fault::MemberSuspended,
        Fault::MemberKilled,
        Fault::LeaderKilledAndMembersChanged,
    ];

    /// How many members may have handled records that no commit covers.
    #[must_use]
    pub fn members_hit(self) -> u64 {
        match self {
            Fault::MemberCutOff | Fault::MemberSuspended | Fault::MemberKilled => 1,
            Fault::LeaderKilledAndMembersChanged => 2,
            _ => 0,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fault::LeaderKilled => "leader killed",
            Fault::FollowerKilled => "another server killed",
            Fault::LeaderSuspended => "leader suspended",
            Fault::LeaderCutOff => "leader cut off",
            Fault::MemberCutOff => "member cut off",
            Fault::CaptureCutOff => "capture cut off",
            Fault::TwoKilled => "two of three servers killed",
            Fault::AllKilled => "all servers killed",
            Fault::RollingRestart => "servers restarted in turn",
            Fault::FullDisk => "disk of the leader full",
            Fault::MemberSuspended => "member suspended",
            Fault::MemberKilled => "member killed",
            Fault::LeaderKilledAndMembersChanged => "leader and a member killed, one stopped, one joined",
        })
    }
}

/// The fate of the datagrams.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultAccount {
    /// Datagrams that the capture has put into batches.
    pub sent: u64,
    /// Of these, never received by the collector.
    pub missing: u64,
    /// Received more than once.
    pub duplicates: u64,
    /// Received after a later one of the same source.
    pub out_of_order: u64,
    /// `sekiwake_bus_lost_records_total` of all members.
    pub lost: u64,
    /// `sekiwake_bus_unpublished_records_total` of the capture.
    pub unpublished: u64,
    /// `sekiwake_forward_dropped_datagrams_total` of all members. A later owner has sent them,
    /// unless they are missing.
    pub dropped: u64,
    /// The longest time without a datagram at the collector.
    pub silence: Duration,
    /// From the end of the fault until the collector had everything sent before it.
    pub recovery: Duration,
}

/// The forwarders of one host.
struct Member<'a> {
    host: usize,
    forwarders: Vec<Service<'a>>,
}

impl Member<'_> {
    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        self.forwarders.iter().try_for_each(|forwarder| forwarder.process.signal(signal))
    }

    fn kill(mut self) -> anyhow::Result<()> {
        self.signal(Signal::KILL)?;
        self.forwarders.iter_mut().try_for_each(Service::kill)
    }

    fn stop(mut self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)?;
        self.forwarders.iter_mut().try_for_each(Service::wait_for_end)
    }

    /// The shards of each kind that it owns.
    fn shares(&self) -> Vec<u64> {
        self.forwarders.iter().map(|forwarder| count(forwarder, "sekiwake_group_owned_shards")).collect()
    }
}

/// When datagrams arrived at the collector.
struct Arrivals {
    received: u64,
    changed_at: Instant,
    silence: Duration,
}

/// A site with everything that runs in it.
struct Running<'a> {
    site: &'a ServersSite,
    sink: Sink,
    arrivals: Arrivals,
    servers: Vec<StoredServer<'a>>,
    capture: Service<'a>,
    members: Vec<Member<'a>>,
    /// Counted by members that have ended.
    lost: u64,
    dropped: u64,
}

impl ServersSite {
    /// Lets a fault happen for this time under this load, datagrams per second, and returns the
    /// fate of the datagrams.
    ///
    /// # Errors
    /// A process cannot be started or stopped, or traffic does not resume.
    pub fn run(&self, fault: Fault, duration: Duration, rate: u64) -> anyhow::Result<FaultAccount> {
        let mut running = Running::start(self, fault == Fault::FullDisk)?;
        let load = self.start_load(rate)?;
        running.wait("traffic", |running| running.sink.received() > 2 * rate)?;
        let received = running.sink.received();
        running.arrivals = Arrivals { received, changed_at: Instant::now(), silence: Duration::ZERO };
        running.inflict(fault, duration).with_context(|| fault.to_string())?;
        let ended_at = Instant::now();
        let before = claimed(&running.capture);
        let everything = |running: &Running<'_>, sent: u64| {
            let report = running.sink.report();
            report.received - report.sequence.duplicates + running.lost() >= sent
        };
        // Uncounted lost datagrams never arrive: then the wait times out, and they show as missing.
        let _ = running.wait("the datagrams sent before its end", |running| everything(running, before));
        let recovery = ended_at.elapsed();
        running.wait("even shares", Running::is_even).with_context(|| running.log())?;
        let sent = running.stop(load, everything)?;
        running.finish(sent, recovery)
    }
}

impl<'a> Running<'a> {
    /// Starts everything, and waits until the members share the work.
    fn start(site: &'a ServersSite, on_small_disks: bool) -> anyhow::Result<Running<'a>> {
        let sink = site.sink()?;
        let servers =
            (0..SERVERS).map(|number| site.start_server(number, on_small_disks)).collect::<anyhow::Result<_>>()?;
        let arrivals = Arrivals { received: 0, changed_at: Instant::now(), silence: Duration::ZERO };
        let capture = site.start_capture()?;
        let members = (0..FIRST_MEMBERS)
            .map(|host| Ok(Member { host, forwarders: site.start_members(host)? }))
            .collect::<anyhow::Result<_>>()?;
        let mut running = Running { site, sink, arrivals, servers, capture, members, lost: 0, dropped: 0 };
        running.wait("a ready capture", |running| running.capture.is_ready()).with_context(|| running.log())?;
        running.wait("even shares", Running::is_even).with_context(|| running.log())?;
        Ok(running)
    }

    /// Waits for a condition, and notes meanwhile when datagrams arrive.
    fn wait(&mut self, what: &str, condition: impl Fn(&Running<'a>) -> bool) -> Result<(), TimedOut> {
        let mut check_at = Instant::now();
        wait_for(what, LONG, || {
            self.note_arrivals();
            let now = Instant::now();
            if now < check_at {
                return false;
            }
            check_at = now + CHECK_EVERY;
            condition(self)
        })
    }

    fn note_arrivals(&mut self) {
        let received = self.sink.received();
        let silence = self.arrivals.changed_at.elapsed();
        if received != self.arrivals.received {
            self.arrivals.silence = self.arrivals.silence.max(silence);
            self.arrivals.received = received;
            self.arrivals.changed_at = Instant::now();
        }
    }

    fn pause(&mut self, time: Duration) -> anyhow::Result<()> {
        let end = Instant::now() + time;
        Ok(self.wait("the end of a pause", |_| Instant::now() >= end)?)
    }

    /// Whether the members share the shards of every kind evenly, to within one.
    fn is_even(&self) -> bool {
        let members = self.members.len() as u64;
        let shares: Vec<Vec<u64>> = self.members.iter().map(Member::shares).collect();
        (0..FORWARDERS.len()).all(|kind| {
            let of_kind = || shares.iter().map(|shares| shares[kind]);
            of_kind().sum::<u64>() == 64
                && of_kind().all(|share| (64 / members..=64_u64.div_ceil(members)).contains(&share))
        })
    }

    /// The number of the server that leads the stream.
    fn leader(&mut self) -> anyhow::Result<usize> {
        let found = Cell::new(None);
        self.wait("a leader", |running| {
            found.set(running.site.servers.iter().find_map(leader_known_by));
            found.get().is_some()
        })?;
        found.get().with_context(|| format!("no leader of {STREAM}"))
    }

    fn server(&mut self, number: usize) -> &mut NatsServer<'a> {
        &mut self.servers[number].server
    }

    /// Waits until a server says that it is well: it has caught up with the others.
    fn wait_until_healthy(&mut self, number: usize) -> anyhow::Result<()> {
        let namespace = &self.site.servers[number].namespace;
        let is_healthy = || namespace.enter(|| get(HEALTH, "/healthz")).is_ok_and(|answer| answer.is_ok());
        self.wait("a healthy server", |_| is_healthy())
            .with_context(|| self.servers[number].server.process.stderr().join("\n"))
    }

    /// Whether a write to the disk of a server has failed for lack of room.
    fn has_no_room(&self, number: usize) -> bool {
        self.servers[number].server.process.stderr().iter().any(|line| line.contains(NO_ROOM))
    }

    /// Kills these servers at once, and starts them again after this time.
    fn kill_servers(&mut self, numbers: &[usize], away: Duration) -> anyhow::Result<()> {
        for &number in numbers {
            self.server(number).process.signal(Signal::KILL)?;
        }
        for &number in numbers {
            self.server(number).kill()?;
        }
        self.pause(away)?;
        numbers.iter().try_for_each(|&number| self.server(number).start_again())
    }

    /// Cuts off a host for this time.
    fn cut_off(&mut self, party: &Party, away: Duration) -> anyhow::Result<()> {
        self.site.cut("-I", party)?;
        self.pause(away)?;
        self.site.cut("-D", party)
    }

    /// Removes a member, and remembers what it has counted.
    fn take_member(&mut self, index: usize) -> Member<'a> {
        let member = self.members.remove(index);
        self.lost += members_count(std::slice::from_ref(&member), LOST);
        self.dropped += members_count(std::slice::from_ref(&member), DROPPED);
        member
    }

    fn add_member(&mut self, host: usize) -> anyhow::Result<()> {
        let forwarders = self.site.start_members(host)?;
        self.members.push(Member { host, forwarders });
        Ok(())
    }

    /// Lets the fault happen, and ends it.
    fn inflict(&mut self, fault: Fault, duration: Duration) -> anyhow::Result<()> {
        let site = self.site;
        let leader = self.leader()?;
        let other = (leader + 1) % SERVERS;
        match fault {
            Fault::LeaderKilled => self.kill_servers(&[leader], duration),
            Fault::FollowerKilled => self.kill_servers(&[other], duration),
            Fault::TwoKilled => self.kill_servers(&[leader, other], duration),
            Fault::AllKilled => self.kill_servers(&[0, 1, 2], duration),
            Fault::LeaderSuspended => {
                self.server(leader).process.signal(Signal::STOP)?;
                self.pause(duration)?;
                self.server(leader).process.signal(Signal::CONT)
            }
            Fault::LeaderCutOff => self.cut_off(&site.servers[leader], duration),
            Fault::MemberCutOff => self.cut_off(&site.members[0], duration),
            Fault::CaptureCutOff => self.cut_off(&site.capture, duration),
            Fault::RollingRestart => {
                for number in 0..SERVERS {
                    self.server(number).stop()?;
                    self.server(number).start_again()?;
                    self.wait_until_healthy(number)?;
                }
                Ok(())
            }
            Fault::FullDisk => {
                self.servers[leader].disk.as_ref().context("a small disk")?.fill()?;
                self.pause(duration)?;
                // Otherwise this was no fault.
                self.wait("a server without room on its disk", |running| running.has_no_room(leader))
                    .with_context(|| self.servers[leader].server.process.stderr().join("\n"))?;
                self.servers[leader].disk.as_ref().context("a small disk")?.free()?;
                self.server(leader).stop()?;
                self.server(leader).start_again()
            }
            Fault::MemberSuspended => {
                self.members[0].signal(Signal::STOP)?;
                self.pause(duration)?;
                self.members[0].signal(Signal::CONT)
            }
            Fault::MemberKilled => {
                let member = self.take_member(0);
                let host = member.host;
                member.kill()?;
                self.pause(duration)?;
                self.add_member(host)
            }
            Fault::LeaderKilledAndMembersChanged => {
                self.server(leader).kill()?;
                self.add_member(FIRST_MEMBERS)?;
                let killed = self.take_member(0);
                let host = killed.host;
                killed.kill()?;
                self.pause(duration)?;
                self.server(leader).start_again()?;
                let stopped = self.take_member(0);
                stopped.stop()?;
                self.add_member(host)
            }
        }
    }

    fn lost(&self) -> u64 {
        self.lost + members_count(&self.members, LOST)
    }

    /// Ends the load, and waits until everything has arrived. Returns the number of datagrams.
    fn stop(&mut self, mut load: Process, everything: impl Fn(&Running<'_>, u64) -> bool) -> anyhow::Result<u64> {
        load.terminate()?;
        ensure!(load.wait(LONG)?.success(), "sender: {}", load.stderr().join("\n"));
        let sent = claimed(&self.capture);
        let _ = self.wait("everything", |running| everything(running, sent));
        self.sink.wait_for_silence(Duration::from_secs(1), LONG)?;
        Ok(sent)
    }

    /// Stops everything, and counts.
    fn finish(mut self, sent: u64, recovery: Duration) -> anyhow::Result<FaultAccount> {
        let lost = self.lost();
        let dropped = self.dropped + members_count(&self.members, DROPPED);
        let unpublished = count(&self.capture, "sekiwake_bus_unpublished_records_total");
        self.capture.stop()?;
        for member in self.members {
            member.stop()?;
        }
        let report = self.sink.finish();
        ensure!(report.dropped == Some(0), "the sink itself dropped datagrams");
        ensure!(report.sequence.unreadable == 0, "{} datagrams have no number", report.sequence.unreadable);
        let duplicates = report.sequence.duplicates;
        Ok(FaultAccount {
            sent,
            missing: sent.saturating_sub(report.received - duplicates),
            duplicates,
            out_of_order: report.sequence.out_of_order,
            lost,
            unpublished,
            dropped,
            silence: self.arrivals.silence,
            recovery,
        })
    }

    /// What all of them said last, for a failure.
    fn log(&self) -> String {
        let services = self.members.iter().flat_map(|member| &member.forwarders).chain([&self.capture]);
        let services = services.map(|service| (&*service.name, &service.process));
        let servers = self.servers.iter().map(|server| ("nats-server", &server.server.process));
        let mut text = String::new();
        for (name, process) in services.chain(servers) {
            let lines = process.stderr();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            text += &format!("{name}:\n{last}\n");
        }
        text
    }
}

/// The number of the server that leads the stream, as this one says.
fn leader_known_by(server: &Party) -> Option<usize> {
    let at = (server.address, 4222).into();
    let answer = api(&server.namespace, at, &format!("STREAM.INFO.{STREAM}"), &json!({})).ok()?;
    answer["cluster"]["leader"].as_str()?.strip_prefix('n')?.parse().ok()
}

const LOST: &str = "sekiwake_bus_lost_records_total";
const DROPPED: &str = "sekiwake_forward_dropped_datagrams_total";

fn members_count(members: &[Member<'_>], metric: &str) -> u64 {
    members.iter().flat_map(|member| &member.forwarders).map(|forwarder| count(forwarder, metric)).sum()
}

fn count(service: &Service<'_>, metric: &str) -> u64 {
    service.metrics().map_or(0, |samples| samples.count(metric, &[]))
}

/// Datagrams that the capture has put into batches.
fn claimed(capture: &Service<'_>) -> u64 {
    let mut last = 0;
    // The counters are copied once per tick: two equal readings are a stable one.
    let _ = wait_for("a stable count", Duration::from_secs(5), || {
        let now = count(capture, "sekiwake_capture_claimed_datagrams_total");
        std::mem::replace(&mut last, now) == now
    });
    last
}
