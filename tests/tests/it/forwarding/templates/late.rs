//! Collectors that are added later, and collectors that restart.

use std::{
    thread,
    time::{Duration, Instant},
};

use sekiwake_testkit::sink::Options;
use sekiwake_tests::{HOST, MIRRORED};

use super::*;

/// Flows of each exporter before and after the change.
const FLOWS: u64 = 20;

#[test]
fn added_collector_decodes_next_data() {
    check_added("");
}

#[test]
fn added_collector_decodes_next_data_of_spoofed_exporters() {
    check_added("?spoof=true");
}

fn check_added(options: &str) {
    let Some(site) = flow_site() else { return };
    let early = site.sink(&[at(collector(0), PORT)], Options::counts());
    let mut file = DestinationsFile::new(&[uri(0, "")]);
    let services = start(&site, &file);
    let forwarder = services.get(XFLOW);
    // They send to the host, where a directly fed collector is started later too.
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

    // The directly fed collector received the same, and decoded only the flow after a template.
    exporters[0].template(256, &LAYOUT);
    exporters[0].flow(256, &LAYOUT, 300);
    let flows = decoded_by(direct);
    assert_eq!(flows, expected(&names[0], [300]), "{:?}", summary(&flows));
    finish(services);
}

#[test]
fn killed_nfcapd_decodes_soon_after_its_restart() {
    check_back::<Nfcapd>("", |killed| killed.kill().unwrap());
}

#[test]
fn restarted_nfacctd_decodes_soon() {
    check_back::<Nfacctd>("", |stopped| drop(stopped.finish().unwrap()));
}

#[test]
fn restarted_ra_decodes_soon() {
    check_back::<Ra>("", |killed| killed.kill().unwrap());
}

#[test]
fn template_refresh_serves_restarted_collector_when_spoofing() {
    check_back::<Nfcapd>("?spoof=true&template_refresh=1s", |killed| killed.kill().unwrap());
}

/// A collector stops, is detected as down, and returns at the same address. The template was sent
/// once, at the start.
fn check_back<R: Flows>(options: &str, end: impl FnOnce(Collector<'_, R>)) {
    let Some(site) = flow_site() else { return };
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
        // The exporter's rate.
        thread::sleep(Duration::from_millis(20));
        next
    };
    while send(&mut exporter) < 10 {}
    wait_until_forwarded(forwarder, 1, exporter.sent);
    end(first);
    // ICMP errors for spoofed datagrams go to the devices.
    let sees_icmp_errors = !options.contains("spoof");
    let stopped_at = Instant::now();
    wait_for("the collector to be down", LONG, || {
        send(&mut exporter);
        let up = forwarder.metrics().unwrap().sum("sekiwake_forward_up", &[]);
        if sees_icmp_errors { up == 0.0 } else { stopped_at.elapsed() >= Duration::from_secs(1) }
    })
    .unwrap();

    let second = Collector::<R>::start(&site.collectors, place).unwrap();
    let templates = || forwarder.metrics().unwrap().count("sekiwake_forward_templates_sent_total", &[]);
    let templates_before = templates();
    let first_after = send(&mut exporter);
    wait_for("templates for the restarted collector", LONG, || {
        send(&mut exporter);
        templates() > templates_before
    })
    .unwrap();
    let mut last = 0;
    for _ in 0..FLOWS {
        last = send(&mut exporter) - 1;
    }
    wait_until_forwarded(forwarder, 1, exporter.sent);
    services.stop().unwrap();
    let flows = decoded_by(second);
    // Everything from the first template on, which arrived before the last flows.
    let decoded: Vec<u64> = flows.iter().map(|flow| flow.port - BASE_PORT).collect();
    let from = *decoded.first().expect("decoded flows");
    println!("flow {from} is the first that was decoded, of {first_after} to {last}");
    assert!(from <= last + 1 - FLOWS, "{from} of {last}");
    assert_eq!(decoded, (from..=last).collect::<Vec<_>>());
    assert!(flows.iter().all(|flow| flow.bytes - BASE_BYTES == flow.port - BASE_PORT));
}
