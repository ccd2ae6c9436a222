//! The subscriber: receives batches, checks them, and counts what never came.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sekiwake_record::{Announcement, Batch, DecodeError, Header, Topic};
use sekiwake_runtime::{Latch, Metrics, RateLimited};
use tracing::{debug, warn};

use crate::{
    BusError, Subscribing, Tracker,
    events::is_event_topic,
    metrics::SubscriberMetrics,
    socket::{Bus, Connections, milliseconds, uninterrupted},
    tracker::MAX_SEQUENCE,
};

/// How often the state of the connection is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(200);
/// Messages after which the clock is looked at, although there are more to read.
const BURST: usize = 64;

/// A part of a received message. Records borrow from it.
#[derive(Debug)]
pub struct Frame(Bytes);

#[derive(Debug)]
enum Bytes {
    /// As the data plane gave it.
    Message(zmq::Message),
    /// Out of a control message: a batch that came again.
    Repeated(Vec<u8>),
}

impl From<zmq::Message> for Frame {
    fn from(message: zmq::Message) -> Frame {
        Frame(Bytes::Message(message))
    }
}

impl From<Vec<u8>> for Frame {
    fn from(bytes: Vec<u8>) -> Frame {
        Frame(Bytes::Repeated(bytes))
    }
}

impl AsRef<[u8]> for Frame {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Message(message) => message,
            Bytes::Repeated(bytes) => bytes,
        }
    }
}

/// A batch that has been checked and holds nothing that came before.
#[derive(Debug)]
pub struct Delivery {
    /// Its topic.
    pub topic: Topic,
    /// The name of the stream that it belongs to.
    pub stream_name: Arc<str>,
    /// The epoch of that stream.
    pub stream_epoch: u64,
    /// The sequence number of the first record in `batch`.
    pub first_sequence: u64,
    /// The records.
    pub batch: Batch<Frame>,
}

/// A subscription to some topics. Belongs to one thread.
pub struct Subscriber {
    socket: zmq::Socket,
    prefixes: Vec<String>,
    tracker: Tracker,
    metrics: SubscriberMetrics,
    connections: Connections,
    connected: Option<Latch>,
    /// Connections within the process are not seen by the watch, and stand as long as the process does.
    in_process: bool,
    watched: Option<Instant>,
    /// Messages received since the clock was looked at.
    burst: usize,
    forgotten: u64,
    loss_log: RateLimited,
}

impl Subscriber {
    /// Subscribes to the topics that begin with one of `prefixes`, from the relays that `from` names. They need not be there
    /// yet. `connected` is set while a connection stands.
    ///
    /// # Errors
    /// Endpoints that libzmq does not understand, or no more sockets.
    pub fn connect(
        bus: &Bus,
        from: &Subscribing,
        prefixes: &[String],
        metrics: &Metrics,
        connected: impl Into<Option<Latch>>,
    ) -> Result<Subscriber, BusError> {
        let Subscribing { endpoints, keys } = from;
        let socket = bus.subscriber(keys.as_ref())?;
        let mut connections = bus.watch(&socket)?;
        let subscribe = |prefix: &[u8]| {
            socket.set_subscribe(prefix).map_err(|source| BusError::Socket { role: "subscriber", source })
        };
        subscribe(Announcement::TOPIC_PREFIX.as_bytes())?;
        prefixes.iter().try_for_each(|prefix| subscribe(prefix.as_bytes()))?;
        connections.connect(&socket, endpoints)?;
        socket.set_rcvtimeo(0).map_err(|source| BusError::Socket { role: "subscriber", source })?;
        Ok(Subscriber {
            socket,
            prefixes: prefixes.to_vec(),
            tracker: Tracker::default(),
            metrics: SubscriberMetrics::new(metrics),
            connections,
            connected: connected.into(),
            in_process: endpoints.iter().any(|endpoint| endpoint.starts_with("inproc:")),
            watched: None,
            burst: 0,
            forgotten: 0,
            loss_log: RateLimited::default(),
        })
    }

    /// The next batch, or `None` when none has come within `timeout`. Malformed messages are counted and passed over.
    ///
    /// # Errors
    /// The socket failed: the context is gone.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Delivery>, BusError> {
        let mut waited = false;
        // Time is looked at only where there is time, or where a flood of messages that give nothing would take all of it.
        let mut started = None;
        loop {
            match self.socket.recv_msg(zmq::DONTWAIT) {
                Ok(topic) => {
                    let delivery = self.message(topic)?;
                    if self.burst == BURST {
                        self.burst = 0;
                        self.watch();
                        let now = Instant::now();
                        waited |= now.duration_since(*started.get_or_insert(now)) >= timeout;
                    }
                    self.burst += 1;
                    if waited || delivery.is_some() {
                        return Ok(delivery);
                    }
                }
                Err(zmq::Error::EAGAIN) if waited => return Ok(None),
                Err(zmq::Error::EAGAIN) => {
                    self.watch();
                    let polled = self.socket.poll(zmq::POLLIN, i64::from(milliseconds(timeout)));
                    match polled {
                        Ok(_) | Err(zmq::Error::EINTR) => waited = true,
                        Err(source) => return Err(BusError::Io { role: "subscriber", source }),
                    }
                }
                Err(zmq::Error::EINTR) => {}
                Err(source) => return Err(BusError::Io { role: "subscriber", source }),
            }
        }
    }

    fn message(&mut self, topic: zmq::Message) -> Result<Option<Delivery>, BusError> {
        let mut parts = [None, None];
        let mut more = topic.get_more();
        let mut count = 0;
        while more {
            // The parts of a message arrive together, so this does not wait.
            let part = uninterrupted(|| self.socket.recv_msg(0));
            let part = part.map_err(|source| BusError::Io { role: "subscriber", source })?;
            more = part.get_more();
            if let Some(slot) = parts.get_mut(count) {
                *slot = Some(part);
            }
            count += 1;
        }
        let delivery = match (Topic::parse(&topic), parts) {
            (Some(topic), [Some(header), Some(body)]) if count == 2 => self.batch(topic, &header, body),
            (None, [Some(frame), None]) if topic.starts_with(Announcement::TOPIC_PREFIX.as_bytes()) => {
                Announcement::decode(&frame).and_then(|announcement| self.announced(&announcement)).map(|()| None)
            }
            // Who subscribes to everything gets these too.
            (None, _) if count == 1 && is_event_topic(&topic) => Ok(None),
            _ => Err(DecodeError::Malformed { part: "message", reason: format!("{count} parts after the topic") }),
        };
        Ok(delivery.unwrap_or_else(|error| {
            self.metrics.malformed.inc();
            debug!(%error, topic = %String::from_utf8_lossy(&topic).escape_debug(), "refused a message");
            None
        }))
    }

    fn batch(&mut self, topic: Topic, header: &[u8], body: zmq::Message) -> Result<Option<Delivery>, DecodeError> {
        let header = Header::decode(header)?;
        believable(header.next_sequence(), "header")?;
        let mut batch = Batch::decode(&header, Frame::from(body))?;
        let seen = self.tracker.observe(topic, &header);
        let kind = topic.kind.index();
        self.metrics.lost[kind].inc_by(seen.missing);
        self.metrics.repeated[kind].inc_by(u64::from(seen.repeated));
        self.metrics.received[kind].inc_by(u64::from(header.count - seen.repeated));
        if seen.missing > 0 {
            self.report_loss(header.stream_name, seen.missing);
        }
        if seen.repeated == header.count {
            return Ok(None);
        }
        batch.drop_first(seen.repeated as usize);
        self.metrics.lag_seconds.set(age_seconds(header.last_captured_at_ns));
        Ok(Some(Delivery {
            topic,
            stream_name: seen.stream_name,
            stream_epoch: header.stream_epoch,
            first_sequence: header.first_sequence + u64::from(seen.repeated),
            batch,
        }))
    }

    fn announced(&mut self, announcement: &Announcement) -> Result<(), DecodeError> {
        for position in &announcement.positions {
            believable(position.next_sequence, "announcement")?;
        }
        let prefixes = &self.prefixes;
        let subscribed = |topic: Topic| prefixes.iter().any(|prefix| topic.as_str().starts_with(prefix));
        let missing = self.tracker.announced(announcement, subscribed);
        self.metrics.streams.set(self.tracker.streams() as i64);
        for (counter, missing) in self.metrics.lost.iter().zip(missing) {
            counter.inc_by(missing);
        }
        let total: u64 = missing.iter().sum();
        if total > 0 {
            self.report_loss(&announcement.stream_name, total);
        }
        if announcement.ended {
            debug!(stream = %announcement.stream_name, "a stream has ended");
        }
        Ok(())
    }

    fn report_loss(&self, stream: &str, records: u64) {
        if let Some(suppressed) = self.loss_log.allow(Instant::now()) {
            warn!(%stream, records, suppressed, "records were published and never came");
        }
    }

    fn watch(&mut self) {
        let now = Instant::now();
        if self.watched.is_some_and(|watched| now.duration_since(watched) < WATCH_EVERY) {
            return;
        }
        self.watched = Some(now);
        let connected = self.in_process || self.connections.stand(&self.socket);
        if let Some(latch) = &self.connected {
            latch.set(connected);
        }
        self.metrics.connected.set(i64::from(connected));
        self.metrics.streams.set(self.tracker.streams() as i64);
        self.metrics.forgotten.inc_by(self.tracker.forgotten() - self.forgotten);
        self.forgotten = self.tracker.forgotten();
    }
}

/// Refuses sequence numbers that no stream reaches.
pub(crate) fn believable(next_sequence: u64, part: &'static str) -> Result<(), DecodeError> {
    match next_sequence {
        0..=MAX_SEQUENCE => Ok(()),
        _ => Err(DecodeError::Malformed { part, reason: format!("sequence number {next_sequence} is beyond belief") }),
    }
}

/// Now less a capture time, seconds; 0 for a time in the future.
pub(crate) fn age_seconds(captured_at_ns: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(captured_at_ns)).as_secs_f64()
}
