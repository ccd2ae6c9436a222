//! Tests of the testkit in real namespaces.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use sekiwake_testkit::{
    netns::{End, Link, Namespace, namespaces_or_skipped, vlan_interfaces_available},
    process::Process,
    sink::{Options, Sink},
    skip::skip,
};

const LONG: Duration = Duration::from_secs(60);

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn datagrams_cross_a_link_over_ipv4_and_ipv6() {
    if namespaces_or_skipped() {
        check_crossing(false);
    }
}

#[test]
fn datagrams_cross_vlans() {
    if !namespaces_or_skipped() {
        return;
    }
    if !vlan_interfaces_available() {
        skip("this kernel has no 802.1Q");
        return;
    }
    check_crossing(true);
}

fn check_crossing(tagged: bool) {
    let left = Namespace::new("skw-kit").unwrap();
    let right = Namespace::new("skw-kit").unwrap();
    let mut left_end = End::new(&left, "left0")
        .addresses((1..=200).map(|host| format!("198.18.0.{host}/23")))
        .address("2001:db8::1/64");
    let mut right_end = End::new(&right, "right0").addresses(["198.18.1.1/23", "2001:db8::2/64"]);
    let mut listening = vec!["198.18.1.1:0", "[2001:db8::2]:0"];
    let mut sources = vec!["198.18.0.200:0", "[2001:db8::1]:0"];
    if tagged {
        left_end = left_end.vlan(7, &["198.18.7.1/24"]).qinq(30, 31, &["198.18.31.1/24"]);
        right_end = right_end.vlan(7, &["198.18.7.2/24"]).qinq(30, 31, &["198.18.31.2/24"]);
        listening.extend(["198.18.7.2:0", "198.18.31.2:0"]);
        sources.extend(["198.18.7.1:0", "198.18.31.1:0"]);
    }
    Link::new(left_end, right_end).mtu(1400).create().unwrap();
    let listening: Vec<SocketAddr> = listening.into_iter().map(address).collect();
    let sink = right.enter(|| Sink::bind(&listening, Options::counts().payloads())).unwrap().unwrap();
    let mut expected = Vec::new();
    for (source, &destination) in sources.into_iter().map(address).zip(sink.addresses()) {
        let socket = left.udp_socket(source).unwrap();
        for payload in [vec![1; 10], vec![2; 3000]] {
            socket.send_to(&payload, destination).unwrap();
            expected.push((destination.port(), socket.local_addr().unwrap(), payload));
        }
    }
    sink.wait_for(expected.len() as u64, LONG).unwrap();
    let report = sink.finish();
    let mut received: Vec<_> = report.payloads.into_iter().map(|seen| (seen.port, seen.source, seen.payload)).collect();
    received.sort();
    expected.sort();
    assert_eq!(received, expected);
    assert_eq!(report.dropped, Some(0));
}

#[test]
fn frames_for_a_foreign_mac_reach_the_wire_but_no_socket() {
    if !namespaces_or_skipped() {
        return;
    }
    let left = Namespace::new("skw-kit").unwrap();
    let right = Namespace::new("skw-kit").unwrap();
    let collector: IpAddr = "198.18.0.2".parse().unwrap();
    Link::new(
        End::new(&left, "left0").address("198.18.0.1/24").neighbour(collector, "02:00:5e:00:00:99"),
        End::new(&right, "right0").addresses(["198.18.0.2/24", "198.18.0.3/24"]),
    )
    .create()
    .unwrap();
    let listening = ["198.18.0.2:0", "198.18.0.3:0"].map(address);
    let sink = right.enter(|| Sink::bind(&listening, Options::counts())).unwrap().unwrap();
    let socket = left.udp_socket(address("198.18.0.1:0")).unwrap();
    socket.send_to(b"mirrored", sink.addresses()[0]).unwrap();
    socket.send_to(b"addressed", sink.addresses()[1]).unwrap();
    sink.wait_for(1, LONG).unwrap();
    let addressed = sink.addresses()[1].port();
    let report = sink.finish();
    assert_eq!((report.received, report.by_port[&addressed].received), (1, 1));
    // Both frames crossed the wire; the frame for another host was dropped by the kernel.
    let statistics = right.enter(|| fs::read_to_string("/proc/thread-self/net/snmp")).unwrap().unwrap();
    let udp = statistics.lines().filter(|line| line.starts_with("Udp:")).nth(1).unwrap();
    assert!(udp.starts_with("Udp: 1 "), "{udp}");
    let counters = right.ip("-s -j link show dev right0").unwrap();
    let counters: serde_json::Value = serde_json::from_str(&counters).unwrap();
    assert!(counters[0]["stats64"]["rx"]["packets"].as_u64().unwrap() >= 2, "{counters}");
}

#[test]
fn injected_frame_arrives_unmodified() {
    if !namespaces_or_skipped() {
        return;
    }
    let left = Namespace::new("skw-kit").unwrap();
    let right = Namespace::new("skw-kit").unwrap();
    Link::new(End::new(&left, "left0"), End::new(&right, "right0").address("198.18.0.2/24")).create().unwrap();
    let sink = right.enter(|| Sink::bind(&[address("198.18.0.2:514")], Options::counts().payloads())).unwrap().unwrap();
    let frame = [
        &[0xff; 6][..],                                                                  // broadcast
        &[2, 0, 0, 0, 0, 1, 0x08, 0], // arbitrary source address, IPv4
        &[0x45, 0, 0, 30, 0, 1, 0, 0, 64, 17, 0xe5, 0x9e, 198, 18, 9, 9, 198, 18, 0, 2], // 30 bytes, UDP
        &[0x30, 0x39, 2, 2, 0, 10, 0, 0, b'h', b'i'], // 12345 to 514, 10 bytes, no checksum
    ]
    .concat();
    // The sender's network needs a route, or reverse path filtering drops the frame.
    right.ip("route add 198.18.9.0/24 dev right0").unwrap();
    left.inject("left0", &[&frame, &frame]).unwrap();
    sink.wait_for(2, LONG).unwrap();
    let report = sink.finish();
    assert_eq!(report.payloads[1].payload, b"hi");
    assert_eq!(report.payloads[1].source, address("198.18.9.9:12345"));
    assert!(left.inject("left0", &[vec![0_u8; 9000]]).is_err());
}

#[test]
fn program_runs_inside_and_namespace_is_removed_when_dropped() {
    if !namespaces_or_skipped() {
        return;
    }
    let namespace = Namespace::new("skw-kit").unwrap();
    let path = format!("/run/netns/{}", namespace.name());
    assert!(fs::exists(&path).unwrap());
    let mut command = Command::new("sh");
    command.args(["-c", "echo $VALUE $$; ls /sys/class/net; exec sleep 60"]).env("VALUE", "seven");
    let mut process = Process::spawn(namespace.exec(&command)).unwrap();
    process.wait_for_line(LONG, |line| line == "lo").unwrap();
    assert_eq!(process.stdout(), [format!("seven {}", process.pid()), "lo".to_owned()]);
    process.stop(LONG).unwrap();
    drop(namespace);
    assert!(!fs::exists(&path).unwrap());
}
