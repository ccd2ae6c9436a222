//! The kernel filter, compiled by libpcap, applied to packets that it must pass and packets that it
//! must not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use pcap::{BpfProgram, Capture, Linktype};
use sekiwake_capture::{decode::LinkType, filter, ports::Ports};
use sekiwake_testkit::netns::{Namespace, namespaces_or_skipped};
use sekiwake_testkit::packets::{
    Datagram, Extension, Gre, TRANSPARENT_ETHERNET, eoip, erspan_1, erspan_2, erspan_3, ethernet, ethernet_frame,
    geneve, ip_packet, linux_cooked_v1, linux_cooked_v2, mpls, null, pppoe_session, snap, tagged, tzsp, vxlan,
    vxlan_gpe, with_tag,
};

const ETHERNET: i32 = 1;
const NULL: i32 = 0;
/// DLT_RAW on Linux; in savefiles it is 101.
const RAW: i32 = 12;
const COOKED_V1: i32 = 113;
const COOKED_V2: i32 = 276;

/// Puts an IP packet into a frame.
type Wrap<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

fn compile(number: i32, expression: &str) -> BpfProgram {
    let handle = Capture::dead(Linktype(number)).unwrap();
    handle.compile(expression, true).unwrap_or_else(|error| panic!("{error}: {expression}"))
}

fn program(number: i32, tunnels: bool, extra: Option<&str>) -> BpfProgram {
    let link = LinkType::from_number(number).unwrap();
    compile(number, &filter::expression(&Ports::default(), tunnels, link, extra))
}

fn v4(port: u16) -> Datagram {
    Datagram::new("198.51.100.1:40000", &format!("203.0.113.1:{port}"), vec![7; 3_000]).identified(1)
}

fn v6(port: u16) -> Datagram {
    Datagram::new("[2001:db8::1]:40000", &format!("[2001:db8::2]:{port}"), vec![7; 3_000]).identified(2)
}

fn tcp(port: u16) -> Vec<u8> {
    let segment = [&[0x9c, 0x40][..], &port.to_be_bytes(), &[0; 16]].concat();
    ip_packet("198.51.100.1", "203.0.113.1", 6, &segment)
}

fn icmp_v6() -> Vec<u8> {
    ip_packet("2001:db8::1", "2001:db8::2", 58, &[128, 0, 0, 0, 0, 0, 0, 0])
}

/// IP packets with a claimed datagram, or with a fragment that may belong to one.
fn wanted() -> Vec<(String, Vec<u8>)> {
    let mut packets = Vec::new();
    for port in Ports::default().iter() {
        for datagram in [v4(port), v6(port)] {
            packets.push((format!("{datagram:?}")[..90].to_owned(), datagram.packet()));
            for (number, fragment) in datagram.fragments(1_000).into_iter().enumerate() {
                packets.push((format!("fragment {number} to {}", datagram.destination), fragment));
            }
        }
    }
    let mut with_options = v4(514);
    with_options.options = vec![1; 12];
    packets.push(("IPv4 options".to_owned(), with_options.packet()));
    let mut authenticated = vec![17, 4, 0, 0];
    authenticated.extend([0; 20]);
    authenticated.extend(v4(514).segment());
    packets.push(("authentication header".to_owned(), ip_packet("198.51.100.1", "203.0.113.1", 51, &authenticated)));
    for protocol in [0, 43, 51, 60, 135, 139, 140] {
        let mut datagram = v6(514);
        datagram.extensions = vec![Extension::new(protocol, 2), Extension::new(60, 1)];
        packets.push((format!("extension header {protocol}"), datagram.packet()));
        for fragment in datagram.fragments(800) {
            packets.push((format!("fragment behind extension header {protocol}"), fragment));
        }
    }
    packets
}

/// IP packets with a claimed datagram in a tunnel.
fn tunnelled() -> Vec<(&'static str, Vec<u8>)> {
    let mut small = v4(514);
    small.payload.truncate(100);
    let inner = small.packet();
    let frame = ethernet(&small.packet());
    let outer = |protocol: u8, payload: &[u8]| ip_packet("198.18.0.1", "198.18.0.2", protocol, payload);
    let outer_v6 = |protocol: u8, payload: &[u8]| ip_packet("2001:db8::7", "2001:db8::8", protocol, payload);
    let over_udp = |port: u16, payload: Vec<u8>| {
        Datagram::new("198.18.0.1:50000", &format!("198.18.0.2:{port}"), payload).packet()
    };
    let over_udp_v6 = |port: u16, payload: Vec<u8>| {
        Datagram::new("[2001:db8::7]:50000", &format!("[2001:db8::8]:{port}"), payload).packet()
    };
    vec![
        ("GRE", outer(47, &Gre::default().packet(0x0800, &inner))),
        ("GRE over IPv6", outer_v6(47, &Gre::default().packet(0x0800, &inner))),
        ("Ethernet in GRE", outer(47, &Gre::default().packet(TRANSPARENT_ETHERNET, &frame))),
        ("ERSPAN I", outer(47, &erspan_1(&frame))),
        ("ERSPAN II", outer(47, &erspan_2(1, &frame))),
        ("ERSPAN III", outer(47, &erspan_3(1, false, &frame))),
        ("EoIP", outer(47, &eoip(1, &frame))),
        ("TZSP", over_udp(37008, tzsp(&[], &frame))),
        ("IP in IP", outer(4, &inner)),
        ("4in6", outer_v6(4, &inner)),
        ("6in4", outer(41, &v6(514).packet())),
        ("6in6", outer_v6(41, &v6(514).packet())),
        ("MPLS in IP", outer(137, &mpls(&[1], &inner)[14..])),
        ("Ethernet in IPv6", outer_v6(143, &frame)),
        ("VXLAN", over_udp(4789, vxlan(1, &frame))),
        ("VXLAN over IPv6", over_udp_v6(4789, vxlan(1, &frame))),
        ("VXLAN, old port", over_udp(8472, vxlan(1, &frame))),
        ("VXLAN-GPE", over_udp(4790, vxlan_gpe(1, 3, &frame))),
        ("Geneve", over_udp(6081, geneve(1, TRANSPARENT_ETHERNET, &[], &frame))),
    ]
}

/// IP packets that must not pass.
fn unwanted() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("TCP to 514", tcp(514)),
        ("TCP to 443", tcp(443)),
        ("DNS", v4(53).packet()),
        ("DNS over IPv6", v6(53).packet()),
        ("NTP", v4(123).packet()),
        ("a first fragment to another port", v4(5000).fragments(1_000).remove(0)),
        ("SNMP request", v4(161).packet()),
        ("from port 514", Datagram::new("198.51.100.1:514", "203.0.113.1:1024", "x").packet()),
        ("ICMPv6", icmp_v6()),
        ("OSPF", ip_packet("198.51.100.1", "203.0.113.1", 89, &[0; 40])),
    ]
}

/// VLAN tags of every depth that the filter skips.
const TAGS: [&[(u16, u16)]; 6] = [
    &[],
    &[(0x8100, 7)],
    &[(0x8100, 0)],
    &[(0x88a8, 20), (0x8100, 30)],
    &[(0x8100, 20), (0x8100, 30)],
    &[(0x88a8, 1), (0x8100, 2), (0x8100, 3)],
];

#[test]
fn packets_of_claimed_datagrams_pass_behind_any_tags() {
    let program = program(ETHERNET, true, None);
    for tags in TAGS {
        for (what, packet) in wanted() {
            assert!(program.filter(&tagged(&ethernet(&packet), tags)), "{what} behind {tags:x?}");
        }
        for (what, packet) in tunnelled() {
            assert!(program.filter(&tagged(&ethernet(&packet), tags)), "{what} behind {tags:x?}");
        }
        for (what, frame) in [
            ("bridged Ethernet", ethernet_frame(TRANSPARENT_ETHERNET, &ethernet(&v4(514).packet()))),
            ("MPLS", mpls(&[1, 2], &v4(514).packet())),
            ("MPLS with IPv6", mpls(&[1], &v6(514).packet())),
            ("PPPoE", pppoe_session(1, &v4(514).packet())),
            ("PPPoE with IPv6", pppoe_session(1, &v6(514).packet())),
        ] {
            assert!(program.filter(&tagged(&frame, tags)), "{what} behind {tags:x?}");
        }
    }
}

/// Frames whose datagram is behind VN-Tag, E-Tag, Cisco MetaData, TTag or SNAP.
fn tagged_otherwise() -> Vec<(String, Vec<u8>)> {
    let mut frames = Vec::new();
    for mut datagram in [v4(514), v6(514)] {
        // Longer than 1,500 bytes there is no IEEE 802.3 frame.
        datagram.payload.truncate(100);
        let plain = ethernet(&datagram.packet());
        let in_vlan = tagged(&plain, &[(0x8100, 9)]);
        for (ether_type, length) in [(0x8926, 4), (0x893f, 6), (0x8909, 6), (0x8988, 6)] {
            frames.push((format!("{ether_type:x}"), with_tag(&plain, ether_type, &vec![0; length])));
            frames
                .push((format!("{ether_type:x} around a VLAN tag"), with_tag(&in_vlan, ether_type, &vec![0; length])));
        }
        frames.push(("SNAP".to_owned(), snap(&plain, &[])));
        frames.push(("SNAP around a VLAN tag".to_owned(), snap(&in_vlan, &[])));
    }
    frames
}

#[test]
fn other_tags_and_snap_pass_behind_any_vlans_whatever_is_said_of_tunnels() {
    for tunnels in [true, false] {
        let program = program(ETHERNET, tunnels, None);
        for tags in TAGS {
            for (what, frame) in tagged_otherwise() {
                assert!(program.filter(&tagged(&frame, tags)), "{what} behind {tags:x?}");
            }
            let spanning_tree = ethernet_frame(38, &[0x42; 46]);
            assert!(!program.filter(&tagged(&spanning_tree, tags)), "{tags:x?}");
        }
    }
}

#[test]
fn other_traffic_does_not_pass_behind_any_tags() {
    let program = program(ETHERNET, true, None);
    for tags in TAGS {
        for (what, packet) in unwanted() {
            assert!(!program.filter(&tagged(&ethernet(&packet), tags)), "{what} behind {tags:x?}");
        }
        for ether_type in [0x0806, 0x88cc, 0x8863, 0x888e] {
            assert!(!program.filter(&tagged(&ethernet_frame(ether_type, &[0; 46]), tags)), "{ether_type:x} {tags:x?}");
        }
    }
}

#[test]
fn tunnels_do_not_pass_when_switched_off() {
    let program = program(ETHERNET, false, None);
    for (what, packet) in tunnelled() {
        assert!(!program.filter(&ethernet(&packet)), "{what}");
    }
    for (what, packet) in wanted() {
        assert!(program.filter(&ethernet(&packet)), "{what}");
    }
    assert!(!program.filter(&mpls(&[1], &v4(514).packet())));
    assert!(!program.filter(&pppoe_session(1, &v4(514).packet())));
}

#[test]
fn user_filter_applies_too_and_means_the_same_as_in_tcpdump() {
    let one_host = program(ETHERNET, true, Some("src host 198.51.100.1"));
    assert!(one_host.filter(&ethernet(&v4(514).packet())));
    assert!(!one_host.filter(&ethernet(&v4(53).packet())), "the user's filter does not widen the generated one");
    assert!(!one_host.filter(&ethernet(&v6(514).packet())));
    let either = program(ETHERNET, true, Some("src host 198.51.100.1 or src host 198.51.100.2"));
    assert!(!either.filter(&ethernet(&v4(53).packet())), "an `or` in the user's filter is in parentheses");
    // `vlan` changes the offsets after it, as pcap-filter(7) says, so the generated filter applies
    // to the headers behind that tag.
    let one_vlan = program(ETHERNET, true, Some("vlan 7"));
    assert!(one_vlan.filter(&tagged(&ethernet(&v4(514).packet()), &[(0x8100, 7)])));
    assert!(!one_vlan.filter(&tagged(&ethernet(&v4(514).packet()), &[(0x8100, 8)])));
    assert!(!one_vlan.filter(&ethernet(&v4(514).packet())));
}

#[test]
fn filter_is_the_same_on_every_link_type() {
    let cooked_v2 = |packet: &[u8]| linux_cooked_v2(packet);
    let family = |packet: &[u8]| {
        let family: u32 = if packet[0] >> 4 == 6 { 10 } else { 2 };
        null(family.to_ne_bytes(), packet)
    };
    let raw = |packet: &[u8]| packet.to_vec();
    let links: [(i32, Wrap<'_>); 4] =
        [(COOKED_V1, &linux_cooked_v1), (COOKED_V2, &cooked_v2), (RAW, &raw), (NULL, &family)];
    for (number, wrap) in links {
        let program = program(number, true, None);
        for (what, packet) in wanted() {
            assert!(program.filter(&wrap(&packet)), "link type {number}: {what}");
        }
        for (what, packet) in tunnelled() {
            assert!(program.filter(&wrap(&packet)), "link type {number}: {what}");
        }
        for (what, packet) in unwanted() {
            assert!(!program.filter(&wrap(&packet)), "link type {number}: {what}");
        }
    }
}

/// Walks over the number of ports at which the program becomes too long for the kernel. libpcap
/// compiles a longer one for an interface than for a dead handle, because the kernel keeps the
/// outer VLAN tag beside the frame.
#[test]
fn kernel_takes_the_filter_at_every_number_of_ports() {
    if !namespaces_or_skipped() {
        return;
    }
    let host = Namespace::new("skw-flt").unwrap();
    let attached = host.enter(|| {
        let mut capture = Capture::from_device("lo").unwrap().open().unwrap();
        let mut attach = |count: u16| {
            let syslog = (0..count).map(|number| 20_000 + 3 * number).collect();
            let ports = Ports::new(syslog, vec![2055], vec![162]).unwrap();
            let attached = filter::attach(&mut capture, &ports, true, LinkType::Ethernet, None).unwrap();
            assert!(sekiwake_sys::kernel_filter_length(&capture).unwrap() > 0, "{count} ports");
            attached
        };
        [1, 10, 20, 30].into_iter().chain(36..=66).map(&mut attach).collect::<Vec<_>>()
    });
    let attached = attached.unwrap();
    assert!(attached.iter().all(|attached| attached.in_kernel));
    let listed = attached.iter().take_while(|attached| attached.lists_ports).count();
    assert!(listed > 3, "30 ports are listed");
    assert!(attached[listed..].iter().all(|attached| !attached.lists_ports));
    assert!(listed < attached.len());
}

#[test]
fn filter_that_the_kernel_rejects_is_noticed() {
    if !namespaces_or_skipped() {
        return;
    }
    let host = Namespace::new("skw-flt").unwrap();
    let addresses = (0..2_100_u32).map(|number| format!("len = {}", 70_000 + 2 * number));
    let extra = addresses.collect::<Vec<_>>().join(" or ");
    let attached = host.enter(|| {
        let mut capture = Capture::from_device("lo").unwrap().open().unwrap();
        filter::attach(&mut capture, &Ports::default(), true, LinkType::Ethernet, Some(&extra)).unwrap()
    });
    assert_eq!(attached.unwrap(), filter::Attached { in_kernel: false, lists_ports: false });
}

#[test]
fn filter_with_thousands_of_ports_compiles_and_passes_them() {
    for ports in [(20_000..23_000).collect::<Vec<u16>>(), (20_000..23_000).step_by(2).collect()] {
        let first = ports[0];
        let last = ports[ports.len() - 1];
        let ports = Ports::new(ports, vec![2055], vec![162]).unwrap();
        let program = compile(ETHERNET, &filter::expression(&ports, true, LinkType::Ethernet, None));
        assert!(program.get_instructions().len() < 4096, "the kernel's limit");
        for port in [first, last, 2055] {
            for tags in TAGS {
                assert!(program.filter(&tagged(&ethernet(&v4(port).packet()), tags)), "{port} {tags:x?}");
                assert!(program.filter(&tagged(&ethernet(&v6(port).packet()), tags)), "{port} {tags:x?}");
            }
        }
        assert!(!program.filter(&ethernet(&tcp(first))));
    }
}
