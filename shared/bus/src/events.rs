//! Events: what a service has noticed, for whoever listens.
//!
//! Topic `anomaly/<publisher>/`, one frame after it: a JSON object of at most 16 KiB. Events are not numbered, retained or
//! repeated: who is not there when one passes has missed it.
//!
//! ```text
//! anomaly/<publisher>/ | {"…": …}        publisher: [A-Za-z0-9._-]{1,63}
//! ```

use std::time::{Duration, Instant};

use sekiwake_record::Name;
use sekiwake_runtime::Metrics;
use tracing::debug;

use crate::{
    BusError,
    metrics::{EventMetrics, names},
    settings::{Publishing, Subscribing},
    socket::{Bus, Connections, SUBSCRIPTION_BURST, milliseconds, uninterrupted},
    subscriptions::Subscriptions,
};

/// How often the state of a connection is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(200);

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

/// Publishes events. Belongs to one thread, which calls [`EventPublisher::tend`] now and then.
pub struct EventPublisher {
    socket: zmq::Socket,
    connections: Connections,
    subscriptions: Subscriptions,
    watched_at: Option<Instant>,
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
        Ok(EventPublisher {
            socket,
            connections,
            subscriptions: Subscriptions::default(),
            watched_at: None,
            topic: format!("{EVENT_PREFIX}{name}/"),
            metrics: EventMetrics::new(metrics),
        })
    }

    /// Hands an event, a JSON object, to the bus, and says whether the bus took it. Never waits. One that is none or too large, that
    /// nobody has subscribed to, or for which there is no room is counted and gone.
    pub fn publish(&mut self, json: &[u8]) -> bool {
        self.tend();
        if json.len() > MAX_EVENT_BYTES || object(json).is_none() {
            self.metrics.refused.inc();
            return false;
        }
        if !self.subscriptions.select(self.topic.as_bytes()) {
            self.metrics.no_subscriber.inc();
            return false;
        }
        let topic = uninterrupted(|| self.socket.send(self.topic.as_bytes(), zmq::DONTWAIT | zmq::SNDMORE));
        // libzmq looks for room only when the first part is sent.
        let sent = topic.and_then(|()| uninterrupted(|| self.socket.send(json, zmq::DONTWAIT)));
        let counter = if sent.is_ok() { &self.metrics.published } else { &self.metrics.no_room };
        counter.inc();
        sent.is_ok()
    }

    /// Takes note of who has subscribed, and tries a connection again that was refused. To be called now and then, also with nothing to
    /// publish: what the proxy says would wait here.
    pub fn tend(&mut self) {
        for _ in 0..SUBSCRIPTION_BURST {
            match self.socket.recv_msg(zmq::DONTWAIT) {
                Ok(message) => {
                    if let Some((&first @ (0 | 1), prefix)) = message.split_first() {
                        self.subscriptions.change(first == 1, prefix);
                    }
                }
                Err(zmq::Error::EINTR) => {}
                // The next call that sends says so too if the socket failed.
                Err(_) => break,
            }
        }
        watch(&mut self.connections, &self.socket, &mut self.watched_at);
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
    connections: Connections,
    watched_at: Option<Instant>,
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
        Ok(EventSubscriber { socket, connections, watched_at: None, malformed })
    }

    /// The next event, or `None` when none has come within `timeout`. What is none is counted and passed over.
    ///
    /// # Errors
    /// The socket failed: the context is gone.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Event>, BusError> {
        let failed = |source| BusError::Io { role: "event subscriber", source };
        let until = Instant::now() + timeout;
        loop {
            watch(&mut self.connections, &self.socket, &mut self.watched_at);
            let topic = match self.socket.recv_msg(zmq::DONTWAIT) {
                Ok(topic) => topic,
                Err(zmq::Error::EINTR) => continue,
                Err(zmq::Error::EAGAIN) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    match self.socket.poll(zmq::POLLIN, i64::from(milliseconds(left.min(WATCH_EVERY))).max(1)) {
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
    let publisher = publisher(topic)?;
    if body.len() > MAX_EVENT_BYTES {
        return None;
    }
    // Written anew: whatever white space was in it, it is one line.
    Some(Event { publisher, json: serde_json::to_string(&object(body)?).ok()? })
}

fn object(json: &[u8]) -> Option<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_slice(json).ok()
}

/// Reads what has happened to the connections, now and then: what nobody reads stays in memory, and libzmq does not try again by
/// itself where it was refused.
fn watch(connections: &mut Connections, socket: &zmq::Socket, watched_at: &mut Option<Instant>) {
    let now = Instant::now();
    if watched_at.is_none_or(|at| now.duration_since(at) >= WATCH_EVERY) {
        *watched_at = Some(now);
        connections.stand(socket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_of_an_event_is_the_prefix_a_name_and_a_slash() {
        for topic in ["anomaly/watch-1/", "anomaly/a/", "anomaly/A._-9/"] {
            assert!(is_event_topic(topic.as_bytes()), "{topic}");
        }
        let long = format!("anomaly/{}/", "x".repeat(64));
        for topic in
            ["", "anomaly/", "anomaly//", "anomaly/a", "anomaly/a/b/", "anomaly/a b/", "Anomaly/a/", "syslog/00", &long]
        {
            assert!(!is_event_topic(topic.as_bytes()), "{topic}");
        }
        assert!(!is_event_topic(b"anomaly/\xff/"));
    }

    #[test]
    fn what_comes_is_an_object_on_one_line() {
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
