//! Live capture: fragments, VLAN tags, tunnels and extension headers, as on a mirror port.

use std::net::Ipv6Addr;

use sekiwake_testkit::{
    packets::{
        Datagram, Extension, Gre, TRANSPARENT_ETHERNET, erspan_1, erspan_2, erspan_3, ethernet, geneve, ip_packet,
        ipv6_packet, mpls, pppoe_session, tagged, vxlan, vxlan_gpe,
    },
    sink::Options,
};
use sekiwake_tests::{DEVICES_WIRE, FIRST_DEVICE, FIRST_DEVICE_V6, MIRRORED, MIRRORED_V6, collector, collector_v6};

use crate::support::*;

const LARGE: usize = 65_000;

/// Sends frames and datagrams on the wire, and compares the payloads at a collector of each IP
/// version.
fn check(send: impl FnOnce(&TestSite) -> Vec<Vec<u8>>) {
    let Some(site) = site() else { return };
    let sinks = [at(collector(0), 514), at(collector_v6(1), 1514)]
        .map(|address| site.sink(&[address], Options::counts().payloads()));
    let destinations = format!("udp://{}:514 udp://[{}]:1514", collector(0), collector_v6(1));
    let services = site.start(&SYSLOG_PATH, &[("SEKIWAKE_SYSLOG_DESTINATIONS", &destinations)]);
    let expected = send(&site);
    for sink in &sinks {
        // The comparison reports missing datagrams.
        let _ = sink.wait_for(expected.len() as u64, LONG);
    }
    let ledger = balanced_ledger(&services);
    services.stop().unwrap();
    for (sink, version) in sinks.into_iter().zip(["IPv4", "IPv6"]) {
        let what = format!("{version} collector; losses: {:?}", ledger.losses());
        assert_same_set(&what, in_order(sink.finish()), expected.clone());
    }
}

#[test]
fn fragmented_datagrams_of_65000_bytes_arrive_whole() {
    check(|site| {
        let payloads = [noise(1, LARGE), noise(2, LARGE), noise(3, 65_507), noise(4, 1_473)];
        let v4 = &payloads[..2];
        site.send_payloads(at(FIRST_DEVICE, 5140), at(MIRRORED, 514), v4);
        let v6 = &payloads[2..];
        site.send_payloads(at(FIRST_DEVICE_V6, 5140), at(MIRRORED_V6, 514), v6);
        payloads.to_vec()
    });
}

/// Every form of VLAN tags, outermost first: none, 802.1Q, priority tag, three forms of QinQ, three
/// tags.
const TAGS: [&[(u16, u16)]; 7] = [
    &[],
    &[(0x8100, 7)],
    &[(0x8100, 0)],
    &[(0x88a8, 20), (0x8100, 30)],
    &[(0x8100, 20), (0x8100, 30)],
    &[(0x9100, 20), (0x8100, 30)],
    &[(0x88a8, 1), (0x8100, 2), (0x8100, 3)],
];

#[test]
fn datagrams_arrive_whole_with_every_form_of_vlan_tags() {
    check(|site| {
        let mut expected = Vec::new();
        let addresses = [("198.19.0.1:5140", "198.18.0.2:514"), ("[2001:db8:18:1::1]:5140", "[2001:db8:18::2]:514")];
        for (number, (tags, (source, destination))) in
            TAGS.iter().flat_map(|tags| addresses.map(|pair| (tags, pair))).enumerate()
        {
            let number = number as u32;
            let small = Datagram::new(source, destination, noise(100 + u64::from(number), 300));
            let large = Datagram::new(source, destination, noise(u64::from(number), LARGE)).identified(number + 1);
            let mut packets = vec![small.packet()];
            packets.extend(large.fragments(1400));
            if number % 2 == 1 {
                packets.reverse();
            }
            let frames: Vec<Vec<u8>> = packets.iter().map(|packet| tagged(&ethernet(packet), tags)).collect();
            site.devices.inject(DEVICES_WIRE, &frames).unwrap();
            expected.extend([small.payload, large.payload]);
        }
        expected
    });
}

#[test]
fn datagrams_in_tunnels_and_with_labels_arrive() {
    check(|site| {
        let mut expected = Vec::new();
        let mut datagram = |source: &str, destination: &str| {
            let datagram = Datagram::new(source, destination, noise(expected.len() as u64, 500));
            expected.push(datagram.payload.clone());
            datagram.packet()
        };
        let mut v4 = || datagram("198.19.0.9:40000", "203.0.113.7:514");
        let outer = |protocol: u8, payload: &[u8]| ip_packet("198.18.0.3", "198.18.0.2", protocol, payload);
        let outer_v6 = |protocol: u8, payload: &[u8]| {
            let address = |text: &str| text.parse::<Ipv6Addr>().unwrap();
            ipv6_packet(address("2001:db8:18::3"), address("2001:db8:18::2"), &[], protocol, payload)
        };
        let over_udp = |port: u16, payload: Vec<u8>| {
            Datagram::new("198.18.0.3:50000", &format!("198.18.0.2:{port}"), payload).packet()
        };
        let mut frames = vec![
            ethernet(&outer(47, &Gre::default().packet(0x0800, &v4()))),
            ethernet(&outer(
                47,
                &Gre { key: Some(7), ..Gre::default() }.packet(TRANSPARENT_ETHERNET, &ethernet(&v4())),
            )),
            ethernet(&outer(47, &erspan_1(&ethernet(&v4())))),
            ethernet(&outer(47, &erspan_2(5, &tagged(&ethernet(&v4()), &[(0x8100, 9)])))),
            ethernet(&outer(47, &erspan_3(5, true, &ethernet(&v4())))),
            ethernet(&outer(4, &v4())),
            ethernet(&over_udp(4789, vxlan(42, &ethernet(&v4())))),
            ethernet(&over_udp(8472, vxlan(42, &ethernet(&v4())))),
            ethernet(&over_udp(4790, vxlan_gpe(42, 1, &v4()))),
            ethernet(&over_udp(4790, vxlan_gpe(42, 3, &ethernet(&v4())))),
            ethernet(&over_udp(6081, geneve(42, TRANSPARENT_ETHERNET, &[], &ethernet(&v4())))),
            ethernet(&outer_v6(47, &Gre::default().packet(0x0800, &v4()))),
            ethernet(&outer_v6(4, &v4())),
            mpls(&[100, 200], &v4()),
            pppoe_session(3, &v4()),
            tagged(&ethernet(&over_udp(4789, vxlan(43, &ethernet(&v4())))), &[(0x8100, 12)]),
            tagged(&ethernet(&outer(47, &erspan_2(6, &ethernet(&v4())))), &[(0x88a8, 12), (0x8100, 13)]),
            tagged(&mpls(&[300], &v4()), &[(0x8100, 14)]),
            tagged(&pppoe_session(4, &v4()), &[(0x8100, 15)]),
        ];
        let mut v6 = || datagram("[2001:db8:19::9]:40000", "[2001:db8:113::7]:514");
        frames.extend([
            ethernet(&outer(41, &v6())),
            ethernet(&outer(47, &Gre::default().packet(0x86dd, &v6()))),
            mpls(&[100], &v6()),
            pppoe_session(3, &v6()),
        ]);
        site.devices.inject(DEVICES_WIRE, &frames).unwrap();
        expected
    });
}

#[test]
fn fragmented_tunnelled_datagrams_arrive_whole() {
    check(|site| {
        // Fragments of the inner datagram, each in its own mirror packet; and a fragmented mirror
        // packet.
        let inner = Datagram::new("198.19.0.9:40000", "203.0.113.7:514", noise(1, 20_000)).identified(77);
        let mut frames: Vec<Vec<u8>> = inner
            .fragments(1200)
            .iter()
            .map(|packet| ethernet(&ip_packet("198.18.0.3", "198.18.0.2", 47, &erspan_2(1, &ethernet(packet)))))
            .collect();
        let whole = Datagram::new("198.19.0.9:40000", "203.0.113.7:514", noise(2, 3_000));
        let mirrored = vxlan(1, &ethernet(&whole.packet()));
        let carrier = Datagram::new("198.18.0.3:50000", "198.18.0.2:4789", mirrored).identified(78);
        frames.extend(carrier.fragments(1400).iter().map(|packet| ethernet(packet)));
        site.devices.inject(DEVICES_WIRE, &frames).unwrap();
        vec![inner.payload, whole.payload]
    });
}

#[test]
fn datagrams_with_ipv6_extension_headers_arrive() {
    check(|site| {
        let headers: [&[(u8, u8)]; 7] = [
            &[(0, 1)],
            &[(60, 2)],
            &[(43, 1)],
            &[(51, 2)],
            &[(135, 1)],
            &[(0, 1), (60, 1), (43, 2)],
            &[(0, 3), (51, 3)],
        ];
        let mut expected = Vec::new();
        let mut frames = Vec::new();
        for (number, chain) in headers.iter().enumerate() {
            for (length, identification) in [(200, 0), (5_000, 900 + number as u32)] {
                let mut datagram = Datagram::new(
                    "[2001:db8:18:1::1]:5140",
                    "[2001:db8:18::2]:514",
                    noise(number as u64 * 10_000 + length as u64, length),
                )
                .identified(identification);
                datagram.extensions = chain.iter().map(|(protocol, units)| Extension::new(*protocol, *units)).collect();
                let packets = if length < 1_000 { vec![datagram.packet()] } else { datagram.fragments(1200) };
                frames.extend(packets.iter().map(|packet| ethernet(packet)));
                expected.push(datagram.payload);
            }
        }
        site.devices.inject(DEVICES_WIRE, &frames).unwrap();
        expected
    });
}
