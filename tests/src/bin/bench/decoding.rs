//! The table `decoding`: what it costs to decode a record into rows, without printing them, beside
//! nfcapd and nfdump on the same flows.
//!
//! nfcapd's cost is its user time, which leaves out what the kernel does to receive: it decodes and
//! stores. That of nfdump is the user time of printing what nfcapd stored, as CSV.

use std::{
    fs,
    hint::black_box,
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::Context;
use rustix::time::{ClockId, clock_gettime};
use sekiwake_decode::{Decoder, Row};
use sekiwake_identify::identify;
use sekiwake_record::{Flags, Kind, Record, Vlans};
use sekiwake_testkit::{process::Process, wait::wait_for};
use sekiwake_traffic::{
    Protocol,
    generate::{Cursor, Generator, Moment, Request, Source},
};

/// What is decoded: protocol, kind, and bytes of a datagram.
const CASES: [(Protocol, Kind, usize); 9] = [
    (Protocol::Netflow5, Kind::Xflow, 1464),
    (Protocol::Netflow9, Kind::Xflow, 1464),
    (Protocol::Ipfix, Kind::Xflow, 1464),
    (Protocol::Sflow, Kind::Xflow, 1400),
    (Protocol::Snmp1Trap, Kind::SnmpTrap, 200),
    (Protocol::Snmp2cTrap, Kind::SnmpTrap, 200),
    (Protocol::Snmp3Trap, Kind::SnmpTrap, 300),
    (Protocol::Rfc3164, Kind::Syslog, 200),
    (Protocol::Rfc5424, Kind::Syslog, 200),
];

/// How many different datagrams are decoded, over and over.
const DATAGRAMS: u64 = 500;
/// How many flows nfcapd receives.
const FLOWS: u64 = 1_000_000;
const LIMIT: Duration = Duration::from_secs(120);
const SOURCE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);

/// Costs of a record in microseconds of CPU time.
struct Peer {
    nfcapd_us: f64,
    nfdump_us: f64,
}

/// Prints the table.
///
/// # Errors
/// nfcapd or nfdump fails. Without them their columns are empty.
pub(crate) fn run(seconds: u64) -> anyhow::Result<()> {
    println!("\n### decoding\n");
    println!("| format | records per datagram | µs of CPU per record | nfcapd, user | nfdump, user |");
    println!("|---|---:|---:|---:|---:|");
    for (protocol, kind, size) in CASES {
        let generator = Generator::new(protocol, 1, 0);
        let (records, cost_us) = decoded(&generator, kind, size, Duration::from_secs(seconds.min(3)));
        let is_flow = matches!(protocol, Protocol::Netflow5 | Protocol::Netflow9 | Protocol::Ipfix);
        let peer = match is_flow && Command::new("nfcapd").arg("-V").output().is_ok() {
            true => Some(stored(&generator, size).with_context(|| format!("nfcapd and {protocol}"))?),
            false => None,
        };
        let shown = |cost: Option<f64>| cost.map(|us| format!("{us:.2}")).unwrap_or_default();
        println!(
            "| {protocol} | {records:.1} | **{cost_us:.2}** | {} | {} |",
            shown(peer.as_ref().map(|peer| peer.nfcapd_us)),
            shown(peer.as_ref().map(|peer| peer.nfdump_us)),
        );
    }
    Ok(())
}

/// Datagrams of one source; templates are in the first.
struct Datagrams<'a> {
    generator: &'a Generator,
    size: usize,
    cursor: Cursor,
}

impl Datagrams<'_> {
    /// Appends the next one, and returns its records.
    fn write(&mut self, out: &mut Vec<u8>) -> u64 {
        let moment = Moment::new(Duration::from_secs(1_767_323_045), Duration::from_secs(3600));
        let source = Source { index: 0, address: SOURCE.into() };
        let template = self.cursor.datagrams == 0 && self.generator.has_template();
        let request = Request { source, cursor: self.cursor, size: self.size, template, moment: &moment };
        let units = self.generator.write(&request, out);
        self.cursor.advance(units);
        units
    }
}

/// Records per datagram, and microseconds per record.
fn decoded(generator: &Generator, kind: Kind, size: usize, limit: Duration) -> (f64, f64) {
    let mut datagrams = Datagrams { generator, size, cursor: Cursor::default() };
    let payloads: Vec<Vec<u8>> = (0..DATAGRAMS)
        .map(|_| {
            let mut payload = Vec::new();
            datagrams.write(&mut payload);
            payload
        })
        .collect();
    let mut decoder = Decoder::new();
    let (mut passes, mut rows) = (0_u64, 0_u64);
    let started = cpu_time();
    while passes == 0 || cpu_time() - started < limit {
        passes += 1;
        for payload in &payloads {
            let record = Record {
                captured_at_ns: 1_767_323_045_000_000_000,
                source: SOURCE.into(),
                source_port: 50_000,
                destination: Ipv4Addr::new(203, 0, 113, 1).into(),
                destination_port: 2055,
                format: identify(Some(kind), payload),
                flags: Flags::default(),
                payload,
                vlans: Vlans::new(),
                dscp_ttl: 0,
                origin: None,
            };
            decoder.decode(Some(kind), &record, |row| {
                rows += u64::from(!matches!(black_box(row), Row::Undecoded(_)));
            });
        }
    }
    let spent = cpu_time() - started;
    (rows as f64 / (passes * DATAGRAMS) as f64, spent.as_secs_f64() * 1e6 / rows.max(1) as f64)
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// The cost of nfcapd and nfdump.
fn stored(generator: &Generator, size: usize) -> anyhow::Result<Peer> {
    let folder = tempfile::tempdir()?;
    let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new("nfcapd");
    command
        .args(["-p", &port.to_string(), "-b", "127.0.0.1", "-t", "86400", "-B", "67108864", "-l"])
        .arg(folder.path());
    let mut nfcapd = Process::spawn(command)?;
    wait_for("nfcapd to listen", LIMIT, || queued(port).is_some())?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut datagrams = Datagrams { generator, size, cursor: Cursor::default() };
    let (mut sent, mut payload) = (0, Vec::new());
    while sent < FLOWS {
        payload.clear();
        sent += datagrams.write(&mut payload);
        socket.send_to(&payload, to)?;
        if datagrams.cursor.datagrams.is_multiple_of(50) {
            wait_for("nfcapd to read", LIMIT, || queued(port).is_some_and(|bytes| bytes < 64 << 10))?;
        }
    }
    wait_for("nfcapd to read everything", LIMIT, || queued(port) == Some(0))?;
    let user = user_time(nfcapd.pid())?;
    nfcapd.stop(LIMIT)?;
    let output = Command::new("bash")
        .args(["-c", "TIMEFORMAT=%U; time nfdump -q -R \"$0\" -o csv | wc -l"])
        .arg(folder.path())
        .env("LC_ALL", "C")
        .output()?;
    let lines: u64 = String::from_utf8_lossy(&output.stdout).trim().parse().context("lines of nfdump")?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let seconds: f64 = errors.lines().last().and_then(|line| line.trim().parse().ok()).context("time of nfdump")?;
    anyhow::ensure!(lines >= sent * 99 / 100, "nfdump has {lines} of {sent} flows: {errors}");
    Ok(Peer { nfcapd_us: user.as_secs_f64() * 1e6 / sent as f64, nfdump_us: seconds * 1e6 / lines as f64 })
}

/// Bytes that wait at a UDP port; `None` if nothing listens there.
fn queued(port: u16) -> Option<u64> {
    let sockets = fs::read_to_string("/proc/net/udp").ok()?;
    let line = sockets.lines().find(|line| {
        line.split_whitespace().nth(1).is_some_and(|address| address.ends_with(&format!(":{port:04X}")))
    })?;
    let (_, waiting) = line.split_whitespace().nth(4)?.split_once(':')?;
    u64::from_str_radix(waiting, 16).ok()
}

/// The user time of a process, to a hundredth of a second.
fn user_time(pid: u32) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))?;
    let after_name = stat.rsplit_once(") ").context("stat")?.1;
    let ticks: u64 = after_name.split(' ').nth(11).context("utime")?.parse()?;
    Ok(Duration::from_millis(ticks * 10))
}
