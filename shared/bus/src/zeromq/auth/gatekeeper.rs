//! The gatekeeper decides which clients may connect to the proxy.
//!
//! With CURVE, libzmq knows a peer's key but accepts every key, unless a handler in the same
//! context answers at `inproc://zeromq.zap.01` (ZAP, ZeroMQ RFC 27). The gatekeeper is this
//! handler. Sockets get their [`ServerKeys`] only from a bound gatekeeper and end before it, and
//! libzmq is configured to reject peers while no handler answers, so no connection is accepted
//! unchecked.
//!
//! ```text
//! request   [routing id] [] "1.0" [request id] [domain] [address] [routing id of the peer]
//!           "CURVE" [key, 32 bytes]
//! reply     [routing id] [] "1.0" [request id] "200" or "400" [text] [user id: the key's text]
//!           [metadata: none]
//! ```
//!
//! Handshakes that fail before a key is known (no encryption, a wrong server key) do not reach the
//! handler: libzmq reports them as events of the socket, which its `PortGuard` passes on.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use sekiwake_runtime::{Metrics, RateLimited, Worker};
use sekiwake_settings::printable;
use tracing::{info, warn};

use super::{
    key_files::{AllowedKeys, KeyChanges},
    keys::{KEY_BYTES, KeyPair, PublicKey},
};
use crate::{
    BusError,
    metrics::{Denial, GatekeeperMetrics},
    zeromq::{
        inlet::{Inlet, wait},
        socket::{Context, HandshakeFailure, Rest, receive_rest},
    },
};

/// The handler's address (ZeroMQ RFC 27).
const ENDPOINT: &str = "inproc://zeromq.zap.01";
/// The protocol version.
const VERSION: &[u8] = b"1.0";
/// The ZAP domain of the proxy's sockets. Its value has no meaning, but only sockets with a domain
/// can be configured to reject peers while no handler answers.
const DOMAIN: &str = "sekiwake";

/// The parts of a request after the first, and more than one credential, which no key has.
const MAX_PARTS: usize = 9;
/// Requests answered before other work continues.
const BURST: usize = 256;
/// How long to wait for a request before checking events and the clock.
const POLL: Duration = Duration::from_millis(100);
/// The same while stopping, when the relay waits for the end.
const STOPPING_POLL: Duration = Duration::from_millis(5);
/// How often the list of allowed keys is checked for changes.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// How long an ending relay waits for the end of the gatekeeper.
const RELEASE_WAIT: Duration = Duration::from_millis(250);

/// The proxy's own keys and those of its clients.
#[derive(Clone, Debug)]
pub struct GatekeeperSettings {
    /// The proxy's key pair.
    pub own: KeyPair,
    /// The keys that may connect.
    pub allowed: AllowedKeys,
}

/// What a socket needs to bind: the proxy's secret key, and proof that a gatekeeper is bound. The
/// gatekeeper runs until all clones are dropped.
#[derive(Clone)]
pub struct ServerKeys {
    shared: Arc<Shared>,
    /// Disconnected when the gatekeeper has ended.
    ended: Receiver<()>,
}

/// State shared by the gatekeeper and the sockets that it guards.
struct Shared {
    own: KeyPair,
    metrics: GatekeeperMetrics,
    denied_log: [RateLimited; 4],
}

/// The server of libzmq's authentication requests. Belongs to one thread, which calls
/// [`Gatekeeper::run`].
pub struct Gatekeeper {
    requests: Inlet,
    allowed: AllowedKeys,
    refresh_at: Instant,
    shared: Arc<Shared>,
    ended: Receiver<()>,
    /// Dropped last, which disconnects `ended`.
    _running: Sender<()>,
}

/// A rejected client.
struct Denied {
    denial: Denial,
    key: Option<PublicKey>,
}

impl Gatekeeper {
    /// A gatekeeper for the sockets of this context, which can have only one.
    ///
    /// # Errors
    /// There is one already, or there are too many sockets.
    pub fn bind(context: &Context, settings: GatekeeperSettings, metrics: &Metrics) -> Result<Gatekeeper, BusError> {
        let GatekeeperSettings { own, allowed } = settings;
        let requests = context.gatekeeper()?;
        let bound = requests.bind(ENDPOINT);
        bound.map_err(|source| BusError::Bind { endpoint: ENDPOINT.to_owned(), source: source.into() })?;
        let metrics = GatekeeperMetrics::new(metrics);
        metrics.allowed_keys.set(allowed.len() as i64);
        metrics.allowed_keys_in_use.set(1);
        info!(keys = allowed.len(), path = %allowed.path().display(), "connections are encrypted and restricted to allowed keys");
        let (running, ended) = bounded(0);
        Ok(Gatekeeper {
            requests: Inlet::new(requests),
            allowed,
            refresh_at: Instant::now() + REFRESH_EVERY,
            shared: Arc::new(Shared { own, metrics, denied_log: Default::default() }),
            ended,
            _running: running,
        })
    }

    /// Keys for sockets that bind.
    pub fn keys(&self) -> ServerKeys {
        ServerKeys { shared: Arc::clone(&self.shared), ended: self.ended.clone() }
    }

    /// Answers until the worker is asked to stop and all [`ServerKeys`] are dropped, and so all
    /// sockets with them are closed.
    ///
    /// # Errors
    /// The socket failed because its context was terminated.
    pub fn run(mut self, worker: &Worker) -> Result<(), BusError> {
        loop {
            worker.beat();
            let now = Instant::now();
            if let Some(deadline) = worker.deadline()
                && (Arc::strong_count(&self.shared) == 1 || now >= deadline)
            {
                return Ok(());
            }
            let limit = if worker.stopping() { STOPPING_POLL } else { POLL };
            wait([&mut self.requests], [], limit).map_err(failed)?;
            self.answer(now)?;
            if now >= self.refresh_at {
                self.refresh_at = now + REFRESH_EVERY;
                self.refresh();
            }
        }
    }

    fn answer(&mut self, now: Instant) -> Result<(), BusError> {
        for _ in 0..BURST {
            let Some(first) = self.requests.receive().map_err(failed)? else { break };
            let Rest { parts, .. } = receive_rest::<MAX_PARTS>(self.requests.socket(), &first).map_err(failed)?;
            let parts = parts.iter().flatten().map(|part| part.to_vec());
            let request: Vec<Vec<u8>> = std::iter::once(first.to_vec()).chain(parts).collect();
            let Some(reply) = self.reply(&request, now) else { continue };
            // A peer that has disconnected meanwhile needs no reply.
            match self.requests.socket().send_multipart(reply, zmq::DONTWAIT) {
                Ok(()) | Err(zmq::Error::EAGAIN | zmq::Error::EHOSTUNREACH) => {}
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(())
    }

    /// The reply; `None` if this is not a request of this protocol. Only libzmq sends requests, and
    /// it rejects the peer if there is no reply.
    fn reply(&self, request: &[Vec<u8>], now: Instant) -> Option<Vec<Vec<u8>>> {
        let [routing_id, empty, version, id, _domain, address, _peer, mechanism, credentials @ ..] = request else {
            return None;
        };
        if !empty.is_empty() || version != VERSION {
            return None;
        }
        let (status, text, user) = match self.check(mechanism, credentials) {
            Ok(key) => ("200", "allowed", key.to_string()),
            Err(Denied { denial, key }) => {
                self.shared.deny(denial, key, &String::from_utf8_lossy(address), now);
                ("400", "not allowed", String::new())
            }
        };
        let status = status.as_bytes().to_vec();
        let text = text.as_bytes().to_vec();
        Some(vec![routing_id.clone(), vec![], VERSION.to_vec(), id.clone(), status, text, user.into_bytes(), vec![]])
    }

    fn check(&self, mechanism: &[u8], credentials: &[Vec<u8>]) -> Result<PublicKey, Denied> {
        let not_curve = Denied { denial: Denial::Mechanism, key: None };
        let [key] = credentials else { return Err(not_curve) };
        let Ok(key) = <[u8; KEY_BYTES]>::try_from(&key[..]) else { return Err(not_curve) };
        let key = PublicKey::from_bytes(key);
        match self.allowed.name_of(&key) {
            _ if mechanism != b"CURVE" => Err(not_curve),
            Some(_) => Ok(key),
            None => Err(Denied { denial: Denial::Key, key: Some(key) }),
        }
    }

    fn refresh(&mut self) {
        let changed = self.allowed.refresh();
        let keys = self.allowed.len();
        let path = self.allowed.path().display();
        match changed {
            Ok(None) => {}
            Ok(Some(KeyChanges { added, removed })) => {
                let [added, removed] = [added, removed].map(|names| shown(&names));
                info!(keys, added, removed, %path, "list of allowed keys reloaded");
                self.shared.metrics.allowed_keys_in_use.set(1);
                self.shared.metrics.allowed_keys.set(keys as i64);
            }
            Err(error) => {
                self.shared.metrics.allowed_keys_in_use.set(0);
                self.shared.metrics.allowed_keys_errors.inc();
                warn!(error = error.with_source(), keys, %path, "cannot read list of allowed keys, keeping the old list");
            }
        }
    }
}

/// The first names of a list, which may have thousands.
fn shown(names: &[String]) -> String {
    const MAX_SHOWN: usize = 10;
    let mut shown = names.iter().take(MAX_SHOWN).map(|name| printable(name)).collect::<Vec<_>>().join(", ");
    if names.len() > MAX_SHOWN {
        shown += &format!(" and {} more", names.len() - MAX_SHOWN);
    }
    shown
}

impl Shared {
    fn deny(&self, denial: Denial, key: Option<PublicKey>, address: &str, now: Instant) {
        self.metrics.denied(denial).inc();
        let Some(suppressed) = self.denied_log[denial as usize].allow(now) else { return };
        let reason = denial.name();
        let address = address.escape_debug();
        match key {
            Some(key) => warn!(reason, %key, %address, suppressed, "connection rejected, key not allowed"),
            None => warn!(reason, %address, suppressed, "connection rejected"),
        }
    }
}

impl ServerKeys {
    /// Makes a socket accept only encrypted connections of allowed peers. To be called before it
    /// binds.
    pub(crate) fn apply(&self, socket: &mut zmq::Socket) -> Result<(), zmq::Error> {
        socket.set_curve_server(true)?;
        socket.set_curve_secretkey(self.shared.own.secret())?;
        socket.set_zap_domain(DOMAIN)?;
        sekiwake_sys::enforce_zap_domain(socket)
            .map_err(|error| error.raw_os_error().map_or(zmq::Error::EINVAL, zmq::Error::from_raw))
    }

    /// Counts a handshake that failed before the gatekeeper was asked.
    pub(crate) fn handshake_failed(&self, failure: HandshakeFailure, endpoint: &str) {
        let denial = match failure {
            // The gatekeeper has already counted its own rejections.
            HandshakeFailure::KeyRejected => return,
            HandshakeFailure::Mechanism => Denial::Mechanism,
            HandshakeFailure::Cryptographic => Denial::ServerKey,
            HandshakeFailure::Foreign | HandshakeFailure::Broken => Denial::Handshake,
        };
        self.shared.deny(denial, None, endpoint, Instant::now());
    }

    /// Waits for the end of the gatekeeper, if these are the last keys; their sockets must be
    /// closed already. Then the caller has the last clone of the context, and can wait for
    /// lingering messages.
    pub(crate) fn release(self) {
        let ServerKeys { shared, ended } = self;
        drop(shared);
        // Nothing is ever sent: this waits for the disconnection.
        let _ = ended.recv_timeout(RELEASE_WAIT);
    }
}

impl fmt::Debug for ServerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerKeys").field("own", &self.shared.own).finish_non_exhaustive()
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "gatekeeper", source: source.into() }
}
