//! The table `jetstream`: the bus on NATS servers beside the proxy, and a device whose datagrams
//! cross a slow link to the server.
//!
//! ```text
//! sender ──wire──▶ capture ─▶ proxy, one or three nats-servers ─▶ syslog-forwarder ──▶ sink
//! sender ──wire──▶ capture ─▶ bridge, 5 ms each way ─▶ nats-server ─▶ syslog-forwarder ──▶ sink
//! ```

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use sekiwake_testkit::{netns::Namespace, process::Process, wait::wait_for};
use sekiwake_tests::{MIRRORED, Service, Services, Site, WIRE, binary, get, nats::NatsServer, sent_by};
use tempfile::TempDir;

use super::{Latency, Load, endpoint, latency, load, losses, offer, settle, sink};

/// The goals: how many times the proxy's CPU time per datagram the servers may use.
const GOALS: [(usize, f64); 2] = [(1, 2.5), (3, 7.0)];
const LOAD: Load = load(100_000, "200", 64);

/// The device behind the slow link.
const DEVICE: Load = load(50_000, "200", 1);
const DELAY: Duration = Duration::from_millis(5);
/// The most pieces of at most 64 KiB that wait in one direction of the link.
const MAX_WAITING: usize = 4096;
/// How long the link is held up, shorter than the time after which a connection counts as lost.
const HELD: Duration = Duration::from_secs(1);

const LONG: Duration = Duration::from_secs(60);
const CLIENTS: u16 = 4222;
const ROUTES: u16 = 6222;
const HEALTH: u16 = 8222;
const BRIDGE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4232);

/// Servers on loopback in one namespace, with their disks.
struct Servers<'a> {
    servers: Vec<NatsServer<'a>>,
    _disk: TempDir,
}

impl<'a> Servers<'a> {
    fn start(namespace: &'a Namespace, count: u16) -> anyhow::Result<Servers<'a>> {
        let disk = tempfile::tempdir()?;
        let start = |number: u16| {
            let folder = disk.path().join(number.to_string());
            std::fs::create_dir(&folder)?;
            let mut configuration = format!(
                "server_name: n{number}\nhost: 127.0.0.1\nport: {}\nhttp: \"127.0.0.1:{}\"\n\
                 jetstream {{ store_dir: \"{}\", max_file_store: 64GB }}\n",
                CLIENTS + number,
                HEALTH + number,
                folder.display()
            );
            if count > 1 {
                let routes: Vec<String> =
                    (0..count).map(|other| format!("\"nats-route://127.0.0.1:{}\"", ROUTES + other)).collect();
                let (listen, routes) = (ROUTES + number, routes.join(", "));
                configuration +=
                    &format!("cluster {{ name: bench, listen: \"127.0.0.1:{listen}\", routes: [{routes}] }}\n");
            }
            NatsServer::start(namespace, &folder, &configuration)
        };
        let servers = (0..count).map(start).collect::<anyhow::Result<Vec<_>>>()?;
        for number in 0..count {
            let address = (Ipv4Addr::LOCALHOST, HEALTH + number).into();
            wait_for("a healthy server", LONG, || {
                namespace.enter(|| get(address, "/healthz")).is_ok_and(|answer| answer.is_ok())
            })?;
        }
        Ok(Servers { servers, _disk: disk })
    }

    fn cpu_time(&self) -> anyhow::Result<Duration> {
        self.servers.iter().map(|server| server.process.cpu_time()).sum()
    }
}

/// One measurement.
struct Measured {
    offered: u64,
    delivered: u64,
    capture: Duration,
    /// The proxy, or all servers.
    bus: Duration,
    forwarder: Duration,
    latency: Option<Latency>,
    note: String,
}

impl Measured {
    fn micros(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.offered.max(1) as f64
    }
}

/// Measures and prints both tables.
pub(super) fn run(repeat: u32, seconds: u64) -> anyhow::Result<()> {
    println!("\n### jetstream\n");
    println!(
        "| bus | rate/s | bytes | sources | offered | delivered | µs of CPU per datagram: capture | bus | forwarder | of the proxy | goal | median | p99 | |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|");
    for _ in 0..repeat {
        let proxy = measure(0, seconds)?;
        let of_proxy = proxy.micros(proxy.bus);
        print(&proxy, "the proxy", "", "");
        for (count, goal) in GOALS {
            let measured = measure(count as u16, seconds)?;
            let times = measured.micros(measured.bus) / of_proxy;
            let name = if count == 1 { "one server" } else { "three servers" };
            print(&measured, name, &format!("{times:.1} ×"), &format!("{goal} ×"));
        }
    }
    println!("\n### one device behind a slow link\n");
    println!(
        "| rate/s | bytes | delay each way | offered | delivered | not published | median | p99 | waiting, most | held up | caught up after |"
    );
    println!("|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
    (0..repeat).try_for_each(|_| slow_link(seconds))
}

fn print(measured: &Measured, name: &str, times: &str, goal: &str) {
    let Load { rate, sizes, sources, .. } = LOAD;
    let Measured { offered, delivered, note, .. } = measured;
    let [capture, bus, forwarder] =
        [measured.capture, measured.bus, measured.forwarder].map(|time| measured.micros(time));
    let (median, p99) = shown(measured.latency.as_ref());
    println!(
        "| {name} | {rate} | {sizes} | {sources} | {offered} | {delivered} | {capture:.2} | **{bus:.2}** | {forwarder:.2} | {times} | {goal} | {median} | {p99} | {note} |"
    );
}

/// Median and 99th percentile.
fn shown(latency: Option<&Latency>) -> (String, String) {
    let milliseconds = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    latency.map(|latency| (milliseconds(latency.median), milliseconds(latency.p99))).unwrap_or_default()
}

/// Measures the bus on this many servers, or with the proxy if there are none.
fn measure(servers: u16, seconds: u64) -> anyhow::Result<Measured> {
    let site = Site::new()?;
    let sink = sink(&site.collectors, 1)?;
    let nats = if servers > 0 { Some(Servers::start(&site.host, servers)?) } else { None };
    let names: &[&str] = match nats {
        Some(_) => &["sekiwake-capture", "sekiwake-syslog-forwarder"],
        None => &["sekiwake-capture", "sekiwake-syslog-forwarder", "sekiwake-proxy"],
    };
    let urls =
        (0..servers).map(|number| format!("nats://127.0.0.1:{}", CLIENTS + number)).collect::<Vec<_>>().join(",");
    let destination = format!("udp://{}", endpoint(0));
    let mut environment = vec![("SEKIWAKE_CAPTURE_INTERFACES", WIRE), ("SEKIWAKE_SYSLOG_DESTINATIONS", &*destination)];
    if nats.is_some() {
        environment.push(("SEKIWAKE_BUS", &*urls));
    }
    let services = Services::start(&site.host, names, &environment)?;
    let used = || -> anyhow::Result<[Duration; 3]> {
        let of = |index: usize| services.0[index].process.cpu_time();
        let bus = nats.as_ref().map_or_else(|| of(2), Servers::cpu_time)?;
        Ok([of(0)?, bus, of(1)?])
    };
    let before = used()?;
    let offered = offer(&site, MIRRORED.into(), LOAD, seconds)?;
    settle(&sink, offered);
    let after = used()?;
    let (capture, forwarder) = (services.0[0].metrics()?, services.0[1].metrics()?);
    services.stop()?;
    let report = sink.finish();
    let [capture_time, bus_time, forwarder_time] = [0, 1, 2].map(|index: usize| after[index] - before[index]);
    Ok(Measured {
        offered,
        delivered: report.received,
        capture: capture_time,
        bus: bus_time,
        forwarder: forwarder_time,
        latency: latency(&forwarder),
        note: losses(offered, &capture, &forwarder, report.dropped),
    })
}

/// One device whose datagrams reach the server late, and a pause of the link.
fn slow_link(seconds: u64) -> anyhow::Result<()> {
    let site = Site::new()?;
    let sink = sink(&site.collectors, 1)?;
    let _servers = Servers::start(&site.host, 1)?;
    let bridge = Bridge::start(&site.host, (Ipv4Addr::LOCALHOST, CLIENTS).into())?;
    let destination = format!("udp://{}", endpoint(0));
    let near = ("SEKIWAKE_BUS", format!("nats://127.0.0.1:{CLIENTS}"));
    let far = ("SEKIWAKE_BUS", format!("nats://{BRIDGE}"));
    let forwarder_settings = [(near.0, &*near.1), ("SEKIWAKE_SYSLOG_DESTINATIONS", &*destination)];
    let mut services = Services::start(&site.host, &["sekiwake-syslog-forwarder"], &forwarder_settings)?;
    let capture_settings = [(far.0, &*far.1), ("SEKIWAKE_CAPTURE_INTERFACES", WIRE)];
    services.add(Service::start(&site.host, "sekiwake-capture", &capture_settings)?);
    services.wait_until_datagrams_flow()?;
    let count = |name: &str, metric: &str| services.get(name).metrics().map_or(0, |samples| samples.count(metric, &[]));
    let waiting = || count("sekiwake-capture", "sekiwake_bus_waiting_bytes");

    let mut sender = start_device(&site, 2 * seconds)?;
    let mut most = 0;
    let end = Instant::now() + Duration::from_secs(seconds);
    wait_for("the first part", LONG + Duration::from_secs(seconds), || {
        most = most.max(waiting());
        thread::sleep(Duration::from_millis(100));
        Instant::now() >= end
    })?;
    let latency = latency(&services.get("sekiwake-syslog-forwarder").metrics()?);
    bridge.hold(true);
    thread::sleep(HELD);
    bridge.hold(false);
    let released = Instant::now();
    let usual = most;
    let caught_up = wait_for("what waits to be published", LONG, || {
        thread::sleep(Duration::from_millis(20));
        waiting() <= usual
    });
    let caught_up = match caught_up {
        Ok(()) => format!("{:.1} s", released.elapsed().as_secs_f64()),
        Err(_) => "never".to_owned(),
    };
    let offered = sent_by(&mut sender, Duration::from_secs(2 * seconds) + LONG)?;
    settle(&sink, offered);
    let unpublished = count("sekiwake-capture", "sekiwake_bus_unpublished_records_total");
    services.stop()?;
    let delivered = sink.finish().received;
    let Load { rate, sizes, .. } = DEVICE;
    let (median, p99) = shown(latency.as_ref());
    let (delay, held, kib) = (DELAY.as_millis(), HELD.as_secs(), usual >> 10);
    println!(
        "| {rate} | {sizes} | {delay} ms | {offered} | {delivered} | {unpublished} | {median} | {p99} | {kib} KiB | {held} s | {caught_up} |"
    );
    Ok(())
}

fn start_device(site: &Site, seconds: u64) -> anyhow::Result<Process> {
    let Load { rate, sizes, .. } = DEVICE;
    let mut command = site.devices.command(binary("sekiwake-sender"));
    command.args(["--to", &MIRRORED.to_string(), "--from", "198.19.0.0/16", "--size", sizes, "--json"]);
    command.args(["--rate", &rate.to_string(), "--duration", &format!("{seconds}s")]);
    Process::spawn(command)
}

/// A link with a delay in each direction, in user space.
struct Bridge {
    is_held: Arc<AtomicBool>,
}

impl Bridge {
    /// Listens at [`BRIDGE`], and passes connections on to `to`. Its threads end with the process.
    fn start(namespace: &Namespace, to: SocketAddr) -> anyhow::Result<Bridge> {
        let listener = namespace.enter(|| TcpListener::bind(BRIDGE))?.context("cannot bind the bridge")?;
        let is_held = Arc::new(AtomicBool::new(false));
        let held = Arc::clone(&is_held);
        // Threads that start in the namespace connect in it.
        namespace.enter(|| {
            thread::spawn(move || {
                for near in listener.incoming().flatten() {
                    let Ok(far) = TcpStream::connect(to) else { continue };
                    let ends = near.try_clone().and_then(|near| Ok((near, far.try_clone()?)));
                    let Ok((near_again, far_again)) = ends else { continue };
                    pass(near, far_again, &held);
                    pass(far, near_again, &held);
                }
            });
        })?;
        Ok(Bridge { is_held })
    }

    /// Holds up everything, or lets it pass again.
    fn hold(&self, is_held: bool) {
        self.is_held.store(is_held, Relaxed);
    }
}

/// What has been read, and when it may be written.
struct Late {
    at: Instant,
    bytes: Vec<u8>,
}

/// Passes the bytes of one direction on, late.
fn pass(from: TcpStream, to: TcpStream, is_held: &Arc<AtomicBool>) {
    let (sender, receiver) = sync_channel(MAX_WAITING);
    let is_held = Arc::clone(is_held);
    thread::spawn(move || read(from, &sender));
    thread::spawn(move || write(to, &receiver, &is_held));
}

fn read(mut from: TcpStream, late: &SyncSender<Late>) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = from.read(&mut buffer) {
        let bytes = buffer[..length].to_vec();
        if length == 0 || late.send(Late { at: Instant::now() + DELAY, bytes }).is_err() {
            return;
        }
    }
}

fn write(mut to: TcpStream, late: &Receiver<Late>, is_held: &AtomicBool) {
    let _ = to.set_nodelay(true);
    while let Ok(Late { at, bytes }) = late.recv() {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        while is_held.load(Relaxed) {
            thread::sleep(Duration::from_millis(1));
        }
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}
