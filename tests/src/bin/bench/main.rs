//! `make bench`: loss, CPU cost and latency of capture, proxy and forwarder, compared with rsyslog
//! and tcpdump in the same run.
//!
//! ```text
//! sender ──wire──▶ capture ─▶ proxy ─▶ syslog-forwarder ──▶ sink      datagrams pass by, as on a mirror port
//! sender ──wire──▶ rsyslog (imudp ─▶ omfwd) ──▶ sink                   datagrams are addressed to it
//! sender ──wire──▶ tcpdump -w /dev/null                                lower bound of capture
//! sender ──wire──▶ floor (recvfrom, sendto) ──▶ sink                   lower bound of a relay with sockets
//! bare sendmmsg and UDP_SEGMENT loops ──▶ sink                         lower bound of sending
//! sender ──wire──▶ capture ─▶ proxy ─▶ storer ──▶ files                as JSON lines or packets, synced once per second
//! sender ──wire──▶ rsyslog (imudp ─▶ omfile) ──▶ file                  in its default format, not synced
//! sender ──wire──▶ capture ─▶ proxy ─▶ syslog-forwarder ──▶ rotel (OTLP), tansu (Kafka)
//! sender ──wire──▶ rsyslog (imudp ─▶ omkafka) ──▶ fake brokers of librdkafka
//! sender ──wire──▶ capture ─▶ nats-server ─▶ syslog-forwarder ──▶ sink
//! datagrams in memory ─▶ rows                                           beside nfcapd and nfdump
//! records in memory, or of two captures ─▶ deduplicated                with and without
//! files ─▶ replay ──loopback──▶ sink                                    rates, and the spacing
//! ```
//! Costs are user and system time of the processes since the first datagram (allocating the
//! kernel's ring alone takes half a second). The kernel charges part of the work of capture to the
//! sender, for all systems alike. Machines are noisy: compare figures of one run only.

mod decoding;
mod deduplicating;
mod delivering;
mod jetstream;
mod ordinary;
mod replaying;

use std::{
    fs,
    io::IoSlice,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use clap::Parser;
use rustix::time::{ClockId, clock_gettime};
use sekiwake_sys::{MAX_MESSAGES, MAX_SEGMENTED_BYTES, MAX_SEGMENTS, Outgoing, send_batch};
use sekiwake_testkit::{
    netns::{Namespace, requires_root_and_netns},
    process::Process,
    sink::{Options, Sink},
    wait::wait_for,
};
use sekiwake_tests::{HOST, MIRRORED, Samples, Services, Site, WIRE, binary, collector, sent_by};

#[derive(Parser)]
#[command(about = "Loss, CPU cost and latency, compared with rsyslog and tcpdump")]
struct Arguments {
    /// Only one row per table
    #[arg(long)]
    quick: bool,
    /// Duration of each row in seconds
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Only rows at these rates
    #[arg(long, value_delimiter = ',')]
    rates: Vec<u64>,
    /// Repetitions of each row
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Only rows with these payload sizes
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<String>,
    /// Only these tables: ordinary, sekiwake, destinations, spoofed, sendmmsg, udp-segment,
    /// all-in-one, rsyslog, tcpdump, storing, storing-compressed, storing-all-in-one,
    /// storing-flows, storing-traps, rsyslog-file, otlp, kafka, kafka-mock, rsyslog-kafka,
    /// jetstream, decoding, deduplicate, replay
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Be the floor: relay datagrams from the first address to the second
    #[arg(long, hide = true, num_args = 2, value_names = ["LISTEN", "TO"])]
    floor: Vec<SocketAddr>,
}

impl Arguments {
    fn is_wanted(&self, table: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == table)
    }
}

/// The offered load of a row.
#[derive(Clone, Copy)]
struct Load {
    rate: u64,
    sizes: &'static str,
    sources: u32,
    /// Number of collectors that each datagram is forwarded to.
    destinations: u8,
    /// Whether the devices' addresses are spoofed.
    spoof: bool,
    /// Whether datagrams are spaced evenly. Otherwise those of a millisecond leave together.
    evenly: bool,
    /// The protocol, as the sender names it.
    protocol: &'static str,
}

const fn load(rate: u64, sizes: &'static str, sources: u32) -> Load {
    Load { rate, sizes, sources, destinations: 1, spoof: false, evenly: false, protocol: "rfc5424" }
}

impl Load {
    const fn to(self, destinations: u8) -> Load {
        Load { destinations, ..self }
    }

    const fn spoofed(self) -> Load {
        Load { spoof: true, ..self }
    }

    const fn evenly(self) -> Load {
        Load { evenly: true, ..self }
    }
}

/// CPU time of a process.
struct Cost {
    process: &'static str,
    time: Duration,
}

/// Time from the kernel's timestamp to the send, in seconds.
struct Latency {
    median: f64,
    p99: f64,
}

/// The result of a row.
struct Row {
    offered: u64,
    delivered: u64,
    cost: Vec<Cost>,
    latency: Option<Latency>,
    note: String,
}

const EQUAL: &str = "200";
/// All sizes from a short line to a full frame, equally often, so that consecutive datagrams
/// differ.
const MIXED: &str = "200-1400";
/// The sizes of syslog lines.
const LINES: &str = "100-500";

const LOADS: [Load; 12] = [
    load(50_000, EQUAL, 8),
    load(100_000, EQUAL, 8),
    load(200_000, EQUAL, 8),
    load(200_000, EQUAL, 1),
    load(200_000, EQUAL, 64),
    load(300_000, EQUAL, 8),
    load(200_000, LINES, 8),
    load(200_000, LINES, 64),
    load(100_000, MIXED, 8),
    load(200_000, MIXED, 8),
    load(200_000, MIXED, 1),
    load(200_000, MIXED, 64),
];

const PEER_LOADS: [Load; 4] =
    [load(50_000, EQUAL, 8), load(100_000, EQUAL, 8), load(200_000, EQUAL, 8), load(200_000, MIXED, 8)];

/// The cost of more destinations.
const MORE_DESTINATIONS: [Load; 4] = [
    load(200_000, EQUAL, 8),
    load(150_000, EQUAL, 8).to(2),
    load(75_000, EQUAL, 8).to(4),
    load(75_000, LINES, 64).to(4),
];

const SPOOFED: [Load; 5] = [
    load(100_000, EQUAL, 8),
    load(100_000, EQUAL, 8).spoofed(),
    load(100_000, EQUAL, 4000).spoofed(),
    load(100_000, LINES, 8).spoofed(),
    load(100_000, LINES, 4000).spoofed(),
];

/// Stored in files.
const STORED: [Load; 4] =
    [load(50_000, EQUAL, 8), load(100_000, EQUAL, 8), load(100_000, LINES, 64), load(200_000, EQUAL, 8)];

/// Flows and traps, stored in files.
const STORED_FLOWS: [Load; 2] = [load(20_000, "1400", 64), load(40_000, "1400", 64)];
const STORED_TRAPS: [Load; 1] = [load(20_000, EQUAL, 64)];

/// At full speed, without a service.
const BARE: [Load; 2] = [load(0, EQUAL, 1), load(0, "1400", 1)];

const QUICK: Load = load(200_000, EQUAL, 8);

/// A measured system.
struct System {
    name: &'static str,
    loads: &'static [Load],
    measure: fn(&Site, Load, u64) -> anyhow::Result<Row>,
}

const fn system(
    name: &'static str,
    loads: &'static [Load],
    measure: fn(&Site, Load, u64) -> anyhow::Result<Row>,
) -> System {
    System { name, loads, measure }
}

const SYSTEMS: [System; 18] = [
    system("sekiwake", &LOADS, sekiwake),
    system("destinations", &MORE_DESTINATIONS, sekiwake),
    system("spoofed", &SPOOFED, sekiwake),
    system("sendmmsg", &BARE, sendmmsg),
    system("udp-segment", &BARE, udp_segment),
    system("all-in-one", &PEER_LOADS, all_in_one),
    system("rsyslog", &PEER_LOADS, rsyslog),
    system("tcpdump", &PEER_LOADS, tcpdump),
    system("storing", &STORED, storing),
    system("storing-compressed", &STORED, storing_compressed),
    system("storing-all-in-one", &STORED, storing_all_in_one),
    system("storing-flows", &STORED_FLOWS, storing_flows),
    system("storing-traps", &STORED_TRAPS, storing_traps),
    system("rsyslog-file", &STORED, rsyslog_file),
    system("otlp", &delivering::LOADS, delivering::otlp),
    system("kafka", &delivering::LOADS, delivering::kafka),
    system("kafka-mock", &delivering::LOADS, delivering::kafka_mock),
    system("rsyslog-kafka", &delivering::LOADS, delivering::rsyslog),
];

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if let [listen, to] = arguments.floor[..] {
        return ordinary::floor(listen, to).context("the floor");
    }
    if let Err(why) = requires_root_and_netns() {
        bail!("the benchmarks require root and network namespaces: {why}");
    }
    let cores = std::thread::available_parallelism()?;
    println!("{cores} cores, Linux {}", fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    if arguments.is_wanted("ordinary") && !arguments.quick {
        ordinary::run(&arguments.rates, &arguments.sizes, arguments.repeat, arguments.seconds)?;
    }
    for System { name, loads, measure } in SYSTEMS.into_iter().filter(|system| arguments.is_wanted(system.name)) {
        println!("\n### {name}\n");
        println!(
            "| rate/s | bytes | sources | to | offered | delivered | lost | µs of CPU per datagram | median | p99 | |"
        );
        println!("|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|---|");
        // The same load for all systems that have it.
        let quick = loads.iter().position(|load| load.rate == QUICK.rate && load.sizes == QUICK.sizes).unwrap_or(0);
        let loads = if arguments.quick { &loads[quick..=quick] } else { loads };
        let is_wanted = |load: &&Load| {
            (arguments.rates.is_empty() || arguments.rates.contains(&load.rate))
                && (arguments.sizes.is_empty() || arguments.sizes.iter().any(|sizes| sizes == load.sizes))
        };
        let wanted = loads.iter().filter(is_wanted);
        for &load in wanted.flat_map(|load| std::iter::repeat_n(load, arguments.repeat as usize)) {
            let site = Site::new()?;
            let row = measure(&site, load, arguments.seconds).with_context(|| format!("{name} at {}/s", load.rate))?;
            print_row(load, &row);
        }
    }
    if arguments.is_wanted("jetstream") {
        jetstream::run(arguments.repeat, arguments.seconds)?;
    }
    if arguments.is_wanted("decoding") {
        decoding::run(arguments.seconds)?;
    }
    if arguments.is_wanted("deduplicate") {
        let rounds = if arguments.quick { 1 } else { arguments.repeat.max(3) };
        deduplicating::run(if arguments.quick { 3 } else { arguments.seconds }, rounds)?;
    }
    if arguments.is_wanted("replay") {
        replaying::run(if arguments.quick { 1 } else { arguments.seconds })?;
    }
    Ok(())
}

fn print_row(load: Load, row: &Row) {
    let lost = row.offered.saturating_sub(row.delivered);
    let share = 100.0 * lost as f64 / row.offered.max(1) as f64;
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / row.offered.max(1) as f64;
    let total: Duration = row.cost.iter().map(|cost| cost.time).sum();
    let parts: Vec<String> = row.cost.iter().map(|cost| format!("{} {:.2}", cost.process, micros(cost.time))).collect();
    let milliseconds = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let median = row.latency.as_ref().map(|latency| milliseconds(latency.median)).unwrap_or_default();
    let p99 = row.latency.as_ref().map(|latency| milliseconds(latency.p99)).unwrap_or_default();
    println!(
        "| {} | {} | {} | {} | {} | {} | {lost} ({share:.2} %) | **{:.2}** = {} | {median} | {p99} | {} |",
        load.rate,
        load.sizes,
        load.sources,
        format_args!("{}{}", load.destinations, if load.spoof { ", spoofed" } else { "" }),
        row.offered,
        row.delivered,
        micros(total),
        parts.join(" + "),
        row.note
    );
}

fn sekiwake(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let names = ["sekiwake-capture", "sekiwake-proxy", "sekiwake-syslog-forwarder"];
    forwarded(site, load, seconds, &names, &["capture", "proxy", "forwarder"])
}

fn all_in_one(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    forwarded(site, load, seconds, &["sekiwake"], &["sekiwake"])
}

fn forwarded(site: &Site, load: Load, seconds: u64, names: &[&str], labels: &[&'static str]) -> anyhow::Result<Row> {
    let sink = sink(&site.collectors, load.destinations)?;
    let options = if load.spoof { "?spoof=true" } else { "" };
    let uri = |number| format!("udp://{}{options}", endpoint(number));
    let destinations = (0..load.destinations).map(uri).collect::<Vec<_>>().join(" ");
    let environment = [("SEKIWAKE_CAPTURE_INTERFACES", WIRE), ("SEKIWAKE_SYSLOG_DESTINATIONS", &*destinations)];
    let services = Services::start(&site.host, names, &environment)?;
    let used = |services: &Services<'_>| -> anyhow::Result<Vec<Duration>> {
        services.0.iter().map(|service| service.process.cpu_time()).collect()
    };
    let before = used(&services)?;
    let offered = offer(site, MIRRORED.into(), load, seconds)?;
    settle(&sink, offered * u64::from(load.destinations));
    let after = used(&services)?;
    let forwarder = services.0.last().context("a forwarder")?.metrics()?;
    let capture = services.0[0].metrics()?;
    services.stop()?;
    let report = sink.finish();
    // The collector with the fewest datagrams determines the loss.
    let delivered = report.by_port.values().map(|socket| socket.received).min().unwrap_or_default();
    Ok(Row {
        offered,
        delivered,
        cost: costs(labels, &before, &after),
        latency: latency(&forwarder),
        note: losses(offered, &capture, &forwarder, report.dropped),
    })
}

fn costs(processes: &[&'static str], before: &[Duration], after: &[Duration]) -> Vec<Cost> {
    let times = after.iter().zip(before).map(|(after, before)| *after - *before);
    processes.iter().zip(times).map(|(&process, time)| Cost { process, time }).collect()
}

fn latency(forwarder: &Samples) -> Option<Latency> {
    let quantile = |share| forwarder.quantile("sekiwake_forward_latency_seconds", &[], share);
    Some(Latency { median: quantile(0.5)?, p99: quantile(0.99)? })
}

/// The stages with losses, for the last column.
fn losses(offered: u64, capture: &Samples, forwarder: &Samples, sink: Option<u64>) -> String {
    let ring = capture.count("sekiwake_capture_dropped_packets_total", &["reason=\"kernel\""]);
    let claimed = capture.count("sekiwake_capture_claimed_datagrams_total", &[]);
    let places = [
        // Accepted by the sender's kernel and never seen by capture's: dropped in the queue between
        // the ends of a veth pair.
        ("before capture", offered.saturating_sub(claimed + ring)),
        ("capture's ring", ring),
        ("not published", capture.count("sekiwake_bus_unpublished_records_total", &[])),
        ("bus", forwarder.count("sekiwake_bus_lost_records_total", &[])),
        ("still queued", forwarder.count("sekiwake_forward_queue_records", &[])),
        ("forwarder", forwarder.count("sekiwake_forward_dropped_datagrams_total", &[])),
        ("sink's own socket (skbs)", sink.unwrap_or(0)),
    ];
    let lost: Vec<String> =
        places.iter().filter(|(_, count)| *count > 0).map(|(place, count)| format!("{place} {count}")).collect();
    lost.join(", ")
}

fn rsyslog(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let sink = sink(&site.collectors, 1)?;
    let folder = tempfile::tempdir()?;
    let rules = format!(
        "template(name=\"raw\" type=\"string\" string=\"%rawmsg%\")\n\
         input(type=\"imudp\" address=\"{HOST}\" port=\"514\" rcvbufSize=\"64m\" ruleset=\"forward\")\n\
         ruleset(name=\"forward\" queue.type=\"FixedArray\" queue.size=\"500000\" queue.dequeueBatchSize=\"1024\") {{\n\
           action(type=\"omfwd\" target=\"{collector}\" port=\"514\" protocol=\"udp\" template=\"raw\")\n\
         }}\n",
        collector = collector(0),
    );
    let mut process = start_rsyslog(site, folder.path(), &rules)?;
    let before = process.cpu_time()?;
    let offered = offer(site, HOST.into(), load, seconds)?;
    settle(&sink, offered);
    let cost = process.cpu_time()? - before;
    process.stop(Duration::from_secs(20))?;
    let report = sink.finish();
    let note = report.dropped.filter(|&dropped| dropped > 0).map(|dropped| format!("sink's own socket {dropped}"));
    Ok(Row {
        offered,
        delivered: report.received,
        cost: vec![Cost { process: "rsyslog", time: cost }],
        latency: None,
        note: note.unwrap_or_default(),
    })
}

const STORING: [&str; 3] = ["sekiwake-capture", "sekiwake-proxy", "sekiwake-storer"];
const STORING_LABELS: [&str; 3] = ["capture", "proxy", "storer"];
/// Without compression.
const NOT_COMPRESSED: [(&str, &str); 1] = [("SEKIWAKE_STORE_COMPRESS", "0")];

fn storing(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    stored(site, load, seconds, &STORING, &STORING_LABELS, &NOT_COMPRESSED)
}

/// At default settings.
fn storing_flows(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let load = Load { protocol: "netflow9", ..load };
    stored(site, load, seconds, &STORING, &STORING_LABELS, &[("SEKIWAKE_STORE_KINDS", "xflow")])
}

fn storing_traps(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let load = Load { protocol: "snmp2c-trap", ..load };
    stored(site, load, seconds, &STORING, &STORING_LABELS, &[("SEKIWAKE_STORE_KINDS", "snmptrap")])
}

fn storing_all_in_one(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    stored(site, load, seconds, &["sekiwake"], &["sekiwake"], &NOT_COMPRESSED)
}

/// With files small enough to be closed and compressed under load: the difference to `storing` is
/// the cost of compression.
fn storing_compressed(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    stored(site, load, seconds, &STORING, &STORING_LABELS, &[("SEKIWAKE_STORE_ROTATE_BYTES", "64MiB")])
}

fn stored(
    site: &Site,
    load: Load,
    seconds: u64,
    names: &[&str],
    labels: &[&'static str],
    more: &[(&str, &str)],
) -> anyhow::Result<Row> {
    let folder = tempfile::tempdir()?;
    let dir = folder.path().display().to_string();
    let environment = [("SEKIWAKE_CAPTURE_INTERFACES", WIRE), ("SEKIWAKE_STORE_DIR", &*dir)];
    let services = Services::start(&site.host, names, &[&environment[..], more].concat())?;
    let used =
        || -> anyhow::Result<Vec<Duration>> { services.0.iter().map(|service| service.process.cpu_time()).collect() };
    let before = used()?;
    let offered = offer(site, MIRRORED.into(), load, seconds)?;
    let storer = services.0.last().context("a storer")?;
    let written = || storer.metrics().map_or(0, |samples| samples.count("sekiwake_store_written_records_total", &[]));
    // Everything that is still missing then counts as lost.
    let _ = wait_for("everything to be written", Duration::from_secs(10), || written() >= offered);
    let after = used()?;
    let capture = services.0[0].metrics()?;
    let samples = storer.metrics()?;
    let memory = storer.process.resident_bytes()? >> 20;
    let compressed = samples.count("sekiwake_store_compressed_files_total", &[]);
    let bytes = samples.count("sekiwake_store_written_bytes_total", &[]);
    let written = samples.count("sekiwake_store_written_records_total", &[]);
    services.stop()?;
    let per_datagram = |bytes: u64| bytes as f64 / written.max(1) as f64;
    let closed = zstd_bytes(folder.path())?;
    let note = format!(
        "{compressed} files compressed, {:.0} bytes per datagram, {:.0} compressed, storer uses {memory} MiB; {}",
        per_datagram(bytes),
        per_datagram(closed),
        losses(offered, &capture, &samples, None)
    );
    Ok(Row { offered, delivered: written, cost: costs(labels, &before, &after), latency: None, note })
}

/// The bytes of all files below a folder once they are compressed as the storer does.
fn zstd_bytes(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if path.is_dir() {
            bytes += zstd_bytes(&path)?;
        } else if path.extension().is_some_and(|end| end == "zst") {
            bytes += fs::metadata(&path)?.len();
        } else if !is_hidden {
            let output = std::process::Command::new("zstd").args(["-3", "-q", "-c"]).arg(&path).output();
            bytes += output.context("zstd")?.stdout.len() as u64;
        }
    }
    Ok(bytes)
}

fn rsyslog_file(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("messages");
    let rules = format!(
        "input(type=\"imudp\" address=\"{HOST}\" port=\"514\" rcvbufSize=\"64m\" ruleset=\"store\")\n\
         ruleset(name=\"store\" queue.type=\"FixedArray\" queue.size=\"500000\" queue.dequeueBatchSize=\"1024\") {{\n\
           action(type=\"omfile\" file=\"{file}\")\n\
         }}\n",
        file = file.display(),
    );
    let mut process = start_rsyslog(site, folder.path(), &rules)?;
    let before = process.cpu_time()?;
    let offered = offer(site, HOST.into(), load, seconds)?;
    let size = || fs::metadata(&file).map_or(0, |found| found.len());
    let mut last = 0;
    let _ = wait_for("rsyslog to have written", Duration::from_secs(20), || {
        let is_complete = size() == last && last > 0;
        last = size();
        std::thread::sleep(Duration::from_millis(300));
        is_complete
    });
    let cost = process.cpu_time()? - before;
    process.stop(Duration::from_secs(20))?;
    let lines = fs::read(&file)?.iter().filter(|&&byte| byte == b'\n').count() as u64;
    let note = format!("{} MiB on disk", size() >> 20);
    Ok(Row { offered, delivered: lines, cost: vec![Cost { process: "rsyslog", time: cost }], latency: None, note })
}

/// Starts rsyslog in the host's namespace with imudp and `rules`, and waits until it listens.
fn start_rsyslog(site: &Site, folder: &Path, rules: &str) -> anyhow::Result<Process> {
    let configuration = folder.join("rsyslog.conf");
    let head = format!(
        "global(workDirectory=\"{}\")\nmodule(load=\"imudp\" batchSize=\"128\" timeRequery=\"8\")\n",
        folder.display()
    );
    fs::write(&configuration, head + rules)?;
    let mut command = site.host.command("rsyslogd");
    command.arg("-n").arg("-f").arg(&configuration).arg("-i").arg(folder.join("pid"));
    let process = Process::spawn(command)?;
    wait_for("rsyslog to listen", Duration::from_secs(10), || listens(&site.host, 514))?;
    Ok(process)
}

fn tcpdump(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let mut command = site.host.command("tcpdump");
    command.args(["-n", "-i", WIRE, "-B", "262144", "-s", "0", "-w", "/dev/null", "udp", "port", "514"]);
    let mut process = Process::spawn(command)?;
    process.wait_for_line(Duration::from_secs(10), |line| line.contains("listening on"))?;
    let before = process.cpu_time()?;
    let offered = offer(site, MIRRORED.into(), load, seconds)?;
    let cost = process.cpu_time()? - before;
    process.signal(sekiwake_testkit::process::Signal::INT)?;
    process.wait(Duration::from_secs(10))?;
    let lines = process.stderr();
    let captured = lines.iter().find_map(|line| line.strip_suffix(" packets captured")).context("tcpdump's count")?;
    let delivered = captured.trim().parse()?;
    Ok(Row {
        offered,
        delivered,
        cost: vec![Cost { process: "tcpdump", time: cost }],
        latency: None,
        note: String::new(),
    })
}

/// Sends 64 datagrams per system call at full speed, and measures the thread's CPU time: the
/// kernel's minimum cost of sending, including the receiving end of the veth pair.
fn bare(site: &Site, load: Load, seconds: u64, segmented: bool) -> anyhow::Result<Row> {
    let sink = sink(&site.collectors, 1)?;
    let payload = vec![b'x'; load.sizes.parse()?];
    let slices = [IoSlice::new(&payload); MAX_MESSAGES];
    let most = if segmented { MAX_SEGMENTS.min(MAX_SEGMENTED_BYTES / payload.len()) } else { MAX_MESSAGES };
    let single = |index: usize| Outgoing { slices: &slices[index..=index], ..Outgoing::default() };
    let messages: Vec<Outgoing<'_>> = match segmented {
        true => {
            let segment_bytes = Some(payload.len() as u16);
            vec![Outgoing { slices: &slices[..most], segment_bytes, ..Outgoing::default() }]
        }
        false => (0..most).map(single).collect(),
    };
    let work = || -> anyhow::Result<(u64, Duration)> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect(endpoint(0))?;
        let time = || {
            let now = clock_gettime(ClockId::ThreadCPUTime);
            Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
        };
        let started = Instant::now();
        let before = time();
        let mut sent = 0;
        while started.elapsed() < Duration::from_secs(seconds) {
            let count = send_batch(socket.as_fd(), &messages).unwrap_or(0) as u64;
            sent += if segmented { count * most as u64 } else { count };
        }
        Ok((sent, time() - before))
    };
    let (offered, cost) = site.host.enter(work)??;
    settle(&sink, offered);
    let delivered = sink.finish().received;
    let name = if segmented { "UDP_SEGMENT" } else { "sendmmsg" };
    let note = "unpaced: losses are in the sink".to_owned();
    Ok(Row { offered, delivered, cost: vec![Cost { process: name, time: cost }], latency: None, note })
}

fn sendmmsg(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    bare(site, load, seconds.min(4), false)
}

fn udp_segment(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    bare(site, load, seconds.min(4), true)
}

/// The address of collector `number`, with its own port to count it separately.
fn endpoint(number: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(collector(number)), 514 + u16::from(number))
}

fn sink(namespace: &Namespace, collectors: u8) -> anyhow::Result<Sink> {
    let addresses: Vec<SocketAddr> = (0..collectors).map(endpoint).collect();
    namespace.enter(|| Sink::bind(&addresses, Options::counts().gro()))?
}

/// Sends the load. Returns the number of datagrams sent.
fn offer(site: &Site, to: IpAddr, load: Load, seconds: u64) -> anyhow::Result<u64> {
    let Load { rate, sizes, sources, evenly, protocol, .. } = load;
    let mut command = site.devices.command(binary("sekiwake-sender"));
    // Each protocol's own port.
    command.args(["--to", &to.to_string(), "--from", "198.19.0.0/16", "--sources", &sources.to_string()]);
    command.args(["--protocol", protocol, "--size", sizes, "--rate", &rate.to_string()]);
    command.args(["--duration", &format!("{seconds}s"), "--json"]);
    if evenly {
        command.args(["--burst", "1"]);
    }
    sent_by(&mut Process::spawn(command)?, Duration::from_secs(seconds + 30))
}

/// Waits until everything has arrived, or no more datagrams arrive.
fn settle(sink: &Sink, offered: u64) {
    if sink.wait_for(offered, Duration::from_secs(3)).is_err() {
        // Everything that is still missing then counts as lost.
        let _ = sink.wait_for_silence(Duration::from_secs(1), Duration::from_secs(20));
    }
}

fn listens(namespace: &Namespace, port: u16) -> bool {
    let wanted = format!(":{port:04X} ");
    let table = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/udp"));
    table.is_ok_and(|table| table.is_ok_and(|table| table.contains(&wanted)))
}
