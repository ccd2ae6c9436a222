//! `send-test` with real collectors: what they write is what the command says.

use std::{fs, net::Ipv4Addr};

use sekiwake_tests::{
    collector,
    collectors::{Collector, Nfcapd, Rsyslogd, Snmptrapd, installed_or_skipped},
    receivers::{OtlpCollector, Tansu, receivers_or_skipped},
};

use crate::support::*;

/// The forwarder's address, as collectors see it.
const OURS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Runs `send-test` on the host. Returns its exit status and its lines.
fn send_test(site: &TestSite, program: &str, arguments: &[&str], setting: (&str, &str)) -> (Option<i32>, Vec<String>) {
    let mut process = run(&site.host, program, &[&["send-test"], arguments].concat(), &[setting]);
    let status = process.wait(LONG).unwrap();
    let lines = process.stdout();
    println!("{lines:#?} {:?}", process.stderr());
    (status.code(), lines)
}

/// The name of the test in its first line.
fn name(lines: &[String]) -> &str {
    lines[0].split(',').next().unwrap()
}

#[test]
fn rsyslogd_writes_the_test_message() {
    let Some(site) = installed_or_skipped(&["rsyslogd"]).then(site).flatten() else { return };
    let collectors: Vec<_> = (0..2)
        .map(|number| Collector::<Rsyslogd>::start(&site.collectors, at(collector(number), 514)).unwrap())
        .collect();
    let uris = format!("udp://{} udp://{}?spoof=true", collector(0), collector(1));
    let (status, lines) = send_test(&site, SYSLOG, &[], ("SEKIWAKE_SYSLOG_DESTINATIONS", &uris));
    assert_eq!((status, lines.len()), (Some(0), 3));
    for rsyslogd in collectors {
        let records = rsyslogd.finish().unwrap();
        assert_eq!(records.len(), 1, "{records:?}");
        assert_eq!(records[0].source, OURS.to_string());
        assert!(records[0].content.contains(name(&lines)), "{records:?}");
    }
}

#[test]
fn closed_and_absent_collectors_are_failures() {
    let Some(site) = site() else { return };
    // Nothing listens there; no host has the last address.
    let uris = format!("udp://{0} udp://{1}?spoof=true tcp://{0}:1514 udp://198.51.100.99", collector(0), collector(1));
    let (status, lines) = send_test(&site, SYSLOG, &[], ("SEKIWAKE_SYSLOG_DESTINATIONS", &uris));
    assert_eq!((status, lines.len()), (Some(1), 5));
    assert!(lines[1..].iter().all(|line| line.contains(": FAILED: ")));
    assert!(lines[1].contains("refused") && lines[2].contains("refused") && lines[3].contains("refused"));
    let (status, lines) = send_test(&site, SYSLOG, &[], ("SEKIWAKE_SYSLOG_DESTINATIONS", "udp://198.51.100.11:0"));
    assert_eq!((status, lines.len()), (Some(2), 0), "a mistake in the settings");
    let (status, _) = send_test(&site, SYSLOG, &[], ("SEKIWAKE_LOG", "info"));
    assert_eq!(status, Some(1), "no destinations");
}

#[test]
fn destinations_come_from_an_environment_file() {
    let Some(site) = site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sekiwake.env");
    let path = file.to_str().unwrap();
    for (program, variable, in_environment) in [
        (SYSLOG, "SEKIWAKE_SYSLOG_DESTINATIONS", "udp://198.51.100.99:514"),
        (XFLOW, "SEKIWAKE_XFLOW_DESTINATIONS", "udp://198.51.100.99:2055"),
        (TRAP, "SEKIWAKE_TRAP_DESTINATIONS", "udp://198.51.100.99:162"),
    ] {
        // The file wins; settings of other services do no harm.
        let uri = format!("udp://{}:9999", collector(0));
        fs::write(&file, format!("# a comment\nSEKIWAKE_CAPTURE_INTERFACES=eth1\n{variable}=\"{uri}\"\n")).unwrap();
        let (status, lines) = send_test(&site, program, &["--env-file", path], (variable, in_environment));
        // Nothing listens there.
        assert_eq!((status, lines.len()), (Some(1), 2), "{program}");
        assert!(lines[1].starts_with(&format!("{uri}: FAILED: ")) && lines[1].contains("refused"), "{lines:?}");
    }
    fs::write(&file, "SEKIWAKE_LOG=info\nSEKIWAKE_SYSLOG_DESTINATIONS=udp://198.51.100.7:0\n").unwrap();
    let in_file = format!("{path}:2: SEKIWAKE_SYSLOG_DESTINATIONS=");
    for (path, expected) in [(path, in_file.as_str()), ("/no-such-file", "cannot read /no-such-file")] {
        let mut process = run(&site.host, SYSLOG, &["send-test", "--env-file", path], &[]);
        assert_eq!(process.wait(LONG).unwrap().code(), Some(2), "{path}");
        let stderr = process.stderr();
        assert!(stderr.len() == 1 && stderr[0].contains(expected), "{stderr:?}");
    }
}

#[test]
fn nfcapd_decodes_the_test_flow() {
    let Some(site) = installed_or_skipped(&["nfcapd", "nfdump"]).then(site).flatten() else { return };
    for options in ["", "?format=ipfix", "?format=netflow5", "?spoof=true"] {
        let nfcapd = Collector::<Nfcapd>::start(&site.collectors, at(collector(0), 2055)).unwrap();
        let uri = format!("udp://{}:2055{options}", collector(0));
        let (status, lines) = send_test(&site, XFLOW, &[], ("SEKIWAKE_XFLOW_DESTINATIONS", &uri));
        assert_eq!((status, lines.len()), (Some(0), 2), "{options}");
        let records = nfcapd.finish().unwrap();
        assert_eq!(records.len(), 1, "{options}: {records:?}");
        assert_eq!(records[0].source, OURS.to_string());
        let flow: serde_json::Value = serde_json::from_str(&records[0].content).unwrap();
        let port = flow["src_port"].as_u64().unwrap();
        assert!(lines[0].contains(&format!("203.0.113.1:{port} to 203.0.113.2:9,")), "{options}: {flow}");
        assert_eq!((flow["src4_addr"].as_str(), flow["in_bytes"].as_u64()), (Some("203.0.113.1"), Some(64)), "{flow}");
    }
}

#[test]
fn snmptrapd_logs_the_test_trap() {
    let Some(site) = installed_or_skipped(&["snmptrapd"]).then(site).flatten() else { return };
    let snmptrapd = Collector::<Snmptrapd>::start(&site.collectors, at(collector(0), 162)).unwrap();
    let uri = format!("udp://{}?add_source=true", collector(0));
    let arguments = ["--community", "private"];
    let (status, lines) = send_test(&site, TRAP, &arguments, ("SEKIWAKE_TRAP_DESTINATIONS", &uri));
    assert_eq!((status, lines.len()), (Some(0), 2));
    let records = snmptrapd.finish().unwrap();
    assert_eq!(records.len(), 1, "{records:?}");
    let content = &records[0].content;
    for expected in [
        "community private",
        ".1.3.6.1.4.1.32473.0.100",
        name(&lines),
        ".1.3.6.1.6.3.18.1.3.0 = IpAddress: 198.51.100.1",
    ] {
        assert!(content.contains(expected), "{expected}: {content}");
    }
}

#[test]
fn delivered_test_message_is_acknowledged() {
    let Some(site) = receivers_or_skipped().then(site).flatten() else { return };
    let tansu = Tansu::start(&site.collectors, at(collector(0), 9092)).unwrap();
    tansu.create("logs", 2).unwrap();
    let otlp = OtlpCollector::start(&site.collectors, at(collector(1), 4318)).unwrap();
    let uris = format!(
        "kafka://{0}/logs?value=raw kafka://{0}/missing otlp+http://{1} otlp+http://{1}:4319",
        collector(0),
        collector(1)
    );
    let (status, lines) = send_test(&site, SYSLOG, &[], ("SEKIWAKE_SYSLOG_DESTINATIONS", &uris));
    assert_eq!((status, lines.len()), (Some(1), 5));
    assert!(lines[1].contains("stored in topic logs, acknowledged by all in-sync replicas"), "{lines:?}");
    assert!(lines[2].contains("FAILED: topic missing does not exist"), "{lines:?}");
    assert!(lines[3].contains("accepted by"), "{lines:?}");
    assert!(lines[4].contains("FAILED") && lines[4].contains("refused"), "{lines:?}");
    let stored = tansu.records("logs").unwrap();
    assert_eq!((stored.len(), &stored[0]["key"]), (1, &serde_json::json!(OURS.to_string())));
    assert!(stored[0]["value"].as_str().unwrap().contains(name(&lines)));
    let accepted = otlp.records().unwrap();
    assert!(accepted.len() == 1 && accepted[0]["body"].as_str().unwrap().contains(name(&lines)));
}
