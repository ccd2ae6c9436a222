//! The program on interfaces: what it captures shows in its metrics; no bus is needed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::Duration,
};

use sekiwake_testkit::{
    netns::{End, Link, Namespace, available_or_skipped},
    process::Process,
    wait::wait_for,
};

const LONG: Duration = Duration::from_secs(20);
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9600);

/// A capture in a namespace.
struct Capture<'a> {
    process: Process,
    namespace: &'a Namespace,
}

impl<'a> Capture<'a> {
    fn start(namespace: &'a Namespace, interfaces: &str, up: u64, environment: &[(&str, &str)]) -> Capture<'a> {
        let mut command = namespace.command(env!("CARGO_BIN_EXE_sekiwake-capture"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SEKIWAKE_")) {
            command.env_remove(name);
        }
        command.env("SEKIWAKE_CAPTURE_INTERFACES", interfaces).env("SEKIWAKE_CAPTURE_RING", "8MiB");
        command.envs(environment.iter().copied());
        let capture = Capture { process: Process::spawn(command).unwrap(), namespace };
        wait_for("the interfaces to be captured", LONG, || capture.sum("sekiwake_capture_up", "") == up)
            .unwrap_or_else(|late| panic!("{late}: {}", capture.process.stderr().join("\n")));
        capture
    }

    /// The sum of a metric's samples with this label; 0 while nobody answers.
    fn sum(&self, metric: &str, label: &str) -> u64 {
        let text = self.namespace.enter(|| get("/metrics")).unwrap().unwrap_or_default();
        let samples = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    fn wait_for_claimed(&self, count: u64, label: &str) {
        let claimed = || self.sum("sekiwake_capture_claimed_datagrams_total", label);
        wait_for("the datagrams to be claimed", LONG, || claimed() >= count)
            .unwrap_or_else(|late| panic!("{late}: {} claimed", claimed()));
        assert_eq!(claimed(), count);
    }

    fn stop(mut self) {
        let status = self.process.stop(LONG).unwrap();
        assert!(status.success(), "{}", self.process.stderr().join("\n"));
    }
}

fn get(path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&ADMIN, LONG)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {ADMIN}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn send(namespace: &Namespace, from: &str, to: &str, count: usize, length: usize) {
    let socket: UdpSocket = namespace.udp_socket(from.parse().unwrap()).unwrap();
    for number in 0..count {
        socket.send_to(&vec![number as u8; length], to).unwrap();
    }
}

fn pair() -> (Namespace, Namespace) {
    let (devices, host) = (Namespace::new("skw-cap").unwrap(), Namespace::new("skw-cap").unwrap());
    for network in 0..2 {
        let left = End::new(&devices, &format!("left{network}"))
            .addresses((1..=8).map(|number| format!("198.18.{network}.{number}/24")))
            .address(&format!("2001:db8:{network}::1/64"));
        let right = End::new(&host, &format!("right{network}"))
            .address(&format!("198.18.{network}.200/24"))
            .address(&format!("2001:db8:{network}::200/64"));
        Link::new(left, right).create().unwrap();
    }
    (devices, host)
}

#[test]
fn several_threads_share_an_interface_and_fragments_meet_in_one_of_them() {
    if !available_or_skipped("several_threads_share_an_interface_and_fragments_meet_in_one_of_them") {
        return;
    }
    let (devices, host) = pair();
    let capture = Capture::start(&host, "right0", 1, &[("SEKIWAKE_CAPTURE_THREADS", "4")]);
    let joined = || capture.process.stderr().iter().filter(|line| line.contains("capturing interface")).count();
    wait_for("all four threads to join", LONG, || joined() == 4)
        .unwrap_or_else(|late| panic!("{late}: {}", capture.process.stderr().join("\n")));
    for number in 1..=8 {
        send(&devices, &format!("198.18.0.{number}:5140"), "198.18.0.200:514", 20, 9_000);
        send(&devices, &format!("198.18.0.{number}:5141"), "198.18.0.200:514", 20, 100);
    }
    send(&devices, "[2001:db8::1]:5140", "[2001:db8::200]:514", 20, 9_000);
    capture.wait_for_claimed(8 * 40 + 20, "");
    assert_eq!(capture.sum("sekiwake_capture_held_fragments", ""), 0);
    capture.stop();
}

#[test]
fn several_interfaces_are_captured_each_with_its_own_counts() {
    if !available_or_skipped("several_interfaces_are_captured_each_with_its_own_counts") {
        return;
    }
    let (devices, host) = pair();
    let capture = Capture::start(&host, "right0,right1", 2, &[]);
    send(&devices, "198.18.0.1:5140", "198.18.0.200:514", 30, 200);
    send(&devices, "198.18.1.1:5140", "198.18.1.200:162", 20, 200);
    capture.wait_for_claimed(30, "interface=\"right0\"");
    capture.wait_for_claimed(20, "interface=\"right1\"");
    assert_eq!(capture.sum("sekiwake_capture_claimed_datagrams_total", "kind=\"snmptrap\""), 20);
    capture.stop();
}

#[test]
fn loopback_and_any_give_each_datagram_once() {
    if !available_or_skipped("loopback_and_any_give_each_datagram_once") {
        return;
    }
    for interface in ["lo", "any"] {
        let host = Namespace::new("skw-cap").unwrap();
        let capture = Capture::start(&host, interface, 1, &[]);
        send(&host, "127.0.0.1:5140", "127.0.0.1:514", 25, 200);
        send(&host, "127.0.0.1:5141", "127.0.0.1:514", 25, 60_000);
        capture.wait_for_claimed(50, "");
        capture.stop();
    }
}

#[test]
fn a_users_filter_narrows_what_is_captured() {
    if !available_or_skipped("a_users_filter_narrows_what_is_captured") {
        return;
    }
    let (devices, host) = pair();
    let capture = Capture::start(&host, "right0", 1, &[("SEKIWAKE_CAPTURE_FILTER", "src host 198.18.0.2")]);
    send(&devices, "198.18.0.1:5140", "198.18.0.200:514", 10, 200);
    send(&devices, "198.18.0.2:5140", "198.18.0.200:514", 7, 200);
    capture.wait_for_claimed(7, "");
    assert_eq!(capture.sum("sekiwake_capture_packets_total", ""), 7);
    capture.stop();
}

#[test]
fn frames_that_segmentation_offload_has_joined_are_dropped_and_counted_not_published_as_one() {
    let test = "frames_that_segmentation_offload_has_joined_are_dropped_and_counted_not_published_as_one";
    if !available_or_skipped(test) {
        return;
    }
    let (devices, host) = (Namespace::new("skw-cap").unwrap(), Namespace::new("skw-cap").unwrap());
    let left = End::new(&devices, "left0").address("198.18.0.1/24");
    let right = End::new(&host, "right0").address("198.18.0.200/24");
    Link::new(left, right).segmentation_offload(true).checksum_offload(true).create().unwrap();
    let capture = Capture::start(&host, "right0", 1, &[]);
    let script = "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(17, 103, 500)
s.sendto(bytes(5000), ('198.18.0.200', 514))
s.setsockopt(17, 103, 0)
s.sendto(bytes(500), ('198.18.0.200', 514))
";
    let mut command = devices.command("python3");
    command.args(["-c", script]);
    assert!(Process::spawn(command).unwrap().wait(LONG).unwrap().success());
    capture.wait_for_claimed(1, "");
    assert_eq!(capture.sum("sekiwake_capture_dropped_packets_total", "reason=\"offload\""), 1);
    wait_for("the warning", LONG, || {
        capture.process.stderr().iter().any(|line| line.contains("larger than the link's MTU"))
    })
    .unwrap();
    capture.stop();
}
