//! The sender's datagrams, checked by tshark, nfcapd and snmptrapd; and the program itself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{net::SocketAddr, process::Command, time::Duration};

use sekiwake_testkit::{
    netns::{End, Link, Namespace, namespaces_or_skipped},
    process::Process,
    sink::{Options, Sink},
    skip::skip,
    wait::wait_for,
};
use sekiwake_traffic::Protocol;

const LONG: Duration = Duration::from_secs(60);

fn sender(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sekiwake-sender"));
    command.args(arguments.split_whitespace());
    command
}

/// Runs the sender inside `namespace` to its end and returns its last line.
fn send(namespace: &Namespace, arguments: &str) -> serde_json::Value {
    let mut process = Process::spawn(namespace.exec(&sender(&format!("{arguments} --json")))).unwrap();
    let status = process.wait(LONG).unwrap();
    assert!(status.success(), "{arguments}: {}", process.stderr().join("\n"));
    serde_json::from_str(process.stdout().last().unwrap()).unwrap()
}

/// A namespace, or `None` when namespaces or one of the tools are not available.
fn namespace_with(tools: &[&str]) -> Option<Namespace> {
    if !namespaces_or_skipped() {
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = |tool: &&&str| std::env::split_paths(&path).any(|directory| directory.join(tool).exists());
    if let Some(missing) = tools.iter().find(|tool| !installed(tool)) {
        skip(format!("{missing} is not installed"));
        return None;
    }
    Some(Namespace::new("skw-send").unwrap())
}

fn check_complete(to: &str, from: &str, options: &str) {
    let Some(namespace) = namespace_with(&[]) else { return };
    let ports = [514, 2055, 4739, 6343, 162];
    let listening: Vec<SocketAddr> = ports.map(|port| SocketAddr::new(to.parse().unwrap(), port)).to_vec();
    let sink = namespace.enter(|| Sink::bind(&listening, Options::counts().digest().numbered())).unwrap().unwrap();
    let arguments = format!("--to {to} --from {from} --protocol all --rate 20000 --count 4000 --digest {options}");
    let said = send(&namespace, &arguments);
    sink.wait_for(4000, LONG).unwrap();
    let report = sink.finish();
    assert_eq!(report.received, 4000);
    assert!(report.sequence.is_complete(), "{:?}", report.sequence);
    assert_eq!(report.sequence.out_of_order, 0);
    assert_eq!(said["sent"], 4000);
    assert_eq!(said["bytes"], report.bytes);
    assert_eq!(said["digest"], format!("{:032x}", report.digest));
    for (_, one) in said["by_protocol"].as_object().unwrap() {
        assert_eq!(one["sent"], 400);
    }
}

#[test]
fn every_datagram_arrives_numbered_over_ipv4() {
    check_complete("127.0.0.1", "127.0.0.0/8 --sources 4 --source-ports 2 --first-source-port 5000", "--size 100-9000");
}

#[test]
fn every_datagram_arrives_numbered_from_foreign_ipv6_addresses() {
    check_complete("::1", "2001:db8::/64 --sources 8", "--size 200,1400");
}

#[test]
fn gso_sends_the_same_datagrams() {
    check_complete("127.0.0.1", "127.0.0.0/8 --sources 2", "--gso --run 20 --size 200");
}

#[test]
fn tshark_decodes_every_protocol_without_warnings() {
    let Some(namespace) = namespace_with(&["tshark", "tcpdump"]) else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sent.pcap");
    let mut tcpdump = namespace.command("tcpdump");
    tcpdump.args(["-i", "lo", "-B", "65536", "-U", "-Z", "root", "-w"]).arg(&file).arg("udp");
    let mut tcpdump = Process::spawn(tcpdump).unwrap();
    tcpdump.wait_for_line(LONG, |line| line.contains("listening on")).unwrap();
    // tshark keeps one sequence per exporter and domain for all versions, so each protocol needs
    // its own address.
    let protocols = Protocol::ALL;
    // The file header, then per datagram the record header, Ethernet, IPv4 and UDP.
    let mut file_bytes = 24 + 1000 * (16 + 14 + 20 + 8);
    for (number, protocol) in (1..).zip(protocols) {
        let arguments = format!(
            "--protocol {protocol} --to 127.0.0.1 --from 127.1.0.{number} --count 100 --rate 2000 --size 120-2500"
        );
        file_bytes += send(&namespace, &arguments)["bytes"].as_u64().unwrap();
    }
    let captured = || {
        let mut tshark = Command::new("tshark");
        tshark.args(["-n", "-r"]).arg(&file).args(["-T", "fields", "-e", "ip.src", "-e", "_ws.malformed"]);
        tshark.args(["-e", "_ws.expert.message", "-e", "_ws.expert.severity", "-Y", "ip.dst == 127.0.0.1 && !icmp"]);
        String::from_utf8(tshark.output().unwrap().stdout).unwrap()
    };
    let length = || std::fs::metadata(&file).unwrap().len();
    wait_for("capture of 1,000 datagrams", LONG, || length() == file_bytes).unwrap();
    tcpdump.stop(LONG).unwrap();
    let rows = captured();
    assert_eq!(rows.lines().count(), 1000);
    // Warnings (0x600000) and errors (0x800000); notes concern the TCP of sampled frames.
    let wrong: Vec<&str> = rows
        .lines()
        .filter(|row| {
            let columns: Vec<&str> = row.split('\t').collect();
            let severities = columns[3].split(',').filter_map(|severity| severity.parse::<u32>().ok());
            !columns[1].is_empty() || severities.max().is_some_and(|worst| worst >= 0x60_0000)
        })
        .collect();
    assert!(wrong.is_empty(), "{} of 1000, such as {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
}

#[test]
fn nfcapd_counts_every_flow() {
    let Some(namespace) = namespace_with(&["nfcapd", "nfdump"]) else {
        return;
    };
    for protocol in ["netflow5", "netflow9", "ipfix"] {
        let directory = tempfile::tempdir().unwrap();
        let mut nfcapd = namespace.command("nfcapd");
        nfcapd.args(["-b", "127.0.0.1", "-p", "2055", "-B", "4000000", "-w"]).arg(directory.path());
        let mut nfcapd = Process::spawn(nfcapd).unwrap();
        namespace_listens(&namespace, 2055);
        let arguments = format!(
            "--protocol {protocol} --to 127.0.0.1:2055 --from 127.0.0.0/8 --sources 3 --rate 5000 --count 900 --size 200-1400"
        );
        let said = send(&namespace, &arguments);
        namespace_has_read(&namespace, 2055);
        nfcapd.stop(LONG).unwrap();
        let output = Command::new("nfdump").arg("-R").arg(directory.path()).args(["-I"]).output().unwrap();
        let statistics = String::from_utf8(output.stdout).unwrap();
        let value = |name: &str| {
            let line = statistics
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_else(|| panic!("{name} in {statistics}"));
            line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
        };
        assert_eq!(value("Flows:"), said["by_protocol"][protocol]["units"].as_u64().unwrap(), "{protocol}");
        assert_eq!(value("Sequence failures:"), 0, "{protocol}");
    }
}

/// Waits until a process listens on a UDP port.
fn namespace_listens(namespace: &Namespace, port: u16) {
    let wanted = format!(":{port:04X} ");
    wait_for("listening", LONG, || udp_table(namespace).contains(&wanted)).unwrap();
}

/// Waits until the receive queue of a UDP port is empty.
fn namespace_has_read(namespace: &Namespace, port: u16) {
    let wanted = format!(":{port:04X} ");
    wait_for("reading", LONG, || {
        let table = udp_table(namespace);
        let row = table.lines().find(|row| row.contains(&wanted)).unwrap();
        row.split_ascii_whitespace().nth(4).unwrap().ends_with(":00000000")
    })
    .unwrap();
}

fn udp_table(namespace: &Namespace) -> String {
    namespace.enter(|| std::fs::read_to_string("/proc/thread-self/net/udp").unwrap()).unwrap()
}

#[test]
fn snmptrapd_accepts_traps_and_informs() {
    let Some(namespace) = namespace_with(&["snmptrapd"]) else { return };
    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("snmptrapd.conf");
    let rules = "authCommunity log public\n\
                 createUser -e 0x80007ed90500000000 sender\n\
                 authUser log sender noauth\n\
                 format1 TRAP1 %W %v\\n\n\
                 format2 TRAP2 %W %v\\n\n";
    std::fs::write(&configuration, rules).unwrap();
    let mut daemon = namespace.command("snmptrapd");
    daemon
        .args(["-f", "-C", "-Lo", "-On", "-m", "", "-p"])
        .arg(directory.path().join("pid"))
        .arg("-c")
        .arg(&configuration)
        .arg("udp:127.0.0.1:162");
    daemon.env("SNMP_PERSISTENT_DIR", directory.path());
    let mut daemon = Process::spawn(daemon).unwrap();
    namespace_listens(&namespace, 162);
    let protocols = "snmp1-trap,snmp2c-trap,snmp2c-inform,snmp3-trap";
    send(&namespace, &format!("--protocol {protocols} --to 127.0.0.1 --count 40 --rate 1000 --size 300"));
    namespace_has_read(&namespace, 162);
    let traps = || {
        daemon
            .stdout()
            .iter()
            .filter(|line| line.contains(".32473.1.1.0") && line.contains("Counter32: 21474836"))
            .count()
    };
    let arrived = wait_for("40 traps", LONG, || traps() == 40);
    assert!(arrived.is_ok(), "{} of 40: {}\n{}", traps(), daemon.stdout().join("\n"), daemon.stderr().join("\n"));
    daemon.stop(LONG).unwrap();
}

#[test]
fn sigterm_ends_a_run_with_a_last_line_and_status_0() {
    let sink = Sink::bind(&["127.0.0.1:0".parse().unwrap()], Options::counts()).unwrap();
    let mut process = Process::spawn(sender(&format!("--to {} --rate 1000 --json", sink.addresses()[0]))).unwrap();
    sink.wait_for(10, LONG).unwrap();
    assert!(process.stop(LONG).unwrap().success());
    let said: serde_json::Value = serde_json::from_str(&process.stdout()[0]).unwrap();
    sink.wait_for(said["sent"].as_u64().unwrap(), LONG).unwrap();
    assert_eq!(sink.received(), said["sent"].as_u64().unwrap());
    assert!(process.stderr().is_empty());
}

#[test]
fn mistakes_exit_2_and_failures_exit_1() {
    let status = |arguments: &str| {
        let mut process = Process::spawn(sender(arguments)).unwrap();
        (process.wait(LONG).unwrap().code(), process.stderr().join("\n"))
    };
    assert_eq!(status("--to nowhere").0, Some(2));
    let (code, said) = status("--to 127.0.0.1 --from 2001:db8::1");
    assert_eq!(code, Some(2));
    assert!(said.contains("2001:db8::1"), "{said}");
    // The broadcast address requires a socket option that this program does not set.
    let (code, said) = status("--to 255.255.255.255:514 --count 1");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("255.255.255.255"), "{said}");
}

/// `cargo nextest run --release -p sekiwake-sender --run-ignored only --no-capture speed`
#[test]
#[ignore = "a measurement"]
fn speed_over_a_veth_pair() {
    let left = Namespace::new("skw-send").unwrap();
    let right = Namespace::new("skw-send").unwrap();
    Link::new(End::new(&left, "left0").address("198.18.0.1/16"), End::new(&right, "right0").address("198.18.255.1/16"))
        .checksum_offload(true)
        .create()
        .unwrap();
    for options in
        ["--rate 0", "--rate 0 --sources 64", "--rate 0 --gso", "--rate 200000", "--rate 300000 --sources 64"]
    {
        let listening = ["198.18.255.1:514".parse().unwrap()];
        let sink = right.enter(|| Sink::bind(&listening, Options::counts().numbered())).unwrap().unwrap();
        let arguments = format!("--to 198.18.255.1 --from 198.18.0.0/16 --size 200 --duration 3s {options} --json");
        let mut process = Process::spawn(left.exec(&sender(&arguments))).unwrap();
        let mut spent = Duration::ZERO;
        while process.is_running().unwrap() {
            spent = process.cpu_time().unwrap_or(spent);
            std::thread::sleep(Duration::from_millis(10));
        }
        process.wait(LONG).unwrap();
        let said: serde_json::Value = serde_json::from_str(&process.stdout()[0]).unwrap();
        sink.wait_for_silence(Duration::from_millis(300), LONG).unwrap();
        let report = sink.finish();
        let sent = said["sent"].as_u64().unwrap();
        println!(
            "{options}: sent {sent} at {:.0}/s, {:.2} µs of CPU each; received {} (its own drops {:?}), missing {}",
            said["rate"].as_f64().unwrap(),
            spent.as_secs_f64() * 1e6 / sent as f64,
            report.received,
            report.dropped,
            report.sequence.missing,
        );
    }
}
