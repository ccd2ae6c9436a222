//! Tunnels, single and nested.

use sekiwake_capture::decode::{DecoderSettings, DropReason, LinkType, MAX_TUNNELS, Outcome};
use sekiwake_testkit::packets::{
    Datagram, Gre, IPV4, IPV6, TRANSPARENT_ETHERNET, eoip, erspan_1, erspan_2, erspan_3, ether_type_of, ethernet,
    geneve, ip_packet, mpls, snap, tagged, tzsp, vxlan, vxlan_gpe, with_tag,
};

use super::{Bench, both_versions, drop_reason, finds, ipv4_datagram};

const IPIP: u8 = 4;
const IPV6_IN_IP: u8 = 41;
const GRE: u8 = 47;

/// Outer packets of both IP versions.
fn outer(protocol: u8, payload: &[u8]) -> [Vec<u8>; 2] {
    [
        ip_packet("203.0.113.1", "203.0.113.2", protocol, payload),
        ip_packet("2001:db8:ffff::1", "2001:db8:ffff::2", protocol, payload),
    ]
}

/// Outer datagrams of both IP versions.
fn over_udp(port: u16, payload: &[u8]) -> [Vec<u8>; 2] {
    [
        Datagram::new("203.0.113.1:49152", &format!("203.0.113.2:{port}"), payload).packet(),
        Datagram::new("[2001:db8:ffff::1]:49152", &format!("[2001:db8:ffff::2]:{port}"), payload).packet(),
    ]
}

#[track_caller]
fn finds_inner(packets: impl IntoIterator<Item = Vec<u8>>, inner: &Datagram) {
    for packet in packets {
        assert!(finds(LinkType::Ethernet, &ethernet(&packet), inner).decapsulated);
    }
}

#[test]
fn ip_in_ip_gives_the_inner_datagram() {
    let [inner_v4, inner_v6] = both_versions();
    finds_inner(outer(IPIP, &inner_v4.packet()), &inner_v4);
    finds_inner(outer(IPV6_IN_IP, &inner_v6.packet()), &inner_v6);
}

#[test]
fn gre_with_any_optional_fields_gives_the_inner_datagram() {
    for inner in both_versions() {
        for checksum in [false, true] {
            for key in [None, Some(1)] {
                for sequence in [None, Some(2)] {
                    let gre = Gre { checksum, key, sequence };
                    let packet = inner.packet();
                    finds_inner(outer(GRE, &gre.packet(ether_type_of(&packet), &packet)), &inner);
                    let frame = tagged(&ethernet(&packet), &[(0x8100, 12)]);
                    finds_inner(outer(GRE, &gre.packet(TRANSPARENT_ETHERNET, &frame)), &inner);
                }
            }
        }
        let labelled = mpls(&[16, 17], &inner.packet());
        finds_inner(outer(GRE, &Gre::default().packet(0x8847, &labelled[14..])), &inner);
    }
}

#[test]
fn erspan_types_1_to_3_give_the_mirrored_datagram() {
    for inner in both_versions() {
        let frame = ethernet(&inner.packet());
        for packet in [erspan_1(&frame), erspan_2(5, &frame), erspan_3(5, false, &frame), erspan_3(5, true, &frame)] {
            finds_inner(outer(GRE, &packet), &inner);
        }
    }
}

#[test]
fn vxlan_and_geneve_give_the_inner_datagram() {
    for inner in both_versions() {
        let packet = inner.packet();
        let frame = ethernet(&packet);
        finds_inner(over_udp(4789, &vxlan(77, &frame)), &inner);
        finds_inner(over_udp(8472, &vxlan(77, &frame)), &inner);
        finds_inner(over_udp(4790, &vxlan_gpe(77, 3, &frame)), &inner);
        let next_protocol = if packet[0] >> 4 == 6 { 2 } else { 1 };
        finds_inner(over_udp(4790, &vxlan_gpe(77, next_protocol, &packet)), &inner);
        for options in [&[][..], &[0; 4], &[0; 252]] {
            finds_inner(over_udp(6081, &geneve(77, TRANSPARENT_ETHERNET, options, &frame)), &inner);
            finds_inner(over_udp(6081, &geneve(77, ether_type_of(&packet), options, &packet)), &inner);
        }
    }
}

#[test]
fn tzsp_and_eoip_give_the_mirrored_datagram() {
    for inner in both_versions() {
        let frame = ethernet(&inner.packet());
        for fields in [&[][..], &[0, 0, 0], &[10, 1, 200, 41, 2, 5, 220, 0]] {
            finds_inner(over_udp(37008, &tzsp(fields, &frame)), &inner);
        }
        let mut to_transmit = tzsp(&[], &frame);
        to_transmit[1] = 1;
        finds_inner(over_udp(37008, &to_transmit), &inner);
        finds_inner(outer(GRE, &eoip(7, &frame)), &inner);
        let trailer = [&eoip(7, &frame)[..], &[0xee; 6]].concat();
        finds_inner(outer(GRE, &trailer), &inner);
    }
    for keepalive in outer(GRE, &eoip(7, &[])) {
        assert_eq!(drop_reason(LinkType::Raw, &keepalive), DropReason::NotIp);
    }
    // Neither the keepalive of TZSP nor a list of fields without an end carries a packet.
    for payload in [&[1, 4, 0, 1, 1][..], &[1, 0, 0, 1, 10, 200, 1], &[1, 0, 0, 1, 0, 0], &[1, 0, 0, 1, 10]] {
        let datagram = Datagram::new("198.51.100.1:1", "198.51.100.2:37008", payload);
        assert!(!finds(LinkType::Raw, &datagram.packet(), &datagram).decapsulated);
    }
}

#[test]
fn mirrored_frames_may_have_tags_and_llc() {
    for inner in both_versions() {
        let plain = ethernet(&inner.packet());
        let ttag = with_tag(&plain, 0x8988, &[0, 0, 0, 1, 0, 0]);
        for frame in [ttag.clone(), with_tag(&ttag, 0x8926, &[0; 4]), snap(&plain, &[(0x8100, 9)])] {
            for packet in [erspan_1(&frame), erspan_2(5, &frame), erspan_3(5, true, &frame), eoip(1, &frame)] {
                finds_inner(outer(GRE, &packet), &inner);
            }
            finds_inner(over_udp(37008, &tzsp(&[], &frame)), &inner);
            finds_inner(over_udp(4789, &vxlan(1, &frame)), &inner);
        }
    }
}

#[test]
fn vlans_around_a_tunnel_are_listed_before_those_inside() {
    let inner = tagged(&ethernet(&ipv4_datagram().packet()), &[(0x8100, 30)]);
    let [packet, _] = over_udp(4789, &vxlan(1, &inner));
    let found = finds(LinkType::Ethernet, &tagged(&ethernet(&packet), &[(0x8100, 20)]), &ipv4_datagram());
    assert_eq!(found.vlans, [20, 30]);
}

#[test]
fn other_payloads_on_a_tunnel_port_are_datagrams() {
    let texts: [&[u8]; 7] = [
        b"",
        b"<13>1 2026-11-22T00:00:00Z host app - - - text",
        b"Hello, this has the bit that marks a VNI",
        &[0, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 9, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0, 0, 0, 5, 0, 0, 0, 1, 198, 51, 100, 1],
        &[0x30, 0x82, 1, 0, 2, 1, 1, 4, 6],
    ];
    for port in [4789, 8472, 4790, 6081, 37008] {
        for text in texts {
            let datagram = Datagram::new("198.51.100.1:1", &format!("198.51.100.2:{port}"), text);
            assert!(!finds(LinkType::Raw, &datagram.packet(), &datagram).decapsulated);
        }
    }
}

#[test]
fn tunnel_without_a_datagram_delivers_nothing() {
    let tcp = ethernet(&ip_packet("198.51.100.1", "198.51.100.2", 6, &[0; 20]));
    for packet in over_udp(4789, &vxlan(1, &tcp)) {
        assert_eq!(drop_reason(LinkType::Raw, &packet), DropReason::NotUdp);
    }
    for packet in outer(GRE, &Gre::default().packet(0x0806, &[0; 28])) {
        assert_eq!(drop_reason(LinkType::Raw, &packet), DropReason::NotIp);
    }
    for packet in outer(GRE, &[0x30, 0x01, 0x88, 0x0b, 0, 0, 0, 0, 0, 0, 0, 0]) {
        assert_eq!(drop_reason(LinkType::Raw, &packet), DropReason::UnsupportedEncapsulation);
    }
}

#[test]
fn outer_datagram_is_delivered_with_tunnels_off() {
    let settings = DecoderSettings { tunnels: false, ..DecoderSettings::default() };
    let payload = vxlan(1, &ethernet(&ipv4_datagram().packet()));
    for packet in over_udp(4789, &payload) {
        let mut bench = Bench::new(settings);
        bench.packet(LinkType::Raw, 0, &packet);
        assert_eq!(bench.found[0].payload, payload);
    }
    for packet in outer(IPIP, &ipv4_datagram().packet()) {
        assert_eq!(Bench::new(settings).packet(LinkType::Raw, 0, &packet), Outcome::Dropped(DropReason::NotUdp));
    }
}

/// Wraps an IP packet in tunnel type number `which`.
fn wrapped(which: usize, packet: &[u8]) -> Vec<u8> {
    let protocol = if ether_type_of(packet) == IPV6 { IPV6_IN_IP } else { IPIP };
    match which % 6 {
        0 => outer(protocol, packet)[0].clone(),
        1 => outer(protocol, packet)[1].clone(),
        2 => outer(GRE, &Gre::default().packet(ether_type_of(packet), packet))[1].clone(),
        3 => over_udp(4789, &vxlan(9, &ethernet(packet)))[0].clone(),
        4 => over_udp(6081, &geneve(9, IPV4, &[], packet))[1].clone(),
        _ => outer(GRE, &erspan_2(9, &ethernet(packet)))[0].clone(),
    }
}

#[test]
fn nested_tunnels_are_decoded_up_to_the_limit() {
    for first in 0..6 {
        let mut packet = ipv4_datagram().packet();
        for depth in 0..usize::from(MAX_TUNNELS) {
            // Geneve above always announces IPv4, so IPv6 goes into VXLAN instead.
            let which = if first + depth == 4 && ether_type_of(&packet) == IPV6 { 3 } else { first + depth };
            let which = if which % 6 == 4 && ether_type_of(&packet) == IPV6 { 3 } else { which };
            packet = wrapped(which, &packet);
            finds(LinkType::Raw, &packet, &ipv4_datagram());
        }
        assert_eq!(drop_reason(LinkType::Raw, &wrapped(0, &packet)), DropReason::TooDeep);
        assert_eq!(drop_reason(LinkType::Raw, &wrapped(3, &packet)), DropReason::TooDeep);
    }
}

#[test]
fn fragments_inside_and_around_a_tunnel_are_reassembled() {
    for inner in both_versions() {
        let inner = Datagram { payload: vec![3; 5000], ..inner };
        let mut bench = Bench::new(DecoderSettings::default());
        // The inner packets are fragments, and so are the outer ones that carry them.
        for fragment in inner.fragments(1448) {
            let payload = vxlan(9, &ethernet(&fragment));
            let carrier = Datagram::new("203.0.113.1:49152", "203.0.113.2:4789", payload);
            for packet in carrier.identified(u32::from(fragment[6])).fragments(800) {
                bench.packet(LinkType::Raw, 0, &packet);
            }
        }
        assert_eq!(bench.found.len(), 1);
        assert_eq!(bench.found[0].payload, inner.payload);
        assert_eq!((bench.found[0].reassembled, bench.found[0].decapsulated), (true, true));
        bench.finish();
    }
}

#[test]
fn fragments_of_different_tunnels_are_kept_apart() {
    let inner = Datagram { payload: vec![3; 1000], ..ipv4_datagram() };
    let fragments = inner.fragments(800);
    let mut bench = Bench::new(DecoderSettings::default());
    for (network, fragment) in [(1, 0), (2, 1)] {
        let [packet, _] = over_udp(4789, &vxlan(network, &ethernet(&fragments[fragment])));
        assert_eq!(bench.packet(LinkType::Raw, 0, &packet), Outcome::Pending);
    }
    let [packet, _] = over_udp(4789, &vxlan(1, &ethernet(&fragments[1])));
    assert_eq!(bench.packet(LinkType::Raw, 0, &packet), Outcome::Delivered);
}

#[test]
fn packet_shortened_by_the_mirror_is_truncated() {
    let frame = ethernet(&Datagram { payload: vec![1; 500], ..ipv4_datagram() }.packet());
    for packet in outer(GRE, &erspan_2(5, &frame[..128])) {
        assert_eq!(drop_reason(LinkType::Raw, &packet), DropReason::Truncated);
    }
}
