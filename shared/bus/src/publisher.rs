//! The publisher: one thread that is the one writer of a stream. It numbers records, sends them, and says where it stands.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, TrySendError, bounded};
use sekiwake_group::{Retained, Stream};
use sekiwake_record::{Announcement, ClosedBatch, Header, Kind, Name, Topic, TopicPosition};
use sekiwake_runtime::{Latch, Metrics, StatusDesk, Worker};
use tracing::{info, warn};

use crate::{
    BusError, ClientKeys, OwnDestinations, StreamControl,
    batcher::Outbound,
    control::{Body, Common, boot_now},
    early::without_own,
    metrics::PublisherMetrics,
    refusals::{Handover, Refusals},
    settings::Controlling,
    socket::{Bus, Connections, HOLD_TOPIC, LINGER_ACCURACY, SUBSCRIPTION_BURST, milliseconds, uninterrupted},
    subscriptions::{Change, Subscriptions, selects_data},
};

/// How often a stream says where it stands.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// How often the state of the connection is looked at.
const WATCH_EVERY: Duration = Duration::from_millis(200);
/// How soon a batch that the bus had no room for is tried again.
const RETRY_AFTER: Duration = Duration::from_millis(1);
/// How often it is looked whether what came early may be published.
const LIST_LOOK_EVERY: Duration = Duration::from_millis(10);
/// Hand-overs from capture threads that may wait for the writer. Each is what one tick, or one ring block, gave: 256 KiB.
const HANDOVERS: usize = 256;
/// The same from a reader of a file, who can wait: each is some thousand packets.
const FILE_HANDOVERS: usize = 4;
/// How long a publisher that was asked to hold waits for a new connection before it goes on over the old one.
const HOLD_AT_MOST: Duration = Duration::from_secs(30);

/// The most bytes that a file is read ahead of the slowest group, where the memory is larger: less than the queue of a destination
/// holds, so that a file that is read faster than it is forwarded overflows nothing.
const AHEAD_BYTES: usize = 16 << 20;

/// Batches that wait for the bus, after which those that are no longer retained are looked for.
const MAX_WAITING: usize = 1 << 18;

/// Batches that came early and are published in one go.
const EARLY_BURST: usize = 256;

/// What a batch that came early costs beside its body, bytes.
const EARLY_ENTRY_BYTES: usize = 96;

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
    /// Memory for recent batches by kind, in the order of [`Kind::ALL`], bytes: what subscribers missed is repeated from it, and
    /// what the bus has no room for waits in it. Past it the oldest batch of the kind is forgotten.
    pub retain_bytes: [usize; Kind::ALL.len()],
    /// What happens when producers bring more than the writer takes.
    pub overflow: Overflow,
}

/// How a budget for all kinds is divided: traps are few and small, and must not be forgotten because of the others.
pub fn retain_shares(bytes: usize) -> [usize; Kind::ALL.len()] {
    Kind::ALL.map(|kind| match kind {
        Kind::Syslog | Kind::Xflow => bytes / 16 * 7,
        Kind::SnmpTrap => bytes / 8,
    })
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
    overflow: Overflow,
    common: Arc<Common>,
    /// The most bytes that a file is read ahead of the slowest, by kind.
    ahead_bytes: [usize; Kind::ALL.len()],
    /// What must not be published, where a control thread says it.
    own: OwnDestinations,
    /// What came before publishing may begin, oldest first, and its bytes.
    early: VecDeque<Outbound>,
    /// What it costs, by kind, and the most that it may: what is retained holds no more.
    early_bytes: [usize; Kind::ALL.len()],
    early_limits: [usize; Kind::ALL.len()],
    early_records: u64,
    /// Records that nobody had subscribed to when they were published, by kind.
    unwanted: [u64; Kind::ALL.len()],
    /// Publishing has begun: what is handed over from here on has been sifted by the capture threads.
    publishing: bool,
    /// The length of the list of what waits at which it is looked for what is no longer retained.
    forget_at: usize,
    handovers: Receiver<Handover>,
    refusals: Arc<Refusals>,
    buffers: Sender<Vec<u8>>,
    subscriptions: Subscriptions,
    /// Subscriptions may be left to read.
    more_subscriptions: bool,
    watch: SubscriptionWatch,
    name: Name,
    epoch: u64,
    announcement_topic: String,
    /// Batches that are retained and wait for room on the bus, oldest first.
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    waiting_records: u64,
    /// The batches that are being published; its room is used again.
    retained: Vec<(Topic, Retained<Body>)>,
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
    /// Records that were published and that some group had not handled at the end.
    pub uncommitted: u64,
}

/// A batch that waits, by its place in what is retained.
#[derive(Clone, Copy)]
struct Waiting {
    topic: Topic,
    first_sequence: u64,
    count: u32,
    bytes: usize,
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
        let handovers = if settings.overflow == Overflow::Wait { FILE_HANDOVERS } else { HANDOVERS };
        let (handovers_in, handovers) = bounded(handovers);
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
            overflow: settings.overflow,
            common: Arc::new(Common::new(settings.retain_bytes)),
            ahead_bytes: settings.retain_bytes.map(|bytes| AHEAD_BYTES.min(bytes / 2)),
            own: OwnDestinations::default(),
            early: VecDeque::new(),
            early_bytes: [0; Kind::ALL.len()],
            early_limits: settings.retain_bytes,
            early_records: 0,
            unwanted: [0; Kind::ALL.len()],
            publishing: false,
            forget_at: MAX_WAITING,
            handovers,
            refusals,
            buffers,
            subscriptions: Subscriptions::default(),
            more_subscriptions: false,
            watch: SubscriptionWatch::default(),
            announcement_topic: Announcement::topic(&settings.name),
            name: settings.name,
            epoch,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            waiting_records: 0,
            retained: Vec::new(),
            header: Vec::with_capacity(128),
            outcome: Outcome::default(),
            metrics,
        };
        Ok((publisher, producer))
    }

    /// The thread that will answer for this stream on the control plane. From here on nothing is published before it has the list
    /// of destinations, and the end waits for the groups.
    ///
    /// # Errors
    /// As [`Publisher::new`].
    pub fn control(
        &mut self,
        controlling: &Controlling,
        metrics: &Metrics,
        (ready, desk): (Latch, StatusDesk),
    ) -> Result<StreamControl, BusError> {
        let stream = Stream::new(&self.name, self.epoch);
        let (bus, common, follows) = (&self.bus, Arc::clone(&self.common), self.overflow == Overflow::Wait);
        let control = StreamControl::new(bus, controlling, stream, common, follows, metrics, (ready, desk))?;
        if self.overflow == Overflow::Drop {
            // What is in a file has been sent by others, and long ago: there is no loop that it could be in.
            self.own = control.own_destinations();
        }
        Ok(control)
    }

    /// For those who wait for a subscriber before they publish.
    pub fn subscription_watch(&self) -> SubscriptionWatch {
        self.watch.clone()
    }

    /// Publishes until every [`Producer`] is gone; then sends what waits, waits until the groups have handled everything, within
    /// the worker's deadline, and says that the stream has ended.
    ///
    /// # Errors
    /// The socket failed: the context is gone.
    pub fn run(mut self, worker: &Worker) -> Result<Outcome, BusError> {
        // Whatever happens here, the control thread does not answer for a writer that is gone.
        let _finished = Finished(Arc::clone(&self.common));
        info!(stream = %self.name, epoch = self.epoch, "publishing");
        let (mut announce_at, mut watch_at) = (Instant::now(), Instant::now());
        let mut draining = false;
        loop {
            worker.beat();
            let open = self.take(worker)?;
            self.publish_early()?;
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
            if open {
                continue;
            }
            self.common.begin_to_end();
            let over = worker.deadline().is_some_and(|end| now >= end) || self.common.is_abandoned();
            if !draining && self.waiting.is_empty() && self.early.is_empty() {
                draining = true;
                // Where the stream stands at its end, before the wait for those who are to get there.
                announce_at = now;
                self.common.drain();
            }
            if over || (draining && self.waiting.is_empty() && self.common.is_drained()) {
                return self.close(worker);
            }
        }
    }

    /// Takes what producers hand over, or waits for it a moment. Says whether there are producers left.
    fn take(&mut self, worker: &Worker) -> Result<bool, BusError> {
        let pause = match (self.waiting.is_empty(), self.early.is_empty()) {
            _ if self.more_subscriptions => Duration::ZERO,
            (true, true) => Duration::from_millis(50),
            (true, false) => LIST_LOOK_EVERY,
            (false, _) => RETRY_AFTER,
        };
        if self.is_full() {
            // The producers wait in turn; only when told to stop is the file not read to its end.
            std::thread::park_timeout(pause.min(RETRY_AFTER));
            return Ok(!worker.stopping());
        }
        match self.handovers.recv_timeout(pause) {
            Ok(handover) => self.publish(handover)?,
            Err(RecvTimeoutError::Timeout) => return Ok(true),
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::park_timeout(pause.min(RETRY_AFTER));
                return Ok(false);
            }
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

    /// Whether producers have to wait: what they brought last has not been published.
    fn is_full(&self) -> bool {
        self.overflow == Overflow::Wait && !self.early.is_empty()
    }

    /// Whether what is read from a file has to wait: for the bus, or for the slowest group. What is published and forgotten before
    /// they have it would be lost.
    fn is_ahead(&self) -> bool {
        // What waits may be of any kind.
        let smallest = self.ahead_bytes.into_iter().min().unwrap_or(0);
        self.waiting_bytes >= smallest || !self.common.may_read_ahead(self.ahead_bytes)
    }

    fn publish(&mut self, handover: Handover) -> Result<(), BusError> {
        if self.overflow == Overflow::Wait || !self.publishing || !self.early.is_empty() {
            self.keep_early(handover);
            return Ok(());
        }
        self.publish_batches(handover.take())
    }

    /// Keeps what may not be published yet. Where there is no room for a kind, it is refused and counted.
    fn keep_early(&mut self, handover: Handover) {
        for (topic, mut batch) in handover.take() {
            let kind = topic.kind.index();
            if self.overflow == Overflow::Drop {
                if self.early_bytes[kind] >= self.early_limits[kind] {
                    self.outcome.offered += u64::from(batch.count);
                    self.refuse(topic, batch.count);
                    continue;
                }
                // Its buffer is one for a full batch, and it may wait for long.
                batch.body.shrink_to_fit();
            }
            self.early_bytes[kind] += early_cost(&batch);
            self.early_records += u64::from(batch.count);
            self.early.push_back((topic, batch));
        }
    }

    /// Publishes what had to wait: for the list of what is our own, without what is; or for those who follow a file. A bounded
    /// number at a time, so that producers are not kept waiting.
    fn publish_early(&mut self) -> Result<(), BusError> {
        if !self.common.may_publish() {
            return Ok(());
        }
        if !self.publishing {
            // What capture threads gave before they went by the list is in the channel by now.
            for _ in 0..HANDOVERS {
                let Ok(handover) = self.handovers.try_recv() else { break };
                self.keep_early(handover);
            }
            self.publishing = true;
            if self.overflow == Overflow::Drop && !self.early.is_empty() {
                let records = self.early_records;
                info!(stream = %self.name, records, "publishing what came before the list of own destinations");
            }
        }
        if self.early.is_empty() {
            return Ok(());
        }
        let own = self.own.list();
        for _ in 0..EARLY_BURST {
            if self.overflow == Overflow::Wait && self.is_ahead() {
                break;
            }
            let Some((topic, batch)) = self.early.pop_front() else { break };
            self.early_bytes[topic.kind.index()] -= early_cost(&batch);
            self.early_records -= u64::from(batch.count);
            let (kept, left_out) = if own.is_empty() { (Some(batch), 0) } else { without_own(batch, &own) };
            self.metrics.own_destination[topic.kind.index()].inc_by(u64::from(left_out));
            self.outcome.offered += u64::from(left_out);
            self.publish_batches(kept.map(|kept| (topic, kept)).into_iter().collect())?;
        }
        Ok(())
    }

    /// Counts records that do not get onto the bus.
    fn refuse(&mut self, topic: Topic, count: u32) {
        self.metrics.bus_full[topic.kind.index()].inc_by(u64::from(count));
        self.outcome.unpublished += u64::from(count);
    }

    /// Numbers and retains batches, and sends those that somebody wants.
    fn publish_batches(&mut self, batches: Vec<Outbound>) -> Result<(), BusError> {
        let published_at = boot_now();
        self.retained.clear();
        let mut retention = self.common.retention();
        for (topic, batch) in batches {
            let body: Body = Arc::from(&batch.body[..]);
            let ClosedBatch { count, first_captured_at_ns, last_captured_at_ns, body: buffer } = batch;
            recycle(&self.buffers, buffer);
            let first_sequence = retention.next_sequence(topic);
            let retained =
                Retained { first_sequence, count, first_captured_at_ns, last_captured_at_ns, published_at, body };
            self.retained.push((topic, retained.clone()));
            retention.store(topic, retained);
        }
        drop(retention);
        let mut batches = std::mem::take(&mut self.retained);
        for (topic, batch) in batches.drain(..) {
            let (kind, count) = (topic.kind.index(), u64::from(batch.count));
            self.outcome.offered += count;
            if !self.subscriptions.wants(topic) {
                self.metrics.no_subscriber[kind].inc_by(count);
                self.unwanted[kind] += count;
            } else if !(self.waiting.is_empty() && self.held.is_none() && self.send(topic, &batch)?) {
                let bytes = batch.body.len();
                self.waiting_bytes += bytes;
                self.waiting_records += count;
                let Retained { first_sequence, count, .. } = batch;
                self.waiting.push_back(Waiting { topic, first_sequence, count, bytes });
            }
        }
        // The room is used again.
        self.retained = batches;
        Ok(())
    }

    /// Sends what waits, as far as there is room. What has been forgotten meanwhile is counted.
    fn send_waiting(&mut self) -> Result<(), BusError> {
        while self.held.is_none()
            && let Some(waiting) = self.waiting.front().copied()
        {
            let Waiting { topic, first_sequence, count, bytes } = waiting;
            let batch = self.common.retention().batch(topic, first_sequence).cloned();
            match batch {
                Some(batch) if !self.send(topic, &batch)? => break,
                Some(_) => {}
                None => self.refuse(topic, count),
            }
            self.waiting.pop_front();
            self.waiting_bytes -= bytes;
            self.waiting_records -= u64::from(count);
        }
        self.forget_waiting();
        let early_bytes: usize = self.early_bytes.iter().sum();
        self.metrics.waiting_bytes.set((self.waiting_bytes + early_bytes) as i64);
        self.metrics.waiting_records.set((self.waiting_records + self.early_records) as i64);
        Ok(())
    }

    /// Lets go of what waits and is no longer retained, so that the list of it is bounded as the memory is.
    fn forget_waiting(&mut self) {
        if self.waiting.len() < self.forget_at {
            return;
        }
        let retention = self.common.retention();
        let (metrics, outcome) = (&self.metrics, &mut self.outcome);
        self.waiting.retain(|waiting| {
            let kept = waiting.first_sequence >= retention.oldest_sequence(waiting.topic);
            if !kept {
                metrics.bus_full[waiting.topic.kind.index()].inc_by(u64::from(waiting.count));
                outcome.unpublished += u64::from(waiting.count);
            }
            kept
        });
        drop(retention);
        // Where all of it is retained, it is not looked at again before there is as much more.
        self.forget_at = MAX_WAITING.max(2 * self.waiting.len());
        self.waiting_bytes = self.waiting.iter().map(|waiting| waiting.bytes).sum();
        self.waiting_records = self.waiting.iter().map(|waiting| u64::from(waiting.count)).sum();
    }

    /// Sends one batch, unless there is no room: then it says `false` and nothing has been sent.
    fn send(&mut self, topic: Topic, batch: &Retained<Body>) -> Result<bool, BusError> {
        let header = Header {
            stream_name: self.name.as_str(),
            stream_epoch: self.epoch,
            first_sequence: batch.first_sequence,
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
        let mut frame = Vec::new();
        self.announcement(ended).encode(&mut frame);
        self.send_parts(&self.announcement_topic, &[&frame])
    }

    fn announcement(&self, ended: bool) -> Announcement {
        let retention = self.common.retention();
        let positions = Topic::all().map(|topic| TopicPosition {
            topic,
            oldest_sequence: retention.oldest_sequence(topic),
            next_sequence: retention.next_sequence(topic),
        });
        Announcement {
            stream_name: self.name.as_str().to_owned(),
            stream_epoch: self.epoch,
            ended,
            positions: positions.filter(|position| position.next_sequence > 0).collect(),
        }
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
                if selects_data(prefix) {
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
        info!(stream = %self.name, "the proxy is about to go: holding what there is to publish");
    }

    fn watch_connection(&mut self, now: Instant) {
        let connected = self.connections.stand(&self.socket) || self.in_process;
        let established = self.connections.established();
        if let Some(held) = self.held
            && (established != held.established || now >= held.until)
        {
            self.held = None;
            let reconnected = established != held.established;
            info!(stream = %self.name, reconnected, "no longer holding");
        }
        self.connected.set(connected);
        self.metrics.connected.set(i64::from(connected));
    }

    fn close(mut self, worker: &Worker) -> Result<Outcome, BusError> {
        for waiting in std::mem::take(&mut self.waiting) {
            self.refuse(waiting.topic, waiting.count);
        }
        for (topic, batch) in std::mem::take(&mut self.early) {
            self.outcome.offered += u64::from(batch.count);
            self.refuse(topic, batch.count);
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
        // What nobody had subscribed to is kept like all the rest, and groups have it by now; others have not.
        let without_group = Kind::ALL.into_iter().filter(|&kind| !self.common.had_group(kind));
        self.outcome.unpublished += without_group.map(|kind| self.unwanted[kind.index()]).sum::<u64>();
        self.outcome.uncommitted = self.common.left();
        // The control thread has a part of the context: the time that what lingers takes is seen only without it.
        self.common.finish();
        self.common.wait_for_control();
        let Publisher { bus, socket, connections, name, mut outcome, .. } = self;
        // The socket goes before the context, whose last clone waits for what lingers.
        drop((socket, connections, bus));
        let Outcome { offered, unpublished, uncommitted, .. } = outcome;
        info!(stream = %name, offered, unpublished, uncommitted, "the stream has ended");
        outcome.cut_short = now.elapsed() + LINGER_ACCURACY >= linger;
        if outcome.cut_short {
            warn!(
                stream = %name,
                connected,
                linger_ms = milliseconds(linger),
                "the bus did not take everything within the drain time: the last records published may be lost"
            );
        }
        Ok(outcome)
    }
}

fn early_cost(batch: &ClosedBatch) -> usize {
    batch.body.len() + EARLY_ENTRY_BYTES
}

/// Tells the control thread that the writer is gone, whichever way.
struct Finished(Arc<Common>);

impl Drop for Finished {
    fn drop(&mut self) {
        self.0.finish();
    }
}

fn recycle(buffers: &Sender<Vec<u8>>, buffer: Vec<u8>) {
    // Full means that there are buffers enough.
    drop(buffers.try_send(buffer));
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "publisher", source }
}
