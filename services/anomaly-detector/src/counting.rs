//! The counting thread: passes batches from the bus to the detector, its state to the proxy, and
//! its events to the notifiers.
//!
//! ```text
//! standby ── owns all shards ──▶ restoring ── all state received, or timeout ──▶ counting
//!    ▲                               │                                              │
//!    └──────────────────────── lost a shard ◀───────────────────────────────────────┘
//! ```
//! An ack token is dropped once the proxy has the state entries that include its records, so that
//! every record is counted once across a take-over.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant},
};

use crossbeam_channel::Sender;
use prometheus::IntCounter;
use sekiwake_bus::{AckToken, EventSink, GroupDelivery, GroupSource, HandoffWait, Leaving, Progress};
use sekiwake_record::{Shard, WallTime};
use sekiwake_runtime::{Metrics, StatusResponder, Worker};
use sekiwake_sys::clock::{boot_now_ns, wall_now_ns};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::{
    detect::{
        Bands, BatchInfo, Closed, Detector, Event, EventKind, EventName, EventState, Key, MAX_HANDOFF_ENTRY_BYTES, Now,
        Settings, StateEntry,
    },
    metrics::{AnomalyMetrics, names},
    notify::{About, Dispatcher, object},
};

/// The longest wait for a batch while state is restored or acknowledgements are expected.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(20);

/// The same otherwise, so that requests for status are answered in time. A stop ends the wait.
const IDLE_TIMEOUT: Duration = Duration::from_millis(500);

/// How long batches gather before they are counted together: waking for each of them would cost
/// more than counting, and nobody waits for a count.
const GATHER: Duration = Duration::from_millis(50);

/// How often changed state is sent to the proxy.
const HANDOFF_EVERY: Duration = Duration::from_millis(500);

/// How often the detector checks for intervals that are over.
const ADVANCE_EVERY: Duration = Duration::from_millis(50);

/// How many sources `/status` lists.
const SHOWN_SOURCES: usize = 50;

/// A state of the counting thread, as drawn above.
enum Phase {
    Standby,
    Restoring { since: Instant, wait: HandoffWait, entries: Vec<StateEntry> },
    Counting,
}

/// The state from an earlier period in which this detector counted.
#[derive(Default)]
struct Remembered {
    /// The number of the newest entry.
    number: u64,
    entries: Vec<StateEntry>,
}

/// The counting thread.
pub(crate) struct CountLoop {
    source: Box<dyn GroupSource>,
    settings: Settings,
    detector: Detector,
    phase: Phase,
    /// Batches that wait until the state has been restored.
    waiting: VecDeque<GroupDelivery>,
    waiting_bytes: usize,
    /// The contents of the state file; used once, and only if the group has no state.
    from_file: Vec<StateEntry>,
    /// For a proxy that has restarted and has no state.
    remembered: Remembered,
    /// Ack tokens of records counted since the last state was sent.
    counted: Vec<AckToken>,
    /// Ack tokens of records that the state in flight includes.
    sent: Vec<AckToken>,
    /// State entries to be sent.
    entries: VecDeque<StateEntry>,
    handoff_number: u64,
    put_at: Instant,
    /// Whether changed state has to be sent at once.
    is_urgent: bool,
    advanced_at: Instant,
    /// When the queue of batches was last empty.
    drained_at: Option<Instant>,
    /// A batch has been counted since others were let gather.
    may_gather: bool,
    /// The newest capture time.
    newest: WallTime,
    /// Events that are being delivered.
    offered: HashSet<EventName>,
    dispatcher: Dispatcher,
    publisher: Box<dyn EventSink>,
    about: About,
    state_file: Option<Sender<Vec<StateEntry>>>,
    leaving: Option<Leaving>,
    status: StatusResponder,
    metrics: AnomalyMetrics,
    events: EventCounters,
}

/// Events published, by kind and state.
struct EventCounters([[IntCounter; 2]; 3]);

impl EventCounters {
    fn new(metrics: &Metrics) -> EventCounters {
        let counters = |kind: EventKind| {
            ["firing", "resolved"].map(|state| {
                let labels = [("kind", kind.as_str()), ("state", state)];
                metrics.counter(names::EVENTS, "Events published, by kind and state.", &labels)
            })
        };
        EventCounters([EventKind::High, EventKind::Low, EventKind::SilentSource].map(counters))
    }

    fn count(&self, event: &Event) {
        self.0[event.kind as usize][event.state as usize].inc();
    }
}

/// The resources of the counting thread.
pub(crate) struct CountOptions {
    pub(crate) source: Box<dyn GroupSource>,
    pub(crate) settings: Settings,
    pub(crate) dispatcher: Dispatcher,
    pub(crate) publisher: Box<dyn EventSink>,
    pub(crate) about: About,
    /// The contents of the state file.
    pub(crate) from_file: Vec<StateEntry>,
    /// To the thread that writes the state file.
    pub(crate) state_file: Option<Sender<Vec<StateEntry>>>,
    pub(crate) status: StatusResponder,
}

impl CountLoop {
    pub(crate) fn new(options: CountOptions, metrics: &Metrics) -> CountLoop {
        let CountOptions { source, settings, dispatcher, publisher, about, from_file, state_file, status } = options;
        let now = Instant::now();
        let detector = Detector::new(settings.clone(), clock());
        let keys: Vec<Key> = detector.series().map(|(key, _)| key).collect();
        CountLoop {
            source,
            detector,
            phase: Phase::Standby,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            from_file,
            remembered: Remembered::default(),
            counted: Vec::new(),
            sent: Vec::new(),
            entries: VecDeque::new(),
            handoff_number: 0,
            put_at: now,
            is_urgent: false,
            advanced_at: now,
            drained_at: None,
            may_gather: false,
            newest: WallTime::EPOCH,
            offered: HashSet::new(),
            dispatcher,
            publisher,
            metrics: AnomalyMetrics::new(metrics, about.interval, keys.into_iter()),
            events: EventCounters::new(metrics),
            about,
            state_file,
            leaving: None,
            status,
            settings,
        }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        loop {
            worker.beat();
            self.publisher.poll();
            self.update_phase();
            let is_behind = self.waiting_bytes >= HandoffWait::MAX_HELD_BYTES;
            self.source.set_is_full(is_behind);
            let delivery = if is_behind {
                self.source.poll_control(RECEIVE_TIMEOUT)?;
                None
            } else {
                self.next(worker)?
            };
            let received = delivery.is_some();
            match delivery {
                Some(delivery) => self.accept(delivery),
                None if !is_behind => self.drained_at = Some(Instant::now()),
                None => {}
            }
            if matches!(self.phase, Phase::Counting) {
                // While shards are being released this detector does not receive all records, so no
                // interval is complete.
                if self.source.owns_all() {
                    self.advance();
                }
                self.put_handoff(worker.stopping());
            }
            self.update_status();
            if let Some(deadline) = worker.deadline() {
                let now = Instant::now();
                let leaving = self.leaving.get_or_insert_with(|| Leaving::until(now, deadline));
                let is_put = self.counted.is_empty() && self.sent.is_empty() && self.entries.is_empty();
                let is_put = is_put || !matches!(self.phase, Phase::Counting);
                if leaving.advance(&mut *self.source, Progress { received, is_behind, is_put }, now) {
                    self.save();
                    return Ok(());
                }
            }
        }
    }

    /// The next batch. Between two batches that have not arrived together, it lets others gather.
    fn next(&mut self, worker: &Worker) -> anyhow::Result<Option<GroupDelivery>> {
        if let Some(delivery) = self.source.try_receive()? {
            self.may_gather = true;
            return Ok(Some(delivery));
        }
        self.drained_at = Some(Instant::now());
        if std::mem::take(&mut self.may_gather) && self.leaving.is_none() {
            worker.stop().wait(GATHER);
        }
        Ok(self.source.receive(self.timeout())?)
    }

    /// How long to wait for the next batch.
    fn timeout(&self) -> Duration {
        let is_busy = self.leaving.is_some()
            || matches!(self.phase, Phase::Restoring { .. })
            || !(self.counted.is_empty() && self.sent.is_empty() && self.entries.is_empty());
        if is_busy { RECEIVE_TIMEOUT } else { IDLE_TIMEOUT }
    }

    /// Moves to the next phase if it is due.
    fn update_phase(&mut self) {
        let now = Instant::now();
        let is_leaving = self.leaving.as_ref().is_some_and(Leaving::has_begun);
        if !matches!(self.phase, Phase::Counting) {
            self.send_remembered();
        }
        let owns_all = self.source.owns_all();
        match &mut self.phase {
            Phase::Standby if owns_all && !is_leaving => {
                self.phase = Phase::Restoring { since: now, wait: HandoffWait::default(), entries: Vec::new() };
            }
            Phase::Standby => {}
            Phase::Restoring { .. } | Phase::Counting if !owns_all && !is_leaving => self.stand_by(),
            Phase::Restoring { since, wait, entries } => {
                while let Some(entry) = self.source.take_handoff_entry() {
                    wait.entry_arrived(now);
                    self.handoff_number = self.handoff_number.max(entry.at_ns);
                    let key = entry.key.as_bytes().to_vec();
                    let value = entry.value.as_bytes().to_vec();
                    entries.push(StateEntry { shard: entry.shard, key, value });
                }
                let is_complete = Shard::all().all(|shard| self.source.handoff_complete(shard));
                if is_complete && !wait.is_arriving(now) || wait.is_over(*since, now) {
                    let entries = std::mem::take(entries);
                    self.start_counting(&entries);
                }
            }
            Phase::Counting => {
                // This detector's own entries, or entries that are too late.
                while self.source.take_handoff_entry().is_some() {}
                if let Some(shard) = self.source.shard_to_present() {
                    self.entries.extend(self.detector.shard_entries(shard));
                }
            }
        }
    }

    /// Sends the remembered state to a proxy that has restarted without any. Newer entries of other
    /// detectors win.
    fn send_remembered(&mut self) {
        if let Some(shard) = self.source.shard_to_present() {
            let Remembered { number, entries } = &self.remembered;
            for entry in entries.iter().filter(|entry| entry.shard == shard) {
                self.source.put_handoff_entry(shard, &entry.key, &entry.value, *number);
            }
        }
    }

    fn start_counting(&mut self, entries: &[StateEntry]) {
        self.detector = Detector::new(self.settings.clone(), clock());
        self.metrics.reset();
        let from_file = std::mem::take(&mut self.from_file);
        let remembered = std::mem::take(&mut self.remembered.entries);
        let (entries, from) = match (entries.is_empty(), remembered.is_empty()) {
            (false, _) => (entries, "group"),
            (true, false) => (&remembered[..], "memory"),
            (true, true) => (&from_file[..], "file"),
        };
        let discarded = self.detector.restore_all(entries, from != "file");
        // After a gap much longer than a take-over, publishers may no longer retain the records
        // that were not counted.
        let gap = self.settings.interval.saturating_mul(2).max(Duration::from_secs(60));
        let now = clock();
        let mut closed = Vec::new();
        if self.detector.next_start() + gap < now.wall {
            self.detector.skip_to(now.wall + self.settings.interval, &mut closed);
        }
        closed.iter().for_each(|closed| self.metrics.show(closed));
        self.offered.clear();
        let firing: Vec<Event> = self.detector.notified().collect();
        self.dispatcher.set_firing(&firing);
        self.metrics.active.set(1);
        self.phase = Phase::Counting;
        self.drained_at = None;
        let entries = entries.len();
        match (discarded, entries) {
            (Some(of), _) => {
                let interval = self.settings.interval;
                warn!(entries, from, ?of, ?interval, "counting started, state of another interval discarded");
            }
            (None, 0) => info!("counting started without earlier state"),
            (None, _) => info!(entries, from, firing = firing.len(), "counting started, state restored"),
        }
        self.waiting_bytes = 0;
        for delivery in std::mem::take(&mut self.waiting) {
            self.count(delivery);
        }
    }

    /// Another detector counts from now on, including records that the state does not include yet.
    fn stand_by(&mut self) {
        if matches!(self.phase, Phase::Counting) {
            info!("standby: this detector no longer owns all shards");
            self.remembered = Remembered { number: self.handoff_number, entries: self.detector.all_entries() };
        }
        let waiting = std::mem::take(&mut self.waiting).into_iter().map(|delivery| delivery.ack_token);
        let ack_tokens = self.counted.drain(..).chain(self.sent.drain(..)).chain(waiting);
        ack_tokens.for_each(|ack_token| ack_token.abandon());
        self.waiting_bytes = 0;
        self.entries.clear();
        self.offered.clear();
        self.dispatcher.stand_by();
        self.detector = Detector::new(self.settings.clone(), clock());
        self.metrics.stand_by();
        self.phase = Phase::Standby;
    }

    fn accept(&mut self, delivery: GroupDelivery) {
        match self.phase {
            Phase::Counting => self.count(delivery),
            Phase::Standby | Phase::Restoring { .. } => {
                self.waiting_bytes += delivery.batch.body_len();
                self.waiting.push_back(delivery);
            }
        }
    }

    fn count(&mut self, delivery: GroupDelivery) {
        let GroupDelivery {
            topic,
            stream,
            first_sequence,
            first_captured_at_ns,
            last_captured_at_ns,
            batch,
            ack_token,
        } = delivery;
        let last_captured_at = WallTime::from_nanos(last_captured_at_ns);
        self.newest = self.newest.max(last_captured_at);
        let info = BatchInfo {
            shard: topic.shard,
            stream_name: &stream.name,
            stream_epoch: stream.epoch,
            first_sequence,
            first_captured_at: WallTime::from_nanos(first_captured_at_ns),
            last_captured_at,
        };
        self.detector.count(info, &batch);
        self.metrics.counted.inc_by(batch.len() as u64);
        self.counted.push(ack_token);
    }

    fn advance(&mut self) {
        if self.advanced_at.elapsed() < ADVANCE_EVERY {
            return;
        }
        self.advanced_at = Instant::now();
        let now = clock();
        let mut closed = Vec::new();
        let is_complete = self.is_complete(now);
        self.detector.advance(now, is_complete, &mut closed);
        for closed in &closed {
            self.metrics.show(closed);
            log_closed(closed);
        }
        self.metrics.count_losses(self.detector.losses());
        self.deliver_events();
        if !closed.is_empty() {
            self.save();
        }
    }

    /// Whether everything that was captured until a moment ago has been counted: no gap is being
    /// repaired, and either the queue was empty or the received records are recent.
    fn is_complete(&self, now: Now) -> bool {
        let is_drained = self.drained_at.is_some_and(|at| at.elapsed() < Duration::from_secs(1));
        let is_new = self.newest + self.settings.grace.max(Duration::from_secs(1)) >= now.wall;
        self.source.has_lease() && (is_drained || is_new) && self.source.has_received_all()
    }

    /// Delivers new events, and acknowledges delivered ones.
    fn deliver_events(&mut self) {
        for name in self.dispatcher.take_finished() {
            self.detector.acknowledge(&name);
            self.offered.remove(&name);
            // So that a successor does not deliver it again.
            self.is_urgent = true;
        }
        for event in self.detector.take_announcements() {
            self.events.count(&event);
            let object = object(&event, &self.about);
            let series = &*event.series;
            let kind = event.kind.as_str();
            let count = event.count;
            let summary = object["summary"].as_str().unwrap_or_default().to_owned();
            match event.state {
                EventState::Firing => warn!(series, kind, count, "{summary}"),
                EventState::Resolved => info!(series, kind, count, "{summary}"),
            }
            self.publisher.publish(object.to_string().as_bytes());
        }
        let new: Vec<Event> =
            self.detector.events().filter(|event| !self.offered.contains(&event.name())).cloned().collect();
        for event in new {
            self.is_urgent = true;
            self.offered.insert(event.name());
            self.dispatcher.offer(&event);
        }
    }

    /// Sends changed state to the proxy, and drops the ack tokens of its records once the proxy has
    /// it.
    fn put_handoff(&mut self, at_once: bool) {
        while self.source.pending_handoff() < HandoffWait::MAX_PENDING_ENTRIES
            && let Some(entry) = self.entries.pop_front()
        {
            if entry.value.len() > MAX_HANDOFF_ENTRY_BYTES {
                // A window of a thousand intervals with billions of messages: it is not handed off.
                self.metrics.reject_entry();
                continue;
            }
            self.handoff_number = self.handoff_number.max(clock().wall.as_nanos()) + 1;
            if !self.source.put_handoff_entry(entry.shard, &entry.key, &entry.value, self.handoff_number) {
                // The queue is full: retry later, and keep the ack tokens until then.
                self.entries.push_front(entry);
                break;
            }
        }
        if !self.entries.is_empty() || self.source.pending_handoff() > 0 {
            return;
        }
        self.sent.clear();
        let is_due = self.put_at.elapsed() >= HANDOFF_EVERY || at_once || std::mem::take(&mut self.is_urgent);
        if !is_due {
            return;
        }
        self.put_at = Instant::now();
        self.entries.extend(self.detector.take_changed());
        self.sent = std::mem::take(&mut self.counted);
        if self.entries.is_empty() {
            self.sent.clear();
        }
    }

    fn save(&mut self) {
        if let Some(state_file) = &self.state_file
            && matches!(self.phase, Phase::Counting)
        {
            // If the writer is busy, the next interval's state will do.
            let _ = state_file.try_send(self.detector.all_entries());
        }
    }

    fn update_status(&self) {
        self.status.answer(|| {
            let phase = match self.phase {
                Phase::Standby => "standby",
                Phase::Restoring { .. } => "restoring",
                Phase::Counting => "counting",
            };
            let mut sources: Vec<_> =
                self.detector.series().filter(|(key, _)| matches!(key, Key::Source(_))).collect();
            let tracked = sources.len();
            sources.sort_by_key(|(_, series)| std::cmp::Reverse(series.last().map_or(0, |last| last.count)));
            sources.truncate(SHOWN_SOURCES);
            let others = self.detector.series().filter(|(key, _)| !matches!(key, Key::Source(_)));
            let series = others.chain(sources).map(|(key, series)| {
                let last = series.last();
                let bands = last.and_then(|last| last.bands);
                let value = json!({
                    "window": series.window().counts().collect::<Vec<_>>(),
                    "count": last.map(|last| last.count),
                    "average": bands.map(|bands| bands.average),
                    "lower": bands.map(|bands| bands.lower_shown()),
                    "upper": bands.map(|bands| bands.upper),
                    "verdict": last.map(|last| last.verdict),
                });
                (key.to_string(), value)
            });
            json!({
                "phase": phase,
                "interval_seconds": self.about.interval.as_secs_f64(),
                "next_interval": self.detector.next_start().as_nanos() / 1_000_000_000,
                "tracked_sources": tracked,
                "firing": self.detector.firing().take(SHOWN_SOURCES).map(|event| object(&event, &self.about)).collect::<Vec<_>>(),
                "series": series.collect::<serde_json::Map<String, Value>>(),
            })
        });
    }
}

fn log_closed(closed: &Closed) {
    for result in &closed.series {
        if let Some(Bands { average, upper, .. }) = result.bands {
            let series = &*result.series;
            tracing::debug!(series, count = result.count, average, upper, verdict = ?result.verdict, "interval evaluated");
        }
    }
}

fn clock() -> Now {
    Now { wall: WallTime::from_nanos(wall_now_ns()), boot: Duration::from_nanos(boot_now_ns()) }
}
