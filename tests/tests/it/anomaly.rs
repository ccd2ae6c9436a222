//! Too many and too few syslog messages, from the wire to the notified receivers.

use sekiwake_testkit::{process::Process, skip::skip, wait::wait_for};
use sekiwake_tests::{MIRRORED, Service, Services, Webhook, get};
use serde_json::Value;
use std::process::Command;

use crate::support::*;

const DETECTOR: &str = "sekiwake-anomaly-detector";

/// One second per interval, so that a test has many intervals, and every alarm is notified. The
/// bands are wide and the evaluation is late, because a busy machine may suspend the sender or a
/// service for half a second.
const QUICK: [(&str, &str); 5] = [
    ("SEKIWAKE_ANOMALY_INTERVAL", "1s"),
    ("SEKIWAKE_ANOMALY_WINDOW", "4"),
    ("SEKIWAKE_ANOMALY_GRACE", "900ms"),
    ("SEKIWAKE_ANOMALY_MIN_WIDTH", "250"),
    ("SEKIWAKE_NOTIFY_CONSECUTIVE", "1"),
];

/// A webhook receiver on the host that runs Sekiwake.
fn webhook(site: &TestSite) -> Webhook {
    site.host.enter(Webhook::start).unwrap().unwrap()
}

/// The notifications so far, as kind and status.
fn notified(webhook: &Webhook) -> Vec<(String, String)> {
    let text = |body: &Value, name: &str| body[name].as_str().unwrap_or_default().to_owned();
    webhook.bodies().iter().map(|body| (text(body, "kind"), text(body, "status"))).collect()
}

fn wait_for_notified(webhook: &Webhook, expected: &[(&str, &str)], services: &Services<'_>) {
    let expected: Vec<_> = expected.iter().map(|(kind, state)| ((*kind).to_owned(), (*state).to_owned())).collect();
    let arrived = wait_for(&format!("{expected:?}"), LONG, || notified(webhook).len() >= expected.len());
    let log: Vec<String> =
        services.0.iter().filter(|one| one.name == DETECTOR).flat_map(|one| one.process.stderr()).collect();
    assert!(arrived.is_ok() && notified(webhook) == expected, "{:?}\n{}", notified(webhook), log.join("\n"));
}

fn start_load(site: &TestSite, rate: u32, seconds: u32) -> Process {
    site.start_sender(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --rate {rate} --duration {seconds}s"))
}

/// The intervals that all detectors have evaluated.
fn evaluated(services: &Services<'_>) -> u64 {
    let evaluated = |service: &Service<'_>| {
        service.metrics().map_or(0, |samples| samples.count("sekiwake_anomaly_evaluated_intervals_total", &[]))
    };
    services.0.iter().filter(|service| service.name == DETECTOR).map(evaluated).sum()
}

fn wait_for_intervals(services: &Services<'_>, intervals: u64) {
    wait_for("intervals to be evaluated", LONG, || evaluated(services) >= intervals).unwrap();
}

#[test]
fn burst_and_silence_fire_and_resolve_once_each() {
    fire_and_resolve_once_each(Bus::ZeroMq);
}

#[test]
fn burst_and_silence_fire_and_resolve_once_each_on_jetstream() {
    fire_and_resolve_once_each(Bus::JetStream);
}

fn fire_and_resolve_once_each(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let hook = webhook(&site);
    let notify = format!("webhook+http://{}/hook?token=secret syslog+udp://127.0.0.1:5514", hook.address());
    let syslog = site.host.udp_socket(at([127, 0, 0, 1], 5514)).unwrap();
    let services =
        site.start(&[CAPTURE, PROXY, DETECTOR], &[&QUICK[..], &[("SEKIWAKE_NOTIFY", notify.as_str())]].concat());
    let mut tap = run(&site.host, "sekiwake-tap", &["anomaly/", "--count", "4"], site.bus());
    let mut steady = start_load(&site, 400, 600);
    // The window has the steady load only.
    let lower = || services.get(DETECTOR).metrics().map_or(0, |samples| samples.count("sekiwake_anomaly_lower", &[]));
    wait_for("a window of the load", LONG, || lower() > 100).unwrap();
    assert_eq!(notified(&hook), []);
    start_load(&site, 3000, 2).wait(LONG).unwrap();
    wait_for_notified(&hook, &[("high", "firing"), ("high", "resolved")], &services);
    steady.terminate().unwrap();
    steady.wait(LONG).unwrap();
    wait_for_notified(&hook, &[("high", "firing"), ("high", "resolved"), ("low", "firing")], &services);
    // A long silence fires once.
    wait_for_intervals(&services, evaluated(&services) + 5);
    assert_eq!(notified(&hook).len(), 3);
    let mut resumed = start_load(&site, 400, 6);
    wait_for("the end of the silence", LONG, || notified(&hook).contains(&("low".to_owned(), "resolved".to_owned())))
        .unwrap();
    resumed.wait(LONG).unwrap();
    // The return is no burst, and the silence is compared with the rate before the burst.
    let four = [("high", "firing"), ("high", "resolved"), ("low", "firing"), ("low", "resolved")];
    assert_eq!(notified(&hook)[..4], four.map(|(kind, status)| (kind.to_owned(), status.to_owned())));
    for end in [&hook.bodies()[1], &hook.bodies()[3]] {
        assert!(end["upper"].as_f64() < Some(1000.0), "{end}");
    }
    let burst = &hook.bodies()[0];
    assert!(burst["count"].as_u64().unwrap() > 1000 && burst["upper"].as_f64().unwrap() < 1000.0, "{burst}");
    assert_eq!(burst["id"], hook.bodies()[1]["id"]);
    let samples = services.get(DETECTOR).metrics().unwrap();
    assert!(samples.count("sekiwake_anomaly_messages", &["series=\"total\""]) < 3000);
    assert!(samples.names("sekiwake_notify_sent_total").all(|name| !name.contains("secret")));
    assert_eq!(
        samples.count("sekiwake_anomaly_counted_records_total", &[]),
        samples.count("sekiwake_bus_received_records_total", &[])
    );
    let status: Value = serde_json::from_str(&services.get(DETECTOR).page("/status").unwrap()).unwrap();
    let window = &status["roles"]["anomaly-detector"]["detector"]["series"]["total"]["window"];
    assert_eq!(window.as_array().map(Vec::len), Some(4), "{status}");
    // The same events on the bus and as syslog.
    tap.wait(LONG).unwrap();
    let events: Vec<Value> = tap.stdout().iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events, hook.bodies()[..4]);
    let mut line = [0; 2000];
    let length = syslog.recv(&mut line).unwrap();
    let line = String::from_utf8_lossy(&line[..length]).into_owned();
    assert!(line.starts_with("<28>1 ") && line.contains("kind=\"high\""), "{line}");
    services.stop().unwrap();
}

#[test]
fn standby_detector_takes_over_with_its_predecessors_state() {
    standby_takes_over(Bus::ZeroMq);
}

#[test]
fn standby_detector_takes_over_with_its_predecessors_state_on_jetstream() {
    standby_takes_over(Bus::JetStream);
}

fn standby_takes_over(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let hook = webhook(&site);
    let notify = format!("webhook+http://{}/", hook.address());
    let more = [&QUICK[..], &[("SEKIWAKE_NOTIFY", notify.as_str()), ("SEKIWAKE_MEMBER", "a")]].concat();
    let mut services = site.start(&[CAPTURE, PROXY, DETECTOR], &more);
    let second = [
        &QUICK[..],
        &[("SEKIWAKE_NOTIFY", notify.as_str()), ("SEKIWAKE_MEMBER", "b"), ("SEKIWAKE_ADMIN", "127.0.0.1:9706")],
    ]
    .concat();
    services.add(site.start_one(DETECTOR, &second));
    let active = |services: &Services<'_>| -> Vec<u64> {
        let detectors = services.0.iter().filter(|service| service.name == DETECTOR);
        detectors.map(|one| one.metrics().map_or(9, |samples| samples.count("sekiwake_anomaly_active", &[]))).collect()
    };
    wait_for("one active detector and one standby", LONG, || active(&services) == [1, 0]).unwrap();
    let mut load = start_load(&site, 400, 8);
    wait_for_intervals(&services, 6);
    load.wait(LONG).unwrap();
    // Kill it during an alarm, two intervals after the notification: earlier, before the proxy has
    // its state, the notification could be sent twice.
    wait_for("the silence", LONG, || notified(&hook).contains(&("low".to_owned(), "firing".to_owned()))).unwrap();
    let evaluated = services.get(DETECTOR).metrics().unwrap().count("sekiwake_anomaly_evaluated_intervals_total", &[]);
    wait_for_intervals(&services, evaluated + 2);
    let before = notified(&hook);
    let mut victim = services.take(DETECTOR);
    victim.kill().unwrap();
    wait_for("the standby to take over", LONG, || active(&services) == [1]).unwrap();
    wait_for_intervals(&services, 4);
    assert_eq!(notified(&hook), before, "the silence continues without another notification");
    let mut load = start_load(&site, 400, 10);
    wait_for("its end", LONG, || notified(&hook).contains(&("low".to_owned(), "resolved".to_owned()))).unwrap();
    let all = notified(&hook);
    let times = |state: &str| all.iter().filter(|(kind, status)| kind == "low" && status == state).count();
    assert_eq!((times("firing"), times("resolved")), (1, 1), "{all:?}");
    let id = |state: &str| {
        hook.bodies().into_iter().find(|body| body["kind"] == "low" && body["status"] == state).unwrap()["id"].clone()
    };
    assert_eq!(id("firing"), id("resolved"));
    // The take-over missed no interval.
    let taken_over = services.get(DETECTOR).metrics().unwrap();
    assert_eq!(taken_over.count("sekiwake_anomaly_unknown_intervals_total", &[]), 0);
    assert_eq!(taken_over.count("sekiwake_bus_lost_records_total", &[]), 0);
    load.terminate().unwrap();
    load.wait(LONG).unwrap();
    services.stop().unwrap();
}

#[test]
fn alertmanager_receives_firing_and_resolved_alerts() {
    let Some(site) = site() else { return };
    if Command::new("prometheus-alertmanager").arg("--version").output().is_err() {
        skip("prometheus-alertmanager is not installed");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let configuration = folder.path().join("alertmanager.yml");
    std::fs::write(&configuration, "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n").unwrap();
    let mut command = site.host.command("prometheus-alertmanager");
    command
        .arg(format!("--config.file={}", configuration.display()))
        .arg(format!("--storage.path={}", folder.path().display()))
        .args(["--web.listen-address=127.0.0.1:9093", "--cluster.listen-address="]);
    let mut alertmanager = Process::spawn(command).unwrap();
    let alerts = |query: &str| -> Vec<Value> {
        let path = format!("/api/v2/alerts{query}");
        let page = site.host.enter(|| get(at([127, 0, 0, 1], 9093), &path)).unwrap();
        page.ok().and_then(|page| serde_json::from_str(&page).ok()).unwrap_or_default()
    };
    let ready = || site.host.enter(|| get(at([127, 0, 0, 1], 9093), "/-/ready")).is_ok_and(|page| page.is_ok());
    wait_for("Alertmanager to be ready", LONG, ready)
        .unwrap_or_else(|late| panic!("{late}: {}", alertmanager.stderr().join("\n")));
    let notify =
        ("SEKIWAKE_NOTIFY", "alertmanager+http://127.0.0.1:9093?label.site=lab webhook+http://127.0.0.1:1/dead");
    let services = site.start(&[CAPTURE, PROXY, DETECTOR], &[&QUICK[..], &[notify]].concat());
    let mut steady = start_load(&site, 400, 7);
    wait_for_intervals(&services, 6);
    steady.wait(LONG).unwrap();
    wait_for("the alert", LONG, || !alerts("").is_empty()).unwrap();
    let alert = alerts("").remove(0);
    assert_eq!(
        ["alertname", "kind", "series", "severity", "site", "service"]
            .map(|name| alert["labels"][name].as_str().unwrap_or("")),
        ["SyslogRateLow", "low", "total", "warning", "lab", "sekiwake"],
        "{alert}"
    );
    assert_eq!(alert["status"]["state"], "active");
    assert!(alert["annotations"]["summary"].as_str().is_some_and(|summary| !summary.is_empty()), "{alert}");
    let mut resumed = start_load(&site, 400, 4);
    let is_over = || alerts("").iter().all(|alert| alert["labels"]["alertname"] != "SyslogRateLow");
    wait_for("its end", LONG, is_over).unwrap();
    resumed.wait(LONG).unwrap();
    // A dead notifier delays no other, and is reported.
    let samples = services.get(DETECTOR).metrics().unwrap();
    assert_eq!(samples.count("sekiwake_notify_up", &["127.0.0.1:1"]), 0);
    assert!(samples.count("sekiwake_notify_retries_total", &["127.0.0.1:1"]) > 0);
    assert!(samples.count("sekiwake_notify_sent_total", &["127.0.0.1:9093"]) >= 2);
    services.stop().unwrap();
    alertmanager.stop(LONG).unwrap();
}

#[test]
fn state_file_keeps_windows_over_a_full_restart() {
    let Some(site) = site() else { return };
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("anomaly.state").display().to_string();
    let more = [&QUICK[..], &[("SEKIWAKE_ANOMALY_STATE", state.as_str())]].concat();
    let services = site.start(&[CAPTURE, PROXY, DETECTOR], &more);
    let mut load = start_load(&site, 400, 8);
    wait_for_intervals(&services, 6);
    load.wait(LONG).unwrap();
    services.stop().unwrap();
    let services = site.start(&[CAPTURE, PROXY, DETECTOR], &more);
    let mut load = start_load(&site, 400, 8);
    wait_for_intervals(&services, 2);
    // There is no warm-up: the first evaluated interval has bands.
    let samples = services.get(DETECTOR).metrics().unwrap();
    assert!(samples.count("sekiwake_anomaly_average", &["series=\"total\""]) > 50);
    load.wait(LONG).unwrap();
    services.stop().unwrap();
    // An invalid state file is moved aside with a log message.
    std::fs::write(&state, "{}").unwrap();
    let services = site.start(&[PROXY, DETECTOR], &more);
    services.get(DETECTOR).process.wait_for_line(LONG, |line| line.contains("state file unusable")).unwrap();
    services.stop().unwrap();
}

#[test]
fn killed_proxy_loses_no_interval_and_raises_no_alarm() {
    let Some(site) = site() else { return };
    let hook = webhook(&site);
    let notify = format!("webhook+http://{}/", hook.address());
    let mut services =
        site.start(&[CAPTURE, PROXY, DETECTOR], &[&QUICK[..], &[("SEKIWAKE_NOTIFY", notify.as_str())]].concat());
    let mut load = start_load(&site, 400, 60);
    wait_for_intervals(&services, 6);
    let mut proxy = services.take(PROXY);
    proxy.kill().unwrap();
    services.add(site.start_one(PROXY, &[]));
    wait_for_intervals(&services, 13);
    let samples = services.get(DETECTOR).metrics().unwrap();
    // Only the first interval is unknown.
    assert_eq!(samples.count("sekiwake_anomaly_unknown_intervals_total", &[]), 1);
    assert_eq!(samples.count("sekiwake_bus_lost_records_total", &[]), 0);
    assert_eq!(notified(&hook), []);
    load.terminate().unwrap();
    load.wait(LONG).unwrap();
    services.stop().unwrap();
}

#[test]
fn changed_interval_ends_alarms_and_counts_anew() {
    let Some(site) = site() else { return };
    let hook = webhook(&site);
    let notify = format!("webhook+http://{}/", hook.address());
    let more = [&QUICK[..], &[("SEKIWAKE_NOTIFY", notify.as_str())]].concat();
    let mut services = site.start(&[CAPTURE, PROXY, DETECTOR], &more);
    let mut load = start_load(&site, 400, 8);
    wait_for_intervals(&services, 6);
    load.wait(LONG).unwrap();
    wait_for_notified(&hook, &[("low", "firing")], &services);
    services.take(DETECTOR).stop().unwrap();
    let longer = [&more[..], &[("SEKIWAKE_ANOMALY_INTERVAL", "2s")]].concat();
    services.add(site.start_one(DETECTOR, &longer));
    wait_for_notified(&hook, &[("low", "firing"), ("low", "resolved")], &services);
    let [firing, resolved] = &hook.bodies()[..] else { panic!("{:?}", hook.bodies()) };
    assert_eq!((&firing["id"], &firing["starts_at"]), (&resolved["id"], &resolved["starts_at"]));
    assert_eq!(resolved["reason"], "reset", "{resolved}");
    let discarded = |line: &str| line.contains("state of another interval discarded");
    let line = services.get(DETECTOR).process.wait_for_line(LONG, discarded).unwrap();
    assert!(line.contains("of=1s interval=2s"), "{line}");
    // Twice as many messages per interval are no anomaly.
    let mut load = start_load(&site, 400, 120);
    wait_for_intervals(&services, 7);
    assert_eq!(notified(&hook).len(), 2, "{:?}", hook.bodies());
    load.terminate().unwrap();
    load.wait(LONG).unwrap();
    services.stop().unwrap();
}
