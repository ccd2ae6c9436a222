//! The loss ledger: every packet is accounted for, and every datagram missing at the collector has
//! been counted.

use std::time::Duration;

use sekiwake_record::Kind;
use sekiwake_testkit::{
    packets::{Datagram, Extension, Gre, ethernet, ethernet_frame, geneve, ip_packet, ipv6_packet, tagged, vxlan},
    process::Signal,
    sink::Options,
};
use sekiwake_tests::{DEVICES_WIRE, MIRRORED, MIRRORED_V6, Samples, collector};

use crate::support::*;

/// Frames without a claimed datagram, some of which pass the kernel filter.
fn garbage() -> Vec<Vec<u8>> {
    let datagram = |port: u16| Datagram::new("198.19.0.9:40000", &format!("203.0.113.7:{port}"), noise(1, 600));
    let outer = |protocol: u8, payload: &[u8]| ip_packet("198.18.0.3", "198.18.0.2", protocol, payload);
    let address = |text: &str| text.parse::<std::net::Ipv6Addr>().unwrap();
    let v6 = |chain: &[Extension], protocol: u8, payload: &[u8]| {
        ipv6_packet(address("2001:db8:18::3"), address("2001:db8:18::2"), chain, protocol, payload)
    };
    let whole = datagram(514).packet();
    let mut udp_too_long = whole.clone();
    udp_too_long[24..26].copy_from_slice(&1_400_u16.to_be_bytes());
    let mut udp_too_short = whole.clone();
    udp_too_short[24..26].copy_from_slice(&7_u16.to_be_bytes());
    let large = datagram(514).identified(4_711);
    let fragments = large.fragments(200);
    let odd = large.clone().identified(4_712).fragment(8, true, &[1; 13]);
    let overlapping = large.clone().identified(4_713);
    let extended = |chain: &[Extension]| v6(chain, 17, &Datagram::new("[::1]:1", "[::1]:53", "x").segment());
    vec![
        // Rejected by the kernel filter.
        ethernet_frame(0x0806, &[0; 46]),
        ethernet_frame(0x88cc, &[2; 60]),
        ethernet(&outer(6, &[0; 40])),
        ethernet(&outer(132, &[0; 40])),
        ethernet(&datagram(53).packet()),
        ethernet(&[0x45]),
        ethernet_frame(0x0800, &[]),
        // Truncated and contradictory headers to a claimed port.
        ethernet(&whole[..40]),
        ethernet(&udp_too_long),
        ethernet(&udp_too_short),
        // Fragments: with a gap, duplicate, with an odd length, overlapping with different
        // contents.
        ethernet(&fragments[0]),
        ethernet(&fragments[2]),
        ethernet(&fragments[2]),
        ethernet(&odd),
        ethernet(&overlapping.fragment(8, true, &[1; 64])),
        ethernet(&overlapping.fragment(40, true, &[2; 64])),
        // Extension headers before another protocol than UDP, and before a datagram to another
        // port.
        ethernet(&v6(&[Extension::new(0, 1)], 58, &[128, 0, 0, 0])),
        ethernet(&v6(&[Extension::new(60, 1)], 59, &[])),
        ethernet(&extended(&[Extension::new(0, 1)])),
        ethernet(&v6(&[Extension { protocol: 0, rest: vec![200, 1, 2, 3, 4, 5, 6] }], 17, &[0; 8])),
        // Tunnels with TCP, with other ports, with unknown versions, and empty ones.
        ethernet(&outer(47, &Gre::default().packet(0x0800, &outer(6, &[0; 40])))),
        ethernet(&outer(47, &Gre::default().packet(0x0800, &datagram(53).packet()))),
        ethernet(&outer(47, &[0x30, 1, 0x88, 0x0b, 0, 0, 0, 0])),
        ethernet(&outer(47, &[])),
        ethernet(&outer(4, &[0xff; 3])),
        ethernet(&outer(41, &[0x00; 60])),
        ethernet(&Datagram::new("198.18.0.3:50000", "198.18.0.2:4789", "no tunnel").packet()),
        ethernet(&Datagram::new("198.18.0.3:50000", "198.18.0.2:4789", vxlan(1, &[0; 9])).packet()),
        ethernet(&Datagram::new("198.18.0.3:50000", "198.18.0.2:6081", geneve(1, 0x0806, &[], &[0; 30])).packet()),
        tagged(&ethernet(&outer(47, &[0x10; 2])), &[(0x8100, 3)]),
    ]
}

#[test]
fn ledger_balances_over_traffic_and_garbage() {
    let Some(site) = site() else { return };
    let ports = [514, 2055, 162];
    let sinks = [0, 1].map(|number| site.sink(&ports.map(|port| at(collector(number), port)), Options::counts()));
    let [syslog, xflow, trap] =
        ports.map(|port| format!("udp://{}:{port} udp://{}:{port}?gso=false", collector(0), collector(1)));
    let services = site.start(
        &ALL,
        &[
            ("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog),
            ("SEKIWAKE_XFLOW_DESTINATIONS", &xflow),
            ("SEKIWAKE_TRAP_DESTINATIONS", &trap),
        ],
    );
    let common = "--protocol all --size 120-4000 --rate 2000 --sources 16 --duration 2s";
    let mut senders = [
        site.start_sender(&format!("--to {MIRRORED} --from 198.19.0.0/16 {common}")),
        site.start_sender(&format!("--to {MIRRORED_V6} --from 2001:db8:18:1::/64 {common}")),
        // To an unclaimed port.
        site.start_sender(&format!("--to {MIRRORED}:1514 --from 198.19.0.0/16 --rate 500 --duration 2s")),
    ];
    let frames = garbage();
    for _ in 0..20 {
        site.devices.inject(DEVICES_WIRE, &frames).unwrap();
    }
    let sent: Vec<u64> = senders.iter_mut().map(sent_by).collect();
    let wanted = sent[0] + sent[1];
    for sink in &sinks {
        let _ = sink.wait_for(wanted, LONG);
    }
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    for sink in sinks {
        assert_eq!(sink.finish().received, wanted, "{:?}", ledger.losses());
    }
    let captured: u64 = Kind::ALL.iter().map(|kind| ledger.flow(*kind).captured).sum();
    assert_eq!(captured, wanted);
    for kind in Kind::ALL {
        let flow = ledger.flow(kind);
        assert_eq!(flow.sent, flow.captured * 2, "{kind}: {flow}");
        assert_eq!((flow.dropped, flow.lost), (0, 0), "{kind}: {flow}");
    }
    // Garbage was counted by reason, including the two pending fragments. Each reason has a frame
    // in each of the 20 rounds, of which a busy machine may lose some between the ends of the veth
    // pair.
    for reason in [
        "not_udp",
        "truncated",
        "bad_length",
        "unsupported_encapsulation",
        "fragment_duplicate",
        "fragment_invalid",
        "fragment_overlap",
    ] {
        let label = format!("reason=\"{reason}\"");
        assert!(
            ledger.capture.count("sekiwake_capture_dropped_packets_total", &[&label]) >= 10,
            "{reason}: {:?}",
            ledger.losses()
        );
    }
    assert!(ledger.capture.count("sekiwake_capture_pending_fragments", &[]) >= 2, "{:?}", ledger.losses());
    // Four of the frames contain a datagram to another port: one after an extension header, one in
    // a tunnel, and two to a tunnel's port without a tunnel. The kernel filter rejects the sender's
    // port 1514 and the plain port 53.
    let unclaimed = ledger.capture.count("sekiwake_capture_unclaimed_datagrams_total", &["reason=\"other_port\""]);
    // On a busy machine a frame may be lost, uncounted, between the ends of the veth pair.
    assert!((20 * 4 - 4..=20 * 4).contains(&unclaimed), "{unclaimed}: {:?}", ledger.losses());
}

#[test]
fn overrun_of_the_capture_ring_is_counted_exactly() {
    let Some(site) = site() else { return };
    // Multicast reports pass the kernel filter because of their extension header, and the kernel
    // would count them as drops.
    site.disable_ipv6_on_the_wire();
    let sink = site.sink(&[at(collector(0), 514)], numbered());
    let services =
        site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &syslog_to(0)), ("SEKIWAKE_CAPTURE_RING", "1MiB")]);
    let capture = services.get(CAPTURE);
    let dropped_before = site.dropped_by_wire().unwrap();
    capture.process.signal(Signal::STOP).unwrap();
    let send = |rate: u64| {
        site.send(&format!("--to {MIRRORED} --from 198.19.0.0/16 --sources 8 --size 1000 --rate {rate} --count 8000"))
    };
    let mut sent = send(20_000);
    capture.process.signal(Signal::CONT).unwrap();
    // Afterwards everything is forwarded again.
    sink.wait_for(1, LONG).unwrap();
    sink.wait_for_silence(Duration::from_millis(300), LONG).unwrap();
    let after_overrun = sink.received();
    sent += send(4_000);
    let on_the_wire = sent - (site.dropped_by_wire().unwrap() - dropped_before);
    let _ = sink.wait_for(after_overrun + 8_000, LONG);
    let lost = |samples: &Samples| samples.count("sekiwake_capture_dropped_packets_total", &["reason=\"kernel\""]);
    let claimed = |samples: &Samples| samples.count("sekiwake_capture_claimed_datagrams_total", &[]);
    capture
        .wait_for_metrics("the kernel's drop counter", LONG, |samples| claimed(samples) + lost(samples) >= on_the_wire)
        .unwrap();
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    let report = sink.finish();
    let lost = lost(&ledger.capture);
    assert!(lost > 0, "a ring of 1 MiB cannot hold 8 MB");
    assert_eq!(claimed(&ledger.capture) + lost, on_the_wire);
    assert_eq!(report.received, claimed(&ledger.capture));
    // A busy machine may overrun so small a ring again: what counts is that it is read again.
    assert!(report.received > after_overrun + 4_000, "{} after {after_overrun}", report.received);
    assert_eq!(report.sequence.unreadable, 0);
}
