//! The publisher: one thread that is the only writer of a stream.
//!
//! ```text
//!                  ┌─▶ EarlyQueue ─┐  before the list of own destinations is known
//! Producer ═▶ take ┤               │
//!                  └───────────────┴─▶ Lanes ─▶ servers ─▶ acknowledgements ─▶ Lanes
//! ```

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use async_nats::{HeaderMap, StatusCode, Subscriber};
use crossbeam_channel::TryRecvError;
use futures_util::{FutureExt, StreamExt, future::select};
use sekiwake_group::{OwnDestinations, StatusIdentity};
use sekiwake_record::{Kind, Name, Outbound, Topic};
use sekiwake_runtime::{Hangups, Latch, RateLimited, StatusResponder, Worker};
use sekiwake_sys::clock::wall_now_ns;
use serde_json::json;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
};
use tracing::{info, warn};

use super::{
    connection::{Connection, Nats},
    followers::{Followers, GroupKeys, read_groups},
    keys::{Put, outcome},
    lanes::Lanes,
    own::{LeftAlone, follow},
    settings::JetStreamSettings,
    state::{At, REPEAT_EVERY},
    status::report_status,
    streams::{NotUsable, data_config, data_subject, state_config},
};
use crate::{
    BusError, Outcome, Overflow, Producer, PublishedStream, Reporting, StreamSettings, SubscriptionWatch, Writer,
    metrics::{JetStreamPublisherMetrics, PublisherMetrics},
    reminder::{Due, Reminder},
    stream::{EarlyQueue, Filtered, HANDOVERS, Handover, Intake, without_own},
};

/// The longest wait for hand-overs and acknowledgements.
const IDLE_WAIT: Duration = Duration::from_millis(50);
/// The same while there are early batches or an end to be noticed.
const BUSY_WAIT: Duration = Duration::from_millis(10);
/// How often metrics are set.
const METER_EVERY: Duration = Duration::from_millis(500);
/// How often a stream that cannot be used is looked at again.
const CHECK_EVERY: Duration = Duration::from_secs(1);
/// The same for one that can, to see how far it reaches back.
const LOOK_EVERY: Duration = Duration::from_secs(15);
/// How far a file is read ahead of the acknowledgements, bytes, unless less memory is configured.
const AHEAD_BYTES: usize = 16 << 20;
/// The same ahead of the slowest group, unless the servers retain less than four times that.
const AHEAD_OF_GROUPS_BYTES: usize = 64 << 20;
/// Early batches published in one go.
const EARLY_BURST: usize = 256;
/// How long a publisher at the end of its file waits for servers or groups that are away.
const ABSENT_AT_END: Duration = Duration::from_secs(60);
/// Time without an acknowledgement that counts as an outage.
const WITHOUT_LEADER_AFTER: Duration = Duration::from_millis(500);

/// The only writer of a stream.
pub(crate) struct JetStreamWriter {
    connection: Connection,
    publishing: PublishingThread,
}

struct PublishingThread {
    name: Name,
    epoch: u64,
    overflow: Overflow,
    intake: Intake,
    own: OwnDestinations,
    left_alone: LeftAlone,
    early: EarlyQueue,
    lanes: Lanes,
    /// The groups that handle what is published, for a file.
    followers: Followers,
    group_keys: GroupKeys,
    /// Publishing has begun: from here on the capture threads leave out own destinations.
    is_publishing: bool,
    ahead_bytes: usize,
    ahead_of_groups_bytes: usize,
    checked: Checked,
    /// The streams can be used.
    is_usable: bool,
    /// Connections that have been seen.
    connects: u64,
    inbox: String,
    acknowledged_at: Instant,
    refused: RateLimited,
    waiting_for: Reminder<String>,
    connected: Latch,
    ready: Latch,
    watch: SubscriptionWatch,
    status: StatusResponder,
    outcome: Outcome,
    metrics: PublisherMetrics,
    jetstream_metrics: JetStreamPublisherMetrics,
    metered_at: Instant,
}

impl JetStreamWriter {
    /// A new stream. `connected` is set while the streams can be used, and `reporting.ready` once
    /// the own destinations are known.
    ///
    /// # Errors
    /// No descriptor or thread is left, files cannot be used, or no random numbers.
    pub(crate) fn open(
        to: &Arc<JetStreamSettings>,
        hangups: &Hangups,
        settings: StreamSettings,
        connected: Latch,
        reporting: Reporting,
    ) -> Result<PublishedStream, BusError> {
        let StreamSettings { name, retain_bytes, overflow, .. } = settings;
        let epoch = getrandom::u64().map_err(BusError::Random)?;
        let mut connection = Connection::open(to, hangups, "publisher")?;
        let Reporting { metrics, ready, status, feed, .. } = reporting;
        let publisher_metrics = PublisherMetrics::new(&metrics);
        let (producer, intake) = Producer::new(overflow, publisher_metrics.bus_full.clone()).map_err(BusError::Wake)?;
        let own = OwnDestinations::default();
        let left_alone = LeftAlone::default();
        let watch = SubscriptionWatch::default();
        let checked = Checked::default();
        let group_keys = GroupKeys::default();
        let jetstream_metrics = JetStreamPublisherMetrics::new(&metrics);
        let publishing = PublishingThread {
            lanes: Lanes::new(name.as_str(), epoch, retain_bytes),
            epoch,
            overflow,
            intake,
            // Not for a file: its datagrams were sent long ago and cannot be part of a loop.
            own: own.clone(),
            left_alone: left_alone.clone(),
            early: EarlyQueue::new(retain_bytes),
            followers: Followers::new(),
            group_keys: group_keys.clone(),
            is_publishing: false,
            ahead_bytes: retain_bytes.into_iter().min().unwrap_or(0).min(2 * AHEAD_BYTES) / 2,
            ahead_of_groups_bytes: usize::try_from(to.max_bytes / 4).unwrap_or(usize::MAX).min(AHEAD_OF_GROUPS_BYTES),
            checked: checked.clone(),
            is_usable: false,
            connects: 0,
            inbox: connection.nats().client.new_inbox(),
            acknowledged_at: Instant::now(),
            refused: RateLimited::default(),
            waiting_for: Reminder::default(),
            connected,
            ready,
            watch: watch.clone(),
            status,
            outcome: Outcome::default(),
            metrics: publisher_metrics,
            jetstream_metrics: jetstream_metrics.clone(),
            metered_at: Instant::now(),
            name: name.clone(),
        };
        let spawned = connection.nats().clone();
        connection.spawn(keep_checking(spawned.clone(), jetstream_metrics, checked));
        match overflow {
            Overflow::Drop => connection.spawn(follow(spawned.clone(), own.clone(), left_alone)),
            Overflow::Wait => connection.spawn(read_groups(spawned.clone(), group_keys)),
        }
        if let Ok(service) = Name::new(feed.service()) {
            let identity = StatusIdentity { service, group: None, member: name, incarnation: epoch };
            connection.spawn_to_the_end(report_status(spawned, identity, feed));
        }
        Ok(PublishedStream {
            producer,
            own,
            subscribers: watch,
            sources: Box::new(|| json!({ "examined_records": 0, "sources": 0, "top": [] })),
            writer: Box::new(JetStreamWriter { connection, publishing }),
            responder: None,
        })
    }
}

impl Writer for JetStreamWriter {
    fn run(self: Box<Self>, worker: &Worker) -> Result<Outcome, BusError> {
        let JetStreamWriter { connection, publishing } = *self;
        let nats = connection.nats().clone();
        connection.block_on(publishing.run(&nats, worker))
    }
}

impl PublishingThread {
    async fn run(mut self, nats: &Nats, worker: &Worker) -> Result<Outcome, BusError> {
        info!(stream = %self.name, epoch = self.epoch, "stream started");
        let bell = self.bell().map_err(BusError::Wake)?;
        let failed = |source: async_nats::SubscribeError| BusError::Io { role: "publisher", source: source.into() };
        let mut answers = nats.client.subscribe(format!("{}.*.*", self.inbox)).await.map_err(failed)?;
        let mut announce_at = Instant::now();
        let mut ended_at = None;
        loop {
            worker.beat();
            let has_producers = self.take(worker);
            let now = Instant::now();
            self.follow_check();
            self.follow_groups(now);
            self.publish_early();
            self.take_answers(&mut answers);
            self.follow_connection(nats);
            self.send(nats).await;
            if now >= announce_at && self.is_usable {
                self.announce(nats, false).await;
                announce_at = now + REPEAT_EVERY;
            }
            self.report(nats, now);
            if !has_producers {
                let ended_at = *ended_at.get_or_insert(now);
                let is_over = match worker.deadline() {
                    // The last part of the time is for the last announcement.
                    Some(end) => now + Duration::from_millis(200) >= end,
                    None => self.is_abandoned(nats, now) && now.duration_since(ended_at) >= ABSENT_AT_END,
                };
                let is_published = self.lanes.is_empty() && self.early.is_empty() && self.intake.handovers.is_empty();
                if is_over || is_published && self.followers.records() == 0 {
                    return Ok(self.close(nats).await);
                }
            }
            self.wait(&bell, &mut answers, has_producers).await;
        }
    }

    fn bell(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let descriptor = self.intake.bell.as_fd().try_clone_to_owned()?;
        #[expect(deprecated, reason = "the other constructor is unsafe, and an OwnedFd is what it asks for")]
        AsyncFd::with_interest(descriptor, Interest::READABLE)
    }

    /// Takes a bounded number of hand-overs. Returns whether there are producers left.
    fn take(&mut self, worker: &Worker) -> bool {
        for _ in 0..HANDOVERS {
            if self.is_full() {
                // The producers wait too. Only a stop request ends the reading of a file early.
                return !worker.stopping();
            }
            match self.intake.handovers.try_recv() {
                Ok(handover) => self.publish(handover),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
        true
    }

    /// Whether producers have to wait, because their last batches have not been published.
    fn is_full(&self) -> bool {
        self.overflow == Overflow::Wait && (!self.early.is_empty() || self.is_ahead())
    }

    /// Whether a file is read too far ahead of the servers or of the slowest group.
    fn is_ahead(&self) -> bool {
        self.followers.bytes() >= self.ahead_of_groups_bytes
            || Kind::ALL.into_iter().any(|kind| self.lanes.bytes_of(kind) >= self.ahead_bytes)
    }

    /// Whether the servers, or all members of the groups, are away.
    fn is_abandoned(&self, nats: &Nats, now: Instant) -> bool {
        !nats.link.is_connected() || self.followers.records() > 0 && !self.followers.is_followed(ABSENT_AT_END, now)
    }

    /// Takes the positions of groups. The reader of a file waits for the first groups.
    fn follow_groups(&mut self, now: Instant) {
        if let Some(stored) = self.group_keys.take()
            && self.followers.read(&stored, now)
        {
            self.watch.subscribed();
        }
    }

    fn publish(&mut self, handover: Handover) {
        let is_early = !self.is_publishing || !self.early.is_empty();
        for outbound in handover.take() {
            if self.overflow == Overflow::Wait {
                self.early.push(outbound);
            } else if !is_early {
                self.push(outbound);
            } else if let Err(Outbound { topic, batch }) = self.early.try_push(outbound) {
                self.drop_records(topic, u64::from(batch.count));
            }
        }
    }

    /// Gives a batch to its lane, which counts as offered when it is acknowledged. Without room it
    /// is dropped and counted.
    fn push(&mut self, outbound: Outbound) {
        if let Err(Outbound { topic, batch }) = self.lanes.push(outbound) {
            self.drop_records(topic, u64::from(batch.count));
            self.intake.recycle(batch.body);
        }
    }

    /// Counts records that are not published.
    fn drop_records(&mut self, topic: Topic, count: u64) {
        self.metrics.bus_full[topic.kind.index()].inc_by(count);
        self.outcome.offered += count;
        self.outcome.unpublished += count;
    }

    /// Publishes early batches: those of a capture once the list of own destinations is known,
    /// without records to them; those of a file as far as acknowledgements keep up.
    fn publish_early(&mut self) {
        let is_file = self.overflow == Overflow::Wait;
        if !is_file && !self.left_alone.is_known() {
            return;
        }
        if !self.is_publishing {
            self.is_publishing = true;
            self.ready.set(true);
            // Batches from before the capture threads used the list are in the channel by now.
            for _ in 0..HANDOVERS {
                let Ok(handover) = self.intake.handovers.try_recv() else { break };
                for outbound in handover.take() {
                    if let Err(Outbound { topic, batch }) = self.early.try_push(outbound) {
                        self.drop_records(topic, u64::from(batch.count));
                    }
                }
            }
            let records = self.early.records();
            if records > 0 {
                info!(stream = %self.name, records, "own destinations known, publishing earlier records");
            }
        }
        if self.early.is_empty() {
            return;
        }
        let own = self.own.list();
        for _ in 0..EARLY_BURST {
            if is_file && self.is_ahead() {
                break;
            }
            let Some(Outbound { topic, batch }) = self.early.pop() else { break };
            let filtered = match own.addresses() {
                [] => Filtered { kept: Some(batch), left_out: 0 },
                _ => without_own(batch, &own),
            };
            let left_out = u64::from(filtered.left_out);
            self.metrics.own_destination[topic.kind.index()].inc_by(left_out);
            self.outcome.offered += left_out;
            if let Some(batch) = filtered.kept {
                self.push(Outbound { topic, batch });
            }
        }
    }

    /// Takes what the task that checks the streams has found.
    fn follow_check(&mut self) {
        let Some(checked) = self.checked.take() else { return };
        let problem = checked.as_ref().err().map(ToString::to_string);
        match self.waiting_for.due(problem.as_ref(), Instant::now()) {
            Some(Due::Lasts) => {
                let error = problem.unwrap_or_default();
                warn!(stream = %self.name, error, "the bus cannot be used, keeping records in memory");
            }
            Some(Due::Over) => info!(stream = %self.name, "the bus can be used"),
            None => {}
        }
        match checked {
            Ok(()) => {
                self.is_usable = true;
            }
            // An outage is no reason to doubt streams that could be used before.
            Err(error) => self.is_usable &= error.is_passing(),
        }
    }

    /// After a new connection, everything in flight is sent again.
    fn follow_connection(&mut self, nats: &Nats) {
        let connects = nats.link.connects();
        if connects != self.connects {
            if self.connects > 0 {
                self.jetstream_metrics.reconnects.inc_by(connects - self.connects);
            }
            self.connects = connects;
            self.lanes.send_all_again(Instant::now());
        }
    }

    async fn send(&mut self, nats: &Nats) {
        // The connection's queue is bounded, so nothing is given to one that is not there.
        if !self.is_usable || !nats.link.is_connected() {
            return;
        }
        let now = Instant::now();
        for (topic, message) in self.lanes.due(now) {
            send_message(nats, &self.inbox, topic, message.number, &message.id, message.payload).await;
        }
        let intake = &self.intake;
        while let Some((topic, message)) = self.lanes.next_message(now, |buffer| intake.recycle(buffer)) {
            let (number, id, payload) = (message.number, message.id.clone(), message.payload.clone());
            send_message(nats, &self.inbox, topic, number, &id, payload).await;
        }
    }

    fn take_answers(&mut self, answers: &mut Subscriber) {
        while let Some(Some(answer)) = answers.next().now_or_never() {
            self.take_answer(&answer);
        }
    }

    fn take_answer(&mut self, answer: &async_nats::Message) {
        let mut tokens = answer.subject.as_str().rsplit('.');
        let number = tokens.next().and_then(|number| number.parse().ok());
        let topic = tokens.next().and_then(|index| index.parse().ok()).and_then(Topic::from_index);
        let (Some(number), Some(topic)) = (number, topic) else { return };
        let put = match answer.status {
            Some(StatusCode::NO_RESPONDERS) => {
                // There is no leader, or no stream: it may have been deleted.
                self.checked.want();
                Put::Unknown
            }
            _ => outcome(&answer.payload),
        };
        let now = Instant::now();
        if put == Put::Refused
            && let Some(suppressed) = self.refused.allow(now)
        {
            let error = String::from_utf8_lossy(&answer.payload).into_owned();
            warn!(stream = %self.name, %topic, error, suppressed, "a NATS server refuses a message, sending it again");
        }
        if let Some(acknowledged) = self.lanes.answered(topic, number, put, now) {
            let kind = topic.kind.index();
            let records = u64::from(acknowledged.records);
            self.metrics.records[kind].inc_by(records);
            self.metrics.batches[kind].inc();
            self.metrics.bytes[kind].inc_by(acknowledged.body_bytes as u64);
            if self.overflow == Overflow::Wait {
                let body_bytes = acknowledged.body_bytes;
                self.followers.stored(topic, acknowledged.stream_sequence, acknowledged.records, body_bytes);
            }
            self.outcome.offered += records;
            self.jetstream_metrics.acknowledgement_seconds.observe(acknowledged.took.as_secs_f64());
            self.acknowledged_at = now;
        }
    }

    /// Waits for a hand-over, an answer, or a change of the connection.
    async fn wait(&mut self, bell: &AsyncFd<OwnedFd>, answers: &mut Subscriber, has_producers: bool) {
        let is_busy = !has_producers || !self.early.is_empty() || self.is_full();
        let wait = if is_busy { BUSY_WAIT } else { IDLE_WAIT };
        self.intake.bell.begin_wait();
        if !is_busy && !self.intake.handovers.is_empty() {
            self.intake.bell.end_wait();
            // The connection makes progress meanwhile.
            tokio::task::yield_now().await;
            return;
        }
        let mut answer = None;
        tokio::select! {
            ready = bell.readable() => {
                if let Ok(mut ready) = ready {
                    self.intake.bell.silence();
                    ready.clear_ready();
                }
            }
            message = answers.next() => answer = message,
            () = tokio::time::sleep(wait) => {}
        }
        self.intake.bell.end_wait();
        if let Some(answer) = answer {
            self.take_answer(&answer);
        }
    }

    async fn announce(&self, nats: &Nats, has_ended: bool) {
        let at_ns = wall_now_ns();
        let stored_until_ns = self.lanes.oldest_captured_at_ns().map_or(at_ns, |oldest| oldest.min(at_ns));
        let at = At {
            name: self.name.clone(),
            epoch: self.epoch,
            has_ended,
            at_ns,
            stored_until_ns: self.early.is_empty().then_some(stored_until_ns),
            positions: self.lanes.positions().collect(),
            sent: Some(self.lanes.sent().collect()),
            own: self.left_alone.applied(),
        };
        let subject = At::subject(&self.name, self.epoch);
        if has_ended {
            // It is the last word, so it is waited for.
            nats.put(&subject, at.encode()).await;
        } else {
            nats.send(&subject, at.encode()).await;
        }
    }

    fn report(&mut self, nats: &Nats, now: Instant) {
        let oldest = || self.lanes.oldest().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.status.answer(|| {
            let own = self.own.list();
            let left_alone = own.left_alone().map(
                |(destination, datagrams)| json!({ "destination": destination.to_string(), "datagrams": datagrams }),
            );
            json!({
                "stream": self.name.as_str(),
                "epoch": format!("{:016x}", self.epoch),
                "may_publish": self.is_publishing,
                "is_usable": self.is_usable,
                "server": nats.link.is_connected().then(|| nats.server()),
                "unacknowledged_bytes": self.lanes.bytes(),
                "unacknowledged_records": self.lanes.records(),
                "unacknowledged_seconds": oldest().as_secs_f64(),
                "own_destinations": own.addresses().iter().map(ToString::to_string).collect::<Vec<_>>(),
                "left_alone": left_alone.collect::<Vec<_>>(),
                "unpublished": self.metrics.unpublished().by_reason(),
                "rejected_messages": self.left_alone.malformed(),
            })
        });
        let since = now.saturating_duration_since(self.metered_at);
        if since < METER_EVERY {
            return;
        }
        let is_connected = nats.link.is_connected();
        self.connected.set(is_connected && self.is_usable);
        self.metrics.connected.set(i64::from(is_connected));
        self.metrics.waiting_records.set((self.lanes.records() + self.early.records()) as i64);
        self.metrics.waiting_bytes.set((self.lanes.bytes() + self.early.bytes()) as i64);
        let metrics = &self.jetstream_metrics;
        let oldest = oldest();
        metrics.unacknowledged_seconds.set(oldest.as_secs_f64());
        let silence = now.saturating_duration_since(self.acknowledged_at);
        if self.lanes.in_flight() > 0 && silence.min(oldest) >= WITHOUT_LEADER_AFTER {
            metrics.without_leader_seconds.inc_by(since.as_secs_f64());
        }
        self.metered_at = now;
    }

    async fn close(mut self, nats: &Nats) -> Outcome {
        self.intake.close();
        while let Some(Outbound { topic, batch }) = self.early.pop() {
            self.drop_records(topic, u64::from(batch.count));
        }
        if nats.link.is_connected() && self.is_usable {
            self.announce(nats, true).await;
        }
        let lanes = std::mem::replace(&mut self.lanes, Lanes::new("", 0, [0; Kind::ALL.len()]));
        let mut unacknowledged = 0;
        for (topic, unsent, sent) in lanes.give_up() {
            self.drop_records(topic, unsent);
            self.jetstream_metrics.unacknowledged[topic.kind.index()].inc_by(sent);
            self.outcome.offered += sent;
            self.outcome.unpublished += sent;
            unacknowledged += sent;
        }
        self.outcome.offered += self.intake.rejections.total();
        self.outcome.unpublished += self.intake.rejections.total();
        self.outcome.cut_short = unacknowledged > 0;
        self.outcome.uncommitted = self.followers.records();
        let Outcome { offered, unpublished, uncommitted, .. } = self.outcome;
        info!(stream = %self.name, offered, unpublished, uncommitted, "stream ended");
        if unacknowledged > 0 {
            warn!(
                stream = %self.name,
                records = unacknowledged,
                "drain deadline exceeded, records were sent and not acknowledged, the servers may have them"
            );
        }
        self.outcome
    }
}

/// Gives a message to the connection. One that it does not take is sent again later.
async fn send_message(nats: &Nats, inbox: &str, topic: Topic, number: u64, id: &str, payload: bytes::Bytes) {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", id);
    let reply = format!("{inbox}.{}.{number}", topic.index());
    let sent = nats.client.publish_with_reply_and_headers(data_subject(topic), reply, headers, payload);
    // The queue of the connection is full only if that is about to end.
    drop(tokio::time::timeout(Duration::from_secs(1), sent).await);
}

/// What a check of the streams has found, until the publisher takes it.
#[derive(Clone, Debug, Default)]
struct Checked {
    found: Arc<Mutex<Option<Result<(), NotUsable>>>>,
    wanted: Arc<Notify>,
}

impl Checked {
    fn set(&self, checked: Result<(), NotUsable>) {
        *self.found.lock().unwrap_or_else(PoisonError::into_inner) = Some(checked);
    }

    fn take(&self) -> Option<Result<(), NotUsable>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Has the streams checked soon.
    fn want(&self) {
        self.wanted.notify_one();
    }
}

/// Checks the streams again and again, beside the publisher, which must not wait for an answer.
async fn keep_checking(nats: Nats, metrics: JetStreamPublisherMetrics, checked: Checked) {
    loop {
        let found = check_streams(&nats, &metrics).await;
        let is_ok = found.is_ok();
        checked.set(found);
        // Not once per error of a server: a refused publication is one, too.
        tokio::time::sleep(BUSY_WAIT * 10).await;
        let changed = nats.link.changed();
        if is_ok {
            let wanted = checked.wanted.notified();
            drop(tokio::time::timeout(LOOK_EVERY, select(pin!(changed), pin!(wanted))).await);
        } else {
            drop(tokio::time::timeout(CHECK_EVERY, changed).await);
        }
    }
}

/// Checks the streams that a publisher needs, or creates them.
async fn check_streams(nats: &Nats, metrics: &JetStreamPublisherMetrics) -> Result<(), NotUsable> {
    nats.ensure(&state_config(&nats.settings)).await?;
    for kind in Kind::ALL {
        let info = nats.ensure(&data_config(kind, &nats.settings)).await?;
        let state = &info.state;
        let seconds = (state.last_timestamp - state.first_timestamp).as_seconds_f64();
        let retained = if state.messages > 0 { seconds.max(0.0) } else { 0.0 };
        metrics.retained_seconds[kind.index()].set(retained);
    }
    Ok(())
}
