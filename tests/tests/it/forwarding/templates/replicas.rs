//! Who takes over a shard has the templates that passed before it did: from the notes of the owner before.

use std::{thread, time::Duration};

use sekiwake_testkit::process::Signal;
use sekiwake_tests::MIRRORED;

use super::*;
use crate::replicas::owned_shards;

/// Exporters, spread over the shards of both members.
const EXPORTERS: u32 = 16;
/// How long taking over may take, with a lease that has to run out.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens between the templates and the new collector.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// One of the two members is stopped in order.
    Stopped,
    /// One is killed.
    Killed,
    /// The proxy is killed and started again, and then one member is killed.
    ProxyRestartedThenKilled,
}

#[test]
fn the_next_owner_has_the_templates_after_a_stop_in_order() {
    check("the_next_owner_has_the_templates_after_a_stop_in_order", Change::Stopped);
}

#[test]
fn the_next_owner_has_the_templates_after_a_kill() {
    check("the_next_owner_has_the_templates_after_a_kill", Change::Killed);
}

#[test]
fn the_next_owner_has_the_templates_after_a_restart_of_the_proxy_and_a_kill() {
    let test = "the_next_owner_has_the_templates_after_a_restart_of_the_proxy_and_a_kill";
    check(test, Change::ProxyRestartedThenKilled);
}

fn start_member<'a>(site: &'a TestSite, number: u16, file: &DestinationsFile) -> Service<'a> {
    let (admin, label) = (format!("127.0.0.1:{}", 9700 + number), format!("m{number}"));
    site.start_one(XFLOW, &[file.setting(), ("SEKIWAKE_ADMIN", &admin), ("SEKIWAKE_MEMBER", &label)])
}

fn check(test: &str, change: Change) {
    let Some(site) = flow_site(test) else { return };
    let mut spine = site.start(&[CAPTURE, PROXY], &[]);
    let files = [1, 2].map(|_| DestinationsFile::new(&[uri(0, "")]));
    let [mut victim, survivor] = [1, 2].map(|number| start_member(&site, number, &files[usize::from(number) - 1]));
    let [_, mut file] = files;
    let shares = |members: [&Service<'_>; 2]| members.map(owned_shards);
    wait_for("even shares", PATIENCE, || shares([&victim, &survivor]) == [32, 32]).unwrap();

    let version = |number: u32| if number.is_multiple_of(2) { Version::NetFlow9 } else { Version::Ipfix };
    let mut exporters: Vec<Exporter> =
        (1..=EXPORTERS).map(|number| Exporter::new(&site, number, version(number), at(MIRRORED, PORT))).collect();
    exporters.iter_mut().for_each(|exporter| exporter.template(256, &LAYOUT));
    // Data for longer than positions take to be committed: afterwards no template is repeated, for it is not the last thing.
    for number in 0..60 {
        exporters.iter_mut().for_each(|exporter| exporter.flow(256, &LAYOUT, number));
        thread::sleep(Duration::from_millis(50));
    }
    let sent = u64::from(EXPORTERS) * 61;
    wait_for("all to be forwarded", LONG, || forwarded(&victim, 0) + forwarded(&survivor, 0) >= sent).unwrap();
    // Templates of some exporters have been seen by the one only that will be gone.
    let of_victim = forwarded(&victim, 0);
    assert!(of_victim > 0 && of_victim < sent, "{of_victim} of {sent}");
    wait_for_notes(&spine);

    if change == Change::ProxyRestartedThenKilled {
        let mut proxy = spine.take(PROXY);
        proxy.process.signal(Signal::KILL).unwrap();
        proxy.process.wait(LONG).unwrap();
        spine.add(site.start_one(PROXY, &[]));
        // Notes are only in the members' memory now, and are presented to the new coordinator.
        wait_for_notes(&spine);
        wait_for("even shares", PATIENCE, || shares([&victim, &survivor]) == [32, 32]).unwrap();
    }
    match change {
        Change::Stopped => victim.stop().unwrap(),
        Change::Killed | Change::ProxyRestartedThenKilled => {
            victim.process.signal(Signal::KILL).unwrap();
            victim.process.wait(LONG).unwrap();
        }
    }
    wait_for("the other to take over", PATIENCE, || owned_shards(&survivor) == 64).unwrap();

    let nfcapd = Collector::<Nfcapd>::start(&site.collectors, at(collector(1), PORT)).unwrap();
    file.add(&survivor, &[uri(1, "?spoof=true")]);
    let (first, count) = (1_000, 5);
    for number in first..first + count {
        exporters.iter_mut().for_each(|exporter| exporter.flow(256, &LAYOUT, number));
    }
    wait_until_forwarded(&survivor, 1, u64::from(EXPORTERS) * count);
    let flows = decoded_by(nfcapd);
    // After a kill, data of before may come once more, to the new destination as well.
    let (new, repeated): (Vec<_>, Vec<_>) = flows.into_iter().partition(|flow| flow.port >= BASE_PORT + first);
    println!("{of_victim} of {sent} through the member that is gone, {} of them repeated", repeated.len());
    let all = exporters.iter().flat_map(|exporter| expected(&exporter.name(), first..first + count));
    assert_eq!(new, sorted(all.collect()), "{:?}", summary(&new));
    let mut survivor = survivor;
    survivor.stop().unwrap();
    spine.stop().unwrap();
}

/// Waits until the coordinator has a note of every exporter's template.
fn wait_for_notes(spine: &Services<'_>) {
    let notes = || spine.get(PROXY).metrics().map_or(0, |samples| samples.count("sekiwake_group_notes", &[]));
    wait_for("notes of all templates", PATIENCE, || notes() >= u64::from(EXPORTERS))
        .unwrap_or_else(|late| panic!("{late}: {}", notes()));
}
