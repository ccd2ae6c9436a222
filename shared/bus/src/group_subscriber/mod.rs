//! A subscriber that is a member of a group: it receives the shards that it owns, from the group's
//! position on, without gaps.
//!
//! ```text
//! SUB ── batches ──▶ check ─▶ Member ─▶ GroupDelivery + AckToken ─▶ sender, writer, ...
//! DEALER ◀─ renewals, requests ─┘ ▲  ▲                                │
//!        ── grants, repairs ──────┘  └───────── Completions ◀── the token is dropped when
//!                                                               the batch is handled
//!        ◀─ hand-off entries ─▶ HandoffKeeper, if enabled: state for the next owner of a shard
//! ```

mod ack_token;
mod handoff_wait;
mod leaving;
mod loss_log;
mod status;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_group::{
    Arrival, BootTime, GiveUp, HandoffKeeper, HandoffKeeperSettings, Member, MemberOutput, MemberSettings, Permit,
    Received, StatusIdentity, Stream,
    wire::{Destination, HandoffEntry, MAX_STREAMS, RejectionReason, is_handoff, is_status},
};
use sekiwake_record::{Announcement, Batch, DecodeError, Header, Kind, Name, Shard, Topic};
use sekiwake_runtime::{Latch, RateLimited, StatusFeed, StatusResponder};
use sekiwake_sys::clock::wall_now_ns;
use tracing::{debug, info, warn};

use self::{
    ack_token::{Completion, Completions},
    loss_log::{LossLog, Lost},
    status::{handoff_status, member_status},
};
use crate::{
    BusError, Frame, Reporting,
    clock::{boot_now, wait_until},
    connections::{Connections, Side},
    control::dealer::{CONTROL_BURST, Incoming, receive, routing_id, send},
    data::{age_seconds, check_sequence},
    inlet::{Inlet, wait},
    metrics::{GroupMetrics, HandoffMetrics},
    reminder::{Due, Reminder},
    settings::{Controlling, Subscribing},
    socket::{Bus, Rest, receive_rest},
    status::StatusReporter,
};

pub use ack_token::AckToken;
pub use handoff_wait::HandoffWait;
pub use leaving::{Leaving, Progress};

/// How often the connections are checked and metrics are set.
const METER_EVERY: Duration = Duration::from_millis(200);
/// Data messages handled before control messages, completions and deadlines are handled again.
const BURST: usize = 64;

/// Settings of a [`GroupSubscriber`].
#[derive(Clone, Debug)]
pub struct GroupSubscriberSettings {
    /// The relays.
    pub subscribing: Subscribing,
    /// The coordinator.
    pub controlling: Controlling,
    /// The group, `<service>.<name>`.
    pub group: Name,
    /// The member's name, for logs and `/status`.
    pub label: Name,
    /// The kind that it receives.
    pub kind: Kind,
    /// Where to start if the group has no known position: at the oldest record that was published
    /// no longer ago than this.
    pub start_age: Duration,
    /// Whether one member of the group owns all shards and the others stand by.
    pub single_active: bool,
    /// Whether it leaves hand-off state for the next owners of its shards, and requests that of the
    /// previous owners.
    pub handoff: bool,
}

/// A batch to act on. As far as the group knows, none of its records has been delivered to the
/// group before.
#[derive(Debug)]
pub struct GroupDelivery {
    /// Its topic.
    pub topic: Topic,
    /// Its stream.
    pub stream: Stream,
    /// The sequence number of the first record in `batch`.
    pub first_sequence: u64,
    /// Capture time of the earliest record of the published batch, nanoseconds since
    /// 1970-01-01T00:00:00Z. Duplicates at its beginning may be missing from `batch`.
    pub first_captured_at_ns: u64,
    /// Capture time of the latest one.
    pub last_captured_at_ns: u64,
    /// The records.
    pub batch: Batch<Frame>,
    /// The right to act on it, and the duty to acknowledge it. It must be kept until every record
    /// has been sent, stored, or counted as dropped; dropping it moves the group's position past
    /// the batch.
    pub ack_token: AckToken,
}

/// A checked batch with the capture times from its header.
#[derive(Debug)]
struct Checked {
    batch: Batch<Frame>,
    first_captured_at_ns: u64,
    last_captured_at_ns: u64,
}

/// A member of a group. Belongs to one thread.
pub struct GroupSubscriber {
    data: Inlet,
    control: Inlet,
    connections: Connections,
    control_connections: Connections,
    /// Retransmitted records received.
    retransmitted: u64,
    in_process: bool,
    ready: Latch,
    member: Member<Checked>,
    handoff: Option<Handoff>,
    /// Known streams, so that batches share their names instead of allocating them.
    streams: VecDeque<Stream>,
    deliveries: VecDeque<GroupDelivery>,
    permit: Arc<Permit>,
    completions: Arc<Completions>,
    /// Reused memory for completions.
    completed: Vec<Completion>,
    /// Data messages handled since the last `maintain`.
    burst: usize,
    metered_at: Option<Instant>,
    metrics: GroupMetrics,
    status: StatusResponder,
    reporter: Option<StatusReporter>,
    loss_log: LossLog,
    skipped_log: RateLimited,
    rejected_log: RateLimited,
    /// Members with other destinations.
    differing: Reminder<Vec<Name>>,
    group: Name,
    was_leased: bool,
    owned: usize,
    has_doubts: bool,
}

/// The exchange of hand-off state, with its metrics.
struct Handoff {
    keeper: HandoffKeeper,
    metrics: HandoffMetrics,
}

impl GroupSubscriber {
    /// Connects; the proxy may be started later. It is ready while the member has a lease.
    ///
    /// # Errors
    /// Invalid endpoints, too many sockets, or no random numbers.
    pub fn connect(
        bus: &Bus,
        settings: GroupSubscriberSettings,
        reporting: Reporting,
    ) -> Result<GroupSubscriber, BusError> {
        let Reporting { metrics, ready, status, feed } = reporting;
        let GroupSubscriberSettings { subscribing, controlling, group, label, kind, start_age, single_active, handoff } =
            settings;
        let data = bus.subscriber(subscribing.keys.as_ref())?;
        let mut connections = bus.watch(&data, Side::Subscribe)?;
        data.set_subscribe(Announcement::TOPIC_PREFIX.as_bytes()).map_err(failed)?;
        let control = bus.control_client(&routing_id()?, controlling.keys.as_ref())?;
        let mut control_connections = bus.watch(&control, Side::Control)?;
        connections.connect(&data, &subscribing.endpoints)?;
        control_connections.connect(&control, &controlling.endpoints)?;
        let incarnation = getrandom::u64().map_err(BusError::Random)?;
        let reporter = reporter(feed, &group, &label, incarnation);
        let mut member_settings = MemberSettings::new(group.clone(), kind, label);
        member_settings.single_active = single_active;
        member_settings.start_age = start_age;
        let member = Member::new(member_settings, incarnation, boot_now());
        let handoff = handoff.then(|| Handoff {
            keeper: HandoffKeeper::new(HandoffKeeperSettings::new(group.clone()), incarnation),
            metrics: HandoffMetrics::new(&metrics),
        });
        Ok(GroupSubscriber {
            data: Inlet::new(data),
            control: Inlet::new(control),
            connections,
            control_connections,
            retransmitted: 0,
            in_process: controlling.is_in_process(),
            ready,
            permit: member.permit(),
            member,
            handoff,
            streams: VecDeque::new(),
            deliveries: VecDeque::new(),
            completions: Arc::default(),
            completed: Vec::new(),
            burst: 0,
            metered_at: None,
            metrics: GroupMetrics::new(&metrics, kind),
            status,
            reporter,
            loss_log: LossLog::default(),
            skipped_log: RateLimited::default(),
            rejected_log: RateLimited::default(),
            differing: Reminder::default(),
            group,
            was_leased: false,
            owned: 0,
            has_doubts: false,
        })
    }

    /// The next batch to act on, or `None` if there is none within `timeout`. To be called
    /// continuously, even with nothing to act on, because it renews the lease.
    ///
    /// # Errors
    /// A socket failed because its context was terminated.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<GroupDelivery>, BusError> {
        let mut waited = false;
        loop {
            if let Some(delivery) = self.try_receive()? {
                return Ok(Some(delivery));
            }
            self.maintain()?;
            if !self.deliveries.is_empty() {
                continue;
            }
            if waited {
                return Ok(None);
            }
            let now = boot_now();
            let limit = self.wait_limit(now, timeout);
            let watched = [self.connections.events(), self.control_connections.events()];
            wait([&mut self.data, &mut self.control], watched, limit).map_err(failed)?;
            waited = true;
        }
    }

    /// The next batch to act on, or `None` if none has been received yet. Messages that are not for
    /// the caller do not keep it here: from time to time it returns `None` although there are more.
    /// To be followed by [`GroupSubscriber::receive`] then, which renews the lease.
    ///
    /// # Errors
    /// As [`GroupSubscriber::receive`].
    pub fn try_receive(&mut self) -> Result<Option<GroupDelivery>, BusError> {
        loop {
            if let Some(delivery) = self.deliveries.pop_front() {
                return Ok(Some(delivery));
            }
            if self.burst >= BURST {
                self.burst = 0;
                // While there is always data, nobody waits for these.
                self.control.ask_again();
                self.connections.events().ask_again();
                self.control_connections.events().ask_again();
                self.maintain()?;
                return Ok(self.deliveries.pop_front());
            }
            match self.data.receive().map_err(failed)? {
                Some(topic) => {
                    self.burst += 1;
                    self.take_data(&topic)?;
                }
                None => {
                    self.burst = 0;
                    return Ok(None);
                }
            }
        }
    }

    /// Whether batches that it has delivered are not acknowledged yet.
    pub fn has_outstanding(&self) -> bool {
        // Each token has a reference.
        Arc::strong_count(&self.completions) > 1
    }

    /// Renews the lease and processes acknowledgements for at most `timeout`, without receiving
    /// data: for a caller that cannot take more.
    ///
    /// # Errors
    /// A socket failed because its context was terminated.
    pub fn poll_control(&mut self, timeout: Duration) -> Result<(), BusError> {
        self.maintain()?;
        let limit = self.wait_limit(boot_now(), timeout);
        let watched = [self.connections.events(), self.control_connections.events()];
        wait([&mut self.control], watched, limit).map_err(failed)?;
        self.maintain()
    }

    /// Sets whether the caller cannot take more for the moment, so that the member requests no
    /// repairs.
    pub fn set_is_full(&mut self, is_full: bool) {
        self.member.set_consumer_is_full(is_full);
    }

    /// Replaces the destinations that captures must not capture.
    pub fn set_destinations(&mut self, destinations: Vec<Destination>) {
        self.member.set_destinations(boot_now(), destinations);
    }

    /// Sets the hash of the destinations as they are configured. Members of one group with
    /// different hashes are reported; 0, the default, is not compared.
    pub fn set_destinations_digest(&mut self, digest: u64) {
        self.member.set_destinations_digest(digest);
    }

    /// Whether the newest destinations may be sent to: every publisher has stopped capturing them,
    /// or has had enough time to.
    pub fn may_use_destinations(&self) -> bool {
        self.member.may_use_destinations(boot_now())
    }

    /// Whether everything known to be published has been delivered and acknowledged.
    pub fn is_caught_up(&self) -> bool {
        let status = self.member.status(boot_now());
        status.outstanding_bytes == 0
            && status.reorder_bytes == 0
            && status.streams.iter().all(|stream| stream.lag == 0)
    }

    /// Whether everything known to be published on its shards has been delivered. Not all of it
    /// need be acknowledged.
    pub fn has_received_all(&self) -> bool {
        self.member.has_received_all()
    }

    /// Whether this member owns all shards of the group.
    pub fn owns_all(&self) -> bool {
        self.member.owns_all()
    }

    /// Whether this member owns any shard of the group, or is releasing it.
    pub fn owns_any(&self) -> bool {
        self.member.owned().next().is_some()
    }

    /// Begins to release all shards.
    pub fn leave(&mut self) {
        if let Some(reporter) = &mut self.reporter {
            reporter.stopping(boot_now());
        }
        self.member.leave(boot_now());
    }

    /// Whether all shards have been released.
    pub fn has_left(&self) -> bool {
        self.member.has_left()
    }

    /// Whether the member has a lease, and so a proxy to release its shards to.
    pub fn has_lease(&self) -> bool {
        boot_now() < self.member.lease_until()
    }

    /// Leaves a hand-off entry with the coordinator for the next owner of the shard. Of two entries
    /// with the same key (1 to 64 bytes) the one with the higher `at_ns` wins; an empty value
    /// deletes the entry. It is sent until it is acknowledged. Returns `false`, counted, if it is
    /// too large (8 KiB), if 16 MiB are pending, or if hand-off is disabled.
    pub fn put_handoff_entry(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        self.handoff.as_mut().is_some_and(|handoff| handoff.keeper.put(shard, key, value, at_ns))
    }

    /// The number of hand-off entries that the coordinator has not acknowledged. A member that
    /// leaves before it is 0 loses them.
    pub fn pending_handoff(&self) -> usize {
        self.handoff.as_ref().map_or(0, |handoff| handoff.keeper.pending())
    }

    /// Whether all hand-off entries of a shard have been received and taken since this member owns
    /// it. Stays `false` with a proxy without hand-off support; see [`HandoffWait`] for how long to
    /// wait.
    pub fn handoff_complete(&self, shard: Shard) -> bool {
        self.handoff.as_ref().is_some_and(|handoff| handoff.keeper.is_complete(shard))
    }

    /// The next hand-off entry of a previous owner. May return an entry again, or one of this
    /// member's own.
    pub fn take_handoff_entry(&mut self) -> Option<HandoffEntry> {
        self.handoff.as_mut().and_then(|handoff| handoff.keeper.take())
    }

    /// The next shard whose hand-off entries must all be put again because there is a new
    /// coordinator. This member owned the shard when the coordinator appeared, but may not own it
    /// now.
    pub fn shard_to_present(&mut self) -> Option<Shard> {
        self.handoff.as_mut().and_then(|handoff| handoff.keeper.next_shard_to_replay())
    }

    /// The longest wait that misses no deadline.
    fn wait_limit(&self, now: BootTime, timeout: Duration) -> Duration {
        let limit = wait_until(now, self.next_deadline(), timeout);
        self.reporter.as_ref().map_or(limit, |reporter| reporter.wait_limit(now, limit))
    }

    fn next_deadline(&self) -> BootTime {
        let handoff = self.handoff.as_ref().map_or(BootTime::NEVER, |handoff| handoff.keeper.next_deadline());
        self.member.next_deadline().min(handoff)
    }

    /// Everything but data: acknowledgements, control messages, deadlines, metrics.
    fn maintain(&mut self) -> Result<(), BusError> {
        self.collect_acks(boot_now());
        self.take_control_messages()?;
        let now = boot_now();
        // Hand-off entries are sent before a renewal that releases their shard, so that the next
        // owner finds them.
        self.maintain_handoff(now)?;
        if now >= self.member.next_deadline() {
            self.member.on_tick(now);
        }
        self.do_outputs()?;
        self.report(now);
        self.maintain_status(now)
    }

    /// Passes the acknowledgements of dropped tokens to the member.
    fn collect_acks(&mut self, now: BootTime) {
        self.completions.take(&mut self.completed);
        for completion in self.completed.drain(..) {
            let Completion { stream, shard, generation, first_sequence } = completion;
            self.member.handled(now, &stream, shard, generation, first_sequence);
        }
    }

    fn take_control_messages(&mut self) -> Result<(), BusError> {
        for taken in 0..CONTROL_BURST {
            let message = receive(&mut self.control, "group control")?;
            if taken == 0 && !matches!(message, Incoming::Nothing) {
                self.control_connections.heard();
            }
            match message {
                Incoming::Frame(frame) => match &mut self.handoff {
                    Some(handoff) if is_handoff(&frame) => handoff.keeper.on_message(boot_now(), &frame),
                    _ if is_status(&frame) => {
                        if let Some(reporter) = &mut self.reporter {
                            reporter.on_message(boot_now(), &frame);
                        }
                    }
                    _ => {
                        self.member.on_message(boot_now(), &frame);
                        self.do_outputs()?;
                    }
                },
                Incoming::Malformed => self.metrics.malformed.inc(),
                Incoming::Nothing => break,
            }
        }
        Ok(())
    }

    fn maintain_handoff(&mut self, now: BootTime) -> Result<(), BusError> {
        let Some(Handoff { keeper, .. }) = &mut self.handoff else { return Ok(()) };
        let is_leased = self.member.is_leased(now);
        keeper.follow(now, self.member.coordinator(), is_leased, self.member.shard_statuses());
        if now >= keeper.next_deadline() {
            keeper.on_tick(now);
        }
        while let Some(frame) = keeper.poll_output() {
            if !send(&mut self.control, &frame, "group control")? {
                // It is sent again, because it is not acknowledged.
                self.metrics.dropped.inc();
            }
        }
        Ok(())
    }

    /// Sends status, if somebody reads it. What the connection has no room for is dropped: the next
    /// status replaces it.
    fn maintain_status(&mut self, now: BootTime) -> Result<(), BusError> {
        let Some(reporter) = &mut self.reporter else { return Ok(()) };
        if now < reporter.next_deadline() && !reporter.is_collecting() {
            return Ok(());
        }
        reporter.tend(now);
        while let Some(frame) = reporter.poll_output() {
            if !send(&mut self.control, &frame, "group control")? {
                self.metrics.dropped.inc();
            }
        }
        Ok(())
    }

    fn take_data(&mut self, topic: &zmq::Message) -> Result<(), BusError> {
        let Rest { count, parts } = receive_rest(self.data.socket(), topic).map_err(failed)?;
        let taken = match (Topic::parse(topic), parts) {
            (Some(topic), [Some(header), Some(body)]) if count == 2 => self.batch(topic, &header, Frame::from(body)),
            (None, [Some(frame), None]) if topic.starts_with(Announcement::TOPIC_PREFIX.as_bytes()) => {
                self.announced(&frame)
            }
            _ => Err(DecodeError::Malformed { part: "message", reason: format!("{count} parts after the topic") }),
        };
        if let Err(error) = taken {
            self.metrics.malformed.inc();
            debug!(%error, topic = %String::from_utf8_lossy(topic).escape_debug(), "message rejected");
        }
        self.do_outputs()
    }

    /// Checks a batch, original or retransmitted, and passes it to the state machine.
    fn batch(&mut self, topic: Topic, header: &[u8], body: Frame) -> Result<(), DecodeError> {
        let header = Header::decode(header)?;
        check_sequence(header.next_sequence(), "header")?;
        let batch = Batch::decode(body, header.count)?;
        let stream = self.stream(header.stream_name, header.stream_epoch)?;
        let bytes = batch.memory_bytes();
        let Header { first_captured_at_ns, last_captured_at_ns, .. } = header;
        let batch = Checked { batch, first_captured_at_ns, last_captured_at_ns };
        let arrival = Arrival { first: header.first_sequence, count: header.count, bytes, batch };
        let received = self.member.on_batch(boot_now(), &stream, topic, arrival);
        match received {
            Received::Duplicate => self.metrics.duplicates.inc_by(u64::from(header.count)),
            Received::NoRoom => self.metrics.no_room.inc(),
            Received::Accepted | Received::NotOwned => {}
        }
        self.metrics.lag_seconds.set(age_seconds(header.last_captured_at_ns));
        Ok(())
    }

    fn announced(&mut self, frame: &[u8]) -> Result<(), DecodeError> {
        let announcement = Announcement::decode(frame)?;
        for position in &announcement.positions {
            check_sequence(position.next_sequence, "announcement")?;
        }
        self.member.on_announcement(boot_now(), &announcement);
        Ok(())
    }

    /// The stream of this name and epoch, with a shared name. The newest streams are in front.
    fn stream(&mut self, name: &str, epoch: u64) -> Result<Stream, DecodeError> {
        let known = self.streams.iter().position(|stream| stream.epoch == epoch && *stream.name == *name);
        if let Some(index) = known {
            return Ok(self.streams[index].clone());
        }
        let checked = Name::new(name);
        let checked = checked.map_err(|error| DecodeError::Malformed { part: "header", reason: error.to_string() })?;
        let stream = Stream::new(&checked, epoch);
        self.streams.truncate(MAX_STREAMS - 1);
        self.streams.push_front(stream.clone());
        Ok(stream)
    }

    fn do_outputs(&mut self) -> Result<(), BusError> {
        while let Some(output) = self.member.poll_output() {
            match output {
                MemberOutput::Send(frame) => {
                    if !send(&mut self.control, &frame, "group control")? {
                        // It describes a state, and the next message repeats it.
                        self.metrics.dropped.inc();
                    }
                }
                MemberOutput::Subscribe(topic) => {
                    self.data.socket().set_subscribe(topic.as_str().as_bytes()).map_err(failed)?;
                }
                MemberOutput::Unsubscribe(topic) => {
                    self.data.socket().set_unsubscribe(topic.as_str().as_bytes()).map_err(failed)?;
                }
                MemberOutput::Deliver { stream, topic, generation, first_sequence, skip, batch } => {
                    let Checked { mut batch, first_captured_at_ns, last_captured_at_ns } = batch;
                    self.metrics.duplicates.inc_by(u64::from(skip));
                    batch.drop_first(skip as usize);
                    let records = batch.len() as u64;
                    self.metrics.received.inc_by(records);
                    let next = first_sequence + records;
                    self.loss_log.delivered(&stream, topic, next, first_captured_at_ns, last_captured_at_ns);
                    let completion =
                        Completion { stream: stream.clone(), shard: topic.shard, generation, first_sequence };
                    let ack_token = AckToken::new(&self.permit, &self.completions, completion);
                    self.deliveries.push_back(GroupDelivery {
                        topic,
                        stream,
                        first_sequence,
                        first_captured_at_ns,
                        last_captured_at_ns,
                        batch,
                        ack_token,
                    });
                }
                MemberOutput::Repaired { topic, header, body } => {
                    self.retransmitted += Header::decode(&header).map_or(0, |header| u64::from(header.count));
                    self.metrics.repaired_batches.inc();
                    self.metrics.repaired_bytes.inc_by(body.len() as u64);
                    if let Err(error) = self.batch(topic, &header, Frame::from(body)) {
                        self.metrics.malformed.inc();
                        debug!(%error, %topic, "retransmitted batch rejected");
                    }
                }
                MemberOutput::GaveUp { stream, topic, from, to, reason } => {
                    self.lost(&stream, topic, from, to, reason);
                }
                MemberOutput::Skipped { stream, topic, records, presenter } => {
                    self.skipped(&stream, topic, records, presenter);
                }
                MemberOutput::Rejected(reason) => self.join_rejected(reason),
            }
        }
        Ok(())
    }

    fn lost(&mut self, stream: &Stream, topic: Topic, from: u64, to: u64, reason: GiveUp) {
        self.metrics.lost(&stream.name, reason).inc_by(to - from);
        let lost = Lost { topic, from, to, reason: reason.as_str() };
        self.loss_log.lost(stream, lost, Instant::now(), wall_now_ns());
    }

    fn skipped(&mut self, stream: &Stream, topic: Topic, records: u64, presenter: Option<Name>) {
        if let Some(suppressed) = self.skipped_log.allow(Instant::now()) {
            let presenter = presenter.as_ref().map_or(&*stream.name, Name::as_str);
            warn!(%stream, %topic, records, presenter, suppressed, "records skipped, presented as handled");
        }
    }

    fn join_rejected(&self, reason: RejectionReason) {
        self.metrics.rejected_joins.inc();
        if let Some(suppressed) = self.rejected_log.allow(Instant::now()) {
            warn!(group = %self.group, ?reason, suppressed, "proxy rejected this member's join");
        }
    }

    fn report(&mut self, now: BootTime) {
        let leased = now < self.member.lease_until();
        if leased != self.was_leased {
            self.was_leased = leased;
            if leased {
                info!(group = %self.group, "lease acquired");
            } else {
                warn!(group = %self.group, "lease expired, nothing is sent until the proxy answers");
            }
            self.ready.set(leased);
        }
        self.status.answer(|| {
            let mut page = member_status(&self.member.status(now), &self.group);
            if let Some(handoff) = &self.handoff {
                page["handoff"] = handoff_status(&handoff.keeper);
            }
            page
        });
        let instant = Instant::now();
        if self.metered_at.is_some_and(|at| instant.duration_since(at) < METER_EVERY) {
            return;
        }
        self.metered_at = Some(instant);
        self.loss_log.report(instant);
        self.report_differing(instant);
        self.control_connections.set_retransmitted(self.retransmitted);
        let has_data = self.connections.follow(&mut self.data);
        let has_control = self.control_connections.follow(&mut self.control);
        let is_connected = self.in_process || (has_data && has_control);
        self.metrics.connected.set(i64::from(is_connected));
        self.ready.set(leased);
        let owned = self.member.owned().count();
        if owned != self.owned {
            info!(group = %self.group, shards = owned, before = self.owned, "shard assignment changed");
            self.owned = owned;
        }
        let status = self.member.status(now);
        let has_doubts = status.in_doubt > 0;
        if has_doubts != self.has_doubts {
            self.has_doubts = has_doubts;
            if has_doubts {
                warn!(
                    group = %self.group, records = status.in_doubt,
                    "records in doubt: no longer retained, a former owner of their shards may have handled them"
                );
            } else {
                info!(group = %self.group, "no records in doubt");
            }
        }
        self.metrics.set(&status, owned);
        if let Some(Handoff { keeper, metrics }) = &mut self.handoff {
            metrics.set(keeper.counters(), keeper.pending());
        }
    }

    fn report_differing(&mut self, now: Instant) {
        let differing = self.member.differing();
        let differing = (!differing.is_empty()).then(|| differing.to_vec());
        match (self.differing.due(differing.as_ref(), now), differing) {
            (Some(Due::Lasts), Some(others)) => warn!(
                group = %self.group,
                others = others.iter().map(Name::as_str).collect::<Vec<_>>().join(", "),
                "other members of this group have other destinations, each source is sent to those of one member: \
                 make them equal, or set another SEKIWAKE_GROUP for the other destinations"
            ),
            (Some(Due::Over), _) => info!(group = %self.group, "members have the same destinations again"),
            _ => {}
        }
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "group subscriber", source }
}

fn reporter(feed: StatusFeed, group: &Name, label: &Name, incarnation: u64) -> Option<StatusReporter> {
    let service = Name::new(feed.service()).ok()?;
    let short = group.as_str().strip_prefix(service.as_str()).and_then(|rest| rest.strip_prefix('.'));
    let short = short.and_then(|short| Name::new(short).ok()).unwrap_or_else(|| group.clone());
    let identity = StatusIdentity { service, group: Some(short), member: label.clone(), incarnation };
    Some(StatusReporter::new(identity, feed, boot_now()))
}
