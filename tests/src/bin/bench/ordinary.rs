//! The table `ordinary`: what a datagram costs at the rates of most sites, compared with the floor.
//!
//! The floor is the least that a relay with sockets does: one thread, `recvfrom` and `sendto` per
//! datagram. It is this program with `--floor`. All systems are measured in turn within each round.
//! Datagrams are spaced evenly, as those of many devices are.

use std::{
    fmt::Write as _,
    io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
    time::Duration,
};

use anyhow::Context;
use sekiwake_sys::force_receive_buffer;
use sekiwake_testkit::{
    process::{Process, Usage},
    sink::Sink,
    wait::wait_for,
};
use sekiwake_tests::{HOST, MIRRORED, Services, Site, WIRE};

use super::{Latency, Load, endpoint, latency, listens, load, offer, settle, sink};

/// Without traffic, then the rates of small to large sites.
const RATES: [u64; 5] = [0, 1_000, 5_000, 20_000, 50_000];
const SIZES: [&str; 2] = ["200", "80-400"];
const SOURCES: u32 = 64;

/// How long system calls are counted, in a run of its own, because counting costs time.
const COUNTING: Duration = Duration::from_secs(2);
/// The same without traffic: the longest interval of what services do then.
const COUNTING_IDLE: Duration = Duration::from_secs(30);
/// The load of that run begins earlier and ends later.
const AROUND_COUNTING_S: u64 = 1;

/// The largest datagram that the floor relays.
const MAX_DATAGRAM_BYTES: usize = 65_535;
/// As rsyslog's in the other tables.
const FLOOR_RECEIVE_BUFFER: usize = 64 << 20;

const SYSTEMS: [(&str, &[&str]); 3] = [
    ("floor", &[]),
    ("all-in-one", &["sekiwake"]),
    ("three processes", &["sekiwake-capture", "sekiwake-proxy", "sekiwake-syslog-forwarder"]),
];

/// The services whose system calls without traffic are counted.
const SERVICES: [&str; 6] = [
    "sekiwake-capture",
    "sekiwake-proxy",
    "sekiwake-syslog-forwarder",
    "sekiwake-storer",
    "sekiwake-anomaly-detector",
    "sekiwake",
];
/// The most system calls per second that a service should make without traffic, and the all-in-one.
const IDLE_GOAL: (f64, f64) = (50.0, 100.0);

/// One measurement of one system.
struct Sample {
    lost: u64,
    /// Per datagram; without traffic per second.
    cpu_us: f64,
    wake_ups: f64,
    system_calls: Option<f64>,
    /// Without traffic: system calls per second of each process.
    idle: Vec<f64>,
    latency: Option<Latency>,
}

/// Relays until it is killed.
///
/// # Errors
/// A socket cannot be opened, or fails.
pub(super) fn floor(listen: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind(listen)?;
    force_receive_buffer(socket.as_fd(), FLOOR_RECEIVE_BUFFER)?;
    let sender = UdpSocket::bind("0.0.0.0:0")?;
    let mut datagram = [0; MAX_DATAGRAM_BYTES];
    loop {
        let (length, _) = socket.recv_from(&mut datagram)?;
        sender.send_to(&datagram[..length], to)?;
    }
}

/// Measures and prints the table.
pub(super) fn run(rates: &[u64], sizes: &[String], rounds: u32, seconds: u64) -> anyhow::Result<()> {
    println!("\n### ordinary\n\nMedians of {rounds} rounds. Without traffic, figures are per second.\n");
    println!(
        "| rate/s | bytes | | lost | µs of CPU per datagram | of the floor | wake-ups | system calls | median | p99 |"
    );
    println!("|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|");
    for rate in RATES.into_iter().filter(|rate| rates.is_empty() || rates.contains(rate)) {
        let sizes = SIZES.into_iter().filter(|bytes| sizes.is_empty() || sizes.iter().any(|wanted| wanted == bytes));
        // Without traffic there are no sizes.
        for bytes in sizes.take(if rate == 0 { 1 } else { SIZES.len() }) {
            let mut samples: [Vec<Sample>; SYSTEMS.len()] = Default::default();
            for _ in 0..rounds {
                for (samples, (name, binaries)) in samples.iter_mut().zip(SYSTEMS) {
                    let sample = measure(binaries, load(rate, bytes, SOURCES).evenly(), seconds);
                    samples.push(sample.with_context(|| format!("{name} at {rate}/s"))?);
                }
            }
            print_rows(rate, bytes, &samples);
        }
    }
    if rates.is_empty() || rates.contains(&0) {
        print_idle()?;
    }
    Ok(())
}

/// Counts the system calls of each service without traffic: separate services together, and the
/// all-in-one alone.
fn print_idle() -> anyhow::Result<()> {
    println!("\n### idle\n\nSystem calls per second without traffic, counted for {COUNTING_IDLE:?}.\n");
    println!("| service | system calls | goal |\n|---|---:|---:|");
    let (all_in_one, separate) = SERVICES.split_last().context("services")?;
    for (binaries, goal) in [(separate, IDLE_GOAL.0), (std::slice::from_ref(all_in_one), IDLE_GOAL.1)] {
        let site = Site::new()?;
        let destination = format!("udp://{}", endpoint(0));
        let folder = tempfile::tempdir()?;
        let mut environment =
            vec![("SEKIWAKE_CAPTURE_INTERFACES", WIRE), ("SEKIWAKE_SYSLOG_DESTINATIONS", &*destination)];
        if binaries.len() > 1 {
            environment.push(("SEKIWAKE_STORE_DIR", folder.path().to_str().context("a path")?));
        }
        let services = Services::start(&site.host, binaries, &environment)?;
        std::thread::sleep(Duration::from_secs(4));
        let processes: Vec<&Process> = services.0.iter().map(|service| &service.process).collect();
        let calls = count_system_calls(&processes, COUNTING_IDLE).unwrap_or_default();
        for (name, calls) in binaries.iter().zip(calls) {
            println!("| {name} | {} | {goal} |", number(calls));
        }
        services.stop()?;
    }
    Ok(())
}

fn print_rows(rate: u64, bytes: &str, samples: &[Vec<Sample>]) {
    let floor = median(samples[0].iter().map(|sample| sample.cpu_us));
    for ((name, _), samples) in SYSTEMS.into_iter().zip(samples) {
        let cpu_us = median(samples.iter().map(|sample| sample.cpu_us));
        let wake_ups = median(samples.iter().map(|sample| sample.wake_ups));
        let calls = samples.iter().filter_map(|sample| sample.system_calls).collect::<Vec<_>>();
        let mut calls = if calls.is_empty() { String::new() } else { number(median(calls)) };
        if samples[0].idle.len() > 1 {
            let of = |process: usize| median(samples.iter().filter_map(|sample| sample.idle.get(process).copied()));
            let each: Vec<String> = (0..samples[0].idle.len()).map(|process| number(of(process))).collect();
            let _ = write!(calls, " = {}", each.join(" + "));
        }
        let latency = |quantile: fn(&Latency) -> f64| {
            let known: Vec<f64> = samples.iter().filter_map(|sample| sample.latency.as_ref()).map(quantile).collect();
            if known.is_empty() { String::new() } else { format!("{:.1} ms", median(known) * 1e3) }
        };
        let lost: u64 = samples.iter().map(|sample| sample.lost).sum();
        let ratio = if rate == 0 { String::new() } else { format!("{:.2}", cpu_us / floor) };
        let bytes = if rate == 0 { "" } else { bytes };
        println!(
            "| {rate} | {bytes} | {name} | {lost} | **{cpu_us:.2}** | {ratio} | {} | {calls} | {} | {} |",
            number(wake_ups),
            latency(|latency| latency.median),
            latency(|latency| latency.p99),
        );
    }
}

fn measure(binaries: &[&str], load: Load, seconds: u64) -> anyhow::Result<Sample> {
    let site = Site::new()?;
    let sink = sink(&site.collectors, 1)?;
    if binaries.is_empty() {
        let mut command = site.host.command(std::env::current_exe()?);
        command.args(["--floor", &format!("{HOST}:514"), &endpoint(0).to_string()]);
        let floor = Process::spawn(command)?;
        wait_for("the floor to listen", Duration::from_secs(10), || listens(&site.host, 514))?;
        return sample(&site, &[&floor], HOST.into(), &sink, load, seconds);
    }
    let destination = format!("udp://{}", endpoint(0));
    let environment = [("SEKIWAKE_CAPTURE_INTERFACES", WIRE), ("SEKIWAKE_SYSLOG_DESTINATIONS", &*destination)];
    let services = Services::start(&site.host, binaries, &environment)?;
    let processes: Vec<&Process> = services.0.iter().map(|service| &service.process).collect();
    let mut sample = sample(&site, &processes, MIRRORED.into(), &sink, load, seconds)?;
    sample.latency = latency(&services.0.last().context("a forwarder")?.metrics()?);
    services.stop()?;
    Ok(sample)
}

fn sample(
    site: &Site,
    processes: &[&Process],
    to: std::net::IpAddr,
    sink: &Sink,
    load: Load,
    seconds: u64,
) -> anyhow::Result<Sample> {
    let used = || -> anyhow::Result<Usage> { processes.iter().map(|process| process.usage()).sum() };
    // What follows the start: subscriptions, leases, the first announcements.
    std::thread::sleep(Duration::from_secs(1));
    let before = used()?;
    if load.rate == 0 {
        std::thread::sleep(Duration::from_secs(seconds));
        let used = used()? - before;
        let idle: Vec<f64> = count_system_calls(processes, COUNTING).unwrap_or_default();
        return Ok(Sample {
            lost: 0,
            cpu_us: used.cpu.as_secs_f64() * 1e6 / seconds as f64,
            wake_ups: used.wake_ups as f64 / seconds as f64,
            system_calls: (!idle.is_empty()).then(|| idle.iter().sum()),
            idle,
            latency: None,
        });
    }
    let offered = offer(site, to, load, seconds)?;
    settle(sink, offered);
    let used = used()? - before;
    let delivered = sink.received();
    let system_calls = std::thread::scope(|scope| -> anyhow::Result<Option<f64>> {
        let around = Duration::from_secs(AROUND_COUNTING_S);
        let sending = scope.spawn(|| offer(site, to, load, 2 * AROUND_COUNTING_S + COUNTING.as_secs()));
        std::thread::sleep(around);
        let calls = count_system_calls(processes, COUNTING);
        sending.join().expect("the thread of the sender")?;
        Ok(calls.map(|calls| calls.iter().sum::<f64>() / load.rate as f64))
    })?;
    Ok(Sample {
        lost: offered.saturating_sub(delivered),
        cpu_us: used.cpu.as_secs_f64() * 1e6 / offered as f64,
        wake_ups: used.wake_ups as f64 / offered as f64,
        system_calls,
        idle: Vec::new(),
        latency: None,
    })
}

/// System calls per second of each process, if `perf` can count them: that needs a mounted tracefs
/// (`mount -t tracefs tracefs /sys/kernel/tracing`).
fn count_system_calls(processes: &[&Process], counting: Duration) -> Option<Vec<f64>> {
    let start = |process: &&Process| {
        let mut command = std::process::Command::new("perf");
        command.args(["stat", "-x", ";", "-e", "raw_syscalls:sys_enter", "-p", &process.pid().to_string()]);
        command.args(["--", "sleep", &counting.as_secs().to_string()]);
        Process::spawn(command).ok()
    };
    let started: Option<Vec<Process>> = processes.iter().map(start).collect();
    let count = |mut perf: Process| {
        perf.wait(counting + Duration::from_secs(30)).ok()?;
        let lines = perf.stderr();
        let line = lines.iter().find(|line| line.contains("raw_syscalls:sys_enter"))?;
        // "<not counted>" without any.
        let count = line.split(';').next()?.parse::<f64>().unwrap_or(0.0);
        Some(count / counting.as_secs_f64())
    };
    started?.into_iter().map(count).collect()
}

pub(super) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => values[count / 2],
        count => f64::midpoint(values[count / 2 - 1], values[count / 2]),
    }
}

/// Three significant digits.
fn number(value: f64) -> String {
    match value {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
