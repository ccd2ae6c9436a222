//! The next owner of a shard has the earlier templates from its predecessor's hand-off state.

use std::{thread, time::Duration};

use sekiwake_tests::{MIRRORED, nats::api};
use serde_json::json;

use super::*;
use crate::replicas::owned_shards;

/// Number of exporters, spread over the shards of both members.
const EXPORTERS: u32 = 16;

/// The change between the templates and the new collector.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// One of the two members is stopped gracefully.
    Stopped,
    /// One member is killed.
    Killed,
    /// The proxy is killed and restarted, then one member is killed.
    ProxyRestartedThenKilled,
}

#[test]
fn next_owner_has_templates_after_graceful_stop() {
    check(Bus::ZeroMq, Change::Stopped);
}

#[test]
fn next_owner_has_templates_after_kill() {
    check(Bus::ZeroMq, Change::Killed);
}

#[test]
fn next_owner_has_templates_after_kill_on_jetstream() {
    check(Bus::JetStream, Change::Killed);
}

#[test]
fn next_owner_has_templates_after_proxy_restart_and_kill() {
    check(Bus::ZeroMq, Change::ProxyRestartedThenKilled);
}

fn start_member<'a>(site: &'a TestSite, number: u16, file: &DestinationsFile) -> Service<'a> {
    let admin = format!("127.0.0.1:{}", 9700 + number);
    let label = format!("m{number}");
    site.start_one(XFLOW, &[file.setting(), ("SEKIWAKE_ADMIN", &admin), ("SEKIWAKE_MEMBER", &label)])
}

fn check(bus: Bus, change: Change) {
    let Some(site) = flow_site_on(bus) else { return };
    let mut spine = site.start(&[CAPTURE, PROXY], &[]);
    let files = [1, 2].map(|_| DestinationsFile::new(&[uri(0, "")]));
    let [mut victim, survivor] = [1, 2].map(|number| start_member(&site, number, &files[usize::from(number) - 1]));
    let [_, mut file] = files;
    let shares = |members: [&Service<'_>; 2]| members.map(owned_shards);
    wait_for("even shares", LONG, || shares([&victim, &survivor]) == [32, 32]).unwrap();

    let version = |number: u32| if number.is_multiple_of(2) { Version::NetFlow9 } else { Version::Ipfix };
    let mut exporters: Vec<Exporter> =
        (1..=EXPORTERS).map(|number| Exporter::new(&site, number, version(number), at(MIRRORED, PORT))).collect();
    exporters.iter_mut().for_each(|exporter| exporter.template(256, &LAYOUT));
    // Data for longer than the commit interval, so that the positions are past the templates and
    // the bus does not send them again.
    for number in 0..60 {
        exporters.iter_mut().for_each(|exporter| exporter.flow(256, &LAYOUT, number));
        thread::sleep(Duration::from_millis(50));
    }
    let sent = u64::from(EXPORTERS) * 61;
    wait_for("all to be forwarded", LONG, || forwarded(&victim, 0) + forwarded(&survivor, 0) >= sent).unwrap();
    // Only the victim has seen the templates of some exporters.
    let by_victim = forwarded(&victim, 0);
    assert!(by_victim > 0 && by_victim < sent, "{by_victim} of {sent}");
    wait_for_handoff(&site, &spine);

    if change == Change::ProxyRestartedThenKilled {
        let mut proxy = spine.take(PROXY);
        proxy.kill().unwrap();
        spine.add(site.start_one(PROXY, &[]));
        // The hand-off state is only in the members' memory now; they send it to the new
        // coordinator.
        wait_for_handoff(&site, &spine);
        wait_for("even shares", LONG, || shares([&victim, &survivor]) == [32, 32]).unwrap();
    }
    match change {
        Change::Stopped => victim.stop().unwrap(),
        Change::Killed | Change::ProxyRestartedThenKilled => {
            victim.kill().unwrap();
        }
    }
    wait_for("the survivor to take over", LONG, || owned_shards(&survivor) == 64).unwrap();

    let nfcapd = Collector::<Nfcapd>::start(&site.collectors, at(collector(1), PORT)).unwrap();
    file.add(&survivor, &[uri(1, "?spoof=true")]);
    let first = 1_000;
    let count = 5;
    for number in first..first + count {
        exporters.iter_mut().for_each(|exporter| exporter.flow(256, &LAYOUT, number));
    }
    wait_until_forwarded(&survivor, 1, u64::from(EXPORTERS) * count);
    let flows = decoded_by(nfcapd);
    // After a kill, earlier data may be sent again, to the new destination as well.
    let (new, earlier): (Vec<_>, Vec<_>) = flows.into_iter().partition(|flow| flow.port >= BASE_PORT + first);
    println!("{by_victim} of {sent} through the stopped member, {} sent again", earlier.len());
    let all = exporters.iter().flat_map(|exporter| expected(&exporter.name(), first..first + count));
    assert_eq!(new, sorted(all.collect()), "{:?}", summary(&new));
    let mut survivor = survivor;
    survivor.stop().unwrap();
    spine.stop().unwrap();
}

/// Waits until the bus has hand-off state of every exporter: a template in two forms.
fn wait_for_handoff(site: &TestSite, spine: &Services<'_>) {
    let entries = || {
        if site.bus().is_empty() {
            return spine
                .get(PROXY)
                .metrics()
                .map_or(0, |samples| samples.count("sekiwake_group_handoff_entries", &[]));
        }
        let subject = "STREAM.INFO.SEKIWAKE_HANDOFF_xflow-forwarder=default";
        let stream = api(&site.host, at([127, 0, 0, 1], 4222), subject, &json!({}));
        stream.ok().and_then(|stream| stream["state"]["messages"].as_u64()).unwrap_or_default()
    };
    wait_for("hand-off state of all templates", LONG, || entries() >= u64::from(2 * EXPORTERS))
        .unwrap_or_else(|late| panic!("{late}: {}", entries()));
}
