//! What is forwarded passes the interface that is captured.

use super::*;

use std::net::Ipv4Addr;

use sekiwake_tests::Services;

/// The devices' own end of the wire: what is forwarded there leaves by the interface that capture listens on.
const BACK: Ipv4Addr = Ipv4Addr::new(198, 18, 255, 254);

#[test]
fn a_destination_behind_the_captured_interface_gets_each_datagram_once_whatever_starts_first() {
    let test = "a_destination_behind_the_captured_interface_gets_each_datagram_once_whatever_starts_first";
    let Some(site) = site(test) else { return };
    site.switch_ipv6_off_on_the_wire();
    let [capture, proxy, forwarder] = SYSLOG_WAY;
    for order in [
        [capture, proxy, forwarder],
        [capture, forwarder, proxy],
        [proxy, capture, forwarder],
        [proxy, forwarder, capture],
        [forwarder, capture, proxy],
        [forwarder, proxy, capture],
    ] {
        let sink = site.devices.enter(|| Sink::bind(&[at(BACK, 514)], numbered()));
        let sink = sink.unwrap().unwrap();
        // It sends before anybody is there, and goes on while they come.
        let load = Load::of(&site, "--from 198.19.0.0/16 --sources 16 --rate 2000 --size 200");
        let destination = format!("udp://{BACK}:514");
        let mut services = Services(Vec::new());
        for name in order {
            let service = site.start_one(name, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destination)]);
            wait_for("an answer of the admin server", LONG, || service.is_alive()).unwrap();
            services.add(service);
        }
        services.wait_until_datagrams_flow().unwrap();
        flow_for(&sink, Duration::from_secs(1));
        load.end();
        let _ = sink.wait_for_silence(Duration::from_secs(1), PATIENCE);
        let (metrics, report) = (services.get(CAPTURE).metrics().unwrap(), sink.report());
        let claimed = metrics.count("sekiwake_capture_claimed_datagrams_total", &[]);
        let own = metrics.count("sekiwake_capture_unclaimed_datagrams_total", &["reason=\"own_destination\""])
            + metrics.count("sekiwake_bus_unpublished_records_total", &["reason=\"own_destination\""]);
        for name in [CAPTURE, SYSLOG, PROXY] {
            services.take(name).stop().unwrap();
        }
        println!("{order:?}: {claimed} claimed, {own} own, {} received", report.received);
        assert!(claimed > 0);
        assert_eq!((report.received, report.sequence.doubled), (claimed, 0), "{order:?}");
        assert_eq!(own, report.received, "{order:?}: all that was sent passed the interface and was left alone");
    }
}

#[test]
fn a_forwarder_that_comes_later_is_known_to_capture_before_it_sends() {
    let Some(site) = site("a_forwarder_that_comes_later_is_known_to_capture_before_it_sends") else { return };
    site.switch_ipv6_off_on_the_wire();
    let spine = site.start(&[CAPTURE, PROXY], &[]);
    let load = Load::of(&site, "--from 198.19.0.0/16 --sources 16 --rate 2000 --size 200");
    let capture = spine.get(CAPTURE);
    let claimed =
        |service: &Service<'_>| service.metrics().unwrap().count("sekiwake_capture_claimed_datagrams_total", &[]);
    wait_for("a backlog", LONG, || claimed(capture) > 2_000).unwrap();
    let sink = site.devices.enter(|| Sink::bind(&[at(BACK, 514)], numbered()));
    let sink = sink.unwrap().unwrap();
    let destination = format!("udp://{BACK}:514");
    let mut forwarder = site.start_one(SYSLOG, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destination)]);
    flow_for(&sink, Duration::from_secs(1));
    let sent = load.end();
    let _ = sink.wait_for(sent, LONG);
    let _ = sink.wait_for_silence(Duration::from_secs(1), PATIENCE);
    let total = claimed(capture);
    forwarder.stop().unwrap();
    spine.stop().unwrap();
    let report = sink.finish();
    assert_eq!((report.received, report.sequence.doubled, total), (sent, 0, sent));
}
