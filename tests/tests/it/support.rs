//! What the tests share: a site of their own, sinks, senders, comparisons.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sekiwake_sender::sequence_of;
use sekiwake_testkit::{
    netns::{Namespace, available_or_skipped},
    process::Process,
    sink::{Numbered, Options, Report, Sink},
};
use sekiwake_tests::{DEVICES_WIRE, Ledger, Service, Services, Site, WIRE, binary, collector};

/// How long anything may take that is expected to happen.
pub(crate) const LONG: Duration = Duration::from_secs(20);

pub(crate) const CAPTURE: &str = "sekiwake-capture";
pub(crate) const PROXY: &str = "sekiwake-proxy";
pub(crate) const SYSLOG: &str = "sekiwake-syslog-forwarder";
pub(crate) const XFLOW: &str = "sekiwake-xflow-forwarder";
pub(crate) const TRAP: &str = "sekiwake-trap-forwarder";
/// The way of a syslog message.
pub(crate) const SYSLOG_WAY: [&str; 3] = [CAPTURE, PROXY, SYSLOG];
/// All services of the spine.
pub(crate) const ALL: [&str; 5] = [CAPTURE, PROXY, SYSLOG, XFLOW, TRAP];

/// Every protocol of the sender but SNMPv2c informs: they go out as traps, and would come with the traps' numbers a second time.
pub(crate) const ALL_BUT_INFORMS: &str =
    "rfc3164,rfc5424,netflow5,netflow9,ipfix,sflow,snmp1-trap,snmp2c-trap,snmp3-trap";

/// What nearly all captures here are told; a ring of the default size takes half a second to make.
pub(crate) const CAPTURING: [(&str, &str); 2] =
    [("SEKIWAKE_CAPTURE_INTERFACES", WIRE), ("SEKIWAKE_CAPTURE_RING", "64MiB")];

/// A site, and the promise that no other test runs in this process meanwhile.
pub(crate) struct TestSite {
    site: Site,
    _alone: MutexGuard<'static, ()>,
}

impl Deref for TestSite {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

/// A site for this test, unless there can be none here.
pub(crate) fn site(test: &str) -> Option<TestSite> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    available_or_skipped(test).then(|| TestSite { site: Site::new().unwrap(), _alone: alone })
}

impl TestSite {
    /// Receives on the collectors' side.
    pub(crate) fn sink(&self, addresses: &[SocketAddr], options: Options) -> Sink {
        self.collectors.enter(|| Sink::bind(addresses, options)).unwrap().unwrap()
    }

    /// Starts services with the usual capture settings and these.
    pub(crate) fn start(&self, names: &[&str], more: &[(&str, &str)]) -> Services<'_> {
        Services::start(&self.host, names, &[&CAPTURING, more].concat()).unwrap()
    }

    /// Starts one service with the usual capture settings and these; does not wait for it.
    pub(crate) fn start_one(&self, name: &str, more: &[(&str, &str)]) -> Service<'_> {
        Service::start(&self.host, name, &[&CAPTURING, more].concat()).unwrap()
    }

    /// For tests that count every packet on the wire: no neighbour discovery, no multicast reports.
    pub(crate) fn switch_ipv6_off_on_the_wire(&self) {
        for (namespace, interface) in [(&self.devices, DEVICES_WIRE), (&self.host, WIRE)] {
            let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            namespace.enter(|| std::fs::write(&path, "1")).unwrap().unwrap();
        }
    }

    /// Runs a sender in the devices' namespace to its end and gives the number of datagrams that it sent.
    pub(crate) fn send(&self, arguments: &str) -> u64 {
        sent_by(&mut self.start_sender(arguments))
    }

    pub(crate) fn start_sender(&self, arguments: &str) -> Process {
        let mut command = self.devices.command(binary("sekiwake-sender"));
        Process::spawn({
            command.args(arguments.split_whitespace()).arg("--json");
            command
        })
        .unwrap()
    }

    /// Sends payloads from one device's socket, in this order.
    pub(crate) fn send_payloads(&self, from: SocketAddr, to: SocketAddr, payloads: &[Vec<u8>]) {
        let socket = self.devices.udp_socket(from).unwrap();
        for payload in payloads {
            assert_eq!(socket.send_to(payload, to).unwrap(), payload.len());
        }
    }
}

/// What a sender has sent by its end.
pub(crate) fn sent_by(sender: &mut Process) -> u64 {
    let status = sender.wait(Duration::from_secs(60)).unwrap();
    assert!(status.success(), "{}", sender.stderr().join("\n"));
    let summary: serde_json::Value = serde_json::from_str(sender.stdout().last().unwrap()).unwrap();
    summary["sent"].as_u64().unwrap()
}

/// An address and a port.
pub(crate) fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// Where syslog is forwarded in most tests, as a setting.
pub(crate) fn syslog_to(number: u8) -> String {
    format!("udp://{}:514", collector(number))
}

/// Counts, and the sender's numbers.
pub(crate) fn numbered() -> Options {
    Options::counts().sequence(|payload| {
        let number = sequence_of(payload)?;
        Some(Numbered { stream: number.stream(), sequence: number.sequence, step: number.step })
    })
}

/// The payloads in the order in which they came.
pub(crate) fn in_order(report: Report) -> Vec<Vec<u8>> {
    report.payloads.into_iter().map(|datagram| datagram.payload).collect()
}

/// Compares payloads in order and says where they differ without printing them whole.
pub(crate) fn assert_same(what: &str, received: &[Vec<u8>], expected: &[Vec<u8>]) {
    let show = |payload: Option<&Vec<u8>>| {
        payload.map(|bytes| format!("{} bytes, {}", bytes.len(), bytes[..bytes.len().min(40)].escape_ascii()))
    };
    let difference = (0..received.len().max(expected.len())).find(|&index| received.get(index) != expected.get(index));
    if let Some(index) = difference {
        panic!(
            "{what}: {} received, {} expected; number {index}: received {:?}, expected {:?}",
            received.len(),
            expected.len(),
            show(received.get(index)),
            show(expected.get(index))
        );
    }
}

/// The same, in whatever order.
pub(crate) fn assert_same_set(what: &str, mut received: Vec<Vec<u8>>, mut expected: Vec<Vec<u8>>) {
    received.sort();
    expected.sort();
    assert_same(what, &received, &expected);
}

/// Bytes that look random and differ for every seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Reads the books until they close, which they do once all that is under way has been counted.
pub(crate) fn closed_books(services: &Services<'_>) -> Ledger {
    let mut last = Ledger::default();
    let closed = sekiwake_testkit::wait::wait_for("the books to close", Duration::from_secs(5), || {
        last = Ledger::read(services).unwrap();
        last.check().is_ok()
    });
    if closed.is_err() {
        last.check().unwrap();
    }
    last
}

/// Runs a program inside a namespace to its end.
pub(crate) fn run(namespace: &Namespace, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Process {
    let mut command = namespace.command(binary(program));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SEKIWAKE_")) {
        command.env_remove(name);
    }
    command.args(arguments).envs(environment.iter().copied());
    Process::spawn(command).unwrap()
}
