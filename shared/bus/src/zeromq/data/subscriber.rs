//! The subscriber: receives batches, checks them, and counts missing records.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use sekiwake_group::Tracker;
use sekiwake_record::{Announcement, Batch, DecodeError, Header, Kind, Topic};
use sekiwake_runtime::{Latch, Metrics, RateLimited};
use tracing::{debug, warn};

use crate::{
    BusError, Delivery, Frame, MissingRecent, Source, Subscribing,
    events::is_event_topic,
    metrics::SubscriberMetrics,
    reading::{age_seconds, check_sequence},
    status::is_status_topic,
    zeromq::{
        Endpoints,
        connections::{Connections, Side},
        inlet::{Inlet, wait},
        socket::{Context, Rest, receive_rest},
    },
};

/// How often the state of the connection is checked.
const POLL_CONNECTION_EVERY: Duration = Duration::from_millis(200);
/// Messages after which the clock is read, even if there are more.
const BURST: usize = 64;
/// The most announcements that are kept: one per stream.
const MAX_ANNOUNCEMENTS: usize = 256;

/// A subscription to some topics. Belongs to one thread.
pub struct Subscriber {
    socket: Inlet,
    prefixes: Vec<String>,
    tracker: Tracker,
    metrics: SubscriberMetrics,
    connections: Connections,
    connected: Option<Latch>,
    /// In-process connections do not appear in `connections`, and last as long as the process.
    in_process: bool,
    polled_at: Option<Instant>,
    /// Messages received since the clock was read.
    burst: usize,
    forgotten: u64,
    loss_log: RateLimited,
    /// Announcements that were received, for a reader that requests what is missing and counts
    /// losses itself; `None` for any other.
    announcements: Option<VecDeque<Announcement>>,
}

impl Subscriber {
    /// Subscribes to the topics that begin with one of `prefixes`, at the relays in `from`, which
    /// may be started later. `connected` is set while a connection is established.
    ///
    /// # Errors
    /// Invalid endpoints, or too many sockets.
    pub fn connect(
        context: &Context,
        from: &Subscribing,
        prefixes: &[String],
        metrics: &Metrics,
        connected: impl Into<Option<Latch>>,
    ) -> Result<Subscriber, BusError> {
        let Endpoints { endpoints, keys } = &from.zeromq;
        let socket = context.subscriber(keys.as_ref())?;
        let mut connections = context.watch(&socket, Side::Subscribe)?;
        let subscribe = |prefix: &[u8]| {
            socket
                .set_subscribe(prefix)
                .map_err(|source| BusError::Socket { role: "subscriber", source: source.into() })
        };
        subscribe(Announcement::TOPIC_PREFIX.as_bytes())?;
        prefixes.iter().try_for_each(|prefix| subscribe(prefix.as_bytes()))?;
        connections.connect(&socket, endpoints)?;
        socket.set_rcvtimeo(0).map_err(|source| BusError::Socket { role: "subscriber", source: source.into() })?;
        Ok(Subscriber {
            socket: Inlet::new(socket),
            prefixes: prefixes.to_vec(),
            tracker: Tracker::default(),
            metrics: SubscriberMetrics::new(metrics),
            connections,
            connected: connected.into(),
            in_process: from.zeromq.is_in_process(),
            polled_at: None,
            burst: 0,
            forgotten: 0,
            loss_log: RateLimited::default(),
            announcements: None,
        })
    }

    fn message(&mut self, topic: zmq::Message) -> Result<Option<Delivery>, BusError> {
        let Rest { count, parts } = receive_rest(self.socket.socket(), &topic).map_err(failed)?;
        let delivery = match (Topic::parse(&topic), parts) {
            (Some(topic), [Some(header), Some(body)]) if count == 2 => self.batch(topic, &header, body),
            (None, [Some(frame), None]) if topic.starts_with(Announcement::TOPIC_PREFIX.as_bytes()) => {
                Announcement::decode(&frame).and_then(|announcement| self.announced(announcement)).map(|()| None)
            }
            // The empty prefix selects events and status too.
            (None, _) if count == 1 && (is_event_topic(&topic) || is_status_topic(&topic)) => Ok(None),
            _ => Err(DecodeError::Malformed { part: "message", reason: format!("{count} parts after the topic") }),
        };
        Ok(delivery.unwrap_or_else(|error| {
            self.metrics.malformed.inc();
            debug!(%error, topic = %String::from_utf8_lossy(&topic).escape_debug(), "message rejected");
            None
        }))
    }

    fn batch(&mut self, topic: Topic, header: &[u8], body: zmq::Message) -> Result<Option<Delivery>, DecodeError> {
        let header = Header::decode(header)?;
        check_sequence(header.next_sequence(), "header")?;
        let mut batch = Batch::decode(Frame::from(body), header.count)?;
        let seen = self.tracker.observe(topic, &header);
        let kind = topic.kind.index();
        let missing = if self.announcements.is_some() { 0 } else { seen.missing };
        self.metrics.lost[kind].inc_by(missing);
        self.metrics.duplicates[kind].inc_by(u64::from(seen.duplicates));
        self.metrics.received[kind].inc_by(u64::from(header.count - seen.duplicates));
        if missing > 0 {
            self.report_loss(header.stream_name, missing);
        }
        if seen.duplicates == header.count {
            return Ok(None);
        }
        batch.drop_first(seen.duplicates as usize);
        self.metrics.received_age_seconds.set(age_seconds(header.last_captured_at_ns));
        Ok(Some(Delivery {
            topic,
            stream_name: seen.stream_name,
            stream_epoch: header.stream_epoch,
            first_sequence: header.first_sequence + u64::from(seen.duplicates),
            batch,
            is_retransmitted: false,
        }))
    }

    fn announced(&mut self, announcement: Announcement) -> Result<(), DecodeError> {
        for position in &announcement.positions {
            check_sequence(position.next_sequence, "announcement")?;
        }
        let prefixes = &self.prefixes;
        let subscribed = |topic: Topic| prefixes.iter().any(|prefix| topic.as_str().starts_with(prefix));
        let missing = self.tracker.announced(&announcement, subscribed);
        self.metrics.streams.set(self.tracker.streams() as i64);
        if let Some(announcements) = &mut self.announcements {
            // The next one of the stream says at least as much.
            if announcements.len() >= MAX_ANNOUNCEMENTS {
                announcements.pop_front();
            }
            announcements.push_back(announcement);
            return Ok(());
        }
        for (counter, missing) in self.metrics.lost.iter().zip(missing) {
            counter.inc_by(missing);
        }
        let total: u64 = missing.iter().sum();
        if total > 0 {
            self.report_loss(&announcement.stream_name, total);
        }
        if announcement.ended {
            debug!(stream = %announcement.stream_name, "stream ended");
        }
        Ok(())
    }

    /// From now on, announcements are kept for [`Subscriber::next_announcement`], and lost records
    /// are not counted.
    pub(crate) fn keep_announcements(&mut self) {
        self.announcements = Some(VecDeque::new());
    }

    /// Lost records are counted again.
    pub(crate) fn count_losses(&mut self) {
        self.announcements = None;
    }

    /// The next announcement received before the last delivery.
    pub(crate) fn next_announcement(&mut self) -> Option<Announcement> {
        self.announcements.as_mut()?.pop_front()
    }

    /// Counts and logs records that were lost meanwhile.
    pub(crate) fn lost(&self, lost: [u64; Kind::ALL.len()]) {
        for (counter, lost) in self.metrics.lost.iter().zip(lost) {
            counter.inc_by(lost);
        }
        let records: u64 = lost.iter().sum();
        if records > 0
            && let Some(suppressed) = self.loss_log.allow(Instant::now())
        {
            warn!(records, suppressed, "records lost: published, neither received nor retained");
        }
    }

    /// Counts a retransmitted batch that cannot be decoded.
    pub(crate) fn count_malformed(&self) {
        self.metrics.malformed.inc();
    }

    pub(crate) fn inlet(&mut self) -> &mut Inlet {
        &mut self.socket
    }

    fn report_loss(&self, stream: &str, records: u64) {
        if let Some(suppressed) = self.loss_log.allow(Instant::now()) {
            warn!(%stream, records, suppressed, "records lost: published but not received");
        }
    }

    fn poll_connection(&mut self) {
        let now = Instant::now();
        if self.polled_at.is_some_and(|at| now.duration_since(at) < POLL_CONNECTION_EVERY) {
            return;
        }
        self.polled_at = Some(now);
        let is_connected = self.in_process || self.connections.follow(&mut self.socket);
        if let Some(latch) = &self.connected {
            latch.set(is_connected);
        }
        self.metrics.connected.set(i64::from(is_connected));
        self.metrics.streams.set(self.tracker.streams() as i64);
        self.metrics.forgotten.inc_by(self.tracker.forgotten() - self.forgotten);
        self.forgotten = self.tracker.forgotten();
    }
}

impl Source for Subscriber {
    fn receive(&mut self, timeout: Duration) -> Result<Option<Delivery>, BusError> {
        let mut waited = false;
        // The clock is read only when the socket is idle, or once per burst, so that a flood of
        // messages without records cannot exceed the timeout.
        let mut started = None;
        loop {
            match self.socket.receive().map_err(failed)? {
                Some(topic) => {
                    let delivery = self.message(topic)?;
                    if self.burst == BURST {
                        self.burst = 0;
                        // While there are always messages, nobody waits for these.
                        self.connections.events().ask_again();
                        self.poll_connection();
                        let now = Instant::now();
                        waited |= now.duration_since(*started.get_or_insert(now)) >= timeout;
                    }
                    self.burst += 1;
                    if waited || delivery.is_some() {
                        return Ok(delivery);
                    }
                }
                None if waited => return Ok(None),
                None => {
                    self.poll_connection();
                    wait([&mut self.socket], [self.connections.events()], timeout).map_err(failed)?;
                    waited = true;
                }
            }
        }
    }

    fn next_missing(&mut self) -> Option<MissingRecent> {
        None
    }

    fn since_ns(&self) -> u64 {
        0
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "subscriber", source: source.into() }
}
