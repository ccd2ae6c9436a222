//! The gatekeeper: who may connect to the proxy.
//!
//! libzmq knows by CURVE which key a peer has, but lets every key in, unless somebody in the same context answers at
//! `inproc://zeromq.zap.01` (ZAP, ZeroMQ RFC 27). This is who answers. As sockets get their [`ServerKeys`] only from a
//! gatekeeper that is bound, and outlive neither it nor libzmq's own rule that nobody comes in where nobody answers, no
//! connection is made unasked.
//!
//! ```text
//! request   [routing id] [] "1.0" [request id] [domain] [address] [routing id of the peer] "CURVE" [key, 32 bytes]
//! reply     [routing id] [] "1.0" [request id] "200" or "400" [text] [user id: the key's text] [metadata: none]
//! ```
//!
//! What fails before a key is known (no encryption, a wrong server key) is not asked here: libzmq tells of it in the events of
//! the socket, which the gatekeeper reads too.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded};
use sekiwake_runtime::{Metrics, RateLimited, Worker};
use tracing::{info, warn};

use crate::{
    AllowedKeys, BusError, KeyPair,
    keys::{KEY_BYTES, PublicKey},
    metrics::{Denial, GatekeeperMetrics},
    socket::{Bus, HandshakeFailure, handshake_failure},
};

/// Where libzmq asks (ZeroMQ RFC 27).
const ENDPOINT: &str = "inproc://zeromq.zap.01";
/// The version of the protocol.
const VERSION: &[u8] = b"1.0";
/// The domain of our sockets. It means nothing by itself; a socket that has one can be told to let nobody in unasked.
const DOMAIN: &str = "sekiwake";

/// Requests that are answered before other things have their turn.
const BURST: usize = 256;
/// How long it waits for a request before it looks at events and at the clock.
const PATIENCE_MS: i64 = 50;
/// The same when it stops, and its end is waited for.
const STOPPING_PATIENCE_MS: i64 = 5;
/// How often the list of allowed keys is looked at.
const REFRESH_EVERY: Duration = Duration::from_secs(1);
/// How long a relay that ends waits for the gatekeeper's end.
const RELEASE_AT_MOST: Duration = Duration::from_millis(250);

/// The proxy's own keys and those of its clients.
#[derive(Clone, Debug)]
pub struct GatekeeperSettings {
    /// The proxy's own.
    pub own: KeyPair,
    /// Who may connect.
    pub allowed: AllowedKeys,
}

/// What a socket needs that binds: the proxy's secret, and the knowledge that somebody is asked who may connect. The gatekeeper
/// goes on until all clones are gone.
#[derive(Clone)]
pub struct ServerKeys {
    shared: Arc<Shared>,
    /// Disconnected when the gatekeeper has gone.
    gone: Receiver<()>,
}

/// What the gatekeeper and the sockets that it guards have in common.
struct Shared {
    own: KeyPair,
    /// The sockets' events. They are kept until the last of the sockets has gone: an event that nobody can take would hold up
    /// libzmq.
    events: Mutex<Vec<zmq::Socket>>,
}

/// Answers who may connect. Belongs to one thread, which calls [`Gatekeeper::run`].
pub struct Gatekeeper {
    requests: zmq::Socket,
    allowed: AllowedKeys,
    refresh_at: Instant,
    metrics: GatekeeperMetrics,
    denied_log: [RateLimited; 4],
    shared: Arc<Shared>,
    gone: Receiver<()>,
    /// Goes last, and tells those who wait for it.
    _presence: Sender<()>,
}

impl Gatekeeper {
    /// A gatekeeper for the sockets of this context. There is one at most.
    ///
    /// # Errors
    /// When there is one already, or no more sockets.
    pub fn bind(bus: &Bus, settings: GatekeeperSettings, metrics: &Metrics) -> Result<Gatekeeper, BusError> {
        let GatekeeperSettings { own, allowed } = settings;
        let requests = bus.gatekeeper()?;
        let bound = requests.bind(ENDPOINT);
        bound.map_err(|source| BusError::Bind { endpoint: ENDPOINT.to_owned(), source })?;
        let metrics = GatekeeperMetrics::new(metrics);
        metrics.allowed_keys.set(allowed.len() as i64);
        info!(keys = allowed.len(), path = %allowed.path().display(), "connections are encrypted, and allowed by key");
        let (presence, gone) = bounded(0);
        Ok(Gatekeeper {
            requests,
            allowed,
            refresh_at: Instant::now() + REFRESH_EVERY,
            metrics,
            denied_log: Default::default(),
            shared: Arc::new(Shared { own, events: Mutex::default() }),
            gone,
            _presence: presence,
        })
    }

    /// For sockets that bind.
    pub fn keys(&self) -> ServerKeys {
        ServerKeys { shared: Arc::clone(&self.shared), gone: self.gone.clone() }
    }

    /// Answers until the worker is told to stop and all [`ServerKeys`] are gone, and so the sockets that had them.
    ///
    /// # Errors
    /// The socket failed: the context is gone.
    pub fn run(mut self, worker: &Worker) -> Result<(), BusError> {
        loop {
            worker.beat();
            let now = Instant::now();
            if let Some(deadline) = worker.deadline()
                && (Arc::strong_count(&self.shared) == 1 || now >= deadline)
            {
                return Ok(());
            }
            let patience = if worker.stopping() { STOPPING_PATIENCE_MS } else { PATIENCE_MS };
            match self.requests.poll(zmq::POLLIN, patience) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(source) => return Err(failed(source)),
            }
            self.answer(now)?;
            self.take_events(now);
            if now >= self.refresh_at {
                self.refresh_at = now + REFRESH_EVERY;
                self.refresh();
            }
        }
    }

    fn answer(&mut self, now: Instant) -> Result<(), BusError> {
        for _ in 0..BURST {
            let request = match self.requests.recv_multipart(zmq::DONTWAIT) {
                Ok(request) => request,
                Err(zmq::Error::EAGAIN) => break,
                Err(zmq::Error::EINTR) => continue,
                Err(source) => return Err(failed(source)),
            };
            let Some(reply) = self.reply(&request, now) else { continue };
            // Whoever has gone meanwhile needs no answer.
            match self.requests.send_multipart(reply, zmq::DONTWAIT) {
                Ok(()) | Err(zmq::Error::EAGAIN | zmq::Error::EHOSTUNREACH) => {}
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(())
    }

    /// The answer, or `None` for what is no request of this protocol: only libzmq can ask, and without an answer nobody comes in.
    fn reply(&self, request: &[Vec<u8>], now: Instant) -> Option<Vec<Vec<u8>>> {
        let [routing_id, empty, version, id, _domain, address, _peer, mechanism, credentials @ ..] = request else {
            return None;
        };
        if !empty.is_empty() || version != VERSION {
            return None;
        }
        let (status, text, user) = match self.judge(mechanism, credentials) {
            Ok(key) => ("200", "allowed", key.to_string()),
            Err((denial, key)) => {
                self.deny(denial, key, &String::from_utf8_lossy(address), now);
                ("400", "not allowed", String::new())
            }
        };
        let (status, text) = (status.as_bytes().to_vec(), text.as_bytes().to_vec());
        Some(vec![routing_id.clone(), vec![], VERSION.to_vec(), id.clone(), status, text, user.into_bytes(), vec![]])
    }

    fn judge(&self, mechanism: &[u8], credentials: &[Vec<u8>]) -> Result<PublicKey, (Denial, Option<PublicKey>)> {
        let [key] = credentials else { return Err((Denial::Mechanism, None)) };
        let key = <[u8; KEY_BYTES]>::try_from(&key[..]).map_err(|_| (Denial::Mechanism, None))?;
        let key = PublicKey::from_bytes(key);
        match self.allowed.name_of(&key) {
            _ if mechanism != b"CURVE" => Err((Denial::Mechanism, None)),
            Some(_) => Ok(key),
            None => Err((Denial::Key, Some(key))),
        }
    }

    fn deny(&self, denial: Denial, key: Option<PublicKey>, address: &str, now: Instant) {
        self.metrics.denied(denial).inc();
        let Some(suppressed) = self.denied_log[denial as usize].allow(now) else { return };
        let (reason, address) = (denial.name(), address.escape_debug());
        match key {
            Some(key) => warn!(reason, %key, %address, suppressed, "refused a connection: this key is not allowed"),
            None => warn!(reason, %address, suppressed, "refused a connection"),
        }
    }

    /// Counts the handshakes that failed before anybody was asked.
    fn take_events(&self, now: Instant) {
        let events = self.shared.events.lock().unwrap_or_else(PoisonError::into_inner);
        for socket in &*events {
            while let Ok(parts) = socket.recv_multipart(zmq::DONTWAIT) {
                let [event, endpoint] = &parts[..] else { continue };
                let denial = match handshake_failure(event) {
                    // Those it has refused itself it has counted.
                    None | Some(HandshakeFailure::Refused) => continue,
                    Some(HandshakeFailure::Mechanism) => Denial::Mechanism,
                    Some(HandshakeFailure::Cryptographic) => Denial::ServerKey,
                    Some(HandshakeFailure::Foreign | HandshakeFailure::Broken) => Denial::Handshake,
                };
                self.deny(denial, None, &String::from_utf8_lossy(endpoint), now);
            }
        }
    }

    fn refresh(&mut self) {
        let changed = self.allowed.refresh();
        let (keys, path) = (self.allowed.len(), self.allowed.path().display());
        match changed {
            Ok(false) => {}
            Ok(true) => {
                info!(keys, %path, "read the changed list of allowed keys");
                self.metrics.allowed_keys.set(keys as i64);
            }
            Err(error) => {
                self.metrics.allowed_keys_errors.inc();
                warn!(error = error.told(), keys, %path, "cannot read the list of allowed keys: the old one stays");
            }
        }
    }
}

impl ServerKeys {
    /// Has a socket take encrypted connections of allowed peers alone; to be called before it binds.
    pub(crate) fn apply(&self, socket: &mut zmq::Socket) -> Result<(), zmq::Error> {
        socket.set_curve_server(true)?;
        socket.set_curve_secretkey(self.shared.own.secret())?;
        socket.set_zap_domain(DOMAIN)?;
        sekiwake_sys::enforce_zap_domain(socket)
            .map_err(|error| error.raw_os_error().map_or(zmq::Error::EINVAL, zmq::Error::from_raw))
    }

    /// Has the gatekeeper read the events of a socket.
    pub(crate) fn watch(&self, events: zmq::Socket) {
        self.shared.events.lock().unwrap_or_else(PoisonError::into_inner).push(events);
    }

    /// Waits until the gatekeeper has gone, if these are the last keys; the sockets that have them must have gone before. Then
    /// nobody else keeps the context, and its last owner can wait for what lingers.
    pub(crate) fn release(self) {
        let ServerKeys { shared, gone } = self;
        drop(shared);
        // It is the disconnection that is waited for.
        let _ = gone.recv_timeout(RELEASE_AT_MOST);
    }
}

impl fmt::Debug for ServerKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerKeys").field("own", &self.shared.own).finish_non_exhaustive()
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "gatekeeper", source }
}
