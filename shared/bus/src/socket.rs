//! One constructor for each role, so that no socket is left with libzmq's defaults: endless linger, no heartbeat, unlimited
//! message size.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    BusError,
    keys::{ClientKeys, ServerKeys},
};

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

/// Messages that a publisher's pipe may hold. It is short: what it has no room for waits in the publisher, bounded by bytes.
const PUBLISHER_MESSAGES: i32 = 1_000;
/// Messages in the relay's pipe from one publisher.
const RELAY_IN_MESSAGES: i32 = 1_000;
/// Messages in the relay's pipe to one subscriber, and in the subscriber's own: what a stall of that subscriber may last. Both
/// together hold 0.3 s of 64 topics on a tick of 2 ms, which is 32,000 messages a second. More would be memory: each message
/// may be one datagram of 64 KiB.
pub(crate) const SUBSCRIBER_MESSAGES: i32 = 5_000;
const _: () = assert!(2 * SUBSCRIBER_MESSAGES >= 32_000 * 3 / 10);

/// Subscriptions in the pipe from one peer. libzmq empties this pipe whenever it looks at it, and looks again for as long as
/// there is more: a long pipe would let a peer that floods keep it there.
const SUBSCRIPTION_MESSAGES: i32 = 64;
/// Subscriptions that are taken before data has its turn.
pub(crate) const SUBSCRIPTION_BURST: usize = 256;

/// The first try to connect again comes after this time or up to twice as much (libzmq adds a random part).
const RECONNECT: Duration = Duration::from_millis(100);
/// A powered-off peer sends no FIN: heartbeats find it out.
const HEARTBEAT: Duration = Duration::from_secs(1);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// libzmq's clock, which measures the linger, may be this much ahead of ours.
pub(crate) const LINGER_ACCURACY: Duration = Duration::from_millis(5);

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

    pub(crate) fn publisher(&self) -> Result<zmq::Socket, BusError> {
        self.socket("publisher", zmq::XPUB, |socket| {
            socket.set_sndhwm(PUBLISHER_MESSAGES)?;
            socket.set_rcvhwm(SUBSCRIPTION_MESSAGES)?;
            socket.set_maxmsgsize(MAX_SUBSCRIPTION_BYTES)?;
            nodrop(socket, true)
        })
    }

    pub(crate) fn relay_in(&self) -> Result<zmq::Socket, BusError> {
        self.socket("relay", zmq::XSUB, |socket| {
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

    pub(crate) fn relay_out(&self) -> Result<zmq::Socket, BusError> {
        self.socket("relay", zmq::XPUB, |socket| {
            socket.set_sndhwm(SUBSCRIBER_MESSAGES)?;
            socket.set_rcvhwm(SUBSCRIPTION_MESSAGES)?;
            socket.set_backlog(1024)?;
            socket.set_maxmsgsize(MAX_SUBSCRIPTION_BYTES)?;
            nodrop(socket, true)
        })
    }

    pub(crate) fn subscriber(&self) -> Result<zmq::Socket, BusError> {
        self.socket("subscriber", zmq::SUB, |socket| {
            socket.set_rcvhwm(SUBSCRIBER_MESSAGES)?;
            socket.set_maxmsgsize(MAX_MESSAGE_BYTES)
        })
    }

    /// The coordinator's end of all control connections.
    pub(crate) fn control_server(&self, _keys: Option<&ServerKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("control plane", zmq::ROUTER, |socket| {
            socket.set_sndhwm(1000)?;
            socket.set_rcvhwm(1000)?;
            socket.set_backlog(1024)?;
            socket.set_maxmsgsize((1 << 20) + (64 << 10))
        })
    }

    /// Everybody else's end.
    pub(crate) fn control_client(&self, id: &[u8; 16], _keys: Option<&ClientKeys>) -> Result<zmq::Socket, BusError> {
        self.socket("control", zmq::DEALER, |socket| {
            socket.set_identity(id)?;
            socket.set_sndhwm(256)?;
            socket.set_rcvhwm(1000)?;
            socket.set_maxmsgsize((1 << 20) + (64 << 10))
        })
    }

    fn socket(
        &self,
        role: &'static str,
        kind: zmq::SocketType,
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
            options(&mut socket)?;
            Ok(socket)
        };
        make().map_err(|source| BusError::Socket { role, source })
    }

    /// A watch over the connections of `socket`.
    pub(crate) fn watch(&self, socket: &zmq::Socket) -> Result<Connections, BusError> {
        let make = || {
            static NUMBER: AtomicU64 = AtomicU64::new(0);
            let name = format!("inproc://sekiwake-monitor-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
            let events = i32::from(zmq::SocketEvent::HANDSHAKE_SUCCEEDED.to_raw())
                | i32::from(zmq::SocketEvent::DISCONNECTED.to_raw());
            socket.monitor(&name, events)?;
            let events = self.context.socket(zmq::PAIR)?;
            events.set_linger(0)?;
            events.connect(&name)?;
            Ok(Connections { events, standing: HashSet::new(), established: 0 })
        };
        make().map_err(|source| BusError::Socket { role: "monitor", source })
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
    /// The endpoints whose connection stands: a peer that hangs up before the handshake is reported as disconnected too.
    standing: HashSet<Vec<u8>>,
    established: u64,
}

impl Connections {
    /// Reads what has happened, and says whether a connection stands now.
    pub(crate) fn stand(&mut self) -> bool {
        while let Ok(parts) = self.events.recv_multipart(zmq::DONTWAIT) {
            let [event, endpoint] = &parts[..] else { continue };
            let number = event.first_chunk::<2>().map(|bytes| u16::from_le_bytes(*bytes));
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
        !self.standing.is_empty()
    }

    /// How many connections have been established so far, the standing ones and those that broke.
    pub(crate) fn established(&self) -> u64 {
        self.established
    }
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
