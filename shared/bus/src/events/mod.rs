//! Events: anomalies that a service reports to any subscriber.
//!
//! Topic `anomaly/<publisher>/`, followed by one frame: a JSON object of at most 16 KiB. Events
//! have no sequence numbers and are neither retained nor retransmitted: a subscriber that is not
//! connected misses them.
//!
//! ```text
//! anomaly/<publisher>/ | {"…": …}        publisher: [A-Za-z0-9._-]{1,63}
//! ```

mod topic;

use std::time::{Duration, Instant};

use sekiwake_record::Name;
use sekiwake_runtime::Metrics;
use tracing::debug;

use crate::{
    BusError,
    connections::{Connections, Side},
    data::Subscriptions,
    inlet::{Inlet, wait},
    metrics::{EventMetrics, malformed_messages},
    settings::{Publishing, Subscribing},
    socket::{Bus, Rest, SUBSCRIPTION_BURST, receive_rest, uninterrupted},
    status::is_status_topic,
};

pub use topic::EVENT_PREFIX;
pub(crate) use topic::{event_publisher, is_event_topic};

/// How often a publisher reads its subscriptions.
const READ_EVERY: Duration = Duration::from_millis(20);
/// How often the state of a connection is checked.
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// The largest event, bytes.
pub const MAX_EVENT_BYTES: usize = 16 << 10;

/// Publishes events. Belongs to one thread, which calls [`EventPublisher::poll`] regularly.
pub struct EventPublisher {
    socket: Inlet,
    connections: Connections,
    subscriptions: Subscriptions,
    read_at: Option<Instant>,
    polled_at: Option<Instant>,
    topic: String,
    metrics: EventMetrics,
}

impl EventPublisher {
    /// Connects as the publisher of this name. The proxy may be started later.
    ///
    /// # Errors
    /// Invalid endpoints, or too many sockets.
    pub fn connect(bus: &Bus, to: &Publishing, name: &Name, metrics: &Metrics) -> Result<EventPublisher, BusError> {
        let socket = bus.event_publisher(to.keys.as_ref())?;
        let mut connections = bus.watch(&socket, Side::Publish)?;
        connections.connect(&socket, &to.endpoints)?;
        Ok(EventPublisher {
            socket: Inlet::new(socket),
            connections,
            subscriptions: Subscriptions::default(),
            read_at: None,
            polled_at: None,
            topic: format!("{EVENT_PREFIX}{name}/"),
            metrics: EventMetrics::new(metrics),
        })
    }

    /// Publishes an event, a JSON object, and returns whether the bus accepted it. Does not block.
    /// An event that is not an object or too large, that has no subscriber, or for which there is
    /// no room, is dropped and counted.
    pub fn publish(&mut self, json: &[u8]) -> bool {
        self.read();
        if json.len() > MAX_EVENT_BYTES || object(json).is_none() {
            self.metrics.rejected.inc();
            return false;
        }
        if !self.subscriptions.selects(self.topic.as_bytes()) {
            self.metrics.no_subscriber.inc();
            return false;
        }
        let socket = self.socket.socket();
        let topic = uninterrupted(|| socket.send(self.topic.as_bytes(), zmq::DONTWAIT | zmq::SNDMORE));
        // libzmq checks for room only when the first part is sent.
        let sent = topic.and_then(|()| uninterrupted(|| socket.send(json, zmq::DONTWAIT)));
        let counter = if sent.is_ok() { &self.metrics.published } else { &self.metrics.no_room };
        counter.inc();
        sent.is_ok()
    }

    /// Reads subscriptions and retries a rejected connection. To be called regularly, even with
    /// nothing to publish, because unread subscriptions fill the socket's queue. Most calls do
    /// nothing, so it may be called once per batch.
    pub fn poll(&mut self) {
        let now = Instant::now();
        if self.read_at.is_none_or(|at| now.duration_since(at) >= READ_EVERY) {
            self.read_at = Some(now);
            self.read();
        }
    }

    fn read(&mut self) {
        // Nobody waits for the socket.
        self.socket.ask_again();
        for _ in 0..SUBSCRIPTION_BURST {
            // If the socket failed, the next send returns the error too.
            let Ok(Some(message)) = self.socket.receive() else { break };
            if let Some((&first @ (0 | 1), prefix)) = message.split_first() {
                self.subscriptions.change(first == 1, prefix);
            }
        }
        poll_connections(&mut self.connections, &mut self.socket, &mut self.polled_at);
    }
}

/// A received event, or a part of a status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// `anomaly/<publisher>/`, or the topic of a status.
    pub topic: String,
    /// A JSON object on one line.
    pub json: String,
}

impl Event {
    /// The publisher of an event; `None` for a status.
    pub fn publisher(&self) -> Option<Name> {
        event_publisher(self.topic.as_bytes())
    }
}

/// A subscription to events or status. Belongs to one thread.
pub struct EventSubscriber {
    socket: Inlet,
    connections: Connections,
    polled_at: Option<Instant>,
    malformed: prometheus::IntCounter,
}

impl EventSubscriber {
    /// Subscribes to the events and the status whose topics begin with one of `prefixes`.
    ///
    /// # Errors
    /// Invalid endpoints, or too many sockets.
    pub fn connect(
        bus: &Bus,
        from: &Subscribing,
        prefixes: &[String],
        metrics: &Metrics,
    ) -> Result<EventSubscriber, BusError> {
        let socket = bus.subscriber(from.keys.as_ref())?;
        let mut connections = bus.watch(&socket, Side::Subscribe)?;
        for prefix in prefixes {
            let failed = |source| BusError::Socket { role: "event subscriber", source };
            socket.set_subscribe(prefix.as_bytes()).map_err(failed)?;
        }
        connections.connect(&socket, &from.endpoints)?;
        let malformed = malformed_messages(metrics, "malformed");
        Ok(EventSubscriber { socket: Inlet::new(socket), connections, polled_at: None, malformed })
    }

    /// The next event, or `None` if none is received within `timeout`. Malformed events are counted
    /// and skipped.
    ///
    /// # Errors
    /// The socket failed because its context was terminated.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Event>, BusError> {
        let failed = |source| BusError::Io { role: "event subscriber", source };
        let until = Instant::now() + timeout;
        let mut waited = false;
        loop {
            poll_connections(&mut self.connections, &mut self.socket, &mut self.polled_at);
            let Some(topic) = self.socket.receive().map_err(failed)? else {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() && waited {
                    return Ok(None);
                }
                wait([&mut self.socket], [], left.min(WATCH_EVERY)).map_err(failed)?;
                waited = true;
                continue;
            };
            let event = match receive_rest(self.socket.socket(), &topic).map_err(failed)? {
                Rest { count: 1, parts: [Some(body)] } => event(&topic, &body),
                _ => None,
            };
            if event.is_some() {
                return Ok(event);
            }
            self.malformed.inc();
            debug!(topic = %String::from_utf8_lossy(&topic).escape_debug(), "event rejected");
            if Instant::now() >= until {
                return Ok(None);
            }
        }
    }
}

fn event(topic: &[u8], body: &[u8]) -> Option<Event> {
    if !(is_event_topic(topic) || is_status_topic(topic)) || body.len() > MAX_EVENT_BYTES {
        return None;
    }
    let topic = std::str::from_utf8(topic).ok()?.to_owned();
    // Serialised again, so that it is on one line.
    Some(Event { topic, json: serde_json::to_string(&object(body)?).ok()? })
}

fn object(json: &[u8]) -> Option<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_slice(json).ok()
}

/// Polls the connections from time to time: unread events stay in memory, and libzmq does not retry
/// a rejected connection by itself.
fn poll_connections(connections: &mut Connections, socket: &mut Inlet, polled_at: &mut Option<Instant>) {
    let now = Instant::now();
    if polled_at.is_none_or(|at| now.duration_since(at) >= WATCH_EVERY) {
        *polled_at = Some(now);
        connections.poll_connected(socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn event_is_an_object_on_one_line() {
        let text = |body: &[u8]| event(b"anomaly/w/", body).map(|event| event.json);
        assert_eq!(text(b"{ \"a\" :\n [1, \"\\n\\u001b\"]\r\n}").as_deref(), Some(r#"{"a":[1,"\n\u001b"]}"#));
        let deep = ["{\"a\":".repeat(1_000), "1".to_owned(), "}".repeat(1_000)].concat();
        for body in ["", "[]", "1", "null", "{", "{}{}", "{\"a\":\"\n\"}", "{\"a\":1e999}", &deep] {
            assert_eq!(text(body.as_bytes()), None, "{body}");
        }
        assert_eq!(text(b"{\"a\":\"\xff\"}"), None);
        assert_eq!(text(&[b"{}".as_slice(), &[b' '; MAX_EVENT_BYTES]].concat()), None);
        assert_eq!(event(b"anomaly//", b"{}"), None);
    }
}
