//! Truncated and damaged packets: no panic, no datagram that is not in the packet, and counters
//! that add up.

use proptest::prelude::*;
use sekiwake_capture::decode::{DecoderSettings, DropReason, LinkType, Outcome};
use sekiwake_testkit::packets::{
    Datagram, Extension, Gre, IPV4, erspan_2, erspan_3, ethernet, geneve, ip_packet, linux_cooked_v1, linux_cooked_v2,
    mpls, null, pppoe_session, tagged, vxlan,
};

use super::{Bench, ipv4_datagram, ipv6_datagram};

/// One packet of every encapsulation that the decoder supports.
fn packets_of_every_kind() -> Vec<(LinkType, Vec<u8>)> {
    let v4 = ipv4_datagram().packet();
    let v6 = Datagram {
        extensions: vec![
            Extension::new(0, 1),
            Extension::new(43, 3),
            Extension::fragment(0, false, 1),
            Extension::new(51, 2),
        ],
        ..ipv6_datagram()
    }
    .packet();
    let options = Datagram { options: vec![1; 12], ..ipv4_datagram() }.packet();
    let over_udp = |port: u16, payload: Vec<u8>| {
        ethernet(&Datagram::new("203.0.113.1:49152", &format!("203.0.113.2:{port}"), payload).packet())
    };
    let over_ip = |protocol: u8, payload: &[u8]| ethernet(&ip_packet("203.0.113.1", "203.0.113.2", protocol, payload));
    let gre = Gre { checksum: true, key: Some(1), sequence: Some(2) };
    vec![
        (LinkType::Ethernet, ethernet(&options)),
        (LinkType::Ethernet, tagged(&ethernet(&v6), &[(0x88a8, 1), (0x8100, 2)])),
        (LinkType::Ethernet, mpls(&[1, 2], &v4)),
        (LinkType::Ethernet, pppoe_session(1, &v6)),
        (LinkType::Ethernet, over_udp(4789, vxlan(1, &ethernet(&v4)))),
        (LinkType::Ethernet, over_udp(6081, geneve(1, IPV4, &[0; 8], &v4))),
        (LinkType::Ethernet, over_ip(4, &ip_packet("198.51.100.1", "198.51.100.2", 41, &v6))),
        (LinkType::Ethernet, over_ip(47, &gre.packet(0x6558, &ethernet(&v6)))),
        (LinkType::Ethernet, over_ip(47, &erspan_2(1, &ethernet(&v4)))),
        (LinkType::Ethernet, over_ip(47, &erspan_3(1, true, &ethernet(&v4)))),
        (LinkType::LinuxCookedV1, linux_cooked_v1(&v4)),
        (LinkType::LinuxCookedV2, linux_cooked_v2(&v6)),
        (LinkType::Null, null([2, 0, 0, 0], &v4)),
        (LinkType::Raw, v6),
    ]
}

#[test]
fn packet_cut_by_the_snapshot_length_counts_as_truncated() {
    for (link, packet) in packets_of_every_kind() {
        let mut bench = Bench::new(DecoderSettings::default());
        assert_eq!(bench.packet(link, 0, &packet), Outcome::Delivered);
        for kept in 0..packet.len() {
            let outcome = bench.cut_packet(link, 0, &packet[..kept], packet.len());
            assert_eq!(outcome, Outcome::Dropped(DropReason::Truncated), "{kept} of {} bytes, {link}", packet.len());
        }
    }
}

#[test]
fn packet_that_ends_early_delivers_nothing() {
    for (link, packet) in packets_of_every_kind() {
        let mut bench = Bench::new(DecoderSettings::default());
        for kept in 0..packet.len() {
            assert!(matches!(bench.packet(link, 0, &packet[..kept]), Outcome::Dropped(_)), "{kept} bytes, {link}");
        }
    }
}

#[test]
fn snapshot_length_past_the_datagram_does_not_matter() {
    let datagram = ipv4_datagram();
    let longer = ip_packet("198.51.100.1", "198.51.100.2", 17, &[&datagram.segment()[..], &[0; 40]].concat());
    let mut bench = Bench::new(DecoderSettings::default());
    let whole = 20 + 8 + datagram.payload.len();
    assert_eq!(bench.cut_packet(LinkType::Raw, 0, &longer[..whole], longer.len()), Outcome::Delivered);
    assert_eq!(bench.found[0].payload, datagram.payload);
}

fn any_link() -> impl Strategy<Value = LinkType> {
    prop::sample::select(vec![
        LinkType::Ethernet,
        LinkType::LinuxCookedV1,
        LinkType::LinuxCookedV2,
        LinkType::Raw,
        LinkType::Null,
    ])
}

/// A packet with some bytes changed, possibly truncated.
fn damaged() -> impl Strategy<Value = (LinkType, Vec<u8>)> {
    let flips = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(packets_of_every_kind()), flips, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |((link, mut packet), flips, end, is_truncated)| {
            for (index, value) in flips {
                let index = index.index(packet.len());
                packet[index] = value;
            }
            if is_truncated {
                packet.truncate(end.index(packet.len()));
            }
            (link, packet)
        },
    )
}

proptest! {
    #[test]
    fn counters_add_up_for_damaged_packets(packets in prop::collection::vec((damaged(), any::<u64>()), 1..40)) {
        let mut bench = Bench::new(DecoderSettings::default());
        for ((link, packet), captured_at_ns) in packets {
            if bench.packet(link, captured_at_ns, &packet) == Outcome::Delivered {
                let longest = bench.found.iter().map(|found| found.payload.len()).max();
                prop_assert!(longest <= Some(65_527));
            }
        }
        bench.finish();
    }

    #[test]
    fn counters_add_up_for_random_bytes(
        packets in prop::collection::vec((any_link(), prop::collection::vec(any::<u8>(), 0..200)), 1..40),
    ) {
        let mut bench = Bench::new(DecoderSettings::default());
        for (link, packet) in packets {
            bench.packet(link, 0, &packet);
        }
        bench.finish();
    }
}
