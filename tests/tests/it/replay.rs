//! `sekiwake-storer replay` from a real store: with the devices' addresses, and unseen by captures.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Command, Output, Stdio},
};

use base64::prelude::{BASE64_STANDARD, Engine};
use sekiwake_archive::{OpenGroup, PacketEncoder};
use sekiwake_record::{Flags, Format, Kind, Record, Vlans};
use sekiwake_testkit::{
    process::{Process, Signal},
    sink::{Fingerprint, Sink},
    wait::wait_for,
};
use sekiwake_tests::{
    MIRRORED, MIRRORED_V6, Service, Services, binary, collector,
    collectors::{Collector, Nfcapd, Rsyslogd, Snmptrapd, installed_or_skipped},
};
use serde_json::Value;

use crate::support::*;

const STORER: &str = "sekiwake-storer";

/// The devices' end of the wire: datagrams to it leave on the captured interface.
const BACK: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);

fn start<'a>(site: &'a TestSite, dir: &Path) -> Services<'a> {
    let dir = dir.display().to_string();
    let settings = [("SEKIWAKE_STORE_DIR", dir.as_str()), ("SEKIWAKE_STORE_COMMIT", "50ms")];
    site.start(&[CAPTURE, PROXY, STORER], &settings)
}

/// Starts a replay on the captured host.
fn replay(site: &TestSite, dir: &Path, options: &str) -> Process {
    let arguments: Vec<&str> = ["replay", "--json"].into_iter().chain(options.split_whitespace()).collect();
    run(&site.host, STORER, &arguments, &[("SEKIWAKE_STORE_DIR", &dir.display().to_string())])
}

/// Waits for the end. Returns the status and the last line.
fn end(mut process: Process) -> (Option<i32>, Value) {
    let status = process.wait(LONG * 10).unwrap();
    let line = process.stdout().pop().unwrap_or_else(|| panic!("no last line: {}", process.stderr().join("\n")));
    (status.code(), serde_json::from_str(&line).unwrap())
}

fn written(storer: &Service<'_>) -> u64 {
    storer.metrics().unwrap().count("sekiwake_store_written_records_total", &[])
}

#[test]
fn replayed_datagrams_arrive_from_the_devices_and_are_not_stored_again() {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let dir = tempfile::tempdir().unwrap();
    let services = start(&site, dir.path());
    let (proxy, capture, storer) = (services.get(PROXY), services.get(CAPTURE), services.get(STORER));
    let sent =
        site.send(&format!("--to {MIRRORED}:514 --from 198.18.0.0/24 --sources 16 -p syslog --rate 5000 --count 4000"));
    wait_for("everything to be written", LONG, || written(storer) == sent).unwrap();

    // With the devices' addresses, to a collector.
    let collected = site.sink(&[at(collector(0), 514)], numbered().sources(64));
    let to = format!("--speed 10 --to-destination udp://{}:514?spoof=true", collector(0));
    let (code, last) = end(replay(&site, dir.path(), &to));
    assert_eq!((code, &last["sent"], &last["dropped"]), (Some(0), &sent.into(), &0.into()), "{last}");
    collected.wait_for(sent, LONG).unwrap();
    let report = collected.finish();
    assert!(report.sequence.is_complete() && report.sequence.out_of_order == 0, "{:?}", report.sequence);
    let per_source: HashMap<_, _> = report.sources;
    assert_eq!((per_source.len(), per_source.values().sum::<u64>()), (16, sent));

    // On the captured interface, to where devices could be.
    let back = site.devices.enter(|| Sink::bind(&[at(BACK, 514)], numbered())).unwrap().unwrap();
    let (code, last) = end(replay(&site, dir.path(), &format!("--rate 5000 --to-destination udp://{BACK}:514")));
    assert_eq!((code, &last["sent"]), (Some(0), &sent.into()), "{last}");
    back.wait_for(sent, LONG).unwrap();
    let left_alone = || proxy.metrics().unwrap().count("sekiwake_control_left_alone_datagrams_total", &["replay."]);
    wait_for("the count of datagrams left alone", LONG, || left_alone() == sent).unwrap();
    let claimed = capture.metrics().unwrap().count("sekiwake_capture_claimed_datagrams_total", &[]);
    assert_eq!((claimed, written(storer)), (sent, sent));
    services.stop().unwrap();
}

#[test]
fn address_that_devices_send_to_now_is_refused() {
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let services = start(&site, dir.path());
    let sender = site.start_sender(&format!("--to {MIRRORED}:514 --from 198.18.0.0/24 --sources 4 --rate 100"));
    wait_for("stored messages", LONG, || written(services.get(STORER)) > 100).unwrap();
    // None of what is selected was sent there.
    let mut refused = replay(&site, dir.path(), &format!("--source 203.0.113.9 --to-destination udp://{MIRRORED}:514"));
    assert_eq!(refused.wait(LONG).unwrap().code(), Some(1));
    let said = refused.stderr().join("\n");
    assert!(said.contains(&format!("refused: devices send to {MIRRORED}:514")) && said.contains("does now"), "{said}");
    sender.terminate().unwrap();
    services.stop().unwrap();
}

/// What the storer's command prints.
fn printed(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary(STORER));
    let output = command.args(arguments).arg("--dir").arg(dir).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn search(dir: &Path, arguments: &[&str]) -> Vec<Value> {
    let output = printed(dir, &[&["search"], arguments].concat());
    String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn payload(message: &Value) -> Vec<u8> {
    match (message["payload"].as_str(), message["payload_base64"].as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(text)) => BASE64_STANDARD.decode(text).unwrap(),
        _ => panic!("no payload in {message}"),
    }
}

#[test]
fn all_kinds_are_replayed_byte_for_byte_and_decoded_from_the_middle() {
    if !installed_or_skipped(&["nfcapd", "nfdump", "rsyslogd", "snmptrapd", "tshark"]) {
        return;
    }
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().display().to_string();
    let settings =
        [("SEKIWAKE_STORE_DIR", store.as_str()), ("SEKIWAKE_STORE_COMMIT", "50ms"), ("SEKIWAKE_STORE_KINDS", "all")];
    let services = site.start(&[CAPTURE, PROXY, STORER], &settings);
    // Templates at the start only.
    let traffic = "-p syslog,netflow5,netflow9,ipfix,sflow,snmp2c-trap --template-every 1000000 --template-interval 1h \
                   --rate 4000 --size 120-1200 --sources 32";
    let mut sent = site.send(&format!("--to {MIRRORED} --from 198.18.0.0/16 {traffic} --count 12000"));
    sent +=
        site.send(&format!("--to {MIRRORED_V6} --from 2001:db8:18:1::/64 --first-source 32 {traffic} --count 6000"));
    wait_for("everything to be written", LONG, || written(services.get(STORER)) == sent).unwrap();

    // Every datagram, from the right source, in the order of the source.
    let all = search(dir.path(), &["--kind", "all"]);
    assert_eq!(all.len() as u64, sent);
    let (v4, v6) = (at(collector(0), 9000), at(sekiwake_tests::collector_v6(0), 9000));
    let sink = site.sink(&[v4, v6], numbered().hashes());
    let mut expected: HashMap<Fingerprint, u64> = HashMap::new();
    for message in &all {
        let source = message["source"].as_str().unwrap().parse().unwrap();
        *expected.entry(Fingerprint::new(9000, source, &payload(message))).or_default() += 1;
    }
    for (prefix, to) in [("0.0.0.0/0", v4), ("::/0", v6)] {
        let options = format!(
            "--kind all --source {prefix} --rate 20000 \
             --to-destination xflow=udp://{to}?spoof=true&template_refresh=never \
             --to-destination syslog=udp://{to}?spoof=true --to-destination snmptrap=udp://{to}?spoof=true"
        );
        let (code, last) = end(replay(&site, dir.path(), &options));
        assert_eq!((code, &last["dropped"], &last["continue"]), (Some(0), &0.into(), &Value::Null), "{last}");
    }
    sink.wait_for(sent, LONG).unwrap();
    let report = sink.finish();
    assert!(report.hashes == expected, "{} received, {sent} sent: other bytes or sources", report.received);
    assert!(report.sequence.is_complete() && report.sequence.out_of_order == 0, "{:?}", report.sequence);

    // From the middle, to real collectors that have never seen the devices.
    let middle = all[all.len() / 2]["captured_at"].as_str().unwrap();
    let later =
        |kind: &str| all[all.len() / 2..].iter().filter(|one| one["kind"].as_str().unwrap_or("syslog") == kind).count();
    let nfcapd = Collector::<Nfcapd>::start(&site.collectors, at(collector(1), 2055)).unwrap();
    let rsyslogd = Collector::<Rsyslogd>::start(&site.collectors, at(collector(1), 514)).unwrap();
    let snmptrapd = Collector::<Snmptrapd>::start(&site.collectors, at(collector(1), 162)).unwrap();
    let options = format!(
        "--kind all --from {middle} --source 0.0.0.0/0 --rate 1500 --to-destination syslog=udp://{0}?spoof=true \
         --to-destination xflow=udp://{0}:2055?spoof=true&format=netflow5,netflow9,ipfix \
         --to-destination snmptrap=udp://{0}?spoof=true",
        collector(1)
    );
    let (code, last) = end(replay(&site, dir.path(), &options));
    assert_eq!((code, &last["dropped"]), (Some(0), &0.into()), "{last}");
    let is_v4 = |message: &&Value| !message["source"].as_str().unwrap().contains(':');
    let of = |kind: &str| {
        let later = all[all.len() / 2..].iter().filter(is_v4);
        later.filter(|one| one["kind"].as_str().unwrap_or("syslog") == kind).count()
    };
    assert!(later("xflow") > 1000 && of("snmptrap") > 100);
    assert_eq!(rsyslogd.finish().unwrap().len(), of("syslog"));
    assert_eq!(snmptrapd.finish().unwrap().len(), of("snmptrap"));
    let (flows, sequence_errors) = nfcapd.finish_with_errors().unwrap();

    // The same as a file.
    let file = dir.path().join("middle.pcapng");
    let file_name = file.display().to_string();
    let range = ["--kind", "xflow", "--from", middle, "--source", "0.0.0.0/0", "--format", "netflow5,netflow9,ipfix"];
    printed(dir.path(), &[&["export", "--output", &file_name], &range[..]].concat());
    assert!(flows.len() > 1000, "{} flows, {sequence_errors:?} sequence errors", flows.len());
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-r", &file_name, "-d", "udp.port==2055,cflow", "-d", "udp.port==4739,cflow"]);
    let undecoded = "cflow.no_template_found || _ws.malformed";
    let output = tshark.args(["-Y", undecoded, "-T", "fields", "-e", "frame.number"]).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    services.stop().unwrap();
}

/// Every stored datagram, read one by one: a fingerprint with the port that receives it again.
fn stored_fingerprints(dir: &Path, port: u16) -> HashMap<Fingerprint, u64> {
    let mut command = Command::new(binary(STORER));
    command.args(["search", "--kind", "all", "--dir"]).arg(dir).stdout(Stdio::piped());
    let mut searching = command.spawn().unwrap();
    let mut found: HashMap<Fingerprint, u64> = HashMap::new();
    for line in BufReader::new(searching.stdout.take().unwrap()).lines() {
        let message: Value = serde_json::from_str(&line.unwrap()).unwrap();
        let source = message["source"].as_str().unwrap().parse().unwrap();
        *found.entry(Fingerprint::new(port, source, &payload(&message))).or_default() += 1;
    }
    assert!(searching.wait().unwrap().success());
    found
}

/// A million datagrams of 64 sources. The replay of IPv4 is interrupted twice.
#[test]
#[ignore = "make chaos runs it: it takes minutes"]
fn million_datagrams_are_replayed_and_continued_after_interruptions() {
    if !installed_or_skipped(&["nfcapd", "nfdump", "rsyslogd", "snmptrapd"]) {
        return;
    }
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().display().to_string();
    let settings =
        [("SEKIWAKE_STORE_DIR", store.as_str()), ("SEKIWAKE_STORE_COMMIT", "50ms"), ("SEKIWAKE_STORE_KINDS", "all")];
    let services = site.start(&[CAPTURE, PROXY, STORER], &settings);
    let traffic = "-p rfc5424:10,rfc3164:5,netflow5:1,netflow9:2,ipfix:2,sflow:2,snmp2c-trap:3 --template-every 1000000 \
                   --template-interval 1h --rate 20000 --size 120-1200 --sources 32";
    let mut sent = site.send(&format!("--to {MIRRORED} --from 198.18.0.0/16 {traffic} --count 700000"));
    let of_v4 = sent;
    let more = "--first-source 32 --count 300000";
    sent += site.send(&format!("--to {MIRRORED_V6} --from 2001:db8:18:1::/64 {traffic} {more}"));
    wait_for("everything to be written", LONG, || written(services.get(STORER)) == sent).unwrap();
    let expected = stored_fingerprints(dir.path(), 9000);
    assert_eq!(expected.values().sum::<u64>(), sent);

    let (v4, v6) = (at(collector(0), 9000), at(sekiwake_tests::collector_v6(0), 9000));
    let sink = site.sink(&[v4, v6], numbered().hashes());
    let options = |prefix: &str, to: SocketAddr| {
        format!(
            "--kind all --source {prefix} --rate 40000 \
             --to-destination xflow=udp://{to}?spoof=true&template_refresh=never \
             --to-destination syslog=udp://{to}?spoof=true --to-destination snmptrap=udp://{to}?spoof=true"
        )
    };
    let (mut go_on, mut total) = (String::new(), 0);
    for stop_at in [of_v4 / 4, of_v4 / 2, u64::MAX] {
        let process = replay(&site, dir.path(), &format!("{} {go_on}", options("0.0.0.0/0", v4)));
        if stop_at < of_v4 {
            wait_for("a part of it", LONG, || sink.received() >= stop_at).unwrap();
            process.signal(Signal::INT).unwrap();
        }
        let (_, last) = end(process);
        assert_eq!(last["dropped"], 0, "{last}");
        total += last["sent"].as_u64().unwrap();
        go_on = last["continue"].as_str().unwrap_or_default().to_owned();
        assert_eq!(go_on.is_empty(), stop_at > of_v4, "{last}");
    }
    assert_eq!(total, of_v4);
    let (code, last) = end(replay(&site, dir.path(), &options("::/0", v6)));
    assert_eq!((code, &last["sent"]), (Some(0), &(sent - of_v4).into()), "{last}");
    sink.wait_for(sent, LONG).unwrap();
    let report = sink.finish();
    // Each continuation begins with the templates of 32 exporters of NetFlow v9 and of IPFIX.
    let templates = 2 * 2 * 32;
    assert_eq!(report.received, sent + templates);
    let is_there =
        |(datagram, times): (&Fingerprint, &u64)| report.hashes.get(datagram).is_some_and(|had| had >= times);
    assert!(expected.iter().all(is_there), "other bytes or sources");
    // Bytes and sources were compared above, so that only the order is left.
    assert_eq!(report.sequence.out_of_order, 0, "{} missing", report.sequence.missing);

    let nfcapd = Collector::<Nfcapd>::start(&site.collectors, at(collector(1), 2055)).unwrap();
    let rsyslogd = Collector::<Rsyslogd>::start(&site.collectors, at(collector(1), 514)).unwrap();
    let snmptrapd = Collector::<Snmptrapd>::start(&site.collectors, at(collector(1), 162)).unwrap();
    let options = format!(
        "--kind all --source 0.0.0.0/0 --rate 4000 --to-destination syslog=udp://{0}?spoof=true \
         --to-destination xflow=udp://{0}:2055?spoof=true&format=netflow5,netflow9,ipfix \
         --to-destination snmptrap=udp://{0}?spoof=true",
        collector(1)
    );
    let (code, last) = end(replay(&site, dir.path(), &options));
    assert_eq!((code, &last["dropped"]), (Some(0), &0.into()), "{last}");
    let (messages, traps) = (rsyslogd.finish().unwrap().len(), snmptrapd.finish().unwrap().len());
    let (flows, sequence_errors) = nfcapd.finish_with_errors().unwrap();
    eprintln!("{messages} messages, {traps} traps, {} flows, {sequence_errors:?} sequence errors", flows.len());
    assert_eq!(last["sent"].as_u64().unwrap(), of_v4 - last["filtered_out"].as_u64().unwrap());
    // 15 of 25 are syslog, and 3 traps.
    assert_eq!((messages as u64, traps as u64), (of_v4 / 25 * 15, of_v4 / 25 * 3));
    assert!(flows.len() > 100_000 && sequence_errors.unwrap_or_default() == 0);
    services.stop().unwrap();
}

/// The export time of stored flows, 2026-11-25T14:00:00Z.
const STORED_AT: u32 = 1_795_615_200;

/// One flow of NetFlow v5, and one of v9 with its template.
fn old_flows() -> Vec<(Format, Vec<u8>)> {
    const UPTIME_MS: u32 = 60_000;
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
    let halves = |halves: &[u16]| halves.iter().flat_map(|half| half.to_be_bytes()).collect::<Vec<u8>>();
    let addresses = [203, 0, 113, 1, 203, 0, 113, 2];
    let v5 = [
        halves(&[5, 1]),
        words(&[UPTIME_MS, STORED_AT, 0, 0, 0]),
        addresses.to_vec(),
        vec![0; 8],
        words(&[1, 64, UPTIME_MS, UPTIME_MS]),
        halves(&[4000, 53]),
        vec![0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    let v9 = [
        halves(&[9, 2]),
        words(&[UPTIME_MS, STORED_AT, 0, 7]),
        halves(&[0, 44, 300, 9, 8, 4, 12, 4, 7, 2, 11, 2, 4, 1, 1, 4, 2, 4, 22, 4, 21, 4]),
        halves(&[300, 36]),
        addresses.to_vec(),
        halves(&[4000, 53]),
        vec![17],
        words(&[64, 1, UPTIME_MS, UPTIME_MS]),
        vec![0; 3],
    ];
    vec![(Format::NetFlow5, v5.concat()), (Format::NetFlow9, v9.concat())]
}

#[test]
fn shifted_flows_are_around_now_for_nfdump() {
    if !installed_or_skipped(&["nfcapd", "nfdump"]) {
        return;
    }
    let Some(site) = site() else { return };
    let dir = tempfile::tempdir().unwrap();
    let encoder = PacketEncoder::new(7);
    let mut out = encoder.head(Kind::Xflow);
    let mut group = OpenGroup::default();
    encoder.seal(&mut out, &mut group);
    for (number, (format, payload)) in old_flows().iter().enumerate() {
        let record = Record {
            captured_at_ns: u64::from(STORED_AT) * 1_000_000_000 + number as u64,
            source: [198, 18, 0, 7].into(),
            source_port: 4000,
            destination: [203, 0, 113, 1].into(),
            destination_port: 2055,
            format: *format,
            flags: Flags::default(),
            payload,
            vlans: Vlans::new(),
            dscp_ttl: 0,
            origin: None,
        };
        encoder.encode(&record, "p", &mut out, &mut group);
    }
    encoder.seal(&mut out, &mut group);
    fs::create_dir(dir.path().join("2026-11-25")).unwrap();
    fs::write(dir.path().join("2026-11-25/xflow@20261125T140000Z-3600s@m@1-1.xflow.pcapng"), out).unwrap();
    let to = format!("--kind xflow --allow-capture --rate 0 --to-destination udp://{}:2055", collector(0));
    for (options, is_shifted) in [("", false), ("--shift-time", true)] {
        let date = || {
            let output = Command::new("date").arg("+%Y-%m-%d").output().unwrap();
            String::from_utf8(output.stdout).unwrap().trim().to_owned()
        };
        let before = date();
        let nfcapd = Collector::<Nfcapd>::start(&site.collectors, at(collector(0), 2055)).unwrap();
        let (code, last) = end(replay(&site, dir.path(), &format!("{to} {options}")));
        assert_eq!((code, &last["sent"], &last["not_shifted"]), (Some(0), &2.into(), &0.into()), "{last}");
        let flows = nfcapd.finish().unwrap();
        assert_eq!(flows.len(), 2, "{flows:?}");
        let days = if is_shifted { vec![before, date()] } else { vec!["2026-11-25".to_owned()] };
        for flow in &flows {
            let flow: Value = serde_json::from_str(&flow.content).unwrap();
            for end in ["first", "last"] {
                let at = flow[end].as_str().unwrap();
                assert!(days.iter().any(|day| at.starts_with(day)), "{end} {at} is not of {days:?}");
            }
        }
    }
}
