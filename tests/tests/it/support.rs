//! Shared by the tests: a site, sinks, senders, comparisons.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Deref,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use sekiwake_testkit::{
    netns::{Namespace, namespaces_or_skipped},
    process::Process,
    random::Random,
    sink::{Options, Report, Sink},
    wait::wait_for,
};
use sekiwake_tests::{
    DEVICES_WIRE, Ledger, Service, Services, Site, WIRE, binary, collector, command,
    nats::{NatsServer, nats_or_skipped},
};
use tempfile::TempDir;

/// Time limit of every wait. Generous, because a busy machine is not a failure.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const CAPTURE: &str = "sekiwake-capture";
pub(crate) const PROXY: &str = "sekiwake-proxy";
pub(crate) const SYSLOG: &str = "sekiwake-syslog-forwarder";
pub(crate) const XFLOW: &str = "sekiwake-xflow-forwarder";
pub(crate) const TRAP: &str = "sekiwake-trap-forwarder";
/// The services that a syslog message passes.
pub(crate) const SYSLOG_PATH: [&str; 3] = [CAPTURE, PROXY, SYSLOG];
/// The orders in which they can be started.
pub(crate) const ORDERS: [[&str; 3]; 6] = [
    [CAPTURE, PROXY, SYSLOG],
    [CAPTURE, SYSLOG, PROXY],
    [PROXY, CAPTURE, SYSLOG],
    [PROXY, SYSLOG, CAPTURE],
    [SYSLOG, CAPTURE, PROXY],
    [SYSLOG, PROXY, CAPTURE],
];
/// Capture, proxy and all forwarders.
pub(crate) const ALL: [&str; 5] = [CAPTURE, PROXY, SYSLOG, XFLOW, TRAP];

/// Settings of most captures. A ring of the default size takes half a second to allocate.
pub(crate) const CAPTURE_SETTINGS: [(&str, &str); 2] =
    [("SEKIWAKE_CAPTURE_INTERFACES", WIRE), ("SEKIWAKE_CAPTURE_RING", "64MiB")];

/// The bus of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bus {
    /// ZeroMQ, with the proxy.
    ZeroMq,
    /// NATS JetStream, with one server.
    JetStream,
}

/// The server of [`Bus::JetStream`], for services in its namespace.
pub(crate) const JETSTREAM: (&str, &str) = ("SEKIWAKE_BUS", "nats://127.0.0.1:4222");

/// A configuration of a server at this address, with this folder as its disk.
pub(crate) fn nats_configuration(address: Ipv4Addr, disk: &Path) -> String {
    format!("server_name: n1\nhost: {address}\nport: 4222\njetstream {{ store_dir: \"{}\" }}\n", disk.display())
}

/// A running server, and its disk.
struct Server {
    _process: Process,
    _disk: TempDir,
}

/// A site, and a lock that keeps other tests of this process waiting.
pub(crate) struct TestSite {
    /// The server of the bus, if it is not ZeroMQ.
    server: Option<Server>,
    site: Site,
    _lock: MutexGuard<'static, ()>,
}

impl Deref for TestSite {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

/// A site, or `None` (and the test is skipped) without network namespaces.
pub(crate) fn site() -> Option<TestSite> {
    static LOCK: Mutex<()> = Mutex::new(());
    let lock = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    namespaces_or_skipped().then(|| TestSite { server: None, site: Site::new().unwrap(), _lock: lock })
}

/// The same with this bus, which all services use.
pub(crate) fn site_on(bus: Bus) -> Option<TestSite> {
    let mut site = site()?;
    if bus == Bus::JetStream {
        if !nats_or_skipped() {
            return None;
        }
        let disk = tempfile::tempdir().unwrap();
        let configuration = nats_configuration(Ipv4Addr::LOCALHOST, &disk.path().join("disk"));
        let process = NatsServer::start(&site.host, disk.path(), &configuration).unwrap().into_process();
        site.server = Some(Server { _process: process, _disk: disk });
    }
    Some(site)
}

impl TestSite {
    /// A sink in the collectors' namespace.
    pub(crate) fn sink(&self, addresses: &[SocketAddr], options: Options) -> Sink {
        self.collectors.enter(|| Sink::bind(addresses, options)).unwrap().unwrap()
    }

    /// What services, tools and tests must set to use the site's bus.
    pub(crate) fn bus(&self) -> &'static [(&'static str, &'static str)] {
        if self.server.is_some() { &[JETSTREAM] } else { &[] }
    }

    /// Starts services with the usual capture settings and these, and waits for them. The proxy is
    /// started only where the bus needs it.
    pub(crate) fn start(&self, names: &[&str], more: &[(&str, &str)]) -> Services<'_> {
        self.start_with(names, &[&CAPTURE_SETTINGS, more].concat())
    }

    /// The same without the usual settings.
    pub(crate) fn start_with(&self, names: &[&str], settings: &[(&str, &str)]) -> Services<'_> {
        let is_needed = |name: &&&str| self.server.is_none() || **name != PROXY;
        let names: Vec<&str> = names.iter().filter(is_needed).copied().collect();
        Services::start(&self.host, &names, &[self.bus(), settings].concat()).unwrap()
    }

    /// Starts one service with the usual capture settings and these, without waiting for it.
    pub(crate) fn start_one(&self, name: &str, more: &[(&str, &str)]) -> Service<'_> {
        Service::start(&self.host, name, &[self.bus(), &CAPTURE_SETTINGS, more].concat()).unwrap()
    }

    /// Starts one service after the other, and waits until datagrams flow to this destination.
    pub(crate) fn start_in_order(&self, names: [&str; 3], destination: &str) -> Services<'_> {
        let mut services = Services(Vec::new());
        for name in names {
            let service = self.start_one(name, &[("SEKIWAKE_SYSLOG_DESTINATIONS", destination)]);
            wait_for("an answer of the admin server", LONG, || service.is_alive()).unwrap();
            services.add(service);
        }
        services.wait_until_datagrams_flow().unwrap();
        services
    }

    /// Disables neighbour discovery and multicast reports, for tests that count every packet on the
    /// wire.
    pub(crate) fn disable_ipv6_on_the_wire(&self) {
        for (namespace, interface) in [(&self.devices, DEVICES_WIRE), (&self.host, WIRE)] {
            let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            namespace.enter(|| std::fs::write(&path, "1")).unwrap().unwrap();
        }
    }

    /// Runs a sender in the devices' namespace to its end. Returns the number of datagrams sent.
    pub(crate) fn send(&self, arguments: &str) -> u64 {
        sent_by(&mut self.start_sender(arguments))
    }

    pub(crate) fn start_sender(&self, arguments: &str) -> Process {
        let mut command = self.devices.command(binary("sekiwake-sender"));
        command.args(arguments.split_whitespace()).arg("--json");
        Process::spawn(command).unwrap()
    }

    /// Sends payloads from one device's socket, in this order.
    pub(crate) fn send_payloads(&self, from: SocketAddr, to: SocketAddr, payloads: &[Vec<u8>]) {
        let socket = self.devices.udp_socket(from).unwrap();
        for payload in payloads {
            assert_eq!(socket.send_to(payload, to).unwrap(), payload.len());
        }
    }
}

/// Waits for the end of a sender. Returns the number of datagrams sent.
pub(crate) fn sent_by(sender: &mut Process) -> u64 {
    sekiwake_tests::sent_by(sender, LONG).unwrap()
}

/// An address and a port.
pub(crate) fn at(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.into(), port)
}

/// The usual destination of syslog, as a setting.
pub(crate) fn syslog_to(number: u8) -> String {
    format!("udp://{}:514", collector(number))
}

/// Counts, and checks the sender's sequence numbers.
pub(crate) fn numbered() -> Options {
    Options::counts().numbered()
}

/// The payloads in their order of arrival.
pub(crate) fn in_order(report: Report) -> Vec<Vec<u8>> {
    report.payloads.into_iter().map(|datagram| datagram.payload).collect()
}

/// Compares payloads in order, and prints only the first difference.
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

/// Compares payloads in any order.
pub(crate) fn assert_same_set(what: &str, mut received: Vec<Vec<u8>>, mut expected: Vec<Vec<u8>>) {
    received.sort();
    expected.sort();
    assert_same(what, &received, &expected);
}

/// Pseudo-random bytes of a seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    Random::new(seed).bytes(length)
}

/// Reads the ledger until it balances, which it does once everything in flight has been counted.
pub(crate) fn balanced_ledger(services: &Services<'_>) -> Ledger {
    let mut last = Ledger::default();
    let balanced = wait_for("a balanced ledger", LONG, || {
        last = Ledger::read(services).unwrap();
        last.check().is_ok()
    });
    if balanced.is_err() {
        last.check().unwrap();
    }
    last
}

/// Starts a program inside a namespace, with only these `SEKIWAKE_` variables.
pub(crate) fn run(namespace: &Namespace, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Process {
    let mut command = command(namespace, &binary(program), environment);
    command.args(arguments);
    Process::spawn(command).unwrap()
}
