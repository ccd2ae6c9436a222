//! A member of a group on JetStream: it receives the shards that it owns, from the group's position
//! on, in the order in which they are stored.
//!
//! ```text
//! Reader ── messages ──▶ Handling (one per shard) ─▶ GroupDelivery + AckToken ─▶ sender, writer, ...
//!                          │    ▲                                                  │
//!                   commits▼    └────── Completions ◀── the token is dropped when the batch is handled
//! bucket ◀─ compare-and-set ─ Table ─ Own, Stop ─▶ which shards the reader reads
//!        ── reads ───────────▶
//! state stream ── announcements ──▶ what was evicted at the end      ◀─ own destinations
//! hand-off stream ◀─ entries ─▶ Handoff, if enabled: state for the next owner of a shard
//! ```
//!
//! All requests to servers are jobs in the connection's runtime, which makes progress while this
//! thread waits; their answers come back through one channel. So no request delays a renewal.

mod announcements;
mod birth;
mod handoff;
mod jobs;
mod reading;
mod status;
mod views;

use std::{
    collections::{BTreeMap, VecDeque},
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use futures_util::future::{Either, select};
use sekiwake_group::{BootTime, GiveUp, REGISTER_WITHIN, StatusIdentity, Stream};
use sekiwake_lease::{Entry, Event, Handling, Key, Outcome, Table, TableSettings};
use sekiwake_record::{Kind, Name, SHARDS, Shard};
use sekiwake_runtime::{Hangups, Latch, StatusResponder};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tracing::{debug, info, warn};

pub(crate) use self::views::PastReader;
use self::{handoff::Handoff, jobs::Answer, reading::Feed, views::Views};
use super::{
    connection::Connection, keys::Put, own::Registrant, settings::JetStreamSettings, state::At, status::report_status,
    streams::GROUPS_PREFIX,
};
use crate::{
    BusError, GroupDelivery, GroupSettings, GroupSource, HandoffEntry, HandoffState, RegisteredDestination, Reporting,
    StreamProgress, Transport,
    clock::{boot_now, wait_until},
    group::{Acks, Completion, MemberLog},
    metrics::{GroupMetrics, JetStreamGroupMetrics},
};

/// How often metrics are set.
const METER_EVERY: Duration = Duration::from_millis(200);
/// A member that has not been able to open a reader for so long is not ready.
const UNREADABLE_AFTER: Duration = Duration::from_secs(5);
/// The pause after a job that failed.
const RETRY: Duration = Duration::from_millis(100);
/// Messages handled before answers, completions and deadlines are handled again.
const BURST: usize = 64;
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// A member of a group. Belongs to one thread.
pub(crate) struct JetStreamGroup {
    connection: Connection,
    answers: (UnboundedSender<Answer>, UnboundedReceiver<Answer>),
    kind: Kind,
    start_age: Duration,
    /// What the names of the group's keys begin with.
    prefix: String,
    table: Table,
    shards: Vec<Option<Owned>>,
    feed: Option<Feed>,
    /// The jobs that run, and when they may be tried again.
    jobs: Jobs,
    /// The newest announcements, by stream.
    announced: BTreeMap<Stream, At>,
    registrant: Registrant,
    registered_at: Option<Instant>,
    is_acknowledged: bool,
    handoff: Option<Handoff>,
    /// For a member that deduplicates.
    views: Option<Views>,
    /// No message after this one was received, or handled by former owners.
    reached: Arc<AtomicU64>,
    streams: VecDeque<Stream>,
    deliveries: VecDeque<GroupDelivery>,
    acks: Acks,
    burst: usize,
    metered_at: Option<Instant>,
    /// The lag of shards may have changed.
    must_meter_lag: bool,
    ready: Latch,
    metrics: GroupMetrics,
    jetstream_metrics: JetStreamGroupMetrics,
    status: StatusResponder,
    log: MemberLog,
    /// Records lost, by reason in the order of [`GiveUp::ALL`].
    given_up: [u64; GiveUp::ALL.len()],
}

/// A shard that the member has.
struct Owned {
    handling: Handling,
    is_stopping: bool,
    /// Whether the reader reads it.
    is_read: bool,
    /// The sequence number of the last message that was taken.
    after: u64,
    /// The publishers' streams of which nothing has been seen since the stored stream was replaced.
    replaced: Vec<Stream>,
}

/// What runs, and what is due.
#[derive(Default)]
struct Jobs {
    is_prepared: bool,
    is_preparing: bool,
    prepare_at: Option<Instant>,
    is_beginning: bool,
    is_opening: bool,
    /// The set of shards has changed, or the reader is lost.
    must_open: bool,
    /// Since when no reader can be opened.
    unopened_since: Option<Instant>,
    open_at: Option<Instant>,
    is_announcing: bool,
    announced_at: Option<Instant>,
    compared_at: Option<Instant>,
    /// Since when announcements exceed the end of the stream.
    exceeds_since: Option<Instant>,
}

impl JetStreamGroup {
    /// Connects; the servers may be started later. It is ready while the member has a lease.
    ///
    /// # Errors
    /// The files of certificates cannot be used, or no descriptor or random numbers are left.
    pub(crate) fn connect(
        servers: &Arc<JetStreamSettings>,
        hangups: &Hangups,
        settings: GroupSettings,
        reporting: Reporting,
    ) -> Result<JetStreamGroup, BusError> {
        let Reporting { metrics, ready, status, feed, .. } = reporting;
        let GroupSettings { group, label, kind, start_age, single_active, handoff, deduplicate, .. } = settings;
        let mut connection = Connection::open(servers, hangups, "group")?;
        let incarnation = getrandom::u64().map_err(BusError::Random)?;
        let table = Table::new(TableSettings::new(label.clone(), single_active), incarnation, boot_now());
        let client = format!("{group}/{label}");
        if let Some(identity) = identity(feed.service(), &group, &label, incarnation) {
            connection.spawn_to_the_end(report_status(connection.nats().clone(), identity, feed));
        }
        Ok(JetStreamGroup {
            connection,
            answers: unbounded_channel(),
            kind,
            start_age,
            prefix: format!("{GROUPS_PREFIX}{}", Key::prefix(&group, kind)),
            acks: Acks::new(table.permit()),
            table,
            shards: (0..SHARDS).map(|_| None).collect(),
            feed: None,
            jobs: Jobs::default(),
            announced: BTreeMap::new(),
            registrant: Registrant::new(client, incarnation, true),
            registered_at: None,
            is_acknowledged: true,
            handoff: handoff.then(|| Handoff::new(&group, &metrics)),
            views: deduplicate.map(|_| Views::default()),
            reached: Arc::default(),
            streams: VecDeque::new(),
            deliveries: VecDeque::new(),
            burst: 0,
            metered_at: None,
            must_meter_lag: true,
            ready,
            metrics: GroupMetrics::new(&metrics, kind),
            jetstream_metrics: JetStreamGroupMetrics::new(&metrics, &group, kind),
            status,
            log: MemberLog::new(group),
            given_up: [0; GiveUp::ALL.len()],
        })
    }

    /// For what former owners of shards have handled.
    pub(crate) fn past(&self) -> PastReader {
        let (nats, runtime) = (self.connection.nats().clone(), self.connection.runtime());
        PastReader { nats, runtime, kind: self.kind, reached: Arc::clone(&self.reached) }
    }

    fn group(&self) -> &Name {
        &self.log.group
    }

    /// Runs a job in the connection's runtime.
    fn spawn(&self, job: impl Future<Output = Answer> + Send + 'static) {
        let sender = self.answers.0.clone();
        self.connection.spawn(async move {
            let answer = job.await;
            // Nobody waits for it once the member has ended.
            drop(sender.send(answer));
        });
    }

    /// Everything but data: acknowledgements, answers, deadlines, metrics.
    fn maintain(&mut self) {
        self.collect_acks();
        while let Ok(answer) = self.answers.1.try_recv() {
            self.take_answer(answer);
        }
        let now = boot_now();
        let instant = Instant::now();
        self.prepare(instant);
        if self.jobs.is_prepared {
            self.follow_table(now);
            self.open(instant);
            self.read_announcements(instant);
            self.register(instant);
            self.tend_handoff(instant);
        }
        self.report(now, instant);
    }

    /// Passes the acknowledgements of dropped tokens on.
    fn collect_acks(&mut self) {
        for Completion { stream, shard, generation, first_sequence } in self.acks.take() {
            if let Some(owned) = &mut self.shards[shard.index()]
                && owned.handling.generation() == generation
            {
                owned.handling.handled(&stream, first_sequence);
            }
        }
    }

    /// Has the streams created, if they do not exist.
    fn prepare(&mut self, now: Instant) {
        let jobs = &mut self.jobs;
        if jobs.is_prepared || jobs.is_preparing || jobs.prepare_at.is_some_and(|at| now < at) {
            return;
        }
        jobs.is_preparing = true;
        let handoff = self.handoff.is_some().then(|| self.group().clone());
        self.spawn(jobs::prepare(self.connection.nats().clone(), self.kind, handoff));
    }

    /// Does what the table wants.
    fn follow_table(&mut self, now: BootTime) {
        while let Some(event) = self.table.poll_event() {
            self.on_event(now, event);
        }
        self.commit(now);
        if self.table.wants_birth(now) && !self.jobs.is_beginning {
            self.jobs.is_beginning = true;
            self.spawn(birth::begin(self.connection.nats().clone(), self.kind, self.start_age));
        }
        while let Some(write) = self.table.poll_write(now) {
            let subject = format!("{}{}", self.prefix, write.key);
            self.spawn(jobs::write(self.connection.nats().clone(), subject, write));
        }
        if self.table.wants_read(now) {
            self.table.read_sent();
            self.spawn(jobs::read(self.connection.nats().clone(), &self.prefix));
        }
    }

    fn on_event(&mut self, now: BootTime, event: Event) {
        match event {
            Event::Own { shard, generation, position } => {
                self.reached.fetch_max(position.sequence, Relaxed);
                let handling = Handling::new(generation, position);
                self.shards[shard.index()] =
                    Some(Owned { handling, is_stopping: false, is_read: false, after: 0, replaced: Vec::new() });
                self.jobs.must_open = true;
                if let Some(handoff) = &mut self.handoff {
                    handoff.owned(shard);
                }
            }
            Event::Stop { shard, .. } => {
                if let Some(owned) = &mut self.shards[shard.index()] {
                    owned.is_stopping = true;
                }
            }
            Event::Revoked { shard, .. } => {
                self.shards[shard.index()] = None;
                self.jobs.must_open = true;
            }
            Event::Fenced => {
                warn!(group = %self.log.group, "declared gone by another member, joining again");
                if let Ok(incarnation) = getrandom::u64() {
                    self.table.rejoin(now, incarnation);
                }
            }
        }
    }

    /// Tells the table what is handled, and releases shards that have stopped.
    fn commit(&mut self, now: BootTime) {
        for shard in Shard::all() {
            let Some(owned) = &mut self.shards[shard.index()] else { continue };
            if let Some(feed) = &self.feed
                && owned.is_read
                && !owned.is_stopping
            {
                owned.handling.passed(feed.created, feed.sequence);
            }
            let (generation, is_idle) = (owned.handling.generation(), owned.handling.is_idle());
            let is_put = self.handoff.as_ref().is_none_or(|handoff| !handoff.is_pending(shard));
            if owned.is_stopping && is_idle && is_put {
                self.table.stopped(now, shard, generation, owned.handling.committed());
                self.shards[shard.index()] = None;
                self.jobs.must_open = true;
            } else {
                self.table.commit(shard, generation, owned.handling.committed());
            }
        }
    }

    fn take_answer(&mut self, answer: Answer) {
        let now = boot_now();
        let instant = Instant::now();
        match answer {
            Answer::Prepared(Ok(())) => {
                self.jobs.is_preparing = false;
                self.jobs.is_prepared = true;
            }
            Answer::Prepared(Err(error)) => {
                self.jobs.is_preparing = false;
                self.jobs.prepare_at = Some(instant + Duration::from_secs(1));
                self.log.not_usable(&error);
            }
            Answer::Read(Ok(stored)) => {
                let entries = stored.iter().filter_map(|stored| {
                    let name = stored.subject.strip_prefix(self.prefix.as_str())?;
                    (!stored.value.is_empty()).then_some(Entry {
                        name,
                        revision: stored.sequence,
                        value: &stored.value,
                    })
                });
                self.table.on_read(now, entries);
            }
            Answer::Read(Err(error)) => {
                debug!(%error, "keys of the group not read");
                self.table.read_failed(now);
            }
            Answer::Written(id, put) => {
                let outcome = match put {
                    Put::Stored(revision) => Outcome::Stored(revision),
                    Put::Conflict => Outcome::Conflict,
                    Put::Unknown | Put::Refused => Outcome::Unknown,
                };
                self.table.on_outcome(now, id, outcome);
            }
            Answer::Begun(birth) => {
                self.jobs.is_beginning = false;
                match birth {
                    Ok(birth) => {
                        info!(group = %self.log.group, sequence = birth.position.sequence, "new group");
                        self.table.begin(birth);
                    }
                    Err(error) => debug!(%error, "start of the group not found"),
                }
            }
            Answer::Opened(opened) => {
                self.jobs.is_opening = false;
                match opened {
                    Ok(opened) => {
                        self.jobs.unopened_since = None;
                        self.opened(*opened);
                    }
                    Err(error) => {
                        self.jobs.unopened_since.get_or_insert(instant);
                        debug!(%error, "reader not opened");
                        self.jobs.must_open = true;
                        self.jobs.open_at = Some(instant + RETRY);
                    }
                }
            }
            Answer::Announced(stored) => {
                self.jobs.is_announcing = false;
                if let Ok(stored) = stored {
                    self.announced(instant, stored);
                }
            }
            Answer::Ended(end) => {
                self.jobs.is_announcing = false;
                if let Some(end) = end {
                    self.count_evicted(instant, end);
                }
            }
            Answer::HandoffPut(number, put) => {
                if let Some(handoff) = &mut self.handoff {
                    handoff.put_answered(number, put, instant);
                }
            }
            Answer::HandoffRead(shards, entries) => {
                if let Some(handoff) = &mut self.handoff {
                    handoff.read_answered(&shards, entries, instant);
                }
            }
            Answer::Done => {}
        }
    }

    /// Registers the destinations, again and again.
    fn register(&mut self, now: Instant) {
        if self.registered_at.is_none() {
            return;
        }
        if let Some((subject, message)) = self.registrant.due(now) {
            self.spawn(jobs::put(self.connection.nats().clone(), subject, message));
        }
    }

    fn tend_handoff(&mut self, now: Instant) {
        let Some(handoff) = &mut self.handoff else { return };
        let nats = self.connection.nats();
        let mut started = Vec::new();
        while let Some((number, subject, value)) = handoff.next_put(now) {
            started.push(jobs::put_handoff(nats.clone(), number, subject, value));
        }
        let read = handoff.next_read(now).map(|shards| jobs::read_handoff(nats.clone(), handoff.target(), shards));
        started.into_iter().for_each(|job| self.spawn(job));
        if let Some(read) = read {
            self.spawn(read);
        }
    }

    /// Waits for a message or an answer.
    fn wait(&mut self, limit: Duration) {
        let JetStreamGroup { connection, answers, feed, .. } = self;
        let woken = connection.block_on(async {
            let next = async {
                match feed {
                    Some(feed) => feed.reader.next(limit).await,
                    None => {
                        tokio::time::sleep(limit).await;
                        Ok(None)
                    }
                }
            };
            match select(pin!(next), pin!(answers.1.recv())).await {
                Either::Left((message, _)) => Either::Left(message),
                Either::Right((answer, _)) => Either::Right(answer),
            }
        });
        match woken {
            Either::Left(Ok(Some(message))) => self.take_message(message),
            Either::Left(Ok(None)) | Either::Right(None) => {}
            Either::Left(Err(error)) => self.reader_lost(&error),
            Either::Right(Some(answer)) => self.take_answer(answer),
        }
    }

    fn wait_limit(&self, now: BootTime, timeout: Duration) -> Duration {
        wait_until(now, self.table.next_deadline(), timeout.min(LONGEST_WAIT))
    }

    fn report(&mut self, now: BootTime, instant: Instant) {
        let is_leased = now < self.table.lease_until();
        let cannot_read = self.jobs.unopened_since.is_some_and(|since| instant >= since + UNREADABLE_AFTER);
        if self.log.leased(is_leased) {
            self.ready.set(is_leased && !cannot_read);
        }
        let (log, handoff) = (&self.log, &self.handoff);
        let view = status::View {
            table: &self.table,
            shards: &self.shards,
            announced: &self.announced,
            kind: self.kind,
            given_up: self.given_up,
            is_reading: self.feed.is_some(),
        };
        self.status.answer(|| {
            let mut page = view.page(now, &log.group);
            if let Some(handoff) = handoff {
                page["handoff"] = handoff.status();
            }
            page
        });
        if self.metered_at.is_some_and(|at| instant.duration_since(at) < METER_EVERY) {
            return;
        }
        self.metered_at = Some(instant);
        let status = view.status(now);
        let owned = self.table.owned().count();
        self.log.owned(owned);
        self.log.report(&status.differing, instant);
        self.jetstream_metrics.destinations_differ.set(i64::from(self.table.differ(now)));
        // Before that the log has the command that creates the streams.
        let violation = self.connection.violation().filter(|_| self.jobs.is_prepared);
        self.log.refused(violation, instant);
        self.ready.set(is_leased && !cannot_read);
        self.metrics.connected.set(i64::from(self.connection.is_connected()));
        self.metrics.set(&status, owned);
        let age = self.table.lease_age(now).unwrap_or_default();
        self.jetstream_metrics.lease_age_seconds.set(age.as_secs_f64());
        if std::mem::take(&mut self.must_meter_lag) {
            for shard in Shard::all() {
                self.jetstream_metrics.set_lag(shard, view.lag(shard));
            }
        }
        if let Some(handoff) = &mut self.handoff {
            handoff.meter();
        }
    }
}

impl GroupSource for JetStreamGroup {
    fn receive(&mut self, timeout: Duration) -> Result<Option<GroupDelivery>, BusError> {
        let started = Instant::now();
        loop {
            if let Some(delivery) = self.try_receive()? {
                return Ok(Some(delivery));
            }
            self.maintain();
            if let Some(delivery) = self.deliveries.pop_front() {
                return Ok(Some(delivery));
            }
            let left = timeout.saturating_sub(started.elapsed());
            let limit = self.wait_limit(boot_now(), left);
            self.wait(limit);
            let delivery = self.deliveries.pop_front();
            if delivery.is_some() || started.elapsed() >= timeout {
                return Ok(delivery);
            }
        }
    }

    fn try_receive(&mut self) -> Result<Option<GroupDelivery>, BusError> {
        loop {
            if let Some(delivery) = self.deliveries.pop_front() {
                return Ok(Some(delivery));
            }
            if self.burst >= BURST {
                self.burst = 0;
                // Jobs make progress although there is always data.
                self.connection.block_on(tokio::task::yield_now());
                self.maintain();
                return Ok(self.deliveries.pop_front());
            }
            match self.next_message() {
                Some(message) => {
                    self.burst += 1;
                    self.take_message(message);
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
        self.maintain();
        let limit = self.wait_limit(boot_now(), timeout);
        let JetStreamGroup { connection, answers, .. } = self;
        let answer = connection.block_on(async { tokio::time::timeout(limit, answers.1.recv()).await.ok().flatten() });
        if let Some(answer) = answer {
            self.take_answer(answer);
        }
        self.maintain();
        Ok(())
    }

    fn set_is_full(&mut self, is_full: bool) {
        // Messages wait in the connection meanwhile: they are not missing.
        if is_full && let Some(feed) = &mut self.feed {
            feed.idle.end();
        }
    }

    fn set_destinations(&mut self, destinations: Vec<RegisteredDestination>) {
        let udp = destinations.iter().filter(|destination| destination.transport == Transport::Udp);
        self.registrant
            .set(udp.map(|destination| (destination.address.to_canonical(), destination.port).into()).collect());
        self.registered_at = Some(Instant::now());
        self.is_acknowledged = false;
        self.jobs.announced_at = None;
    }

    fn set_destinations_digest(&mut self, digest: u64) {
        self.table.set_digest(digest);
    }

    fn may_use_destinations(&self) -> bool {
        self.is_acknowledged || self.registered_at.is_some_and(|at| at.elapsed() >= REGISTER_WITHIN)
    }

    fn is_caught_up(&self) -> bool {
        self.has_received_all() && self.shards.iter().flatten().all(|owned| owned.handling.is_idle())
    }

    fn has_received_all(&self) -> bool {
        self.has_read_all() && self.deliveries.is_empty()
    }

    fn owns_all(&self) -> bool {
        self.table.owned().count() == SHARDS
    }

    fn owns_any(&self) -> bool {
        self.table.owned().next().is_some()
    }

    fn leave(&mut self) {
        if !self.table.is_leaving() {
            self.table.leave(boot_now());
            if self.registered_at.take().is_some() {
                let subject = self.registrant.subject();
                self.spawn(jobs::put(self.connection.nats().clone(), subject, Vec::new()));
            }
        }
    }

    fn next_progress(&mut self) -> Option<StreamProgress> {
        if self.deliveries.is_empty() { self.views.as_mut()?.next_progress() } else { None }
    }

    fn is_covered(&self, stream: &Stream, shard: Shard, _from: u64, to: u64) -> bool {
        // Records are handled in order.
        let owned = self.shards[shard.index()].as_ref();
        owned.and_then(|owned| owned.handling.delivered().next(stream)).is_some_and(|next| to <= next)
    }

    fn has_left(&self) -> bool {
        self.table.has_left()
    }

    fn has_lease(&self) -> bool {
        boot_now() < self.table.lease_until()
    }

    fn can_release(&self) -> bool {
        // Any server of a majority takes it, once there is one again.
        true
    }
}

impl HandoffState for JetStreamGroup {
    fn put_handoff_entry(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        self.handoff.as_mut().is_some_and(|handoff| handoff.put(shard, key, value, at_ns))
    }

    fn pending_handoff(&self) -> usize {
        self.handoff.as_ref().map_or(0, Handoff::pending)
    }

    fn handoff_complete(&self, shard: Shard) -> bool {
        self.handoff.as_ref().is_some_and(|handoff| handoff.is_complete(shard))
    }

    fn take_handoff_entry(&mut self) -> Option<HandoffEntry> {
        self.handoff.as_mut().and_then(Handoff::take)
    }

    fn shard_to_present(&mut self) -> Option<Shard> {
        // The servers keep what they have stored.
        None
    }
}

/// How the member is named in status: its group without the service's name before it.
fn identity(service: &str, group: &Name, label: &Name, incarnation: u64) -> Option<StatusIdentity> {
    let service = Name::new(service).ok()?;
    let short = group.as_str().strip_prefix(service.as_str()).and_then(|rest| rest.strip_prefix('.'));
    let short = short.and_then(|short| Name::new(short).ok()).unwrap_or_else(|| group.clone());
    Some(StatusIdentity { service, group: Some(short), member: label.clone(), incarnation })
}
