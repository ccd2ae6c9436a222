//! `make demo`: the whole pipeline on one machine, in network namespaces, with live counts and a verdict.
//!
//! Devices send every protocol to an old collector, whose address they have always had. Sekiwake captures what passes on the
//! wire and forwards each kind to two new collectors. At the end what these received is compared, byte for byte, with what
//! the old collector received, and with what the senders say they sent.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::IsTerminal,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use clap::Parser;
use sekiwake_identify::snmp;
use sekiwake_record::Kind;
use sekiwake_testkit::{
    netns::requires_root_and_netns,
    process::Process,
    sink::{Options, Report, Sink},
    wait::wait_for,
};
use sekiwake_tests::{FORWARDERS, HOST, HOST_V6, Ledger, Service, Services, Site, WIRE, binary, collector};

/// The ports that devices send to, by kind.
const PORTS: [(Kind, &[u16]); 3] =
    [(Kind::Syslog, &[514]), (Kind::Xflow, &[2055, 4739, 6343]), (Kind::SnmpTrap, &[162])];
/// The port that each kind is forwarded to.
const FORWARDED: [(Kind, u16); 3] = [(Kind::Syslog, 514), (Kind::Xflow, 2055), (Kind::SnmpTrap, 162)];

#[derive(Parser)]
#[command(about = "The whole pipeline in network namespaces, with live counts and a verdict")]
struct Arguments {
    /// How long the devices send, seconds
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=40))]
    seconds: u64,
    /// Datagrams a second, over all devices and protocols
    #[arg(long, default_value_t = 6000, value_parser = clap::value_parser!(u64).range(10..=50_000))]
    rate: u64,
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
        bail!("the demo needs root and network namespaces: {why}");
    }
    let site = Site::new()?;
    let receivers = Receivers::start(&site)?;
    println!("devices ──wire──▶ old collector (listens as ever)");
    println!("           └─ capture ─▶ proxy ─▶ forwarders ─▶ new collectors {} and {}", collector(0), collector(1));
    println!("                              ├─▶ storer ─▶ files, /search");
    println!("                              └─▶ anomaly-detector\n");
    let store = tempfile::tempdir()?;
    let mut services = start_services(&site, store.path())?;
    let mut senders = start_senders(&site, arguments)?;
    let mut display = Display::new();
    let started = Instant::now();
    let end = started + Duration::from_secs(arguments.seconds + 20);
    let replica_at = started + Duration::from_secs(arguments.seconds) / 3;
    let mut has_replica = false;
    while senders.iter_mut().any(|sender| sender.is_running().unwrap_or(false)) {
        ensure!(Instant::now() < end, "the senders do not end");
        if !has_replica && Instant::now() >= replica_at {
            has_replica = true;
            services.add(start_replica(&site)?);
            display.say("a second syslog forwarder comes: from here on each forwards half of the sources");
        }
        display.show(&Ledger::read(&services)?, &receivers);
        std::thread::sleep(Duration::from_millis(500));
    }
    let sent = senders.iter_mut().map(sent_by).sum::<anyhow::Result<u64>>()?;
    // Everything that was sent is to be there; a little patience, and then what is missing is missing.
    let complete = |sink: &Sink| sink.received() >= sent;
    let _ = wait_for("everything to arrive", Duration::from_secs(5), || receivers.all().all(complete));
    let published = |ledger: &Ledger| ledger.flow(Kind::Syslog).published;
    let stored = |ledger: &Ledger| ledger.storer.count("sekiwake_store_written_records_total", &[]);
    let _ = wait_for("syslog to be stored", Duration::from_secs(5), || {
        Ledger::read(&services).is_ok_and(|ledger| stored(&ledger) >= published(&ledger))
    });
    let ledger = Ledger::read(&services)?;
    display.show(&ledger, &receivers);
    let found = services.get("sekiwake-storer").page("/search")?.lines().count() as u64;
    services.stop()?;
    let lost = ledger.lost_for_good();
    println!("lost for good: {}", if lost.is_empty() { "nothing".to_owned() } else { lost.join(", ") });
    let kept = Kept { published: published(&ledger), found, counted: counted(&ledger) };
    receivers.judge(sent, &ledger, &kept)
}

fn start_services<'a>(site: &'a Site, store: &Path) -> anyhow::Result<Services<'a>> {
    let to_both = |port: u16| format!("udp://{}:{port} udp://{}:{port}", collector(0), collector(1));
    let [syslog, xflow, trap] = FORWARDED.map(|(_, port)| to_both(port));
    let store = store.display().to_string();
    let environment = [
        ("SEKIWAKE_CAPTURE_INTERFACES", WIRE),
        ("SEKIWAKE_STORE_DIR", &store),
        ("SEKIWAKE_ANOMALY_INTERVAL", "1s"),
        ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
        ("SEKIWAKE_XFLOW_DESTINATIONS", &xflow),
        ("SEKIWAKE_TRAP_DESTINATIONS", &trap),
    ];
    let others = ["sekiwake-storer", "sekiwake-anomaly-detector"];
    let names = [&["sekiwake-capture", "sekiwake-proxy"][..], &FORWARDERS.map(|(_, name)| name), &others].concat();
    Services::start(&site.host, &names, &environment)
}

/// One more replica of a forwarder that runs already.
fn start_replica(site: &Site) -> anyhow::Result<Service<'_>> {
    let destinations = format!("udp://{0}:514 udp://{1}:514", collector(0), collector(1));
    let environment = [
        ("SEKIWAKE_SYSLOG_DESTINATIONS", destinations.as_str()),
        ("SEKIWAKE_ADMIN", "127.0.0.1:9702"),
        ("SEKIWAKE_MEMBER", "second"),
    ];
    let replica = Service::start(&site.host, FORWARDERS[0].1, &environment)?;
    wait_for("an answer of the replica", Duration::from_secs(10), || replica.is_alive())?;
    Ok(replica)
}

/// Devices of both families; some of what they send is larger than a frame.
fn start_senders(site: &Site, arguments: &Arguments) -> anyhow::Result<Vec<Process>> {
    let duration = format!("{}s", arguments.seconds);
    let parts = [
        (IpAddr::V4(HOST), "198.19.0.0/16", "all", "120-1400", 70),
        (IpAddr::V6(HOST_V6), "2001:db8:18:1::/64", "all", "120-1400", 29),
        (IpAddr::V4(HOST), "198.19.0.32/27", "rfc5424", "5000,30000,65000", 1),
    ];
    parts
        .iter()
        .map(|(to, from, protocols, sizes, percent)| {
            let mut command = site.devices.command(binary("sekiwake-sender"));
            let rate = (arguments.rate * percent / 100).max(1).to_string();
            command.args(["--to", &to.to_string(), "--from", from, "--sources", "8", "--protocol", protocols]);
            command.args(["--size", sizes, "--rate", &rate, "--duration", &duration, "--json"]);
            Process::spawn(command)
        })
        .collect()
}

fn sent_by(sender: &mut Process) -> anyhow::Result<u64> {
    let status = sender.wait(Duration::from_secs(10))?;
    ensure!(status.success(), "sekiwake-sender ended with {status}: {}", sender.stderr().join("\n"));
    let line = sender.stdout().pop().context("sekiwake-sender said nothing")?;
    let summary: serde_json::Value = serde_json::from_str(&line)?;
    summary["sent"].as_u64().with_context(|| format!("no count in {line}"))
}

fn counted(ledger: &Ledger) -> u64 {
    ledger.detector.count("sekiwake_anomaly_counted_records_total", &[])
}

/// What became of syslog with those who keep it and count it.
struct Kept {
    published: u64,
    /// By the storer's `/search`.
    found: u64,
    counted: u64,
}

impl Kept {
    fn faults(&self) -> Vec<String> {
        let Kept { published, found, counted } = *self;
        println!("syslog: {published} messages published, {found} found by the storer's /search, {counted} counted");
        let mut faults = Vec::new();
        if found != published {
            faults.push("the storer does not have what was published".to_owned());
        }
        if counted != published {
            faults.push("the anomaly detector did not count what was published".to_owned());
        }
        faults
    }
}

/// The old collector and the new ones.
struct Receivers {
    old: Sink,
    new: Vec<(u8, Sink)>,
}

/// How often each payload came, by kind, length and hash.
type Payloads = BTreeMap<(Kind, usize, u128), u64>;

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

    /// Compares what came where, and says so.
    fn judge(self, sent: u64, ledger: &Ledger, kept: &Kept) -> anyhow::Result<()> {
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
            let foreign: u64 =
                got.iter().map(|(key, &n)| n.saturating_sub(expected.get(key).copied().unwrap_or(0))).sum();
            println!(
                "collector {}: {} datagrams, {missing} missing, {foreign} that no device sent or that came twice",
                collector(number),
                report.received
            );
            if missing + foreign > 0 {
                faults.push(format!("collector {} did not receive the same datagrams", collector(number)));
            }
            if report.dropped.unwrap_or(0) > 0 {
                faults.push(format!("collector {}: its own socket dropped some", collector(number)));
            }
        }
        faults.extend(ledger.losses());
        faults.extend(ledger.check().err().map(|error| format!("the books do not close: {error}")));
        if faults.is_empty() {
            println!(
                "\nOK: {sent} datagrams sent, every one of them reached both new collectors byte for byte (informs as traps), syslog is stored and counted, nothing lost, the books close"
            );
            return Ok(());
        }
        for fault in &faults {
            println!("  {fault}");
        }
        bail!("{} faults", faults.len())
    }
}

/// The form in which a datagram is to reach the new collectors: as it is, but for SNMPv2c informs, which go out as traps.
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
        *payloads.entry((kind, fingerprint.length, fingerprint.hash)).or_default() += count;
    }
    payloads
}

/// Live counts: a table that is drawn over itself on a terminal, else a line now and then.
struct Display {
    terminal: bool,
    lines: usize,
    last: Option<Instant>,
}

impl Display {
    fn new() -> Display {
        Display { terminal: std::io::stdout().is_terminal(), lines: 0, last: None }
    }

    /// A line of its own, that stays.
    fn say(&mut self, line: &str) {
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
