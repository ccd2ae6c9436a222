//! Topics of Kafka: every record, its order, outages, errors.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sekiwake_forward::{Destinations, Engine, EngineOptions};
use sekiwake_record::{Format, Kind, Record};
use sekiwake_runtime::MibFolder;
use sekiwake_testkit::{
    fixtures::{batch_of, record},
    netns::{End, Link, Namespace, namespaces_or_skipped},
    process::Signal,
    wait::wait_for,
};
use serde_json::json;

use super::{
    assert_complete,
    broker::{Broker, Front, Mock, Stored, installed_or_skipped},
    engine, number_of, numbered,
    outage::forward_paced,
    receiver::validate,
    records::odd_samples,
    spool_datagrams, wait_for_empty,
};
use crate::rig::{PATIENCE, Rig, TestEngine, forward};

pub(crate) fn values(records: &[Stored]) -> Vec<String> {
    records.iter().map(|record| record.value().to_owned()).collect()
}

pub(crate) fn wait_for_error(engine: &TestEngine, expected: &str) {
    let error = || engine.status()[0]["last_error"]["error"].as_str().unwrap_or_default().to_owned();
    wait_for("the error", PATIENCE, || error().contains(expected))
        .unwrap_or_else(|_| panic!("{} should say {expected}", error()));
}

pub(crate) fn secret(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[test]
fn every_record_is_stored_with_its_key_and_headers() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    for compression in ["none", "gzip", "zstd"] {
        let topic = format!("odd-{compression}");
        broker.create(&topic, 3);
        let rig = Rig::new();
        let destination = broker.uri(&topic);
        let options = format!("{destination}?value=raw&compression={compression}");
        let mut engine = engine(&rig, Kind::Syslog, &options, folder.path());
        let samples = odd_samples();
        forward(&mut engine, &samples);
        wait_for("all records", PATIENCE, || rig.sent(&destination) == samples.len() as u64).unwrap();
        let records = broker.records(&topic);
        assert_eq!(records.len(), samples.len());
        for sample in &samples {
            let source = sample.source.to_string();
            let Stored(record) = records.iter().find(|record| record.0["key"] == source.as_str()).unwrap();
            match std::str::from_utf8(&sample.payload) {
                Ok(text) => assert_eq!(record["value"], text),
                Err(_) => assert_eq!(record["value"]["base64"], BASE64_STANDARD.encode(&sample.payload)),
            }
            let format = sekiwake_identify::identify(None, &sample.payload);
            assert_eq!(record["headers"]["kind"], "syslog");
            assert_eq!(record["headers"]["format"], format.as_str());
            let captured_at: jiff::Timestamp = record["headers"]["captured_at"].as_str().unwrap().parse().unwrap();
            assert_eq!(record["time"], captured_at.as_millisecond());
        }
        wait_for_empty(&rig, &destination);
        rig.assert_ledger(&destination);
        assert_eq!(rig.metric("sekiwake_forward_up", &[]), 1.0);
        drop(engine);
        rig.stop();
    }
}

#[test]
fn envelope_is_the_default_and_rows_are_records() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    broker.create("both", 2);
    broker.create("rows", 2);
    let rig = Rig::new();
    let both = format!("{} {}?value=decoded", broker.uri("both"), broker.uri("rows"));
    let mut engine = engine(&rig, Kind::Syslog, &both, folder.path());
    forward(&mut engine, &numbered(0..30));
    for topic in ["both", "rows"] {
        wait_for("all records", PATIENCE, || rig.sent(&broker.uri(topic)) == 30).unwrap();
        let records = broker.records(topic);
        let lines: String = records.iter().map(|record| format!("{}\n", record.value())).collect();
        assert_eq!(validate(lines.as_bytes()), Ok("30".to_owned()), "{topic}");
    }
    let row: serde_json::Value = serde_json::from_str(broker.records("rows")[0].value()).unwrap();
    assert_eq!(row["row"], 0);
    drop(engine);
    rig.stop();
}

#[test]
fn hanging_broker_gets_everything_in_order() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    broker.create("logs", 4);
    let rig = Rig::new();
    let destination = broker.uri("logs");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
    forward_paced(&mut engine, 0..3_000);
    wait_for("some records", PATIENCE, || rig.sent(&destination) > 0).unwrap();
    broker.signal(Signal::STOP);
    forward_paced(&mut engine, 3_000..6_000);
    wait_for("the spool", PATIENCE, || spool_datagrams(&rig) > 0 && rig.queued(&destination) == 0).unwrap();
    forward_paced(&mut engine, 6_000..9_000);
    broker.signal(Signal::CONT);
    wait_for("all records", PATIENCE, || rig.sent(&destination) == 9_000).unwrap();
    wait_for_empty(&rig, &destination);
    assert_complete(&values(&broker.records("logs")), 9_000);
    rig.assert_ledger(&destination);
    drop(engine);
    rig.stop();
}

/// `make chaos` runs it.
#[test]
#[ignore = "takes a minute"]
fn broker_that_hangs_for_20_seconds_gets_200_000_records() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    broker.create("logs", 4);
    let rig = Rig::new();
    let destination = broker.uri("logs");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=256MiB"), folder.path());
    forward_paced(&mut engine, 0..70_000);
    wait_for("some records", PATIENCE, || rig.sent(&destination) > 0).unwrap();
    broker.signal(Signal::STOP);
    let stopped_at = Instant::now();
    forward_paced(&mut engine, 70_000..140_000);
    wait_for("20 seconds", PATIENCE, || stopped_at.elapsed() >= Duration::from_secs(20)).unwrap();
    broker.signal(Signal::CONT);
    forward_paced(&mut engine, 140_000..200_000);
    wait_for("all records", 4 * PATIENCE, || rig.sent(&destination) == 200_000).unwrap();
    wait_for_empty(&rig, &destination);
    let doubles = assert_complete(&values(&broker.records("logs")), 200_000);
    eprintln!("broker stopped for 20 s: 200000 records, missing 0, {doubles} twice");
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    drop(engine);
    rig.stop();
}

/// Cuts the link to the broker while these records are sent. Returns how many arrived twice.
fn cut_link(records: u64, time: Duration) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let forwarder = Namespace::new("skw-fwd").unwrap();
    let remote = Namespace::new("skw-brk").unwrap();
    let left = End::new(&forwarder, "fwd0").address("198.18.0.1/24");
    Link::new(left, End::new(&remote, "brk0").address("198.18.0.2/24")).create().unwrap();
    let broker = Broker::start_in(&remote, "198.18.0.2:9092");
    broker.create_in("logs", 4, Some(&remote));
    let destination = broker.uri("logs");
    let (rig, mut engine) = forwarder
        .enter(|| {
            let rig = Rig::new();
            let options = format!("{destination}?value=raw&spool=256MiB");
            let engine = engine(&rig, Kind::Syslog, &options, folder.path());
            (rig, engine)
        })
        .unwrap();
    forward_paced(&mut engine, 0..records / 3);
    wait_for("some records", PATIENCE, || rig.sent(&destination) > 0).unwrap();
    // Packets are lost without a word, as on a link further away.
    remote.ip("link set brk0 down").unwrap();
    let cut_at = Instant::now();
    forward_paced(&mut engine, records / 3..2 * records / 3);
    wait_for("the spool", PATIENCE, || spool_datagrams(&rig) > 0).unwrap();
    wait_for("the time", PATIENCE, || cut_at.elapsed() >= time).unwrap();
    remote.ip("link set brk0 up").unwrap();
    forward_paced(&mut engine, 2 * records / 3..records);
    wait_for("all records", 4 * PATIENCE, || rig.sent(&destination) == records).unwrap();
    wait_for_empty(&rig, &destination);
    let doubles = assert_complete(&values(&broker.records_in("logs", Some(&remote))), records);
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    drop(engine);
    rig.stop();
    doubles
}

#[test]
fn cut_link_loses_nothing() {
    if installed_or_skipped() && namespaces_or_skipped() {
        cut_link(9_000, Duration::ZERO);
    }
}

/// `make chaos` runs it.
#[test]
#[ignore = "takes a minute"]
fn link_that_hangs_for_20_seconds_loses_nothing_of_200_000_records() {
    if installed_or_skipped() && namespaces_or_skipped() {
        let doubles = cut_link(200_000, Duration::from_secs(20));
        eprintln!("link cut for 20 s: 200000 records, missing 0, {doubles} twice");
    }
}

#[test]
fn missing_topic_is_named_and_gets_everything_once_it_is_there() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    broker.create("logs", 4);
    let rig = Rig::new();
    let destination = broker.uri("logs");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
    forward_paced(&mut engine, 0..1_000);
    wait_for("all of the first", PATIENCE, || rig.sent(&destination) == 1_000).unwrap();
    let before = values(&broker.records("logs"));
    let port = broker.kill();
    forward_paced(&mut engine, 1_000..3_000);
    wait_for("the spool", PATIENCE, || spool_datagrams(&rig) == 2_000).unwrap();
    // Another one, with nothing in it, not even the topic.
    let broker = Broker::start_at(port, port);
    wait_for_error(&engine, "topic logs does not exist");
    assert_eq!(rig.metric("sekiwake_forward_up", &[]), 0.0);
    broker.create("logs", 2);
    forward_paced(&mut engine, 3_000..4_000);
    wait_for("all records", PATIENCE, || rig.sent(&destination) == 4_000).unwrap();
    wait_for_empty(&rig, &destination);
    assert_complete(&[before, values(&broker.records("logs"))].concat(), 4_000);
    rig.assert_ledger(&destination);
    drop(engine);
    rig.stop();
}

#[test]
fn records_that_a_topic_rejects_are_dropped_and_the_others_arrive() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for error in [10, 87] {
        let front = Front::start(folder.path(), &[]);
        front.broker.create("logs", 3);
        front.set_rules(&json!({ "error": error, "containing": "number 77" }));
        let rig = Rig::new();
        let destination = front.uri("logs");
        let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
        // 77, 770 to 779.
        forward(&mut engine, &numbered(0..1_000));
        wait_for("all drops", PATIENCE, || rig.dropped(&destination, "rejected") == 11).unwrap();
        wait_for_empty(&rig, &destination);
        let mut numbers: Vec<u64> =
            front.broker.records("logs").iter().map(|record| number_of(record.value())).collect();
        numbers.sort_unstable();
        let expected: Vec<u64> = (0..1_000).filter(|&number| number != 77 && number / 10 != 77).collect();
        assert_eq!(numbers, expected, "{error}: the others, each once");
        assert_eq!(rig.sent(&destination), expected.len() as u64);
        rig.assert_ledger(&destination);
        wait_for_error(&engine, if error == 10 { "MESSAGE_TOO_LARGE" } else { "INVALID_RECORD" });
        drop(engine);
        rig.stop();
    }
}

#[test]
fn errors_of_settings_and_lost_answers_cost_no_records() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (rules, expected) in [
        // Too few replicas, leader elsewhere, not authorized, rejected for everything.
        (json!({ "error": 19, "times": 18 }), "NOT_ENOUGH_REPLICAS"),
        (json!({ "error": 6, "times": 18 }), "NOT_LEADER"),
        (json!({ "error": 29, "times": 12 }), "TOPIC_AUTHORIZATION_FAILED"),
        (json!({ "error": 59, "times": 2 }), ""),
        (json!({ "lose": 3 }), ""),
    ] {
        let front = Front::start(folder.path(), &[]);
        front.broker.create("logs", 3);
        front.set_rules(&rules);
        let rig = Rig::new();
        let destination = front.uri("logs");
        let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
        forward(&mut engine, &numbered(0..300));
        wait_for("all records", PATIENCE, || rig.sent(&destination) == 300).unwrap();
        if !expected.is_empty() {
            wait_for_error(&engine, expected);
        }
        wait_for_empty(&rig, &destination);
        let doubles = assert_complete(&values(&front.broker.records("logs")), 300);
        if rules.get("lose").is_none() {
            assert_eq!(doubles, 0, "{rules}");
        } else {
            eprintln!("three lost answers: {doubles} of 300 twice at tansu");
        }
        assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
        drop(engine);
        rig.stop();
    }
}

#[test]
fn topic_that_rejects_everything_is_an_outage() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let front = Front::start(folder.path(), &[]);
    front.broker.create("logs", 3);
    front.set_rules(&json!({ "error": 10 }));
    let rig = Rig::new();
    let destination = front.uri("logs");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
    forward(&mut engine, &numbered(0..1_000));
    let errors = || rig.metric("sekiwake_forward_errors_total", &["error=\"answer\""]);
    wait_for("two outages", PATIENCE, || errors() >= 2.0 && spool_datagrams(&rig) == 1_000).unwrap();
    wait_for_error(&engine, "everything is rejected: MESSAGE_TOO_LARGE");
    assert_eq!(rig.metric("sekiwake_forward_up", &[]), 0.0);
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    drop(engine);
    rig.stop();
}

#[test]
fn users_are_authenticated_and_wrong_passwords_named() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let identity = rcgen::generate_simple_self_signed(["broker.example".to_owned()]).unwrap();
    let certificate = secret(folder.path(), "certificate.pem", &identity.cert.pem());
    let key = secret(folder.path(), "key.pem", &identity.signing_key.serialize_pem());
    let password = secret(folder.path(), "password", "p=n,cil\n");
    let wrong = secret(folder.path(), "wrong", "pencil");
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    let user = ["--user", "wri,ter=1", "p=n,cil"];
    let front = Front::start(folder.path(), &[&user[..], &["--tls", &certificate, &key]].concat());
    front.broker.create("logs", 3);
    let uri = |sasl: &str, password: &Path| {
        let tls = format!("tls=true&ca={certificate}&server_name=broker.example");
        let user = "user=wri%2Cter%3D1";
        format!("{}?value=raw&{tls}&sasl={sasl}&{user}&password={}", front.uri("logs"), password.display())
    };
    let destination = front.uri("logs");
    for (index, sasl) in ["plain", "scram-sha-256", "scram-sha-512"].into_iter().enumerate() {
        let rig = Rig::new();
        let mut engine = engine(&rig, Kind::Syslog, &uri(sasl, &password), folder.path());
        forward(&mut engine, &numbered(0..10));
        wait_for("all records", PATIENCE, || rig.sent(&destination) == 10)
            .unwrap_or_else(|_| panic!("{sasl}: {}", engine.status()));
        assert_eq!(front.broker.records("logs").len(), 10 * (index + 1));
        drop(engine);
        rig.stop();
        let rig = Rig::new();
        let mut engine = super::engine(&rig, Kind::Syslog, &uri(sasl, &wrong), folder.path());
        forward(&mut engine, &numbered(0..10));
        wait_for_error(&engine, "SASL failed for user wri,ter=1: Authentication failed");
        assert!(!engine.status().to_string().contains("pencil"));
        drop(engine);
        rig.stop();
    }
    // Without TLS there is no answer that it understands.
    let rig = Rig::new();
    let mut engine = engine(&rig, Kind::Syslog, &front.uri("logs"), folder.path());
    forward(&mut engine, &numbered(0..10));
    wait_for_error(&engine, "tls=true");
    drop(engine);
    rig.stop();
}

#[test]
fn moved_leaders_and_lost_brokers_cost_no_records() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mock = Mock::start(folder.path());
    let rig = Rig::new();
    let destination = format!("kafka://{}/logs", mock.servers);
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?value=raw&spool=16MiB"), folder.path());
    forward_paced(&mut engine, 0..3_000);
    // Not enough replicas, twice after it was stored; not the leader; timed out.
    mock.command("errors 19 20 6 7");
    for partition in 0..6 {
        mock.command(&format!("leader {partition} {}", partition % 2 + 1));
    }
    forward_paced(&mut engine, 3_000..6_000);
    wait_for("these records", PATIENCE, || rig.sent(&destination) == 6_000).unwrap();
    mock.command("down 1");
    for partition in 0..6 {
        mock.command(&format!("leader {partition} {}", partition % 2 + 2));
    }
    forward_paced(&mut engine, 6_000..9_000);
    wait_for("all records", PATIENCE, || rig.sent(&destination) == 9_000).unwrap();
    mock.command("up 1");
    wait_for_empty(&rig, &destination);
    assert_complete(&mock.values(), 9_000);
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    rig.assert_ledger(&destination);
    drop(engine);
    rig.stop();
}

#[test]
fn unavailable_brokers_cost_little_processor_time() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::start();
    let destination = broker.uri("logs");
    broker.kill();
    let rig = Rig::new();
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB"), folder.path());
    forward_paced(&mut engine, 0..500);
    wait_for("the spool", PATIENCE, || spool_datagrams(&rig) == 500).unwrap();
    wait_for_error(&engine, "refused");
    // Pauses grow, so that there are few attempts.
    let attempts = rig.metric("sekiwake_forward_errors_total", &["connection_refused"]);
    assert!((1.0..20.0).contains(&attempts), "{attempts}");
    drop(engine);
    rig.stop();
}

/// An SNMPv2c trap whose trap OID is 1.3.6.1.4.1.32473.7.
const TRAP: &[u8] = b"\x30\x40\x02\x01\x01\x04\x06public\xa7\x33\x02\x01\x09\x02\x01\x00\x02\x01\x00\x30\x28\
    \x30\x0d\x06\x08\x2b\x06\x01\x02\x01\x01\x03\x00\x43\x01\x01\
    \x30\x17\x06\x0a\x2b\x06\x01\x06\x03\x01\x01\x04\x01\x00\x06\x09\x2b\x06\x01\x04\x01\x81\xfd\x59\x07";

#[test]
fn decoded_traps_have_the_names_of_mib_files() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let module = "TEST-MIB DEFINITIONS ::= BEGIN ours NOTIFICATION-TYPE STATUS current DESCRIPTION \"\" \
                  ::= { enterprises 32473 7 } END";
    fs::write(folder.path().join("test.mib"), module).unwrap();
    let broker = Broker::start();
    broker.create("traps", 1);
    let rig = Rig::new();
    let destinations = Destinations::parse(Kind::SnmpTrap, &format!("{}?value=decoded", broker.uri("traps"))).unwrap();
    let mib = MibFolder::load(folder.path()).unwrap().mib();
    let mut engine: TestEngine =
        Engine::start(Kind::SnmpTrap, &destinations, EngineOptions { mib, ..EngineOptions::default() }, &rig.scope)
            .unwrap();
    let record = Record { format: Format::Snmp2cTrap, ..record(TRAP) };
    engine.forward(&Arc::new(batch_of([record]).into_batch().unwrap().into()));
    wait_for("the record", PATIENCE, || rig.sent(&broker.uri("traps")) == 1).unwrap();
    let row: serde_json::Value = serde_json::from_str(broker.records("traps")[0].value()).unwrap();
    assert_eq!((&row["trap_name"], &row["trap_module"]), (&json!("ours"), &json!("TEST-MIB")), "{row}");
    assert!(!row.to_string().contains("public"));
    drop(engine);
    rig.stop();
}
