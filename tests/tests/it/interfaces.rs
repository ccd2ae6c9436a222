//! Interfaces that go away and come back.

use sekiwake_testkit::wait::wait_for;
use sekiwake_tests::{MIRRORED, Services, WIRE, collector};

use crate::support::*;

/// Takes the wire away and gives it back, and checks that capture is not ready meanwhile, and captures again.
fn check(test: &str, take_away: impl Fn(&TestSite), give_back: impl Fn(&TestSite)) {
    let Some(site) = site(test) else { return };
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let services = site.start(&SYSLOG_WAY, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
    let mut arrived = 0;
    for _ in 0..2 {
        arrived += send_all(&site);
        let _ = sink.wait_for(arrived, LONG);
        assert_eq!(sink.received(), arrived, "{}", log(&services));
        let capture = services.get(CAPTURE);
        take_away(&site);
        wait_for("notice that the interface is gone", LONG, || !capture.is_ready())
            .unwrap_or_else(|late| panic!("{late}: {}", log(&services)));
        let up = |samples: &sekiwake_tests::Samples| samples.count("sekiwake_capture_up", &[]);
        assert_eq!(up(&capture.metrics().unwrap()), 0);
        assert!(capture.is_alive(), "waiting for an interface is no failure");
        give_back(&site);
        wait_for("being ready again", LONG, || capture.is_ready())
            .unwrap_or_else(|late| panic!("{late}: {}", log(&services)));
        assert_eq!(up(&capture.metrics().unwrap()), 1);
    }
    arrived += send_all(&site);
    let _ = sink.wait_for(arrived, LONG);
    let ledger = closed_books(&services);
    let said = log(&services);
    services.stop().unwrap();
    assert_eq!(sink.finish().received, arrived, "{:?}; {said}", ledger.losses());
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
fn an_interface_that_goes_down_and_up_is_captured_again() {
    check(
        "an_interface_that_goes_down_and_up_is_captured_again",
        |site| host_link(site, &format!("{WIRE} down")),
        |site| {
            host_link(site, &format!("{WIRE} up"));
            wait_for_carrier(site);
        },
    );
}

#[test]
fn an_interface_that_is_deleted_and_made_again_is_captured_again() {
    check(
        "an_interface_that_is_deleted_and_made_again_is_captured_again",
        |site| {
            site.host.ip(&format!("link del {WIRE}")).unwrap();
        },
        |site| site.connect_wire().unwrap(),
    );
}

#[test]
fn an_interface_that_loses_its_name_and_gets_it_back_is_captured_again() {
    check(
        "an_interface_that_loses_its_name_and_gets_it_back_is_captured_again",
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
    let up = || site.devices.ip(&format!("-br link show dev {}", sekiwake_tests::DEVICES_WIRE));
    wait_for("a carrier", LONG, || up().is_ok_and(|text| text.contains("LOWER_UP"))).unwrap();
}
