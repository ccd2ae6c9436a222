//! The all-in-one process, and forwarding without loops.

use std::time::Duration;

use sekiwake_testkit::sink::Sink;
use sekiwake_tests::{FIRST_DEVICE, MIRRORED, MIRRORED_V6, Samples, collector};

use crate::support::*;

#[test]
fn all_in_one_forwards_everything_with_minimal_settings() {
    forwards_everything(Bus::ZeroMq);
}

#[test]
fn all_in_one_forwards_everything_on_jetstream() {
    forwards_everything(Bus::JetStream);
}

fn forwards_everything(bus: Bus) {
    let Some(site) = site_on(bus) else { return };
    let ports = [514, 2055, 162];
    let sink = site.sink(&ports.map(|port| at(collector(0), port)), numbered());
    let [syslog, xflow, trap] = ports.map(|port| format!("udp://{}:{port}", collector(0)));
    let services = site.start(
        &["sekiwake"],
        &[
            ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
            ("SEKIWAKE_XFLOW_DESTINATIONS", &xflow),
            ("SEKIWAKE_TRAP_DESTINATIONS", &trap),
        ],
    );
    let sent = site.send(&format!(
        "--to {MIRRORED_V6} --from 2001:db8:18:1::/64 --sources 8 --protocol all --size 100-5000 --rate 5000 --duration 2s"
    ));
    let _ = sink.wait_for(sent, LONG);
    let samples = services.get("sekiwake").metrics().unwrap();
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!(report.received, sent);
    assert!(report.sequence.is_complete(), "{:?}", report.sequence);
    assert_eq!(samples.count("sekiwake_capture_claimed_datagrams_total", &[]), sent);
    let forwarders = ["syslog", "xflow", "trap"].map(|kind| format!("service=\"{kind}-forwarder\""));
    let received =
        forwarders.iter().map(|service| samples.count("sekiwake_bus_received_records_total", &[service])).sum::<u64>();
    assert_eq!(received, sent);
    assert_eq!(samples.count("sekiwake_forward_sent_datagrams_total", &[]), sent);
}

#[test]
fn own_datagrams_on_the_captured_wire_are_not_captured() {
    are_not_captured(Bus::ZeroMq, &[&["sekiwake"], &SYSLOG_PATH]);
}

#[test]
fn own_datagrams_on_the_captured_wire_are_not_captured_on_jetstream() {
    are_not_captured(Bus::JetStream, &[&["sekiwake"]]);
}

fn are_not_captured(bus: Bus, systems: &[&[&str]]) {
    let Some(site) = site_on(bus) else { return };
    for names in systems {
        // The destination is in the devices' network, so that datagrams to it leave on the captured
        // wire, to port 514.
        let address = at(std::net::Ipv4Addr::from(u32::from(FIRST_DEVICE) + 40), 514);
        let sink = site.devices.enter(|| Sink::bind(&[address], numbered())).unwrap().unwrap();
        let services = site.start(names, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &format!("udp://{address}"))]);
        let sent = site.send(&format!(
            "--to {MIRRORED} --from 198.19.0.1,198.19.0.2,198.19.0.3 --size 100-1400 --rate 2000 --count 4000"
        ));
        let _ = sink.wait_for(sent, LONG);
        // A loop would not end.
        sink.wait_for_silence(Duration::from_millis(300), LONG).unwrap();
        let capture = &services.0[0];
        let own = |samples: &Samples| {
            samples.count("sekiwake_capture_unclaimed_datagrams_total", &["reason=\"own_destination\""])
        };
        capture.wait_for_metrics("the counter of own datagrams", LONG, |samples| own(samples) >= sent).unwrap();
        let samples = capture.metrics().unwrap();
        services.stop().unwrap();
        let report = sink.finish();
        assert_eq!(report.received, sent, "{names:?}");
        assert!(report.sequence.is_complete(), "{:?}", report.sequence);
        assert_eq!(samples.count("sekiwake_capture_claimed_datagrams_total", &[]), sent);
        assert_eq!(own(&samples), sent);
    }
}
