//! Gaps in exporters' sequences are counted separately from Sekiwake's own losses.

use std::net::Ipv4Addr;

use sekiwake_testkit::sink::Options;
use sekiwake_tests::{FIRST_DEVICE, MIRRORED};

use super::*;

/// Datagrams in order behind the gaps, which count when as many have followed as are missing.
const IN_ORDER: u32 = 80;

/// A NetFlow v5 datagram with `count` flows from number `first` on.
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
fn exporter_gaps_are_not_counted_as_own_loss() {
    let Some(site) = site() else { return };
    let sink = site.sink(&[at(collector(0), PORT)], Options::counts());
    let services = start(&site, &DestinationsFile::new(&[uri(0, "")]));
    let mut netflow9 = Exporter::new(&site, 1, Version::NetFlow9, at(MIRRORED, PORT));
    let mut ipfix = Exporter::new(&site, 2, Version::Ipfix, at(MIRRORED, PORT));
    for exporter in [&mut netflow9, &mut ipfix] {
        exporter.template(256, &LAYOUT);
    }
    let skipped = [[0, 0], [3, 5], [0, 0], [4, 70]].into_iter().chain([[0, 0]; IN_ORDER as usize]);
    for (number, skipped) in (0..).zip(skipped) {
        for (exporter, units) in [&mut netflow9, &mut ipfix].into_iter().zip(skipped) {
            exporter.skip(units);
            exporter.flow(256, &LAYOUT, number);
        }
    }
    let device = |number| Ipv4Addr::from(u32::from(FIRST_DEVICE) + number);
    // The third and fourth are swapped.
    let netflow5s = [(100, 10), (110, 10), (140, 10), (130, 10), (151, 1)];
    let in_order = (152..152 + IN_ORDER).map(|first| (first, 1));
    let netflow5s: Vec<Vec<u8>> =
        netflow5s.into_iter().chain(in_order).map(|(first, count)| netflow5(first, count)).collect();
    site.send_payloads(at(device(3), 0), at(MIRRORED, PORT), &netflow5s);
    let sflows: Vec<Vec<u8>> =
        [1, 2].into_iter().chain(9..11 + IN_ORDER).map(|number| sflow(device(4), number)).collect();
    site.send_payloads(at(device(4), 0), at(MIRRORED, PORT), &sflows);
    let sent = netflow9.sent + ipfix.sent + (netflow5s.len() + sflows.len()) as u64;
    sink.wait_for(sent, LONG).unwrap();
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    assert_eq!(sink.finish().received, sent);
    let count = |what: &str, format: &str| {
        let label = format!("format=\"{format}\"");
        ledger.forwarders[1].count(&format!("sekiwake_exporter_{what}_total"), &[&label])
    };
    let uncountable = ["netflow9", "ipfix", "netflow5", "sflow5"].map(|format| count("uncountable_datagrams", format));
    assert_eq!(uncountable, [0; 4]);
    let found = ["netflow9", "ipfix", "netflow5", "sflow5"]
        .map(|format| (format, count("missing", format), count("late", format), count("gaps", format)));
    // Counted in datagrams, data records, flows (without late ones), datagrams.
    let expected = [("netflow9", 7, 0, 2), ("ipfix", 75, 0, 2), ("netflow5", 21, 10, 2), ("sflow5", 6, 0, 1)];
    assert_eq!(found, expected);
    assert_eq!(ledger.forwarders[1].count("sekiwake_bus_lost_records_total", &[]), 0);
    assert_eq!(ledger.losses(), Vec::<String>::new());
}

#[test]
fn implausible_sequences_are_not_countable() {
    let Some(site) = site() else { return };
    let sink = site.sink(&[at(collector(0), PORT)], Options::counts());
    let services = start(&site, &DestinationsFile::new(&[uri(0, "")]));
    // A NetFlow v9 exporter that counts records, and two processes behind one port.
    let device = |number| Ipv4Addr::from(u32::from(FIRST_DEVICE) + number);
    let records =
        |first: u32| [&[0, 9, 0, 5][..], &[1_000, 1_700_000_000, first, 7].map(u32::to_be_bytes).concat()].concat();
    let counts_records: Vec<Vec<u8>> = (0..40).map(|number| records(5 * number)).collect();
    let shares_id: Vec<Vec<u8>> =
        (0..20).flat_map(|number| [sflow(device(2), number), sflow(device(2), 60_000 + number)]).collect();
    site.send_payloads(at(device(1), 0), at(MIRRORED, PORT), &counts_records);
    site.send_payloads(at(device(2), 0), at(MIRRORED, PORT), &shares_id);
    sink.wait_for(80, LONG).unwrap();
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    for format in ["netflow9", "sflow5"] {
        let label = format!("format=\"{format}\"");
        let count = |what: &str| ledger.forwarders[1].count(&format!("sekiwake_exporter_{what}_total"), &[&label]);
        assert_eq!(["missing", "late", "gaps"].map(count), [0; 3], "{format}");
        assert!(count("uncountable_datagrams") > 30, "{format}: {}", count("uncountable_datagrams"));
    }
}
