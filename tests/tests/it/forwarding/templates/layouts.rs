//! Templates that change, are withdrawn, or have the number of another exporter's.

use sekiwake_tests::MIRRORED;

use super::{exporter::THIRD_LAYOUT, *};

#[test]
fn a_collector_that_comes_later_gets_each_exporters_newest_templates() {
    let Some(site) = flow_site("a_collector_that_comes_later_gets_each_exporters_newest_templates") else { return };
    let mut file = DestinationsFile::new(&[uri(0, "")]);
    let services = start(&site, &file);
    let forwarder = services.get(XFLOW);
    let new = |number, version| Exporter::new(&site, number, version, at(MIRRORED, PORT));
    let [mut changing, mut constant] = [1, 2].map(|number| new(number, Version::NetFlow9));
    let mut withdrawing = new(3, Version::Ipfix);

    // The same number with another layout at each.
    changing.template(256, &LAYOUT);
    constant.template(256, &OTHER_LAYOUT);
    withdrawing.template(256, &LAYOUT);
    withdrawing.template(257, &OTHER_LAYOUT);
    changing.flow(256, &LAYOUT, 0);
    constant.flow(256, &OTHER_LAYOUT, 0);
    withdrawing.flow(256, &LAYOUT, 0);
    withdrawing.flow(257, &OTHER_LAYOUT, 1);
    // One changes to a layout of the same length; of the others one is made anew and one is gone.
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
    // Nobody can know how this one is laid out any more.
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
