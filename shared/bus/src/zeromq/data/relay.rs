//! The relay in the middle of the bus: XSUB towards publishers, XPUB towards subscribers.
//!
//! This is a separate loop instead of `zmq_proxy`, which either drops messages silently (the
//! default) or lets one stalled subscriber block all others (`ZMQ_XPUB_NODROP`). Here a full queue
//! is detected and counted, and the send is repeated so that only that queue misses the message.
//! Subscribers count missed records themselves, by sequence numbers.

use std::time::{Duration, Instant};

use sekiwake_record::{Header, Topic};
use sekiwake_runtime::{Latch, Metrics, RateLimited, Worker};
use tracing::{debug, warn};

use super::{
    backlog::{Backlog, Incoming},
    subscriptions::{Change, Subscriptions, is_of_status_only},
};
use crate::{
    BusError, MAX_EVENT_BYTES,
    events::is_event_topic,
    metrics::RelayMetrics,
    zeromq::{
        ServerKeys,
        connections::Side,
        inlet::{Inlet, Limit, wait, wait_for_bell},
        listeners::Listeners,
        port_guard::PortGuard,
        socket::{
            Context, LINGER_ACCURACY, MAX_MESSAGE_BYTES, PAUSE_TOPIC, RELAY_IN_PROCESS_MESSAGES, Rest,
            SUBSCRIBER_MESSAGES, SUBSCRIPTION_BURST, bind, bind_all, milliseconds, nodrop, receive_rest, uninterrupted,
        },
        status::StatusOutlet,
    },
};

/// How long a new relay is closed to publishers, so that the subscribers of its predecessor have
/// time to reconnect; they try every 100 to 200 ms. Meanwhile messages wait in the publishers.
const SETTLE: Duration = Duration::from_millis(500);

/// Before it ends, the relay asks publishers to pause, and continues until they have been silent
/// for this long.
const QUIET: Duration = Duration::from_millis(200);

/// It continues for this long in any case, as the control plane does: publishers that were stopped
/// at the same time have yet to announce the end of their streams.
const LEAVING_GRACE: Duration = Duration::from_millis(700);

/// They are asked only if they are not silent by themselves after this time: a host answers a write
/// to a publisher that has ended with a reset, which would discard its last unread records.
const PAUSE_AFTER: Duration = Duration::from_millis(400);

/// The longest wait for messages. The port guards learn from each turn that all messages have been
/// read, without which they cut no connection.
const IDLE_WAIT: Duration = Duration::from_millis(500);
/// The same before publishers are admitted, and during a stop, when a long wait would look as if
/// the thread had been suspended.
const BRIEF_WAIT: Duration = Duration::from_millis(20);

/// How many messages are relayed before subscriptions are checked again.
const BURST: usize = 256;

/// How many parts of status are published before data is relayed again.
const STATUS_BURST: usize = 64;

/// How many messages are then read into the backlog, so that no more wait in the socket's pipes,
/// which have no limit (see `socket`).
const DRAIN_BURST: usize = 4_096;

/// How long and how often the relay waits for room in a subscriber's queue. A stalled subscriber
/// delays the others by this twentieth at most.
const PATIENCE: Duration = Duration::from_millis(50);
const PATIENCE_EVERY: Duration = Duration::from_secs(1);
const PATIENCE_STEP: Duration = Duration::from_millis(1);

/// How long the port for publishers may stay taken after the relay itself has freed it.
const REBIND_LIMIT: Duration = Duration::from_secs(10);

/// The longest header that is relayed, bytes: several times the current size, because later
/// versions append to it.
const MAX_HEADER_BYTES: usize = 1024;

/// The longest reserved topic, bytes.
const MAX_RESERVED_TOPIC_BYTES: usize = 128;

/// Where a relay binds.
#[derive(Debug, Clone, Default)]
pub struct RelaySettings {
    /// Endpoints for publishers.
    pub publish: Vec<String>,
    /// Endpoints for subscribers.
    pub subscribe: Vec<String>,
    /// The keys of a [`Gatekeeper`](crate::zeromq::Gatekeeper), if connections are encrypted.
    pub keys: Option<ServerKeys>,
}

/// A bound relay. Belongs to one thread.
pub struct Relay {
    context: Context,
    publishers: Inlet,
    /// Messages read from `publishers` that have not been relayed.
    backlog: Backlog,
    subscribers: Inlet,
    publishers_guard: PortGuard,
    subscribers_guard: PortGuard,
    subscriptions: Subscriptions,
    metrics: RelayMetrics,
    publish_endpoints: Vec<String>,
    subscribe_endpoints: Vec<String>,
    /// A subscriber's message of several parts is being skipped, up to its last part.
    skipping: bool,
    full_log: RateLimited,
    overload_log: RateLimited,
    /// When a send may be repeated again.
    patient_at: Instant,
    ready: Option<Latch>,
    /// Status that the control plane has received.
    status: Option<StatusOutlet>,
    rejected_log: RateLimited,
    /// A pseudo-random number that selects the messages of publishers to count by connection.
    sample: u32,
    /// Released after the sockets are closed.
    keys: Option<ServerKeys>,
}

impl Relay {
    /// Binds both sides. The publishers' side is bound to find mistakes and ports, and accepts
    /// connections only once [`Relay::run`] has let subscribers reconnect.
    ///
    /// # Errors
    /// An address that is in use or invalid.
    pub fn bind(context: &Context, settings: &RelaySettings, metrics: &Metrics) -> Result<Relay, BusError> {
        let keys = settings.keys.as_ref();
        let publishers = context.relay_in(keys)?;
        let subscribers = context.relay_out(keys)?;
        let publishers_guard = PortGuard::start(context, &publishers, Side::Publish, keys, metrics)?;
        let subscribers_guard = PortGuard::start(context, &subscribers, Side::Subscribe, keys, metrics)?;
        Ok(Relay {
            context: context.clone(),
            subscribe_endpoints: bind_all(&subscribers, &settings.subscribe)?,
            publish_endpoints: reserve(&publishers, &settings.publish)?,
            publishers: Inlet::new(publishers),
            backlog: Backlog::default(),
            subscribers: Inlet::new(subscribers),
            publishers_guard,
            subscribers_guard,
            subscriptions: Subscriptions::default(),
            metrics: RelayMetrics::new(metrics),
            skipping: false,
            full_log: RateLimited::default(),
            overload_log: RateLimited::default(),
            patient_at: Instant::now(),
            ready: None,
            status: None,
            rejected_log: RateLimited::default(),
            sample: 1,
            keys: settings.keys.clone(),
        })
    }

    /// The memory used for a stalled subscriber, bytes, if every message is a full batch of
    /// ordinary records.
    pub const fn ordinary_bytes_per_subscriber() -> u64 {
        SUBSCRIBER_MESSAGES as u64 * sekiwake_record::MAX_BATCH_BYTES as u64
    }

    /// Maximum memory used for a stalled subscriber, bytes: every message is one datagram of the
    /// largest size.
    pub const fn worst_bytes_per_subscriber() -> u64 {
        SUBSCRIBER_MESSAGES as u64 * (MAX_MESSAGE_BYTES as u64 + MAX_HEADER_BYTES as u64)
    }

    /// Sets `ready` once data flows: half a second after the start.
    pub fn set_readiness(&mut self, ready: Latch) {
        self.ready = Some(ready);
    }

    /// Publishes the status that the control plane receives, while somebody subscribes to it.
    pub fn set_status(&mut self, status: StatusOutlet) {
        self.status = Some(status);
    }

    /// The bound endpoints for publishers, with the actual ports.
    pub fn publish_endpoints(&self) -> &[String] {
        &self.publish_endpoints
    }

    /// The bound endpoints for subscribers, with the actual ports.
    pub fn subscribe_endpoints(&self) -> &[String] {
        &self.subscribe_endpoints
    }

    /// Relays until the worker is asked to stop and the publishers, which are asked to pause, are
    /// silent.
    ///
    /// # Errors
    /// A socket failed because its context was terminated.
    pub fn run(mut self, worker: &Worker) -> Result<(), BusError> {
        let settled_at = Instant::now() + SETTLE;
        let mut settled = false;
        let mut last_message = settled_at;
        let mut stopped_at = None;
        let mut is_pause_sent = false;
        let mut looked_at = settled_at;
        let mut listeners = Listeners::new(&self.subscribe_endpoints);
        loop {
            worker.beat();
            let now = Instant::now();
            listeners.check(now);
            if !settled && now >= settled_at {
                settled = self.admit_publishers(now >= settled_at + REBIND_LIMIT, &listeners)?;
                if settled {
                    listeners.add(&self.publish_endpoints);
                }
            }
            if let Some(ready) = &self.ready {
                ready.set(settled);
            }
            if let Some(deadline) = worker.deadline() {
                let stopped_at = *stopped_at.get_or_insert(now);
                last_message = last_message.max(stopped_at);
                // While this thread was suspended or starved, it could not observe a silence.
                if now.saturating_duration_since(looked_at) > QUIET / 2 {
                    last_message = now;
                }
                let is_quiet = now.saturating_duration_since(last_message) > QUIET;
                if !is_pause_sent && !is_quiet && now > stopped_at + PAUSE_AFTER {
                    is_pause_sent = true;
                    self.ask_to_pause()?;
                }
                if is_quiet && now >= stopped_at + LEAVING_GRACE || now >= deadline {
                    break;
                }
            }
            looked_at = now;
            self.subscribers_guard.emptied();
            self.wait(settled, worker)?;
            self.take_subscriptions()?;
            if settled && self.relay_burst()? {
                last_message = now;
                // A relay that never waits would not learn of subscriptions.
                self.subscribers.ask_again();
            }
            self.publish_status()?;
        }
        self.close(worker)
    }

    fn close(mut self, worker: &Worker) -> Result<(), BusError> {
        self.publishers_guard.stop(self.publishers.socket());
        self.subscribers_guard.stop(self.subscribers.socket());
        let closing_at = Instant::now();
        // A stalled subscriber must not delay the end of the process past its deadline.
        let remaining = worker.deadline().map_or(QUIET, |end| end.saturating_duration_since(closing_at));
        let linger = remaining * 4 / 5;
        self.subscribers.socket().set_linger(milliseconds(linger)).map_err(failed)?;
        // The sockets are closed first, then the gatekeeper's, because dropping the last clone of
        // the bus waits for lingering messages.
        let Relay { context, publishers, subscribers, keys, .. } = self;
        drop((publishers, subscribers));
        if let Some(keys) = keys {
            keys.release();
        }
        drop(context);
        if closing_at.elapsed() + LINGER_ACCURACY >= linger {
            warn!(
                linger_ms = milliseconds(linger),
                "drain deadline exceeded while messages to subscribers lingered, records may be lost"
            );
        }
        Ok(())
    }

    /// Binds the publishers' side. Returns `false` if that has to be repeated, because a port is
    /// still in use.
    fn admit_publishers(&mut self, is_last_attempt: bool, listeners: &Listeners) -> Result<bool, BusError> {
        let (inside, outside): (Vec<_>, Vec<_>) =
            self.publish_endpoints.iter().cloned().partition(|endpoint| endpoint.starts_with("inproc:"));
        for endpoint in outside {
            // Subscribers must not take the descriptors meanwhile.
            match listeners.while_paused(|| bind(self.publishers.socket(), &endpoint)) {
                Ok(()) => {}
                Err(zmq::Error::EADDRINUSE) if !is_last_attempt => return Ok(false),
                Err(source) => return Err(BusError::Bind { endpoint, source: source.into() }),
            }
        }
        // A process may stop reading its own publishers.
        let publishers = self.publishers.socket();
        publishers.set_rcvhwm(RELAY_IN_PROCESS_MESSAGES).map_err(failed)?;
        bind_all(publishers, &inside)?;
        Ok(true)
    }

    /// Waits for messages, subscriptions and status.
    fn wait(&mut self, settled: bool, worker: &Worker) -> Result<(), BusError> {
        let limit = match (settled, self.backlog.is_empty()) {
            // There is work; this only notices what else there is.
            (true, false) => Duration::ZERO,
            (true, true) if !worker.stopping() => IDLE_WAIT,
            _ => BRIEF_WAIT,
        };
        let limit = Limit::or_stop(limit, worker.stop());
        let is_status_due = || self.status.as_ref().is_some_and(StatusOutlet::has_next);
        self.subscribers_guard.begin_wait();
        let waited = if settled {
            let inlets = [&mut self.subscribers, &mut self.publishers];
            match &self.status {
                Some(status) => wait_for_bell(inlets, [], status.bell(), is_status_due, limit),
                None => wait(inlets, [], limit),
            }
        } else {
            wait([&mut self.subscribers], [], limit)
        };
        self.subscribers_guard.end_wait();
        waited.map_err(failed)
    }

    /// Forwards subscriptions to the publishers, so that they send only subscribed topics. A
    /// bounded number at a time, because a flood of subscriptions must not block data.
    fn take_subscriptions(&mut self) -> Result<(), BusError> {
        for _ in 0..SUBSCRIPTION_BURST {
            let Some(mut message) = self.subscribers.receive().map_err(failed)? else { break };
            if self.skipping {
                self.skipping = message.get_more();
                continue;
            }
            let change = match message.split_first() {
                Some((&first @ (0 | 1), prefix)) if !message.get_more() => {
                    self.subscriptions.change(first == 1, prefix)
                }
                _ => Change::Rejected,
            };
            match change {
                Change::Added | Change::Removed => {
                    let prefix = String::from_utf8_lossy(&message[1..]);
                    debug!(prefix = %prefix.escape_debug(), added = change == Change::Added, "subscription");
                    if !is_of_status_only(&message[1..]) {
                        self.publishers.socket().send(message, 0).map_err(failed)?;
                    }
                }
                Change::Unchanged => {}
                Change::Rejected => {
                    self.skipping = message.get_more();
                    self.reject(&mut message);
                }
            }
        }
        self.metrics.subscriptions.set(self.subscriptions.len() as i64);
        if let Some(status) = &self.status {
            status.set_wanted(self.subscriptions.wants_status());
        }
        Ok(())
    }

    /// Publishes the status that has been received, a bounded number of parts.
    fn publish_status(&mut self) -> Result<(), BusError> {
        for _ in 0..STATUS_BURST {
            let Some(publication) = self.status.as_ref().and_then(StatusOutlet::next) else { return Ok(()) };
            self.send(publication.topic.as_bytes(), [publication.text.into()])?;
        }
        Ok(())
    }

    fn reject(&self, message: &mut zmq::Message) {
        self.metrics.rejected_subscriptions.inc();
        self.subscribers_guard.count(message);
        if let Some(suppressed) = self.rejected_log.allow(Instant::now()) {
            let prefix = String::from_utf8_lossy(message.get(1..).unwrap_or_default());
            warn!(prefix = %prefix.escape_debug(), suppressed, "subscription rejected: no such topic for subscribers");
        }
    }

    fn ask_to_pause(&mut self) -> Result<(), BusError> {
        for added in [1, 0] {
            let message = [&[added], PAUSE_TOPIC].concat();
            self.publishers.socket().send(message, 0).map_err(failed)?;
        }
        Ok(())
    }

    /// Relays received messages, a bounded number, and returns whether there were any. If there are
    /// more, they are read into the backlog.
    fn relay_burst(&mut self) -> Result<bool, BusError> {
        for relayed in 0..BURST {
            let message = match self.backlog.pop() {
                Some(message) => message,
                None => match self.receive()? {
                    Some(message) => message,
                    None => return Ok(relayed > 0),
                },
            };
            self.relay(message)?;
        }
        for _ in 0..DRAIN_BURST {
            let Some(message) = self.receive()? else { break };
            if !self.backlog.push(message) {
                self.metrics.no_room.inc();
                if let Some(suppressed) = self.overload_log.allow(Instant::now()) {
                    warn!(suppressed, "relay overloaded, messages from publishers dropped");
                }
            }
        }
        Ok(true)
    }

    /// The next message of a publisher, if there is one.
    fn receive(&mut self) -> Result<Option<Incoming>, BusError> {
        let Some(mut topic) = self.publishers.receive().map_err(failed)? else {
            self.publishers_guard.emptied();
            return Ok(None);
        };
        if self.is_sampled() {
            self.publishers_guard.count(&mut topic);
        }
        let rest = receive_rest(self.publishers.socket(), &topic).map_err(failed)?;
        Ok(Some(Incoming { topic, rest }))
    }

    /// One in four messages, by xorshift: a regular choice could always miss the same publisher.
    fn is_sampled(&mut self) -> bool {
        self.sample ^= self.sample << 13;
        self.sample ^= self.sample >> 17;
        self.sample ^= self.sample << 5;
        self.sample.is_multiple_of(4)
    }

    fn relay(&mut self, Incoming { topic, rest }: Incoming) -> Result<(), BusError> {
        let Rest { count, parts } = rest;
        match (count, parts) {
            (2, [Some(header), Some(body)]) => self.relay_batch(&topic, header, body),
            (1, [Some(frame), None]) if is_reserved_topic(&topic) => self.send(&topic, [frame]),
            (1, [Some(frame), None]) if is_event_topic(&topic) && frame.len() <= MAX_EVENT_BYTES => {
                self.send(&topic, [frame])?;
                self.metrics.events.inc();
                Ok(())
            }
            (1, [Some(_), None]) if topic.first() == Some(&b'@') => {
                self.metrics.unknown_topic.inc();
                Ok(())
            }
            _ => {
                self.metrics.malformed.inc();
                Ok(())
            }
        }
    }

    fn relay_batch(&mut self, name: &[u8], header: zmq::Message, body: zmq::Message) -> Result<(), BusError> {
        let Some(topic) = Topic::parse(name) else {
            self.metrics.unknown_topic.inc();
            return Ok(());
        };
        // The header is enough to count records; subscribers check the body.
        let count = match Header::decode(&header) {
            Ok(decoded) if header.len() <= MAX_HEADER_BYTES => u64::from(decoded.count),
            _ => {
                self.metrics.malformed.inc();
                return Ok(());
            }
        };
        self.metrics.received[topic.kind.index()].inc_by(count);
        self.send(name, [header, body])?;
        self.metrics.sent[topic.kind.index()].inc_by(count);
        Ok(())
    }

    /// Sends to every subscriber whose queue has room. libzmq checks for room only when the first
    /// part is sent.
    fn send<const N: usize>(&mut self, topic: &[u8], rest: [zmq::Message; N]) -> Result<(), BusError> {
        let first = zmq::DONTWAIT | zmq::SNDMORE;
        let socket = self.subscribers.socket();
        let mut sent = uninterrupted(|| socket.send(topic, first));
        if sent == Err(zmq::Error::EAGAIN) {
            sent = self.send_patiently(topic, first);
        }
        match sent {
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) => {
                self.queue_is_full();
                let socket = self.subscribers.socket();
                nodrop(socket, false).map_err(failed)?;
                let sent = uninterrupted(|| socket.send(topic, first));
                nodrop(socket, true).map_err(failed)?;
                sent.map_err(failed)?;
            }
            Err(source) => return Err(failed(source)),
        }
        let socket = self.subscribers.socket();
        for (index, part) in rest.into_iter().enumerate() {
            let flags = if index + 1 < N { first } else { zmq::DONTWAIT };
            socket.send(part, flags).map_err(failed)?;
        }
        Ok(())
    }

    /// Repeats a send for a moment, at most once per `PATIENCE_EVERY`: after a burst, the queue of
    /// a subscriber that reads is full only until libzmq has written it.
    fn send_patiently(&mut self, topic: &[u8], flags: i32) -> Result<(), zmq::Error> {
        let now = Instant::now();
        if now < self.patient_at {
            return Err(zmq::Error::EAGAIN);
        }
        self.patient_at = now + PATIENCE_EVERY;
        loop {
            std::thread::sleep(PATIENCE_STEP);
            let socket = self.subscribers.socket();
            let sent = uninterrupted(|| socket.send(topic, flags));
            if sent != Err(zmq::Error::EAGAIN) || now.elapsed() >= PATIENCE {
                return sent;
            }
        }
    }

    fn queue_is_full(&mut self) {
        self.metrics.queue_full.inc();
        if let Some(suppressed) = self.full_log.allow(Instant::now()) {
            warn!(suppressed, "subscriber queue full, subscriber misses records");
        }
    }
}

/// Whether this is a valid reserved topic: `@`, names separated by slashes, and a slash at the end.
fn is_reserved_topic(topic: &[u8]) -> bool {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    match topic {
        [b'@', name @ .., b'/'] => topic.len() <= MAX_RESERVED_TOPIC_BYTES && name.iter().all(is_allowed),
        _ => false,
    }
}

/// Binds a socket and releases its endpoints again. Returns them with the actual ports.
fn reserve(socket: &zmq::Socket, endpoints: &[String]) -> Result<Vec<String>, BusError> {
    let mut reserved = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        if endpoint.starts_with("inproc:") {
            reserved.push(endpoint.clone());
            continue;
        }
        let bound = bind_all(socket, std::slice::from_ref(endpoint))?;
        for endpoint in &bound {
            socket
                .unbind(endpoint)
                .map_err(|source| BusError::Bind { endpoint: endpoint.clone(), source: source.into() })?;
        }
        reserved.extend(bound);
    }
    Ok(reserved)
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "relay", source: source.into() }
}
