//! The tables `otlp`, `kafka`, `kafka-mock` and `rsyslog-kafka`: deliveries that are acknowledged,
//! with their receivers on the same cores.
//!
//! tansu does not answer the old librdkafka of rsyslog, so both send to the fake brokers of a newer
//! librdkafka as well.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context, ensure};
use sekiwake_testkit::{process::Process, wait::wait_for};
use sekiwake_tests::{
    HOST, MIRRORED, Services, Site, WIRE, collector,
    receivers::{Tansu, rotel, script},
};

use super::{Cost, EQUAL, LINES, Load, Row, costs, latency, load, losses, offer, start_rsyslog};

pub(super) const LOADS: [Load; 5] = [
    load(25_000, LINES, 64),
    load(50_000, LINES, 64),
    load(75_000, LINES, 64),
    load(100_000, LINES, 64),
    load(50_000, EQUAL, 1),
];

const PARTITIONS: u32 = 6;
const LONG: Duration = Duration::from_secs(60);

/// To rotel, which drops what it has accepted.
pub(super) fn otlp(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let address = SocketAddr::from((collector(0), 4318));
    let mut command = site.collectors.command(rotel()?);
    command.args(["start", "--exporter", "blackhole", "--otlp-http-endpoint", &address.to_string()]);
    command.args(["--otlp-grpc-endpoint", &SocketAddr::from((collector(0), 4317)).to_string()]);
    let receiver = Process::spawn(command)?;
    let connects = || site.collectors.enter(|| TcpStream::connect(address).is_ok()).unwrap_or_default();
    wait_for("rotel", LONG, connects)?;
    delivered(site, load, seconds, &format!("otlp+http://{address}"), ("rotel", &receiver), |_| Ok(None))
}

pub(super) fn kafka(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let tansu = Tansu::start(&site.collectors, SocketAddr::from((collector(0), 9092)))?;
    tansu.create("logs", PARTITIONS)?;
    let uri = format!("kafka://{}:9092/logs?value=raw", collector(0));
    delivered(site, load, seconds, &uri, ("tansu", &tansu.process), |_| tansu.count("logs").map(Some))
}

pub(super) fn kafka_mock(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let folder = tempfile::tempdir()?;
    let brokers = Brokers::start(site, &folder)?;
    let uri = format!("kafka://{}/logs?value=raw", brokers.servers);
    delivered(site, load, seconds, &uri, ("brokers", &brokers.process), |_| brokers.stored(site).map(Some))
}

/// rsyslog with omkafka, whose options are those of the forwarder: idempotent, acknowledged by all.
pub(super) fn rsyslog(site: &Site, load: Load, seconds: u64) -> anyhow::Result<Row> {
    let folder = tempfile::tempdir()?;
    let brokers = Brokers::start(site, &folder)?;
    let servers = brokers.servers.split(',').map(|server| format!("\"{server}\"")).collect::<Vec<_>>().join(",");
    let rules = format!(
        "module(load=\"omkafka\")\n\
         template(name=\"raw\" type=\"string\" string=\"%rawmsg%\")\n\
         template(name=\"key\" type=\"string\" string=\"%fromhost-ip%\")\n\
         input(type=\"imudp\" address=\"{HOST}\" port=\"514\" rcvbufSize=\"64m\" ruleset=\"deliver\")\n\
         ruleset(name=\"deliver\" queue.type=\"FixedArray\" queue.size=\"500000\" queue.dequeueBatchSize=\"1024\") {{\n\
           action(type=\"omkafka\" broker=[{servers}] topic=\"logs\" template=\"raw\" dynaKey=\"on\" key=\"key\"\n\
             confParam=[\"enable.idempotence=true\",\"acks=all\",\"linger.ms=200\",\"queue.buffering.max.messages=500000\"])\n\
         }}\n",
    );
    let mut process = start_rsyslog(site, folder.path(), &rules)?;
    let before = [process.cpu_time()?, brokers.process.cpu_time()?];
    let offered = offer(site, HOST.into(), load, seconds)?;
    let mut stored = 0;
    let is_silent = || {
        // Well above linger.ms.
        std::thread::sleep(Duration::from_secs(1));
        let last = std::mem::replace(&mut stored, brokers.stored(site).unwrap_or_default());
        stored >= offered || stored == last && stored > 0
    };
    let _ = wait_for("everything", LONG, is_silent);
    let after = [process.cpu_time()?, brokers.process.cpu_time()?];
    process.stop(Duration::from_secs(20))?;
    let cost = costs(&["rsyslog", "brokers"], &before, &after);
    Ok(Row { offered, delivered: stored, cost, latency: None, note: String::new() })
}

/// The fake brokers.
struct Brokers {
    servers: String,
    process: Process,
}

impl Brokers {
    /// They listen on the loopback of the host's namespace only.
    fn start(site: &Site, folder: &tempfile::TempDir) -> anyhow::Result<Brokers> {
        let commands = folder.path().join("commands");
        fs::write(&commands, "")?;
        let mut command = script(&site.host, "mock_brokers.py");
        command.arg(&commands);
        let process = Process::spawn(command)?;
        let servers = process.wait_for_line(LONG, |line| line.starts_with("127.0.0.1:"))?;
        Ok(Brokers { servers, process })
    }

    /// How many records they were given.
    fn stored(&self, site: &Site) -> anyhow::Result<u64> {
        let mut command: Command = site.host.command("kcat");
        command.args(["-Q", "-b", &self.servers]);
        for partition in 0..PARTITIONS {
            command.args(["-t", &format!("logs:{partition}:-1")]);
        }
        let output = command.output()?;
        ensure!(output.status.success(), "kcat: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        // logs [0] offset 17
        let offsets = text.lines().map(|line| line.rsplit(' ').next().unwrap_or_default().parse::<u64>());
        offsets.sum::<Result<u64, _>>().with_context(|| text.clone())
    }
}

/// Through the three services. `stored` is the number at the receiver; if it is not known, what it
/// has acknowledged counts.
fn delivered(
    site: &Site,
    load: Load,
    seconds: u64,
    uri: &str,
    receiver: (&'static str, &Process),
    stored: impl Fn(&Site) -> anyhow::Result<Option<u64>>,
) -> anyhow::Result<Row> {
    let names = ["sekiwake-capture", "sekiwake-proxy", "sekiwake-syslog-forwarder"];
    let environment = [("SEKIWAKE_CAPTURE_INTERFACES", WIRE), ("SEKIWAKE_SYSLOG_DESTINATIONS", uri)];
    let services = Services::start(&site.host, &names, &environment)?;
    let used = || -> anyhow::Result<Vec<Duration>> {
        let processes = services.0.iter().map(|service| &service.process).chain([receiver.1]);
        processes.map(Process::cpu_time).collect()
    };
    let before = used()?;
    let offered = offer(site, MIRRORED.into(), load, seconds)?;
    let forwarder = services.0.last().context("a forwarder")?;
    let acknowledged =
        || forwarder.metrics().map_or(0, |samples| samples.count("sekiwake_forward_sent_datagrams_total", &[]));
    // Everything that is still missing then counts as lost.
    let _ = wait_for("every acknowledgement", Duration::from_secs(20), || acknowledged() >= offered);
    let after = used()?;
    let delivered = stored(site)?.unwrap_or_else(acknowledged);
    let samples = forwarder.metrics()?;
    let capture = services.0[0].metrics()?;
    services.stop()?;
    let cost: Vec<Cost> = costs(&["capture", "proxy", "forwarder", receiver.0], &before, &after);
    let mut note = losses(offered, &capture, &samples, None);
    if delivered > offered {
        note = format!("{} twice {note}", delivered - offered);
    }
    Ok(Row { offered, delivered, cost, latency: latency(&samples), note })
}
