//! `make demo`: the whole pipeline on one machine, in network namespaces, with live counts and a
//! final check.
//!
//! Devices send every protocol to an old collector, whose address is hard-coded in their
//! configuration. Sekiwake captures the datagrams on the wire and forwards each kind to two new
//! collectors. At the end the datagrams at the new collectors are compared, byte for byte, with
//! those at the old collector, and their number with that of the senders.

mod console;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::IsTerminal,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use clap::Parser;
use sekiwake_identify::snmp;
use sekiwake_record::Kind;
use sekiwake_testkit::{
    netns::requires_root_and_netns,
    process::Process,
    sink::{Options, Report, Sink},
    wait::wait_for,
};
use sekiwake_tests::{FORWARDERS, HOST, HOST_V6, Ledger, Service, Services, Site, WIRE, binary, collector, sent_by};

/// The destination ports of devices, by kind.
const PORTS: [(Kind, &[u16]); 3] =
    [(Kind::Syslog, &[514]), (Kind::Xflow, &[2055, 4739, 6343]), (Kind::SnmpTrap, &[162])];
/// The collectors' port of each kind.
const FORWARDED: [(Kind, u16); 3] = [(Kind::Syslog, 514), (Kind::Xflow, 2055), (Kind::SnmpTrap, 162)];

/// Time limit of waits.
const SETTLE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Parser)]
#[command(about = "The whole pipeline in network namespaces, with live counts and a final check")]
struct Arguments {
    /// How long the devices send, in seconds
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=40))]
    seconds: u64,
    /// Datagrams per second, over all devices and protocols
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u64).range(10..=50_000))]
    rate: u64,
    /// Show the console's page on http://127.0.0.1:9608, and go on until Ctrl-C
    #[arg(long)]
    console: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\ndemo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let Err(why) = requires_root_and_netns() {
        bail!("the demo requires root and network namespaces: {why}");
    }
    if arguments.console {
        return console::run(arguments);
    }
    let site = Site::new()?;
    let receivers = Receivers::start(&site)?;
    println!("devices ──wire──▶ old collector (unchanged)");
    println!("           └─ capture ─▶ proxy ─▶ forwarders ─▶ new collectors {} and {}", collector(0), collector(1));
    println!("                              ├─▶ storer ─▶ files, /search");
    println!("                              └─▶ anomaly-detector\n");
    let store = tempfile::tempdir()?;
    let mut services = start_services(&site, store.path(), &[])?;
    let mut senders = start_senders(&site, arguments)?;
    let mut display = Display::new();
    let started = Instant::now();
    let end = started + Duration::from_secs(arguments.seconds + 20);
    let replica_at = started + Duration::from_secs(arguments.seconds) / 3;
    let mut has_replica = false;
    while senders.iter_mut().any(|sender| sender.is_running().unwrap_or(false)) {
        ensure!(Instant::now() < end, "the senders did not stop in time");
        if !has_replica && Instant::now() >= replica_at {
            has_replica = true;
            services.add(start_replica(&site)?);
            display.print("second syslog forwarder started: each now forwards half of the sources");
        }
        display.show(&Ledger::read(&services)?, &receivers);
        std::thread::sleep(Duration::from_millis(500));
    }
    let sent = senders.iter_mut().map(|sender| sent_by(sender, SETTLE)).sum::<anyhow::Result<u64>>()?;
    // The final check reports datagrams still missing after this wait.
    let complete = |sink: &Sink| sink.received() >= sent;
    let _ = wait_for("everything to arrive", SETTLE, || receivers.all().all(complete));
    let published = |ledger: &Ledger| ledger.flow(Kind::Syslog).published;
    let stored = |ledger: &Ledger| ledger.storer.count("sekiwake_store_written_records_total", &[]);
    let _ = wait_for("syslog to be stored", SETTLE, || {
        Ledger::read(&services).is_ok_and(|ledger| stored(&ledger) >= published(&ledger))
    });
    let ledger = Ledger::read(&services)?;
    display.show(&ledger, &receivers);
    let found = services.get("sekiwake-storer").page("/search")?.lines().count() as u64;
    services.stop()?;
    let lost = ledger.lost_for_good();
    println!("records lost: {}", if lost.is_empty() { "none".to_owned() } else { lost.join(", ") });
    let kept = Kept { published: published(&ledger), found, counted: counted(&ledger) };
    receivers.check(sent, &ledger, &kept)
}

fn start_services<'a>(site: &'a Site, store: &Path, more: &[&str]) -> anyhow::Result<Services<'a>> {
    let to_both = |port: u16| format!("udp://{}:{port} udp://{}:{port}", collector(0), collector(1));
    let [syslog, xflow, trap] = FORWARDED.map(|(_, port)| to_both(port));
    let store = store.display().to_string();
    let environment = [
        ("SEKIWAKE_CAPTURE_INTERFACES", WIRE),
        ("SEKIWAKE_STORE_DIR", &store),
        ("SEKIWAKE_ANOMALY_INTERVAL", "1s"),
        ("SEKIWAKE_CONSOLE_STORERS", "127.0.0.1:9605"),
        ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
        ("SEKIWAKE_XFLOW_DESTINATIONS", &xflow),
        ("SEKIWAKE_TRAP_DESTINATIONS", &trap),
    ];
    let others = ["sekiwake-storer", "sekiwake-anomaly-detector"];
    let names =
        [&["sekiwake-capture", "sekiwake-proxy"][..], &FORWARDERS.map(|(_, name)| name), &others, more].concat();
    Services::start(&site.host, &names, &environment)
}

/// Starts a second replica of the syslog forwarder.
fn start_replica(site: &Site) -> anyhow::Result<Service<'_>> {
    let destinations = format!("udp://{0}:514 udp://{1}:514", collector(0), collector(1));
    let environment = [
        ("SEKIWAKE_SYSLOG_DESTINATIONS", destinations.as_str()),
        ("SEKIWAKE_ADMIN", "127.0.0.1:9702"),
        ("SEKIWAKE_MEMBER", "second"),
    ];
    let replica = Service::start(&site.host, FORWARDERS[0].1, &environment)?;
    wait_for("an answer of the replica", SETTLE, || replica.is_alive())?;
    Ok(replica)
}

/// A part of the traffic, sent by one process.
struct Part {
    to: IpAddr,
    from: &'static str,
    protocols: &'static str,
    sizes: &'static str,
    /// Share of the rate.
    percent: u64,
}

/// IPv4 and IPv6 devices, with some datagrams larger than a frame.
fn start_senders(site: &Site, arguments: &Arguments) -> anyhow::Result<Vec<Process>> {
    let duration = format!("{}s", arguments.seconds);
    let host = IpAddr::V4(HOST);
    let host_v6 = IpAddr::V6(HOST_V6);
    let parts = [
        Part { to: host, from: "198.19.0.0/16", protocols: "all", sizes: "120-1400", percent: 70 },
        Part { to: host_v6, from: "2001:db8:18:1::/64", protocols: "all", sizes: "120-1400", percent: 29 },
        Part { to: host, from: "198.19.0.32/27", protocols: "rfc5424", sizes: "5000,30000,65000", percent: 1 },
    ];
    parts
        .iter()
        .map(|Part { to, from, protocols, sizes, percent }| {
            let mut command = site.devices.command(binary("sekiwake-sender"));
            let rate = (arguments.rate * percent / 100).max(1).to_string();
            command.args(["--to", &to.to_string(), "--from", from, "--sources", "8", "--protocol", protocols]);
            command.args(["--size", sizes, "--rate", &rate, "--duration", &duration, "--json"]);
            Process::spawn(command)
        })
        .collect()
}

fn counted(ledger: &Ledger) -> u64 {
    ledger.detector.count("sekiwake_anomaly_counted_records_total", &[])
}

/// Syslog at the storer and the anomaly detector.
struct Kept {
    published: u64,
    /// Found by the storer's `/search`.
    found: u64,
    /// Counted by the anomaly detector.
    counted: u64,
}

impl Kept {
    fn faults(&self) -> Vec<String> {
        let Kept { published, found, counted } = *self;
        println!("syslog: {published} messages published, {found} found by the storer's /search, {counted} counted");
        let mut faults = Vec::new();
        if found != published {
            faults.push("the storer does not have all published messages".to_owned());
        }
        if counted != published {
            faults.push("the anomaly detector did not count all published messages".to_owned());
        }
        faults
    }
}

/// The old collector and the new ones.
struct Receivers {
    old: Sink,
    new: Vec<(u8, Sink)>,
}

/// Identifies a payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PayloadKey {
    kind: Kind,
    length: usize,
    hash: u128,
}

/// How often each payload arrived.
type Payloads = BTreeMap<PayloadKey, u64>;

impl Receivers {
    fn start(site: &Site) -> anyhow::Result<Receivers> {
        let both_families: [IpAddr; 2] = [HOST.into(), HOST_V6.into()];
        let ports = PORTS.iter().flat_map(|(_, ports)| ports.iter());
        let old: Vec<SocketAddr> =
            ports.flat_map(|&port| both_families.map(|address| SocketAddr::new(address, port))).collect();
        let old = site
            .host
            .enter(|| Sink::bind(&old, Options { hashed_as: Some(as_forwarded), ..Options::counts().hashes() }))??;
        let mut new = Vec::new();
        for number in 0..2 {
            let addresses = FORWARDED.map(|(_, port)| SocketAddr::new(collector(number).into(), port));
            new.push((number, site.collectors.enter(|| Sink::bind(&addresses, Options::counts().hashes()))??));
        }
        Ok(Receivers { old, new })
    }

    fn all(&self) -> impl Iterator<Item = &Sink> {
        std::iter::once(&self.old).chain(self.new.iter().map(|(_, sink)| sink))
    }

    /// Compares the collectors and prints the result.
    fn check(self, sent: u64, ledger: &Ledger, kept: &Kept) -> anyhow::Result<()> {
        let mut faults = kept.faults();
        let old = self.old.finish();
        if old.received != sent {
            faults.push(format!("the devices sent {sent} datagrams, the old collector received {}", old.received));
        }
        let expected = payloads(&old);
        for (number, sink) in self.new {
            let report = sink.finish();
            let got = payloads(&report);
            let missing: u64 =
                expected.iter().map(|(key, &n)| n.saturating_sub(got.get(key).copied().unwrap_or(0))).sum();
            let extra: u64 =
                got.iter().map(|(key, &n)| n.saturating_sub(expected.get(key).copied().unwrap_or(0))).sum();
            println!(
                "collector {}: {} datagrams, {missing} missing, {extra} duplicates or unknown",
                collector(number),
                report.received
            );
            if missing + extra > 0 {
                faults
                    .push(format!("collector {} did not receive the same datagrams as the old one", collector(number)));
            }
            if report.dropped.unwrap_or(0) > 0 {
                faults.push(format!("collector {}: its own socket dropped datagrams", collector(number)));
            }
        }
        faults.extend(ledger.losses());
        faults.extend(ledger.check().err().map(|error| format!("the loss ledger does not balance: {error}")));
        if faults.is_empty() {
            println!(
                "\nOK: all {sent} datagrams reached both new collectors unmodified (informs as traps), all syslog is stored and counted, nothing was lost, and the loss ledger balances"
            );
            return Ok(());
        }
        for fault in &faults {
            println!("  {fault}");
        }
        bail!("{} faults", faults.len())
    }
}

/// The form in which a datagram reaches the new collectors: unmodified, except that SNMPv2c informs
/// become traps.
fn as_forwarded(payload: &[u8]) -> Cow<'_, [u8]> {
    let Some(tag) = snmp::inform_tag(payload) else { return payload.into() };
    let mut trap = payload.to_vec();
    trap[tag] = snmp::SNMPV2_TRAP;
    trap.into()
}

fn payloads(report: &Report) -> Payloads {
    let mut payloads = Payloads::new();
    for (fingerprint, count) in &report.hashes {
        let kind =
            PORTS.iter().find(|(_, ports)| ports.contains(&fingerprint.port)).map_or(Kind::Syslog, |(kind, _)| *kind);
        *payloads.entry(PayloadKey { kind, length: fingerprint.length, hash: fingerprint.hash }).or_default() += count;
    }
    payloads
}

/// Live counts: a table that is redrawn on a terminal, or printed every 5 s otherwise.
struct Display {
    terminal: bool,
    lines: usize,
    last: Option<Instant>,
}

impl Display {
    fn new() -> Display {
        Display { terminal: std::io::stdout().is_terminal(), lines: 0, last: None }
    }

    /// Prints a line above the table.
    fn print(&mut self, line: &str) {
        println!("{}{line}\n", if self.terminal { "\x1b[K" } else { "" });
        self.lines = 0;
    }

    fn show(&mut self, ledger: &Ledger, receivers: &Receivers) {
        let now = Instant::now();
        if !self.terminal && self.last.is_some_and(|last| now - last < Duration::from_secs(5)) {
            return;
        }
        self.last = Some(now);
        let mut lines = vec![format!(
            "{:<9} {:>9} {:>9} {:>9} {:>9} {:>5}   {}",
            "kind", "captured", "published", "received", "forwarded", "lost", "by destination"
        )];
        for (kind, _) in FORWARDED {
            let flow = ledger.flow(kind);
            let forwarder = &ledger.forwarders[kind.index()];
            let sent = forwarder.nonzero("sekiwake_forward_sent_datagrams_total", &[]);
            let by_destination: Vec<String> = sent
                .iter()
                .map(|(text, count)| {
                    let name =
                        text.split("destination=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or("?");
                    format!("{} {count}", name.trim_start_matches("udp://"))
                })
                .collect();
            lines.push(format!(
                "{:<9} {:>9} {:>9} {:>9} {:>9} {:>5}   {}",
                kind.as_str(),
                flow.captured,
                flow.published,
                flow.received,
                flow.sent,
                flow.lost + flow.dropped,
                by_destination.join(", ")
            ));
        }
        let counts: Vec<String> = receivers.new.iter().map(|(_, sink)| sink.received().to_string()).collect();
        lines.push(format!("old collector {}, new collectors {}\n", receivers.old.received(), counts.join(" and ")));
        if self.terminal && self.lines > 0 {
            print!("\x1b[{}A", self.lines);
        }
        for line in &lines {
            println!("{}{line}", if self.terminal { "\x1b[K" } else { "" });
        }
        self.lines = lines.len() + 1;
    }
}
