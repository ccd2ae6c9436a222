//! Batches of datagrams over loopback.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{self, IoSlice, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsFd, AsRawFd},
    thread,
    time::{Duration, Instant},
};

use sekiwake_sys::{
    Arrivals, ErrorOrigin, FanoutMode, MAX_MESSAGES, Outgoing, ReceiveBuffers, force_receive_buffer, join_fanout,
    receive_batch, receive_error, send_batch, set_receive_errors, set_udp_gro,
};

const IPV4: &str = "127.0.0.1:0";
const IPV6: &str = "[::1]:0";

/// The limit of a wait.
const PATIENCE: Duration = Duration::from_secs(60);

fn pair(address: &str) -> (UdpSocket, UdpSocket) {
    let receiver = UdpSocket::bind(address).unwrap();
    let sender = UdpSocket::bind(address).unwrap();
    force_receive_buffer(receiver.as_fd(), 8 << 20).unwrap();
    (receiver, sender)
}

fn plain<'a>(slices: &'a [IoSlice<'a>], to: Option<SocketAddr>) -> Outgoing<'a> {
    Outgoing { slices, to, ..Outgoing::default() }
}

/// A received datagram.
#[derive(Debug, PartialEq)]
struct Datagram {
    source: SocketAddr,
    payload: Vec<u8>,
}

/// Datagrams, and the most that one message had.
struct Reception {
    datagrams: Vec<Datagram>,
    most_per_message: usize,
}

/// Receives `count` datagrams.
fn receive(socket: &UdpSocket, count: usize) -> Reception {
    let mut buffers = ReceiveBuffers::default();
    let mut received = Vec::new();
    let mut most_per_message = 0;
    let deadline = Instant::now() + PATIENCE;
    while received.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} received", received.len());
        match receive_batch(socket.as_fd(), &mut buffers) {
            Ok(messages) => {
                let before = received.len();
                let datagrams = buffers.datagrams();
                received.extend(datagrams.map(|it| Datagram { source: it.source, payload: it.payload.to_vec() }));
                most_per_message = most_per_message.max((received.len() - before).div_ceil(messages));
            }
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                thread::yield_now();
            }
        }
    }
    Reception { datagrams: received, most_per_message }
}

fn check_mixed_batch(address: &str) {
    let (receiver, sender) = pair(address);
    let to = Some(receiver.local_addr().unwrap());
    let head = b"head".as_slice();
    let tail = b"-tail".as_slice();
    let large = vec![7; 9000];
    let gathered = [IoSlice::new(head), IoSlice::new(tail)];
    let whole = [IoSlice::new(&large)];
    let halves = [IoSlice::new(&large[..1000]), IoSlice::new(&large[..750])];
    let empty = [IoSlice::new(b"")];
    let segments = Outgoing { slices: &halves, to, segment_bytes: Some(500), ..Outgoing::default() };
    let messages = [plain(&gathered, to), segments, plain(&empty, to), plain(&[], to), plain(&whole, to)];
    assert_eq!(send_batch(sender.as_fd(), &messages).unwrap(), messages.len());
    let received = receive(&receiver, 8).datagrams;
    let source = sender.local_addr().unwrap();
    assert!(received.iter().all(|datagram| datagram.source == source));
    let payloads: Vec<Vec<u8>> = received.into_iter().map(|datagram| datagram.payload).collect();
    let segment = |bytes| vec![7; bytes];
    let expected =
        [b"head-tail".to_vec(), segment(500), segment(500), segment(500), segment(250), vec![], vec![], segment(9000)];
    assert_eq!(payloads, expected);
}

#[test]
fn mixed_batch_arrives_in_order_over_ipv4() {
    check_mixed_batch(IPV4);
}

#[test]
fn mixed_batch_arrives_in_order_over_ipv6() {
    check_mixed_batch(IPV6);
}

fn check_coalesced_datagrams_are_split(address: &str) {
    let (receiver, sender) = pair(address);
    set_udp_gro(receiver.as_fd(), true).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let bytes: Vec<u8> = (0..64 * 300 - 100).map(|index| (index / 300) as u8).collect();
    let slices = [IoSlice::new(&bytes)];
    let message = Outgoing { slices: &slices, segment_bytes: Some(300), ..Outgoing::default() };
    assert_eq!(send_batch(sender.as_fd(), &[message]).unwrap(), 1);
    let received = receive(&receiver, 64);
    assert!(received.most_per_message > 1, "the kernel coalesced no datagrams, so nothing was tested");
    for (index, datagram) in received.datagrams.iter().enumerate() {
        assert_eq!(datagram.source, sender.local_addr().unwrap());
        let length = if index == 63 { 200 } else { 300 };
        assert_eq!(datagram.payload, vec![index as u8; length]);
    }
}

#[test]
fn coalesced_datagrams_are_split_over_ipv4() {
    check_coalesced_datagrams_are_split(IPV4);
}

#[test]
fn coalesced_datagrams_are_split_over_ipv6() {
    check_coalesced_datagrams_are_split(IPV6);
}

#[test]
fn empty_datagram_is_one_datagram_even_with_gro() {
    let (receiver, sender) = pair(IPV4);
    set_udp_gro(receiver.as_fd(), true).unwrap();
    sender.send_to(&[], receiver.local_addr().unwrap()).unwrap();
    let source = sender.local_addr().unwrap();
    assert_eq!(receive(&receiver, 1).datagrams, [Datagram { source, payload: vec![] }]);
}

#[test]
fn largest_datagram_of_each_family_arrives() {
    for (address, bytes) in [(IPV4, 65_507), (IPV6, 65_527)] {
        let (receiver, sender) = pair(address);
        let payload: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
        let slices = [IoSlice::new(&payload)];
        let to = Some(receiver.local_addr().unwrap());
        assert_eq!(send_batch(sender.as_fd(), &[plain(&slices, to)]).unwrap(), 1);
        assert_eq!(receive(&receiver, 1).datagrams[0].payload, payload);
    }
}

#[test]
fn call_sends_at_most_64_messages() {
    let (receiver, sender) = pair(IPV4);
    let to = Some(receiver.local_addr().unwrap());
    let slices = [IoSlice::new(b"x")];
    let messages = vec![plain(&slices, to); MAX_MESSAGES + 6];
    assert_eq!(send_batch(sender.as_fd(), &messages).unwrap(), MAX_MESSAGES);
    assert_eq!(send_batch(sender.as_fd(), &messages[MAX_MESSAGES..]).unwrap(), 6);
    assert_eq!(receive(&receiver, 70).datagrams.len(), 70);
    assert_eq!(send_batch(sender.as_fd(), &[]).unwrap(), 0);
}

#[test]
fn messages_of_a_batch_may_have_different_source_addresses() {
    let receiver = UdpSocket::bind(IPV4).unwrap();
    let sender = UdpSocket::bind("0.0.0.0:0").unwrap();
    let to = Some(receiver.local_addr().unwrap());
    let port = sender.local_addr().unwrap().port();
    let slices = [IoSlice::new(b"12345")];
    let froms = [[127, 0, 0, 7], [127, 0, 0, 8], [127, 0, 0, 9]].map(IpAddr::from);
    let plain = Outgoing { slices: &slices, to, ..Outgoing::default() };
    let marked = Outgoing { from: Some(froms[1]), tos: Some(0xB8), segment_bytes: Some(2), ..plain };
    let messages = [Outgoing { from: Some(froms[0]), ..plain }, marked, Outgoing { from: Some(froms[2]), ..plain }];
    assert_eq!(send_batch(sender.as_fd(), &messages).unwrap(), 3);
    let sources: Vec<SocketAddr> = receive(&receiver, 5).datagrams.into_iter().map(|it| it.source).collect();
    let expected = [froms[0], froms[1], froms[1], froms[1], froms[2]].map(|from| SocketAddr::new(from, port));
    assert_eq!(sources, expected);
}

#[test]
fn foreign_source_address_fails_without_ip_transparent() {
    for (address, foreign) in [(IPV4, "198.51.100.7"), (IPV6, "2001:db8::7")] {
        let (receiver, sender) = pair(address);
        let slices = [IoSlice::new(b"x")];
        let to = Some(receiver.local_addr().unwrap());
        let message = Outgoing { slices: &slices, to, from: Some(foreign.parse().unwrap()), ..Outgoing::default() };
        assert!(send_batch(sender.as_fd(), &[message]).is_err(), "{foreign}");
    }
}

#[test]
fn empty_socket_would_block_and_clears_the_last_batch() {
    let (receiver, sender) = pair(IPV4);
    let mut buffers = ReceiveBuffers::default();
    sender.send_to(b"x", receiver.local_addr().unwrap()).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while receive_batch(receiver.as_fd(), &mut buffers).is_err() {
        assert!(Instant::now() < deadline);
    }
    assert_eq!(buffers.datagrams().count(), 1);
    let error = receive_batch(receiver.as_fd(), &mut buffers).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert_eq!(buffers.datagrams().count(), 0);
}

#[test]
fn error_of_a_later_message_is_returned_when_it_is_first() {
    let (receiver, sender) = pair(IPV4);
    let to = Some(receiver.local_addr().unwrap());
    let good = [IoSlice::new(b"good")];
    let bad = vec![0; 65_508];
    let bad = [IoSlice::new(&bad)];
    let messages = [plain(&good, to), plain(&bad, to), plain(&good, to)];
    assert_eq!(send_batch(sender.as_fd(), &messages).unwrap(), 1);
    assert_eq!(send_batch(sender.as_fd(), &messages[1..]).unwrap_err().raw_os_error(), Some(libc::EMSGSIZE));
    assert_eq!(send_batch(sender.as_fd(), &messages[2..]).unwrap(), 1);
}

#[test]
fn udp_socket_cannot_join_a_fanout_group() {
    let (receiver, _) = pair(IPV4);
    assert!(join_fanout(&receiver, 1, FanoutMode::Hash).is_err());
}

fn check_icmp_errors_are_queued(address: &str) {
    let (receiver, sender) = pair(address);
    let closed = receiver.local_addr().unwrap();
    drop(receiver);
    set_receive_errors(sender.as_fd(), closed.is_ipv6(), true).unwrap();
    sender.connect(closed).unwrap();
    assert!(receive_error(sender.as_fd()).unwrap().is_none());
    for _ in 0..3 {
        // On loopback the ICMP error arrives before the send call returns. Left in the queue, it
        // fails the next send.
        sender.send(b"anyone?").unwrap();
        let queued = receive_error(sender.as_fd()).unwrap().unwrap();
        assert_eq!((queued.origin, queued.error.kind()), (ErrorOrigin::Icmp, io::ErrorKind::ConnectionRefused));
        assert!(receive_error(sender.as_fd()).unwrap().is_none());
    }
    let too_long = sender.send(&[0; 65_535]).unwrap_err();
    let local = receive_error(sender.as_fd()).unwrap().unwrap();
    assert_eq!((local.origin, local.error.raw_os_error()), (ErrorOrigin::Local, too_long.raw_os_error()));
}

#[test]
fn icmp_errors_are_in_the_error_queue_over_ipv4() {
    check_icmp_errors_are_queued(IPV4);
}

#[test]
fn icmp_errors_are_in_the_error_queue_over_ipv6() {
    check_icmp_errors_are_queued(IPV6);
}

#[test]
fn arrivals_report_unread_data_once_until_more_arrives() {
    let listener = TcpListener::bind(IPV4).unwrap();
    let mut writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut reader, _) = listener.accept().unwrap();
    let arrivals = Arrivals::new().unwrap();
    let number = reader.as_raw_fd();
    arrivals.watch(number).unwrap();
    arrivals.watch(number).unwrap();
    let next = || {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let arrived = arrivals.take().unwrap();
            if !arrived.is_empty() {
                return arrived;
            }
            assert!(Instant::now() < deadline);
        }
    };
    assert!(arrivals.take().unwrap().is_empty());
    writer.write_all(b"first").unwrap();
    assert_eq!(next(), [number]);
    assert!(arrivals.take().unwrap().is_empty(), "it has been reported");
    writer.write_all(b"second").unwrap();
    assert_eq!(next(), [number]);
    writer.write_all(b"third").unwrap();
    reader.read_exact(&mut [0; 16]).unwrap();
    assert!(arrivals.take().unwrap().is_empty(), "it has been read");
    drop(reader);
    assert!(arrivals.take().unwrap().is_empty(), "it is closed");
}
