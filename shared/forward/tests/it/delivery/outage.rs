//! Collectors that stop, hang and restart, and forwarders that do.

use std::{
    thread,
    time::{Duration, Instant},
};

use sekiwake_forward::Destinations;
use sekiwake_record::Kind;
use sekiwake_testkit::{process::Signal, wait::wait_for};

use super::{
    assert_complete, engine, numbered,
    receiver::{Receiver, installed_or_skipped},
    spool_datagrams, wait_for_empty,
};
use crate::rig::{PATIENCE, Rig, TestEngine, forward};

/// Forwards these numbers, some at a time.
pub(crate) fn forward_paced(engine: &mut TestEngine, numbers: std::ops::Range<u64>) {
    for start in numbers.clone().step_by(50) {
        forward(engine, &numbered(start..(start + 50).min(numbers.end)));
        thread::yield_now();
    }
}

fn bodies(receiver: &Receiver) -> Vec<String> {
    receiver.records().iter().map(|record| record.body().to_owned()).collect()
}

#[test]
fn hanging_collector_gets_everything_in_order() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new();
    let receiver = Receiver::start();
    let destination = receiver.uri();
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB"), folder.path());
    forward_paced(&mut engine, 0..3_000);
    receiver.wait_for_records(1);
    receiver.signal(Signal::STOP);
    forward_paced(&mut engine, 3_000..6_000);
    wait_for("the spool", PATIENCE, || spool_datagrams(&rig) > 0 && rig.queued(&destination) == 0).unwrap();
    forward_paced(&mut engine, 6_000..9_000);
    receiver.signal(Signal::CONT);
    receiver.wait_for_records(9_000);
    wait_for_empty(&rig, &destination);
    assert_complete(&bodies(&receiver), 9_000);
    rig.assert_ledger(&destination);
    drop(engine);
    rig.stop();
}

/// The same with 200,000 records and 20 s: `make chaos` runs it.
#[test]
#[ignore = "takes a minute"]
fn collector_that_hangs_for_20_seconds_gets_200_000_records() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new();
    let receiver = Receiver::start();
    let destination = receiver.uri();
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=256MiB"), folder.path());
    forward_paced(&mut engine, 0..70_000);
    receiver.wait_for_records(1);
    receiver.signal(Signal::STOP);
    let stopped_at = Instant::now();
    forward_paced(&mut engine, 70_000..140_000);
    wait_for("20 seconds", PATIENCE, || stopped_at.elapsed() >= Duration::from_secs(20)).unwrap();
    receiver.signal(Signal::CONT);
    forward_paced(&mut engine, 140_000..200_000);
    wait_for("all records", 4 * PATIENCE, || rig.sent(&destination) == 200_000).unwrap();
    wait_for_empty(&rig, &destination);
    let doubles = assert_complete(&bodies(&receiver), 200_000);
    eprintln!("200000 records, missing 0, {doubles} twice");
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    drop(engine);
    rig.stop();
}

#[test]
fn restarted_collector_gets_what_it_missed() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new();
    let receiver = Receiver::start();
    let destination = receiver.uri();
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB"), folder.path());
    forward_paced(&mut engine, 0..1_000);
    wait_for("all of the first", PATIENCE, || rig.sent(&destination) == 1_000).unwrap();
    assert_eq!(rig.metric("sekiwake_forward_up", &[]), 1.0);
    let before = bodies(&receiver);
    let port = receiver.kill();
    forward_paced(&mut engine, 1_000..3_000);
    wait_for("the spool", PATIENCE, || spool_datagrams(&rig) == 2_000).unwrap();
    wait_for("the outage", PATIENCE, || rig.metric("sekiwake_forward_up", &[]) == 0.0).unwrap();
    let receiver = Receiver::start_with(port, &[]);
    forward_paced(&mut engine, 3_000..4_000);
    receiver.wait_for_records(3_000);
    wait_for_empty(&rig, &destination);
    assert_complete(&[before, bodies(&receiver)].concat(), 4_000);
    rig.assert_ledger(&destination);
    drop(engine);
    rig.stop();
}

#[test]
fn restarted_forwarder_delivers_its_spool_before_anything_newer() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = Receiver::start().kill();
    let destination = format!("otlp+http://127.0.0.1:{port}");
    let uri = format!("{destination}?spool=16MiB");
    for start in [0, 2_000] {
        // The second one finds the spool of the first.
        let rig = Rig::new();
        let mut engine = engine(&rig, Kind::Syslog, &uri, folder.path());
        forward_paced(&mut engine, start..start + 2_000);
        wait_for("the spool", PATIENCE, || spool_datagrams(&rig) == start + 2_000).unwrap();
        drop(engine);
        rig.stop();
    }
    // Another kind does not touch it.
    let rig = Rig::new();
    let traps = engine(&rig, Kind::SnmpTrap, &uri, folder.path());
    assert_eq!(spool_datagrams(&rig), 0);
    drop(traps);
    rig.stop();
    let rig = Rig::new();
    let receiver = Receiver::start_with(port, &[]);
    let mut engine = engine(&rig, Kind::Syslog, &uri, folder.path());
    forward_paced(&mut engine, 4_000..5_000);
    receiver.wait_for_records(5_000);
    wait_for_empty(&rig, &destination);
    // A request that a busy collector answers too late is sent again.
    assert_complete(&bodies(&receiver), 5_000);
    drop(engine);
    rig.stop();
}

#[test]
fn changed_options_hand_the_spool_over_in_order() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = Receiver::start().kill();
    let destination = format!("otlp+http://127.0.0.1:{port}");
    let rig = Rig::new();
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB"), folder.path());
    forward_paced(&mut engine, 0..2_000);
    let changed = Destinations::parse(Kind::Syslog, &format!("{destination}?spool=32MiB&compression=none")).unwrap();
    engine.apply(&changed).unwrap();
    forward_paced(&mut engine, 2_000..4_000);
    wait_for("the spool", PATIENCE, || spool_datagrams(&rig) == 4_000).unwrap();
    let receiver = Receiver::start_with(port, &[]);
    receiver.wait_for_records(4_000);
    wait_for_empty(&rig, &destination);
    assert_complete(&bodies(&receiver), 4_000);
    drop(engine);
    rig.stop();
}

#[test]
fn without_a_spool_an_outage_is_counted_and_costs_no_flood() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let port = Receiver::start().kill();
    let destination = format!("otlp+http://127.0.0.1:{port}");
    let rig = Rig::new();
    let mut engine = engine(&rig, Kind::Syslog, &destination, folder.path());
    forward_paced(&mut engine, 0..500);
    wait_for("all drops", PATIENCE, || rig.dropped(&destination, "disconnected") == 500).unwrap();
    rig.assert_ledger(&destination);
    // Pauses grow from 0.2 s: within the two seconds that messages wait there are few attempts.
    let attempts = rig.metric("sekiwake_forward_errors_total", &["connection_refused"]);
    assert!((1.0..20.0).contains(&attempts), "{attempts}");
    drop(engine);
    rig.stop();
}

#[test]
fn stop_during_an_outage_leaves_everything_in_the_spool() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let receiver = Receiver::start();
    receiver.signal(Signal::STOP);
    let destination = receiver.uri();
    let rig = Rig::draining("2s");
    let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB"), folder.path());
    forward_paced(&mut engine, 0..1_000);
    drop(engine);
    let scope = rig.scope.clone();
    rig.stop();
    let text = scope.metrics().text();
    let sample = text.lines().find(|line| line.starts_with("sekiwake_forward_spool_datagrams{")).unwrap();
    assert!(sample.ends_with(" 1000"), "nothing was acknowledged: {sample}");
    receiver.signal(Signal::CONT);
    let rig = Rig::new();
    let engine = super::engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB"), folder.path());
    wait_for("all records", PATIENCE, || bodies(&receiver).len() >= 1_000).unwrap();
    wait_for_empty(&rig, &destination);
    // The request that had no answer was sent again.
    assert!(assert_complete(&bodies(&receiver), 1_000) <= 1_000);
    drop(engine);
    rig.stop();
}
