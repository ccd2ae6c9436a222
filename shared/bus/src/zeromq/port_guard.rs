//! Cuts connections whose input libzmq would keep without a limit.
//!
//! The pipes of the proxy's ports have no limit (see `socket`). The relay and the control plane
//! bound what they read from them, but libzmq keeps some input from them: it applies subscriptions
//! before it passes them on, it does not read a second connection with the routing id of another,
//! and it collects the parts of a message until the last one. A thread per port therefore compares
//! how much each connection has received, according to the kernel, with what the port's owner has
//! seen of it. It works while the owner is busy inside libzmq.
//!
//! A check costs a system call per connection. While the port receives little, checks are rare, and
//! the kernel reports data that arrives on a connection: one that has received much is checked at
//! once.
//!
//! It knows connections by their descriptors, from the socket's monitor and from the messages. A
//! descriptor may have been closed, and its number used again, before the thread hears of it, so
//! the peer's address is compared before a connection is shut down.

use std::{
    collections::HashMap,
    net::SocketAddr,
    os::fd::{AsFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use sekiwake_runtime::{Metrics, RateLimited};
use sekiwake_sys::{Arrivals, peer_address, received_bytes, shut_down, stop_monitor};
use tracing::warn;

use crate::{
    BusError,
    metrics::cut_connections,
    zeromq::{
        ServerKeys,
        connections::Side,
        inlet::{Inlet, wait, wait_or_readable},
        socket::{Context, HANDSHAKE_FAILURES, Rest, handshake_failure, receive_rest},
    },
};

/// The most bytes that a subscriber may send at once: each topic several times, encrypted.
const SUBSCRIPTION_BYTES: u64 = 128 << 10;
/// The most bytes per second that it may send all the time: enough for subscriptions that change,
/// and for the heartbeats of a foreign subscriber.
const SUBSCRIPTION_BYTES_PER_SECOND: u64 = 1 << 10;
/// The most subscriptions of a connection that may be rejected, because libzmq keeps them.
const MAX_REJECTED: u32 = 4_096;
/// The most bytes that a connection may receive while none of its messages are read: several times
/// the largest message, and more than the kernel's own queue.
const UNREAD_BYTES: u64 = 8 << 20;
/// The fewest bytes of a subscription that is rejected.
const REJECTED_BYTES: u64 = 4;
/// How long the relay may be busy with subscriptions inside libzmq before new subscribers are
/// turned away, so that connections that end before a check cannot keep it there.
const STALL: Duration = Duration::from_millis(250);
/// How often the connections are checked, and at most how often arrivals are asked for.
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// The interval doubles up to this while all connections are watched and none receives much.
const CHECK_IDLE_EVERY: Duration = Duration::from_secs(4);
/// A connection that has received this many bytes since the last check has received much.
const MUCH: u64 = 128 << 10;
/// The descriptors that are told apart. Larger ones share counts.
const DESCRIPTORS: usize = 1 << 16;
/// The name of the descriptor among a message's properties, libzmq's `ZMQ_SRCFD`.
const DESCRIPTOR_PROPERTY: &str = "__fd";

/// What the owner of a port has seen of its connections.
struct Seen {
    /// Messages per descriptor since the connection was accepted or, if they count as progress,
    /// since the last check. At the subscribers' port, rejected subscriptions.
    messages: Box<[AtomicU32]>,
    /// How often the port was read until it was empty. At the subscribers' port, the relay's turns.
    emptied: AtomicU32,
    /// The relay waits for messages, and is not busy.
    is_waiting: AtomicBool,
    is_stopping: AtomicBool,
}

/// See the module. To be stopped before its socket is closed.
pub(crate) struct PortGuard {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

/// The thread.
struct Watch {
    events: Inlet,
    arrivals: Arrivals,
    side: Side,
    keys: Option<ServerKeys>,
    seen: Arc<Seen>,
    connections: HashMap<RawFd, Connection>,
    checked_at: Instant,
    check_every: Duration,
    /// When arrivals were asked for last.
    asked_at: Instant,
    emptied: u32,
    emptied_at: Instant,
    cut: prometheus::IntCounter,
    cut_log: RateLimited,
}

struct Connection {
    /// `None` if it is not a TCP connection.
    address: Option<SocketAddr>,
    /// Bytes received by the last check.
    received: u64,
    /// Bytes beyond the permitted rate, or those received since a message was read.
    excess: u64,
    /// The kernel reports its data.
    is_watched: bool,
    is_cut: bool,
}

impl PortGuard {
    /// Guards a socket that has not been bound. Reports failed handshakes to the gatekeeper of
    /// `keys`.
    pub(crate) fn start(
        context: &Context,
        socket: &zmq::Socket,
        side: Side,
        keys: Option<&ServerKeys>,
        metrics: &Metrics,
    ) -> Result<PortGuard, BusError> {
        // The last one wakes the thread when it is to end.
        let mut watched =
            vec![zmq::SocketEvent::ACCEPTED, zmq::SocketEvent::DISCONNECTED, zmq::SocketEvent::MONITOR_STOPPED];
        if keys.is_some() {
            watched.extend(HANDSHAKE_FAILURES);
        }
        let seen = Arc::new(Seen {
            messages: (0..DESCRIPTORS).map(|_| AtomicU32::new(0)).collect(),
            emptied: AtomicU32::new(0),
            is_waiting: AtomicBool::new(false),
            is_stopping: AtomicBool::new(false),
        });
        let events = context
            .monitor(socket, &watched)
            .map_err(|source| BusError::Socket { role: "monitor", source: source.into() })?;
        let watch = Watch {
            events: Inlet::new(events),
            arrivals: Arrivals::new().map_err(BusError::Wake)?,
            side,
            keys: keys.cloned(),
            seen: Arc::clone(&seen),
            connections: HashMap::new(),
            checked_at: Instant::now(),
            check_every: CHECK_EVERY,
            asked_at: Instant::now(),
            emptied: 0,
            emptied_at: Instant::now(),
            cut: cut_connections(metrics, side.name()),
            cut_log: RateLimited::default(),
        };
        let thread = thread::Builder::new().name(format!("{} guard", side.name())).spawn(move || watch.run());
        Ok(PortGuard { seen, thread: Some(thread.map_err(BusError::Thread)?) })
    }

    /// Counts a message for its connection. In-process messages have no descriptor.
    pub(crate) fn count(&self, message: &mut zmq::Message) {
        let descriptor = message.gets(DESCRIPTOR_PROPERTY).and_then(|text| text.parse::<RawFd>().ok());
        if let Some(descriptor) = descriptor {
            self.seen.messages(descriptor).fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Every complete message that libzmq had received has been read, or the relay has begun a
    /// turn.
    pub(crate) fn emptied(&self) {
        self.seen.emptied.fetch_add(1, Ordering::Release);
    }

    /// The relay begins a wait for messages.
    pub(crate) fn begin_wait(&self) {
        self.seen.is_waiting.store(true, Ordering::Relaxed);
    }

    /// The relay begins a turn after a wait.
    pub(crate) fn end_wait(&self) {
        self.emptied();
        self.seen.is_waiting.store(false, Ordering::Release);
    }

    /// Ends the thread. The socket has no monitor then, whose events would block libzmq without a
    /// reader.
    pub(crate) fn stop(self, socket: &mut zmq::Socket) {
        self.seen.is_stopping.store(true, Ordering::Relaxed);
        // It cannot fail: there is nothing to allocate.
        let _ = stop_monitor(socket);
        drop(self);
    }
}

impl Drop for PortGuard {
    fn drop(&mut self) {
        self.seen.is_stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // An error means that it has panicked, which has been logged.
            let _ = thread.join();
        }
    }
}

impl Seen {
    fn messages(&self, descriptor: RawFd) -> &AtomicU32 {
        &self.messages[descriptor.unsigned_abs() as usize % DESCRIPTORS]
    }
}

impl Watch {
    fn run(mut self) {
        while !self.seen.is_stopping.load(Ordering::Relaxed) {
            // An error means that the context was terminated.
            let Ok(has_arrivals) = self.wait() else { return };
            self.take_events();
            let now = Instant::now();
            if has_arrivals {
                self.asked_at = now;
            }
            if now >= self.checked_at + self.check_every || has_arrivals && self.has_received_much() {
                let elapsed = now.duration_since(self.checked_at);
                self.checked_at = now;
                self.check(elapsed);
            }
        }
    }

    /// Waits for events and for the next check. Returns whether data has arrived, if that was
    /// waited for.
    fn wait(&mut self) -> Result<bool, zmq::Error> {
        let now = Instant::now();
        let due_at = self.checked_at + self.check_every;
        let ask_at = self.asked_at + CHECK_EVERY;
        if now < ask_at || ask_at >= due_at {
            let until = ask_at.min(due_at);
            return wait([&mut self.events], [], until.saturating_duration_since(now)).map(|()| false);
        }
        wait_or_readable([&mut self.events], [], self.arrivals.as_fd(), due_at.saturating_duration_since(now))
    }

    /// Whether a connection on which data has arrived has received much since the last check.
    fn has_received_much(&self) -> bool {
        // If it fails, all are checked.
        let Ok(arrived) = self.arrivals.take() else { return true };
        arrived.into_iter().any(|descriptor| {
            let connection = self.connections.get(&descriptor).filter(|connection| !connection.is_cut);
            let received = connection.and_then(|_| received_bytes(descriptor).ok());
            connection.zip(received).is_some_and(|(known, received)| received.saturating_sub(known.received) >= MUCH)
        })
    }

    fn take_events(&mut self) {
        while let Ok(Some(event)) = self.events.receive() {
            let Ok(Rest { parts: [Some(endpoint)], .. }) = receive_rest(self.events.socket(), &event) else { continue };
            let (event, endpoint) = (&event[..], &endpoint[..]);
            if let (Some(failure), Some(keys)) = (handshake_failure(event), &self.keys) {
                keys.handshake_failed(failure, &String::from_utf8_lossy(endpoint));
                continue;
            }
            let Some((number, value)) = event.split_first_chunk::<2>() else { continue };
            let Some(descriptor) = value.first_chunk::<4>().map(|bytes| RawFd::from_ne_bytes(*bytes)) else { continue };
            match zmq::SocketEvent::from_raw(u16::from_ne_bytes(*number)) {
                zmq::SocketEvent::ACCEPTED => {
                    self.seen.messages(descriptor).store(0, Ordering::Relaxed);
                    let address = peer_address(descriptor).ok();
                    let is_watched = self.arrivals.watch(descriptor).is_ok();
                    let mut connection = Connection { address, received: 0, excess: 0, is_watched, is_cut: false };
                    if self.side == Side::Subscribe && self.is_stalled() {
                        self.cut(descriptor, &mut connection, "the relay is busy with subscriptions");
                    }
                    self.connections.insert(descriptor, connection);
                    self.check_every = CHECK_EVERY;
                }
                zmq::SocketEvent::DISCONNECTED => {
                    self.connections.remove(&descriptor);
                }
                _ => {}
            }
        }
    }

    /// Whether the owner has been at work, but has not come back for long.
    fn is_stalled(&self) -> bool {
        // The end of a wait is seen after the turn that begins with it.
        let is_waiting = self.seen.is_waiting.load(Ordering::Acquire);
        let emptied = self.seen.emptied.load(Ordering::Acquire);
        emptied > 0 && emptied == self.emptied && !is_waiting && self.emptied_at.elapsed() > STALL
    }

    fn check(&mut self, elapsed: Duration) {
        // Acquired before the messages that were read before.
        let emptied = self.seen.emptied.load(Ordering::Acquire);
        let was_emptied = emptied != self.emptied;
        self.emptied = emptied;
        if was_emptied {
            self.emptied_at = self.checked_at;
        }
        let mut excessive = Vec::new();
        let mut is_idle = true;
        let permitted = SUBSCRIPTION_BYTES_PER_SECOND * elapsed.as_millis() as u64 / 1_000;
        for (&descriptor, connection) in &mut self.connections {
            if connection.is_cut {
                continue;
            }
            let received = received_bytes(descriptor).unwrap_or(connection.received);
            let grown = received.saturating_sub(connection.received);
            is_idle &= grown < MUCH && connection.is_watched;
            connection.excess += grown;
            connection.received = received;
            let messages = self.seen.messages(descriptor);
            let reason = if self.side == Side::Subscribe {
                connection.excess = connection.excess.saturating_sub(permitted);
                // More than this connection can have sent: some are of an earlier one with the same
                // descriptor, and were read late.
                let most = connection.address.map_or(u64::MAX, |_| received / REJECTED_BYTES);
                let most = u32::try_from(most).unwrap_or(u32::MAX);
                let rejected = messages.fetch_min(most, Ordering::Relaxed).min(most);
                let is_too_much = connection.excess > SUBSCRIPTION_BYTES || rejected > MAX_REJECTED;
                is_too_much.then_some("too many subscriptions")
            } else {
                if messages.swap(0, Ordering::Relaxed) > 0 {
                    connection.excess = 0;
                }
                // While the port is not read until it is empty, nobody can know.
                let is_too_much = connection.excess > UNREAD_BYTES && was_emptied;
                is_too_much.then_some("an endless message, or the routing id of another connection")
            };
            if let Some(reason) = reason {
                excessive.push((descriptor, reason));
            }
        }
        self.check_every = if is_idle { (2 * self.check_every).min(CHECK_IDLE_EVERY) } else { CHECK_EVERY };
        for (descriptor, reason) in excessive {
            if let Some(mut connection) = self.connections.remove(&descriptor) {
                self.cut(descriptor, &mut connection, reason);
                self.connections.insert(descriptor, connection);
            }
        }
    }

    fn cut(&self, descriptor: RawFd, connection: &mut Connection, reason: &'static str) {
        if peer_address(descriptor).ok() != connection.address || shut_down(descriptor).is_err() {
            return;
        }
        connection.is_cut = true;
        self.cut.inc();
        if let Some(suppressed) = self.cut_log.allow(Instant::now()) {
            let address = connection.address.map_or_else(|| "local".to_owned(), |address| address.to_string());
            let received_bytes = connection.received;
            warn!(port = self.side.name(), address, received_bytes, reason, suppressed, "connection cut");
        }
    }
}
