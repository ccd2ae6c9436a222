//! The connections of a client's socket: looks names up, tries every address, repeats rejected
//! attempts, and logs while the proxy cannot be reached.
//!
//! libzmq would look names up in its I/O thread, which serves all sockets of the process, and wait
//! there for a resolver that does not answer. It is therefore given addresses only. A thread of its
//! own looks names up again every second while there is no connection, so a proxy that has moved is
//! found although an attempt at its old address is still open.

use std::{
    collections::HashSet,
    io,
    net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs},
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded};
use sekiwake_runtime::RateLimited;
use tracing::{info, warn};

use crate::{
    BusError,
    zeromq::{
        inlet::Inlet,
        socket::{CONNECT_TIMEOUT, HandshakeFailure, Rest, handshake_failure, receive_rest},
    },
};

/// How long to wait before retrying a rejected connection.
const RECONNECT_REJECTED: Duration = Duration::from_secs(1);
/// How often a name is looked up while there is no connection.
const LOOK_UP_EVERY: Duration = Duration::from_secs(1);
/// How long a new socket waits for the first answer: names are usually known to the host.
const FIRST_LOOK_UP: Duration = Duration::from_millis(100);
/// When an outage is logged first, and how often then.
const FIRST_REPORT: Duration = Duration::from_secs(5);
const REPORT_EVERY: Duration = Duration::from_secs(60);
/// How long before that a connection is attempted to learn the error, which libzmq does not report.
const PROBE_AHEAD: Duration = Duration::from_secs(3);
/// Retransmission after an outage is over when nothing was retransmitted for this long.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// A connection on which every message is answered is made again after this time without an answer:
/// the proxy ignores it while an older connection with the same routing id has not ended.
const SILENCE: Duration = Duration::from_secs(6);
/// The pause before that: the proxy has to see the end of the old connection first.
const REDIAL_AFTER: Duration = Duration::from_millis(300);

/// The part of the proxy that a socket connects to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Publish,
    Subscribe,
    /// Here the proxy answers.
    Control,
}

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Side::Publish => "publish",
            Side::Subscribe => "subscribe",
            Side::Control => "control",
        }
    }

    /// The setting with its endpoints.
    fn setting(self) -> &'static str {
        match self {
            Side::Publish => "SEKIWAKE_BUS_PUBLISH",
            Side::Subscribe => "SEKIWAKE_BUS_SUBSCRIBE",
            Side::Control => "SEKIWAKE_BUS_CONTROL",
        }
    }
}

/// The connections that a socket has made. In-process connections make no handshake and do not
/// appear here.
pub(crate) struct Connections {
    events: Inlet,
    side: Side,
    targets: Vec<Target>,
    /// The endpoints that are connected, by name: libzmq also reports peers as disconnected that
    /// close the connection before the handshake.
    connected: HashSet<Vec<u8>>,
    established: u64,
    /// When to retry a rejected connection.
    retry_at: Option<Instant>,
    /// When to connect again after a silent connection was closed.
    redial_at: Option<Instant>,
    /// When the last message or connection was received.
    heard_at: Instant,
    failure_log: RateLimited,
    outage: Option<Outage>,
    /// Records retransmitted so far, if the owner counts them.
    retransmitted: Option<Retransmitted>,
    recovery: Option<Recovery>,
}

/// One configured endpoint.
struct Target {
    endpoint: String,
    /// The name in it; `None` if it has an address or is not `tcp`.
    name: Option<HostPort>,
    /// The endpoint that libzmq was given.
    current: Option<String>,
    look_up: Option<Receiver<io::Result<Vec<SocketAddr>>>>,
    looked_up_at: Instant,
    /// Whether an attempt at `current` has failed.
    has_failed: bool,
    error: Option<String>,
}

/// A host and a port to look up.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    host: String,
    port: u16,
}

/// There is no connection.
struct Outage {
    since: Instant,
    report_at: Instant,
    is_reported: bool,
    /// Records retransmitted before.
    retransmitted: u64,
    probe: Option<Receiver<Probed>>,
    failure: Option<HandshakeFailure>,
}

/// The result of an attempt that is made only to learn the error.
struct Probed {
    address: Option<SocketAddr>,
    error: String,
}

#[derive(Clone, Copy)]
struct Retransmitted {
    records: u64,
    changed_at: Instant,
}

/// There is a connection again after an outage that was logged.
struct Recovery {
    since: Instant,
    outage: Duration,
    retransmitted: u64,
}

impl Connections {
    /// `events` are those of [`Connections::EVENTS`].
    pub(crate) fn new(events: zmq::Socket, side: Side) -> Connections {
        Connections {
            events: Inlet::new(events),
            side,
            targets: Vec::new(),
            connected: HashSet::new(),
            established: 0,
            retry_at: None,
            redial_at: None,
            heard_at: Instant::now(),
            failure_log: RateLimited::default(),
            outage: None,
            retransmitted: None,
            recovery: None,
        }
    }

    /// The events to watch, besides failed handshakes.
    pub(crate) const EVENTS: [zmq::SocketEvent; 3] =
        [zmq::SocketEvent::HANDSHAKE_SUCCEEDED, zmq::SocketEvent::DISCONNECTED, zmq::SocketEvent::CONNECT_RETRIED];

    /// Connects the watched socket.
    pub(crate) fn connect(&mut self, socket: &zmq::Socket, endpoints: &[String]) -> Result<(), BusError> {
        let now = Instant::now();
        for endpoint in endpoints {
            let mut target = Target::new(endpoint, now);
            match target.name.clone() {
                None => target.dial(socket, endpoint.clone())?,
                Some(name) => {
                    let look_up = start_look_up(name);
                    match look_up.recv_timeout(FIRST_LOOK_UP) {
                        Ok(found) => target.found(socket, found),
                        Err(_) => target.look_up = Some(look_up),
                    }
                }
            }
            self.targets.push(target);
        }
        Ok(())
    }

    /// A message of the proxy has arrived.
    pub(crate) fn heard(&mut self) {
        self.heard_at = Instant::now();
    }

    /// How many records have been retransmitted so far, for the log line after an outage.
    pub(crate) fn set_retransmitted(&mut self, records: u64) {
        if self.retransmitted.is_none_or(|before| before.records != records) {
            self.retransmitted = Some(Retransmitted { records, changed_at: Instant::now() });
        }
    }

    /// The events, for the wait of an owner that calls [`Connections::follow`].
    pub(crate) fn events(&mut self) -> &mut Inlet {
        &mut self.events
    }

    /// Reads the events of `socket`, looks names up, retries failed connections when due, and
    /// returns whether a connection is established. To be called several times per second.
    pub(crate) fn poll_connected(&mut self, socket: &mut Inlet) -> bool {
        // Nobody waits for the events.
        self.events.ask_again();
        self.follow(socket)
    }

    /// Whether a wait has noticed an event, for which [`Connections::follow`] is to be called soon.
    pub(crate) fn has_event(&self) -> bool {
        self.events.is_signalled()
    }

    /// As [`Connections::poll_connected`], without asking for events whose signal the owner would
    /// have noticed.
    pub(crate) fn follow(&mut self, socket: &mut Inlet) -> bool {
        let now = Instant::now();
        self.take_events(now);
        self.drop_silent(socket, now);
        if self.retry_at.is_some_and(|retry_at| now >= retry_at) {
            self.retry_at = None;
            self.reconnect(socket.socket());
        }
        for target in &mut self.targets {
            let is_connected =
                target.current.as_ref().is_some_and(|current| self.connected.contains(current.as_bytes()));
            if !is_connected && self.redial_at.is_none() {
                target.follow_name(socket, now);
            }
        }
        let is_connected = !self.connected.is_empty();
        self.report(is_connected, now);
        is_connected
    }

    fn take_events(&mut self, now: Instant) {
        while let Ok(Some(event)) = self.events.receive() {
            let Ok(Rest { parts: [Some(endpoint)], .. }) = receive_rest(self.events.socket(), &event) else { continue };
            let (event, endpoint) = (&event[..], &endpoint[..]);
            if let Some(failure) = handshake_failure(event) {
                self.log_failure(failure, &String::from_utf8_lossy(endpoint));
                if let Some(outage) = &mut self.outage {
                    outage.failure = Some(failure);
                }
                if failure != HandshakeFailure::Broken {
                    self.retry_at.get_or_insert(now + RECONNECT_REJECTED);
                }
                continue;
            }
            let number = event.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes));
            match number.map(zmq::SocketEvent::from_raw) {
                Some(zmq::SocketEvent::HANDSHAKE_SUCCEEDED) => {
                    self.established += 1;
                    self.heard_at = now;
                    self.connected.insert(endpoint.to_vec());
                }
                Some(zmq::SocketEvent::DISCONNECTED) => {
                    self.connected.remove(endpoint);
                }
                Some(zmq::SocketEvent::CONNECT_RETRIED) => {
                    let failed = |target: &&mut Target| {
                        target.current.as_ref().is_some_and(|current| current.as_bytes() == endpoint)
                    };
                    self.targets.iter_mut().filter(failed).for_each(|target| target.has_failed = true);
                }
                _ => {}
            }
        }
    }

    /// Closes a control connection on which the proxy has not answered, and connects again later.
    fn drop_silent(&mut self, socket: &mut Inlet, now: Instant) {
        if let Some(redial_at) = self.redial_at {
            if now >= redial_at {
                self.redial_at = None;
                self.reconnect(socket.socket());
            }
            return;
        }
        let is_silent = self.side == Side::Control && now.saturating_duration_since(self.heard_at) >= SILENCE;
        if is_silent && !self.connected.is_empty() {
            warn!(endpoint = self.endpoints(), "no answer on the control connection, connecting again");
            for current in self.targets.iter().filter_map(|target| target.current.as_ref()) {
                // An error means that libzmq has already forgotten the endpoint.
                let _ = socket.socket().disconnect(current);
            }
            self.connected.clear();
            self.redial_at = Some(now + REDIAL_AFTER);
        }
    }

    /// libzmq reconnects when a connection breaks, but gives up on one that was rejected. Without a
    /// retry, a key that is allowed later, or a proxy that gets its keys later, would not help.
    fn reconnect(&mut self, socket: &zmq::Socket) {
        for target in &mut self.targets {
            let Some(current) = target.current.clone() else { continue };
            if self.connected.contains(current.as_bytes()) {
                continue;
            }
            // An error means that libzmq has already forgotten the endpoint.
            let _ = socket.disconnect(&current);
            if let Err(error) = target.dial(socket, current) {
                warn!(endpoint = target.endpoint, %error, "reconnect failed");
            }
        }
    }

    fn log_failure(&self, failure: HandshakeFailure, endpoint: &str) {
        let Some(suppressed) = self.failure_log.allow(Instant::now()) else { return };
        warn!(endpoint, suppressed, "{}", failure.message());
    }

    /// Logs an outage that lasts, and its end.
    fn report(&mut self, is_connected: bool, now: Instant) {
        let retransmitted = self.retransmitted.map_or(0, |retransmitted| retransmitted.records);
        if is_connected {
            if let Some(outage) = self.outage.take().filter(|outage| outage.is_reported) {
                let lasted = now.saturating_duration_since(outage.since);
                self.recovery = Some(Recovery { since: now, outage: lasted, retransmitted: outage.retransmitted });
            }
            self.report_recovery(now);
            return;
        }
        // Retransmission is not over yet, so this outage continues the last one.
        self.recovery = None;
        let is_in_process = self.targets.iter().all(|target| target.endpoint.starts_with("inproc:"));
        if is_in_process {
            return;
        }
        let outage = self.outage.get_or_insert_with(|| Outage::new(now, retransmitted));
        if outage.probe.is_none() && now + PROBE_AHEAD >= outage.report_at {
            outage.probe = self.targets.first().and_then(Target::start_probe);
        }
        if !outage.is_due(now) {
            return;
        }
        let probed = outage.probe.take().and_then(|probe| probe.try_recv().ok());
        let handshake = outage.failure.map(HandshakeFailure::message);
        let first = self.targets.first();
        let current = first.and_then(|target| target.current.clone()).unwrap_or_default();
        let known = first.and_then(|target| target.error.clone());
        let (address, error) = match probed {
            Some(Probed { address, error }) => (address.map_or(current, |address| address.to_string()), error),
            None => (current, known.unwrap_or_else(|| "no answer".to_owned())),
        };
        let seconds = now.saturating_duration_since(outage.since).as_secs();
        warn!(
            side = self.side.name(),
            setting = self.side.setting(),
            endpoint = self.endpoints(),
            address,
            error = handshake.unwrap_or(&error),
            seconds,
            "no connection to the proxy"
        );
    }

    fn report_recovery(&mut self, now: Instant) {
        let Some(recovery) = &self.recovery else { return };
        let side = self.side.name();
        let seconds = recovery.outage.as_secs_f64();
        match self.retransmitted {
            None => info!(side, endpoint = self.endpoints(), seconds, "connected to the proxy again"),
            Some(Retransmitted { records, changed_at }) => {
                if now < changed_at.max(recovery.since) + SETTLED_AFTER {
                    return;
                }
                let retransmitted_records = records - recovery.retransmitted;
                info!(
                    side,
                    endpoint = self.endpoints(),
                    seconds,
                    retransmitted_records,
                    "connected to the proxy again"
                );
            }
        }
        self.recovery = None;
    }

    fn endpoints(&self) -> String {
        let endpoints: Vec<&str> = self.targets.iter().map(|target| target.endpoint.as_str()).collect();
        endpoints.join(",")
    }

    /// How many connections have been established so far, including those that broke.
    pub(crate) fn established(&self) -> u64 {
        self.established
    }
}

impl Outage {
    fn new(now: Instant, retransmitted: u64) -> Outage {
        let report_at = now + FIRST_REPORT;
        Outage { since: now, report_at, is_reported: false, retransmitted, probe: None, failure: None }
    }

    /// Whether it is to be logged now.
    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now >= self.report_at;
        if is_due {
            self.report_at = now + REPORT_EVERY;
            self.is_reported = true;
        }
        is_due
    }
}

impl Target {
    fn new(endpoint: &str, now: Instant) -> Target {
        Target {
            endpoint: endpoint.to_owned(),
            name: HostPort::of(endpoint),
            current: None,
            look_up: None,
            looked_up_at: now,
            has_failed: false,
            error: None,
        }
    }

    fn dial(&mut self, socket: &zmq::Socket, endpoint: String) -> Result<(), BusError> {
        self.has_failed = false;
        socket
            .connect(&endpoint)
            .map_err(|source| BusError::Connect { endpoint: endpoint.clone(), source: source.into() })?;
        self.current = Some(endpoint);
        Ok(())
    }

    /// Looks the name up from time to time, and dials another address if there is reason to.
    fn follow_name(&mut self, socket: &mut Inlet, now: Instant) {
        let Some(name) = &self.name else { return };
        match &self.look_up {
            None if now.saturating_duration_since(self.looked_up_at) >= LOOK_UP_EVERY => {
                self.looked_up_at = now;
                self.look_up = Some(start_look_up(name.clone()));
            }
            None => {}
            Some(look_up) => match look_up.try_recv() {
                Ok(found) => {
                    self.look_up = None;
                    self.looked_up_at = now;
                    self.found(socket.socket(), found);
                }
                // Only one look-up at a time: one that hangs must not use up threads.
                Err(crossbeam_channel::TryRecvError::Empty) => {
                    self.error.get_or_insert_with(|| format!("the name {} has not been resolved yet", name.host));
                }
                Err(crossbeam_channel::TryRecvError::Disconnected) => self.look_up = None,
            },
        }
    }

    /// Dials an address of the name: another one if the current one is no longer among them or has
    /// failed.
    fn found(&mut self, socket: &zmq::Socket, found: io::Result<Vec<SocketAddr>>) {
        let endpoints: Vec<String> = match found {
            Ok(addresses) => addresses.iter().map(|address| format!("tcp://{address}")).collect(),
            Err(error) => {
                self.error = Some(error.to_string());
                return;
            }
        };
        let position = self.current.as_ref().and_then(|current| endpoints.iter().position(|other| other == current));
        let next = match position {
            Some(_) if !self.has_failed || endpoints.len() == 1 => return,
            Some(position) => endpoints.get((position + 1) % endpoints.len()),
            None => endpoints.first(),
        };
        let Some(next) = next.cloned() else { return };
        self.error = None;
        if let Some(current) = self.current.take() {
            let _ = socket.disconnect(&current);
        }
        if let Err(error) = self.dial(socket, next) {
            self.error = Some(error.to_string());
        }
    }

    /// Attempts a connection in a thread of its own.
    fn start_probe(&self) -> Option<Receiver<Probed>> {
        let name = self.name.clone();
        let current = self.current.clone();
        let address = current.as_ref().and_then(|current| current.strip_prefix("tcp://")?.parse().ok());
        if name.is_none() && address.is_none() {
            return None;
        }
        let (sender, probed) = bounded(1);
        let probe = move || {
            let resolved = match (address, name) {
                // The one in use, of perhaps several.
                (None, Some(HostPort { host, port })) => {
                    (host.as_str(), port).to_socket_addrs().map(|mut found| found.next())
                }
                (address, _) => Ok(address),
            };
            let probed = match resolved {
                Ok(Some(address)) => Probed { address: Some(address), error: probe_error(address) },
                Ok(None) => Probed { address, error: "the name has no address".to_owned() },
                Err(error) => Probed { address, error: error.to_string() },
            };
            let _ = sender.send(probed);
        };
        let thread = thread::Builder::new().name("probe".to_owned());
        thread.spawn(probe).is_ok().then_some(probed)
    }
}

impl HostPort {
    /// The name in a TCP endpoint. `None` for an address, and for everything that only libzmq
    /// understands.
    fn of(endpoint: &str) -> Option<HostPort> {
        let (host, port) = endpoint.strip_prefix("tcp://")?.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let is_name = host.starts_with(|first: char| first.is_ascii_alphanumeric() || first == '_')
            && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
            && host.parse::<IpAddr>().is_err();
        is_name.then(|| HostPort { host: host.to_owned(), port })
    }
}

fn probe_error(address: SocketAddr) -> String {
    match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
        Ok(_) => "the port accepts connections but the handshake is not completed".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Looks a name up in a thread of its own, because a resolver may take long to answer.
fn start_look_up(HostPort { host, port }: HostPort) -> Receiver<io::Result<Vec<SocketAddr>>> {
    let (sender, found) = bounded(1);
    let failed = sender.clone();
    let look_up = move || {
        let _ = sender.send((host.as_str(), port).to_socket_addrs().map(Iterator::collect));
    };
    if let Err(error) = thread::Builder::new().name("look-up".to_owned()).spawn(look_up) {
        let _ = failed.send(Err(error));
    }
    found
}

#[cfg(test)]
mod tests {
    use sekiwake_testkit::log_lines::LogLines;

    use super::*;

    /// Reports ten times per second of this time. Returns what is logged.
    fn reports(connections: &mut Connections, is_connected: bool, from: Instant, duration: Duration) -> Vec<String> {
        let lines = LogLines::default();
        tracing::subscriber::with_default(lines.clone(), || {
            for tenth in 0..duration.as_secs() as u32 * 10 {
                connections.report(is_connected, from + tenth * Duration::from_millis(100));
            }
        });
        lines.lines()
    }

    #[test]
    fn outage_is_logged_after_five_seconds_and_then_once_per_minute() {
        let context = crate::zeromq::Context::default();
        let socket = context.subscriber(None).unwrap();
        let mut connections = context.watch(&socket, Side::Subscribe).unwrap();
        let start = Instant::now();
        // An address that libzmq has not been given is not tried.
        connections.targets.push(Target::new("tcp://203.0.113.1:5560", start));
        let seconds = |line: &String| -> u64 {
            assert!(line.starts_with("WARN") && line.contains("message=no connection to the proxy"), "{line}");
            let seconds = line.split_whitespace().find_map(|field| field.strip_prefix("seconds="));
            seconds.unwrap().parse().unwrap()
        };
        let mut now = start;
        // The second outage is like the first.
        for _ in 0..2 {
            let lines = reports(&mut connections, false, now, Duration::from_secs(310));
            assert_eq!(lines.iter().map(seconds).collect::<Vec<u64>>(), [5, 65, 125, 185, 245, 305]);
            now += Duration::from_secs(310);
            let lines = reports(&mut connections, true, now, Duration::from_secs(70));
            assert!(lines.len() == 1 && lines[0].contains("message=connected to the proxy again"), "{lines:?}");
            now += Duration::from_secs(70);
        }
        let lines = reports(&mut connections, false, now, Duration::from_secs(5));
        assert_eq!(lines, Vec::<String>::new(), "a short outage is not logged");
    }

    #[test]
    fn only_names_are_looked_up() {
        let name = |endpoint| HostPort::of(endpoint).map(|HostPort { host, port }| (host, port));
        assert_eq!(name("tcp://proxy:5559"), Some(("proxy".to_owned(), 5559)));
        assert_eq!(name("tcp://sekiwake-proxy.sekiwake.svc:1"), Some(("sekiwake-proxy.sekiwake.svc".to_owned(), 1)));
        for endpoint in [
            "tcp://127.0.0.1:5559",
            "tcp://[::1]:5559",
            "tcp://::1:5559",
            "tcp://*:5559",
            "tcp://proxy:port",
            "tcp://eth0;proxy:1",
            "tcp://proxy",
            "ipc:///run/bus",
            "inproc://bus",
        ] {
            assert_eq!(name(endpoint), None, "{endpoint}");
        }
    }
}
