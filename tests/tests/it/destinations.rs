//! Many destinations: dead, slow and unknown ones do not affect the live ones.

use sekiwake_tests::{MIRRORED, collector, collector_v6};

use crate::support::*;

#[test]
fn dead_and_unknown_destinations_do_not_affect_live_ones() {
    let Some(site) = site() else { return };
    let live = [at(collector(0), 514), at(collector_v6(1), 5514)].map(|address| site.sink(&[address], numbered()));
    let destinations = format!(
        "udp://{}:514 udp://[{}]:5514 udp://{}:9 udp://198.51.100.200:514 udp://203.0.113.1:514 \
         udp://collector.invalid:514",
        collector(0),
        collector_v6(1),
        collector(2),
    );
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations)]);
    let sent = site
        .send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 16 --size 100-3000 --rate 5000 --duration 4s"));
    for sink in &live {
        let _ = sink.wait_for(sent, LONG);
    }
    // Datagrams without a route wait for at most two seconds, those of an unknown name for ever.
    let unknown = "destination=\"udp://collector.invalid:514\"";
    let forwarder = services.get(SYSLOG);
    forwarder
        .wait_for_metrics("empty queues", LONG, |samples| {
            let queued = |labels: &[&str]| samples.count("sekiwake_forward_queue_records", labels);
            queued(&[]) == queued(&[unknown])
        })
        .unwrap();
    let ledger = balanced_ledger(&services);
    let samples = &ledger.forwarders[0];
    services.stop().unwrap();
    for sink in live {
        let report = sink.finish();
        assert_eq!(report.received, sent, "{:?}", ledger.losses());
        assert!(report.sequence.is_complete(), "{:?}", report.sequence);
        assert_eq!(report.sequence.out_of_order, 0);
    }
    let count = |what: &str, destination: &str, more: &[&str]| {
        let label = format!("destination=\"udp://{destination}\"");
        samples.count(&format!("sekiwake_forward_{what}"), &[&[label.as_str()], more].concat())
    };
    for to in ["198.51.100.11:514", "[2001:db8:51::12]:5514"] {
        assert_eq!(count("sent_datagrams_total", to, &[]), sent);
        assert_eq!(count("dropped_datagrams_total", to, &[]), 0);
    }
    // Closed port: the kernel accepts the datagrams, and ICMP errors are counted.
    let closed = format!("{}:9", collector(2));
    assert!(count("errors_total", &closed, &["connection_refused"]) > 0);
    assert_eq!(count("up", &closed, &[]), 0);
    assert_eq!(count("dropped_datagrams_total", "203.0.113.1:514", &["unreachable"]), sent, "{:?}", ledger.losses());
    assert_eq!(count("queue_records", "collector.invalid:514", &[]), sent, "{:?}", ledger.losses());
}
