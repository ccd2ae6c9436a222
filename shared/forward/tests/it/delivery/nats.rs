//! Subjects of NATS: every record, its order, outages, errors.

use std::{
    fs,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sekiwake_forward::{Destinations, send_test};
use sekiwake_record::Kind;
use sekiwake_runtime::MibFolder;
use sekiwake_testkit::{process::Signal, wait::wait_for};
use serde_json::json;

use super::{
    assert_complete,
    broker::Stored,
    engine,
    kafka::{secret, values, wait_for_error},
    number_of, numbered,
    outage::forward_paced,
    receiver::validate,
    records::odd_samples,
    server::{Server, installed_or_skipped},
    spool_datagrams, wait_for_empty,
};
use crate::rig::{PATIENCE, Rig, Sample, device, forward, samples};

fn header<'a>(message: &'a Stored, name: &str) -> &'a str {
    message.0["headers"][name].as_str().unwrap_or_default()
}

#[test]
fn every_record_is_stored_with_its_headers() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    server.create("logs.>", &[]);
    let rig = Rig::new();
    let destination = server.uri("logs.syslog");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw"), folder.path());
    let samples = odd_samples();
    forward(&mut engine, &samples);
    wait_for("all records", PATIENCE, || rig.sent(&destination) == samples.len() as u64).unwrap();
    let messages = server.messages();
    assert_eq!(messages.len(), samples.len());
    for sample in &samples {
        let source = sample.source.to_string();
        let message = messages.iter().find(|message| header(message, "source") == source).unwrap();
        match std::str::from_utf8(&sample.payload) {
            Ok(text) => assert_eq!(message.0["value"], text),
            Err(_) => assert_eq!(message.0["value"]["base64"], BASE64_STANDARD.encode(&sample.payload)),
        }
        let format = sekiwake_identify::identify(None, &sample.payload);
        assert_eq!((header(message, "kind"), header(message, "format")), ("syslog", format.as_str()));
        assert!(header(message, "captured_at").parse::<jiff::Timestamp>().is_ok());
        assert!(!header(message, "Nats-Msg-Id").is_empty());
        assert_eq!(message.0["subject"], "logs.syslog");
    }
    wait_for_empty(&rig, &destination);
    rig.assert_ledger(&destination);
    assert_eq!(rig.metric("sekiwake_forward_up", &[]), 1.0);
    drop(engine);
    rig.stop();
}

#[test]
fn envelope_is_the_default_and_rows_are_messages() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    server.create("logs.>", &[]);
    let rig = Rig::new();
    let [envelopes, rows] = [server.uri("logs.envelopes"), server.uri("logs.rows")];
    let both = format!("{envelopes} {rows}?value=decoded&pipeline=64");
    let mut engine = engine(&rig, Kind::Syslog, &both, folder.path());
    forward(&mut engine, &numbered(0..30));
    wait_for("all records", PATIENCE, || rig.sent(&envelopes) == 30 && rig.sent(&rows) == 30).unwrap();
    let messages = server.messages();
    let lines: String = messages.iter().map(|message| format!("{}\n", message.value())).collect();
    assert_eq!(validate(lines.as_bytes()), Ok("60".to_owned()));
    let row = messages.iter().find(|message| message.0["subject"] == "logs.rows").unwrap();
    assert!(header(row, "Nats-Msg-Id").ends_with(".0"), "the row's number");
    assert_eq!(serde_json::from_str::<serde_json::Value>(row.value()).unwrap()["row"], 0);
    drop(engine);
    rig.stop();
}

/// Stops the server while these records are sent. Returns how many were stored twice.
fn stop_server(records: u64, time: Duration) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    server.create("logs", &[]);
    let rig = Rig::new();
    let destination = server.uri("logs");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=256MiB"), folder.path());
    forward_paced(&mut engine, 0..records / 3);
    wait_for("some records", PATIENCE, || rig.sent(&destination) > 0).unwrap();
    server.signal(Signal::STOP);
    let stopped_at = Instant::now();
    forward_paced(&mut engine, records / 3..2 * records / 3);
    wait_for("the spool", PATIENCE, || spool_datagrams(&rig) > 0 && rig.queued(&destination) == 0).unwrap();
    wait_for("the time", PATIENCE, || stopped_at.elapsed() >= time).unwrap();
    server.signal(Signal::CONT);
    forward_paced(&mut engine, 2 * records / 3..records);
    wait_for("all records", 4 * PATIENCE, || rig.sent(&destination) == records).unwrap();
    wait_for_empty(&rig, &destination);
    let doubles = assert_complete(&values(&server.messages()), records);
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    rig.assert_ledger(&destination);
    drop(engine);
    rig.stop();
    doubles
}

#[test]
fn hanging_server_gets_everything_once_and_in_order() {
    if installed_or_skipped() {
        assert_eq!(stop_server(9_000, Duration::ZERO), 0);
    }
}

/// `make chaos` runs it.
#[test]
#[ignore = "takes a minute"]
fn server_that_hangs_for_20_seconds_gets_200_000_records_once() {
    if installed_or_skipped() {
        assert_eq!(stop_server(200_000, Duration::from_secs(20)), 0);
    }
}

/// `make chaos` runs it.
#[test]
#[ignore = "takes a minute"]
fn cluster_without_its_leader_for_20_seconds_stores_everything_once() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut servers = Server::start_cluster(folder.path());
    servers[0].create("logs", &["num_replicas=3"]);
    let rig = Rig::new();
    let hosts = servers.each_ref().map(|server| format!("127.0.0.1:{}", server.port)).join(",");
    let destination = format!("nats://{hosts}/logs");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=256MiB"), folder.path());
    let mut next = 0;
    for _ in 0..2 {
        forward_paced(&mut engine, next..next + 6_000);
        wait_for("some records", PATIENCE, || rig.sent(&destination) > next).unwrap();
        let leader = servers[0].leader();
        servers[leader].kill();
        let killed_at = Instant::now();
        forward_paced(&mut engine, next + 6_000..next + 12_000);
        wait_for("20 seconds", PATIENCE, || killed_at.elapsed() >= Duration::from_secs(20)).unwrap();
        servers[leader].start_again();
        next += 12_000;
    }
    wait_for("all records", 4 * PATIENCE, || rig.sent(&destination) == next).unwrap();
    wait_for_empty(&rig, &destination);
    let messages = servers[servers[0].leader()].messages();
    assert_eq!(assert_complete(&values(&messages), next), 0);
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    eprintln!("leader killed twice: {next} records, missing 0, 0 twice");
    drop(engine);
    rig.stop();
}

#[test]
fn killed_server_gets_everything_once_and_in_order() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::start(folder.path(), "");
    server.create("logs", &[]);
    let rig = Rig::new();
    let destination = server.uri("logs");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
    for round in 0..2 {
        forward_paced(&mut engine, round * 3_000..round * 3_000 + 2_000);
        wait_for("some records", PATIENCE, || rig.sent(&destination) > round * 3_000).unwrap();
        server.kill();
        forward_paced(&mut engine, round * 3_000 + 2_000..round * 3_000 + 3_000);
        wait_for("the outage", PATIENCE, || rig.metric("sekiwake_forward_up", &[]) == 0.0).unwrap();
        wait_for("the spool", PATIENCE, || spool_datagrams(&rig) > 0 && rig.queued(&destination) == 0).unwrap();
        server.start_again();
    }
    wait_for("all records", PATIENCE, || rig.sent(&destination) == 6_000).unwrap();
    wait_for_empty(&rig, &destination);
    assert_eq!(assert_complete(&values(&server.messages()), 6_000), 0);
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    rig.assert_ledger(&destination);
    drop(engine);
    rig.stop();
}

#[test]
fn missing_stream_is_named_and_gets_everything_once_it_is_there() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    let rig = Rig::new();
    let destination = server.uri("logs.syslog");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
    forward(&mut engine, &numbered(0..1_000));
    wait_for_error(
        &engine,
        "no stream takes the subject logs.syslog; to create one: nats stream add LOGS_SYSLOG --subjects='logs.syslog'",
    );
    assert_eq!(rig.metric("sekiwake_forward_up", &[]), 0.0);
    server.create("logs.>", &[]);
    wait_for("all records", PATIENCE, || rig.sent(&destination) == 1_000).unwrap();
    wait_for_empty(&rig, &destination);
    assert_eq!(assert_complete(&values(&server.messages()), 1_000), 0);
    rig.assert_ledger(&destination);
    drop(engine);
    rig.stop();
}

#[test]
fn records_too_large_are_dropped_and_the_others_arrive() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // Of the server, and of the stream.
    for (configuration, settings, expected) in
        [("max_payload: 4096", &[][..], "max_payload"), ("", &["max_msg_size=4096"][..], "max_msg_size")]
    {
        let server = Server::start(folder.path(), configuration);
        server.create("logs", settings);
        let rig = Rig::new();
        let destination = server.uri("logs");
        let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
        let mut samples = numbered(0..1_000);
        for sample in samples.iter_mut().skip(100).step_by(100) {
            *sample = Sample { source: device(1), payload: vec![b'x'; 5_000] };
        }
        forward(&mut engine, &samples);
        wait_for("all drops", PATIENCE, || rig.dropped(&destination, "rejected") == 9).unwrap();
        wait_for_empty(&rig, &destination);
        let numbers: Vec<u64> = server.messages().iter().map(|message| number_of(message.value())).collect();
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        let expected_numbers: Vec<u64> = (0..1_000).filter(|&number| number == 0 || number % 100 != 0).collect();
        assert_eq!(sorted, expected_numbers, "{expected}: the others, each once");
        rig.assert_ledger(&destination);
        wait_for_error(&engine, expected);
        drop(engine);
        rig.stop();
    }
}

#[test]
fn stream_that_takes_nothing_is_an_outage() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    server.create("logs", &["max_msg_size=10"]);
    let rig = Rig::new();
    let destination = server.uri("logs");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
    forward(&mut engine, &numbered(0..300));
    let errors = || rig.metric("sekiwake_forward_errors_total", &["error=\"answer\""]);
    wait_for("two outages", PATIENCE, || errors() >= 2.0 && spool_datagrams(&rig) == 300).unwrap();
    assert_eq!(rig.metric("sekiwake_forward_up", &[]), 0.0);
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    drop(engine);
    rig.stop();
}

/// A key pair for this test only.
const NKEY: &str = "UAXXR2LHZ5JBIQOSJQCXH7SHLVNRNCAZBLM54ATAIBKDA26XZT2S2BFN";
const NKEY_SEED: &str = "SUACUSHYYGWY7S52EE5YB5JYHYBHRB53TBV7KNYVVKI7QWPSDHIRPB2GTY";

#[test]
fn users_are_authenticated_over_tls_and_refusals_named() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let identity = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let certificate = secret(folder.path(), "certificate.pem", &identity.cert.pem()).display().to_string();
    let key = secret(folder.path(), "key.pem", &identity.signing_key.serialize_pem()).display().to_string();
    let password = secret(folder.path(), "password", "p=n,cil\n").display().to_string();
    let wrong = secret(folder.path(), "wrong", "pencil").display().to_string();
    let seed = secret(folder.path(), "nkey", NKEY_SEED).display().to_string();
    let may = "permissions: { publish: [\"logs\", \"$JS.API.STREAM.NAMES\"] }";
    let users = format!(
        "authorization {{ users: [{{user: writer, password: \"p=n,cil\", {may}}}, {{nkey: {NKEY}, {may}}}, \
         {{user: admin, password: admin}}] }}"
    );
    let tls = format!("tls {{ cert_file: \"{certificate}\", key_file: \"{key}\" }}\n");
    let server = Server::start(folder.path(), &format!("{tls}{users}"));
    // nats-py has no authority for it.
    let admin = Server::start(folder.path(), &users);
    admin.create_as("admin:admin@", "logs", &[]);
    for login in [format!("user=writer&password={password}"), format!("nkey={seed}")] {
        let rig = Rig::new();
        let destination = admin.uri("logs");
        let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&{login}"), folder.path());
        forward(&mut engine, &numbered(0..10));
        wait_for("all records", PATIENCE, || rig.sent(&destination) == 10)
            .unwrap_or_else(|_| panic!("{login}: {}", engine.status()));
        drop(engine);
        rig.stop();
    }
    assert_eq!(admin.messages_as("admin:admin@").len(), 20);
    let cases = [
        (format!("{}?user=writer&password={wrong}", admin.uri("logs")), "authorization violation"),
        (format!("{}?user=writer&password={password}", admin.uri("other")), "Permissions Violation"),
        // It is connected, and there is no stream.
        (format!("{}?tls=true&ca={certificate}&nkey={seed}", server.uri("logs")), "no stream takes the subject logs"),
        (format!("{}?tls=true&nkey={seed}", server.uri("strange")), "no NATS server of tls://"),
        (server.uri("plain"), "no NATS server of nats://"),
    ];
    let rig = Rig::new();
    let destinations = cases.each_ref().map(|(uri, _)| format!("{uri}&spool=16MiB").replace("plain&", "plain?"));
    let mut engine = engine(&rig, Kind::Syslog, &destinations.join(" "), folder.path());
    forward(&mut engine, &numbered(0..10));
    for (index, (uri, expected)) in cases.iter().enumerate() {
        let error = || engine.status()[index]["last_error"]["error"].as_str().unwrap_or_default().to_owned();
        wait_for("the error", PATIENCE, || error().contains(expected))
            .unwrap_or_else(|_| panic!("{uri}: {} should say {expected}", error()));
    }
    assert!(!engine.status().to_string().contains("pencil"));
    drop(engine);
    rig.stop();
}

#[test]
fn bus_is_left_alone() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    super::broker::run(
        "subjects.py",
        &["create", &format!("nats://127.0.0.1:{}", server.port), "SEKIWAKE_SYSLOG", "sekiwake.syslog.*"],
        None,
    );
    let rig = Rig::new();
    let mut engine = engine(&rig, Kind::Syslog, &server.uri("sekiwake.syslog.05"), folder.path());
    forward(&mut engine, &numbered(0..10));
    wait_for_error(
        &engine,
        "the stream SEKIWAKE_SYSLOG, which takes the subject sekiwake.syslog.05, is that of the bus",
    );
    drop(engine);
    rig.stop();
}

#[test]
fn test_message_is_acknowledged_or_the_reason_is_given() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    server.create("logs", &[]);
    let module = "TEST-MIB DEFINITIONS ::= BEGIN ours NOTIFICATION-TYPE STATUS current DESCRIPTION \"\" \
                  ::= { enterprises 32473 0 100 } END";
    fs::write(folder.path().join("test.mib"), module).unwrap();
    let mib = MibFolder::load(folder.path()).unwrap().mib();
    let uris = format!("{}?value=decoded {}", server.uri("logs"), server.uri("other"));
    let destinations = Destinations::parse(Kind::SnmpTrap, &uris).unwrap();
    let mut out = Vec::new();
    assert!(!send_test(Kind::SnmpTrap, &destinations, "public", &mib, &mut out).unwrap());
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("logs: acknowledged by the stream that takes subject logs"), "{text}");
    assert!(text.contains("other: FAILED: no stream takes the subject other"), "{text}");
    let messages = server.messages();
    assert_eq!(messages.len(), 1);
    let row: serde_json::Value = serde_json::from_str(messages[0].value()).unwrap();
    assert_eq!((&row["trap_name"], &row["trap_module"]), (&json!("ours"), &json!("TEST-MIB")), "{row}");
}

/// docs/nats.md names it.
#[test]
#[ignore = "a measurement"]
fn messages_of_one_source_per_second() {
    const RECORDS: u64 = 40_000;
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(folder.path(), "");
    server.create("logs.>", &[]);
    for pipeline in [1, 64] {
        let rig = Rig::new();
        let destination = server.uri(&format!("logs.{pipeline}"));
        let uri = format!("{destination}?value=raw&spool=256MiB&pipeline={pipeline}");
        let spool = folder.path().join(pipeline.to_string());
        let mut engine = engine(&rig, Kind::Syslog, &uri, &spool);
        let payloads = samples((0..RECORDS).map(|number| format!("<14>number {number}").into_bytes()));
        let started = Instant::now();
        payloads.chunks(50).for_each(|chunk| forward(&mut engine, chunk));
        wait_for("all records", 4 * PATIENCE, || rig.sent(&destination) == RECORDS).unwrap();
        let rate = RECORDS as f64 / started.elapsed().as_secs_f64();
        println!("pipeline={pipeline}: {rate:.0} messages per second");
        drop(engine);
        rig.stop();
    }
    assert_eq!(server.messages().len() as u64, 2 * RECORDS);
}
