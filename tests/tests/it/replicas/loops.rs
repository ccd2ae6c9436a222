//! Forwarded datagrams pass the captured interface.

use std::net::Ipv4Addr;

use super::*;

/// The devices' end of the wire: datagrams to it leave on the captured interface.
const BACK: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);

#[test]
fn forwarding_to_the_captured_wire_does_not_loop_in_any_order() {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    for order in ORDERS {
        let sink = site.devices.enter(|| Sink::bind(&[at(BACK, 514)], numbered()));
        let sink = sink.unwrap().unwrap();
        // It starts before the services and runs until all are up.
        let load = Load::with(&site, "--from 198.19.0.0/16 --sources 16 --rate 2000 --size 200");
        let mut services = site.start_in_order(order, &format!("udp://{BACK}:514"));
        flow_for(&sink, Duration::from_secs(1));
        load.stop();
        let _ = sink.wait_for_silence(Duration::from_secs(1), LONG);
        let metrics = services.get(CAPTURE).metrics().unwrap();
        let report = sink.report();
        let claimed = metrics.count("sekiwake_capture_claimed_datagrams_total", &[]);
        let own = metrics.count("sekiwake_capture_unclaimed_datagrams_total", &["reason=\"own_destination\""])
            + metrics.count("sekiwake_bus_unpublished_records_total", &["reason=\"own_destination\""]);
        for name in [CAPTURE, SYSLOG, PROXY] {
            services.take(name).stop().unwrap();
        }
        println!("{order:?}: {claimed} claimed, {own} own, {} received", report.received);
        assert!(claimed > 0);
        assert_eq!((report.received, report.sequence.duplicates), (claimed, 0), "{order:?}");
        assert_eq!(
            own, report.received,
            "{order:?}: all forwarded datagrams passed the interface and were recognised as own"
        );
    }
}

#[test]
fn capture_knows_a_later_forwarder_before_it_sends() {
    let Some(site) = site() else { return };
    site.disable_ipv6_on_the_wire();
    let spine = site.start(&[CAPTURE, PROXY], &[]);
    let load = Load::with(&site, "--from 198.19.0.0/16 --sources 16 --rate 2000 --size 200");
    let capture = spine.get(CAPTURE);
    let claimed =
        |service: &Service<'_>| service.metrics().unwrap().count("sekiwake_capture_claimed_datagrams_total", &[]);
    wait_for("a backlog", LONG, || claimed(capture) > 2_000).unwrap();
    let sink = site.devices.enter(|| Sink::bind(&[at(BACK, 514)], numbered()));
    let sink = sink.unwrap().unwrap();
    let destination = format!("udp://{BACK}:514");
    let mut forwarder = site.start_one(SYSLOG, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destination)]);
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.stop();
    let _ = sink.wait_for(sent, LONG);
    let _ = sink.wait_for_silence(Duration::from_secs(1), LONG);
    let total = claimed(capture);
    forwarder.stop().unwrap();
    spine.stop().unwrap();
    let report = sink.finish();
    assert_eq!((report.received, report.sequence.duplicates, total), (sent, 0, sent));
}
