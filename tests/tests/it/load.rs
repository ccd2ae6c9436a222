//! Under load, every datagram arrives once and in order.

use sekiwake_testkit::sink::{Options, Sink};
use sekiwake_tests::{HOST, MIRRORED, MIRRORED_V6, collector};

use crate::support::*;

#[test]
fn mixed_sizes_from_64_sources_arrive_once_and_in_order() {
    let Some(site) = site() else { return };
    let sink = site.sink(&[at(collector(0), 514)], Options { digest: true, ..numbered() });
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0))]);
    let sent = site
        .send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 64 --size 100-1400 --rate 10000 --count 50000"));
    let _ = sink.wait_for(sent, LONG);
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    let report = sink.finish();
    assert_eq!(report.received, sent, "lost: {:?}, by the wire {}", ledger.losses(), site.dropped_by_wire().unwrap());
    let sequence = report.sequence;
    assert!(sequence.is_complete(), "{sequence:?}");
    assert_eq!((sequence.streams, sequence.out_of_order), (64, 0));
    assert_eq!(ledger.losses(), Vec::<String>::new());
}

#[test]
fn all_protocols_arrive_at_old_and_new_collectors() {
    let Some(site) = site() else { return };
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
    // One sender addresses the old collector, the other one's datagrams pass by.
    let old = [514, 2055, 4739, 6343, 162].map(|port| at(HOST, port));
    let old = site.host.enter(|| Sink::bind(&old, Options::counts())).unwrap().unwrap();
    let common = "--protocol all --sources 8 --size 120-3000 --rate 5000 --duration 2s";
    let to_host = site.send(&format!("--to {HOST} --from 198.19.0.0/16 {common}"));
    // Both senders number their sources from 0, so that completeness is checked for the first and
    // the count for both.
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
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    for (sink, first) in sinks.into_iter().zip(first) {
        assert!(first.sequence.is_complete(), "{:?}", first.sequence);
        assert_eq!(sink.finish().received, to_host + passing, "{:?}", ledger.losses());
    }
    assert_eq!(old.finish().received, to_host);
}
