//! `sekiwake-storer replay`: what arrives, in which order, and what the last line says.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use sekiwake_archive::{LineEncoder, LineFormat};
use sekiwake_record::{Flags, Format, Record, Vlans};
use sekiwake_testkit::{
    process::{Process, Signal},
    random::Random,
    sink::{Options, Sink},
    wait::wait_for,
};
use serde_json::Value;
use tempfile::TempDir;

use crate::real::START;

const LONG: Duration = Duration::from_secs(60);

/// A stored message.
#[derive(Clone)]
struct Sample {
    /// Nanoseconds after [`START`].
    at_ns: u64,
    source: IpAddr,
    payload: Vec<u8>,
}

/// Where the devices sent to.
const COLLECTOR: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1)), 514);

fn samples(count: u64, spacing_ns: u64) -> Vec<Sample> {
    let mut random = Random::new(7);
    let sample = |number: u64| {
        let source: IpAddr = match number % 3 {
            0 => "2001:db8::7".parse().unwrap(),
            device => [198, 51, 100, device as u8].into(),
        };
        let text = format!("<13>{number} ").into_bytes();
        let noise = random.below(300) as usize;
        // Several of one time.
        Sample { at_ns: number / 4 * 4 * spacing_ns, source, payload: [text, random.bytes(noise)].concat() }
    };
    (0..count).map(sample).collect()
}

/// Writes a closed file of a storer.
fn store(dir: &Path, member: &str, samples: &[Sample]) {
    let mut encoder = LineEncoder::new(LineFormat::Json);
    let mut lines = Vec::new();
    for sample in samples {
        let record = Record {
            captured_at_ns: START.as_nanos() + sample.at_ns,
            source: sample.source,
            source_port: 514,
            destination: COLLECTOR.ip(),
            destination_port: COLLECTOR.port(),
            format: Format::Rfc3164,
            flags: Flags::default(),
            payload: &sample.payload,
            vlans: Vlans::new(),
            dscp_ttl: 0,
            origin: None,
        };
        encoder.encode(&record, &mut lines);
    }
    let folder = dir.join("2026-11-25");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(format!("syslog@20261125T140000Z-3600s@{member}@1-1.jsonl")), lines).unwrap();
}

fn stored(samples: &[Sample]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), "m", samples);
    dir
}

/// Starts a replay of a directory, with these options.
fn replay(dir: &TempDir, options: &str) -> Process {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sekiwake-storer"));
    command.env("SEKIWAKE_STORE_DIR", dir.path()).env("SEKIWAKE_BUS_CONTROL", "tcp://127.0.0.1:9");
    command.env("SEKIWAKE_BUS_SUBSCRIBE", "tcp://127.0.0.1:9");
    command.args(["replay", "--json"]).args(options.split_whitespace());
    Process::spawn(command).unwrap()
}

/// Waits for the end. Returns the status and the last line.
fn end(mut process: Process) -> (Option<i32>, Value) {
    let status = process.wait(LONG).unwrap();
    let line = process.stdout().pop().unwrap_or_else(|| panic!("no last line: {}", process.stderr().join("\n")));
    (status.code(), serde_json::from_str(&line).unwrap())
}

/// What a replay prints that ends with an error before it sends.
fn error(mut process: Process, code: i32) -> String {
    let status = process.wait(LONG).unwrap();
    assert_eq!(status.code(), Some(code), "{:?}", process.stdout());
    process.stderr().join("\n")
}

fn sink() -> (Sink, u16) {
    let sink = Sink::bind(&[SocketAddr::from(([127, 0, 0, 1], 0))], Options::counts().payloads()).unwrap();
    let port = sink.addresses()[0].port();
    (sink, port)
}

fn payloads(sink: Sink) -> Vec<Vec<u8>> {
    sink.finish().payloads.into_iter().map(|datagram| datagram.payload).collect()
}

/// By the device that sent them: there is no order between devices.
fn by_device(payloads: &[Vec<u8>]) -> BTreeMap<u64, Vec<&[u8]>> {
    let mut devices = BTreeMap::<u64, Vec<&[u8]>>::new();
    payloads.iter().for_each(|payload| devices.entry(number_of(payload) % 3).or_default().push(payload));
    devices
}

fn number_of(payload: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(payload);
    text[4..].split(' ').next().unwrap().parse().unwrap()
}

fn expected(samples: &[Sample]) -> Vec<Vec<u8>> {
    samples.iter().map(|sample| sample.payload.clone()).collect()
}

/// Reads messages framed by octet counting (RFC 6587), or ended by line feeds, until there are as
/// many as expected.
fn read_messages(stream: &mut TcpStream, counted: bool, wanted: usize) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut messages = Vec::new();
    let mut buffer = [0; 1 << 16];
    stream.set_read_timeout(Some(LONG)).unwrap();
    while messages.len() < wanted {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the connection ended after {} messages", messages.len());
        bytes.extend_from_slice(&buffer[..read]);
        loop {
            let end = if counted { b' ' } else { b'\n' };
            let Some(at) = bytes.iter().position(|&byte| byte == end) else { break };
            if !counted {
                messages.push(bytes.drain(..=at).take(at).collect());
                continue;
            }
            let length: usize = std::str::from_utf8(&bytes[..at]).unwrap().parse().unwrap();
            if bytes.len() < at + 1 + length {
                break;
            }
            messages.push(bytes[at + 1..at + 1 + length].to_vec());
            bytes.drain(..at + 1 + length);
        }
    }
    messages
}

#[test]
fn replay_sends_every_payload_in_order_and_accounts_for_it() {
    let samples = samples(5000, 1000);
    let dir = stored(&samples);
    for pace in ["--rate 0", "--rate 20000", "--speed 1"] {
        let (sink, port) = sink();
        let to = format!("--allow-capture {pace} --to-destination udp://127.0.0.1:{port}");
        let (code, last) = end(replay(&dir, &to));
        assert_eq!(
            (code, &last["read"], &last["matched"], &last["sent"]),
            (Some(0), &5000.into(), &5000.into(), &5000.into()),
            "{last}"
        );
        assert_eq!((&last["dropped"], &last["continue"]), (&0.into(), &Value::Null), "{last}");
        sink.wait_for(5000, LONG).unwrap();
        assert!(by_device(&payloads(sink)) == by_device(&expected(&samples)), "other payloads, or another order");
    }
    // A selection, by filters of the replay and of the destination.
    let (sink, port) = sink();
    let to = format!(
        "--allow-capture --rate 0 --source 198.51.100.0/24 --to-destination udp://127.0.0.1:{port}?source=198.51.100.1"
    );
    let (code, last) = end(replay(&dir, &to));
    let of = |device: u8| {
        samples.iter().filter(move |sample| sample.source == IpAddr::from([198, 51, 100, device])).cloned()
    };
    let wanted: Vec<Sample> = of(1).collect();
    assert_eq!((code, &last["sent"], &last["filtered_out"]), (Some(0), &wanted.len().into(), &of(2).count().into()));
    sink.wait_for(wanted.len() as u64, LONG).unwrap();
    assert!(payloads(sink) == expected(&wanted));
}

#[test]
fn interrupted_replay_continues_with_the_options_of_its_last_line() {
    let samples = samples(6000, 1000);
    let dir = stored(&samples);
    let (sink, port) = sink();
    let to = format!("--allow-capture --rate 3000 --to-destination udp://127.0.0.1:{port}");
    let mut options = String::new();
    for received in [1000, 2500, 4001] {
        let process = replay(&dir, &format!("{to} {options}"));
        sink.wait_for(received, LONG).unwrap();
        process.signal(Signal::INT).unwrap();
        let (code, last) = end(process);
        assert_eq!((code, &last["dropped"]), (Some(1), &0.into()), "{last}");
        options = last["continue"].as_str().unwrap_or_else(|| panic!("{last}")).to_owned();
    }
    let (code, last) = end(replay(&dir, &format!("{to} {options}")));
    assert_eq!((code, &last["continue"]), (Some(0), &Value::Null), "{last}");
    sink.wait_for(6000, LONG).unwrap();
    assert!(by_device(&payloads(sink)) == by_device(&expected(&samples)), "missing, doubled or in another order");
}

#[test]
fn stream_destination_that_is_away_pauses_the_replay() {
    // Frames that end with a line feed cannot hold one.
    let mut samples = samples(3000, 1000);
    samples.iter_mut().for_each(|sample| sample.payload.retain(|byte| !matches!(byte, b'\n' | b'\0')));
    let dir = stored(&samples);
    for framing in ["octet-counting", "newline"] {
        let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = reserved.local_addr().unwrap();
        drop(reserved);
        let mut process = replay(&dir, &format!("--rate 0 --to-destination tcp://{address}?framing={framing}"));
        // Longer than a forwarder keeps a message for a destination.
        let started = Instant::now();
        wait_for("an outage", LONG, || started.elapsed() > Duration::from_secs(4)).unwrap();
        assert!(process.is_running().unwrap(), "{:?}", process.stderr());
        let listener = TcpListener::bind(address).unwrap();
        let reader = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            (read_messages(&mut stream, framing == "octet-counting", 3000), stream)
        });
        let (code, last) = end(process);
        let (messages, _stream) = reader.join().unwrap();
        assert_eq!((code, &last["sent"], &last["dropped"]), (Some(0), &3000.into(), &0.into()), "{last}");
        let trimmed = |payload: &Vec<u8>| payload.trim_ascii_end().to_vec();
        let [messages, wanted] = [messages, expected(&samples)].map(|all| all.iter().map(trimmed).collect::<Vec<_>>());
        assert!(messages == wanted, "other messages with {framing}");
    }
}

/// OpenSSL's server, which takes one connection and writes to a file what it receives.
struct TlsServer {
    process: Child,
    received: PathBuf,
}

impl TlsServer {
    fn start(folder: &Path, address: SocketAddr) -> TlsServer {
        let received = folder.join("received");
        let mut command = Command::new("openssl");
        command.args(["s_server", "-quiet", "-naccept", "1", "-accept", &address.to_string()]);
        command.arg("-cert").arg(folder.join("cert.pem")).arg("-key").arg(folder.join("key.pem"));
        // It sends what it reads, so its input has to stay open.
        command.stdin(Stdio::piped()).stdout(File::create(&received).unwrap()).stderr(Stdio::null());
        let server = TlsServer { process: command.spawn().unwrap(), received };
        // A connection to it would be the only one that it accepts.
        let listens = format!(":{:04X} 00000000:0000 0A ", address.port());
        wait_for("a listening server", LONG, || fs::read_to_string("/proc/net/tcp").unwrap().contains(&listens))
            .unwrap();
        server
    }

    /// The messages so far, framed by octet counting.
    fn messages(&self) -> Vec<Vec<u8>> {
        let bytes = fs::read(&self.received).unwrap();
        let mut messages = Vec::new();
        let mut rest = &bytes[..];
        while let Some(at) = rest.iter().position(|&byte| byte == b' ') {
            let length: usize = std::str::from_utf8(&rest[..at]).unwrap().parse().unwrap();
            let Some(message) = rest.get(at + 1..at + 1 + length) else { break };
            messages.push(message.to_vec());
            rest = &rest[at + 1 + length..];
        }
        messages
    }
}

impl Drop for TlsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Runs OpenSSL in a folder.
fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A folder with an authority, and a certificate of 127.0.0.1 with its key.
fn certificate() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    openssl(path, &format!("req -x509 {key} -days 2 -subj /CN=authority -out ca.pem -keyout ca.key"));
    openssl(path, &format!("req {key} -subj /CN=collector -out cert.csr -keyout key.pem"));
    fs::write(path.join("extensions"), "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let sign = "-CA ca.pem -CAkey ca.key -CAcreateserial -extfile extensions -days 2";
    openssl(path, &format!("x509 -req -in cert.csr {sign} -out cert.pem"));
    folder
}

#[test]
fn tls_destination_gets_everything_once_it_is_there_and_trusted() {
    let samples = samples(3000, 1000);
    let dir = stored(&samples);
    let (folder, other) = (certificate(), certificate());
    let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let options = |folder: &TempDir| {
        format!("--rate 0 --to-destination tls://{address}?ca={}", folder.path().join("ca.pem").display())
    };
    // Another authority.
    let server = TlsServer::start(folder.path(), address);
    let process = replay(&dir, &options(&other));
    process.wait_for_line(LONG, |line| line.contains("connection failed") && line.contains("TLS: ")).unwrap();
    process.signal(Signal::KILL).unwrap();
    assert!(server.messages().is_empty());
    drop((process, server));
    // The right one, later than the replay.
    let process = replay(&dir, &options(&folder));
    process.wait_for_line(LONG, |line| line.contains("connection failed")).unwrap();
    let server = TlsServer::start(folder.path(), address);
    let (code, last) = end(process);
    assert_eq!((code, &last["sent"], &last["dropped"]), (Some(0), &3000.into(), &0.into()), "{last}");
    wait_for("everything to be received", LONG, || server.messages().len() == 3000).unwrap();
    assert!(server.messages() == expected(&samples), "other messages, or another order");
}

#[test]
fn replay_stopped_during_an_outage_says_where_to_continue() {
    let samples = samples(500, 1000);
    let dir = stored(&samples);
    let reserved = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = reserved.local_addr().unwrap();
    drop(reserved);
    let to = format!("--rate 0 --to-destination tcp://{address}");
    let process = replay(&dir, &to);
    process.wait_for_line(LONG, |line| line.contains("connection failed")).unwrap();
    process.signal(Signal::INT).unwrap();
    let (code, last) = end(process);
    assert_eq!((code, &last["sent"], &last["dropped"]), (Some(1), &0.into(), &0.into()), "{last}");
    let options = last["continue"].as_str().unwrap().to_owned();
    let listener = TcpListener::bind(address).unwrap();
    let reader = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        (read_messages(&mut stream, true, 500), stream)
    });
    let (code, last) = end(replay(&dir, &format!("{to} {options}")));
    assert_eq!((code, &last["sent"]), (Some(0), &500.into()), "{last}");
    assert!(reader.join().unwrap().0 == expected(&samples));
}

#[test]
fn several_directories_are_one_store() {
    let samples = samples(2000, 1000);
    let first = stored(&samples.iter().step_by(2).cloned().collect::<Vec<_>>());
    let second = stored(&samples.iter().skip(1).step_by(2).cloned().collect::<Vec<_>>());
    let (sink, port) = sink();
    let dirs = format!("--dir {} --dir {}", first.path().display(), second.path().display());
    let to = format!("{dirs} --allow-capture --rate 0 --to-destination udp://127.0.0.1:{port}");
    let (code, last) = end(replay(&first, &to));
    assert_eq!((code, &last["sent"]), (Some(0), &2000.into()), "{last}");
    sink.wait_for(2000, LONG).unwrap();
    let numbers: Vec<u64> = payloads(sink).iter().map(|payload| number_of(payload)).collect();
    for device in 0..3 {
        let of_device = numbers.iter().filter(|number| *number % 3 == device);
        assert!(of_device.is_sorted(), "not in the order of capture");
    }
    let mut sorted = numbers;
    sorted.sort_unstable();
    assert_eq!(sorted, (0..2000).collect::<Vec<u64>>());
}

#[test]
fn dry_run_prints_count_bytes_and_duration() {
    let samples = samples(4001, 1_000_000);
    let dir = stored(&samples);
    let bytes: usize = samples.iter().map(|sample| sample.payload.len()).sum();
    for (pace, seconds) in [("", Some(4.0)), ("--speed 10", Some(0.4)), ("--rate 500", Some(8.0)), ("--rate 0", None)] {
        let (code, last) = end(replay(&dir, &format!("--dry-run {pace}")));
        assert_eq!((code, &last["datagrams"], &last["bytes"]), (Some(0), &4001.into(), &bytes.into()), "{last}");
        assert_eq!(last["seconds"].as_f64(), seconds, "{pace}");
        assert_eq!(
            (&last["first"], &last["last"]),
            (&"2026-11-25T14:00:00.000000000Z".into(), &"2026-11-25T14:00:04.000000000Z".into())
        );
    }
}

#[test]
fn destinations_that_a_replay_must_not_use_are_refused() {
    let dir = stored(&samples(10, 1000));
    let elsewhere = "udp://127.0.0.1:9999";
    // They were sent to.
    let said = error(replay(&dir, &format!("--to-destination udp://{COLLECTOR}")), 1);
    assert!(
        said.contains("refused: devices send to 203.0.113.1:514") && said.contains("--allow-capture-gap"),
        "{said}"
    );
    // There is no bus.
    let said = error(replay(&dir, &format!("--allow-capture-gap --to-destination {elsewhere}")), 1);
    assert!(said.contains("no control connection") && said.contains("--allow-capture "), "{said}");
    for (options, why) in [
        ("--allow-capture --to-destination tcp://127.0.0.1:9?spool=1MiB".to_owned(), "spool="),
        (format!("--allow-capture --to-destination xflow={elsewhere}"), "not selected"),
        ("--allow-capture --to-destination snmp://127.0.0.1".to_owned(), "--to-destination for syslog"),
        (format!("--from yesterday --to-destination {elsewhere}"), "from="),
    ] {
        let said = error(replay(&dir, &options), 1);
        assert!(said.contains(why), "{options}: {said}");
    }
    let said = error(replay(&dir, "--rate 5 --speed 2 --to-destination udp://127.0.0.1:9999"), 2);
    assert!(said.contains("cannot be used with"), "{said}");
}

#[test]
fn destination_with_icmp_errors_is_probed_and_reported() {
    let samples = samples(200, 1000);
    let dir = stored(&samples);
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let process = replay(&dir, &format!("--allow-capture --rate 50 --to-destination udp://{address}"));
    process.wait_for_line(LONG, |line| line.contains("destination is down")).unwrap();
    let sink = Sink::bind(&[address], Options::counts().payloads()).unwrap();
    sink.wait_for(1, LONG).unwrap();
    process.signal(Signal::INT).unwrap();
    let (code, last) = end(process);
    assert_eq!(code, Some(1));
    assert!(last["outages"].as_u64().unwrap() >= 1 && last["sent"].as_u64().unwrap() < 200, "{last}");
    assert!(last["continue"].is_string(), "{last}");
}
