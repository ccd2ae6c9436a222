//! One constructor per role, so that no socket keeps libzmq's defaults: endless linger, no liveness
//! check, unlimited message size.
//!
//! A peer must not be able to end the process. libzmq 4.3 aborts when it has stopped reading a
//! connection (the pipe to the socket is full, or ends) and then writes on it after the peer has
//! hung up. It does that for its own heartbeats, and to answer a PING of the peer that waits behind
//! the stopped input. Therefore no socket has heartbeats, and the sockets that bind have no limit
//! of their pipes (`ZMQ_RCVHWM` is 0): their threads drain them into bounded queues, and a
//! `PortGuard` cuts connections whose input libzmq would keep from them. TCP's keepalive and user
//! timeout detect broken connections.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sekiwake_runtime::with_reserve;
use tracing::info;

use crate::{
    BusError,
    zeromq::connections::{Connections, Side},
    zeromq::{ClientKeys, ServerKeys},
};

/// Where the all-in-one's relay takes data from publishers in the same process.
pub const INPROC_PUBLISH: &str = "inproc://sekiwake-publish";
/// Where the all-in-one's subscribers find their relay.
pub const INPROC_SUBSCRIBE: &str = "inproc://sekiwake-subscribe";
/// Where the all-in-one's roles find the coordinator.
pub const INPROC_CONTROL: &str = "inproc://sekiwake-control";

/// A relay that is shutting down subscribes to this topic and unsubscribes at once. Publishers then
/// pause until they are connected again, so that nothing is in flight while the relay closes.
pub(crate) const PAUSE_TOPIC: &[u8] = b"@relay/hold/";

/// The largest message part accepted from a peer, bytes: a body with one record of the largest
/// payload.
pub const MAX_MESSAGE_BYTES: i64 = 80 * 1024;

/// The largest subscription accepted from a peer, bytes: one byte plus the longest topic.
const MAX_SUBSCRIPTION_BYTES: i64 = 256;

/// The same for encrypted connections: libzmq applies this limit to the client's CURVE handshake
/// too, which takes up to 550 bytes (ZeroMQ RFC 26: 257, the socket's type, and a routing id of at
/// most 255).
const MAX_ENCRYPTED_SUBSCRIPTION_BYTES: i64 = 640;

/// The largest message part on a control connection, bytes: one MiB of retransmitted records plus
/// their envelope.
const MAX_CONTROL_BYTES: i64 = (1 << 20) + (64 << 10);
/// Messages in each of the proxy's control pipes to clients.
const CONTROL_MESSAGES: i32 = 1_000;
/// Messages in a client's pipe to the proxy.
const CONTROL_CLIENT_MESSAGES: i32 = 256;

/// Messages in a publisher's pipe. It is short because batches that do not fit wait in the
/// publisher, where they are bounded by bytes.
const PUBLISHER_MESSAGES: i32 = 1_000;
/// Messages in the relay's pipe from one publisher in the same process.
pub(crate) const RELAY_IN_PROCESS_MESSAGES: i32 = 1_000;
/// Messages in the relay's pipe to one subscriber, and in the subscriber's own pipe. They bound how
/// long that subscriber may stall: both together hold 0.3 s of 64 topics on a tick of 2 ms, which
/// is 32,000 messages per second. More would cost memory, since each message may be one datagram of
/// 64 KiB.
pub(crate) const SUBSCRIBER_MESSAGES: i32 = 5_000;
const _: () = assert!(2 * SUBSCRIBER_MESSAGES >= 32_000 * 3 / 10);

/// Events that wait for a relay.
const EVENT_MESSAGES: i32 = 256;
/// How long the last events may linger.
const EVENT_LINGER: Duration = Duration::from_millis(200);

/// The kernel's queue of a subscriber's subscriptions, bytes. It is small, because libzmq reads all
/// of it, also of a connection that has ended, before it turns to data.
const SUBSCRIPTION_BUFFER: i32 = 8 << 10;
/// Subscriptions read before data is handled again.
pub(crate) const SUBSCRIPTION_BURST: usize = 256;

/// The shortest time before a reconnect; libzmq adds a random part of up to the same length.
const RECONNECT: Duration = Duration::from_millis(100);
/// The longest connection attempt. A lost SYN would be repeated for two minutes, also to an address
/// that has moved: connection tracking keeps translating it to the old one.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Seconds without data after which TCP asks whether the peer is still there, seconds between these
/// probes, and their number: a powered-off peer sends no FIN.
const KEEPALIVE_IDLE_S: i32 = 1;
const KEEPALIVE_INTERVAL_S: i32 = 1;
const KEEPALIVE_PROBES: i32 = 3;
/// The same at the relay's end towards publishers. It is longer, because the host of a publisher
/// that has ended answers a probe with a reset, which discards its last unread records.
const RELAY_KEEPALIVE_IDLE_S: i32 = 10;
/// How long sent data may stay unacknowledged, or the proxy's window closed.
const SEND_TIMEOUT: Duration = Duration::from_secs(3);
/// The same for the proxy's control connections.
const CONTROL_SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for the proxy's connections to subscribers. A subscriber that stalls closes its window
/// and must not be cut off for that.
const SUBSCRIBER_SEND_TIMEOUT: Duration = Duration::from_secs(120);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// libzmq's clock, which measures the linger, may be this much ahead of ours.
pub(crate) const LINGER_ACCURACY: Duration = Duration::from_millis(5);

/// `ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC` and `ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH` of
/// zmq.h.
const CRYPTOGRAPHIC: u32 = 0x1100_0001;
const MECHANISM_MISMATCH: u32 = 0x1100_0002;

/// The events of failed handshakes.
pub(crate) const HANDSHAKE_FAILURES: [zmq::SocketEvent; 3] = [
    zmq::SocketEvent::HANDSHAKE_FAILED_NO_DETAIL,
    zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL,
    zmq::SocketEvent::HANDSHAKE_FAILED_AUTH,
];

/// Which end of a connection a socket is, with the keys for it.
#[derive(Clone, Copy)]
enum End<'a> {
    Client(Option<&'a ClientKeys>),
    Server(Option<&'a ServerKeys>),
    /// In-process only.
    Inside,
}

/// A ZeroMQ context. Cheap to clone; dropping the last clone waits for lingering messages.
#[derive(Clone)]
pub struct Context {
    context: Arc<zmq::Context>,
}

impl Default for Context {
    /// A separate context.
    fn default() -> Context {
        #[expect(clippy::disallowed_methods, reason = "the only place that creates a context")]
        let context = zmq::Context::new();
        Context { context: Arc::new(context) }
    }
}

impl Context {
    /// The context shared by all roles of this process, which meet on [`INPROC_PUBLISH`] and
    /// [`INPROC_SUBSCRIBE`]. It lives until the last clone is dropped.
    pub fn shared() -> Context {
        static SHARED: Mutex<Weak<zmq::Context>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = shared.upgrade() {
            return Context { context };
        }
        let context = Context::default();
        *shared = Arc::downgrade(&context.context);
        context
    }

    pub(crate) fn publisher(&self, keys: Option<&ClientKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("publisher", zmq::XPUB, End::Client(keys), |socket| {
            socket.set_sndhwm(PUBLISHER_MESSAGES)?;
            // The proxy bounds the subscriptions that it forwards.
            socket.set_rcvhwm(0)?;
            socket.set_maxmsgsize(MAX_SUBSCRIPTION_BYTES)?;
            send_timeout(socket, SEND_TIMEOUT)?;
            nodrop(socket, true)
        })
    }

    /// For events, which are rare: an event without room is dropped rather than queued. The last
    /// ones linger for a moment when the publisher ends.
    pub(crate) fn event_publisher(&self, keys: Option<&ClientKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("event publisher", zmq::XPUB, End::Client(keys), |socket| {
            socket.set_linger(milliseconds(EVENT_LINGER))?;
            socket.set_sndhwm(EVENT_MESSAGES)?;
            socket.set_rcvhwm(0)?;
            socket.set_maxmsgsize(MAX_SUBSCRIPTION_BYTES)?;
            send_timeout(socket, SEND_TIMEOUT)?;
            nodrop(socket, true)
        })
    }

    pub(crate) fn relay_in(&self, keys: Option<&ServerKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("relay", zmq::XSUB, End::Server(keys), |socket| {
            // Bounded by the relay's `Backlog` and the socket's `PortGuard`.
            socket.set_rcvhwm(0)?;
            socket.set_tcp_keepalive_idle(RELAY_KEEPALIVE_IDLE_S)?;
            // Unlimited, because libzmq silently drops subscriptions that do not fit. Their number
            // is bounded by `Subscriptions`.
            socket.set_sndhwm(0)?;
            socket.set_backlog(1024)?;
            socket.set_maxmsgsize(MAX_MESSAGE_BYTES)
        })
    }

    pub(crate) fn relay_out(&self, keys: Option<&ServerKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("relay", zmq::XPUB, End::Server(keys), |socket| {
            socket.set_sndhwm(SUBSCRIBER_MESSAGES)?;
            // Bounded by its `PortGuard`, which the kernel's queue must not outlast.
            socket.set_rcvhwm(0)?;
            socket.set_rcvbuf(SUBSCRIPTION_BUFFER)?;
            socket.set_backlog(1024)?;
            let is_encrypted = keys.is_some();
            socket.set_maxmsgsize(if is_encrypted {
                MAX_ENCRYPTED_SUBSCRIPTION_BYTES
            } else {
                MAX_SUBSCRIPTION_BYTES
            })?;
            send_timeout(socket, SUBSCRIBER_SEND_TIMEOUT)?;
            nodrop(socket, true)
        })
    }

    pub(crate) fn subscriber(&self, keys: Option<&ClientKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("subscriber", zmq::SUB, End::Client(keys), |socket| {
            socket.set_rcvhwm(SUBSCRIBER_MESSAGES)?;
            socket.set_maxmsgsize(MAX_MESSAGE_BYTES)
        })
    }

    /// The proxy's end of control connections. A second connection with the routing id of another
    /// is ignored until it reconnects after the end of the first. Replacing the first
    /// (`ZMQ_ROUTER_HANDOVER`) would stop its input. Sending to a peer that is disconnected or does
    /// not read is an error.
    pub(crate) fn control_server(&self, keys: Option<&ServerKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("control", zmq::ROUTER, End::Server(keys), |socket| {
            socket.set_router_mandatory(true)?;
            socket.set_sndhwm(CONTROL_MESSAGES)?;
            // Bounded by `Intake` and the socket's `PortGuard`.
            socket.set_rcvhwm(0)?;
            send_timeout(socket, CONTROL_SEND_TIMEOUT)?;
            socket.set_backlog(1024)?;
            socket.set_maxmsgsize(MAX_CONTROL_BYTES)
        })
    }

    /// A client's end of its control connection. Its pipe from the proxy is bounded by what the
    /// client requests.
    pub(crate) fn control_client(
        &self,
        routing_id: &[u8; 16],
        keys: Option<&ClientKeys>,
    ) -> Result<zmq::Socket, BusError> {
        self.socket("control", zmq::DEALER, End::Client(keys), |socket| {
            socket.set_identity(routing_id)?;
            socket.set_sndhwm(CONTROL_CLIENT_MESSAGES)?;
            socket.set_rcvhwm(0)?;
            send_timeout(socket, SEND_TIMEOUT)?;
            socket.set_maxmsgsize(MAX_CONTROL_BYTES)
        })
    }

    /// The socket on which libzmq asks whether a peer may connect.
    pub(crate) fn gatekeeper(&self) -> Result<zmq::Socket, BusError> {
        self.socket("gatekeeper", zmq::ROUTER, End::Inside, |_| Ok(()))
    }

    fn socket(
        &self,
        role: &'static str,
        kind: zmq::SocketType,
        end: End<'_>,
        options: impl FnOnce(&mut zmq::Socket) -> Result<(), zmq::Error>,
    ) -> Result<zmq::Socket, BusError> {
        let make = || {
            let mut socket = self.context.socket(kind)?;
            socket.set_linger(0)?;
            socket.set_ipv6(true)?;
            socket.set_reconnect_ivl(milliseconds(RECONNECT))?;
            socket.set_connect_timeout(milliseconds(CONNECT_TIMEOUT))?;
            socket.set_tcp_keepalive(1)?;
            socket.set_tcp_keepalive_idle(KEEPALIVE_IDLE_S)?;
            socket.set_tcp_keepalive_intvl(KEEPALIVE_INTERVAL_S)?;
            socket.set_tcp_keepalive_cnt(KEEPALIVE_PROBES)?;
            socket.set_handshake_ivl(milliseconds(HANDSHAKE_TIMEOUT))?;
            match end {
                End::Client(Some(keys)) => keys.apply(&socket)?,
                End::Server(Some(keys)) => keys.apply(&mut socket)?,
                End::Client(None) | End::Server(None) | End::Inside => {}
            }
            options(&mut socket)?;
            Ok(socket)
        };
        make().map_err(|source: zmq::Error| BusError::Socket { role, source: source.into() })
    }

    /// A watch over the connections of `socket`.
    pub(crate) fn watch(&self, socket: &zmq::Socket, side: Side) -> Result<Connections, BusError> {
        let events = self.monitor(socket, &[&Connections::EVENTS[..], &HANDSHAKE_FAILURES].concat());
        let events = events.map_err(|source| BusError::Socket { role: "monitor", source: source.into() })?;
        Ok(Connections::new(events, side))
    }

    /// A socket to read these events of `socket` from. It must be kept, and read, for as long as
    /// `socket` lives.
    pub(crate) fn monitor(&self, socket: &zmq::Socket, events: &[zmq::SocketEvent]) -> Result<zmq::Socket, zmq::Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("inproc://sekiwake-monitor-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        socket.monitor(&name, events.iter().fold(0, |mask, event| mask | i32::from(event.to_raw())))?;
        let reader = self.context.socket(zmq::PAIR)?;
        reader.set_linger(0)?;
        // Unlimited, because libzmq blocks its I/O thread while this pipe is full.
        reader.set_rcvhwm(0)?;
        reader.connect(&name)?;
        Ok(reader)
    }
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The peer's key, or ours, is not allowed.
    KeyRejected,
    /// One end encrypts and the other does not.
    Mechanism,
    /// A message that does not decrypt: the peer has another server key.
    Cryptographic,
    /// The peer does not speak this handshake.
    Foreign,
    /// The peer closed the connection, or took too long.
    Broken,
}

impl HandshakeFailure {
    pub(crate) fn message(self) -> &'static str {
        match self {
            HandshakeFailure::KeyRejected => "connection rejected: the proxy does not allow this key",
            HandshakeFailure::Mechanism => "handshake failed: only one side uses encryption",
            HandshakeFailure::Cryptographic => "handshake failed: the proxy's key differs from the configured one",
            HandshakeFailure::Foreign => "handshake failed: peer is not a Sekiwake proxy",
            HandshakeFailure::Broken => {
                "handshake failed: connection closed by peer, whose key may differ from the configured one"
            }
        }
    }
}

/// The handshake failure in the first frame of an event, if it is one: 16 bits of event, 32 bits of
/// value, in native byte order (zmq_socket_monitor(3)).
pub(crate) fn handshake_failure(event: &[u8]) -> Option<HandshakeFailure> {
    let (number, value) = event.split_first_chunk::<2>()?;
    let value = u32::from_ne_bytes(*value.first_chunk::<4>()?);
    match zmq::SocketEvent::from_raw(u16::from_ne_bytes(*number)) {
        zmq::SocketEvent::HANDSHAKE_FAILED_AUTH => Some(HandshakeFailure::KeyRejected),
        zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL if value == MECHANISM_MISMATCH => Some(HandshakeFailure::Mechanism),
        zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL if value == CRYPTOGRAPHIC => Some(HandshakeFailure::Cryptographic),
        zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL => Some(HandshakeFailure::Foreign),
        zmq::SocketEvent::HANDSHAKE_FAILED_NO_DETAIL => Some(HandshakeFailure::Broken),
        _ => None,
    }
}

pub(crate) fn nodrop(socket: &mut zmq::Socket, enabled: bool) -> Result<(), zmq::Error> {
    sekiwake_sys::set_xpub_nodrop(socket, enabled)
        .map_err(|error| error.raw_os_error().map_or(zmq::Error::EINVAL, zmq::Error::from_raw))
}

fn send_timeout(socket: &mut zmq::Socket, limit: Duration) -> Result<(), zmq::Error> {
    sekiwake_sys::set_tcp_user_timeout(socket, milliseconds(limit))
        .map_err(|error| error.raw_os_error().map_or(zmq::Error::EINVAL, zmq::Error::from_raw))
}

pub(crate) fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// Binds a socket. libzmq aborts the process if it finds no descriptor for that.
pub(crate) fn bind(socket: &zmq::Socket, endpoint: &str) -> Result<(), zmq::Error> {
    with_reserve(|| socket.bind(endpoint))
}

/// Binds a socket, and returns the endpoints with the actual ports.
pub(crate) fn bind_all(socket: &zmq::Socket, endpoints: &[String]) -> Result<Vec<String>, BusError> {
    let mut bound = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        bind(socket, endpoint)
            .map_err(|source| BusError::Bind { endpoint: endpoint.clone(), source: source.into() })?;
        let last = socket.get_last_endpoint().ok().and_then(Result::ok).unwrap_or_else(|| endpoint.clone());
        info!(endpoint = %last, "endpoint bound");
        bound.push(last);
    }
    Ok(bound)
}

/// Repeats a socket operation while signals interrupt it.
pub(crate) fn uninterrupted<T>(mut operation: impl FnMut() -> Result<T, zmq::Error>) -> Result<T, zmq::Error> {
    loop {
        match operation() {
            Err(zmq::Error::EINTR) => {}
            result => return result,
        }
    }
}

/// The parts of a message after the first: at most `N` are kept, all are counted.
pub(crate) struct Rest<const N: usize> {
    pub(crate) count: usize,
    pub(crate) parts: [Option<zmq::Message>; N],
}

/// Reads the parts that follow `first`. The parts of a message arrive together, so this does not
/// block.
pub(crate) fn receive_rest<const N: usize>(socket: &zmq::Socket, first: &zmq::Message) -> Result<Rest<N>, zmq::Error> {
    let mut rest = Rest { count: 0, parts: [const { None }; N] };
    let mut more = first.get_more();
    while more {
        let part = uninterrupted(|| socket.recv_msg(0))?;
        more = part.get_more();
        if let Some(slot) = rest.parts.get_mut(rest.count) {
            *slot = Some(part);
        }
        rest.count += 1;
    }
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use sekiwake_testkit::wait::wait_for;

    use super::*;

    /// The next message, with the sender's routing id.
    fn next(socket: &zmq::Socket) -> Vec<Vec<u8>> {
        socket.set_rcvtimeo(20_000).unwrap();
        socket.recv_multipart(0).unwrap()
    }

    #[test]
    fn control_client_is_accepted_again_after_its_old_connection() {
        let context = Context::default();
        let id = [7; 16];
        let server = context.control_server(None).unwrap();
        server.bind("tcp://127.0.0.1:0").unwrap();
        let endpoint = server.get_last_endpoint().unwrap().unwrap();
        for number in 0..3 {
            let client = Context::default().control_client(&id, None).unwrap();
            client.connect(&endpoint).unwrap();
            client.send("hello", 0).unwrap();
            assert_eq!(next(&server), [&id[..], b"hello"], "connection {number}");
            server.send_multipart([&id[..], b"answer"], 0).unwrap();
            assert_eq!(next(&client), [b"answer"]);
            drop(client);
            // The server notices the end: the peer is unknown then, which is an error, so that a
            // message to it can be counted.
            wait_for("the end of the connection", Duration::from_secs(60), || {
                server.send_multipart([&id[..], b"to nobody"], zmq::DONTWAIT) == Err(zmq::Error::EHOSTUNREACH)
            })
            .unwrap();
        }
    }
}
