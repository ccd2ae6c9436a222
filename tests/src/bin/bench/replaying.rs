//! Replay from compressed files over loopback: how fast, and how exactly spaced.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use sekiwake_archive::{LineEncoder, LineFormat, compress};
use sekiwake_record::{Flags, Format, Record, Vlans};
use sekiwake_testkit::{
    process::Process,
    random::Random,
    sink::{Options, Sink},
};
use sekiwake_tests::binary;
use serde_json::Value;
use tempfile::TempDir;

/// 2026-11-25T14:00:00Z, the start of the stored file.
const START_NS: u64 = 1_795_615_200_000_000_000;

const LONG: Duration = Duration::from_secs(600);

/// Devices that have sent.
const SOURCES: u64 = 64;

/// The mean rate at which spacing is measured, datagrams per second.
const SPACED_RATE: f64 = 500.0;

/// How far a datagram may be from its time.
const GOAL: Duration = Duration::from_millis(5);

/// Prints both tables.
pub(crate) fn run(seconds: u64) -> anyhow::Result<()> {
    println!("\n### replay, as fast as asked\n");
    println!("| asked/s | bytes | sent | received | late | rate/s | µs of CPU per datagram |");
    println!("|---:|---:|---:|---:|---:|---:|---:|");
    let cases = [
        (150_000, 200, 150_000 * seconds),
        (0, 200, 200_000 * seconds.min(8)),
        (20_000, 1400, 20_000 * seconds),
        (0, 1400, 50_000 * seconds.min(8)),
    ];
    for (rate, bytes, count) in cases {
        let store = stored(count, bytes, |number| number * 5_000)?;
        print_rate(&store, rate, bytes, count)?;
    }
    println!("\n### replay, spacing\n");
    println!("| speed | datagrams | median | p99 | largest | within 5 ms |");
    println!("|---:|---:|---:|---:|---:|---:|");
    for speed in [1, 10] {
        let count = (SPACED_RATE * (seconds * speed) as f64) as u64;
        let mut random = Random::new(11);
        let mut at_ns = 0;
        let times: Vec<u64> = (0..count)
            .map(|_| {
                // Exponentially distributed gaps, as of independent devices.
                let share = (random.below(1 << 32) + 1) as f64 / 2_f64.powi(32);
                at_ns += (-share.ln() / SPACED_RATE * 1e9) as u64;
                at_ns
            })
            .collect();
        let store = stored(count, 200, |number| times[number as usize])?;
        print_spacing(&store, speed, &times)?;
    }
    Ok(())
}

/// A store with this many messages of this size.
fn stored(count: u64, bytes: usize, at_ns: impl Fn(u64) -> u64) -> anyhow::Result<TempDir> {
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("2026-11-25");
    fs::create_dir(&folder)?;
    let mut lines = Vec::new();
    let mut encoder = LineEncoder::new(LineFormat::Json);
    for number in 0..count {
        let mut payload = format!("<189>{number}: Nov 25 14:00:00: %LINK-3-UPDOWN: Interface Gi0/{}: ", number % 48);
        while payload.len() < bytes {
            payload.push_str("changed state to up ");
        }
        payload.truncate(bytes);
        let record = Record {
            captured_at_ns: START_NS + at_ns(number),
            source: Ipv4Addr::from(0xc612_0000 + (number % SOURCES) as u32).into(),
            source_port: 514,
            destination: Ipv4Addr::new(203, 0, 113, 1).into(),
            destination_port: 514,
            format: Format::Rfc3164,
            flags: Flags::default(),
            payload: payload.as_bytes(),
            vlans: Vlans::new(),
            dscp_ttl: 0,
            origin: None,
        };
        encoder.encode(&record, &mut lines);
    }
    let file = fs::File::create(folder.join("syslog@20261125T140000Z-3600s@bench@1-1.jsonl.zst"))?;
    compress(&lines[..], LineFormat::Json, 3, file)?;
    Ok(dir)
}

fn replay(store: &Path, pace: &str, to: SocketAddr) -> anyhow::Result<Process> {
    let mut command = Command::new(binary("sekiwake-storer"));
    command.env("SEKIWAKE_STORE_DIR", store).env("SEKIWAKE_LOG", "warn");
    command.args(["replay", "--json", "--allow-capture", "--to-destination", &format!("udp://{to}")]);
    command.args(pace.split(' '));
    Process::spawn_with_stderr(command, Stdio::inherit())
}

fn last_line(process: &mut Process) -> anyhow::Result<Value> {
    let status = process.wait(LONG)?;
    ensure!(status.success(), "replay ended with {status}: {:?}", process.stdout());
    Ok(serde_json::from_str(&process.stdout().pop().context("no last line")?)?)
}

fn print_rate(store: &TempDir, rate: u64, bytes: usize, count: u64) -> anyhow::Result<()> {
    let sink = Sink::bind(&[SocketAddr::from(([127, 0, 0, 1], 0))], Options::counts())?;
    let mut process = replay(store.path(), &format!("--rate {rate}"), sink.addresses()[0])?;
    let mut cpu = Duration::ZERO;
    while process.is_running()? {
        cpu = process.cpu_time().unwrap_or(cpu);
        thread::sleep(Duration::from_millis(20));
    }
    let last = last_line(&mut process)?;
    let _ = sink.wait_for_silence(Duration::from_millis(500), Duration::from_secs(10));
    let report = sink.finish();
    let asked = if rate == 0 { "fastest".to_owned() } else { rate.to_string() };
    println!(
        "| {asked} | {bytes} | {} | {} | {} | {:.0} | {:.2} |",
        last["sent"],
        report.received,
        last["late"],
        report.rate(),
        cpu.as_secs_f64() * 1e6 / count as f64
    );
    Ok(())
}

fn print_spacing(store: &TempDir, speed: u64, times: &[u64]) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut process = replay(store.path(), &format!("--speed {speed}"), socket.local_addr()?)?;
    let count = times.len();
    let receiver = thread::spawn(move || -> std::io::Result<Vec<Instant>> {
        let mut buffer = [0; 2048];
        (0..count).map(|_| socket.recv(&mut buffer).map(|_| Instant::now())).collect()
    });
    let arrivals = receiver.join().map_err(|_| anyhow::anyhow!("the receiver has panicked"))?.context("receive")?;
    last_line(&mut process)?;
    let mut errors: Vec<Duration> = Vec::with_capacity(count);
    for (arrival, at_ns) in arrivals.iter().zip(times) {
        let due = Duration::from_nanos((at_ns - times[0]) / speed);
        errors.push(arrival.duration_since(arrivals[0]).abs_diff(due));
    }
    errors.sort_unstable();
    let within = errors.iter().filter(|error| **error <= GOAL).count();
    let milliseconds = |share: f64| errors[((count - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!(
        "| {speed} | {count} | {:.2} ms | {:.2} ms | {:.2} ms | {:.2} % |",
        milliseconds(0.5),
        milliseconds(0.99),
        milliseconds(1.0),
        100.0 * within as f64 / count as f64
    );
    Ok(())
}
