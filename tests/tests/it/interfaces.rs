//! Interfaces that disappear and return.

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{DEVICES_WIRE, MIRRORED, Samples, Services, WIRE, collector};

use crate::support::*;

/// Removes and restores the wire, and checks that capture is not ready in between, and captures
/// again afterwards.
fn check(remove: impl Fn(&TestSite), restore: impl Fn(&TestSite)) {
    let Some(site) = site() else { return };
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
    let mut arrived = 0;
    for _ in 0..2 {
        arrived += send_all(&site);
        let _ = sink.wait_for(arrived, LONG);
        assert_eq!(sink.received(), arrived, "{}", log(&services));
        let capture = services.get(CAPTURE);
        remove(&site);
        wait_for("capture not to be ready", LONG, || !capture.is_ready())
            .unwrap_or_else(|late| panic!("{late}: {}", log(&services)));
        let up = |samples: &Samples| samples.count("sekiwake_capture_up", &[]);
        assert_eq!(up(&capture.metrics().unwrap()), 0);
        assert!(capture.is_alive(), "a service that waits for an interface is alive");
        restore(&site);
        wait_for("capture to be ready again", LONG, || capture.is_ready())
            .unwrap_or_else(|late| panic!("{late}: {}", log(&services)));
        assert_eq!(up(&capture.metrics().unwrap()), 1);
    }
    arrived += send_all(&site);
    let _ = sink.wait_for(arrived, LONG);
    let ledger = balanced_ledger(&services);
    let log = log(&services);
    services.stop().unwrap();
    assert_eq!(sink.finish().received, arrived, "{:?}; {log}", ledger.losses());
}

fn send_all(site: &TestSite) -> u64 {
    site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 8 --size 100-3000 --rate 5000 --count 1000"))
}

fn log(services: &Services<'_>) -> String {
    services.get(CAPTURE).process.stderr().join("\n")
}

fn host_link(site: &TestSite, arguments: &str) {
    site.host.ip(&format!("link set {arguments}")).unwrap();
}

#[test]
fn interface_down_and_up_is_captured_again() {
    check(
        |site| host_link(site, &format!("{WIRE} down")),
        |site| {
            host_link(site, &format!("{WIRE} up"));
            wait_for_carrier(site);
        },
    );
}

#[test]
fn deleted_and_recreated_interface_is_captured_again() {
    check(
        |site| {
            site.host.ip(&format!("link del {WIRE}")).unwrap();
        },
        |site| site.connect_wire().unwrap(),
    );
}

#[test]
fn interface_renamed_and_renamed_back_is_captured_again() {
    check(
        |site| {
            host_link(site, &format!("{WIRE} down"));
            host_link(site, &format!("{WIRE} name wire9"));
            host_link(site, "wire9 up");
        },
        |site| {
            host_link(site, "wire9 down");
            host_link(site, &format!("wire9 name {WIRE}"));
            host_link(site, &format!("{WIRE} up"));
            wait_for_carrier(site);
        },
    );
}

fn wait_for_carrier(site: &TestSite) {
    let up = || site.devices.ip(&format!("-br link show dev {}", DEVICES_WIRE));
    wait_for("a carrier", LONG, || up().is_ok_and(|text| text.contains("LOWER_UP"))).unwrap();
}
