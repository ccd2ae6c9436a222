//! The program on real interfaces, observed through its metrics. No bus is needed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use sekiwake_testkit::{
    netns::{End, Link, Namespace, namespaces_or_skipped},
    packets::{Datagram, ethernet, ethernet_frame, snap, tagged, tzsp, with_tag},
    process::Process,
    wait::wait_for,
};

/// The limit of a wait.
pub(crate) const LONG: Duration = Duration::from_secs(60);
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 9600);

/// A capture in a namespace.
pub(crate) struct Capture<'a> {
    pub(crate) process: Process,
    namespace: &'a Namespace,
}

impl<'a> Capture<'a> {
    pub(crate) fn start(
        namespace: &'a Namespace,
        interfaces: &str,
        up: u64,
        environment: &[(&str, &str)],
    ) -> Capture<'a> {
        let command = namespace.command(env!("CARGO_BIN_EXE_sekiwake-capture"));
        Capture::start_with(command, namespace, interfaces, up, environment)
    }

    /// Starts with `command`, which runs the program inside the namespace.
    pub(crate) fn start_with(
        mut command: Command,
        namespace: &'a Namespace,
        interfaces: &str,
        up: u64,
        environment: &[(&str, &str)],
    ) -> Capture<'a> {
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

    /// The sum of a metric's samples with this label; 0 while the admin server does not answer.
    pub(crate) fn sum(&self, metric: &str, label: &str) -> u64 {
        let text = self.namespace.enter(|| get("/metrics")).unwrap().unwrap_or_default();
        let samples = text.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
        samples.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }

    pub(crate) fn wait_for_claimed(&self, count: u64, label: &str) {
        let claimed = || self.sum("sekiwake_capture_claimed_datagrams_total", label);
        wait_for("the datagrams to be claimed", LONG, || claimed() >= count)
            .unwrap_or_else(|late| panic!("{late}: {} claimed", claimed()));
        assert_eq!(claimed(), count);
    }

    pub(crate) fn stop(mut self) {
        let status = self.process.stop(LONG).unwrap();
        assert!(status.success(), "{}", self.process.stderr().join("\n"));
    }
}

pub(crate) fn get(path: &str) -> std::io::Result<String> {
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
    let devices = Namespace::new("skw-cap").unwrap();
    let host = Namespace::new("skw-cap").unwrap();
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
fn threads_share_an_interface_and_fragments_reach_one_thread() {
    if !namespaces_or_skipped() {
        return;
    }
    let (devices, host) = pair();
    let capture = Capture::start(&host, "right0", 1, &[("SEKIWAKE_CAPTURE_THREADS", "4")]);
    let joined = || capture.process.stderr().iter().filter(|line| line.contains("capture started")).count();
    wait_for("all four threads to join", LONG, || joined() == 4)
        .unwrap_or_else(|late| panic!("{late}: {}", capture.process.stderr().join("\n")));
    for number in 1..=8 {
        send(&devices, &format!("198.18.0.{number}:5140"), "198.18.0.200:514", 20, 9_000);
        send(&devices, &format!("198.18.0.{number}:5141"), "198.18.0.200:514", 20, 100);
    }
    send(&devices, "[2001:db8::1]:5140", "[2001:db8::200]:514", 20, 9_000);
    capture.wait_for_claimed(8 * 40 + 20, "");
    assert_eq!(capture.sum("sekiwake_capture_pending_fragments", ""), 0);
    capture.stop();
}

#[test]
fn interfaces_are_counted_separately() {
    if !namespaces_or_skipped() {
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
fn loopback_and_any_capture_each_datagram_once() {
    if !namespaces_or_skipped() {
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
fn user_filter_narrows_the_capture() {
    if !namespaces_or_skipped() {
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
fn frames_coalesced_by_offload_are_dropped_and_counted() {
    if !namespaces_or_skipped() {
        return;
    }
    let devices = Namespace::new("skw-cap").unwrap();
    let host = Namespace::new("skw-cap").unwrap();
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

/// Sends each frame `rounds` times from `left0`, or until it is stopped.
fn send_frames(namespace: &Namespace, frames: &[Vec<u8>], rounds: u64) -> Process {
    let script = "
import socket, sys, time
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(('left0', 0))
for _ in range(int(sys.argv[1])):
    for frame in sys.argv[2:]:
        s.send(bytes.fromhex(frame))
    time.sleep(0.001)
";
    let mut command = namespace.command("python3");
    command.args(["-c", script, &rounds.to_string()]);
    command.args(frames.iter().map(|frame| frame.iter().map(|byte| format!("{byte:02x}")).collect::<String>()));
    Process::spawn(command).unwrap()
}

#[test]
fn frames_with_tags_snap_and_tzsp_are_captured() {
    if !namespaces_or_skipped() {
        return;
    }
    let (devices, host) = pair();
    let plain = ethernet(&Datagram::new("203.0.113.1:5140", "203.0.113.2:514", "<13>tagged").packet());
    let mirrored = Datagram::new("203.0.113.3:40000", "203.0.113.4:37008", tzsp(&[], &plain)).packet();
    let ttag = with_tag(&plain, 0x8988, &[0; 6]);
    let frames = [
        with_tag(&plain, 0x8926, &[0; 4]),
        with_tag(&plain, 0x893f, &[0; 6]),
        with_tag(&plain, 0x8909, &[1, 1, 0, 1, 0, 9]),
        tagged(&with_tag(&ttag, 0x8926, &[0; 4]), &[(0x8100, 7)]),
        with_tag(&tagged(&ttag, &[(0x8100, 7)]), 0x8926, &[0; 4]),
        snap(&plain, &[]),
        snap(&ttag, &[(0x8100, 7)]),
        ethernet(&mirrored),
        ttag,
    ];
    let capture = Capture::start(&host, "right0", 1, &[]);
    assert!(send_frames(&devices, &frames, 5).wait(LONG).unwrap().success());
    capture.wait_for_claimed(5 * frames.len() as u64, "");
    capture.stop();
}

#[test]
fn discover_lists_what_is_not_decoded() {
    if !namespaces_or_skipped() {
        return;
    }
    let (devices, host) = pair();
    let datagram = Datagram::new("203.0.113.1:5140", "203.0.113.2:5514", "<13>text").packet();
    let frames = [
        ethernet(&datagram),
        ethernet_frame(0x8999, &[0; 46]),
        tagged(&ethernet_frame(0x88e5, &[0; 46]), &[(0x8100, 7)]),
    ];
    let mut sender = send_frames(&devices, &frames, u64::from(u32::MAX));
    let mut command = host.command(env!("CARGO_BIN_EXE_sekiwake-capture"));
    command.args(["discover", "--seconds", "2", "right0"]);
    let mut discover = Process::spawn(command).unwrap();
    assert!(discover.wait(LONG).unwrap().success(), "{}", discover.stderr().join("\n"));
    let _ = sender.stop(LONG);
    let lines = discover.stdout();
    for start in ["203.0.113.2:5514 ", "EtherType 0x8999 ", "EtherType 0x88e5 (MACsec) "] {
        let line = lines.iter().find(|line| line.starts_with(start));
        let count = line.and_then(|line| line[start.len()..].split_whitespace().next()?.parse::<f64>().ok());
        assert!(count.is_some_and(|count| count > 0.0), "{start}: {lines:#?}");
    }
}
