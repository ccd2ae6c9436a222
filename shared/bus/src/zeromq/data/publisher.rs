//! The publisher: one thread that is the only writer of a stream. It numbers records, retains and
//! sends them, and announces the stream's positions.
//!
//! ```text
//!                  ┌─▶ EarlyQueue ─┐  before the list of own destinations is known;
//! Producer ═▶ take ┤               │  files, while a group is far behind
//!                  └───────────────┴─▶ number, retain ─┬─▶ XPUB
//!                                                      └─▶ WaitingQueue ─▶ XPUB
//!                                                          no room, or paused
//! ```

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::TryRecvError;
use sekiwake_group::{OwnDestinations, Retained, Stream};
use sekiwake_record::{Announcement, ClosedBatch, Header, Kind, Name, Outbound, Topic, TopicPosition};
use sekiwake_runtime::{Latch, Metrics, Worker};
use sekiwake_sys::clock::wall_now_ns;
use tracing::{info, warn};

use super::{
    publisher_socket::{PublisherSocket, failed},
    subscriptions::{Change, Subscriptions, selects_data},
    waiting::WaitingQueue,
};
use crate::{
    BusError, Outcome, Overflow, Producer, Reporting, StreamSettings, SubscriptionWatch, Writer,
    clock::boot_now,
    metrics::PublisherMetrics,
    settings::Controlling,
    stream::{EarlyQueue, Filtered, HANDOVERS, Handover, Intake, without_own},
    zeromq::{
        control::{Body, StreamControl, StreamControlOptions, StreamShared},
        inlet::{Limit, wait_for_bell},
        socket::{Context, LINGER_ACCURACY, PAUSE_TOPIC, SUBSCRIPTION_BURST, milliseconds},
    },
};

/// How often the stream's positions are announced.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// How often the connection is checked, at most and unless it changes.
const POLL_CONNECTION_EVERY: Duration = Duration::from_millis(200);
/// The longest wait for producers and subscriptions.
const IDLE_WAIT: Duration = Duration::from_secs(1);
/// The same without a connection.
const UNCONNECTED_WAIT: Duration = POLL_CONNECTION_EVERY;
/// The same while early batches wait.
const EARLY_WAIT: Duration = Duration::from_millis(10);
/// The same while batches wait for room on the bus.
const RETRY_AFTER: Duration = Duration::from_millis(1);

/// How far a file may be read ahead of the slowest group, bytes, unless less memory is configured.
/// It is less than a destination's queue holds, so that reading a file faster than it is forwarded
/// overflows no queue.
const AHEAD_BYTES: usize = 16 << 20;

/// Early batches published in one go.
const EARLY_BURST: usize = 256;

/// How long a publisher without producers may take to send the rest, if there is no deadline.
const CLOSE_WITHIN: Duration = Duration::from_secs(10);
/// The same while there is no connection to the proxy.
const ABSENT_PROXY_WITHIN: Duration = Duration::from_secs(3);

/// The only writer of a stream. Its thread calls [`Publisher::run`].
pub struct Publisher {
    name: Name,
    epoch: u64,
    overflow: Overflow,
    socket: PublisherSocket,
    intake: Intake,
    shared: Arc<StreamShared>,
    /// The destinations that must not be published, if there is a control thread.
    own: OwnDestinations,
    early: EarlyQueue,
    waiting: WaitingQueue,
    /// Publishing has begun: from here on the capture threads leave out own destinations.
    is_publishing: bool,
    /// Maximum bytes that a file is read ahead of the slowest group, by kind.
    ahead_bytes: [usize; Kind::ALL.len()],
    /// Records without a subscriber when they were published, by kind.
    unsubscribed: [u64; Kind::ALL.len()],
    subscriptions: Subscriptions,
    /// There may be more subscriptions to read.
    more_subscriptions: bool,
    watch: SubscriptionWatch,
    announcement_topic: String,
    /// The batches being published; its memory is reused.
    retained: Vec<(Topic, Retained<Body>)>,
    header: Vec<u8>,
    outcome: Outcome,
    metrics: PublisherMetrics,
}

impl Publisher {
    /// A new stream, connected to the relays (which may be started later), and the producer that
    /// feeds it. `connected` is set while there is a connection.
    ///
    /// # Errors
    /// Invalid endpoints, too many sockets, or no random numbers.
    pub fn new(
        context: &Context,
        settings: StreamSettings,
        metrics: &Metrics,
        connected: Latch,
    ) -> Result<(Publisher, Producer), BusError> {
        let StreamSettings { name, publishing, retain_bytes, overflow } = settings;
        let socket = PublisherSocket::connect(context, &publishing.zeromq, connected)?;
        let epoch = getrandom::u64().map_err(BusError::Random)?;
        let metrics = PublisherMetrics::new(metrics);
        let (producer, intake) = Producer::new(overflow, metrics.bus_full.clone()).map_err(BusError::Wake)?;
        let publisher = Publisher {
            announcement_topic: Announcement::topic(&name),
            name,
            epoch,
            overflow,
            socket,
            intake,
            shared: Arc::new(StreamShared::new(retain_bytes)),
            own: OwnDestinations::default(),
            early: EarlyQueue::new(retain_bytes),
            waiting: WaitingQueue::default(),
            is_publishing: false,
            ahead_bytes: retain_bytes.map(|bytes| AHEAD_BYTES.min(bytes / 2)),
            unsubscribed: [0; Kind::ALL.len()],
            subscriptions: Subscriptions::default(),
            more_subscriptions: false,
            watch: SubscriptionWatch::default(),
            retained: Vec::new(),
            header: Vec::with_capacity(128),
            outcome: Outcome::default(),
            metrics,
        };
        Ok((publisher, producer))
    }

    /// Attaches a control thread. From here on nothing is published before the list of own
    /// destinations is known, and the publisher waits at its end for the groups.
    ///
    /// # Errors
    /// As [`Publisher::new`].
    pub fn control(&mut self, controlling: &Controlling, reporting: Reporting) -> Result<StreamControl, BusError> {
        let options = StreamControlOptions {
            controlling,
            stream: Stream::new(&self.name, self.epoch),
            shared: Arc::clone(&self.shared),
            follows_commits: self.overflow == Overflow::Wait,
            reporting,
            unpublished: self.metrics.unpublished(),
        };
        let control = StreamControl::new(&self.socket.context, options)?;
        if self.overflow == Overflow::Drop {
            // Not for a file: its datagrams were sent long ago and cannot be part of a loop.
            self.own = control.own_destinations();
        }
        Ok(control)
    }

    /// For threads that wait for a subscriber before they publish.
    pub fn subscription_watch(&self) -> SubscriptionWatch {
        self.watch.clone()
    }

    /// Publishes until every [`Producer`] is dropped. Then it sends what is waiting, waits within
    /// the worker's deadline until the groups have handled everything, and announces the end of the
    /// stream.
    ///
    /// # Errors
    /// The socket failed because its context was terminated.
    pub fn run(mut self, worker: &Worker) -> Result<Outcome, BusError> {
        // In every case the control thread is notified that the writer has ended.
        let _finished = Finished(Arc::clone(&self.shared));
        info!(stream = %self.name, epoch = self.epoch, "stream started");
        let mut announce_at = Instant::now();
        let mut poll_at = Instant::now();
        let mut is_draining = false;
        loop {
            worker.beat();
            let has_producers = self.take(worker, announce_at)?;
            self.publish_early()?;
            let now = Instant::now();
            self.send_waiting()?;
            let is_asked = self.take_subscriptions(now)?;
            if is_asked || now >= announce_at {
                self.announce(false)?;
                announce_at = now + ANNOUNCE_EVERY;
            }
            if now >= poll_at || self.socket.is_paused() || self.socket.connections.has_event() {
                let is_connected = self.socket.poll(now, self.name.as_str());
                self.metrics.connected.set(i64::from(is_connected));
                poll_at = now + POLL_CONNECTION_EVERY;
            }
            if has_producers {
                continue;
            }
            self.shared.producers_gone();
            let is_over = worker.deadline().is_some_and(|end| now >= end) || self.shared.is_abandoned();
            if !is_draining && self.waiting.is_empty() && self.early.is_empty() {
                is_draining = true;
                // The final positions are announced before the wait for the groups to reach them.
                announce_at = now;
                self.shared.all_published();
            }
            if is_over || (is_draining && self.waiting.is_empty() && self.shared.is_drained()) {
                return self.close(worker);
            }
        }
    }

    /// Takes batches from the producers, after a short wait if there are none. Returns whether
    /// there are producers left.
    fn take(&mut self, worker: &Worker, announce_at: Instant) -> Result<bool, BusError> {
        let wait = match (self.waiting.is_empty(), self.early.is_empty()) {
            _ if self.more_subscriptions => Duration::ZERO,
            (true, true) if !self.socket.was_connected() => UNCONNECTED_WAIT,
            (true, true) => IDLE_WAIT.min(announce_at.saturating_duration_since(Instant::now())),
            (true, false) => EARLY_WAIT,
            (false, _) => RETRY_AFTER,
        };
        if self.is_full() {
            // The producers wait too. Only a stop request ends the reading of a file before its
            // end.
            self.socket.wait(wait.min(RETRY_AFTER))?;
            return Ok(!worker.stopping());
        }
        match self.first_handover(wait, worker)? {
            Ok(handover) => self.publish(handover)?,
            Err(TryRecvError::Empty) => return Ok(true),
            Err(TryRecvError::Disconnected) => {
                self.socket.wait(wait.min(RETRY_AFTER))?;
                return Ok(false);
            }
        }
        // A bounded number of others, because subscriptions and announcements must be handled too.
        for _ in 0..HANDOVERS {
            if self.is_full() {
                break;
            }
            match self.intake.handovers.try_recv() {
                Ok(handover) => self.publish(handover)?,
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// The next hand-over, after a wait if there is none yet. Subscriptions end the wait too.
    fn first_handover(&mut self, wait: Duration, worker: &Worker) -> Result<Result<Handover, TryRecvError>, BusError> {
        let Intake { handovers, bell, .. } = &self.intake;
        let mut next = handovers.try_recv();
        if matches!(next, Err(TryRecvError::Empty)) && !wait.is_zero() {
            let PublisherSocket { socket, connections, .. } = &mut self.socket;
            let is_due = || {
                next = handovers.try_recv();
                !matches!(next, Err(TryRecvError::Empty))
            };
            let limit = Limit::or_stop(wait, worker.stop());
            wait_for_bell([socket], [connections.events()], bell, is_due, limit).map_err(failed)?;
            if matches!(next, Err(TryRecvError::Empty)) {
                next = handovers.try_recv();
            }
        } else {
            // While there are always hand-overs, nobody waits for these.
            self.socket.socket.ask_again();
            self.socket.connections.events().ask_again();
        }
        Ok(next)
    }

    /// Whether producers have to wait, because their last batches have not been published.
    fn is_full(&self) -> bool {
        self.overflow == Overflow::Wait && !self.early.is_empty()
    }

    /// Whether the reader of a file has to wait for the bus or for the slowest group. Otherwise
    /// records could be dropped from the retained memory before that group has them.
    fn is_ahead(&self) -> bool {
        // The smallest limit, because waiting batches may be of any kind.
        let smallest = self.ahead_bytes.into_iter().min().unwrap_or(0);
        self.waiting.bytes() >= smallest || !self.shared.may_read_ahead(self.ahead_bytes)
    }

    fn publish(&mut self, handover: Handover) -> Result<(), BusError> {
        if self.overflow == Overflow::Wait || !self.is_publishing || !self.early.is_empty() {
            self.keep_early(handover);
            return Ok(());
        }
        self.publish_batches(handover.take())
    }

    /// Keeps batches that may not be published yet. Those of a kind without room are dropped and
    /// counted.
    fn keep_early(&mut self, handover: Handover) {
        for outbound in handover.take() {
            if self.overflow == Overflow::Wait {
                self.early.push(outbound);
            } else if let Err(Outbound { topic, batch }) = self.early.try_push(outbound) {
                self.outcome.offered += u64::from(batch.count);
                self.drop_records(topic, batch.count);
            }
        }
    }

    /// Publishes early batches: those of a capture once the list of own destinations is known,
    /// without records to them; those of a file as far as the groups keep up. A bounded number at a
    /// time, so that producers are not kept waiting.
    fn publish_early(&mut self) -> Result<(), BusError> {
        if !self.shared.may_publish() {
            return Ok(());
        }
        if !self.is_publishing {
            // Batches from before the capture threads used the list are in the channel by now.
            for _ in 0..HANDOVERS {
                let Ok(handover) = self.intake.handovers.try_recv() else { break };
                self.keep_early(handover);
            }
            self.is_publishing = true;
            if self.overflow == Overflow::Drop && !self.early.is_empty() {
                let records = self.early.records();
                info!(stream = %self.name, records, "own destinations known, publishing earlier records");
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
            let Some(Outbound { topic, batch }) = self.early.pop() else { break };
            let filtered = if own.addresses().is_empty() {
                Filtered { kept: Some(batch), left_out: 0 }
            } else {
                without_own(batch, &own)
            };
            let left_out = u64::from(filtered.left_out);
            self.metrics.own_destination[topic.kind.index()].inc_by(left_out);
            self.outcome.offered += left_out;
            self.publish_batches(filtered.kept.map(|batch| Outbound { topic, batch }).into_iter().collect())?;
        }
        Ok(())
    }

    /// Counts records that are not published.
    fn drop_records(&mut self, topic: Topic, count: u32) {
        self.metrics.bus_full[topic.kind.index()].inc_by(u64::from(count));
        self.outcome.unpublished += u64::from(count);
    }

    /// Numbers and retains batches, and sends those with a subscriber.
    fn publish_batches(&mut self, batches: Vec<Outbound>) -> Result<(), BusError> {
        let published_at = boot_now();
        self.retained.clear();
        // Everything is retained before anything is sent, because a subscriber may ask for a repair
        // as soon as it has seen a later number.
        let mut retention = self.shared.retention();
        for Outbound { topic, batch } in batches {
            let body: Body = Arc::from(&batch.body[..]);
            let ClosedBatch { count, first_captured_at_ns, last_captured_at_ns, body: buffer } = batch;
            self.intake.recycle(buffer);
            let first_sequence = retention.next_sequence(topic);
            let retained =
                Retained { first_sequence, count, first_captured_at_ns, last_captured_at_ns, published_at, body };
            self.retained.push((topic, retained.clone()));
            retention.store(topic, retained);
        }
        drop(retention);
        let mut batches = std::mem::take(&mut self.retained);
        for (topic, batch) in batches.drain(..) {
            let kind = topic.kind.index();
            let count = u64::from(batch.count);
            self.outcome.offered += count;
            if !self.subscriptions.wants(topic) {
                self.metrics.no_subscriber[kind].inc_by(count);
                self.unsubscribed[kind] += count;
                continue;
            }
            // A batch must not overtake those that wait.
            let may_send = self.waiting.is_empty() && !self.socket.is_paused();
            if !(may_send && self.send(topic, &batch)?) {
                self.waiting.push(topic, &batch);
            }
        }
        self.retained = batches;
        Ok(())
    }

    /// Sends waiting batches as far as there is room. Those that are no longer retained are
    /// counted.
    fn send_waiting(&mut self) -> Result<(), BusError> {
        while !self.socket.is_paused()
            && let Some(waiting) = self.waiting.front()
        {
            let batch = self.shared.retention().batch(waiting.topic, waiting.first_sequence).cloned();
            match batch {
                Some(batch) if !self.send(waiting.topic, &batch)? => break,
                Some(_) => {}
                None => self.drop_records(waiting.topic, waiting.count),
            }
            self.waiting.pop();
        }
        if self.waiting.should_prune() {
            let mut dropped = Vec::new();
            self.waiting.prune(&self.shared.retention(), |batch| dropped.push(batch));
            for batch in dropped {
                self.drop_records(batch.topic, batch.count);
            }
        }
        self.metrics.waiting_bytes.set((self.waiting.bytes() + self.early.bytes()) as i64);
        self.metrics.waiting_records.set((self.waiting.records() + self.early.records()) as i64);
        Ok(())
    }

    /// Sends one batch. If there is no room, it returns `false` and nothing has been sent.
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
        if !self.socket.send(topic.as_str(), &[&self.header, &batch.body])? {
            return Ok(false);
        }
        let kind = topic.kind.index();
        self.metrics.records[kind].inc_by(u64::from(batch.count));
        self.metrics.batches[kind].inc();
        self.metrics.bytes[kind].inc_by(batch.body.len() as u64);
        Ok(true)
    }

    /// Announces the stream's positions. Not while batches wait, because the announcement must
    /// follow the data that it describes. Returns whether it was sent.
    fn announce(&mut self, ended: bool) -> Result<bool, BusError> {
        if !self.waiting.is_empty() || (self.socket.is_paused() && !ended) {
            return Ok(false);
        }
        let mut frame = Vec::new();
        self.announcement(ended).encode(&mut frame);
        self.socket.send(&self.announcement_topic, &[&frame])
    }

    fn announcement(&self, ended: bool) -> Announcement {
        let retention = self.shared.retention();
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
            clock_ns: Some(wall_now_ns()),
        }
    }

    /// Reads a bounded number of subscriptions, and returns whether there is a new one to
    /// announcements.
    fn take_subscriptions(&mut self, now: Instant) -> Result<bool, BusError> {
        let mut is_asked = false;
        let mut has_changed = false;
        self.more_subscriptions = true;
        for _ in 0..SUBSCRIPTION_BURST {
            let Some(message) = self.socket.socket.receive().map_err(failed)? else {
                self.more_subscriptions = false;
                break;
            };
            let Some((&first @ (0 | 1), prefix)) = message.split_first() else { continue };
            if prefix == PAUSE_TOPIC {
                if first == 1 {
                    self.socket.pause(now, self.name.as_str());
                }
                continue;
            }
            let change = self.subscriptions.change(first == 1, prefix);
            if change == Change::Added {
                is_asked |= matches!(prefix, [] | [b'@', ..]);
                if selects_data(prefix) {
                    self.watch.subscribed();
                }
            }
            has_changed |= matches!(change, Change::Added | Change::Removed);
        }
        if has_changed {
            for (kind, gauge) in Kind::ALL.into_iter().zip(&self.metrics.subscribed_topics) {
                gauge.set(self.subscriptions.subscribed_topics(kind) as i64);
            }
        }
        Ok(is_asked)
    }

    fn close(mut self, worker: &Worker) -> Result<Outcome, BusError> {
        while let Some(batch) = self.waiting.pop() {
            self.drop_records(batch.topic, batch.count);
        }
        while let Some(Outbound { topic, batch }) = self.early.pop() {
            self.outcome.offered += u64::from(batch.count);
            self.drop_records(topic, batch.count);
        }
        self.intake.close();
        let end = worker.deadline().unwrap_or_else(|| Instant::now() + CLOSE_WITHIN);
        // Nothing can be delivered to a proxy that has gone: it may have been removed first.
        let end = if self.socket.is_connected() { end } else { end.min(Instant::now() + ABSENT_PROXY_WITHIN) };
        while !self.announce(true)? && Instant::now() < end {
            std::thread::park_timeout(RETRY_AFTER);
        }
        let closing_at = Instant::now();
        // Less than the time left, because an absent proxy must not delay the end of the process.
        let linger = end.saturating_duration_since(closing_at) * 4 / 5;
        self.socket.socket.socket().set_linger(milliseconds(linger)).map_err(failed)?;
        let is_connected = self.socket.is_connected();
        self.outcome.offered += self.intake.rejections.total();
        self.outcome.unpublished += self.intake.rejections.total();
        // Records without a subscriber were retained like all others, so a live group has them by
        // now. Without a group of their kind they have not been delivered.
        let without_group = Kind::ALL.into_iter().filter(|&kind| !self.shared.had_group(kind));
        self.outcome.unpublished += without_group.map(|kind| self.unsubscribed[kind.index()]).sum::<u64>();
        self.outcome.uncommitted = self.shared.uncommitted();
        // The control thread has a clone of the context, and only dropping the last clone waits for
        // lingering messages.
        self.shared.finish();
        self.shared.wait_for_control();
        let Publisher { socket, name, mut outcome, .. } = self;
        drop(socket);
        let Outcome { offered, unpublished, uncommitted, .. } = outcome;
        info!(stream = %name, offered, unpublished, uncommitted, "stream ended");
        outcome.cut_short = closing_at.elapsed() + LINGER_ACCURACY >= linger;
        if outcome.cut_short {
            warn!(
                stream = %name,
                connected = is_connected,
                linger_ms = milliseconds(linger),
                "drain deadline exceeded while messages to the proxy lingered, the last records may be lost"
            );
        }
        Ok(outcome)
    }
}

impl Writer for Publisher {
    fn run(self: Box<Self>, worker: &Worker) -> Result<Outcome, BusError> {
        Publisher::run(*self, worker)
    }
}

/// Notifies the control thread that the writer has ended, cleanly or by a panic.
struct Finished(Arc<StreamShared>);

impl Drop for Finished {
    fn drop(&mut self) {
        self.0.finish();
    }
}
