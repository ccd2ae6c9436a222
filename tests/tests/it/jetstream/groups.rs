//! Groups on JetStream: members share the work and lose nothing while members and the server stop,
//! die and return.

use std::time::Duration;

use sekiwake_record::Kind;
use sekiwake_testkit::{
    sink::{Options, Sink},
    wait::wait_for,
};
use sekiwake_tests::{Ledger, MIRRORED, Service, Services, collector};
use serde_json::{Value, json};

use super::server::{AWAY, BUS, NatsServer, pause_until};
use crate::{
    monitoring::ON_JETSTREAM,
    replicas::{Completeness, Load, Members, completeness, flow_for, large_sink, pause_for, settle},
    support::*,
};

/// Datagrams per second of the load.
const RATE: u64 = 10_000;
/// What a member has handled since its last commit may be handled twice: of the time that a lease
/// lasts at most, while commits fail.
const COMMITTED_WITHIN: Duration = Duration::from_secs(3);

const STORER: &str = "sekiwake-storer";
const DETECTOR: &str = "sekiwake-anomaly-detector";
const CONSOLE: &str = "sekiwake-console";

/// A server, a capture and members of one group under load, and the collector that counts.
struct Scenario<'a> {
    server: NatsServer<'a>,
    sink: Sink,
    capture: Service<'a>,
    members: Members<'a>,
    load: Load<'a>,
}

impl<'a> Scenario<'a> {
    /// `None` (and the test is skipped) without a server.
    fn start(site: &'a TestSite, members: usize) -> Option<Scenario<'a>> {
        if !NatsServer::is_installed() {
            return None;
        }
        site.disable_ipv6_on_the_wire();
        let server = NatsServer::start(&site.host, "");
        let sink = large_sink(site, 0);
        let capture = site.start_one(CAPTURE, &[BUS, ("SEKIWAKE_RETAIN", "512MiB")]);
        let mut group = Members::with(site, &[BUS]);
        group.start("default", 0, members);
        group.wait_until_even();
        pause_until("a ready capture", || capture.is_ready());
        let scenario = Scenario { server, sink, capture, members: group, load: Load::start(site) };
        flow_for(&scenario.sink, Duration::from_secs(1));
        Some(scenario)
    }

    /// Stops the load, waits until everything has arrived, stops all services, and compares.
    fn finish(mut self) -> Completeness {
        let sent = self.load.stop();
        settle(&self.sink, sent);
        let lost = self.members.sum("sekiwake_bus_lost_records_total");
        let log = self.members.log();
        self.members.stop();
        self.capture.stop().unwrap();
        let found = completeness(self.sink, sent);
        println!("{sent} sent, {found:?}, {lost} counted as lost");
        assert_eq!((found.missing, lost), (0, 0), "{log}");
        found
    }
}

#[test]
fn jetstream_groups_of_every_service_handle_all_kinds_once() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    let _server = NatsServer::start(&site.host, "");
    let ports = [514, 2055, 162];
    let sink = site.sink(&ports.map(|port| at(collector(0), port)), Options::counts());
    let [syslog, xflow, trap] = ports.map(|port| format!("udp://{}:{port}", collector(0)));
    let store = tempfile::tempdir().unwrap();
    let environment = [
        BUS,
        ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
        ("SEKIWAKE_XFLOW_DESTINATIONS", &xflow),
        ("SEKIWAKE_TRAP_DESTINATIONS", &trap),
        ("SEKIWAKE_STORE_DIR", store.path().to_str().unwrap()),
        ("SEKIWAKE_STORE_COMMIT", "200ms"),
        ("SEKIWAKE_CONSOLE_TOKEN_FILE", "none"),
    ];
    let mut services = Services(Vec::new());
    for name in [CAPTURE, SYSLOG, XFLOW, TRAP, STORER, DETECTOR, CONSOLE] {
        services.add(site.start_one(name, &environment));
    }
    pause_until("ready services", || services.0.iter().all(Service::is_ready));
    // The console reads status while somebody looks.
    let page = || services.get(CONSOLE).page("/").unwrap_or_default();
    let groups = ["syslog-forwarder.default", "xflow-forwarder.default", "trap-forwarder.default", "storer.default"];
    pause_until("a page with all groups", || groups.iter().all(|group| page().contains(group)));
    assert!(page().contains(">NATS<") && !page().contains("silent"), "{}", page());
    let traffic = "--protocol all --size 120-1400 --rate 2000 --sources 16 --duration 3s";
    let mut sender = site.start_sender(&format!("--to {MIRRORED} --from 198.19.0.0/16 {traffic}"));
    let sent = sent_by(&mut sender);
    settle(&sink, sent);
    let captured = |kind: Kind| {
        let kind = format!("kind=\"{}\"", kind.as_str());
        services.get(CAPTURE).metrics().unwrap().count("sekiwake_bus_published_records_total", &[&kind])
    };
    assert_eq!(Kind::ALL.map(captured).iter().sum::<u64>(), sent);
    let messages = captured(Kind::Syslog);
    assert!(messages > 0);
    let written = |name: &str| services.get(STORER).metrics().unwrap().count(name, &[]);
    wait_for("all messages to be stored", LONG, || written("sekiwake_store_written_records_total") >= messages)
        .unwrap();
    assert_eq!(written("sekiwake_store_written_records_total"), messages);
    Ledger::check_storer(&services.get(STORER).metrics().unwrap()).unwrap();
    let read = || services.get(DETECTOR).metrics().unwrap().count("sekiwake_bus_received_records_total", &[]);
    wait_for("the detector to receive all messages", LONG, || read() >= messages).unwrap();
    assert_eq!(read(), messages);
    // What rules and dashboards show of this bus.
    let exposed = || [CAPTURE, SYSLOG].map(|name| services.get(name).page("/metrics").unwrap()).concat();
    let missing = || ON_JETSTREAM.into_iter().find(|name| !exposed().contains(&format!("\n{name}")));
    assert_eq!(missing(), None);
    let lag = |label: &str| services.get(SYSLOG).metrics().unwrap().count("sekiwake_bus_shard_lag_records", &[label]);
    assert!(exposed().contains("shard=\"3f\""));
    wait_for("no lag", LONG, || lag("kind=\"syslog\"") == 0).unwrap();
    services.stop().unwrap();
    assert_eq!(sink.finish().received, sent);
}

#[test]
fn jetstream_members_with_other_settings_apply_their_own_and_are_named() {
    let Some(site) = site() else { return };
    if !NatsServer::is_installed() {
        return;
    }
    site.disable_ipv6_on_the_wire();
    let _server = NatsServer::start(&site.host, "");
    let captures: Vec<Service<'_>> = [("tap-a", "127.0.0.1:9690"), ("tap-b", "127.0.0.1:9691")]
        .map(|(name, admin)| site.start_one(CAPTURE, &[BUS, ("SEKIWAKE_PUBLISHER", name), ("SEKIWAKE_ADMIN", admin)]))
        .into();
    let store = tempfile::tempdir().unwrap();
    let member = |service: &str, label: &str, admin: &str, settings: &[(&str, &str)]| {
        let own = [BUS, ("SEKIWAKE_MEMBER", label), ("SEKIWAKE_ADMIN", admin)];
        let store = [("SEKIWAKE_STORE_DIR", store.path().to_str().unwrap()), ("SEKIWAKE_STORE_COMMIT", "200ms")];
        site.start_one(service, &[&own[..], &store, settings].concat())
    };
    let duration = |value| [("SEKIWAKE_DEDUPLICATE", value)];
    let storers: Vec<Service<'_>> = vec![
        member(STORER, "s1", "127.0.0.1:9761", &duration("200ms")),
        member(STORER, "s2", "127.0.0.1:9762", &duration("")),
        member(STORER, "s3", "127.0.0.1:9763", &duration("300ms")),
    ];
    let destinations = [syslog_to(0), syslog_to(1)];
    let mut forwarders: Vec<Service<'_>> = vec![
        member(SYSLOG, "m1", "127.0.0.1:9764", &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations[0])]),
        member(SYSLOG, "m2", "127.0.0.1:9765", &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations[1])]),
    ];
    let shares = |members: &[Service<'_>]| members.iter().map(crate::replicas::owned_shards).collect::<Vec<_>>();
    pause_until("all shards", || {
        let shares = shares(&storers);
        shares.iter().sum::<u64>() == 64 && shares.iter().all(|share| *share > 20)
    });
    pause_until("ready captures", || captures.iter().all(Service::is_ready));

    // Each applies its own.
    let count = |storer: &Service<'_>, name: &str| storer.metrics().map_or(0, |samples| samples.count(name, &[]));
    let duplicates = |storer: &Service<'_>| count(storer, "sekiwake_deduplicate_duplicate_records_total");
    let stored = |storer: &Service<'_>| count(storer, "sekiwake_store_written_records_total");
    let sent =
        site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 256 --size 200 --rate 2000 --count 4000"));
    let handled = || storers.iter().map(|storer| stored(storer) + duplicates(storer)).sum::<u64>();
    wait_for("all copies to be stored or removed", LONG, || handled() == 2 * sent)
        .unwrap_or_else(|late| panic!("{late}: {} of {}", handled(), 2 * sent));
    let found: Vec<(u64, u64)> = storers.iter().map(|storer| (stored(storer), duplicates(storer))).collect();
    println!("{sent} sent twice, stored and removed by each member: {found:?}");
    assert!(found[0].0 > 0 && found[0].0 == found[0].1, "{found:?}");
    assert!(found[1].0 > 0 && found[1].1 == 0, "{found:?}");
    assert!(found[2].0 > 0 && found[2].0 == found[2].1, "{found:?}");

    // Log, status and metric name those that differ.
    let warned = "other members of this group have other destinations";
    let others = |member: &Service<'_>, role: &str| -> Value {
        let page: Value = serde_json::from_str(&member.page("/status").unwrap()).unwrap();
        page["roles"][role]["group"]["members_with_other_destinations"].clone()
    };
    let gauge = |member: &Service<'_>| count(member, "sekiwake_group_destinations_differ");
    let check = |member: &Service<'_>, role: &str, expected: &[&str]| {
        let lines =
            || -> Vec<String> { member.process.stderr().into_iter().filter(|line| line.contains(warned)).collect() };
        // It is not reported within the first minute.
        wait_for("a warning", 3 * LONG, || !lines().is_empty()).unwrap();
        let named = format!("others=\"{}\"", expected.join(", "));
        let lines = lines();
        assert!(lines.len() == 1 && lines[0].contains("WARN") && lines[0].contains(&named), "{named}: {lines:?}");
        assert!(lines[0].contains("SEKIWAKE_DEDUPLICATE"), "{lines:?}");
        assert_eq!(others(member, role), json!(expected));
        wait_for("the metric", LONG, || gauge(member) == 1).unwrap();
    };
    for (storer, expected) in storers.iter().zip([["s2", "s3"], ["s1", "s3"], ["s1", "s2"]]) {
        check(storer, "storer", &expected);
    }
    for (forwarder, expected) in forwarders.iter().zip(["m2", "m1"]) {
        check(forwarder, "syslog-forwarder", &[expected]);
    }
    // A member alone has nobody to differ from.
    forwarders.remove(1).stop().unwrap();
    let over = "members have the same destinations again";
    let is_over = || forwarders[0].process.stderr().iter().any(|line| line.contains(over));
    wait_for("the end in the log", LONG, || is_over() && gauge(&forwarders[0]) == 0).unwrap();
    assert_eq!(others(&forwarders[0], "syslog-forwarder"), json!([]));
    Services(forwarders).stop().unwrap();
    Services(storers).stop().unwrap();
    Services(captures).stop().unwrap();
}

#[test]
fn jetstream_server_killed_under_groups_loses_nothing() {
    let Some(site) = site() else { return };
    let Some(mut scenario) = Scenario::start(&site, 2) else { return };
    scenario.server.kill();
    pause_for(AWAY);
    scenario.server.start_again();
    scenario.members.wait_until_even();
    flow_for(&scenario.sink, Duration::from_secs(1));
    let Completeness { duplicates, .. } = scenario.finish();
    assert!(duplicates <= RATE * 2 * COMMITTED_WITHIN.as_secs(), "{duplicates} handled twice");
}
