//! Received datagrams: address, port, bytes, order, and headers.

use std::{
    io::{BufRead, BufReader, Read},
    process::Stdio,
};

use sekiwake_testkit::netns::namespaces_or_skipped;

use super::*;

/// Both sides of every limit, and runs that are long enough for a socket, of equal and mixed sizes.
fn lengths(mtu: usize, headers: usize, longest: usize) -> Vec<usize> {
    let fits = mtu - headers;
    let mut lengths = vec![0, 1, 2, 3, fits - 1, fits, fits + 1, fits + 2, 0, 9001, longest, longest - 1, 5];
    lengths.extend(std::iter::repeat_n(fits, 60));
    lengths.extend(std::iter::repeat_n(200, 130));
    lengths.extend((0..150).map(|index| 200 + index * 7919 % 1201));
    lengths
}

fn check_sizes(mtu: u32, offload: bool) {
    let hosts = Hosts::new(mtu, offload);
    for (destination, headers, longest) in [("198.18.0.2", 28, 65_507), ("2001:db8::2", 48, 65_527)] {
        let sink = hosts.sink(Options::counts().payloads());
        let mut sender = hosts.sender(destination);
        let mut sent = Vec::new();
        // Ports that may be bound and others; sources with all sizes, and many sources with one
        // datagram in between.
        for round in 0..3 {
            let mut samples = Vec::new();
            for (number, port) in [(1, 514), (2, 40_000), (3, PORT), (4, 2055), (4, 2056), (5, 0), (6, 65_535)] {
                let source = SocketAddr::new(device(destination, number), port);
                let lengths = lengths(mtu as usize, headers, longest);
                let payloads =
                    lengths.into_iter().enumerate().map(|(index, length)| payload(length, round * 1000 + index));
                samples.extend(payloads.map(|payload| Sample::new(source, payload)));
                let others = (100..140).map(|number| SocketAddr::new(device(destination, number), 514));
                samples.extend(others.map(|source| Sample::new(source, payload(100 + round, round))));
            }
            hosts.send_samples(&mut sender, &samples);
            sent.extend(samples);
        }
        assert_eq!(sender.take_fallbacks(), [0; 3]);
        assert_eq!(sender.take_gso_rejected(), 0);
        assert_eq!(sender.sockets(), (4, 4), "ports 40000, 2055, 2056, 65535");
        assert_arrives(sink, sent);
    }
}

#[test]
fn every_size_keeps_its_source_over_mtu_1500() {
    if namespaces_or_skipped() {
        check_sizes(1500, false);
    }
}

#[test]
fn every_size_keeps_its_source_over_mtu_1280() {
    if namespaces_or_skipped() {
        check_sizes(1280, false);
    }
}

#[test]
fn every_size_keeps_its_source_where_devices_segment() {
    if namespaces_or_skipped() {
        check_sizes(1500, true);
    }
}

/// Runs `send` while tcpdump listens on the collector's interface. Returns its output of `count`
/// datagrams.
fn dumped(hosts: &Hosts, count: usize, send: impl FnOnce()) -> String {
    let mut tcpdump = hosts.collector.command("timeout");
    tcpdump.args(["10", "tcpdump", "-i", "col0", "-n", "-vv", "-l", "-c", &count.to_string(), "udp and dst port 5514"]);
    let mut child = tcpdump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut complaints = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(complaints.any(|line| line.unwrap().contains("listening on")), "tcpdump did not start");
    send();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    child.wait().unwrap();
    text
}

#[test]
fn checksums_on_the_wire_are_correct_and_present() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    for (destination, dscp) in [("198.18.0.2", "tos 0xb8"), ("2001:db8::2", "class 0xb8")] {
        let _sink = hosts.sink(Options::counts());
        let mut sender = hosts.sender(destination);
        let source = SocketAddr::new(device(destination, 9), 162);
        let to = at(destination, PORT);
        let mut payloads: Vec<Vec<u8>> = [0, 1, 2, 3, 1001, 1400].map(|length| payload(length, length)).into();
        // One with a checksum of 0: its last word has the missing value.
        let mut zero = vec![1, 2, 3, 4, 0, 0];
        let checksum = checksum::udp_header(source, to, &zero).unwrap();
        zero[4..].copy_from_slice(&checksum[6..]);
        assert_eq!(checksum::udp_header(source, to, &zero).unwrap()[6..], [255, 255]);
        payloads.push(zero);
        let datagrams: Vec<Spoofed<'_>> =
            payloads.iter().map(|payload| Spoofed { source, payload, tos: Some(0xB8), own_address: false }).collect();
        let text = dumped(&hosts, datagrams.len(), || hosts.send(&mut sender, &datagrams));
        let count = |what: &str| text.matches(what).count();
        assert_eq!(count("udp sum ok"), datagrams.len(), "{text}");
        assert_eq!(count(dscp), datagrams.len(), "{text}");
        assert_eq!(count(&format!("{}.162 > ", source.ip())), datagrams.len(), "{text}");
        assert_eq!(count("ttl 64") + count("hlim 64"), datagrams.len(), "{text}");
        // IPv4 identifications are the kernel's, and header checksums correct: tcpdump reports
        // wrong ones.
        assert_eq!(count(" id 0,") + count("bad cksum"), 0, "{text}");
    }
}

#[test]
fn dscp_is_kept_in_segmented_runs() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    for (destination, class) in [("198.18.0.2", "tos 0x28"), ("2001:db8::2", "class 0x28")] {
        let _sink = hosts.sink(Options::counts());
        let mut sender = hosts.sender(destination);
        let source = SocketAddr::new(device(destination, 9), 50_000);
        let payload = payload(300, 1);
        // Marked and plain datagrams in turns of twenty: each turn is a run of its own.
        let datagrams: Vec<Spoofed<'_>> = (0..120)
            .map(|number| Spoofed {
                source,
                payload: &payload,
                tos: (number / 20 % 2 == 0).then_some(0x28),
                own_address: false,
            })
            .collect();
        let text = dumped(&hosts, 120, || hosts.send(&mut sender, &datagrams));
        assert_eq!(text.matches(class).count(), 60, "{text}");
        assert_eq!(text.matches("udp sum ok").count(), 120, "{text}");
        assert_eq!(sender.sockets().0, 1);
    }
}

#[test]
fn multicast_and_broadcast_get_the_devices_address() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    hosts.forwarder.ip("route add default dev spf0").unwrap();
    for group in ["198.18.0.255", "224.1.2.3", "ff05::1:3"] {
        let socket = bind(&hosts.collector, at(group, PORT));
        match at(group, PORT).ip() {
            IpAddr::V4(v4) if v4.is_multicast() => {
                socket.join_multicast_v4(&v4, &Ipv4Addr::new(198, 18, 0, 2)).unwrap()
            }
            IpAddr::V4(_) => {}
            IpAddr::V6(v6) => socket.join_multicast_v6(&v6, 0).unwrap(),
        }
        let sink = hosts.collector.enter(|| Sink::start(vec![socket], Options::counts().payloads())).unwrap().unwrap();
        let mut sender = hosts.sender(group);
        let samples: Vec<Sample> = (0..200)
            .map(|number| {
                Sample::new(SocketAddr::new(device(group, 1 + number / 100), 40_000), payload(500, number as usize))
            })
            .collect();
        hosts.send_samples(&mut sender, &samples);
        hosts.send_samples(&mut sender, &samples);
        assert_eq!(sender.sockets().0, 2, "{group}");
        assert_arrives(sink, [samples.clone(), samples].concat());
    }
}
