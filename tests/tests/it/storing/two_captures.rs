//! What two captures see is acknowledged by a storer only once it is on the disk.

use super::*;

/// A capture that has a name and an admin port of its own.
fn capture<'a>(site: &'a TestSite, name: &str, admin: &str) -> Service<'a> {
    site.start_one(CAPTURE, &[("SEKIWAKE_PUBLISHER", name), ("SEKIWAKE_ADMIN", admin)])
}

/// Its disk is stuck, it is killed, and so is one of the captures: what it had received of that one
/// only, and what it had taken for copies of that, is stored from what the other capture retains.
#[test]
fn storer_killed_with_a_stuck_disk_and_one_capture_loses_nothing() {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let disk = SmallDisk::new("256k");
    let settings = [
        ("SEKIWAKE_STORE_DIR", disk.0.path().to_str().unwrap()),
        ("SEKIWAKE_STORE_COMMIT", "200ms"),
        ("SEKIWAKE_DEDUPLICATE", "200ms"),
    ];
    let mut proxy = site.start_one(PROXY, &[]);
    let mut captures =
        [("tap-a", "127.0.0.1:9690"), ("tap-b", "127.0.0.1:9691")].map(|(name, admin)| capture(&site, name, admin));
    let mut storer = site.start_one(STORER, &settings);
    wait_for("all shards", LONG, || owned_shards(&storer) == 64).unwrap();
    captures.iter().for_each(|capture| capture.wait_until_ready().unwrap());
    let sent =
        site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 64 --size 500 --rate 5000 --duration 2s"));
    // It has every datagram in memory, and has removed every copy.
    let removed = |storer: &Service<'_>| {
        storer.metrics().map_or(0, |samples| samples.count("sekiwake_deduplicate_duplicate_records_total", &[]))
    };
    wait_for("all copies", LONG, || removed(&storer) == sent).unwrap();
    wait_for("the storer not to be ready", LONG, || !storer.is_ready()).unwrap();
    let samples = storer.metrics().unwrap();
    let unsynced = samples.count("sekiwake_store_unsynced_records", &[]);
    let second = ["tap-a", "tap-b"].map(|name| {
        let stream = format!("stream=\"{name}\"");
        samples.count("sekiwake_deduplicate_duplicate_records_total", &[&stream])
    });
    println!("{unsynced} of {sent} not on the disk, copies of each capture: {second:?}");
    assert!(unsynced > sent / 2, "{unsynced} of {sent}");
    // The capture whose records were the delivered ones more often.
    let victim = usize::from(second[0] > second[1]);
    captures[victim].kill().unwrap();
    storer.kill().unwrap();
    disk.grow("64m");
    let mut storer = site.start_one(STORER, &settings);
    let found = || numbers(&search(&storer, "")).len() as u64;
    wait_for("everything to be stored", LONG, || storer.is_ready() && found() == sent)
        .unwrap_or_else(|late| panic!("{late}: {} of {sent}\n{}", found(), storer.process.stderr().join("\n")));
    let samples = storer.metrics().unwrap();
    let lost = |labels: &[&str]| samples.count("sekiwake_bus_lost_records_total", labels);
    assert_eq!(lost(&[]), lost(&["reason=\"one_view\""]), "{}", storer.process.stderr().join("\n"));
    storer.stop().unwrap();
    captures[1 - victim].stop().unwrap();
    proxy.stop().unwrap();
}
