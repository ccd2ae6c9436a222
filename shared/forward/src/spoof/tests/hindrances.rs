//! Obstacles: ports in use, missing privileges, smaller MTUs, full queues, no route.

use std::net::UdpSocket;

use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use sekiwake_testkit::netns::namespaces_or_skipped;

use super::*;
use crate::metrics::ErrorKind;

/// Runs `body` in the forwarder's namespace without these capabilities.
fn without<T: Send>(hosts: &Hosts, dropped: CapabilitySet, body: impl FnOnce() -> T + Send) -> T {
    let unprivileged = || {
        let mut sets = capabilities(None).unwrap();
        sets.effective -= dropped;
        sets.permitted -= dropped;
        set_capabilities(None, sets).unwrap();
        body()
    };
    hosts.forwarder.enter(unprivileged).unwrap()
}

#[test]
fn port_of_a_local_daemon_is_kept_and_not_disturbed() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    for (destination, any) in [("198.18.0.2", "0.0.0.0"), ("2001:db8::2", "::")] {
        let daemons = [514, 40_514].map(|port| bind(&hosts.forwarder, at(any, port)));
        let sink = hosts.sink(Options::counts().payloads());
        let mut sender = hosts.sender(destination);
        let mut samples = Vec::new();
        for port in [514, 40_514] {
            let source = SocketAddr::new(device(destination, 7), port);
            let lengths = std::iter::repeat_n(700, 200).chain([0, 1, 1473, 40_000]);
            samples.extend(lengths.enumerate().map(|(number, length)| Sample::new(source, payload(length, number))));
        }
        hosts.send_samples(&mut sender, &samples);
        assert_eq!(sender.sockets(), (0, 0));
        assert_eq!(sender.take_fallbacks(), [0; 3]);
        assert_arrives(sink, samples);
        for daemon in daemons {
            daemon.set_nonblocking(true).unwrap();
            assert_eq!(daemon.recv(&mut [0; 10]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }
}

#[test]
fn daemon_can_start_while_its_port_is_spoofed() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    let sink = hosts.sink(Options::counts().payloads());
    let mut sender = hosts.sender("198.18.0.2");
    let samples: Vec<Sample> = [514, PORT]
        .into_iter()
        .flat_map(|port| {
            (0..200)
                .map(move |number| Sample::new(SocketAddr::new(device("198.18.0.2", 7), port), payload(300, number)))
        })
        .collect();
    hosts.send_samples(&mut sender, &samples);
    for port in [514, PORT] {
        hosts.forwarder.udp_socket(at("0.0.0.0", port)).unwrap();
    }
    assert_arrives(sink, samples);
}

#[test]
fn local_address_is_spoofed_without_binding_ports() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    let source = at("198.18.0.1", 40_000);
    let daemon = bind(&hosts.forwarder, source);
    let samples: Vec<Sample> = (0..500).map(|number| Sample::new(source, payload(300, number))).collect();
    // No receiver listens yet: the ICMP errors come back to this host and must not disturb the
    // sender.
    let mut sender = hosts.sender("198.18.0.2");
    hosts.send_samples(&mut sender, &samples);
    let sink = hosts.sink(Options::counts().payloads());
    hosts.send_samples(&mut sender, &samples);
    assert_eq!(sender.sockets(), (0, 0));
    assert_arrives(sink, samples);
    drop(daemon);
}

#[test]
fn ports_below_1024_need_no_net_bind_service() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    for destination in ["198.18.0.2", "2001:db8::2"] {
        let sink = hosts.sink(Options::counts().payloads());
        let source = SocketAddr::new(device(destination, 7), 162);
        let lengths = std::iter::repeat_n(700, 200).chain([0, 1, 1473, 65_507]);
        let samples: Vec<Sample> =
            lengths.enumerate().map(|(number, length)| Sample::new(source, payload(length, number))).collect();
        // NET_ADMIN as well: NET_RAW must be enough.
        without(&hosts, CapabilitySet::NET_BIND_SERVICE | CapabilitySet::NET_ADMIN, || {
            assert!(UdpSocket::bind("0.0.0.0:162").is_err(), "the capability is still there");
            let mut sender = SpoofSender::connect(at(destination, PORT)).unwrap();
            let datagrams: Vec<Spoofed<'_>> = samples.iter().map(Sample::spoofed).collect();
            send_all(&mut sender, &datagrams);
            assert_eq!(sender.take_fallbacks(), [0; 3]);
        });
        assert_arrives(sink, samples);
    }
}

#[test]
fn start_without_net_raw_fails_and_says_how_to_grant_it() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    assert_eq!(SpoofSender::check_privilege(), Ok(()));
    without(&hosts, CapabilitySet::NET_RAW, || {
        let error = SpoofSender::check_privilege().unwrap_err().to_string();
        for hint in ["CAP_NET_RAW", "setcap", "AmbientCapabilities", "--cap-add NET_RAW", "securityContext"] {
            assert!(error.contains(hint), "{error}");
        }
        assert!(SpoofSender::connect(at("198.18.0.2", PORT)).is_err());
    });
}

#[test]
fn shrinking_mtu_loses_nothing() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    for destination in ["198.18.0.2", "2001:db8::2"] {
        let sink = hosts.sink(Options::counts().payloads());
        let mut sender = hosts.sender(destination);
        let source = SocketAddr::new(device(destination, 7), 40_000);
        let mut sent = Vec::new();
        for mtu in [1500, 1300, 1280, 1400, 1500] {
            hosts.forwarder.ip(&format!("link set spf0 mtu {mtu}")).unwrap();
            let samples: Vec<Sample> =
                (0..300).map(|number| Sample::new(source, payload(1400, sent.len() + number))).collect();
            hosts.send_samples(&mut sender, &samples);
            sent.extend(samples);
        }
        assert_eq!(sender.take_gso_rejected(), 0);
        assert_eq!(sender.sockets().0, 1);
        assert_arrives(sink, sent);
    }
}

#[test]
fn unspoofable_datagrams_are_sent_with_our_address() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    for (destination, ours, foreign, no_source) in [
        ("198.18.0.2", "198.18.0.1", "2001:db8:1::7", "0.0.0.0"),
        ("2001:db8::2", "2001:db8::1", "198.19.0.7", "ff02::1"),
    ] {
        let sink = hosts.sink(Options::counts().payloads());
        let mut sender = hosts.sender(destination);
        let device = SocketAddr::new(device(destination, 7), 40_000);
        let payloads: Vec<Vec<u8>> =
            (0..70).map(|number| payload(if number % 9 == 0 { 3000 } else { 300 }, number)).collect();
        let mut datagrams = Vec::new();
        let sources = [(at(foreign, 514), false), (device, false), (at(no_source, 514), false), (device, true)];
        for (source, own_address) in sources {
            datagrams.extend(payloads.iter().map(|payload| Spoofed { source, payload, tos: None, own_address }));
        }
        hosts.send(&mut sender, &datagrams);
        assert_eq!(sender.take_fallbacks(), [70, 70, 70]);
        assert_eq!(sender.take_fallbacks(), [0; 3], "each is reported once");
        sink.wait_for(280, PATIENCE).unwrap();
        let (own, kept): (Vec<Sample>, Vec<Sample>) =
            arrived(&sink.finish()).into_iter().partition(|sample| sample.source.ip() == at(ours, 0).ip());
        assert_eq!(own.len(), 210);
        assert!(own.iter().enumerate().all(|(number, sample)| sample.payload == payloads[number % 70]));
        assert_eq!(kept.len(), 70);
        assert!(kept.iter().zip(&payloads).all(|(sample, sent)| sample.source == device && sample.payload == *sent));
    }
}

#[test]
fn drops_of_the_own_queueing_discipline_are_errors() {
    if !namespaces_or_skipped() {
        return;
    }
    for destination in ["198.18.0.2", "2001:db8::2"] {
        for port in [514, 40_000] {
            let hosts = Hosts::new(1500, false);
            hosts.tc("qdisc add dev spf0 root tbf rate 40mbit burst 70kb limit 140kb");
            let sink = hosts.sink(Options::counts().payloads());
            let mut sender = hosts.sender(destination);
            let source = SocketAddr::new(device(destination, 7), port);
            let samples: Vec<Sample> = (0..2000).map(|number| Sample::new(source, payload(1000, number))).collect();
            hosts.send_samples(&mut sender, &samples);
            assert_arrives_in_any_order(sink, samples);
        }
    }
}

#[test]
fn missing_route_is_an_error_until_it_is_back() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    let sink = hosts.sink(Options::counts().payloads());
    let mut sender = hosts.sender("198.18.0.2");
    for port in [514, 40_000] {
        let source = SocketAddr::new(device("198.18.0.2", 7), port);
        let samples: Vec<Sample> = (0..200).map(|number| Sample::new(source, payload(300, number))).collect();
        hosts.send_samples(&mut sender, &samples);
        hosts.forwarder.ip("link set spf0 down").unwrap();
        let error = sender.send(&[samples[0].spoofed()]).unwrap_err();
        assert_eq!(Fault::of(&error), Fault::Unreachable(ErrorKind::NetworkUnreachable), "{error}");
        let many: Vec<Spoofed<'_>> = samples.iter().map(Sample::spoofed).collect();
        assert!(matches!(Fault::of(&sender.send(&many).unwrap_err()), Fault::Unreachable(_)));
        hosts.forwarder.ip("link set spf0 up").unwrap();
        hosts.send_samples(&mut sender, &samples);
    }
    sink.wait_for(800, PATIENCE).unwrap();
}

#[test]
fn only_the_too_long_datagram_is_rejected() {
    if !namespaces_or_skipped() {
        return;
    }
    let hosts = Hosts::new(1500, false);
    for (destination, longest) in [("198.18.0.2", 65_507), ("2001:db8::2", 65_527)] {
        let sink = hosts.sink(Options::counts().payloads());
        let mut sender = hosts.sender(destination);
        let source = SocketAddr::new(device(destination, 7), 40_000);
        let samples =
            [10, longest, longest + 1, 10, 70_000, 10].map(|length| Sample::new(source, payload(length, length)));
        let datagrams: Vec<Spoofed<'_>> = samples.iter().map(Sample::spoofed).collect();
        let mut next = 0;
        let mut rejected = Vec::new();
        while next < datagrams.len() {
            match sender.send(&datagrams[next..]) {
                Ok(count) => next += count,
                Err(error) => {
                    assert_eq!(Fault::of(&error), Fault::Unsendable(ErrorKind::MessageTooLong));
                    rejected.push(next);
                    next += 1;
                }
            }
        }
        assert_eq!(rejected, [2, 4]);
        let sent = [0, 1, 3, 5].map(|index| samples[index].clone()).into();
        assert_arrives(sink, sent);
    }
}
