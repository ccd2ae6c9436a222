//! From capture to readers without a group.

use std::{collections::HashSet, process::Command, time::Duration};

use sekiwake_testkit::{process::Process, wait::wait_for};
use sekiwake_tests::{MIRRORED, Service, nats};
use serde_json::Value;

use super::server::{AWAY, BUS, NatsServer, SINCE, api, pause_until, python, wait_for_lines};
use crate::{
    replicas::{Members, large_sink, pause_for},
    support::*,
};

/// Checks that each record was printed once, and those of a source in order of their capture.
fn check(tap: &Process) -> usize {
    let mut seen = HashSet::new();
    let mut last = std::collections::HashMap::new();
    for line in tap.stdout() {
        let value: Value = serde_json::from_str(&line).unwrap();
        let text = |name: &str| value[name].as_str().unwrap().to_owned();
        let (source, captured_at) = (text("source"), text("captured_at"));
        assert!(seen.insert((source.clone(), text("payload"))), "printed twice: {line}");
        let earlier = last.insert(source, captured_at.clone());
        assert!(earlier.is_none_or(|earlier| earlier <= captured_at), "out of order: {line}");
    }
    seen.len()
}

/// The records of a capture that are stored, and those that were offered and dropped.
fn published(capture: &Service<'_>) -> (u64, u64) {
    let metrics = capture.metrics().unwrap();
    let dropped = metrics.count("sekiwake_bus_unpublished_records_total", &[]);
    (metrics.count("sekiwake_bus_published_records_total", &[]), dropped)
}

#[test]
fn jetstream_cluster_of_two_servers_keeps_one_copy() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let routes = "routes: [\"nats-route://127.0.0.1:6222\", \"nats-route://127.0.0.1:6223\"]";
    let servers = [0, 1].map(|number| {
        let folder = folders[number].path();
        let (port, route_port) = (4222 + number, 6222 + number);
        let configuration = format!(
            "server_name: n{number}\nlisten: \"127.0.0.1:{port}\"\njetstream {{ store_dir: \"{}\" }}\n\
             cluster {{ name: two, listen: \"127.0.0.1:{route_port}\", {routes} }}\n",
            folder.join("disk").display(),
        );
        nats::NatsServer::start(&site.host, folder, &configuration).unwrap()
    });
    let bus = ("SEKIWAKE_BUS", "nats://127.0.0.1:4222,nats://127.0.0.1:4223");
    let sink = large_sink(&site, 0);
    let capture = site.start_one(CAPTURE, &[bus]);
    let mut members = Members::with(&site, &[bus]);
    members.start("default", 0, 1);
    members.wait_until_even();
    pause_until("a ready capture", || capture.is_ready());
    let sent =
        site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --size 200 --rate 5000 --count 1000"));
    wait_for("all records", LONG, || sink.received() == sent).unwrap_or_else(|late| {
        panic!("{late}: {} of {sent}: {}", sink.received(), members.log());
    });
    for stream in ["SEKIWAKE_SYSLOG", "SEKIWAKE_STATE", "KV_SEKIWAKE_GROUPS"] {
        let info = api(&site.host, 4222, &format!("STREAM.INFO.{stream}"), &Value::Object(serde_json::Map::new()));
        assert_eq!(info["config"]["num_replicas"], 1, "{stream}: {info}");
    }
    drop(servers);
}

#[test]
fn jetstream_records_reach_taps_live_and_from_the_past() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let _server = NatsServer::start(&site.host, "");
    let capture = site.start_one(CAPTURE, &[BUS]);
    pause_until("a ready capture", || capture.is_ready());
    let sent =
        site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --size 200 --rate 5000 --count 5000"));
    wait_for("all records stored", LONG, || published(&capture).0 >= sent).unwrap();
    let past = run(&site.host, "sekiwake-tap", &[&SINCE[..], &["syslog/"]].concat(), &[BUS]);
    wait_for_lines(&past, sent);
    let live = run(&site.host, "sekiwake-tap", &["syslog/"], &[BUS]);
    // A tap prints nothing before there are records: send until it does.
    let mut more = 0;
    wait_for("a live record", LONG, || {
        more += site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --size 201 --count 16"));
        !live.stdout().is_empty()
    })
    .unwrap();
    wait_for_lines(&past, sent + more);
    assert_eq!((check(&past) as u64, published(&capture)), (sent + more, (sent + more, 0)));
    // A tap that reaches back for less prints nothing of it.
    pause_for(Duration::from_secs(3));
    let recent = run(&site.host, "sekiwake-tap", &["--since", "2s", "syslog/"], &[BUS]);
    let mut now = 0;
    wait_for("a recent record", LONG, || {
        now += site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --size 202 --count 16"));
        !recent.stdout().is_empty()
    })
    .unwrap();
    wait_for_lines(&past, sent + more + now);
    let new: HashSet<String> = past.stdout().into_iter().skip((sent + more) as usize).collect();
    let printed = recent.stdout();
    assert!(printed.iter().all(|line| new.contains(line)), "{printed:?}");
}

#[test]
fn jetstream_server_killed_under_load_loses_nothing() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let mut server = NatsServer::start(&site.host, "");
    let mut capture = site.start_one(CAPTURE, &[BUS]);
    pause_until("a ready capture", || capture.is_ready());
    let tap = run(&site.host, "sekiwake-tap", &[&SINCE[..], &["syslog/"]].concat(), &[BUS]);
    let mut sender = site.start_sender(&format!(
        "--to {MIRRORED} --from 198.19.0.0/16 --sources 32 --size 200 --rate 5000 --count 60000"
    ));
    for _ in 0..2 {
        let before = published(&capture).0;
        wait_for("records before the kill", LONG, || published(&capture).0 > before + 5_000).unwrap();
        server.kill();
        // The outage itself is what is tested.
        std::thread::park_timeout(AWAY);
        server.start_again();
    }
    let on_the_wire = sent_by(&mut sender) - site.dropped_by_wire().unwrap();
    let claimed = || capture.metrics().unwrap().count("sekiwake_capture_claimed_datagrams_total", &[]);
    wait_for("all records captured and stored", LONG, || {
        claimed() >= on_the_wire && published(&capture).0 == claimed()
    })
    .unwrap();
    let captured = claimed();
    wait_for_lines(&tap, captured);
    assert_eq!((check(&tap) as u64, published(&capture)), (captured, (captured, 0)));
    capture.stop().unwrap();
    let log = capture.process.stderr().join("\n");
    assert!(log.contains("stream ended"), "{log}");
}

#[test]
fn jetstream_outage_longer_than_memory_is_counted_exactly() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let mut server = NatsServer::start(&site.host, "");
    let capture = site.start_one(CAPTURE, &[BUS, ("SEKIWAKE_RETAIN", "4MiB")]);
    pause_until("a ready capture", || capture.is_ready());
    let tap = run(&site.host, "sekiwake-tap", &[&SINCE[..], &["syslog/"]].concat(), &[BUS]);
    server.kill();
    let sent =
        site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 32 --size 1000 --rate 10000 --count 20000"));
    wait_for("dropped records", LONG, || published(&capture).1 > 0).unwrap();
    server.start_again();
    wait_for("every record stored or counted", LONG, || {
        let (stored, dropped) = published(&capture);
        stored + dropped >= sent
    })
    .unwrap();
    let (stored, dropped) = published(&capture);
    wait_for_lines(&tap, stored);
    assert_eq!((stored + dropped, check(&tap) as u64), (sent, stored), "{dropped} dropped");
}

#[test]
fn jetstream_python_reader_prints_every_record() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let _server = NatsServer::start(&site.host, "");
    let capture = site.start_one(CAPTURE, &[BUS]);
    pause_until("a ready capture", || capture.is_ready());
    let sent = site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 4 --size 100 --count 200"));
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/jetstream.py");
    let mut command: Command = site.host.command(python());
    command.arg("-u").arg(script).args(["nats://127.0.0.1:4222", "sekiwake.syslog.>"]);
    let reader = Process::spawn(command).unwrap();
    wait_for_lines(&reader, sent);
    let distinct: HashSet<String> = reader.stdout().into_iter().collect();
    assert_eq!(distinct.len() as u64, sent);
}

/// The devices' end of the wire: datagrams to it leave on the captured interface.
const BACK: &str = "198.18.255.254:514";

#[test]
fn jetstream_registered_destinations_are_not_captured() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    site.disable_ipv6_on_the_wire();
    let _server = NatsServer::start(&site.host, "");
    let capture = site.start_one(CAPTURE, &[BUS]);
    pause_until("a ready capture", || capture.is_ready());
    let status = || -> Value { serde_json::from_str(&capture.page("/status").unwrap()).unwrap() };
    let own = || status()["roles"]["capture"]["stream"]["own_destinations"].to_string();
    let send = |arguments: &[&str]| {
        sent_by(&mut run(&site.host, "sekiwake-sender", &[&["--to", BACK, "--json"][..], arguments].concat(), &[BUS]))
    };
    assert_eq!(send(&["--register", "--count", "500"]), 500);
    let labels = ["own_destination"];
    let left_alone = || capture.metrics().unwrap().count("sekiwake_capture_unclaimed_datagrams_total", &labels);
    wait_for("datagrams left alone", LONG, || left_alone() == 500)
        .unwrap_or_else(|late| panic!("{late}: {}", status()));
    assert_eq!(published(&capture), (0, 0));
    wait_for("the end of the registration", LONG, || own() == "[]").unwrap();
    let sent = send(&["--count", "300"]);
    wait_for("records without a registration", LONG, || published(&capture).0 == sent).unwrap();
}
