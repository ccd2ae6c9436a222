//! What exporters counted and did not come is told apart from what we lost.

use std::net::Ipv4Addr;

use sekiwake_testkit::sink::Options;
use sekiwake_tests::{FIRST_DEVICE, MIRRORED};

use super::*;

/// A NetFlow v5 datagram: so many flows, of which the first has this number.
fn netflow5(first: u32, count: u16) -> Vec<u8> {
    let head = [&[0, 5][..], &count.to_be_bytes(), &[0; 12], &first.to_be_bytes(), &[0; 4]].concat();
    [head, vec![7; 48 * usize::from(count)]].concat()
}

/// An sFlow v5 datagram without samples (sFlow version 5, §5).
fn sflow(agent: Ipv4Addr, number: u32) -> Vec<u8> {
    let words = [5, 1, agent.into(), 0, number, 1_000, 0_u32];
    words.map(u32::to_be_bytes).concat()
}

#[test]
fn what_exporters_sent_and_did_not_come_is_no_loss_of_ours() {
    let Some(site) = site("what_exporters_sent_and_did_not_come_is_no_loss_of_ours") else { return };
    let sink = site.sink(&[at(collector(0), PORT)], Options::counts());
    let services = start(&site, &DestinationsFile::new(&[uri(0, "")]));
    let mut netflow9 = Exporter::new(&site, 1, Version::NetFlow9, at(MIRRORED, PORT));
    let mut ipfix = Exporter::new(&site, 2, Version::Ipfix, at(MIRRORED, PORT));
    for exporter in [&mut netflow9, &mut ipfix] {
        exporter.template(256, &LAYOUT);
    }
    for (number, skipped) in [(0, [0, 0]), (1, [3, 5]), (2, [0, 0]), (3, [4, 70])] {
        for (exporter, units) in [&mut netflow9, &mut ipfix].into_iter().zip(skipped) {
            exporter.skip(units);
            exporter.flow(256, &LAYOUT, number);
        }
    }
    let device = |number| Ipv4Addr::from(u32::from(FIRST_DEVICE) + number);
    // The third one comes after the fourth.
    let of_v5 = [(100, 10), (110, 10), (140, 10), (130, 10), (151, 1)].map(|(first, count)| netflow5(first, count));
    site.send_payloads(at(device(3), 0), at(MIRRORED, PORT), &of_v5);
    let of_sflow = [1, 2, 9, 10].map(|number| sflow(device(4), number));
    site.send_payloads(at(device(4), 0), at(MIRRORED, PORT), &of_sflow);
    let sent = netflow9.sent + ipfix.sent + 9;
    sink.wait_for(sent, LONG).unwrap();
    let ledger = closed_books(&services);
    services.stop().unwrap();
    assert_eq!(sink.finish().received, sent);
    let count = |what: &str, format: &str| {
        let label = format!("format=\"{format}\"");
        ledger.forwarders[1].count(&format!("sekiwake_exporter_{what}_total"), &[&label])
    };
    let found = ["netflow9", "ipfix", "netflow5", "sflow5"]
        .map(|format| (format, count("missing", format), count("late", format), count("gaps", format)));
    // Datagrams, data records, flows less those that came late, datagrams.
    let expected = [("netflow9", 7, 0, 2), ("ipfix", 75, 0, 2), ("netflow5", 21, 10, 2), ("sflow5", 6, 0, 1)];
    assert_eq!(found, expected);
    assert_eq!(ledger.forwarders[1].count("sekiwake_bus_lost_records_total", &[]), 0);
    assert_eq!(ledger.losses(), Vec::<String>::new());
}
