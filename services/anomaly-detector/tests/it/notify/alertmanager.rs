//! Notifiers against a real Alertmanager.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::Command,
    time::Duration,
};

use sekiwake_anomaly_detector::notify::Timing;
use sekiwake_testkit::{process::Process, wait::wait_for};
use serde_json::Value;

use super::rig::{LONG, QUICK, Rig, firing, resolved};

/// Starts Alertmanager with its data in `folder`.
fn start(folder: &Path, address: SocketAddr) -> Process {
    let configuration = folder.join("alertmanager.yml");
    std::fs::write(&configuration, "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n").unwrap();
    let mut command = Command::new("prometheus-alertmanager");
    command
        .arg(format!("--config.file={}", configuration.display()))
        .arg(format!("--storage.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address={address}"))
        .args(["--web.route-prefix=/am", "--cluster.listen-address="]);
    let process = Process::spawn(command).unwrap();
    let is_ready = || ureq::get(format!("http://{address}/am/-/ready")).call().is_ok();
    wait_for("Alertmanager to be ready", LONG, is_ready)
        .unwrap_or_else(|late| panic!("{late}: {}", process.stderr().join("\n")));
    process
}

fn alerts(address: SocketAddr) -> Vec<Value> {
    let answer = ureq::get(format!("http://{address}/am/api/v2/alerts")).call();
    let text = answer.ok().and_then(|mut answer| answer.body_mut().read_to_string().ok());
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

#[test]
fn alerts_survive_a_restart_of_alertmanager() {
    if Command::new("prometheus-alertmanager").arg("--version").output().is_err() {
        eprintln!("SKIPPED: prometheus-alertmanager is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut process = start(folder.path(), address);
    let timing = Timing { repeat: Duration::from_secs(1), ..QUICK };
    let rig = Rig::start(&format!("alertmanager+http://{address}/am/?label.site=ams&label.team=net%20ops"), timing);
    let from_source = {
        let series = "source/198.51.100.7".to_owned();
        let id = "source/198.51.100.7/high/2".to_owned();
        let source = "198.51.100.7".parse().ok();
        sekiwake_anomaly_detector::detect::Event { id, series, source, ..firing(2) }
    };
    rig.dispatcher.offer(&firing(1));
    rig.dispatcher.offer(&from_source);
    wait_for("both alerts", LONG, || alerts(address).len() == 2).unwrap();
    let found = alerts(address);
    let total = found.iter().find(|alert| alert["labels"]["series"] == "total").unwrap();
    let labels = serde_json::json!({
        "alertname": "SyslogRateHigh", "severity": "warning", "service": "sekiwake", "kind": "high", "series": "total",
        "site": "ams", "team": "net ops",
    });
    assert_eq!(total["labels"], labels);
    assert_eq!(total["annotations"]["summary"], "more syslog than usual");
    assert_eq!(total["annotations"]["upper"], "110");
    assert_eq!((&total["status"]["state"], &total["startsAt"]), (&"active".into(), &"2026-11-25T14:01:00.000Z".into()));
    assert!(found.iter().any(|alert| alert["labels"]["source"] == "198.51.100.7"), "{found:?}");

    // Repetitions update the same two alerts.
    let ends = |alert: &Value| alert["endsAt"].as_str().unwrap().to_owned();
    let first_end = alerts(address).iter().map(ends).max().unwrap();
    wait_for("a repetition", LONG, || alerts(address).iter().all(|alert| ends(alert) > first_end)).unwrap();
    assert_eq!(alerts(address).len(), 2);

    // After a loss of its data, alerts are sent again without a new event.
    process.stop(LONG).unwrap();
    std::fs::remove_dir_all(folder.path().join("data")).unwrap();
    wait_for("the loss to be noticed", LONG, || rig.metric("sekiwake_notify_up", &[]) == 0).unwrap();
    let mut process = start(folder.path(), address);
    wait_for("both alerts again", LONG, || alerts(address).len() == 2).unwrap();
    wait_for("it to be up", LONG, || rig.metric("sekiwake_notify_up", &[]) == 1).unwrap();

    // One resolves, and the other keeps firing.
    rig.dispatcher.offer(&resolved(1));
    wait_for("the end of one", LONG, || alerts(address).len() == 1).unwrap();
    assert_eq!(alerts(address)[0]["labels"]["series"], "source/198.51.100.7");
    // Alertmanager shows the end slightly before it answers.
    wait_for("three accepted notifications", LONG, || rig.sent() == 3).unwrap();
    assert_eq!(rig.metric("sekiwake_notify_dropped_total", &[]), 0);
    rig.stop();
    process.stop(LONG).unwrap();
}
