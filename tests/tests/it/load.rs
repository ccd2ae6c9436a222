//! Under load: every number arrives once and in order.

use sekiwake_testkit::sink::Options;
use sekiwake_tests::{HOST, MIRRORED, MIRRORED_V6, collector};

use crate::support::*;

#[test]
fn twenty_thousand_a_second_of_mixed_sizes_from_64_sources_arrive_once_and_in_order() {
    let Some(site) = site("twenty_thousand_a_second_of_mixed_sizes_from_64_sources_arrive_once_and_in_order") else {
        return;
    };
    let sink = site.sink(&[at(collector(0), 514)], Options { digest: true, ..numbered() });
    let services = site.start(&SYSLOG_WAY, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
    let sent = site.send(&format!(
        "--to {MIRRORED} --from 198.19.0.0/16 --sources 64 --size 100-1400 --rate 20000 --count 100000"
    ));
    let _ = sink.wait_for(sent, LONG);
    let ledger = closed_books(&services);
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!(report.received, sent, "lost: {:?}, by the wire {}", ledger.losses(), site.dropped_by_wire().unwrap());
    let sequence = report.sequence;
    assert!(sequence.is_complete(), "{sequence:?}");
    assert_eq!((sequence.streams, sequence.out_of_order), (64, 0));
    assert_eq!(ledger.losses(), Vec::<String>::new());
}

#[test]
fn all_protocols_of_both_ip_versions_arrive_complete_at_two_collectors_and_the_old_one() {
    let test = "all_protocols_of_both_ip_versions_arrive_complete_at_two_collectors_and_the_old_one";
    let Some(site) = site(test) else { return };
    let ports = [514, 2055, 162];
    let sinks = [0, 1].map(|number| site.sink(&ports.map(|port| at(collector(number), port)), numbered()));
    let [syslog, xflow, trap] =
        ports.map(|port| format!("udp://{}:{port} udp://{}:{port}", collector(0), collector(1)));
    let services = site.start(
        &ALL,
        &[
            ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
            ("SEKIWAKE_XFLOW_DESTINATIONS", &xflow),
            ("SEKIWAKE_TRAP_DESTINATIONS", &trap),
        ],
    );
    // One goes on to be received by whom the devices know, the other passes by.
    let old = [514, 2055, 4739, 6343, 162].map(|port| at(HOST, port));
    let old = site.host.enter(|| sekiwake_testkit::sink::Sink::bind(&old, Options::counts())).unwrap().unwrap();
    let common = format!("--protocol {ALL_BUT_INFORMS} --sources 8 --size 120-3000 --rate 5000 --duration 2s");
    let to_host = site.send(&format!("--to {HOST} --from 198.19.0.0/16 {common}"));
    // The generator numbers its sources from 0 each time: the second run is another stream only by its IP version, so that
    // completeness is checked for the first and the count for both.
    let first: Vec<_> = sinks
        .iter()
        .map(|sink| {
            let _ = sink.wait_for(to_host, LONG);
            sink.report()
        })
        .collect();
    let passing = site.send(&format!("--to {MIRRORED_V6} --from 2001:db8:18:1::/64 {common}"));
    for sink in &sinks {
        let _ = sink.wait_for(to_host + passing, LONG);
    }
    let ledger = closed_books(&services);
    services.stop().unwrap();
    for (sink, first) in sinks.into_iter().zip(first) {
        assert!(first.sequence.is_complete(), "{:?}", first.sequence);
        assert_eq!(sink.finish().received, to_host + passing, "{:?}", ledger.losses());
    }
    assert_eq!(old.finish().received, to_host);
}
