//! The relay in the middle of the bus: XSUB towards publishers, XPUB towards subscribers.
//!
//! It is a loop of its own and not `zmq_proxy`, which either drops without a word (the default) or lets one stalled
//! subscriber freeze all others (`ZMQ_XPUB_NODROP`). Here a send that some queue has no room for is noticed, counted, and
//! done again so that only that queue misses it. What a subscriber missed it counts itself, by the sequence numbers.

use std::time::{Duration, Instant};

use sekiwake_record::{Header, Topic};
use sekiwake_runtime::{Latch, Metrics, RateLimited, Worker};
use tracing::{debug, info, warn};

use crate::{
    BusError, ServerKeys,
    events::{MAX_EVENT_BYTES, is_event_topic},
    metrics::RelayMetrics,
    socket::{
        Bus, HOLD_TOPIC, LINGER_ACCURACY, MAX_MESSAGE_BYTES, SUBSCRIBER_MESSAGES, SUBSCRIPTION_BURST, milliseconds,
        nodrop, uninterrupted,
    },
    subscriptions::{Change, Subscriptions},
};

/// How long a new relay holds what publishers send, so that subscribers that knew its predecessor have time to come back.
/// They try every 100 to 200 ms. What waits, waits in the publishers.
const SETTLE: Duration = Duration::from_millis(500);

/// On its way out the relay asks publishers to hold what they have, and goes on until they have been quiet for this long.
const QUIET: Duration = Duration::from_millis(200);

/// They are asked only when they are not quiet by themselves after this time: a word to a publisher that has ended would cost
/// what of its last records is still unread, for its host answers with a reset.
const HOLD_AFTER: Duration = Duration::from_millis(400);

/// How many messages are passed on before subscriptions are looked at again.
const BURST: usize = 256;

/// The longest header that is passed on, bytes: several times what one is, for later versions append to it.
const MAX_HEADER_BYTES: usize = 1024;

/// The longest topic of the bus's own, bytes.
const MAX_OWN_TOPIC_BYTES: usize = 128;

/// Where a relay binds.
#[derive(Debug, Clone, Default)]
pub struct RelaySettings {
    /// For publishers.
    pub publish: Vec<String>,
    /// For subscribers.
    pub subscribe: Vec<String>,
    /// The keys of a [`Gatekeeper`](crate::Gatekeeper), if connections are encrypted.
    pub keys: Option<ServerKeys>,
}

/// A bound relay. Belongs to one thread.
pub struct Relay {
    bus: Bus,
    publishers: zmq::Socket,
    subscribers: zmq::Socket,
    subscriptions: Subscriptions,
    metrics: RelayMetrics,
    publish_endpoints: Vec<String>,
    subscribe_endpoints: Vec<String>,
    /// A subscriber's message of many parts is being passed over, and its last part has not come yet.
    skipping: bool,
    full_log: RateLimited,
    ready: Option<Latch>,
    refused_log: RateLimited,
    /// They go after the sockets.
    keys: Option<ServerKeys>,
}

impl Relay {
    /// Binds both sides.
    ///
    /// # Errors
    /// An address that is taken, or that libzmq does not understand.
    pub fn bind(bus: &Bus, settings: &RelaySettings, metrics: &Metrics) -> Result<Relay, BusError> {
        let keys = settings.keys.as_ref();
        let (publishers, subscribers) = (bus.relay_in(keys)?, bus.relay_out(keys)?);
        Ok(Relay {
            bus: bus.clone(),
            subscribe_endpoints: bind_all(&subscribers, &settings.subscribe)?,
            publish_endpoints: bind_all(&publishers, &settings.publish)?,
            publishers,
            subscribers,
            subscriptions: Subscriptions::default(),
            metrics: RelayMetrics::new(metrics),
            skipping: false,
            full_log: RateLimited::default(),
            ready: None,
            refused_log: RateLimited::default(),
            keys: settings.keys.clone(),
        })
    }

    /// The memory that a subscriber that stalls takes, bytes, when every message is a full batch of ordinary records.
    pub const fn ordinary_bytes_per_subscriber() -> u64 {
        SUBSCRIBER_MESSAGES as u64 * sekiwake_record::MAX_BATCH_BYTES as u64
    }

    /// The most memory that a subscriber that stalls can take, bytes: every message is one datagram of the largest size.
    pub const fn worst_bytes_per_subscriber() -> u64 {
        SUBSCRIBER_MESSAGES as u64 * (MAX_MESSAGE_BYTES as u64 + MAX_HEADER_BYTES as u64)
    }

    /// Sets `ready` as soon as data flows: half a second after the start.
    pub fn tell_when_ready(&mut self, ready: Latch) {
        self.ready = Some(ready);
    }

    /// Where publishers connect, with the ports that were really bound.
    pub fn publish_endpoints(&self) -> &[String] {
        &self.publish_endpoints
    }

    /// Where subscribers connect, with the ports that were really bound.
    pub fn subscribe_endpoints(&self) -> &[String] {
        &self.subscribe_endpoints
    }

    /// Relays until the worker is told to stop and publishers have fallen silent, for which they are asked.
    ///
    /// # Errors
    /// A socket failed: the context is gone.
    pub fn run(mut self, worker: &Worker) -> Result<(), BusError> {
        let settled_at = Instant::now() + SETTLE;
        let mut last_message = settled_at;
        let (mut stopped_at, mut holding) = (None, false);
        loop {
            worker.beat();
            let now = Instant::now();
            let settled = now >= settled_at;
            if let Some(ready) = &self.ready {
                ready.set(settled);
            }
            if let Some(deadline) = worker.deadline() {
                let stopped_at = *stopped_at.get_or_insert(now);
                last_message = last_message.max(stopped_at);
                if !holding && now > stopped_at + HOLD_AFTER {
                    holding = true;
                    self.ask_to_hold()?;
                }
                if now.saturating_duration_since(last_message) > QUIET || now >= deadline {
                    break;
                }
            }
            if self.wait(settled)? {
                self.take_subscriptions()?;
            }
            if settled && self.relay_burst()? {
                last_message = now;
            }
        }
        // A subscriber that stalls must not make the process late.
        let remaining = worker.deadline().map_or(QUIET, |end| end.saturating_duration_since(Instant::now()));
        let (closing_at, linger) = (Instant::now(), remaining * 4 / 5);
        self.subscribers.set_linger(milliseconds(linger)).map_err(failed)?;
        // The sockets go first, then the gatekeeper, which has one too; the last clone of the bus waits for what lingers.
        let Relay { bus, publishers, subscribers, keys, .. } = self;
        drop((publishers, subscribers));
        if let Some(keys) = keys {
            keys.release();
        }
        drop(bus);
        if closing_at.elapsed() + LINGER_ACCURACY >= linger {
            warn!(
                linger_ms = milliseconds(linger),
                "subscribers did not take everything within the drain time: records may be lost"
            );
        }
        Ok(())
    }

    /// Waits for something to do and says whether subscriptions wait.
    fn wait(&self, settled: bool) -> Result<bool, BusError> {
        let mut items = [self.subscribers.as_poll_item(zmq::POLLIN), self.publishers.as_poll_item(zmq::POLLIN)];
        let (watched, timeout_ms) = if settled { (&mut items[..], 50) } else { (&mut items[..1], 20) };
        match zmq::poll(watched, timeout_ms) {
            Ok(_) | Err(zmq::Error::EINTR) => Ok(items[0].is_readable()),
            Err(source) => Err(failed(source)),
        }
    }

    /// Passes subscriptions on towards the publishers, so that what nobody wants is not sent here. A bounded number: whoever
    /// floods with them must not keep data waiting.
    fn take_subscriptions(&mut self) -> Result<(), BusError> {
        for _ in 0..SUBSCRIPTION_BURST {
            let message = match self.subscribers.recv_msg(zmq::DONTWAIT) {
                Ok(message) => message,
                Err(zmq::Error::EAGAIN) => break,
                Err(zmq::Error::EINTR) => continue,
                Err(source) => return Err(failed(source)),
            };
            if self.skipping {
                self.skipping = message.get_more();
                continue;
            }
            let change = match message.split_first() {
                Some((&first @ (0 | 1), prefix)) if !message.get_more() => {
                    self.subscriptions.change(first == 1, prefix)
                }
                _ => Change::Refused,
            };
            match change {
                Change::Added | Change::Removed => {
                    let prefix = String::from_utf8_lossy(&message[1..]);
                    debug!(prefix = %prefix.escape_debug(), added = change == Change::Added, "subscription");
                    self.publishers.send(message, 0).map_err(failed)?;
                }
                Change::Unchanged => {}
                Change::Refused => {
                    self.skipping = message.get_more();
                    self.refuse(&message);
                }
            }
        }
        self.metrics.subscriptions.set(self.subscriptions.len() as i64);
        Ok(())
    }

    fn refuse(&self, message: &[u8]) {
        self.metrics.refused_subscriptions.inc();
        if let Some(suppressed) = self.refused_log.allow(Instant::now()) {
            let prefix = String::from_utf8_lossy(message.get(1..).unwrap_or_default());
            warn!(prefix = %prefix.escape_debug(), suppressed, "refused a subscription: subscribers get no such topic");
        }
    }

    fn ask_to_hold(&self) -> Result<(), BusError> {
        for added in [1, 0] {
            let message = [&[added], HOLD_TOPIC].concat();
            self.publishers.send(message, 0).map_err(failed)?;
        }
        Ok(())
    }

    /// Passes on what has come, and says whether anything had.
    fn relay_burst(&mut self) -> Result<bool, BusError> {
        for passed in 0..BURST {
            match self.publishers.recv_msg(zmq::DONTWAIT) {
                Ok(topic) => self.relay(topic)?,
                Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => return Ok(passed > 0),
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(true)
    }

    fn relay(&mut self, topic: zmq::Message) -> Result<(), BusError> {
        let mut parts = [None, None];
        let (mut count, mut more) = (0, topic.get_more());
        while more {
            // The parts of a message arrive together, so this does not wait.
            let part = uninterrupted(|| self.publishers.recv_msg(0)).map_err(failed)?;
            more = part.get_more();
            if let Some(slot) = parts.get_mut(count) {
                *slot = Some(part);
            }
            count += 1;
        }
        match (count, parts) {
            (2, [Some(header), Some(body)]) => self.relay_batch(&topic, header, body),
            (1, [Some(frame), None]) if is_own_topic(&topic) => self.send(&topic, [frame]),
            (1, [Some(frame), None]) if is_event_topic(&topic) && frame.len() <= MAX_EVENT_BYTES => {
                self.send(&topic, [frame])?;
                self.metrics.events.inc();
                Ok(())
            }
            (1, [Some(_), None]) if topic.first() == Some(&b'@') => {
                self.metrics.foreign.inc();
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
            self.metrics.foreign.inc();
            return Ok(());
        };
        // The header alone is enough to count; the body is the subscribers' to check.
        let count = match Header::decode(&header) {
            Ok(decoded) if header.len() <= MAX_HEADER_BYTES => u64::from(decoded.count),
            _ => {
                self.metrics.malformed.inc();
                return Ok(());
            }
        };
        self.metrics.received[topic.kind.index()].inc_by(count);
        self.send(name, [header, body])?;
        self.metrics.passed[topic.kind.index()].inc_by(count);
        Ok(())
    }

    /// Sends to all whose queue has room. libzmq looks for room only when the first part is sent.
    fn send<const N: usize>(&mut self, topic: &[u8], rest: [zmq::Message; N]) -> Result<(), BusError> {
        let first = zmq::DONTWAIT | zmq::SNDMORE;
        match uninterrupted(|| self.subscribers.send(topic, first)) {
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) => {
                self.queue_is_full();
                nodrop(&mut self.subscribers, false).map_err(failed)?;
                let sent = uninterrupted(|| self.subscribers.send(topic, first));
                nodrop(&mut self.subscribers, true).map_err(failed)?;
                sent.map_err(failed)?;
            }
            Err(source) => return Err(failed(source)),
        }
        for (index, part) in rest.into_iter().enumerate() {
            let flags = if index + 1 < N { first } else { zmq::DONTWAIT };
            self.subscribers.send(part, flags).map_err(failed)?;
        }
        Ok(())
    }

    fn queue_is_full(&mut self) {
        self.metrics.queue_full.inc();
        if let Some(suppressed) = self.full_log.allow(Instant::now()) {
            warn!(suppressed, "a subscriber does not keep up: its queue is full, it misses records");
        }
    }
}

/// Whether this is the name of a topic of the bus's own: `@`, parts that are names, and a slash at the end.
fn is_own_topic(topic: &[u8]) -> bool {
    let is_allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'/');
    match topic {
        [b'@', name @ .., b'/'] => topic.len() <= MAX_OWN_TOPIC_BYTES && name.iter().all(is_allowed),
        _ => false,
    }
}

pub(crate) fn bind_all(socket: &zmq::Socket, endpoints: &[String]) -> Result<Vec<String>, BusError> {
    let mut bound = Vec::with_capacity(endpoints.len());
    for endpoint in endpoints {
        socket.bind(endpoint).map_err(|source| BusError::Bind { endpoint: endpoint.clone(), source })?;
        let last = socket.get_last_endpoint().ok().and_then(Result::ok).unwrap_or_else(|| endpoint.clone());
        info!(endpoint = %last, "bound");
        bound.push(last);
    }
    Ok(bound)
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "relay", source }
}
