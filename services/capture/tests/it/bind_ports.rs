//! Ports that the program binds, so that no ICMP goes back to devices.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, io, net::UdpSocket};

use sekiwake_testkit::{
    netns::{End, Link, Namespace, namespaces_or_skipped},
    wait::wait_for,
};

use crate::live::{Capture, LONG, get};

const BIND: (&str, &str) = ("SEKIWAKE_CAPTURE_BIND_PORTS", "true");
const DEVICES: [(&str, &str); 2] = [("198.18.0.1:0", "198.18.0.200:514"), ("[2001:db8::1]:0", "[2001:db8::200]:514")];
const COUNT: u64 = 20;

/// Counters of the kernel in a namespace, both address families together.
struct Kernel<'a>(&'a Namespace);

impl Kernel<'_> {
    /// Messages sent, ICMP destination unreachable of any code.
    fn unreachable_sent(&self) -> u64 {
        self.count("snmp", "Icmp", "OutDestUnreachs") + self.count6("Icmp6OutDestUnreachs")
    }

    fn udp_input_errors(&self) -> u64 {
        self.count("snmp", "Udp", "InErrors") + self.count6("Udp6InErrors")
    }

    fn read(&self, name: &str) -> String {
        self.0.enter(|| fs::read_to_string(format!("/proc/thread-self/net/{name}"))).unwrap().unwrap()
    }

    fn count(&self, file: &str, protocol: &str, name: &str) -> u64 {
        let text = self.read(file);
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol)?.strip_prefix(": "));
        let column = lines.next().unwrap().split(' ').position(|column| column == name).unwrap();
        lines.next().unwrap().split(' ').nth(column).unwrap().parse().unwrap()
    }

    fn count6(&self, name: &str) -> u64 {
        let text = self.read("snmp6");
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

fn site() -> (Namespace, Namespace) {
    let devices = Namespace::new("skw-bind").unwrap();
    let host = Namespace::new("skw-bind").unwrap();
    let left = End::new(&devices, "left0").address("198.18.0.1/24").address("2001:db8::1/64");
    let right = End::new(&host, "right0").address("198.18.0.200/24").address("2001:db8::200/64");
    Link::new(left, right).create().unwrap();
    (devices, host)
}

/// Sockets of devices, one per address family. A connected one is told of ICMP errors.
fn sockets(devices: &Namespace) -> Vec<UdpSocket> {
    let connected = |(from, to): &(&str, &str)| {
        let socket = devices.udp_socket(from.parse().unwrap()).unwrap();
        socket.connect(to).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    DEVICES.iter().map(connected).collect()
}

/// Sends `COUNT` datagrams, and returns whether the device was told of an ICMP error meanwhile.
fn send_all(socket: &UdpSocket) -> bool {
    let mut is_refused = false;
    for number in 0..COUNT {
        // An error of an earlier datagram is returned once; the datagram is then not sent.
        while let Err(error) = socket.send(format!("<13>message {number}").as_bytes()) {
            is_refused |= error.kind() == io::ErrorKind::ConnectionRefused;
        }
    }
    is_refused
}

fn is_refused(socket: &UdpSocket) -> bool {
    socket.recv(&mut [0; 64]).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

fn status(host: &Namespace) -> serde_json::Value {
    let answer = host.enter(|| get("/status")).unwrap().unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let status: serde_json::Value = serde_json::from_str(body).unwrap();
    status["roles"]["capture"]["bind_ports"].clone()
}

#[test]
fn bound_ports_answer_no_icmp_and_every_datagram_is_captured() {
    if !namespaces_or_skipped() {
        return;
    }
    for is_bound in [false, true] {
        let (devices, host) = site();
        let kernel = Kernel(&host);
        let environment: &[_] = if is_bound { &[BIND] } else { &[] };
        let capture = Capture::start(&host, "right0", 1, environment);
        let sockets = sockets(&devices);
        let was_refused = sockets.iter().map(send_all).fold(false, |any, one| any | one);
        capture.wait_for_claimed(2 * COUNT, "");
        if is_bound {
            // The kernel has handled every datagram, so it would have answered by now.
            wait_for("the kernel to drop them", LONG, || kernel.udp_input_errors() == 2 * COUNT).unwrap();
            assert_eq!(kernel.unreachable_sent(), 0);
            assert!(!was_refused && !sockets.iter().any(is_refused));
            for family in ["ipv4", "ipv6"] {
                assert_eq!(status(&host)[family]["bound"], serde_json::json!([162, 514, 2055, 4739, 6343, 9995, 9996]));
            }
            assert_eq!(capture.sum("sekiwake_capture_bind_ports", "state=\"bound\""), 14);
        } else {
            wait_for("the ICMP messages", LONG, || kernel.unreachable_sent() > 0).unwrap();
            wait_for("the devices to receive one", LONG, || was_refused || sockets.iter().any(is_refused)).unwrap();
            assert_eq!(kernel.udp_input_errors(), 0);
            assert!(status(&host).is_null());
        }
        capture.stop();
        // The ports are free again.
        host.udp_socket("198.18.0.200:514".parse().unwrap()).unwrap();
    }
}

#[test]
fn port_of_a_daemon_is_left_alone() {
    if !namespaces_or_skipped() {
        return;
    }
    let (devices, host) = site();
    // On one address of one family: the other family is bound.
    let daemon = host.udp_socket("198.18.0.200:514".parse().unwrap()).unwrap();
    daemon.set_read_timeout(Some(LONG)).unwrap();
    let capture = Capture::start(&host, "right0", 1, &[BIND]);
    for socket in sockets(&devices) {
        send_all(&socket);
    }
    capture.wait_for_claimed(2 * COUNT, "");
    for number in 0..COUNT {
        let mut buffer = [0; 64];
        let length = daemon.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], *format!("<13>message {number}").as_bytes());
    }
    let status = status(&host);
    assert_eq!(status["ipv4"]["in_use"], serde_json::json!([514]));
    assert_eq!(status["ipv6"]["in_use"], serde_json::json!([]));
    assert_eq!(capture.sum("sekiwake_capture_bind_ports", "state=\"in_use\""), 1);
    let in_use = |line: &&String| line.contains("in use by another process");
    assert_eq!(capture.process.stderr().iter().filter(in_use).count(), 1);
    // A daemon that starts later cannot bind a bound port.
    let error = host.enter(|| UdpSocket::bind("198.18.0.200:162")).unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
    capture.stop();
}

#[test]
fn missing_capability_is_named_and_capture_continues() {
    if !namespaces_or_skipped() {
        return;
    }
    let (devices, host) = site();
    let mut command = host.command("setpriv");
    command.args(["--bounding-set", "-net_bind_service", env!("CARGO_BIN_EXE_sekiwake-capture")]);
    let capture = Capture::start_with(command, &host, "right0", 1, &[BIND]);
    for socket in sockets(&devices) {
        send_all(&socket);
    }
    capture.wait_for_claimed(2 * COUNT, "");
    let status = status(&host);
    for family in ["ipv4", "ipv6"] {
        assert_eq!(status[family]["not_permitted"], serde_json::json!([162, 514]));
        assert_eq!(status[family]["bound"], serde_json::json!([2055, 4739, 6343, 9995, 9996]));
    }
    let log = capture.process.stderr().join("\n");
    assert!(log.contains("NET_BIND_SERVICE") && log.contains("162,514"), "{log}");
    capture.stop();
}
