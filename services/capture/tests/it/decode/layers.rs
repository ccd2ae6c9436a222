//! Link types, VLAN tags, MPLS, PPPoE, IP headers and UDP lengths.

use sekiwake_capture::decode::{DecoderSettings, DropReason, LinkType, Outcome};
use sekiwake_testkit::packets::{
    Datagram, Extension, IPV4, ethernet, ethernet_frame, ip_packet, linux_cooked_v1, linux_cooked_v2, mpls, null,
    padded, pppoe_session, snap, tagged, with_tag,
};

use super::{Bench, both_versions, drop_reason, finds, ipv4_datagram, ipv6_datagram};

#[test]
fn datagram_is_found_on_every_link_type() {
    for datagram in both_versions() {
        let packet = datagram.packet();
        finds(LinkType::Ethernet, &ethernet(&packet), &datagram);
        finds(LinkType::LinuxCookedV1, &linux_cooked_v1(&packet), &datagram);
        finds(LinkType::LinuxCookedV2, &linux_cooked_v2(&packet), &datagram);
        finds(LinkType::Raw, &packet, &datagram);
    }
}

#[test]
fn null_link_families_of_all_systems_in_both_byte_orders() {
    let of = |family: u32| [family.to_be_bytes(), family.to_le_bytes()];
    for family in of(2) {
        finds(LinkType::Null, &null(family, &ipv4_datagram().packet()), &ipv4_datagram());
    }
    for family in [10, 23, 24, 28, 30].into_iter().flat_map(of) {
        finds(LinkType::Null, &null(family, &ipv6_datagram().packet()), &ipv6_datagram());
    }
    assert_eq!(drop_reason(LinkType::Null, &null([0, 0, 0, 7], &ipv4_datagram().packet())), DropReason::NotIp);
}

#[test]
fn link_type_numbers_are_those_of_libpcap() {
    let known = [
        (1, LinkType::Ethernet),
        (113, LinkType::LinuxCookedV1),
        (276, LinkType::LinuxCookedV2),
        (12, LinkType::Raw),
        (101, LinkType::Raw),
        (228, LinkType::Raw),
        (229, LinkType::Raw),
        (0, LinkType::Null),
        (108, LinkType::Null),
    ];
    for number in -1..400 {
        let expected = known.iter().find(|(known, _)| *known == number).map(|(_, link)| *link);
        assert_eq!(LinkType::from_number(number), expected, "{number}");
    }
}

#[test]
fn vlan_tags_are_listed_outermost_first() {
    let forms: [&[(u16, u16)]; 7] = [
        &[],
        &[(0x8100, 30)],
        &[(0x8100, 0)],
        &[(0x88a8, 20), (0x8100, 30)],
        &[(0x8100, 20), (0x8100, 30)],
        &[(0x9100, 20), (0x8100, 4095)],
        &[(0x88a8, 1), (0x88a8, 2), (0x8100, 3), (0x8100, 4)],
    ];
    for datagram in both_versions() {
        for tags in forms {
            let found = finds(LinkType::Ethernet, &tagged(&ethernet(&datagram.packet()), tags), &datagram);
            assert_eq!(found.vlans, tags.iter().map(|(_, vlan)| *vlan).collect::<Vec<_>>());
        }
    }
}

/// VN-Tag, E-Tag, Cisco MetaData and TTag.
const OTHER_TAGS: [(u16, &[u8]); 4] = [
    (0x8926, &[0, 5, 0, 1]),
    (0x893f, &[0, 1, 0, 2, 0, 0]),
    (0x8909, &[1, 1, 0, 1, 0, 100]),
    (0x8988, &[0, 0, 0, 1, 0, 0]),
];

#[test]
fn other_tags_are_skipped_inside_each_other_and_vlans() {
    for datagram in both_versions() {
        let plain = ethernet(&datagram.packet());
        for (outer_type, outer) in OTHER_TAGS {
            finds(LinkType::Ethernet, &with_tag(&plain, outer_type, outer), &datagram);
            for (inner_type, inner) in OTHER_TAGS {
                let in_vlan = with_tag(&tagged(&plain, &[(0x8100, 30)]), inner_type, inner);
                let frame = tagged(&with_tag(&in_vlan, outer_type, outer), &[(0x88a8, 20)]);
                let found = finds(LinkType::Ethernet, &frame, &datagram);
                assert_eq!(found.vlans, [20, 30], "{outer_type:x} around {inner_type:x}");
            }
        }
    }
}

#[test]
fn tags_that_end_early_are_of_a_bad_length() {
    for (ether_type, tag) in OTHER_TAGS {
        for length in 0..=tag.len() {
            let frame = ethernet_frame(ether_type, &tag[..length]);
            assert_eq!(drop_reason(LinkType::Ethernet, &frame), DropReason::BadLength, "{ether_type:x} {length}");
        }
    }
}

#[test]
fn llc_with_snap_is_decoded_also_behind_tags_and_in_cooked_captures() {
    for datagram in both_versions() {
        let plain = ethernet(&datagram.packet());
        finds(LinkType::Ethernet, &padded(&snap(&plain, &[])), &datagram);
        let found = finds(LinkType::Ethernet, &snap(&tagged(&plain, &[(0x8100, 30)]), &[(0x8100, 20)]), &datagram);
        assert_eq!(found.vlans, [20, 30]);
        for (ether_type, tag) in OTHER_TAGS {
            finds(LinkType::Ethernet, &with_tag(&snap(&plain, &[]), ether_type, tag), &datagram);
            finds(LinkType::Ethernet, &snap(&with_tag(&plain, ether_type, tag), &[]), &datagram);
        }
        let mut cooked = linux_cooked_v1(&snap(&plain, &[])[14..]);
        cooked[14..16].copy_from_slice(&[0, 4]);
        finds(LinkType::LinuxCookedV1, &cooked, &datagram);
    }
    let mut spanning_tree = ethernet_frame(38, &[0x42, 0x42, 3, 0, 0, 0]);
    spanning_tree.resize(60, 0);
    assert_eq!(drop_reason(LinkType::Ethernet, &spanning_tree), DropReason::NotIp);
    assert_eq!(drop_reason(LinkType::Ethernet, &ethernet_frame(2, &[0xaa, 0xaa])), DropReason::BadLength);
}

#[test]
fn tags_beyond_the_listed_ones_are_still_decoded() {
    let tags: Vec<(u16, u16)> = (1..=20).map(|vlan| (0x8100, vlan)).collect();
    let found = finds(LinkType::Ethernet, &tagged(&ethernet(&ipv4_datagram().packet()), &tags), &ipv4_datagram());
    assert_eq!(found.vlans, (1..=8).collect::<Vec<_>>());
}

#[test]
fn tag_after_a_cooked_header_is_decoded() {
    let packet = ipv4_datagram().packet();
    let mut cooked = linux_cooked_v1(&packet);
    cooked[14..16].copy_from_slice(&0x8100_u16.to_be_bytes());
    cooked.splice(16..16, [0, 30, 0x08, 0x00]);
    assert_eq!(finds(LinkType::LinuxCookedV1, &cooked, &ipv4_datagram()).vlans, [30]);
}

#[test]
fn mpls_and_pppoe_headers_are_skipped() {
    for datagram in both_versions() {
        let packet = datagram.packet();
        for frame in [mpls(&[16], &packet), mpls(&[16, 17, 18], &packet), pppoe_session(5, &packet)] {
            let found = finds(LinkType::Ethernet, &padded(&frame), &datagram);
            assert!(!found.decapsulated);
            finds(LinkType::Ethernet, &tagged(&frame, &[(0x88a8, 20), (0x8100, 30)]), &datagram);
        }
    }
}

#[test]
fn padding_and_trailers_are_not_part_of_the_payload() {
    for payload in ["", "<", "<13>x"] {
        let datagram = Datagram::new("198.51.100.1:1", "198.51.100.2:514", payload);
        finds(LinkType::Ethernet, &padded(&ethernet(&datagram.packet())), &datagram);
        let longer = ip_packet("198.51.100.1", "198.51.100.2", 17, &[&datagram.segment()[..], b"trailer"].concat());
        finds(LinkType::Ethernet, &ethernet(&longer), &datagram);
    }
}

#[test]
fn ipv4_options_are_skipped() {
    for length in (4..=40).step_by(4) {
        let datagram = Datagram { options: vec![1; length], ..ipv4_datagram() };
        finds(LinkType::Raw, &datagram.packet(), &datagram);
    }
}

#[test]
fn ipv6_extension_headers_are_skipped() {
    let each = [0, 43, 51, 60, 135, 139, 140].map(|protocol| Extension::new(protocol, 3));
    for extension in &each {
        let datagram = Datagram { extensions: vec![extension.clone()], ..ipv6_datagram() };
        finds(LinkType::Raw, &datagram.packet(), &datagram);
    }
    let datagram = Datagram { extensions: each.to_vec(), ..ipv6_datagram() };
    finds(LinkType::Raw, &datagram.packet(), &datagram);
}

#[test]
fn atomic_fragment_is_a_whole_datagram() {
    let datagram = Datagram { extensions: vec![Extension::fragment(0, false, 9)], ..ipv6_datagram() };
    assert!(!finds(LinkType::Raw, &datagram.packet(), &datagram).reassembled);
}

#[test]
fn authentication_header_is_skipped_in_ipv4_too() {
    let datagram = Datagram { dscp: 0, ttl: 64, ..ipv4_datagram() };
    let authenticated = [&[17, 1, 0, 0][..], &[0; 8], &datagram.segment()].concat();
    finds(LinkType::Raw, &ip_packet("198.51.100.1", "198.51.100.2", 51, &authenticated), &datagram);
}

#[test]
fn wrong_checksums_are_accepted() {
    for checksum in [[0, 0], [0xab, 0xcd]] {
        let mut packet = ipv4_datagram().packet();
        packet[10..12].copy_from_slice(&checksum);
        packet[26..28].copy_from_slice(&checksum);
        finds(LinkType::Raw, &packet, &ipv4_datagram());
    }
}

#[test]
fn longest_datagram_is_delivered() {
    let datagram = Datagram { payload: vec![7; 65_507], ..ipv4_datagram() };
    finds(LinkType::Ethernet, &ethernet(&datagram.packet()), &datagram);
    let datagram = Datagram { payload: vec![7; 65_527], ..ipv6_datagram() };
    finds(LinkType::Ethernet, &ethernet(&datagram.packet()), &datagram);
}

#[test]
fn packets_without_udp_are_dropped_by_reason() {
    let reason = |frame: &[u8]| drop_reason(LinkType::Ethernet, frame);
    assert_eq!(reason(&ethernet_frame(0x0806, &[0; 28])), DropReason::NotIp);
    assert_eq!(reason(&ethernet_frame(0x0026, &[0x42; 38])), DropReason::NotIp);
    assert_eq!(reason(&ethernet(&ip_packet("198.51.100.1", "198.51.100.2", 6, &[0; 20]))), DropReason::NotUdp);
    assert_eq!(reason(&ethernet(&ip_packet("2001:db8::1", "2001:db8::2", 59, &[]))), DropReason::NotUdp);
    // Fragment and hop-by-hop headers exist in IPv6 only.
    assert_eq!(reason(&ethernet(&ip_packet("198.51.100.1", "198.51.100.2", 44, &[17; 20]))), DropReason::NotUdp);
    assert_eq!(reason(&ethernet(&ip_packet("198.51.100.1", "198.51.100.2", 0, &[17; 20]))), DropReason::NotUdp);
    let mut discovery = pppoe_session(1, &ipv4_datagram().packet());
    discovery[15] = 0x09;
    assert_eq!(reason(&discovery), DropReason::UnsupportedEncapsulation);
    assert_eq!(drop_reason(LinkType::Raw, &[0x50; 40]), DropReason::NotIp);
}

#[test]
fn contradicting_lengths_are_bad() {
    let reason = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = ipv4_datagram().packet();
        change(&mut packet);
        drop_reason(LinkType::Raw, &packet)
    };
    // UDP: longer than the IP payload, shorter than its own header, zero.
    assert_eq!(reason(&|packet| packet[25] += 1), DropReason::BadLength);
    assert_eq!(reason(&|packet| packet[25] = 7), DropReason::BadLength);
    assert_eq!(reason(&|packet| packet[25] = 0), DropReason::BadLength);
    // IPv4: a header shorter than the minimum, a packet shorter than its header.
    assert_eq!(reason(&|packet| packet[0] = 0x44), DropReason::BadLength);
    assert_eq!(reason(&|packet| packet[3] = 19), DropReason::BadLength);
    assert_eq!(reason(&|packet| packet[3] = 27), DropReason::BadLength);
    // The EtherType says IPv4, the packet IPv6.
    assert_eq!(
        drop_reason(LinkType::Ethernet, &ethernet_frame(IPV4, &ipv6_datagram().packet())),
        DropReason::BadLength
    );
}

#[test]
fn packet_longer_than_the_mtu_is_an_offload_artefact() {
    for datagram in both_versions() {
        let packet = datagram.packet();
        let with_mtu = |mtu: usize, frame: &[u8]| {
            let settings = DecoderSettings { mtu: Some(mtu as u32), ..DecoderSettings::default() };
            Bench::new(settings).packet(LinkType::Ethernet, 0, frame)
        };
        assert_eq!(with_mtu(packet.len(), &ethernet(&packet)), Outcome::Delivered);
        assert_eq!(with_mtu(packet.len() - 1, &ethernet(&packet)), Outcome::Dropped(DropReason::Offload));
        // Fragments have to fit the link, the reassembled datagram does not.
        let settings = DecoderSettings { mtu: Some(1500), ..DecoderSettings::default() };
        let mut bench = Bench::new(settings);
        for fragment in (Datagram { payload: vec![1; 9000], ..datagram }).fragments(1448) {
            bench.packet(LinkType::Raw, 0, &fragment);
        }
        assert_eq!(bench.found.len(), 1);
    }
}

#[test]
fn length_field_beyond_the_frame_is_not_offload() {
    let settings = DecoderSettings { mtu: Some(1500), ..DecoderSettings::default() };
    let mut frame = ethernet(&Datagram::new("198.51.100.1:1", "203.0.113.1:514", vec![1; 100]).packet());
    frame[16..18].copy_from_slice(&9_000_u16.to_be_bytes());
    let mut bench = Bench::new(settings);
    let outcome = bench.packet(LinkType::Ethernet, 0, &frame);
    assert_ne!(outcome, Outcome::Dropped(DropReason::Offload));
}

#[test]
fn raised_mtu_admits_larger_packets() {
    let frame = ethernet(&Datagram::new("198.51.100.1:1", "203.0.113.1:514", vec![1; 8_000]).packet());
    let mut bench = Bench::new(DecoderSettings { mtu: Some(1500), ..DecoderSettings::default() });
    assert_eq!(bench.packet(LinkType::Ethernet, 0, &frame), Outcome::Dropped(DropReason::Offload));
    bench.decoder.set_mtu(Some(9000));
    assert_eq!(bench.packet(LinkType::Ethernet, 0, &frame), Outcome::Delivered);
}
