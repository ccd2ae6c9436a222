//! Templates that change, are withdrawn, or share their number with another exporter's, and the
//! data of options.

use sekiwake_testkit::sink::Options;
use sekiwake_tests::MIRRORED;

use super::{exporter::THIRD_LAYOUT, *};

#[test]
fn added_collector_gets_each_exporters_newest_templates() {
    let Some(site) = flow_site() else { return };
    let mut file = DestinationsFile::new(&[uri(0, "")]);
    let services = start(&site, &file);
    let forwarder = services.get(XFLOW);
    let new = |number, version| Exporter::new(&site, number, version, at(MIRRORED, PORT));
    let [mut changing, mut constant] = [1, 2].map(|number| new(number, Version::NetFlow9));
    let mut withdrawing = new(3, Version::Ipfix);

    // Exporters use the same number for different layouts.
    changing.template(256, &LAYOUT);
    constant.template(256, &OTHER_LAYOUT);
    withdrawing.template(256, &LAYOUT);
    withdrawing.template(257, &OTHER_LAYOUT);
    changing.flow(256, &LAYOUT, 0);
    constant.flow(256, &OTHER_LAYOUT, 0);
    withdrawing.flow(256, &LAYOUT, 0);
    withdrawing.flow(257, &OTHER_LAYOUT, 1);
    // One exporter changes to a layout of the same length; another redefines one template and
    // withdraws one.
    changing.template(256, &THIRD_LAYOUT);
    withdrawing.withdraw(256);
    withdrawing.withdraw(257);
    withdrawing.template(256, &OTHER_LAYOUT);
    changing.flow(256, &THIRD_LAYOUT, 1);
    wait_until_forwarded(forwarder, 0, changing.sent + constant.sent + withdrawing.sent);

    let nfcapd = Collector::<Nfcapd>::start(&site.collectors, at(collector(1), PORT)).unwrap();
    let nfacctd = Collector::<Nfacctd>::start(&site.collectors, at(collector(2), PORT)).unwrap();
    file.add(forwarder, &[uri(1, "?spoof=true"), uri(2, "?spoof=true")]);
    let numbers = 100..120;
    for number in numbers.clone() {
        changing.flow(256, &THIRD_LAYOUT, number);
        constant.flow(256, &OTHER_LAYOUT, number);
        withdrawing.flow(256, &OTHER_LAYOUT, number);
    }
    // Its template is withdrawn, so no collector can decode it.
    withdrawing.flow(257, &OTHER_LAYOUT, 500);
    for number in [1, 2] {
        wait_until_forwarded(forwarder, number, 3 * 20 + 1);
    }
    let exporters = [&changing, &constant, &withdrawing];
    let all: Vec<Decoded> = exporters.iter().flat_map(|exporter| expected(&exporter.name(), numbers.clone())).collect();
    for (name, flows) in [("nfcapd", decoded_by(nfcapd)), ("nfacctd", decoded_by(nfacctd))] {
        assert_eq!(flows, sorted(all.clone()), "{name}: {:?}", summary(&flows));
    }
    finish(services);
}

#[test]
fn added_collector_gets_templates_of_the_process_that_sends() {
    let Some(site) = flow_site() else { return };
    let mut file = DestinationsFile::new(&[uri(0, "")]);
    let services = start(&site, &file);
    let forwarder = services.get(XFLOW);
    // Two processes of one device: only their ports differ.
    for version in [Version::NetFlow9, Version::Ipfix] {
        let number = if version == Version::Ipfix { 2 } else { 1 };
        let [mut one, mut other] = [0, 0].map(|_| Exporter::new(&site, number, version, at(MIRRORED, PORT)));
        let sent = forwarded(forwarder, 0);
        one.template(256, &LAYOUT);
        other.template(256, &THIRD_LAYOUT);
        wait_until_forwarded(forwarder, 0, sent + 2);
        let added = number as u8;
        let nfcapd = Collector::<Nfcapd>::start(&site.collectors, at(collector(added), PORT)).unwrap();
        file.add(forwarder, &[uri(added, "?spoof=true")]);
        (0..20).for_each(|number| one.flow(256, &LAYOUT, number));
        wait_until_forwarded(forwarder, added, 20);
        let flows = decoded_by(nfcapd);
        assert_eq!(flows, expected(&one.name(), 0..20), "{version:?}: {:?}", summary(&flows));
    }
    finish(services);
}

#[test]
fn added_collector_gets_the_sampling_rate() {
    let Some(site) = site() else { return };
    disable_reverse_path_filter(&site);
    let mut file = DestinationsFile::new(&[uri(0, "")]);
    let services = start(&site, &file);
    let forwarder = services.get(XFLOW);
    let mut exporter = Exporter::new(&site, 1, Version::NetFlow9, at(MIRRORED, PORT));
    exporter.template(256, &LAYOUT);
    exporter.sampling(257, 1000);
    wait_until_forwarded(forwarder, 0, exporter.sent);
    // nfcapd 1.7.1 ignores sampling rates, so the FlowSets are compared.
    let sink = site.sink(&[at(collector(1), PORT)], Options::counts().payloads());
    file.add(forwarder, &[uri(1, "?spoof=true")]);
    exporter.flow(256, &LAYOUT, 0);
    sink.wait_for(2, LONG).unwrap();
    let [ahead, flow] = &sink.finish().payloads[..] else { panic!("two datagrams were expected") };
    assert_eq!((ahead.source, ahead.source.ip()), (flow.source, exporter.address));
    assert_eq!(flow_sets(&flow.payload), [256]);
    assert_eq!(flow_sets(&ahead.payload), [0, 1, 257]);
    assert!(ahead.payload.ends_with(&[0, 0, 0, 0, 0, 0, 3, 232, 1, 0, 0, 0]), "{:?}", ahead.payload);
    finish(services);
}

/// The identifiers of the FlowSets in a NetFlow v9 datagram (RFC 3954 §5).
fn flow_sets(datagram: &[u8]) -> Vec<u16> {
    let word = |at: usize| u16::from_be_bytes([datagram[at], datagram[at + 1]]);
    let mut at = 20;
    let mut ids = Vec::new();
    while at < datagram.len() {
        ids.push(word(at));
        at += usize::from(word(at + 2));
    }
    ids
}
