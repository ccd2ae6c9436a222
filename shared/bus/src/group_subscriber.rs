//! A subscriber that is a member of a group: it gets the shards that are its own, from where the group stands, without holes.
//!
//! ```text
//! SUB ── batches ──▶ check ─▶ Member ─▶ GroupDelivery + Ticket ─▶ whoever acts on it
//! DEALER ◀─ renewals, requests ─┘ ▲  ▲                                      │
//!        ── grants, repairs ──────┘  └──────── Completions ◀── the ticket is dropped: everything is done with
//!        ◀─ notes ─▶ NoteKeeper, where notes are switched on: what the owner of a shard leaves for the next
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sekiwake_group::{
    Arrival, GiveUp, Member, MemberOutput, MemberSettings, MemberStatus, NoteKeeper, NoteKeeperSettings, Permission,
    Permit, Received, Stream,
    wire::{Destination, Note, RefusalReason, is_about_notes},
};
use sekiwake_record::{Announcement, Batch, DecodeError, Header, Kind, Name, Shard, Topic};
use sekiwake_runtime::{Latch, Metrics, RateLimited, StatusDesk};
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::{
    BusError,
    control::{CONTROL_BURST, Incoming, boot_now, patience, receive, routing_id, send},
    metrics::{GroupMetrics, NoteMetrics},
    settings::{Controlling, Subscribing},
    socket::{Bus, Connections, uninterrupted},
    subscriber::{Frame, age_seconds, believable},
    tracker::MAX_STREAMS,
};

/// How often the state of the connections is looked at, and metrics are set.
const METER_EVERY: Duration = Duration::from_millis(200);
/// Data messages that are taken before control messages, completions and time are looked at again.
const BURST: usize = 64;
/// What a record costs in memory beside its bytes in the body: the entry that the decoder makes of it.
const BYTES_PER_RECORD: usize = 96;

/// Settings of a [`GroupSubscriber`].
#[derive(Clone, Debug)]
pub struct GroupSubscriberSettings {
    /// Where data comes from.
    pub subscribing: Subscribing,
    /// Where the coordinator is.
    pub controlling: Controlling,
    /// The group, `<service>.<name>`.
    pub group: Name,
    /// What people call this member.
    pub label: Name,
    /// The kind that it works on.
    pub kind: Kind,
    /// Where to begin where nobody knows where the group stands: at the oldest record published no longer ago than this.
    pub start_age: Duration,
    /// Whether one member of the group has all shards, and the others stand by.
    pub one_works: bool,
    /// Whether it leaves notes for the next owners of its shards, and asks for those of the owners before.
    pub notes: bool,
}

/// A batch to act on: nothing of it has been given to this group's members before, as far as the group knows.
#[derive(Debug)]
pub struct GroupDelivery {
    /// Its topic.
    pub topic: Topic,
    /// The stream that it belongs to.
    pub stream: Stream,
    /// The sequence number of the first record in `batch`.
    pub first_sequence: u64,
    /// Capture time of the earliest record that was published with these, nanoseconds since 1970-01-01T00:00:00Z: some that have come
    /// before may be left out of `batch`.
    pub first_captured_at_ns: u64,
    /// Capture time of the latest one.
    pub last_captured_at_ns: u64,
    /// The records.
    pub batch: Batch<Frame>,
    /// The right to act on it, and the duty to be done with it. It must live until every record has been sent, stored, or counted
    /// as dropped: then it is dropped, and the group's position moves past the batch.
    pub ticket: Ticket,
}

/// See [`GroupDelivery::ticket`].
#[derive(Debug)]
pub struct Ticket {
    permit: Arc<Permit>,
    completions: Arc<Completions>,
    done: Option<Done>,
    shard: Shard,
    generation: u64,
    abandoned: AtomicBool,
}

#[derive(Debug)]
struct Done {
    stream: Stream,
    shard: Shard,
    generation: u64,
    first_sequence: u64,
}

#[derive(Debug, Default)]
struct Completions(Mutex<Vec<Done>>);

impl Ticket {
    /// Whether the records may be acted on now. To be asked just before each call that sends, with [`boot_now`] read for this
    /// question.
    #[inline]
    pub fn permission(&self, now: u64) -> Permission {
        self.permit.may_act(self.shard, self.generation, now)
    }

    /// The records were not acted on, and nobody has counted them as dropped: the next owner of the shard is given them again.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Two tickets of one shard and generation have the same permission.
    pub fn key(&self) -> (Shard, u64) {
        (self.shard, self.generation)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A thread that panics has not done what it was to do: the next owner will.
        if std::thread::panicking() || self.abandoned.load(Ordering::Acquire) {
            return;
        }
        if let Some(done) = self.done.take() {
            self.completions.0.lock().unwrap_or_else(PoisonError::into_inner).push(done);
        }
    }
}

/// A batch that has been checked, with what its header says.
#[derive(Debug)]
struct Checked {
    batch: Batch<Frame>,
    first_captured_at_ns: u64,
    last_captured_at_ns: u64,
}

/// A member of a group. Belongs to one thread.
pub struct GroupSubscriber {
    data: zmq::Socket,
    control: zmq::Socket,
    connections: Connections,
    control_connections: Connections,
    in_process: bool,
    ready: Latch,
    member: Member<Checked>,
    notes: Option<(NoteKeeper, NoteMetrics)>,
    /// Streams that have been heard of: their names are shared, not made anew for each batch.
    streams: VecDeque<Stream>,
    deliveries: VecDeque<GroupDelivery>,
    permit: Arc<Permit>,
    completions: Arc<Completions>,
    completed: Vec<Done>,
    /// Data messages since other things were looked at.
    burst: usize,
    metered_at: Option<Instant>,
    metrics: GroupMetrics,
    desk: StatusDesk,
    loss_log: RateLimited,
    refused_log: RateLimited,
    group: Name,
    was_leased: bool,
    owned: usize,
}

impl GroupSubscriber {
    /// Connects; the proxy need not be there yet. `ready` is set while the member has a lease.
    ///
    /// # Errors
    /// Endpoints that libzmq does not understand, no more sockets, or no random numbers.
    pub fn connect(
        bus: &Bus,
        settings: GroupSubscriberSettings,
        metrics: &Metrics,
        (ready, desk): (Latch, StatusDesk),
    ) -> Result<GroupSubscriber, BusError> {
        let GroupSubscriberSettings { subscribing, controlling, group, label, kind, start_age, one_works, notes } =
            settings;
        let data = bus.subscriber(subscribing.keys.as_ref())?;
        let mut connections = bus.watch(&data)?;
        data.set_subscribe(Announcement::TOPIC_PREFIX.as_bytes()).map_err(failed)?;
        let control = bus.control_client(&routing_id()?, controlling.keys.as_ref())?;
        let mut control_connections = bus.watch(&control)?;
        connections.connect(&data, &subscribing.endpoints)?;
        control_connections.connect(&control, &controlling.endpoints)?;
        let incarnation = getrandom::u64().map_err(BusError::Random)?;
        let mut of_member = MemberSettings::new(group.clone(), kind, label);
        of_member.one_works = one_works;
        of_member.start_age = u64::try_from(start_age.as_nanos()).unwrap_or(u64::MAX);
        let member = Member::new(of_member, incarnation, boot_now());
        let keeper = || NoteKeeper::new(NoteKeeperSettings::new(group.clone()), incarnation);
        let notes = notes.then(|| (keeper(), NoteMetrics::new(metrics)));
        Ok(GroupSubscriber {
            data,
            control,
            connections,
            control_connections,
            in_process: controlling.is_in_process(),
            ready,
            permit: member.permit(),
            member,
            notes,
            streams: VecDeque::new(),
            deliveries: VecDeque::new(),
            completions: Arc::default(),
            completed: Vec::new(),
            burst: 0,
            metered_at: None,
            metrics: GroupMetrics::new(metrics, kind),
            desk,
            loss_log: RateLimited::default(),
            refused_log: RateLimited::default(),
            group,
            was_leased: false,
            owned: 0,
        })
    }

    /// The next batch to act on, or `None` when there is none within `timeout`. To be called again and again, also with nothing
    /// to act on: the lease is renewed here.
    ///
    /// # Errors
    /// A socket failed: the context is gone.
    pub fn receive(&mut self, timeout: Duration) -> Result<Option<GroupDelivery>, BusError> {
        let mut waited = false;
        loop {
            if self.burst >= BURST {
                self.burst = 0;
                self.look_around()?;
            }
            if let Some(delivery) = self.deliveries.pop_front() {
                return Ok(Some(delivery));
            }
            match uninterrupted(|| self.data.recv_msg(zmq::DONTWAIT)) {
                Ok(topic) => {
                    self.burst += 1;
                    self.take_data(&topic)?;
                }
                Err(zmq::Error::EAGAIN) => {
                    self.burst = 0;
                    self.look_around()?;
                    if !self.deliveries.is_empty() {
                        continue;
                    }
                    if waited {
                        return Ok(None);
                    }
                    self.wait(timeout)?;
                    waited = true;
                }
                Err(source) => return Err(failed(source)),
            }
        }
    }

    /// Renews the lease and takes note of what is done with, for at most `timeout`, without taking data: for a caller that has
    /// enough of it.
    ///
    /// # Errors
    /// A socket failed: the context is gone.
    pub fn tend(&mut self, timeout: Duration) -> Result<(), BusError> {
        self.look_around()?;
        let wait = patience(boot_now(), self.next_deadline(), timeout);
        match self.control.poll(zmq::POLLIN, wait) {
            Ok(_) | Err(zmq::Error::EINTR) => self.look_around(),
            Err(source) => Err(failed(source)),
        }
    }

    /// Whether this member has enough to do for the moment, so that it does not ask for what it missed.
    pub fn set_has_enough(&mut self, has_enough: bool) {
        self.member.set_has_enough(has_enough);
    }

    /// Replaces the destinations that captures have to know.
    pub fn set_destinations(&mut self, destinations: Vec<Destination>) {
        self.member.set_destinations(boot_now(), destinations);
    }

    /// Whether the newest destinations may be sent to: every publisher leaves alone what goes there, or has had the time.
    pub fn may_use_destinations(&self) -> bool {
        self.member.may_use_destinations(boot_now())
    }

    /// Whether all that it knows to have been published has been given out, and is done with.
    pub fn is_caught_up(&self) -> bool {
        let status = self.member.status(boot_now());
        status.outstanding_bytes == 0 && status.held_bytes == 0 && status.streams.iter().all(|stream| stream.lag == 0)
    }

    /// Whether all that it knows to have been published on its shards has been given out; it need not be done with yet.
    pub fn has_received_all(&self) -> bool {
        self.member.has_received_all()
    }

    /// Whether all shards of the group are this member's.
    pub fn owns_all(&self) -> bool {
        self.member.owns_all()
    }

    /// Begins to give everything back to the group.
    pub fn leave(&mut self) {
        self.member.leave(boot_now());
    }

    /// Whether everything has been given back.
    pub fn has_left(&self) -> bool {
        self.member.has_left()
    }

    /// Whether a proxy is there to give anything back to.
    pub fn has_lease(&self) -> bool {
        boot_now() < self.member.lease_until()
    }

    /// Leaves a note with the coordinator for whoever owns the shard next. Of two notes with one key (1 to 64 bytes) the newer one
    /// holds, by `at_ns`; an empty value says that there is nothing any more. Sent until it is acknowledged. Gives `false`, counted, when
    /// it is too large (8 KiB), when 16 MiB wait already, or where notes are switched off.
    pub fn put_note(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        self.notes.as_mut().is_some_and(|(keeper, _)| keeper.put(shard, key, value, at_ns))
    }

    /// Notes that the coordinator has not acknowledged. Whoever leaves before there are none leaves without them.
    pub fn waiting_notes(&self) -> usize {
        self.notes.as_ref().map_or(0, |(keeper, _)| keeper.waiting())
    }

    /// Whether all notes of a shard that the coordinator has have come since this member owns the shard, and have been taken. It stays
    /// `false` where a proxy knows no notes: how long to wait for it is the caller's business.
    pub fn notes_complete(&self, shard: Shard) -> bool {
        self.notes.as_ref().is_some_and(|(keeper, _)| keeper.is_complete(shard))
    }

    /// The next note of an owner before. The same may come again, and one of this member's own.
    pub fn take_note(&mut self) -> Option<Note> {
        self.notes.as_mut().and_then(|(keeper, _)| keeper.take())
    }

    /// The next shard of which all notes are to be put again, because the coordinator is another one: a shard that this member owned
    /// when it came, even if it does not any more.
    pub fn shard_to_present(&mut self) -> Option<Shard> {
        self.notes.as_mut().and_then(|(keeper, _)| keeper.next_to_present())
    }

    fn next_deadline(&self) -> u64 {
        let of_notes = self.notes.as_ref().map_or(u64::MAX, |(keeper, _)| keeper.next_deadline());
        self.member.next_deadline().min(of_notes)
    }

    fn wait(&self, timeout: Duration) -> Result<(), BusError> {
        let mut items = [self.data.as_poll_item(zmq::POLLIN), self.control.as_poll_item(zmq::POLLIN)];
        let wait = patience(boot_now(), self.next_deadline(), timeout);
        match zmq::poll(&mut items, wait) {
            Ok(_) | Err(zmq::Error::EINTR) => Ok(()),
            Err(source) => Err(failed(source)),
        }
    }

    /// Completions, control messages, what is due, metrics.
    fn look_around(&mut self) -> Result<(), BusError> {
        let now = boot_now();
        std::mem::swap(&mut self.completed, &mut *self.completions.0.lock().unwrap_or_else(PoisonError::into_inner));
        for done in self.completed.drain(..) {
            self.member.handled(now, &done.stream, done.shard, done.generation, done.first_sequence);
        }
        for _ in 0..CONTROL_BURST {
            match receive(&self.control, "group control")? {
                Incoming::Frame(frame) => match &mut self.notes {
                    Some((keeper, _)) if is_about_notes(&frame) => keeper.on_message(boot_now(), &frame),
                    _ => {
                        self.member.on_message(boot_now(), &frame);
                        self.do_outputs()?;
                    }
                },
                Incoming::Malformed => self.metrics.malformed.inc(),
                Incoming::Nothing => break,
            }
        }
        let now = boot_now();
        // Before a renewal that says that a shard is released: what was noted of it comes first.
        self.tend_notes(now)?;
        if now >= self.member.next_deadline() {
            self.member.on_tick(now);
        }
        self.do_outputs()?;
        self.meter(now);
        Ok(())
    }

    fn tend_notes(&mut self, now: u64) -> Result<(), BusError> {
        let Some((keeper, _)) = &mut self.notes else { return Ok(()) };
        let is_leased = self.member.is_leased(now);
        keeper.follow(now, self.member.coordinator(), is_leased, self.member.shard_statuses());
        if now >= keeper.next_deadline() {
            keeper.on_tick(now);
        }
        while let Some(frame) = keeper.poll_output() {
            if !send(&self.control, frame, "group control")? {
                // Nobody has acknowledged it: it is sent again.
                self.metrics.unsent.inc();
            }
        }
        Ok(())
    }

    fn take_data(&mut self, topic: &zmq::Message) -> Result<(), BusError> {
        let mut parts = [None, None];
        let (mut count, mut more) = (0, topic.get_more());
        while more {
            // The parts of a message arrive together, so this does not wait.
            let part = uninterrupted(|| self.data.recv_msg(0)).map_err(failed)?;
            more = part.get_more();
            if let Some(slot) = parts.get_mut(count) {
                *slot = Some(part);
            }
            count += 1;
        }
        let taken = match (Topic::parse(topic), parts) {
            (Some(topic), [Some(header), Some(body)]) if count == 2 => self.batch(topic, &header, Frame::from(body)),
            (None, [Some(frame), None]) if topic.starts_with(Announcement::TOPIC_PREFIX.as_bytes()) => {
                self.announced(&frame)
            }
            _ => Err(DecodeError::Malformed { part: "message", reason: format!("{count} parts after the topic") }),
        };
        if let Err(error) = taken {
            self.metrics.malformed.inc();
            debug!(%error, topic = %String::from_utf8_lossy(topic).escape_debug(), "refused a message");
        }
        self.do_outputs()
    }

    /// Checks a batch, from the data plane or repeated, and gives it to the machine.
    fn batch(&mut self, topic: Topic, header: &[u8], body: Frame) -> Result<(), DecodeError> {
        let header = Header::decode(header)?;
        believable(header.next_sequence(), "header")?;
        let batch = Batch::decode(&header, body)?;
        let stream = self.stream(header.stream_name, header.stream_epoch)?;
        let bytes = batch.body_len() + batch.len() * BYTES_PER_RECORD;
        let Header { first_captured_at_ns, last_captured_at_ns, .. } = header;
        let batch = Checked { batch, first_captured_at_ns, last_captured_at_ns };
        let arrival = Arrival { first: header.first_sequence, count: header.count, bytes, batch };
        let received = self.member.on_batch(boot_now(), &stream, topic, arrival);
        match received {
            Received::Repeated => self.metrics.repeated.inc_by(u64::from(header.count)),
            Received::NoRoom => self.metrics.no_room.inc(),
            Received::Taken | Received::NotOurs => {}
        }
        self.metrics.lag_seconds.set(age_seconds(header.last_captured_at_ns));
        Ok(())
    }

    fn announced(&mut self, frame: &[u8]) -> Result<(), DecodeError> {
        let announcement = Announcement::decode(frame)?;
        for position in &announcement.positions {
            believable(position.next_sequence, "announcement")?;
        }
        self.member.on_announcement(boot_now(), &announcement);
        Ok(())
    }

    /// The stream of this name and epoch, its name shared. The newest is in front.
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
                    if !send(&self.control, frame, "group control")? {
                        // It tells a state, which the next one tells again.
                        self.metrics.unsent.inc();
                    }
                }
                MemberOutput::Subscribe(topic) => {
                    self.data.set_subscribe(topic.as_str().as_bytes()).map_err(failed)?;
                }
                MemberOutput::Unsubscribe(topic) => {
                    self.data.set_unsubscribe(topic.as_str().as_bytes()).map_err(failed)?;
                }
                MemberOutput::Deliver { stream, topic, generation, first_sequence, skip, batch } => {
                    let Checked { mut batch, first_captured_at_ns, last_captured_at_ns } = batch;
                    self.metrics.repeated.inc_by(u64::from(skip));
                    batch.drop_first(skip as usize);
                    self.metrics.received.inc_by(batch.len() as u64);
                    let shard = topic.shard;
                    let ticket = Ticket {
                        permit: Arc::clone(&self.permit),
                        completions: Arc::clone(&self.completions),
                        done: Some(Done { stream: stream.clone(), shard, generation, first_sequence }),
                        shard,
                        generation,
                        abandoned: AtomicBool::new(false),
                    };
                    self.deliveries.push_back(GroupDelivery {
                        topic,
                        stream,
                        first_sequence,
                        first_captured_at_ns,
                        last_captured_at_ns,
                        batch,
                        ticket,
                    });
                }
                MemberOutput::Repaired { topic, header, body } => {
                    self.metrics.repaired_batches.inc();
                    self.metrics.repaired_bytes.inc_by(body.len() as u64);
                    if let Err(error) = self.batch(topic, &header, Frame::from(body)) {
                        self.metrics.malformed.inc();
                        debug!(%error, %topic, "refused a repair");
                    }
                }
                MemberOutput::GaveUp { stream, topic, from, to, reason } => {
                    self.lost(&stream, topic, to - from, reason);
                }
                MemberOutput::Refused(reason) => self.refused(reason),
            }
        }
        Ok(())
    }

    fn lost(&mut self, stream: &Stream, topic: Topic, records: u64, reason: GiveUp) {
        self.metrics.lost(&stream.name, reason).inc_by(records);
        if let Some(suppressed) = self.loss_log.allow(Instant::now()) {
            let reason = reason.as_str();
            warn!(%stream, %topic, records, reason, suppressed, "records are lost for this group");
        }
    }

    fn refused(&self, reason: RefusalReason) {
        self.metrics.refused_joins.inc();
        if let Some(suppressed) = self.refused_log.allow(Instant::now()) {
            warn!(group = %self.group, ?reason, suppressed, "the proxy does not take this member into the group");
        }
    }

    fn meter(&mut self, now: u64) {
        let leased = now < self.member.lease_until();
        if leased != self.was_leased {
            self.was_leased = leased;
            if leased {
                info!(group = %self.group, "the group's lease is held");
            } else {
                warn!(group = %self.group, "the lease has run out: nothing is sent until the proxy answers");
            }
            self.ready.set(leased);
        }
        self.desk.answer(|| {
            let mut page = status(&self.member.status(now), &self.group);
            if let Some((keeper, _)) = &self.notes {
                page["notes"] = notes_status(keeper);
            }
            page
        });
        let instant = Instant::now();
        if self.metered_at.is_some_and(|at| instant.duration_since(at) < METER_EVERY) {
            return;
        }
        self.metered_at = Some(instant);
        let connected =
            self.in_process || (self.connections.stand(&self.data) && self.control_connections.stand(&self.control));
        self.metrics.connected.set(i64::from(connected));
        self.ready.set(leased);
        let owned = self.member.owned().count();
        if owned != self.owned {
            info!(group = %self.group, shards = owned, before = self.owned, "shards of this member");
            self.owned = owned;
        }
        self.metrics.follow(&self.member.status(now), owned);
        if let Some((keeper, metrics)) = &mut self.notes {
            metrics.follow(keeper.counters(), keeper.waiting());
        }
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "group subscriber", source }
}

fn notes_status(keeper: &NoteKeeper) -> Value {
    let counters = keeper.counters();
    json!({
        "coordinator_keeps_notes": keeper.is_answered(),
        "waiting": keeper.waiting(),
        "kept": counters.kept,
        "no_room": counters.no_room,
        "received": counters.received,
        "incomplete_shards": keeper.incomplete(),
    })
}

fn status(status: &MemberStatus, group: &Name) -> Value {
    let shards = status.shards.iter().map(|shard| {
        json!({ "shard": format!("{:02x}", shard.shard), "generation": shard.generation, "state": shard.state.as_str() })
    });
    let streams = status.streams.iter().map(|stream| {
        json!({
            "stream": stream.stream.to_string(),
            "ended": stream.ended,
            "heard_seconds_ago": stream.heard_ago as f64 / 1e9,
            "located_shards": stream.located,
            "received": stream.received,
            "handled": stream.handled,
            "lag_records": stream.lag,
            "held_bytes": stream.held_bytes,
            "outstanding_bytes": stream.outstanding_bytes,
        })
    });
    let given_up = GiveUp::ALL.iter().zip(status.counters.given_up).map(|(reason, count)| (reason.as_str(), count));
    json!({
        "group": group.as_str(),
        "incarnation": format!("{:016x}", status.incarnation),
        "coordinator": format!("{:016x}", status.coordinator),
        "protocol": status.protocol,
        "leased": status.is_leased,
        "lease_seconds_left": status.lease_left as f64 / 1e9,
        "leaving": status.is_leaving,
        "shards": shards.collect::<Vec<_>>(),
        "streams": streams.collect::<Vec<_>>(),
        "held_bytes": status.held_bytes,
        "outstanding_bytes": status.outstanding_bytes,
        "repair_requests": status.counters.requests,
        "renewals": status.counters.renewals,
        "refused_messages": status.counters.refused,
        "given_up": given_up.collect::<BTreeMap<_, _>>(),
    })
}
