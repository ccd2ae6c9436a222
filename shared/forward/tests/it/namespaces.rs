//! Over a link with an MTU of 1,500 bytes, as to a collector on another host.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use sekiwake_testkit::{
    netns::{End, Link, Namespace, namespaces_or_skipped},
    sink::{Options, Sink},
    wait::wait_for,
};

use crate::rig::*;

const PORT: u16 = 5514;

/// Two namespaces: the engine's, and the collectors'.
struct Hosts {
    forwarder: Namespace,
    collector: Namespace,
}

impl Hosts {
    fn new(offload: bool) -> Hosts {
        let forwarder = Namespace::new("skw-fwd").unwrap();
        let collector = Namespace::new("skw-col").unwrap();
        let left = End::new(&forwarder, "fwd0").address("198.18.0.1/24").address("2001:db8::1/64");
        let right = End::new(&collector, "col0").address("198.18.0.2/24").address("2001:db8::2/64");
        Link::new(left, right).segmentation_offload(offload).create().unwrap();
        Hosts { forwarder, collector }
    }

    fn sink(&self, address: &str) -> (Sink, String) {
        self.sink_at(format!("{address}:{PORT}").parse().unwrap())
    }

    fn sink_at(&self, address: SocketAddr) -> (Sink, String) {
        let socket = self.collector.udp_socket(address).unwrap();
        let sink = Sink::start(vec![socket], Options::counts().payloads()).unwrap();
        (sink, format!("udp://{address}"))
    }

    /// Adds a token bucket filter to the forwarder's link.
    fn limit_output(&self, parameters: &str) {
        let mut command = self.forwarder.command("tc");
        command.args("qdisc add dev fwd0 root tbf rate".split(' ')).args(parameters.split(' '));
        assert!(command.status().unwrap().success());
    }

    fn rig(&self, destinations: &str) -> (Rig, TestEngine) {
        let start = || {
            let rig = Rig::new();
            let engine = rig.engine(destinations);
            (rig, engine)
        };
        self.forwarder.enter(start).unwrap()
    }
}

/// Sizes on both sides of every limit at 1,500 bytes, and mixed ones, each payload different.
fn payloads(longest: usize) -> Vec<Vec<u8>> {
    let mut random = pseudo_random(0xf0a2);
    let mut lengths = vec![0, 1452, 1452, 1453, 1472, 1472, 1473, 1473, 9000, longest, 0, longest, 12];
    lengths.extend(std::iter::repeat_n(1472, 50));
    lengths.extend(std::iter::repeat_n(200, 130));
    lengths.extend((0..300).map(|_| 200 + random(1201) as usize));
    let numbered = lengths.iter().enumerate();
    numbered
        .map(|(index, &length)| (0..length).map(|byte| (byte * 13 + index * 7 + byte / 251) as u8).collect())
        .collect()
}

#[test]
fn every_size_crosses_a_1500_byte_link_in_order() {
    if !namespaces_or_skipped() {
        return;
    }
    for offload in [false, true] {
        let hosts = Hosts::new(offload);
        for (address, longest) in [("198.18.0.2", 65_507), ("[2001:db8::2]", 65_527)] {
            for option in ["", "?gso=false"] {
                let (sink, uri) = hosts.sink(address);
                let (rig, mut engine) = hosts.rig(&format!("{uri}{option}"));
                let payloads = payloads(longest);
                forward(&mut engine, &samples(payloads.clone()));
                assert!(arrived(sink, payloads.len()) == payloads, "{uri}{option}, offload {offload}");
                rig.assert_ledger(&uri);
                assert_eq!(rig.metric("sekiwake_forward_errors_total", &[]), 0.0, "{uri}{option}");
                assert_eq!(rig.metric("sekiwake_forward_gso_rejected_total", &[]), 0.0);
                rig.stop();
            }
        }
    }
}

#[test]
fn shrinking_mtu_loses_nothing_and_keeps_segmentation() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(false);
    let (sink, uri) = hosts.sink("198.18.0.2");
    let (rig, mut engine) = hosts.rig(&uri);
    let payloads: Vec<Vec<u8>> = (0..200u8).map(|number| vec![number; 1400]).collect();
    forward(&mut engine, &samples(payloads[..100].to_vec()));
    sink.wait_for(100, PATIENCE).unwrap();
    hosts.forwarder.ip("link set fwd0 mtu 1000").unwrap();
    forward(&mut engine, &samples(payloads[100..].to_vec()));
    assert!(arrived(sink, 200) == payloads);
    assert_eq!(rig.metric("sekiwake_forward_gso_rejected_total", &[]), 0.0);
    rig.assert_ledger(&uri);
    rig.stop();
}

#[test]
fn missing_collector_does_not_affect_the_live_one() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(false);
    let (sink, live) = hosts.sink("198.18.0.2");
    let dead = "udp://198.18.0.99:514";
    let (rig, mut engine) = hosts.rig(&format!("{dead} {live}"));
    let payloads: Vec<Vec<u8>> = (0..20_000u32).map(|number| number.to_be_bytes().repeat(50)).collect();
    for (number, part) in payloads.chunks(1000).enumerate() {
        // Not more at a time than a slow machine sends before records expire.
        sink.wait_for(number as u64 * 1000, PATIENCE).unwrap();
        forward(&mut engine, &samples(part.to_vec()));
    }
    assert!(arrived(sink, payloads.len()) == payloads);
    rig.assert_ledger(&live);
    let labels = [dead, "host_unreachable"];
    wait_for("an ICMP error of this host", PATIENCE, || rig.metric("sekiwake_forward_errors_total", &labels) > 0.0)
        .unwrap();
    assert_eq!(rig.metric("sekiwake_forward_up", &[dead]), 0.0);
    rig.assert_ledger(dead);

    hosts.collector.ip("address add 198.18.0.99/24 dev col0").unwrap();
    let (sink, _) = hosts.sink_at("198.18.0.99:514".parse().unwrap());
    let is_up = || {
        forward(&mut engine, &samples([b"anyone?".to_vec()]));
        rig.metric("sekiwake_forward_up", &[dead]) == 1.0
    };
    wait_for("the collector to be up", 2 * PATIENCE, is_up).unwrap();
    assert!(sink.received() > 0);
    rig.assert_ledger(dead);
    rig.stop();
}

#[test]
fn datagrams_wait_while_the_route_is_missing() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(false);
    let (sink, uri) = hosts.sink("198.18.0.2");
    let (rig, mut engine) = hosts.rig(&uri);
    let payloads: Vec<Vec<u8>> = (0..300u32).map(|number| number.to_be_bytes().repeat(25)).collect();
    forward(&mut engine, &samples(payloads[..100].to_vec()));
    sink.wait_for(100, PATIENCE).unwrap();
    hosts.forwarder.ip("link set fwd0 down").unwrap();
    forward(&mut engine, &samples(payloads[100..].to_vec()));
    let labels = [&*uri, "network_unreachable"];
    wait_for("an error", PATIENCE, || rig.metric("sekiwake_forward_errors_total", &labels) > 3.0).unwrap();
    hosts.forwarder.ip("link set fwd0 up").unwrap();
    assert!(arrived(sink, 300) == payloads);
    rig.assert_ledger(&uri);
    rig.stop();
}

#[test]
fn drops_of_the_own_queueing_discipline_are_retried() {
    if !namespaces_or_skipped() {
        return;
    }
    // Two megabytes per second through a short queue: 4 MB take the two seconds that a record
    // waits. The bucket holds the largest message, because with a smaller one this discipline
    // segments messages itself, and does not report when it drops some of the segments.
    for address in ["198.18.0.2", "[2001:db8::2]"] {
        for option in ["", "?gso=false"] {
            let hosts = Hosts::new(false);
            hosts.limit_output("16mbit burst 70kb limit 140kb");
            let (sink, uri) = hosts.sink(address);
            let (rig, mut engine) = hosts.rig(&format!("{uri}{option}"));
            let payloads: Vec<Vec<u8>> = (0..4000u32).map(|number| number.to_be_bytes().repeat(250)).collect();
            forward(&mut engine, &samples(payloads));
            rig.assert_ledger(&uri);
            let sent = rig.sent(&uri);
            let expired = rig.dropped(&uri, "expired");
            assert!(rig.metric("sekiwake_forward_errors_total", &[&*uri, "no_buffer_space"]) > 0.0);
            // More than the bucket and the queue hold at once.
            assert!(sent > 300, "{sent} sent, {expired} expired");
            assert_eq!(sent + expired, 4000);
            sink.wait_for(sent, PATIENCE).unwrap();
            sink.wait_for_silence(Duration::from_millis(300), PATIENCE).unwrap();
            assert_eq!(sink.finish().received, sent, "{uri}{option}");
            rig.stop();
        }
    }
}

#[test]
fn broadcast_and_multicast_destinations_get_datagrams() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(false);
    hosts.forwarder.ip("route add default dev fwd0").unwrap();
    let payloads: Vec<Vec<u8>> = (0..100u8).map(|number| vec![number; 700]).collect();
    for host in ["198.18.0.255", "255.255.255.255", "224.1.2.3", "[ff05::1:3]"] {
        let address: SocketAddr = format!("{host}:{PORT}").parse().unwrap();
        let socket = hosts.collector.udp_socket(address).unwrap();
        match address.ip() {
            IpAddr::V4(group) if group.is_multicast() => {
                socket.join_multicast_v4(&group, &Ipv4Addr::new(198, 18, 0, 2)).unwrap();
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(group) => {
                // Index 0: the interface of the route to the group.
                socket.join_multicast_v6(&group, 0).unwrap();
            }
        }
        let sink = Sink::start(vec![socket], Options::counts().payloads()).unwrap();
        let uri = format!("udp://{address}");
        let (rig, mut engine) = hosts.rig(&uri);
        forward(&mut engine, &samples(payloads.clone()));
        assert!(arrived(sink, payloads.len()) == payloads, "{uri}");
        assert_eq!(rig.metric("sekiwake_forward_errors_total", &[]), 0.0, "{uri}");
        rig.assert_ledger(&uri);
        rig.stop();
    }
}
