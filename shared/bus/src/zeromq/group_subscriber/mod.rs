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

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use sekiwake_group::{
    Arrival, BootTime, GiveUp, HandoffKeeper, HandoffKeeperSettings, Member, MemberOutput, MemberSettings, Received,
    StatusIdentity, Stream,
    wire::{Destination, HandoffEntry, MAX_STREAMS, is_handoff, is_status},
};
use sekiwake_record::{Announcement, Batch, DecodeError, Header, Name, Shard, Topic};
use sekiwake_runtime::{Latch, StatusFeed, StatusResponder, Stop};
use sekiwake_sys::clock::wall_now_ns;
use tracing::debug;

use crate::{
    BusError, Frame, GroupDelivery, GroupSettings, GroupSource, HandoffState, Reporting, StreamProgress,
    clock::{boot_now, wait_until},
    group::{Acks, Completion, Lost, MemberLog, handoff_status, member_status},
    metrics::{GroupMetrics, HandoffMetrics, ONE_VIEW},
    reading::{age_seconds, check_sequence},
    zeromq::{
        connections::{Connections, Side},
        control::dealer::{CONTROL_BURST, Incoming, receive, routing_id, send},
        inlet::{Inlet, Limit, wait},
        socket::{Context, Rest, receive_rest},
        status::StatusReporter,
    },
};

/// How often the connections are checked and metrics are set, at most and unless the connections
/// change.
const METER_EVERY: Duration = Duration::from_millis(200);
/// A stream is live if it was heard within this time.
const OTHER_VIEW_WITHIN: Duration = Duration::from_secs(3);
/// Data messages handled before control messages, completions and deadlines are handled again.
const BURST: usize = 64;

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
    is_connected: bool,
    ready: Latch,
    member: Member<Checked>,
    handoff: Option<Handoff>,
    /// Known streams, so that batches share their names instead of allocating them.
    streams: VecDeque<Stream>,
    /// What was announced, for members that deduplicate.
    progress: Option<VecDeque<StreamProgress>>,
    deliveries: VecDeque<GroupDelivery>,
    acks: Acks,
    /// Data messages handled since the last `maintain`.
    burst: usize,
    metered_at: Option<Instant>,
    metrics: GroupMetrics,
    status: StatusResponder,
    reporter: Option<StatusReporter>,
    log: MemberLog,
    /// Ends waits.
    stop: Stop,
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
        context: &Context,
        settings: GroupSettings,
        reporting: Reporting,
    ) -> Result<GroupSubscriber, BusError> {
        let Reporting { metrics, ready, status, feed, stop, .. } = reporting;
        let GroupSettings {
            subscribing,
            controlling,
            group,
            label,
            kind,
            start_age,
            single_active,
            handoff,
            deduplicate,
        } = settings;
        let data = context.subscriber(subscribing.zeromq.keys.as_ref())?;
        let mut connections = context.watch(&data, Side::Subscribe)?;
        data.set_subscribe(Announcement::TOPIC_PREFIX.as_bytes()).map_err(failed)?;
        let control = context.control_client(&routing_id()?, controlling.zeromq.keys.as_ref())?;
        let mut control_connections = context.watch(&control, Side::Control)?;
        connections.connect(&data, &subscribing.zeromq.endpoints)?;
        control_connections.connect(&control, &controlling.zeromq.endpoints)?;
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
            in_process: controlling.zeromq.is_in_process(),
            is_connected: false,
            ready,
            acks: Acks::new(member.permit()),
            member,
            handoff,
            streams: VecDeque::new(),
            progress: deduplicate.map(|_| VecDeque::new()),
            deliveries: VecDeque::new(),
            burst: 0,
            metered_at: None,
            metrics: GroupMetrics::new(&metrics, kind),
            status,
            reporter,
            log: MemberLog::new(group),
            stop,
        })
    }

    /// The longest wait that misses no deadline.
    fn wait_limit(&self, now: BootTime, timeout: Duration) -> Duration {
        let timeout = if self.is_connected { timeout } else { timeout.min(METER_EVERY) };
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
        for completion in self.acks.take() {
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
        self.metrics.received_age_seconds.set(age_seconds(header.last_captured_at_ns));
        Ok(())
    }

    fn announced(&mut self, frame: &[u8]) -> Result<(), DecodeError> {
        let announcement = Announcement::decode(frame)?;
        for position in &announcement.positions {
            check_sequence(position.next_sequence, "announcement")?;
        }
        self.member.on_announcement(boot_now(), &announcement);
        if self.progress.is_some() {
            let stream = self.stream(&announcement.stream_name, announcement.stream_epoch)?;
            let behind = self.member.behind(&stream);
            let Announcement { ended, clock_ns, .. } = announcement;
            if let Some(progress) = &mut self.progress {
                // The next one of a stream says at least as much.
                progress.retain(|older| older.stream != stream);
                progress.push_back(StreamProgress { stream, ended, clock_ns, behind });
                progress.truncate(MAX_STREAMS);
            }
        }
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
                    self.log.delivered(&stream, topic, next, first_captured_at_ns, last_captured_at_ns);
                    let completion =
                        Completion { stream: stream.clone(), shard: topic.shard, generation, first_sequence };
                    let ack_token = self.acks.token(completion);
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
                    self.log.skipped(&stream, topic, records, presenter.as_ref());
                }
                MemberOutput::Rejected(reason) => {
                    self.metrics.rejected_joins.inc();
                    self.log.join_rejected(reason);
                }
            }
        }
        Ok(())
    }

    fn lost(&mut self, stream: &Stream, topic: Topic, from: u64, to: u64, reason: GiveUp) {
        // With another capture on the same shard, it may have shown the same datagrams.
        let is_one_view =
            self.progress.is_some() && self.member.has_other_stream(stream, topic.shard, boot_now(), OTHER_VIEW_WITHIN);
        let reason = if is_one_view { ONE_VIEW } else { reason.as_str() };
        self.metrics.lost(&stream.name, reason).inc_by(to - from);
        let lost = Lost { topic, from, to, reason };
        self.log.lost(stream, lost, Instant::now(), wall_now_ns());
    }

    fn report(&mut self, now: BootTime) {
        let leased = now < self.member.lease_until();
        if self.log.leased(leased) {
            self.ready.set(leased);
        }
        self.status.answer(|| {
            let mut page = member_status(&self.member.status(now), &self.log.group);
            if let Some(handoff) = &self.handoff {
                page["handoff"] = handoff_status(&handoff.keeper);
            }
            page
        });
        let instant = Instant::now();
        let has_event = self.connections.has_event() || self.control_connections.has_event();
        if !has_event && self.metered_at.is_some_and(|at| instant.duration_since(at) < METER_EVERY) {
            return;
        }
        self.metered_at = Some(instant);
        self.log.report(self.member.differing(), instant);
        self.control_connections.set_retransmitted(self.retransmitted);
        let has_data = self.connections.follow(&mut self.data);
        let has_control = self.control_connections.follow(&mut self.control);
        self.is_connected = self.in_process || (has_data && has_control);
        self.metrics.connected.set(i64::from(self.is_connected));
        self.ready.set(leased);
        let owned = self.member.owned().count();
        self.log.owned(owned);
        let status = self.member.status(now);
        self.log.in_doubt(status.in_doubt);
        self.metrics.set(&status, owned);
        if let Some(Handoff { keeper, metrics }) = &mut self.handoff {
            metrics.set(keeper.counters(), keeper.pending());
        }
    }
}

impl GroupSource for GroupSubscriber {
    fn receive(&mut self, timeout: Duration) -> Result<Option<GroupDelivery>, BusError> {
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
            let limit = Limit::or_stop(limit, &self.stop);
            wait([&mut self.data, &mut self.control], watched, limit).map_err(failed)?;
            waited = true;
        }
    }

    fn try_receive(&mut self) -> Result<Option<GroupDelivery>, BusError> {
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

    fn has_outstanding(&self) -> bool {
        self.acks.has_outstanding()
    }

    fn poll_control(&mut self, timeout: Duration) -> Result<(), BusError> {
        self.maintain()?;
        let limit = self.wait_limit(boot_now(), timeout);
        let watched = [self.connections.events(), self.control_connections.events()];
        wait([&mut self.control], watched, Limit::or_stop(limit, &self.stop)).map_err(failed)?;
        self.maintain()
    }

    fn set_is_full(&mut self, is_full: bool) {
        self.member.set_consumer_is_full(is_full);
    }

    fn set_destinations(&mut self, destinations: Vec<Destination>) {
        self.member.set_destinations(boot_now(), destinations);
    }

    fn set_destinations_digest(&mut self, digest: u64) {
        self.member.set_destinations_digest(digest);
    }

    fn may_use_destinations(&self) -> bool {
        self.member.may_use_destinations(boot_now())
    }

    fn is_caught_up(&self) -> bool {
        let status = self.member.status(boot_now());
        status.outstanding_bytes == 0
            && status.reorder_bytes == 0
            && status.streams.iter().all(|stream| stream.lag == 0)
    }

    fn has_received_all(&self) -> bool {
        self.member.has_received_all()
    }

    fn owns_all(&self) -> bool {
        self.member.owns_all()
    }

    fn owns_any(&self) -> bool {
        self.member.owned().next().is_some()
    }

    fn leave(&mut self) {
        if let Some(reporter) = &mut self.reporter {
            reporter.stopping(boot_now());
        }
        self.member.leave(boot_now());
    }

    fn has_left(&self) -> bool {
        self.member.has_left()
    }

    fn next_progress(&mut self) -> Option<StreamProgress> {
        if self.deliveries.is_empty() { self.progress.as_mut()?.pop_front() } else { None }
    }

    fn is_covered(&self, stream: &Stream, shard: Shard, from: u64, to: u64) -> bool {
        self.member.is_covered(stream, shard, from, to)
    }

    fn has_lease(&self) -> bool {
        boot_now() < self.member.lease_until()
    }

    fn can_release(&self) -> bool {
        // Only a proxy takes shards back, and grants the lease.
        self.has_lease()
    }
}

impl HandoffState for GroupSubscriber {
    fn put_handoff_entry(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        self.handoff.as_mut().is_some_and(|handoff| handoff.keeper.put(shard, key, value, at_ns))
    }

    fn pending_handoff(&self) -> usize {
        self.handoff.as_ref().map_or(0, |handoff| handoff.keeper.pending())
    }

    fn handoff_complete(&self, shard: Shard) -> bool {
        self.handoff.as_ref().is_some_and(|handoff| handoff.keeper.is_complete(shard))
    }

    fn take_handoff_entry(&mut self) -> Option<HandoffEntry> {
        self.handoff.as_mut().and_then(|handoff| handoff.keeper.take())
    }

    fn shard_to_present(&mut self) -> Option<Shard> {
        self.handoff.as_mut().and_then(|handoff| handoff.keeper.next_shard_to_replay())
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "group subscriber", source: source.into() }
}

fn reporter(feed: StatusFeed, group: &Name, label: &Name, incarnation: u64) -> Option<StatusReporter> {
    let service = Name::new(feed.service()).ok()?;
    let short = group.as_str().strip_prefix(service.as_str()).and_then(|rest| rest.strip_prefix('.'));
    let short = short.and_then(|short| Name::new(short).ok()).unwrap_or_else(|| group.clone());
    let identity = StatusIdentity { service, group: Some(short), member: label.clone(), incarnation };
    Some(StatusReporter::new(identity, feed, boot_now()))
}
