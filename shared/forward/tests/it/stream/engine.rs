//! Stream destinations in an engine, configured by URIs beside others.

use std::path::Path;

use sekiwake_forward::{Destinations, Engine, EngineOptions};
use sekiwake_record::Kind;
use sekiwake_testkit::wait::wait_for;
use serde_json::{Value, json};

use super::{
    numbered,
    peer::{Peer, Refusing, listener},
    tls::Authority,
};
use crate::rig::{PATIENCE, Rig, TestEngine, arrived, forward, loopback_sink, samples};

fn options(spools: &Path) -> EngineOptions {
    EngineOptions { spool_dir: spools.to_owned(), ..EngineOptions::default() }
}

fn engine(rig: &Rig, spools: &Path, destinations: &str) -> TestEngine {
    let destinations = Destinations::parse(Kind::Syslog, destinations).unwrap();
    Engine::start(Kind::Syslog, &destinations, options(spools), &rig.scope).unwrap()
}

#[test]
fn dead_stream_destination_does_not_delay_live_ones() {
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    let refusing = Refusing::new();
    let stalled = Peer::serve(listener(), |stream, book, _| {
        while !book.is_stopping() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        drop(stream);
    });
    let live = Peer::reading(listener());
    let (sink, udp) = loopback_sink();
    let (dead, stuck, tcp) = (
        format!("tcp://{}", refusing.address()),
        format!("tcp://{}", stalled.address),
        format!("tcp://{}", live.address),
    );
    let mut engine = engine(&rig, folder.path(), &format!("{dead} {udp} {stuck} {tcp}"));
    let payloads: Vec<Vec<u8>> = (0..40_000).map(numbered).collect();
    for (number, part) in payloads.chunks(1_000).enumerate() {
        // On a slow machine the records of a destination that does its best would expire.
        let before = number * 1_000;
        sink.wait_for(before as u64, PATIENCE).unwrap();
        wait_for("the messages before", PATIENCE, || live.book.count() >= before).unwrap();
        forward(&mut engine, &samples(part.to_vec()));
    }
    assert!(arrived(sink, payloads.len()) == payloads);
    live.book.wait_for_distinct(payloads.len());
    assert!(live.book.messages() == payloads);
    for destination in [&dead, &stuck, &tcp, &udp] {
        let is_empty = || rig.queued(destination) == 0 || destination == &stuck;
        wait_for("an empty queue", PATIENCE, is_empty).unwrap();
    }
    assert_eq!(rig.dropped(&dead, "disconnected"), 40_000);
    wait_for("drops at the one that does not read", PATIENCE, || rig.dropped(&stuck, "stalled") > 0).unwrap();
    assert_eq!(rig.sent(&tcp), 40_000);
    let up = |destination: &str| rig.metric("sekiwake_forward_up", &[&format!("\"{destination}\"")]);
    wait_for("all states to show", PATIENCE, || (up(&dead), up(&stuck), up(&tcp)) == (0.0, 0.0, 1.0)).unwrap();
    rig.stop();
}

#[test]
fn removed_stalled_destination_leaves_the_rest_spooled() {
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    let stalled = Peer::serve(listener(), |stream, book, _| {
        while !book.is_stopping() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        drop(stream);
    });
    let label = format!("tcp://{}", stalled.address);
    let mut engine = engine(&rig, folder.path(), &format!("{label}?spool=64MiB"));
    let value = |name: &str| rig.metric(name, &[&format!("\"{label}\"")]) as u64;
    wait_for("a connection", PATIENCE, || value("sekiwake_forward_up") == 1).unwrap();
    forward(&mut engine, &samples((0..60_000).map(numbered)));
    engine.apply(&Destinations::default()).unwrap();
    wait_for("an empty queue", PATIENCE, || rig.queued(&label) == 0).unwrap();
    assert_eq!(value("sekiwake_forward_spool_datagrams") + rig.sent(&label), 60_000);
    assert!(value("sekiwake_forward_spool_datagrams") > 10_000);
    rig.stop();
}

#[test]
fn changed_destination_hands_over_its_spool() {
    let (rig, folder, refusing, authority) =
        (Rig::new(), tempfile::tempdir().unwrap(), Refusing::new(), Authority::new());
    let uri = format!(
        "tls://{}?ca={}&server_name=siem.example&spool=2MiB&replay=1000&add_source=true",
        refusing.address(),
        authority.ca().display()
    );
    let label = format!("tls://{}", refusing.address());
    let mut engine = engine(&rig, folder.path(), &uri);
    forward(&mut engine, &samples((0..100).map(numbered)));
    let spooled = || rig.metric("sekiwake_forward_spool_datagrams", &[&format!("\"{label}\"")]);
    wait_for("the spool", PATIENCE, || spooled() == 100.0).unwrap();
    // The same endpoint with another option: another worker, the same spool.
    let changed = Destinations::parse(Kind::Syslog, &uri.replace("replay=1000", "replay=2000")).unwrap();
    engine.apply(&changed).unwrap();
    forward(&mut engine, &samples((100..200).map(numbered)));
    wait_for("the spool", PATIENCE, || spooled() == 200.0).unwrap();
    let identity = authority.identity("server", &["siem.example"], false);
    let config = authority.server(&identity, &rustls::version::TLS13, false);
    let (peer, _) = super::tls::tls_peer(refusing.listen(), config);
    peer.book.wait_for_distinct(200);
    for (number, message) in peer.book.messages().iter().enumerate() {
        let expected = String::from_utf8(numbered(number as u64)).unwrap().replacen(
            "- - - ",
            "- - [origin ip=\"198.51.100.1\"] ",
            1,
        );
        assert_eq!(String::from_utf8_lossy(message), expected);
    }
    wait_for("an empty spool", PATIENCE, || spooled() == 0.0).unwrap();
    rig.stop();
}

#[test]
fn unusable_files_fail_the_start() {
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    let start = |spools: &Path, uri: &str| {
        let destinations = Destinations::parse(Kind::Syslog, uri).unwrap();
        let engine: std::io::Result<TestEngine> =
            Engine::start(Kind::Syslog, &destinations, options(spools), &rig.scope);
        engine.err().expect("an error").to_string()
    };
    let missing = start(folder.path(), "tls://127.0.0.1:6514?ca=/nowhere.pem");
    assert!(missing.contains("tls://127.0.0.1:6514") && missing.contains("/nowhere.pem: no such file"), "{missing}");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let no_folder = start(&file, "tcp://127.0.0.1:6514?spool=2MiB");
    assert!(no_folder.contains("tcp://127.0.0.1:6514: cannot use the spool directory"), "{no_folder}");
    // A file where the spool's folder should be.
    std::fs::write(folder.path().join("tcp_127.0.0.1_6514"), "").unwrap();
    let no_spool = start(folder.path(), "tcp://127.0.0.1:6514?spool=2MiB");
    assert!(no_spool.contains("cannot open the spool"), "{no_spool}");
    rig.stop();
}

#[test]
fn status_shows_each_destination_with_counts_and_its_last_error() {
    let rig = Rig::new();
    let folder = tempfile::tempdir().unwrap();
    let refusing = Refusing::new();
    let live = Peer::reading(listener());
    let (dead, tcp) = (format!("tcp://{}", refusing.address()), format!("tcp://{}", live.address));
    let mut engine = engine(&rig, folder.path(), &format!("{tcp} {dead}?min_severity=warning"));
    forward(&mut engine, &samples([b"<11>err".to_vec(), b"<14>info".to_vec()]));
    wait_for("both to be sent", PATIENCE, || engine.status()[0]["sent"] == 2).unwrap();
    wait_for("a drop", PATIENCE, || engine.status()[1]["dropped"]["disconnected"] == 1).unwrap();
    let status = engine.status();
    let [up, down] = &status.as_array().unwrap()[..] else { panic!("{status}") };
    assert_eq!(
        (&up["destination"], &up["state"], &up["last_error"]),
        (&tcp.clone().into(), &"up".into(), &Value::Null)
    );
    assert_eq!(up["address"], live.address.to_string());
    assert_eq!((&up["dropped"], &up["spool"]), (&json!({}), &Value::Null));
    assert_eq!((&down["destination"], &down["state"]), (&dead.clone().into(), &"down".into()));
    assert_eq!((&down["sent"], &down["filtered_out"]), (&0.into(), &json!({"severity": 1})));
    assert!(down["last_error"]["error"].as_str().unwrap().contains("refused"), "{down}");
    assert!(down["last_error"]["seconds_ago"].is_f64() && down["seconds_in_state"].is_f64(), "{down}");

    // A change of destinations is shown; counts stay.
    let text = format!("{tcp}?spool=64MiB");
    engine.apply(&Destinations::parse(Kind::Syslog, &text).unwrap()).unwrap();
    let status = engine.status();
    assert_eq!(status.as_array().unwrap().len(), 1);
    assert_eq!((&status[0]["sent"], &status[0]["spool"]["datagrams"]), (&2.into(), &0.into()));
    rig.stop();
}
