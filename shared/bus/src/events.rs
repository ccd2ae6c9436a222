//! Events: what a service has noticed, for whoever listens.
//!
//! Topic `anomaly/<publisher>/`, one frame after it: a JSON object of at most 16 KiB. Events are not numbered, retained or
//! repeated: who is not there when one passes has missed it.

use std::time::{Duration, Instant};

use sekiwake_record::Name;
use sekiwake_runtime::Metrics;
use tracing::debug;

use crate::{
    BusError,
    metrics::{EventMetrics, names},
    settings::{Publishing, Subscribing},
    socket::{Bus, Connections, milliseconds, uninterrupted},
};

/// What the topic of every event begins with.
pub const EVENT_PREFIX: &str = "anomaly/";

/// The largest event, bytes.
pub const MAX_EVENT_BYTES: usize = 16 << 10;

/// Whether this is the topic of an event: the prefix, a name, and a slash.
pub(crate) fn is_event_topic(topic: &[u8]) -> bool {
    publisher(topic).is_some()
}

fn publisher(topic: &[u8]) -> Option<Name> {
    let name = topic.strip_prefix(EVENT_PREFIX.as_bytes())?.strip_suffix(b"/")?;
    Name::new(std::str::from_utf8(name).ok()?).ok()
}

/// Publishes events. Belongs to one thread.
pub struct EventPublisher {
    socket: zmq::Socket,
    /// Held while the socket is: it watches it.
    _connections: Connections,
    topic: String,
    metrics: EventMetrics,
}

impl EventPublisher {
    /// Connects as the publisher of this name; the proxy need not be there yet.
    ///
    /// # Errors
    /// Endpoints that libzmq does not understand, or no more sockets.
    pub fn connect(bus: &Bus, to: &Publishing, name: &Name, metrics: &Metrics) -> Result<EventPublisher, BusError> {
        let socket = bus.event_publisher(to.keys.as_ref())?;
        let mut connections = bus.watch(&socket)?;
        connections.connect(&socket, &to.endpoints)?;
        let topic = format!("{EVENT_PREFIX}{name}/");
        Ok(EventPublisher { socket, _connections: connections, topic, metrics: EventMetrics::new(metrics) })
    }

    /// Hands an event to the bus: a JSON object. Never waits. Says whether the bus took it, with or without a subscriber.
    pub fn publish(&mut self, json: &[u8]) -> bool {
        if json.len() > MAX_EVENT_BYTES || !json.starts_with(b"{") {
            self.metrics.refused.inc();
            return false;
        }
        let topic = uninterrupted(|| self.socket.send(self.topic.as_bytes(), zmq::DONTWAIT | zmq::SNDMORE));
        // libzmq looks for room only when the first part is sent.
        let sent = topic.and_then(|()| uninterrupted(|| self.socket.send(json, zmq::DONTWAIT)));
        let counter = if sent.is_ok() { &self.metrics.published } else { &self.metrics.no_room };
        counter.inc();
        sent.is_ok()
    }
}

/// An event that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Who published it.
    pub publisher: Name,
    /// A JSON object, on one line.
    pub json: String,
}

/// A subscription to events. Belongs to one thread.
pub struct EventSubscriber {
    socket: zmq::Socket,
    _connections: Connections,
    malformed: prometheus::IntCounter,
}

impl EventSubscriber {
    /// Subscribes to the events whose topics begin with one of `prefixes`.
    ///
    /// # Errors
    /// Endpoints that libzmq does not understand, or no more sockets.
    pub fn connect(
        bus: &Bus,
        from: &Subscribing,
        prefixes: &[String],
        metrics: &Metrics,
    ) -> Result<EventSubscriber, BusError> {
        let socket = bus.subscriber(from.keys.as_ref())?;
        let mut connections = bus.watch(&socket)?;
        for prefix in prefixes {
            let failed = |source| BusError::Socket { role: "event subscriber", source };
            socket.set_subscribe(prefix.as_bytes()).map_err(failed)?;
        }
        connections.connect(&socket, &from.endpoints)?;
        let help = "Messages from the bus that could not be read, or whose stream had to be forgotten.";
        let malformed = metrics.counter(names::MALFORMED_MESSAGES, help, &[("reason", "malformed")]);
        Ok(EventSubscriber { socket, _connections: connections, malformed })
    }

    /// The next event, or `None` when none has come within `timeout`. What is none is counted and passed over.
    ///
    /// # Errors
    /// The socket failed: the context is gone.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Event>, BusError> {
        let failed = |source| BusError::Io { role: "event subscriber", source };
        let until = Instant::now() + timeout;
        loop {
            let topic = match self.socket.recv_msg(zmq::DONTWAIT) {
                Ok(topic) => topic,
                Err(zmq::Error::EINTR) => continue,
                Err(zmq::Error::EAGAIN) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    match self.socket.poll(zmq::POLLIN, i64::from(milliseconds(left)).max(1)) {
                        Ok(_) | Err(zmq::Error::EINTR) => continue,
                        Err(source) => return Err(failed(source)),
                    }
                }
                Err(source) => return Err(failed(source)),
            };
            let (mut body, mut count, mut more) = (None, 0, topic.get_more());
            while more {
                // The parts of a message arrive together, so this does not wait.
                let part = uninterrupted(|| self.socket.recv_msg(0)).map_err(failed)?;
                more = part.get_more();
                count += 1;
                body = body.or(Some(part));
            }
            match body.filter(|_| count == 1).and_then(|body| event(&topic, &body)) {
                Some(event) => return Ok(Some(event)),
                None => {
                    self.malformed.inc();
                    debug!(topic = %String::from_utf8_lossy(&topic).escape_debug(), "refused an event");
                }
            }
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }
}

fn event(topic: &[u8], body: &[u8]) -> Option<Event> {
    if body.len() > MAX_EVENT_BYTES {
        return None;
    }
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body).ok()?;
    // Written anew: whatever white space was in it, it is one line.
    Some(Event { publisher: publisher(topic)?, json: serde_json::to_string(&object).ok()? })
}
