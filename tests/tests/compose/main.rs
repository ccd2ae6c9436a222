//! The compose project on a real Docker engine: `make test-compose`.
//!
//! One test, because of one build: images, the demonstration, an anomaly, scaling, a restart of the
//! proxy, keys, the bus on NATS JetStream, and removal.
#![allow(clippy::unwrap_used)]

mod images;
mod project;
mod settings;

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread::sleep,
    time::Duration,
};

use sekiwake_testkit::{skip::skip, wait::wait_for};
use sekiwake_tests::get;
use serde_json::Value;

use crate::project::Project;

const LONG: Duration = Duration::from_secs(60);
const OLD: &str = "demo-old-collector";
const NEW: [&str; 2] = ["demo-new-collector-a", "demo-new-collector-b"];
const DEVICES: &str = "demo-devices";
const TAP: &str = "demo-tap";
/// Number of datagrams of the first stream.
const FIRST_STREAM: u64 = 20_000;
const NUMBER_OF_DEVICES: usize = 64;

fn local(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

#[test]
#[ignore = "make test-compose runs it: it builds images"]
fn compose_project_works_as_documented() {
    if std::env::var_os("TEST_SEKIWAKE_SKIP_COMPOSE").is_some() {
        skip("TEST_SEKIWAKE_SKIP_COMPOSE is set");
        return;
    }
    let mut project = Project::new(&[
        // Built in a fraction of the time, and nothing here is measured.
        ("OPT_LEVEL", "0"),
        ("DEMO_RATE", "1500"),
        ("DEMO_MORE", &format!("--count {FIRST_STREAM} --json")),
        ("DEMO_RECEIVER", "--json --by-source --every 500ms"),
        ("DEMO_DEVICES", &NUMBER_OF_DEVICES.to_string()),
        ("SEKIWAKE_ANOMALY_INTERVAL", "2s"),
        ("SEKIWAKE_ANOMALY_WINDOW", "4"),
        ("SEKIWAKE_ANOMALY_GRACE", "1s"),
        ("SEKIWAKE_NOTIFY", "alertmanager+http://alertmanager:9093"),
    ]);
    project.step("base images and build");
    project.prepare();
    project.compose(&["--profile", "demo", "build"]);
    images::check(&project);
    settings::check(&project);
    project.step("up, with demonstration and monitoring");
    project.compose(&["--profile", "monitoring", "up", "--detach", "prometheus", "alertmanager"]);
    project.compose(&["--profile", "demo", "up", "--detach"]);
    check_health(&project);

    project.step("every datagram arrives at both new collectors from the device's address, and is stored");
    wait_for("the end of the first stream", LONG, || project.state(DEVICES) == "exited").unwrap();
    let sent = last_line(&project, DEVICES);
    assert_eq!(sent["sent"], FIRST_STREAM);
    let mut total = FIRST_STREAM;
    let old = check_collectors(&project, total);
    assert_eq!((&old["numbered"]["missing"], &old["numbered"]["duplicates"]), (&0.into(), &0.into()));
    assert_eq!(old["digest"], sent["digest"], "the old collector received what the devices sent");
    let sources = old["by_source"].as_object().unwrap();
    assert_eq!(sources.len(), NUMBER_OF_DEVICES);
    assert!(sources.keys().all(|address| address.starts_with("198.18.")), "{sources:?}");
    check_stored(&old);
    check_decoded(&project);

    project.step("a burst is an anomaly that fires and resolves at Alertmanager");
    total += project.send(200, "13s");
    // Longer than an alarm takes to be notified, wherever its first interval begins.
    let burst = project.start_sending(4_000, "12s");
    let alerts = || -> Vec<Value> {
        serde_json::from_str(&get(local(9093), "/api/v2/alerts?active=true").unwrap_or_default()).unwrap_or_default()
    };
    let is_high = || alerts().iter().any(|alert| alert["labels"]["alertname"] == "SyslogRateHigh");
    wait_for("an alarm at Alertmanager", LONG, is_high).unwrap();
    wait_for("the alarm's end at Alertmanager", LONG, || !is_high()).unwrap();
    total += burst.finish();
    check_collectors(&project, total);

    project.step("the console shows what the story of the demonstration says");
    total += check_story(&project);
    check_collectors(&project, total);

    project.step("scaling to three forwarders and back to one under load");
    let stream = project.start_sending(1_000, "25s");
    sleep(Duration::from_secs(4));
    project.scale(3);
    wait_for("all three to be seen by Prometheus", LONG, || up("syslog-forwarder") == 3).unwrap();
    assert_eq!(project.containers("demo-syslog-forwarder").len(), 3);
    wait_for("all three to forward", LONG, || {
        let addresses = project.addresses("demo-syslog-forwarder");
        let forwards = |address: &Ipv4Addr| {
            get(SocketAddr::from((*address, 9600)), "/metrics")
                .is_ok_and(|page| sum(&page, "sekiwake_forward_sent_datagrams_total") > 0.0)
        };
        addresses.len() == 3 && addresses.iter().all(forwards)
    })
    .unwrap();
    project.scale(1);
    total += stream.finish();
    check_collectors(&project, total);

    project.step("the proxy restarts under load");
    let stream = project.start_sending(1_000, "15s");
    sleep(Duration::from_secs(4));
    project.compose(&["restart", "proxy"]);
    total += stream.finish();
    let old = check_collectors(&project, total);
    check_stored(&old);
    check_health(&project);

    project.step("down, and up with keys");
    project.compose(&["--profile", "demo", "down", "--volumes"]);
    project.use_keys();
    project.compose(&["--profile", "demo", "up", "--detach"]);
    check_health(&project);
    check_collectors(&project, FIRST_STREAM);
    check_decoded(&project);
    // Apart from the rest, because it takes minutes.
    if std::env::var_os("TEST_SEKIWAKE_COMPOSE_JETSTREAM").is_some() {
        check_on_jetstream(&mut project);
    }
    project.step("down, without leftovers");
    project.down();
}

/// The demonstration on a NATS server, which restarts under load.
fn check_on_jetstream(project: &mut Project) {
    project.step("down, and up on NATS JetStream");
    project.compose(&["--profile", "demo", "down", "--volumes"]);
    project.use_jetstream();
    project.compose(&["--profile", "demo", "up", "--detach"]);
    check_health(project);
    assert_eq!(project.containers("proxy"), Vec::<String>::new());
    let old = check_collectors(project, FIRST_STREAM);
    check_stored(&old);
    check_decoded(project);

    project.step("the NATS server restarts under load");
    let stream = project.start_sending(1_000, "15s");
    sleep(Duration::from_secs(4));
    project.compose(&["restart", "nats"]);
    let old = check_collectors(project, FIRST_STREAM + stream.finish());
    check_stored(&old);
}

/// Reads the console's pages while `deploy/story` runs. Returns how many datagrams it sent.
fn check_story(project: &Project) -> u64 {
    const PAUSE_SECONDS: u64 = 7;
    const BURST: u64 = 2_000;
    let page = |path: &str| get(local(9608), path).unwrap_or_default();
    let part = |path: &str, start: &str, has: &str| -> String {
        page(path).split(start).find(|part| part.contains(has)).unwrap_or_default().to_owned()
    };
    let wait = |what: &str, is_shown: &dyn Fn() -> bool| {
        let outcome = wait_for(what, LONG, is_shown);
        assert!(outcome.is_ok(), "the console does not show {what}: {}", page("/console/destinations"));
    };
    let collector = || part("/console/destinations", "<tr", "tcp://");
    let anomalies = || part("/console/anomalies", "<section", "demo-anomaly-detector");
    wait("the collector", &|| collector().contains(">up</span>"));
    wait("the detector", &|| anomalies().contains("No alarm."));
    let story = project.start_story(PAUSE_SECONDS, BURST);
    wait("that the collector is down", &|| collector().contains(">down</span>"));
    // Its file is kept for a while, so bytes say nothing.
    let is_spool_empty = || spool_cell(&collector()).starts_with("<td>0 (");
    wait("a spool", &|| spool_cell(&collector()).starts_with("<td>") && !is_spool_empty());
    wait("that the collector is back", &|| collector().contains(">up</span>"));
    wait("an empty spool", &is_spool_empty);
    assert!(!collector().contains("class=\"pair\""), "nothing is lost: {}", collector());
    let members = |count: &str| page("/").contains(&format!("demo <span class=\"kind\">syslog</span></th><td>{count}"));
    wait("a second member", &|| members("2 members"));
    wait("an alarm", &|| anomalies().contains("Alarms") && anomalies().contains(">high</strong>"));
    wait("the alarm's end", &|| anomalies().contains("No alarm."));
    story.finish();
    FIRST_STREAM + BURST * PAUSE_SECONDS
}

/// The cell before the last one of a destination's row.
fn spool_cell(row: &str) -> &str {
    let start = row.rmatch_indices("<td").nth(1).map_or(row.len(), |(at, _)| at);
    row[start..].split_inclusive("</td>").next().unwrap_or_default()
}

/// Waits until every container with a health check is healthy, and none has been restarted.
fn check_health(project: &Project) {
    let unhealthy = || -> Vec<String> {
        let states = project.states();
        states
            .into_iter()
            .filter(|(_, state)| !["running healthy", "running", "exited 0"].contains(&&**state))
            .map(|(name, state)| format!("{name}: {state}"))
            .collect()
    };
    let outcome = wait_for("all services to be healthy", LONG, || unhealthy().is_empty());
    assert!(outcome.is_ok(), "{:?}", unhealthy());
}

/// The last JSON line of a container's output.
fn last_line(project: &Project, service: &str) -> Value {
    let log = project.log(service);
    let line = log.lines().rev().find(|line| line.starts_with('{'));
    line.and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
}

/// Waits until all collectors have `total` datagrams, and checks that they have the same ones.
fn check_collectors(project: &Project, total: u64) -> Value {
    let received = |service: &str| last_line(project, service)["received"].as_u64().unwrap_or(0);
    let collectors = [OLD, NEW[0], NEW[1]];
    let outcome = wait_for("all datagrams", LONG, || collectors.iter().all(|one| received(one) >= total));
    // Duplicates would arrive later.
    sleep(Duration::from_secs(1));
    let counts = collectors.map(received);
    assert!(outcome.is_ok() && counts == [total; 3], "{total} sent, the collectors have {counts:?}");
    let old = last_line(project, OLD);
    for service in NEW {
        let new = last_line(project, service);
        assert_eq!(new["digest"], old["digest"], "{service} has different payloads");
        assert_eq!(new["by_source"], old["by_source"], "{service} has different source addresses");
        assert_eq!(new["dropped"], 0, "{service}");
    }
    old
}

/// Waits until the storer finds as many messages as the old collector received.
fn check_stored(old: &Value) {
    let syslog = old["by_port"]["514"].as_u64().unwrap();
    let found = || get(local(9605), "/search").map_or(0, |page| page.lines().count() as u64);
    let outcome = wait_for("all syslog to be stored", LONG, || found() >= syslog);
    assert!(outcome.is_ok(), "{syslog} messages, {} stored", found());
    assert_eq!(found(), syslog);
}

/// Waits until the tap has printed its lines, and checks that flows and traps are among them.
fn check_decoded(project: &Project) {
    wait_for("the end of the tap", LONG, || project.state(TAP) == "exited").unwrap();
    let log = project.log(TAP);
    // The device's address in 198.18.0.0/16, the format, and what there is of each.
    for wanted in [" netflow5 flow ", " netflow9 flow ", " ipfix flow ", " sflow5 flow ", " snmp2c-trap "] {
        let is_wanted = |line: &str| line.contains(wanted) && line.contains("Z 198.18.");
        assert!(log.lines().any(is_wanted), "no{wanted}in the tap's log:\n{log}");
    }
}

/// The number of instances of a job that Prometheus reaches.
fn up(job: &str) -> usize {
    let page =
        get(local(9090), &format!("/api/v1/query?query=up%7Bjob%3D%22{job}%22%7D%20%3D%3D%201")).unwrap_or_default();
    let answer: Value = serde_json::from_str(&page).unwrap_or_default();
    answer["data"]["result"].as_array().map_or(0, Vec::len)
}

/// The sum of a metric's samples.
fn sum(page: &str, name: &str) -> f64 {
    let values = page
        .lines()
        .filter(|line| line.starts_with(name))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    values.sum()
}
