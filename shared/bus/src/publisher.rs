//! The publisher: one thread that is the one writer of a stream. It numbers records, sends them, and says where it stands.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded};
use sekiwake_record::{Announcement, ClosedBatch, Header, Kind, Name, Topic, TopicPosition};
use sekiwake_runtime::{Latch, Metrics, Worker};
use tracing::{info, warn};

use crate::{
    BusError, ClientKeys,
    batcher::Outbound,
    metrics::PublisherMetrics,
    refusals::{Handover, Refusals},
    socket::{Bus, Connections, HOLD_TOPIC, LINGER_ACCURACY, SUBSCRIPTION_BURST, milliseconds, uninterrupted},
    subscriptions::{Change, Subscriptions},
};

/// How often a stream says where it stands.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// How often the state of the connection is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(200);
/// How soon a batch that the bus had no room for is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(1);
/// Hand-overs from capture threads that may wait for the writer. Each is what one tick, or one ring block, gave: 256 KiB.
const HANDOVERS: usize = 256;
/// How long a publisher that was asked to hold waits for a new connection before it goes on over the old one.
const HOLD_AT_MOST: Duration = Duration::from_secs(30);

/// How long a publisher whose producers are gone takes to bring out the rest, where nobody set a deadline.
const CLOSE_AT_MOST: Duration = Duration::from_secs(10);

/// What a producer does when the publisher can take no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// Drop and count: a wire does not wait.
    Drop,
    /// Wait: a file does.
    Wait,
}

/// Settings of a [`Publisher`].
#[derive(Clone, Debug)]
pub struct PublisherSettings {
    /// The stream's name.
    pub name: Name,
    /// The relays to publish to.
    pub endpoints: Vec<String>,
    /// The keys to them, if connections are encrypted.
    pub keys: Option<ClientKeys>,
    /// The most bytes of batches that wait here while the bus takes no more; one batch may go over it.
    pub hold_bytes: usize,
    /// What happens past that.
    pub overflow: Overflow,
}

/// The capture threads' end: batches go in without numbers.
#[derive(Clone)]
pub struct Producer {
    handovers: Sender<Handover>,
    buffers: Receiver<Vec<u8>>,
    overflow: Overflow,
    refusals: Arc<Refusals>,
}

impl Producer {
    /// Hands batches to the writer. Where it does not keep up they are dropped and counted, or waited with, as
    /// [`Overflow`] says; once it has ended they are dropped and counted in any case. Gives the number of records that were
    /// dropped.
    pub fn offer(&self, batches: Vec<Outbound>) -> u64 {
        if batches.is_empty() {
            return 0;
        }
        let handover = Handover::new(batches, &self.refusals);
        let refused = match self.overflow {
            Overflow::Wait => self.handovers.send(handover).err().map(|refused| refused.0),
            Overflow::Drop => match self.handovers.try_send(handover) {
                Ok(()) => None,
                Err(TrySendError::Full(handover) | TrySendError::Disconnected(handover)) => Some(handover),
            },
        };
        refused.map_or(0, |handover| handover.records())
    }

    /// A buffer that has done its work and may be used for another batch.
    pub fn recycled(&self) -> Option<Vec<u8>> {
        self.buffers.try_recv().ok()
    }
}

/// Tells those who wait for a subscriber that there is one.
#[derive(Clone, Default)]
pub struct SubscriptionWatch {
    state: Arc<(Mutex<Option<Instant>>, Condvar)>,
}

impl SubscriptionWatch {
    /// Waits until somebody has subscribed to data and nobody else has followed for `quiet`, at most `limit`. Says whether
    /// there is a subscriber. `give_up` is asked now and then.
    pub fn wait(&self, limit: Duration, quiet: Duration, give_up: impl Fn() -> bool) -> bool {
        let end = Instant::now() + limit;
        let (newest, changed) = &*self.state;
        let mut newest = newest.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            if newest.is_some_and(|newest| now.duration_since(newest) >= quiet) || now >= end || give_up() {
                return newest.is_some();
            }
            let pause = Duration::from_millis(20).min(end - now);
            newest = changed.wait_timeout(newest, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn subscribed(&self) {
        let (newest, changed) = &*self.state;
        *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        changed.notify_all();
    }
}

/// The one writer of a stream. Its thread calls [`Publisher::run`].
pub struct Publisher {
    bus: Bus,
    socket: zmq::Socket,
    connections: Connections,
    connected: Latch,
    in_process: bool,
    held: Option<Held>,
    hold_bytes: usize,
    overflow: Overflow,
    handovers: Receiver<Handover>,
    refusals: Arc<Refusals>,
    buffers: Sender<Vec<u8>>,
    subscriptions: Subscriptions,
    /// Subscriptions may be left to read.
    more_subscriptions: bool,
    watch: SubscriptionWatch,
    numbers: Numbers,
    announcement_topic: String,
    /// Batches that have their numbers and wait for room, oldest first.
    waiting: VecDeque<Numbered>,
    waiting_bytes: usize,
    waiting_records: u64,
    header: Vec<u8>,
    outcome: Outcome,
    metrics: PublisherMetrics,
}

/// The relay has asked to hold: it is about to go.
#[derive(Clone, Copy)]
struct Held {
    /// Connections that had been made by then: with the next one it goes on.
    established: u64,
    until: Instant,
}

/// What a publisher has done in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Records that it was given.
    pub offered: u64,
    /// Records among them that did not get onto the bus: nobody wanted them, or there was no room.
    pub unpublished: u64,
    /// Whether the time to close ran out before the bus had taken everything: of the published records, some of the last may
    /// be lost. Never known where the socket's context is shared with others in the process.
    pub cut_short: bool,
}

struct Numbered {
    topic: Topic,
    first_sequence: u64,
    batch: ClosedBatch,
}

impl Numbered {
    /// What it costs while it waits, bytes.
    fn memory(&self) -> usize {
        self.batch.body.capacity() + size_of::<Numbered>()
    }
}

/// The stream's identity and what its next sequence numbers are.
struct Numbers {
    name: Name,
    epoch: u64,
    next: Vec<u64>,
}

impl Publisher {
    /// A new stream, connected to the relays (which need not be there yet), and the handle that feeds it. `connected` is set
    /// while a connection stands.
    ///
    /// # Errors
    /// Endpoints that libzmq does not understand, no more sockets, or no random numbers.
    pub fn new(
        bus: &Bus,
        settings: PublisherSettings,
        metrics: &Metrics,
        connected: Latch,
    ) -> Result<(Publisher, Producer), BusError> {
        let socket = bus.publisher(settings.keys.as_ref())?;
        let mut connections = bus.watch(&socket)?;
        connections.connect(&socket, &settings.endpoints)?;
        let epoch = getrandom::u64().map_err(BusError::Random)?;
        let metrics = PublisherMetrics::new(metrics);
        let refusals = Arc::new(Refusals::new(metrics.bus_full.clone()));
        let (handovers_in, handovers) = bounded(HANDOVERS);
        let (buffers, buffers_out) = bounded(Topic::COUNT);
        let producer = Producer {
            handovers: handovers_in,
            buffers: buffers_out,
            overflow: settings.overflow,
            refusals: Arc::clone(&refusals),
        };
        let publisher = Publisher {
            bus: bus.clone(),
            socket,
            connections,
            connected,
            in_process: settings.endpoints.iter().any(|endpoint| endpoint.starts_with("inproc:")),
            held: None,
            hold_bytes: settings.hold_bytes,
            overflow: settings.overflow,
            handovers,
            refusals,
            buffers,
            subscriptions: Subscriptions::default(),
            more_subscriptions: false,
            watch: SubscriptionWatch::default(),
            announcement_topic: Announcement::topic(&settings.name),
            numbers: Numbers { name: settings.name, epoch, next: vec![0; Topic::COUNT] },
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_records: 0,
            header: Vec::with_capacity(128),
            outcome: Outcome::default(),
            metrics,
        };
        Ok((publisher, producer))
    }

    /// For those who wait for a subscriber before they publish.
    pub fn subscription_watch(&self) -> SubscriptionWatch {
        self.watch.clone()
    }

    /// Publishes until every [`Producer`] is gone; then sends what waits, within the worker's deadline, and says that the
    /// stream has ended.
    ///
    /// # Errors
    /// The socket failed: the context is gone.
    pub fn run(mut self, worker: &Worker) -> Result<Outcome, BusError> {
        let (name, epoch) = (&self.numbers.name, self.numbers.epoch);
        info!(stream = %name, epoch, "publishing");
        let (mut announce_at, mut watch_at) = (Instant::now(), Instant::now());
        loop {
            worker.beat();
            let open = self.take(worker)?;
            let now = Instant::now();
            self.send_waiting()?;
            let asked = self.take_subscriptions(now)?;
            if asked || now >= announce_at {
                self.announce(false)?;
                announce_at = now + ANNOUNCE_EVERY;
            }
            if now >= watch_at || self.held.is_some() {
                self.watch_connection(now);
                watch_at = now + WATCH_EVERY;
            }
            if !open && (self.waiting.is_empty() || worker.deadline().is_some_and(|end| now >= end)) {
                return self.close(worker);
            }
        }
    }

    /// Takes what producers hand over, or waits for it a moment. Says whether there are producers left.
    fn take(&mut self, worker: &Worker) -> Result<bool, BusError> {
        let pause = match self.waiting.is_empty() {
            _ if self.more_subscriptions => Duration::ZERO,
            true => Duration::from_millis(50),
            false => RETRY_AFTER,
        };
        if self.is_full() {
            // The producers wait in turn; only when told to stop is the file not read to its end.
            std::thread::park_timeout(pause);
            return Ok(!worker.stopping());
        }
        match self.handovers.recv_timeout(pause) {
            Ok(handover) => self.publish(handover)?,
            Err(RecvTimeoutError::Timeout) => return Ok(true),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
        // What else is there already goes along, but not for ever: subscriptions and announcements want their turn.
        for _ in 0..HANDOVERS {
            if self.is_full() {
                break;
            }
            match self.handovers.try_recv() {
                Ok(handover) => self.publish(handover)?,
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether producers have to wait.
    fn is_full(&self) -> bool {
        self.overflow == Overflow::Wait && self.waiting_bytes >= self.hold_bytes
    }

    fn publish(&mut self, handover: Handover) -> Result<(), BusError> {
        for (topic, batch) in handover.take() {
            let refused = self.refusals.take(topic);
            let numbered = Numbered { topic, first_sequence: self.numbers.take(topic, refused, batch.count), batch };
            let (kind, count) = (topic.kind.index(), u64::from(numbered.batch.count));
            self.outcome.offered += count;
            if !self.subscriptions.wants(topic) {
                self.metrics.no_subscriber[kind].inc_by(count);
                self.outcome.unpublished += count;
                self.recycle(numbered.batch.body);
            } else if self.waiting.is_empty() && self.held.is_none() && self.send(&numbered)? {
                self.recycle(numbered.batch.body);
            } else if self.waiting_bytes < self.hold_bytes {
                self.keep(numbered);
            } else {
                self.metrics.bus_full[kind].inc_by(count);
                self.outcome.unpublished += count;
                self.recycle(numbered.batch.body);
            }
        }
        Ok(())
    }

    /// Lets a batch wait. Its buffer is one for a full batch; where the batch is small it waits in one of its own size.
    fn keep(&mut self, mut numbered: Numbered) {
        let body = &mut numbered.batch.body;
        if body.len() < body.capacity() / 2 {
            let large = std::mem::take(body);
            body.extend_from_slice(&large);
            self.recycle(large);
        }
        self.waiting_bytes += numbered.memory();
        self.waiting_records += u64::from(numbered.batch.count);
        self.waiting.push_back(numbered);
    }

    /// Sends what waits, as far as there is room.
    fn send_waiting(&mut self) -> Result<(), BusError> {
        while self.held.is_none()
            && let Some(numbered) = self.waiting.pop_front()
        {
            if !self.send(&numbered)? {
                self.waiting.push_front(numbered);
                break;
            }
            self.waiting_bytes -= numbered.memory();
            self.waiting_records -= u64::from(numbered.batch.count);
            self.recycle(numbered.batch.body);
        }
        self.metrics.waiting_bytes.set(self.waiting_bytes as i64);
        self.metrics.waiting_records.set(self.waiting_records as i64);
        Ok(())
    }

    /// Sends one batch, unless there is no room: then it says `false` and nothing has been sent.
    fn send(&mut self, numbered: &Numbered) -> Result<bool, BusError> {
        let Numbered { topic, first_sequence, batch } = numbered;
        let header = Header {
            stream_name: self.numbers.name.as_str(),
            stream_epoch: self.numbers.epoch,
            first_sequence: *first_sequence,
            count: batch.count,
            first_captured_at_ns: batch.first_captured_at_ns,
            last_captured_at_ns: batch.last_captured_at_ns,
        };
        header.encode(&mut self.header);
        if !self.send_parts(topic.as_str(), &[&self.header, &batch.body])? {
            return Ok(false);
        }
        let kind = topic.kind.index();
        self.metrics.records[kind].inc_by(u64::from(batch.count));
        self.metrics.batches[kind].inc();
        self.metrics.bytes[kind].inc_by(batch.body.len() as u64);
        Ok(true)
    }

    fn send_parts(&self, topic: &str, rest: &[&[u8]]) -> Result<bool, BusError> {
        match uninterrupted(|| self.socket.send(topic, zmq::DONTWAIT | zmq::SNDMORE)) {
            Ok(()) => {}
            Err(zmq::Error::EAGAIN) => return Ok(false),
            Err(source) => return Err(failed(source)),
        }
        // libzmq looks for room only when the first part is sent.
        for (index, part) in rest.iter().enumerate() {
            let more = if index + 1 < rest.len() { zmq::SNDMORE } else { 0 };
            uninterrupted(|| self.socket.send(*part, zmq::DONTWAIT | more)).map_err(failed)?;
        }
        Ok(true)
    }

    /// Says where the stream stands, behind the data that this speaks of: never while batches wait. Whether it was said.
    fn announce(&mut self, ended: bool) -> Result<bool, BusError> {
        if !self.waiting.is_empty() || (self.held.is_some() && !ended) {
            return Ok(false);
        }
        for topic in Topic::all() {
            self.numbers.take(topic, self.refusals.take(topic), 0);
        }
        let mut frame = Vec::new();
        self.numbers.announcement(ended).encode(&mut frame);
        self.send_parts(&self.announcement_topic, &[&frame])
    }

    /// Reads who wants what, and says whether somebody new wants announcements. A bounded number, so that data has its turn.
    fn take_subscriptions(&mut self, now: Instant) -> Result<bool, BusError> {
        let (mut asked, mut changed) = (false, false);
        self.more_subscriptions = true;
        for _ in 0..SUBSCRIPTION_BURST {
            let message = match self.socket.recv_msg(zmq::DONTWAIT) {
                Ok(message) => message,
                Err(zmq::Error::EAGAIN) => {
                    self.more_subscriptions = false;
                    break;
                }
                Err(zmq::Error::EINTR) => continue,
                Err(source) => return Err(failed(source)),
            };
            let Some((&first @ (0 | 1), prefix)) = message.split_first() else { continue };
            if prefix == HOLD_TOPIC {
                if first == 1 {
                    self.hold(now);
                }
                continue;
            }
            let change = self.subscriptions.change(first == 1, prefix);
            if change == Change::Added {
                asked |= matches!(prefix, [] | [b'@', ..]);
                if !prefix.starts_with(b"@") {
                    self.watch.subscribed();
                }
            }
            changed |= matches!(change, Change::Added | Change::Removed);
        }
        if changed {
            for (kind, gauge) in Kind::ALL.into_iter().zip(&self.metrics.wanted_topics) {
                gauge.set(self.subscriptions.wanted_topics(kind) as i64);
            }
        }
        Ok(asked)
    }

    fn hold(&mut self, now: Instant) {
        self.connections.stand(&self.socket);
        self.held = Some(Held { established: self.connections.established(), until: now + HOLD_AT_MOST });
        info!(stream = %self.numbers.name, "the proxy is about to go: holding what there is to publish");
    }

    fn watch_connection(&mut self, now: Instant) {
        let connected = self.connections.stand(&self.socket) || self.in_process;
        let established = self.connections.established();
        if let Some(held) = self.held
            && (established != held.established || now >= held.until)
        {
            self.held = None;
            let reconnected = established != held.established;
            info!(stream = %self.numbers.name, reconnected, "no longer holding");
        }
        self.connected.set(connected);
        self.metrics.connected.set(i64::from(connected));
    }

    fn recycle(&self, buffer: Vec<u8>) {
        // Full means that there are buffers enough.
        drop(self.buffers.try_send(buffer));
    }

    fn close(mut self, worker: &Worker) -> Result<Outcome, BusError> {
        for numbered in self.waiting.drain(..) {
            self.metrics.bus_full[numbered.topic.kind.index()].inc_by(u64::from(numbered.batch.count));
            self.outcome.unpublished += u64::from(numbered.batch.count);
        }
        // Nobody waits for a writer that is gone: what producers hand over from here on is refused and counted.
        // The channel itself would drop them only with the last producer.
        self.handovers.try_iter().take(2 * HANDOVERS).for_each(drop);
        self.handovers = crossbeam_channel::never();
        let end = worker.deadline().unwrap_or_else(|| Instant::now() + CLOSE_AT_MOST);
        while !self.announce(true)? && Instant::now() < end {
            std::thread::park_timeout(RETRY_AFTER);
        }
        let now = Instant::now();
        // A proxy that is away must not make the process late.
        let linger = end.saturating_duration_since(now) * 4 / 5;
        self.socket.set_linger(milliseconds(linger)).map_err(failed)?;
        let connected = self.connections.stand(&self.socket) || self.in_process;
        self.outcome.offered += self.refusals.total();
        self.outcome.unpublished += self.refusals.total();
        let Publisher { bus, socket, connections, numbers, mut outcome, .. } = self;
        // The socket goes before the context, whose last clone waits for what lingers.
        drop((socket, connections, bus));
        outcome.cut_short = now.elapsed() + LINGER_ACCURACY >= linger;
        if outcome.cut_short {
            warn!(
                stream = %numbers.name,
                connected,
                linger_ms = milliseconds(linger),
                "the bus did not take everything within the drain time: the last records published may be lost"
            );
        }
        Ok(outcome)
    }
}

impl Numbers {
    /// The next `count` sequence numbers of a topic, after those of `refused` records that never got here: gives the first.
    fn take(&mut self, topic: Topic, refused: u64, count: u32) -> u64 {
        let next = &mut self.next[topic.index()];
        let first = *next + refused;
        *next = first;
        *next += u64::from(count);
        first
    }

    fn announcement(&self, ended: bool) -> Announcement {
        let positions = Topic::all()
            .zip(&self.next)
            .filter(|(_, next)| **next > 0)
            // Nothing is kept for repetition yet, so the oldest record that can be repeated is the one to come.
            .map(|(topic, &next)| TopicPosition { topic, oldest_sequence: next, next_sequence: next });
        Announcement {
            stream_name: self.name.as_str().to_owned(),
            stream_epoch: self.epoch,
            ended,
            positions: positions.collect(),
        }
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "publisher", source }
}
