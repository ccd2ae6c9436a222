//! One constructor for each role, so that no socket is left with libzmq's defaults: endless linger, no heartbeat, unlimited
//! message size.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sekiwake_runtime::RateLimited;
use tracing::warn;

use crate::{BusError, ClientKeys, ServerKeys};

/// Where the all-in-one's relay takes data from publishers in the same process.
pub const INPROC_PUBLISH: &str = "inproc://sekiwake-publish";
/// Where the all-in-one's subscribers find their relay.
pub const INPROC_SUBSCRIBE: &str = "inproc://sekiwake-subscribe";
/// Where the all-in-one's parties find the coordinator.
pub const INPROC_CONTROL: &str = "inproc://sekiwake-control";

/// A relay that is about to go subscribes to this, and ends the subscription at once: publishers then keep what they have
/// until they are connected again, so that nothing is on its way while the relay closes.
pub(crate) const HOLD_TOPIC: &[u8] = b"@relay/hold/";

/// The largest message part that is accepted from a peer, bytes: a body with one record of the largest payload.
pub const MAX_MESSAGE_BYTES: i64 = 80 * 1024;

/// The largest subscription that is accepted from a peer, bytes: one byte and the longest topic of the bus.
const MAX_SUBSCRIPTION_BYTES: i64 = 256;

/// A client's part of a CURVE handshake is up to 550 bytes long (ZeroMQ RFC 26: 257, the socket's type, and a routing id of at
/// most 255), and is held against the same limit: so long is the largest subscription where connections are encrypted.
const MAX_ENCRYPTED_SUBSCRIPTION_BYTES: i64 = 640;

/// The largest message part on a control connection, bytes: a mebibyte of records to be repeated, and what is around them.
const MAX_CONTROL_BYTES: i64 = (1 << 20) + (64 << 10);
/// Messages in each pipe of the proxy's end for control, and in those from the proxy to a client.
const CONTROL_MESSAGES: i32 = 1_000;
/// Messages in a client's pipe to the proxy.
const CONTROL_CLIENT_MESSAGES: i32 = 256;

/// Messages that a publisher's pipe may hold. It is short: what it has no room for waits in the publisher, bounded by bytes.
const PUBLISHER_MESSAGES: i32 = 1_000;
/// Messages in the relay's pipe from one publisher.
const RELAY_IN_MESSAGES: i32 = 1_000;
/// Messages in the relay's pipe to one subscriber, and in the subscriber's own: what a stall of that subscriber may last. Both
/// together hold 0.3 s of 64 topics on a tick of 2 ms, which is 32,000 messages a second. More would be memory: each message
/// may be one datagram of 64 KiB.
pub(crate) const SUBSCRIBER_MESSAGES: i32 = 5_000;
const _: () = assert!(2 * SUBSCRIBER_MESSAGES >= 32_000 * 3 / 10);

/// Events that wait for a relay.
const EVENT_MESSAGES: i32 = 256;
/// Subscriptions that wait until whoever publishes events looks at them, which is not as often as a publisher of data does. Where they are
/// too many, libzmq reads no heartbeats either, and breaks the connection.
const EVENT_SUBSCRIPTIONS: i32 = 1_000;
/// How long the last events may take to leave.
const EVENT_LINGER: Duration = Duration::from_millis(200);

/// Subscriptions in the pipe from one peer. libzmq empties this pipe whenever it looks at it, and looks again for as long as
/// there is more: a long pipe would let a peer that floods keep it there.
const SUBSCRIPTION_MESSAGES: i32 = 64;
/// Subscriptions that are taken before data has its turn.
pub(crate) const SUBSCRIPTION_BURST: usize = 256;

/// The first try to connect again comes after this time or up to twice as much (libzmq adds a random part).
const RECONNECT: Duration = Duration::from_millis(100);
/// A connection that was refused is tried again after this time.
const RECONNECT_REFUSED: Duration = Duration::from_secs(1);
/// A powered-off peer sends no FIN: heartbeats find it out.
const HEARTBEAT: Duration = Duration::from_secs(1);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// libzmq's clock, which measures the linger, may be this much ahead of ours.
pub(crate) const LINGER_ACCURACY: Duration = Duration::from_millis(5);

/// `ZMQ_PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC` and `ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH` of zmq.h.
const CRYPTOGRAPHIC: u32 = 0x1100_0001;
const MECHANISM_MISMATCH: u32 = 0x1100_0002;

/// The events of handshakes that fail.
const HANDSHAKE_FAILURES: [zmq::SocketEvent; 3] = [
    zmq::SocketEvent::HANDSHAKE_FAILED_NO_DETAIL,
    zmq::SocketEvent::HANDSHAKE_FAILED_PROTOCOL,
    zmq::SocketEvent::HANDSHAKE_FAILED_AUTH,
];

/// Which end of a connection a socket is, and the keys for it.
#[derive(Clone, Copy)]
enum End<'a> {
    Client(Option<&'a ClientKeys>),
    Server(Option<&'a ServerKeys>),
    /// Within the process only.
    Inside,
}

/// A ZeroMQ context. Cheap to clone; the last clone to go waits for sockets to send what lingers.
#[derive(Clone)]
pub struct Bus {
    context: Arc<zmq::Context>,
}

impl Default for Bus {
    /// A context of its own.
    fn default() -> Bus {
        #[expect(clippy::disallowed_methods, reason = "this is the one place where a context is made")]
        let context = zmq::Context::new();
        Bus { context: Arc::new(context) }
    }
}

impl Bus {
    /// The context that everybody in this process shares who asks while somebody holds it: roles in one process meet on
    /// [`INPROC_PUBLISH`] and [`INPROC_SUBSCRIBE`].
    pub fn shared() -> Bus {
        static SHARED: Mutex<Weak<zmq::Context>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(context) = shared.upgrade() {
            return Bus { context };
        }
        let bus = Bus::default();
        *shared = Arc::downgrade(&bus.context);
        bus
    }

    pub(crate) fn publisher(&self, keys: Option<&ClientKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("publisher", zmq::XPUB, End::Client(keys), |socket| {
            socket.set_sndhwm(PUBLISHER_MESSAGES)?;
            socket.set_rcvhwm(SUBSCRIPTION_MESSAGES)?;
            socket.set_maxmsgsize(MAX_SUBSCRIPTION_BYTES)?;
            nodrop(socket, true)
        })
    }

    /// For events, which are few: what there is no room for is refused and not waited for. What was taken last goes out when the
    /// publisher ends, if it can.
    pub(crate) fn event_publisher(&self, keys: Option<&ClientKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("event publisher", zmq::XPUB, End::Client(keys), |socket| {
            socket.set_linger(milliseconds(EVENT_LINGER))?;
            socket.set_sndhwm(EVENT_MESSAGES)?;
            socket.set_rcvhwm(EVENT_SUBSCRIPTIONS)?;
            socket.set_maxmsgsize(MAX_SUBSCRIPTION_BYTES)?;
            nodrop(socket, true)
        })
    }

    pub(crate) fn relay_in(&self, keys: Option<&ServerKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("relay", zmq::XSUB, End::Server(keys), |socket| {
            socket.set_rcvhwm(RELAY_IN_MESSAGES)?;
            // A word to a publisher that has ended is answered with a reset, which would cost what of its last records is still
            // unread while this queue is full. The publishers' own heartbeats tell when one is gone.
            socket.set_heartbeat_ivl(0)?;
            // Subscriptions go out here, a bounded number, and libzmq drops what it has no room for without a word.
            socket.set_sndhwm(0)?;
            socket.set_backlog(1024)?;
            socket.set_maxmsgsize(MAX_MESSAGE_BYTES)
        })
    }

    pub(crate) fn relay_out(&self, keys: Option<&ServerKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("relay", zmq::XPUB, End::Server(keys), |socket| {
            socket.set_sndhwm(SUBSCRIBER_MESSAGES)?;
            socket.set_rcvhwm(SUBSCRIPTION_MESSAGES)?;
            socket.set_backlog(1024)?;
            let is_encrypted = keys.is_some();
            socket.set_maxmsgsize(if is_encrypted {
                MAX_ENCRYPTED_SUBSCRIPTION_BYTES
            } else {
                MAX_SUBSCRIPTION_BYTES
            })?;
            nodrop(socket, true)
        })
    }

    pub(crate) fn subscriber(&self, keys: Option<&ClientKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("subscriber", zmq::SUB, End::Client(keys), |socket| {
            socket.set_rcvhwm(SUBSCRIBER_MESSAGES)?;
            socket.set_maxmsgsize(MAX_MESSAGE_BYTES)
        })
    }

    /// The proxy's end of control connections. A peer that comes back under its routing id takes the place of its old connection,
    /// which may not know yet that it is dead. What cannot be sent, to a peer that has gone or does not read, is an error.
    pub(crate) fn control_server(&self, keys: Option<&ServerKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("control", zmq::ROUTER, End::Server(keys), |socket| {
            socket.set_router_handover(true)?;
            socket.set_router_mandatory(true)?;
            socket.set_sndhwm(CONTROL_MESSAGES)?;
            socket.set_rcvhwm(CONTROL_MESSAGES)?;
            socket.set_backlog(1024)?;
            socket.set_maxmsgsize(MAX_CONTROL_BYTES)
        })
    }

    /// A client's end of its control connection.
    pub(crate) fn control_client(
        &self,
        routing_id: &[u8; 16],
        keys: Option<&ClientKeys>,
    ) -> Result<zmq::Socket, BusError> {
        self.socket("control", zmq::DEALER, End::Client(keys), |socket| {
            socket.set_identity(routing_id)?;
            socket.set_sndhwm(CONTROL_CLIENT_MESSAGES)?;
            socket.set_rcvhwm(CONTROL_MESSAGES)?;
            socket.set_maxmsgsize(MAX_CONTROL_BYTES)
        })
    }

    /// Where libzmq asks who may connect.
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
            socket.set_heartbeat_ivl(milliseconds(HEARTBEAT))?;
            socket.set_heartbeat_timeout(milliseconds(HEARTBEAT_TIMEOUT))?;
            socket.set_heartbeat_ttl(milliseconds(HEARTBEAT_TIMEOUT))?;
            socket.set_handshake_ivl(milliseconds(HANDSHAKE_TIMEOUT))?;
            match end {
                End::Client(Some(keys)) => keys.apply(&socket)?,
                End::Server(Some(keys)) => {
                    keys.apply(&mut socket)?;
                    keys.watch(self.monitor(&socket, &HANDSHAKE_FAILURES)?);
                }
                End::Client(None) | End::Server(None) | End::Inside => {}
            }
            options(&mut socket)?;
            Ok(socket)
        };
        make().map_err(|source| BusError::Socket { role, source })
    }

    /// A watch over the connections of `socket`.
    pub(crate) fn watch(&self, socket: &zmq::Socket) -> Result<Connections, BusError> {
        let changes = [zmq::SocketEvent::HANDSHAKE_SUCCEEDED, zmq::SocketEvent::DISCONNECTED];
        let events = self.monitor(socket, &[&changes[..], &HANDSHAKE_FAILURES].concat());
        let events = events.map_err(|source| BusError::Socket { role: "monitor", source })?;
        Ok(Connections {
            events,
            endpoints: Vec::new(),
            standing: HashSet::new(),
            established: 0,
            again_at: None,
            failure_log: RateLimited::default(),
        })
    }

    /// Where these events of `socket` can be read. It must be kept, and read, for as long as the socket lives.
    fn monitor(&self, socket: &zmq::Socket, events: &[zmq::SocketEvent]) -> Result<zmq::Socket, zmq::Error> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let name = format!("inproc://sekiwake-monitor-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        socket.monitor(&name, events.iter().fold(0, |mask, event| mask | i32::from(event.to_raw())))?;
        let reader = self.context.socket(zmq::PAIR)?;
        reader.set_linger(0)?;
        // libzmq waits for room with the thread that does all of its input and output.
        reader.set_rcvhwm(0)?;
        reader.connect(&name)?;
        Ok(reader)
    }
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeFailure {
    /// The other end does not want us, or we do not want it: by key.
    Refused,
    /// One end encrypts and the other does not.
    Mechanism,
    /// What the other end encrypted is not for us.
    Cryptographic,
    /// It says what is no handshake of ours.
    Foreign,
    /// It hung up, or took too long.
    Broken,
}

/// The failure that the first frame of an event speaks of, if it does: 16 bits of event, 32 bits of value, in the order of this
/// machine (zmq_socket_monitor(3)).
pub(crate) fn handshake_failure(event: &[u8]) -> Option<HandshakeFailure> {
    let (number, value) = event.split_first_chunk::<2>()?;
    let value = u32::from_ne_bytes(*value.first_chunk::<4>()?);
    match zmq::SocketEvent::from_raw(u16::from_ne_bytes(*number)) {
        zmq::SocketEvent::HANDSHAKE_FAILED_AUTH => Some(HandshakeFailure::Refused),
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

pub(crate) fn milliseconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_millis()).unwrap_or(i32::MAX)
}

/// The connections that a socket has made. Those within the process make no handshake and are not seen.
pub(crate) struct Connections {
    events: zmq::Socket,
    /// Where the socket connects to.
    endpoints: Vec<String>,
    /// The endpoints whose connection stands: a peer that hangs up before the handshake is reported as disconnected too.
    standing: HashSet<Vec<u8>>,
    established: u64,
    /// A connection was refused, and is to be tried again then.
    again_at: Option<Instant>,
    failure_log: RateLimited,
}

impl Connections {
    /// Connects the socket that is watched.
    pub(crate) fn connect(&mut self, socket: &zmq::Socket, endpoints: &[String]) -> Result<(), BusError> {
        endpoints.clone_into(&mut self.endpoints);
        endpoints.iter().try_for_each(|endpoint| connect(socket, endpoint))
    }

    /// Reads what has happened to `socket`, and says whether a connection stands now.
    pub(crate) fn stand(&mut self, socket: &zmq::Socket) -> bool {
        while let Ok(parts) = self.events.recv_multipart(zmq::DONTWAIT) {
            let [event, endpoint] = &parts[..] else { continue };
            if let Some(failure) = handshake_failure(event) {
                self.tell(failure, &String::from_utf8_lossy(endpoint));
                if failure != HandshakeFailure::Broken {
                    self.again_at.get_or_insert_with(|| Instant::now() + RECONNECT_REFUSED);
                }
                continue;
            }
            let number = event.first_chunk::<2>().map(|bytes| u16::from_ne_bytes(*bytes));
            match number.map(zmq::SocketEvent::from_raw) {
                Some(zmq::SocketEvent::HANDSHAKE_SUCCEEDED) => {
                    self.established += 1;
                    self.standing.insert(endpoint.clone());
                }
                Some(zmq::SocketEvent::DISCONNECTED) => {
                    self.standing.remove(endpoint);
                }
                _ => {}
            }
        }
        if self.again_at.is_some_and(|again_at| Instant::now() >= again_at) {
            self.again_at = None;
            self.try_again(socket);
        }
        !self.standing.is_empty()
    }

    /// libzmq connects again when a connection breaks, but gives up for good when it was refused: and then neither a longer list
    /// of allowed keys nor a proxy that got its keys later than we did would ever let us in.
    fn try_again(&self, socket: &zmq::Socket) {
        for endpoint in self.endpoints.iter().filter(|endpoint| !self.standing.contains(endpoint.as_bytes())) {
            // The error says that libzmq has forgotten the endpoint already.
            let _ = socket.disconnect(endpoint);
            if let Err(error) = connect(socket, endpoint) {
                warn!(error = %error, "no connection");
            }
        }
    }

    fn tell(&self, failure: HandshakeFailure, endpoint: &str) {
        let Some(suppressed) = self.failure_log.allow(Instant::now()) else { return };
        let what = match failure {
            HandshakeFailure::Refused => "the proxy refuses the connection: our key is not among those that it allows",
            HandshakeFailure::Mechanism => "no connection: one end has keys and the other has none",
            HandshakeFailure::Cryptographic => "no connection: the proxy has another key than we were told",
            HandshakeFailure::Foreign => "no connection: the other end is no proxy",
            HandshakeFailure::Broken => {
                "no connection: the other end hung up during the handshake; its key may be another than we were told"
            }
        };
        warn!(endpoint, suppressed, "{what}");
    }

    /// How many connections have been established so far, the standing ones and those that broke.
    pub(crate) fn established(&self) -> u64 {
        self.established
    }
}

fn connect(socket: &zmq::Socket, endpoint: &str) -> Result<(), BusError> {
    socket.connect(endpoint).map_err(|source| BusError::Connect { endpoint: endpoint.to_owned(), source })
}

/// Does a socket operation again for as long as a signal interrupts it.
pub(crate) fn uninterrupted<T>(mut operation: impl FnMut() -> Result<T, zmq::Error>) -> Result<T, zmq::Error> {
    loop {
        match operation() {
            Err(zmq::Error::EINTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes next: the sender's routing id and the message.
    fn next(socket: &zmq::Socket) -> Vec<Vec<u8>> {
        socket.set_rcvtimeo(20_000).unwrap();
        socket.recv_multipart(0).unwrap()
    }

    #[test]
    fn a_control_client_that_comes_back_takes_over_its_old_connection() {
        let (bus, id) = (Bus::default(), [7; 16]);
        let server = bus.control_server(None).unwrap();
        server.bind("tcp://127.0.0.1:0").unwrap();
        let endpoint = server.get_last_endpoint().unwrap().unwrap();
        let [old, new] = [Bus::default(), Bus::default()].map(|bus| bus.control_client(&id, None).unwrap());
        old.connect(&endpoint).unwrap();
        old.send("old", 0).unwrap();
        assert_eq!(next(&server), [&id[..], b"old"]);
        new.connect(&endpoint).unwrap();
        new.send("new", 0).unwrap();
        assert_eq!(next(&server), [&id[..], b"new"]);
        server.send_multipart([&id[..], b"to the new one"], 0).unwrap();
        assert_eq!(next(&new), [b"to the new one"]);
        // To somebody who is not there: an error, so that it can be counted.
        let nobody = server.send_multipart([&[8; 16][..], b"to nobody"], zmq::DONTWAIT);
        assert_eq!(nobody, Err(zmq::Error::EHOSTUNREACH));
    }
}
