//! From one namespace to another, over a link on which every checksum is computed and checked.

mod cost;
mod delivery;
mod hindrances;
mod sockets;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    process::Command,
    thread,
    time::Duration,
};

use sekiwake_testkit::{
    netns::{End, Link, Namespace},
    sink::{Options, Report, Sink},
    wait::wait_for,
};

use super::*;

const PORT: u16 = 5514;
const PATIENCE: Duration = Duration::from_secs(60);

/// The forwarder's namespace, and the collector's.
struct Hosts {
    forwarder: Namespace,
    collector: Namespace,
}

impl Hosts {
    fn new(mtu: u32, offload: bool) -> Hosts {
        let forwarder = Namespace::new("skw-spf").unwrap();
        let collector = Namespace::new("skw-col").unwrap();
        let left = End::new(&forwarder, "spf0").address("198.18.0.1/24").address("2001:db8::1/64");
        let right = End::new(&collector, "col0").address("198.18.0.2/24").address("2001:db8::2/64");
        let link = Link::new(left, right).mtu(mtu).segmentation_offload(offload).checksum_offload(offload);
        link.create().unwrap();
        let no_filter = || {
            for scope in ["all", "col0"] {
                std::fs::write(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter"), "0").unwrap();
            }
        };
        collector.enter(no_filter).unwrap();
        Hosts { forwarder, collector }
    }

    fn sink(&self, options: Options) -> Sink {
        self.sink_at(&[at("198.18.0.2", PORT), at("2001:db8::2", PORT)], options)
    }

    fn sink_at(&self, addresses: &[SocketAddr], options: Options) -> Sink {
        let sockets = addresses.iter().map(|&address| bind(&self.collector, address)).collect();
        self.collector.enter(|| Sink::start(sockets, options)).unwrap().unwrap()
    }

    fn sender(&self, destination: &str) -> SpoofSender {
        self.forwarder.enter(|| SpoofSender::connect(at(destination, PORT))).unwrap().unwrap()
    }

    /// Sends from the forwarder's namespace, because sockets are opened when they are needed.
    fn send(&self, sender: &mut SpoofSender, datagrams: &[Spoofed<'_>]) {
        self.forwarder.enter(|| send_all(sender, datagrams)).unwrap();
    }

    fn send_samples(&self, sender: &mut SpoofSender, samples: &[Sample]) {
        let datagrams: Vec<Spoofed<'_>> = samples.iter().map(Sample::spoofed).collect();
        self.send(sender, &datagrams);
    }

    fn tc(&self, arguments: &str) {
        let mut command: Command = self.forwarder.command("tc");
        assert!(command.args(arguments.split(' ')).status().unwrap().success());
    }
}

/// Retries for a while, because a child that another test is just starting has all sockets of this
/// process until it executes.
fn bind(namespace: &Namespace, address: SocketAddr) -> UdpSocket {
    let mut socket = None;
    wait_for(&format!("binding of {address}"), PATIENCE, || {
        socket = namespace.udp_socket(address).ok();
        socket.is_some()
    })
    .unwrap();
    socket.unwrap()
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Addresses of devices, of the family of `like`.
fn device(like: &str, number: u32) -> IpAddr {
    match like.parse().unwrap() {
        IpAddr::V4(_) => Ipv4Addr::from_bits(Ipv4Addr::new(198, 19, 0, 0).to_bits() + number).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, (number >> 16) as u16, number as u16).into(),
    }
}

/// A datagram that must arrive.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sample {
    source: SocketAddr,
    payload: Vec<u8>,
}

impl Sample {
    fn new(source: SocketAddr, payload: Vec<u8>) -> Sample {
        Sample { source, payload }
    }

    fn spoofed(&self) -> Spoofed<'_> {
        Spoofed { source: self.source, payload: &self.payload, tos: None, own_address: false }
    }
}

/// `length` bytes that identify themselves.
fn payload(length: usize, number: usize) -> Vec<u8> {
    let mut payload: Vec<u8> = (0..length).map(|byte| (byte * 13 + number * 7 + byte / 251) as u8).collect();
    let head = (number as u32).to_be_bytes();
    let known = head.len().min(length);
    payload[..known].copy_from_slice(&head[..known]);
    payload
}

/// Sends all datagrams, waiting as the worker does.
fn send_all(sender: &mut SpoofSender, datagrams: &[Spoofed<'_>]) {
    let mut next = 0;
    while next < datagrams.len() {
        match sender.send(&datagrams[next..]) {
            Ok(count) => {
                assert!(count > 0);
                next += count;
            }
            Err(error) => match Fault::of(&error) {
                Fault::SocketFull => sender.wait_writable(Duration::from_millis(100)),
                Fault::NoBuffers => thread::sleep(Duration::from_millis(1)),
                fault => panic!("{fault:?} of {next}, {} bytes", datagrams[next].payload.len()),
            },
        }
    }
}

/// The received datagrams, in their order.
fn arrived(report: &Report) -> Vec<Sample> {
    report.payloads.iter().map(|datagram| Sample::new(datagram.source, datagram.payload.clone())).collect()
}

/// Checks that everything arrived unchanged, in the order of each source, with correct checksums.
fn assert_arrives(sink: Sink, mut sent: Vec<Sample>) {
    let mut came = all_arrived(sink, sent.len());
    // The sort is stable, so the order of each source stays.
    came.sort_by_key(|sample| sample.source);
    sent.sort_by_key(|sample| sample.source);
    let difference = came.iter().zip(&sent).position(|(came, sent)| came != sent);
    assert!(difference.is_none(), "differs from datagram {difference:?} on");
}

/// The same in any order: packets that a queue's timer and the sender dequeue may arrive on two
/// processors.
fn assert_arrives_in_any_order(sink: Sink, mut sent: Vec<Sample>) {
    let mut came = all_arrived(sink, sent.len());
    for samples in [&mut came, &mut sent] {
        samples.sort_by(|one, other| (one.source, &one.payload).cmp(&(other.source, &other.payload)));
    }
    let difference = came.iter().zip(&sent).position(|(came, sent)| came != sent);
    assert!(difference.is_none(), "differs from datagram {difference:?} on");
}

fn all_arrived(sink: Sink, count: usize) -> Vec<Sample> {
    sink.wait_for(count as u64, PATIENCE).unwrap();
    let report = sink.finish();
    assert_eq!(report.dropped, Some(0), "dropped by the sink's kernel: full buffer or bad checksum");
    let came = arrived(&report);
    assert_eq!(came.len(), count);
    came
}
