//! Events and status over sockets.

use std::time::{Duration, Instant};

use sekiwake_record::Name;
use sekiwake_runtime::{Metrics, Stop};
use tracing::debug;

use crate::{
    BusError, EVENT_PREFIX, Event, EventSink, EventSource, MAX_EVENT_BYTES,
    events::{event, object},
    metrics::{EventMetrics, malformed_messages},
    settings::{Publishing, Subscribing},
    zeromq::{
        connections::{Connections, Side},
        data::Subscriptions,
        inlet::{Inlet, Limit, wait},
        socket::{Context, Rest, SUBSCRIPTION_BURST, receive_rest, uninterrupted},
    },
};

/// How often a publisher reads its subscriptions while it publishes nothing.
const READ_EVERY: Duration = Duration::from_secs(1);
/// How often the state of a connection is checked.
const WATCH_EVERY: Duration = Duration::from_millis(200);

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
    pub fn connect(
        context: &Context,
        to: &Publishing,
        name: &Name,
        metrics: &Metrics,
    ) -> Result<EventPublisher, BusError> {
        let socket = context.event_publisher(to.zeromq.keys.as_ref())?;
        let mut connections = context.watch(&socket, Side::Publish)?;
        connections.connect(&socket, &to.zeromq.endpoints)?;
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

impl EventSink for EventPublisher {
    fn publish(&mut self, json: &[u8]) -> bool {
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

    fn poll(&mut self) {
        let now = Instant::now();
        if self.read_at.is_none_or(|at| now.duration_since(at) >= READ_EVERY) {
            self.read_at = Some(now);
            self.read();
        }
    }
}

/// A subscription to events or status. Belongs to one thread.
pub struct EventSubscriber {
    socket: Inlet,
    connections: Connections,
    polled_at: Option<Instant>,
    in_process: bool,
    is_connected: bool,
    malformed: prometheus::IntCounter,
    prefixes: Vec<String>,
    stop: Option<Stop>,
}

impl EventSubscriber {
    /// Subscribes to the events and the status whose topics begin with one of `prefixes`.
    ///
    /// # Errors
    /// Invalid endpoints, or too many sockets.
    pub fn connect(
        context: &Context,
        from: &Subscribing,
        prefixes: &[String],
        metrics: &Metrics,
    ) -> Result<EventSubscriber, BusError> {
        let socket = context.subscriber(from.zeromq.keys.as_ref())?;
        let mut connections = context.watch(&socket, Side::Subscribe)?;
        for prefix in prefixes {
            let failed = |source: zmq::Error| BusError::Socket { role: "event subscriber", source: source.into() };
            socket.set_subscribe(prefix.as_bytes()).map_err(failed)?;
        }
        connections.connect(&socket, &from.zeromq.endpoints)?;
        let malformed = malformed_messages(metrics, "malformed");
        let in_process = from.zeromq.is_in_process();
        Ok(EventSubscriber {
            socket: Inlet::new(socket),
            connections,
            polled_at: None,
            in_process,
            is_connected: in_process,
            malformed,
            prefixes: prefixes.to_vec(),
            stop: None,
        })
    }
}

impl EventSource for EventSubscriber {
    fn is_connected(&self) -> bool {
        self.is_connected
    }

    fn set_subscribed(&mut self, is_subscribed: bool) -> Result<(), BusError> {
        for prefix in &self.prefixes {
            let socket = self.socket.socket();
            let set = if is_subscribed { zmq::Socket::set_subscribe } else { zmq::Socket::set_unsubscribe };
            set(socket, prefix.as_bytes()).map_err(failed)?;
        }
        Ok(())
    }

    fn end_waits_at(&mut self, stop: Stop) {
        self.stop = Some(stop);
    }

    fn receive(&mut self, timeout: Duration) -> Result<Option<Event>, BusError> {
        let until = Instant::now() + timeout;
        let mut waited = false;
        loop {
            if self.connections.has_event() {
                self.polled_at = None;
            }
            let polled = poll_connections(&mut self.connections, &mut self.socket, &mut self.polled_at);
            if let Some(is_connected) = polled.filter(|_| !self.in_process) {
                self.is_connected = is_connected;
            }
            let Some(topic) = self.socket.receive().map_err(failed)? else {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() && waited {
                    return Ok(None);
                }
                let timeout = if self.is_connected { left } else { left.min(WATCH_EVERY) };
                let limit = self.stop.as_ref().map_or(timeout.into(), |stop| Limit::or_stop(timeout, stop));
                wait([&mut self.socket], [self.connections.events()], limit).map_err(failed)?;
                if self.stop.as_ref().is_some_and(Stop::stopping) {
                    return Ok(None);
                }
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

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "event subscriber", source: source.into() }
}

/// Polls the connections from time to time: unread events stay in memory, and libzmq does not retry
/// a rejected connection by itself. Returns whether a connection is established, if it was time.
fn poll_connections(
    connections: &mut Connections,
    socket: &mut Inlet,
    polled_at: &mut Option<Instant>,
) -> Option<bool> {
    let now = Instant::now();
    if polled_at.is_some_and(|at| now.duration_since(at) < WATCH_EVERY) {
        return None;
    }
    *polled_at = Some(now);
    Some(connections.poll_connected(socket))
}
