//! The table `deduplicate`: what it costs to recognise what has been seen before.
//!
//! ```text
//! records in memory ─▶ Deduplicator                        the state machine alone
//! sender ──wire─┬─▶ capture ─┬─▶ proxy ─▶ forwarder ─▶ sink  two captures of one link: each record
//!               └─▶ capture ─┘                              is received twice; also one capture,
//!                                                           and also with nothing sent
//! sender ──wire──▶ capture                                 with and without its own settings
//! ```
//! Rows of one table are measured in turn within each round; figures are medians.

use std::{hint::black_box, net::IpAddr, time::Duration};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use sekiwake_deduplicate::{DeduplicateSettings, Deduplicator, Sighting, Verdict};
use sekiwake_group::{BootTime, Stream};
use sekiwake_record::{Flags, Format, Name, Origin, Record, SHARDS, Shard, Vlans};
use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{HOST, MIRRORED, Service, Services, Site, WIRE, collector};

use super::{EQUAL, Load, load, offer, ordinary::median, settle, sink};

/// The goal at the owner, µs per datagram.
const GOAL_US: f64 = 0.3;
const DURATION: &str = "200ms";
/// The load before a measurement: a new owner of shards first reads their past.
const WARM_UP_S: u64 = 3;

/// Sources and datagrams per second of the state machine alone.
const SOURCES: u32 = 10_000;
const RATE: u64 = 200_000;
/// How often captures hand over.
const TICK: Duration = Duration::from_millis(6);
const PAYLOAD_BYTES: usize = 200;

/// Prints all tables. Some rounds of `seconds` each.
///
/// # Errors
/// A service cannot be started, or ends.
pub(crate) fn run(seconds: u64, rounds: u32) -> anyhow::Result<()> {
    println!("\n### deduplicate, the state machine alone\n");
    println!("{SOURCES} sources, {RATE} datagrams per second, each shown by two views.\n");
    println!("| ns of CPU per record | least | most | records | remembered | MiB |");
    println!("|---:|---:|---:|---:|---:|---:|");
    print_alone(seconds, rounds.max(3))?;
    println!("\n### deduplicate, captures of one link\n");
    println!("Where nothing is sent, the member's work on a record is all there is.\n");
    println!(
        "| captures | sent | rate/s | received records | lost | µs of CPU of the forwarder per record, without | with | difference | goal | captures and proxy |"
    );
    println!("|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    for (captures, is_sent) in [(2, false), (1, false), (2, true)] {
        for rate in [50_000, 100_000] {
            print_member(&Path { captures, is_sent }, load(rate, EQUAL, 64), seconds, rounds)?;
        }
    }
    println!("\n### deduplicate, one capture\n");
    println!(
        "| setting | rate/s | datagrams | not published | µs of CPU of capture per datagram, without | with | of the whole machine, without | with |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|");
    let own = [("SEKIWAKE_CAPTURE_DEDUPLICATE", "20ms", MIRRORED), ("SEKIWAKE_CAPTURE_BIND_PORTS", "true", HOST)];
    for (name, value, to) in own {
        print_capture((name, value), to.into(), load(100_000, EQUAL, 64), seconds, rounds)?;
    }
    Ok(())
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

fn print_alone(seconds: u64, rounds: u32) -> anyhow::Result<()> {
    let alone: Vec<Alone> = (0..rounds).map(|_| alone(seconds)).collect::<anyhow::Result<_>>()?;
    let costs = || alone.iter().map(|alone| alone.ns_per_record);
    let last = alone.last().context("a round")?;
    println!(
        "| **{:.0}** | {:.0} | {:.0} | {} | {} | {:.1} |",
        median(costs()),
        costs().fold(f64::INFINITY, f64::min),
        costs().fold(0.0, f64::max),
        last.records,
        last.remembered,
        last.bytes as f64 / f64::from(1 << 20),
    );
    Ok(())
}

/// The state machine, fed as a member feeds it.
struct Alone {
    ns_per_record: f64,
    records: u64,
    remembered: usize,
    bytes: usize,
}

fn alone(seconds: u64) -> anyhow::Result<Alone> {
    let settings = DeduplicateSettings { duration: Duration::from_millis(200), max_bytes: 64 << 20, seed: 11 };
    let mut state = Deduplicator::new(settings);
    let names = [Name::new("tap-a")?, Name::new("tap-b")?];
    let streams = names.map(|name| Stream::new(&name, 7));
    let sources: Vec<IpAddr> = (0..SOURCES).map(|number| IpAddr::from((0xc612_0000 + number).to_be_bytes())).collect();
    let mut by_shard: Vec<Vec<IpAddr>> = vec![Vec::new(); SHARDS];
    sources.iter().for_each(|&source| by_shard[Shard::of(source).index()].push(source));
    let per_tick = RATE * TICK.as_millis() as u64 / 1_000;
    let ticks = seconds * 1_000 / TICK.as_millis() as u64;
    let mut payload = [b'x'; PAYLOAD_BYTES];
    let (mut records, mut removed, mut delivery) = (0_u64, 0_u64, 0_u32);
    let mut now = BootTime::ZERO;
    let before = cpu_time();
    for tick in 0..ticks {
        now += TICK;
        let tick_ns = 1_700_000_000_000_000_000 + tick * TICK.as_nanos() as u64;
        for stream in &streams {
            for shard in Shard::all() {
                delivery = delivery.wrapping_add(1);
                let in_shard = &by_shard[shard.index()];
                let Some(view) = state.view(now, stream, 0) else { continue };
                for number in 0..per_tick / SHARDS as u64 {
                    let of_tick = number * SHARDS as u64 + shard.index() as u64;
                    let id = tick * per_tick + of_tick;
                    payload[..8].copy_from_slice(&id.to_be_bytes());
                    let captured_at_ns = tick_ns + of_tick * (TICK.as_nanos() as u64 / per_tick);
                    let record = Record {
                        captured_at_ns,
                        source: in_shard[id as usize / SHARDS % in_shard.len()],
                        source_port: 514,
                        destination: IpAddr::from([203, 0, 113, 1]),
                        destination_port: 514,
                        format: Format::Rfc5424,
                        flags: Flags::default(),
                        payload: &payload,
                        vlans: Vlans::new(),
                        dscp_ttl: 0,
                        origin: Some(Origin { ip_id: Some(id as u32 & 0xffff), interface: 0 }),
                    };
                    let Some(key) = state.key(black_box(&record)) else { continue };
                    let verdict =
                        state.observe(key, Sighting { view, shard, captured_at_ns, delivery, is_past: false });
                    removed += u64::from(verdict != Verdict::Deliver);
                    records += 1;
                }
                state.expire(now);
                black_box(state.oldest_delivery());
            }
        }
    }
    let spent = cpu_time() - before;
    anyhow::ensure!(2 * removed == records, "{removed} of {records} removed");
    let (remembered, bytes) = (state.len(), state.memory_bytes());
    Ok(Alone { ns_per_record: spent.as_secs_f64() * 1e9 / records.max(1) as f64, records, remembered, bytes })
}

/// What the datagrams pass.
struct Path {
    captures: usize,
    /// Whether the forwarder sends what it has received.
    is_sent: bool,
}

/// One measurement of captures and a member.
struct Member {
    offered: u64,
    received: u64,
    forwarder: Duration,
    others: Duration,
}

fn print_member(path: &Path, load: Load, seconds: u64, rounds: u32) -> anyhow::Result<()> {
    let mut samples: [Vec<Member>; 2] = Default::default();
    for _ in 0..rounds {
        for (samples, deduplicate) in samples.iter_mut().zip(["", DURATION]) {
            samples.push(member(path, load, seconds, deduplicate)?);
        }
    }
    let per_record = |samples: &[Member]| {
        median(samples.iter().map(|sample| sample.forwarder.as_secs_f64() * 1e6 / sample.received.max(1) as f64))
    };
    let [without, with] = samples;
    let all = || without.iter().chain(&with);
    let received: u64 = all().map(|sample| sample.received).sum();
    let others: Duration = all().map(|sample| sample.others).sum();
    let copies = path.captures as u64;
    let lost: u64 = all().map(|sample| (copies * sample.offered).saturating_sub(sample.received)).sum();
    let (without_us, with_us) = (per_record(&without), per_record(&with));
    println!(
        "| {copies} | {} | {} | {received} | {lost} | {without_us:.3} | {with_us:.3} | **{:.3}** | {GOAL_US} | {:.2} |",
        if path.is_sent { "yes" } else { "no" },
        load.rate,
        with_us - without_us,
        others.as_secs_f64() * 1e6 / received.max(1) as f64
    );
    Ok(())
}

/// Captures of one link, and a forwarder. Its destination may want nothing of what they capture.
fn member(path: &Path, load: Load, seconds: u64, deduplicate: &str) -> anyhow::Result<Member> {
    let site = Site::new()?;
    let sink = sink(&site.collectors, 1)?;
    let filter = if path.is_sent { "" } else { "?source=203.0.113.0/24" };
    let destination = format!("udp://{}{filter}", collector(0));
    let environment = [
        ("SEKIWAKE_CAPTURE_INTERFACES", WIRE),
        ("SEKIWAKE_SYSLOG_DESTINATIONS", &*destination),
        ("SEKIWAKE_DEDUPLICATE", deduplicate),
    ];
    let mut services = Services::start(&site.host, &["sekiwake-proxy", "sekiwake-syslog-forwarder"], &environment)?;
    let taps = [("tap-a", "127.0.0.1:9690"), ("tap-b", "127.0.0.1:9691")];
    for (name, admin) in taps.into_iter().take(path.captures) {
        let own = [("SEKIWAKE_PUBLISHER", name), ("SEKIWAKE_ADMIN", admin)];
        services.add(Service::start(&site.host, "sekiwake-capture", &[&environment[..], &own].concat())?);
    }
    services.wait_until_datagrams_flow()?;
    let used = || -> anyhow::Result<Vec<Duration>> {
        services.0.iter().map(|service| Ok(service.process.usage()?.cpu)).collect()
    };
    let forwarder = services.get("sekiwake-syslog-forwarder");
    let count = |name: &str| forwarder.metrics().map_or(0, |samples| samples.count(name, &[]));
    let received = || count("sekiwake_bus_received_records_total");
    let copies = path.captures as u64;
    let warming = offer(&site, MIRRORED.into(), load, WARM_UP_S)?;
    let is_past_read = || {
        let page: serde_json::Value = serde_json::from_str(&forwarder.page("/status").unwrap_or_default()).ok()?;
        Some(page.pointer("/roles/syslog-forwarder/deduplicate/shards_reading_the_past")? == 0)
    };
    let is_warm =
        || received() >= copies * warming && (deduplicate.is_empty() || is_past_read().is_some_and(|is_read| is_read));
    wait_for("records before the measurement", Duration::from_secs(20), is_warm)?;
    let (received_before, before) = (received(), used()?);
    let offered = offer(&site, MIRRORED.into(), load, seconds)?;
    // What is still missing then counts as lost.
    let _ = wait_for("all records", Duration::from_secs(5), || received() - received_before >= copies * offered);
    if path.is_sent {
        settle(&sink, (warming + offered) * if deduplicate.is_empty() { copies } else { 1 });
    }
    let (received, after) = (received() - received_before, used()?);
    services.0.rotate_left(2);
    services.stop()?;
    let spent: Vec<Duration> = after.iter().zip(&before).map(|(after, before)| after.saturating_sub(*before)).collect();
    Ok(Member { offered, received, forwarder: spent[1], others: spent.iter().sum::<Duration>() - spent[1] })
}

/// One measurement of a capture.
struct Capture {
    claimed: u64,
    not_published: u64,
    cpu: Duration,
    machine: Duration,
}

fn print_capture(setting: (&str, &str), to: IpAddr, load: Load, seconds: u64, rounds: u32) -> anyhow::Result<()> {
    let mut samples: [Vec<Capture>; 2] = Default::default();
    for _ in 0..rounds {
        for (samples, settings) in samples.iter_mut().zip([&[][..], &[setting]]) {
            samples.push(capture(settings, to, load, seconds)?);
        }
    }
    let per_datagram = |samples: &[Capture], of: fn(&Capture) -> Duration| {
        median(samples.iter().map(|sample| of(sample).as_secs_f64() * 1e6 / sample.claimed.max(1) as f64))
    };
    let [without, with] = samples;
    let all = || without.iter().chain(&with);
    println!(
        "| `{}={}` | {} | {} | {} | {:.3} | **{:.3}** | {:.2} | {:.2} |",
        setting.0,
        setting.1,
        load.rate,
        all().map(|sample| sample.claimed).sum::<u64>(),
        all().map(|sample| sample.not_published).sum::<u64>(),
        per_datagram(&without, |sample| sample.cpu),
        per_datagram(&with, |sample| sample.cpu),
        per_datagram(&without, |sample| sample.machine),
        per_datagram(&with, |sample| sample.machine),
    );
    Ok(())
}

/// A capture and a proxy, without a subscriber that would cost more.
fn capture(settings: &[(&str, &str)], to: IpAddr, load: Load, seconds: u64) -> anyhow::Result<Capture> {
    let site = Site::new()?;
    let destination = format!("udp://{}?source=203.0.113.0/24", collector(0));
    let environment = [("SEKIWAKE_CAPTURE_INTERFACES", WIRE), ("SEKIWAKE_SYSLOG_DESTINATIONS", &*destination)];
    let names = ["sekiwake-capture", "sekiwake-proxy", "sekiwake-syslog-forwarder"];
    let services = Services::start(&site.host, &names, &[&environment[..], settings].concat())?;
    let used = || -> anyhow::Result<[Duration; 2]> { Ok([services.0[0].process.usage()?.cpu, machine_time()?]) };
    let before = used()?;
    offer(&site, to, load, seconds)?;
    let after = used()?;
    let samples = services.0[0].metrics()?;
    let [cpu, machine] = [0, 1].map(|index| after[index].saturating_sub(before[index]));
    let not_published = samples.count("sekiwake_capture_unclaimed_datagrams_total", &["reason=\"duplicate\""]);
    let claimed = samples.count("sekiwake_capture_claimed_datagrams_total", &[]);
    services.stop()?;
    Ok(Capture { claimed, not_published, cpu, machine })
}

/// The time in which any CPU was busy.
fn machine_time() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("the first line of /proc/stat")?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are in user.
    let busy: u64 = [0, 1, 2, 5, 6].iter().filter_map(|&field| ticks.get(field)).sum();
    Ok(Duration::from_secs_f64(busy as f64 / rustix::param::clock_ticks_per_second() as f64))
}
