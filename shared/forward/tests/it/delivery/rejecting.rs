//! Answers other than 200.

use sekiwake_record::Kind;
use sekiwake_testkit::wait::wait_for;
use serde_json::json;

use super::{
    assert_complete, engine, number_of, numbered,
    receiver::{Receiver, installed_or_skipped},
    spool_datagrams, wait_for_empty,
};
use crate::rig::{PATIENCE, Rig, forward};

#[test]
fn records_rejected_for_good_are_dropped_and_the_others_arrive() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (rules, encoding) in [
        (json!({ "status": 400, "containing": "number 77" }), "protobuf"),
        (json!({ "status": 413, "containing": "number 77" }), "json"),
        (json!({ "partial": "number 77" }), "protobuf"),
        (json!({ "partial": "number 77" }), "json"),
    ] {
        let rig = Rig::new();
        let receiver = Receiver::start();
        receiver.set_rules(&rules);
        let destination = receiver.uri();
        let mut engine =
            engine(&rig, Kind::Syslog, &format!("{destination}?encoding={encoding}&spool=16MiB"), folder.path());
        // 77, 770 to 779.
        forward(&mut engine, &numbered(0..1_000));
        wait_for("all drops", PATIENCE, || rig.dropped(&destination, "rejected") == 11).unwrap();
        wait_for_empty(&rig, &destination);
        let numbers: Vec<u64> = receiver.records().iter().map(|record| number_of(record.body())).collect();
        let expected: Vec<u64> = (0..1_000).filter(|&number| number != 77 && number / 10 != 77).collect();
        assert_eq!(numbers, expected, "{rules}: the others, in order");
        assert_eq!(rig.sent(&destination), expected.len() as u64);
        rig.assert_ledger(&destination);
        let error = engine.status()[0]["last_error"]["error"].as_str().unwrap().to_owned();
        assert!(error.contains("as told"), "{error}");
        drop(engine);
        rig.stop();
    }
}

#[test]
fn other_answers_cost_nothing_and_retry_after_is_respected() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // All at once, because each takes two seconds.
    let receivers = [429, 503, 401, 404, 500, 302].map(|status| {
        let receiver = Receiver::start();
        receiver.set_rules(&json!({ "status": status, "headers": { "Retry-After": "1" }, "times": 2 }));
        (status, receiver)
    });
    let rig = Rig::new();
    let destinations = receivers.each_ref().map(|(_, receiver)| format!("{}?spool=16MiB", receiver.uri()));
    let mut engine = engine(&rig, Kind::Syslog, &destinations.join(" "), folder.path());
    forward(&mut engine, &numbered(0..300));
    for (status, receiver) in &receivers {
        let destination = receiver.uri();
        let records = receiver.wait_for_records(300);
        let bodies: Vec<String> = records.iter().map(|record| record.body().to_owned()).collect();
        assert_eq!(assert_complete(&bodies, 300), 0, "{status}");
        wait_for("an empty queue", PATIENCE, || rig.sent(&destination) == 300).unwrap();
        let label = format!("\"{destination}\"");
        assert_eq!(rig.metric("sekiwake_forward_errors_total", &[&label, "error=\"answer\""]), 2.0, "{status}");
        // Two that fail, and a third that succeeds; each no sooner than asked for.
        let times = receiver.requests()["times"].clone();
        let times: Vec<f64> = times.as_array().unwrap().iter().map(|time| time.as_f64().unwrap()).collect();
        let pauses: Vec<f64> = times.windows(2).take(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(pauses.len() == 2 && pauses.iter().all(|&pause| pause >= 0.99), "{status}: {pauses:?}");
    }
    drop(engine);
    rig.stop();
}

#[test]
fn server_of_something_else_is_an_outage() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for (kind, body) in [
        ("text/html", "<html>sign in</html>"),
        ("application/json", "<html>sign in</html>"),
        ("application/x-protobuf", "<html>sign in</html>"),
        ("application/json", "[]"),
    ] {
        let rig = Rig::new();
        let receiver = Receiver::start();
        receiver.set_rules(&json!({ "status": 200, "type": kind, "body": body, "times": 2 }));
        let destination = receiver.uri();
        let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB"), folder.path());
        forward(&mut engine, &numbered(0..300));
        let records = receiver.wait_for_records(300);
        let bodies: Vec<String> = records.iter().map(|record| record.body().to_owned()).collect();
        assert_eq!(assert_complete(&bodies, 300), 0, "{kind}");
        wait_for_empty(&rig, &destination);
        assert_eq!(rig.metric("sekiwake_forward_errors_total", &["error=\"answer\""]), 2.0, "{kind}");
        rig.assert_ledger(&destination);
        drop(engine);
        rig.stop();
    }
}

#[test]
fn mistake_in_the_settings_costs_no_records() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for status in [400, 415] {
        let rig = Rig::new();
        let receiver = Receiver::start();
        receiver.set_rules(&json!({ "status": status }));
        let destination = receiver.uri();
        let mut engine = engine(&rig, Kind::Syslog, &format!("{destination}?spool=16MiB"), folder.path());
        forward(&mut engine, &numbered(0..300));
        let errors = || rig.metric("sekiwake_forward_errors_total", &["error=\"answer\""]);
        wait_for("two outages", PATIENCE, || errors() >= 2.0 && spool_datagrams(&rig) == 300).unwrap();
        assert_eq!(rig.metric("sekiwake_forward_up", &[]), 0.0, "{status}");
        let error = engine.status()[0]["last_error"]["error"].as_str().unwrap().to_owned();
        assert!(error.contains("as told"), "{error}");
        receiver.set_rules(&json!({}));
        let records = receiver.wait_for_records(300);
        let bodies: Vec<String> = records.iter().map(|record| record.body().to_owned()).collect();
        assert_eq!(assert_complete(&bodies, 300), 0, "{status}");
        wait_for_empty(&rig, &destination);
        assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0, "{status}");
        drop(engine);
        rig.stop();
    }
}

#[test]
fn slow_collector_fills_the_spool_and_delays_no_other() {
    if !installed_or_skipped() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let rig = Rig::new();
    let (slow, quick) = (Receiver::start(), Receiver::start());
    slow.set_rules(&json!({ "per_second": 100 }));
    let destinations = format!("{}?spool=16MiB {}", slow.uri(), quick.uri());
    let mut engine = engine(&rig, Kind::Syslog, &destinations, folder.path());
    // A minute of the slow one.
    for start in (0..6_000).step_by(100) {
        forward(&mut engine, &numbered(start..start + 100));
    }
    let records = quick.wait_for_records(6_000);
    let bodies: Vec<String> = records.iter().map(|record| record.body().to_owned()).collect();
    assert_eq!(assert_complete(&bodies, 6_000), 0);
    wait_for("the spool", PATIENCE, || spool_datagrams(&rig) > 0 && rig.queued(&slow.uri()) == 0).unwrap();
    assert_eq!(rig.metric("sekiwake_forward_dropped_datagrams_total", &[]), 0.0);
    slow.set_rules(&json!({}));
    slow.wait_for_records(6_000);
    wait_for_empty(&rig, &slow.uri());
    let bodies: Vec<String> = slow.records().iter().map(|record| record.body().to_owned()).collect();
    // A request that took longer than ten seconds was sent again.
    assert_complete(&bodies, 6_000);
    drop(engine);
    rig.stop();
}
