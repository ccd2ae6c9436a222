//! The subscriber: receives batches, checks them, and counts what never came.

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sekiwake_record::{Announcement, Batch, DecodeError, Header, Topic};
use sekiwake_runtime::{Latch, Metrics};
use tracing::{debug, warn};

use crate::{
    BusError, Tracker,
    metrics::SubscriberMetrics,
    socket::{Bus, Connections},
};

/// How often the state of the connection is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// A part of a received message. Records borrow from it.
#[derive(Debug)]
pub struct Frame(zmq::Message);

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.0
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
    forgotten: u64,
}

impl Subscriber {
    /// Subscribes to the topics that begin with one of `prefixes`, from the relays at `endpoints`. They need not be there
    /// yet. `connected` is set while a connection stands.
    ///
    /// # Errors
    /// Endpoints that libzmq does not understand, or no more sockets.
    pub fn connect(
        bus: &Bus,
        endpoints: &[String],
        prefixes: &[String],
        metrics: &Metrics,
        connected: impl Into<Option<Latch>>,
    ) -> Result<Subscriber, BusError> {
        let socket = bus.subscriber()?;
        let connections = bus.watch(&socket)?;
        let subscribe = |prefix: &[u8]| {
            socket.set_subscribe(prefix).map_err(|source| BusError::Socket { role: "subscriber", source })
        };
        subscribe(Announcement::TOPIC_PREFIX.as_bytes())?;
        prefixes.iter().try_for_each(|prefix| subscribe(prefix.as_bytes()))?;
        for endpoint in endpoints {
            let connect = socket.connect(endpoint);
            connect.map_err(|source| BusError::Connect { endpoint: endpoint.clone(), source })?;
        }
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
            forgotten: 0,
        })
    }

    /// The next batch, or `None` when none has come within `timeout`. Malformed messages are counted and passed over.
    ///
    /// # Errors
    /// The socket failed: the context is gone.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<Delivery>, BusError> {
        let mut waited = false;
        loop {
            match self.socket.recv_msg(zmq::DONTWAIT) {
                Ok(topic) => {
                    if let Some(delivery) = self.message(topic)? {
                        return Ok(Some(delivery));
                    }
                }
                Err(zmq::Error::EAGAIN) if waited => return Ok(None),
                Err(zmq::Error::EAGAIN) => {
                    self.watch();
                    let polled = self.socket.poll(zmq::POLLIN, i64::from(crate::socket::milliseconds(timeout)));
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
            let part = self.socket.recv_msg(0).map_err(|source| BusError::Io { role: "subscriber", source })?;
            more = part.get_more();
            if let Some(slot) = parts.get_mut(count) {
                *slot = Some(part);
            }
            count += 1;
        }
        let delivery = match (Topic::parse(&topic), parts) {
            (Some(topic), [Some(header), Some(body)]) if count == 2 => self.batch(topic, &header, body).map(Some),
            (None, [Some(frame), None]) if topic.starts_with(Announcement::TOPIC_PREFIX.as_bytes()) => {
                Announcement::decode(&frame).map(|announcement| {
                    self.announced(&announcement);
                    None
                })
            }
            _ => Err(DecodeError::Malformed { part: "message", reason: format!("{count} parts after the topic") }),
        };
        Ok(delivery.unwrap_or_else(|error| {
            self.metrics.malformed.inc();
            debug!(%error, topic = %String::from_utf8_lossy(&topic).escape_debug(), "refused a message");
            None
        }))
        .map(|delivery: Option<Option<Delivery>>| delivery.flatten())
    }

    fn batch(&mut self, topic: Topic, header: &[u8], body: zmq::Message) -> Result<Option<Delivery>, DecodeError> {
        let header = Header::decode(header)?;
        let mut batch = Batch::decode(&header, Frame(body))?;
        let seen = self.tracker.observe(topic, &header);
        let kind = topic.kind.index();
        self.metrics.lost[kind].inc_by(seen.missing);
        self.metrics.repeated[kind].inc_by(u64::from(seen.repeated));
        self.metrics.received[kind].inc_by(u64::from(header.count - seen.repeated));
        if seen.missing > 0 {
            self.report_loss(header.stream_name, topic, seen.missing);
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

    fn announced(&mut self, announcement: &Announcement) {
        let prefixes = &self.prefixes;
        let subscribed = |topic: Topic| prefixes.iter().any(|prefix| topic.as_str().starts_with(prefix));
        let missing = self.tracker.announced(announcement, subscribed);
        for (counter, missing) in self.metrics.lost.iter().zip(missing) {
            counter.inc_by(missing);
        }
        let total: u64 = missing.iter().sum();
        if total > 0 {
            warn!(stream = %announcement.stream_name, records = total, "records were published and never came");
        }
        if announcement.ended {
            debug!(stream = %announcement.stream_name, "a stream has ended");
        }
    }

    fn report_loss(&self, stream: &str, topic: Topic, records: u64) {
        warn!(%stream, %topic, records, "records were published and never came");
    }

    fn watch(&mut self) {
        let now = Instant::now();
        if self.watched.is_some_and(|watched| now.duration_since(watched) < WATCH_EVERY) {
            return;
        }
        self.watched = Some(now);
        let connected = self.in_process || self.connections.count() > 0;
        if let Some(latch) = &self.connected {
            latch.set(connected);
        }
        self.metrics.connected.set(i64::from(connected));
        self.metrics.streams.set(self.tracker.streams() as i64);
        self.metrics.forgotten.inc_by(self.tracker.forgotten() - self.forgotten);
        self.forgotten = self.tracker.forgotten();
    }
}

/// Now less a capture time, seconds; 0 for a time in the future.
fn age_seconds(captured_at_ns: u64) -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(captured_at_ns)).as_secs_f64()
}
