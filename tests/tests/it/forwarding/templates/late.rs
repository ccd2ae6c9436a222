//! Collectors that come later, and collectors that come back.

use std::{
    thread,
    time::{Duration, Instant},
};

use sekiwake_testkit::sink::Options;
use sekiwake_tests::{HOST, MIRRORED};

use super::*;

/// Data of each exporter before and after.
const FLOWS: u64 = 20;

#[test]
fn collectors_that_are_added_later_decode_the_very_next_data() {
    check_added("collectors_that_are_added_later_decode_the_very_next_data", "");
}

#[test]
fn collectors_that_are_added_later_decode_the_very_next_data_of_exporters_whose_addresses_are_kept() {
    let test = "collectors_that_are_added_later_decode_the_very_next_data_of_exporters_whose_addresses_are_kept";
    check_added(test, "?spoof=true");
}

fn check_added(test: &str, options: &str) {
    let Some(site) = flow_site(test) else { return };
    let early = site.sink(&[at(collector(0), PORT)], Options::counts());
    let mut file = DestinationsFile::new(&[uri(0, "")]);
    let services = start(&site, &file);
    let forwarder = services.get(XFLOW);
    // To the host, where a collector that is fed directly will come later as well.
    let mut exporters = [Version::NetFlow9, Version::Ipfix]
        .into_iter()
        .zip(1..)
        .map(|(version, number)| Exporter::new(&site, number, version, at(HOST, PORT)))
        .collect::<Vec<_>>();
    for exporter in &mut exporters {
        exporter.template(256, &LAYOUT);
        (0..FLOWS).for_each(|number| exporter.flow(256, &LAYOUT, number));
    }
    wait_until_forwarded(forwarder, 0, 2 * (1 + FLOWS));
    early.wait_for(2 * (1 + FLOWS), LONG).unwrap();

    let direct = Collector::<Nfcapd>::start(&site.host, at(HOST, PORT)).unwrap();
    let nfcapd = Collector::<Nfcapd>::start(&site.collectors, at(collector(1), PORT)).unwrap();
    let nfacctd = Collector::<Nfacctd>::start(&site.collectors, at(collector(2), PORT)).unwrap();
    file.add(forwarder, &[uri(1, options), uri(2, options)]);
    for (exporter, first) in exporters.iter_mut().zip([100, 200]) {
        (first..first + FLOWS).for_each(|number| exporter.flow(256, &LAYOUT, number));
    }
    wait_until_forwarded(forwarder, 1, 2 * FLOWS);
    wait_until_forwarded(forwarder, 2, 2 * FLOWS);
    let names: Vec<String> = exporters.iter().map(Exporter::name).collect();
    let seen = |exporter: &str| if options.is_empty() { "198.51.100.1".to_owned() } else { exporter.to_owned() };
    let all: Vec<Decoded> = sorted(
        names.iter().zip([100, 200]).flat_map(|(name, first)| expected(&seen(name), first..first + FLOWS)).collect(),
    );
    for (name, flows) in [("nfcapd", decoded_by(nfcapd)), ("nfacctd", decoded_by(nfacctd))] {
        assert_eq!(flows, all, "{name}: {:?}", summary(&flows));
    }

    // The one that is fed directly has heard the same, and has decoded nothing but what a template has come before.
    exporters[0].template(256, &LAYOUT);
    exporters[0].flow(256, &LAYOUT, 300);
    let flows = decoded_by(direct);
    assert_eq!(flows, expected(&names[0], [300]), "{:?}", summary(&flows));
    finish(services);
}

#[test]
fn an_nfcapd_that_was_killed_and_is_back_decodes_within_two_seconds() {
    let test = "an_nfcapd_that_was_killed_and_is_back_decodes_within_two_seconds";
    check_back::<Nfcapd>(test, "", |killed| killed.kill().unwrap());
}

#[test]
fn an_nfacctd_that_was_restarted_decodes_within_two_seconds() {
    let test = "an_nfacctd_that_was_restarted_decodes_within_two_seconds";
    check_back::<Nfacctd>(test, "", |stopped| drop(stopped.finish().unwrap()));
}

#[test]
fn where_refusals_go_to_the_devices_a_refresh_serves_a_collector_that_is_back() {
    let test = "where_refusals_go_to_the_devices_a_refresh_serves_a_collector_that_is_back";
    check_back::<Nfcapd>(test, "?spoof=true&template_refresh=1s", |killed| killed.kill().unwrap());
}

/// A collector ends, is missed, and comes back at the same place; templates have passed once, before all that.
fn check_back<R: Flows>(test: &str, options: &str, end: impl FnOnce(Collector<'_, R>)) {
    let Some(site) = flow_site(test) else { return };
    let place = at(collector(1), PORT);
    let first = Collector::<R>::start(&site.collectors, place).unwrap();
    let file = DestinationsFile::new(&[uri(1, options)]);
    let services = start(&site, &file);
    let forwarder = services.get(XFLOW);
    let mut exporter = Exporter::new(&site, 1, Version::NetFlow9, at(MIRRORED, PORT));
    exporter.template(256, &LAYOUT);
    let mut next = 0;
    let mut send = |exporter: &mut Exporter| {
        exporter.flow(256, &LAYOUT, next);
        next += 1;
        // The pace of the exporter.
        thread::sleep(Duration::from_millis(20));
        next
    };
    while send(&mut exporter) < 10 {}
    wait_until_forwarded(forwarder, 1, exporter.sent);
    end(first);
    let hears_refusals = !options.contains("spoof");
    let missed_since = Instant::now();
    wait_for("the collector to be missed", LONG, || {
        send(&mut exporter);
        let up = forwarder.metrics().unwrap().sum("sekiwake_forward_up", &[]);
        if hears_refusals { up == 0.0 } else { missed_since.elapsed() >= Duration::from_secs(1) }
    })
    .unwrap();

    let second = Collector::<R>::start(&site.collectors, place).unwrap();
    let back = Instant::now();
    let mut sent_after = BTreeMap::new();
    while back.elapsed() < Duration::from_secs(4) {
        let sent = back.elapsed();
        sent_after.insert(send(&mut exporter) - 1, sent);
    }
    wait_until_forwarded(forwarder, 1, exporter.sent);
    services.stop().unwrap();
    let flows = decoded_by(second);
    let (&last, _) = sent_after.last_key_value().unwrap();
    let decoded = flows.iter().map(|flow| flow.port - BASE_PORT);
    let first_decoded = decoded.clone().find(|number| sent_after.contains_key(number));
    let first_decoded = first_decoded.unwrap_or_else(|| panic!("nothing of {} flows", sent_after.len()));
    println!("the first that was decoded was sent {:?} after the collector was back", sent_after[&first_decoded]);
    assert!(sent_after[&first_decoded] <= Duration::from_secs(2));
    // From then on, everything.
    let from = flows[0].port - BASE_PORT;
    assert_eq!(decoded.collect::<Vec<_>>(), (from..=last).collect::<Vec<_>>());
    assert!(flows.iter().all(|flow| flow.bytes - BASE_BYTES == flow.port - BASE_PORT));
}
