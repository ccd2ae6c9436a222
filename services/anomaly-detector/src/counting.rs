//! The counting thread: batches from the bus to the detector, its notes to the proxy, its events to those who tell.
//!
//! ```text
//! standing by ── owns all shards ─▶ restoring ── all notes are there, or were waited for ─▶ counting
//!      ▲                                │                                                    │
//!      └──────────────────────── does not own all any more ◀─────────────────────────────────┘
//! ```
//! A ticket is dropped when the note that covers its records is with the proxy: whoever takes over counts each record once.

use std::{
    collections::{HashSet, VecDeque},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crossbeam_channel::Sender;
use prometheus::IntCounter;
use sekiwake_bus::{EventPublisher, GroupDelivery, GroupSubscriber, Leaving, Progress, Ticket, boot_now};
use sekiwake_record::Shard;
use sekiwake_runtime::{Metrics, StatusDesk, Worker};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::{
    detect::{Closed, Detector, Event, EventKind, EventState, Key, MAX_NOTE_BYTES, Now, Settings, StateNote, Verdict},
    metrics::{AnomalyMetrics, names},
    notify::{About, Telling, object},
};

/// The longest sleep.
const PATIENCE: Duration = Duration::from_millis(20);

/// How often notes are put.
const NOTE_EVERY: Duration = Duration::from_millis(500);

/// How long notes are waited for, and how long while they still come.
const WAIT_FOR_NOTES: Duration = Duration::from_secs(1);
const WAIT_WHILE_THEY_COME: Duration = Duration::from_secs(5);
const STILL_COMING: Duration = Duration::from_millis(300);

/// So many notes under way are enough.
const ENOUGH_NOTES: usize = 4096;

/// What waits for notes, bytes.
const ENOUGH_HELD_BYTES: usize = 16 << 20;

/// How often it is looked whether an interval is over.
const ADVANCE_EVERY: Duration = Duration::from_millis(50);

/// How many sources `/status` lists.
const SHOWN_SOURCES: usize = 50;

/// What the detector is doing.
enum Phase {
    StandingBy,
    /// Since then; the last note came then.
    Restoring {
        since: Instant,
        noted_at: Option<Instant>,
        notes: Vec<StateNote>,
    },
    Counting,
}

/// See the module.
pub(crate) struct Counting {
    subscriber: GroupSubscriber,
    settings: Settings,
    detector: Detector,
    phase: Phase,
    /// Batches that wait until everything has been restored.
    held: VecDeque<GroupDelivery>,
    held_bytes: usize,
    /// What the file had at the start; used once, and only where nobody has notes.
    from_file: Vec<StateNote>,
    /// What was known when this detector counted last, and the number of the newest note of it: for a proxy that has come anew.
    remembered: (u64, Vec<StateNote>),
    /// Of what was counted since the last notes.
    counted: Vec<Ticket>,
    /// Of what the notes under way cover.
    noted: Vec<Ticket>,
    notes: VecDeque<StateNote>,
    note_number: u64,
    noted_at: Instant,
    /// Notes are to be put at once.
    is_urgent: bool,
    advanced_at: Instant,
    /// When nothing more was to be had.
    drained_at: Option<Instant>,
    /// The newest capture time, nanoseconds since 1970-01-01T00:00:00Z.
    newest_ns: u64,
    /// Events that are being told.
    offered: HashSet<(String, EventState)>,
    telling: Telling,
    publisher: EventPublisher,
    about: About,
    files: Option<Sender<Vec<StateNote>>>,
    leaving: Option<Leaving>,
    desk: StatusDesk,
    metrics: AnomalyMetrics,
    told: Told,
}

/// Changes that were told, by kind and state.
struct Told([[IntCounter; 2]; 3]);

impl Told {
    fn new(metrics: &Metrics) -> Told {
        let of = |kind: EventKind| {
            ["firing", "resolved"].map(|state| {
                let labels = [("kind", kind.as_str()), ("state", state)];
                metrics.counter(names::EVENTS, "Changes that were told, by kind and state.", &labels)
            })
        };
        Told([EventKind::High, EventKind::Low, EventKind::SilentSource].map(of))
    }

    fn count(&self, event: &Event) {
        self.0[event.kind as usize][event.state as usize].inc();
    }
}

/// What counting needs of its surroundings.
pub(crate) struct Surroundings {
    pub(crate) telling: Telling,
    pub(crate) publisher: EventPublisher,
    pub(crate) about: About,
    pub(crate) from_file: Vec<StateNote>,
    pub(crate) files: Option<Sender<Vec<StateNote>>>,
    pub(crate) desk: StatusDesk,
}

impl Counting {
    pub(crate) fn new(
        subscriber: GroupSubscriber,
        settings: Settings,
        surroundings: Surroundings,
        metrics: &Metrics,
    ) -> Counting {
        let Surroundings { telling, publisher, about, from_file, files, desk } = surroundings;
        let now = Instant::now();
        let detector = Detector::new(settings.clone(), clock());
        let keys: Vec<Key> = detector.series().map(|(key, _)| key).collect();
        Counting {
            subscriber,
            detector,
            phase: Phase::StandingBy,
            held: VecDeque::new(),
            held_bytes: 0,
            from_file,
            remembered: (0, Vec::new()),
            counted: Vec::new(),
            noted: Vec::new(),
            notes: VecDeque::new(),
            note_number: 0,
            noted_at: now,
            is_urgent: false,
            advanced_at: now,
            drained_at: None,
            newest_ns: 0,
            offered: HashSet::new(),
            telling,
            publisher,
            metrics: AnomalyMetrics::new(metrics, about.interval_seconds, keys.into_iter()),
            told: Told::new(metrics),
            about,
            files,
            leaving: None,
            desk,
            settings,
        }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        loop {
            worker.beat();
            self.publisher.tend();
            self.follow();
            let is_behind = self.held_bytes >= ENOUGH_HELD_BYTES;
            self.subscriber.set_has_enough(is_behind);
            let delivery = if is_behind {
                self.subscriber.tend(PATIENCE)?;
                None
            } else {
                self.subscriber.receive(PATIENCE)?
            };
            let received = delivery.is_some();
            match delivery {
                Some(delivery) => self.take(delivery),
                None if !is_behind => self.drained_at = Some(Instant::now()),
                None => {}
            }
            if matches!(self.phase, Phase::Counting) {
                // While the shards are being given back not everything comes here, and what does is not judged.
                if self.subscriber.owns_all() {
                    self.advance();
                }
                self.put_notes(worker.stopping());
            }
            self.answer();
            if let Some(deadline) = worker.deadline() {
                let now = Instant::now();
                let leaving = self.leaving.get_or_insert_with(|| Leaving::until(now, deadline));
                let is_noted = self.counted.is_empty() && self.noted.is_empty() && self.notes.is_empty();
                let is_noted = is_noted || !matches!(self.phase, Phase::Counting);
                if leaving.go_on(&mut self.subscriber, Progress { received, is_behind, is_noted }, now) {
                    self.save();
                    return Ok(());
                }
            }
        }
    }

    /// From one phase to the next.
    fn follow(&mut self) {
        let now = Instant::now();
        let is_leaving = self.leaving.as_ref().is_some_and(Leaving::has_begun);
        if !matches!(self.phase, Phase::Counting) {
            self.present();
        }
        let owns_all = self.subscriber.owns_all();
        match &mut self.phase {
            Phase::StandingBy if owns_all && !is_leaving => {
                self.phase = Phase::Restoring { since: now, noted_at: None, notes: Vec::new() };
            }
            Phase::StandingBy => {}
            Phase::Restoring { .. } | Phase::Counting if !owns_all && !is_leaving => self.stand_by(),
            Phase::Restoring { since, noted_at, notes } => {
                while let Some(note) = self.subscriber.take_note() {
                    *noted_at = Some(now);
                    self.note_number = self.note_number.max(note.at_ns);
                    let (key, value) = (note.key.as_bytes().to_vec(), note.value.as_bytes().to_vec());
                    notes.push(StateNote { shard: note.shard, key, value });
                }
                let waited = now.duration_since(*since);
                let still_come = noted_at.is_some_and(|at| now.duration_since(at) < STILL_COMING);
                let is_whole = Shard::all().all(|shard| self.subscriber.notes_complete(shard));
                if is_whole && !still_come || waited >= WAIT_WHILE_THEY_COME || waited >= WAIT_FOR_NOTES && !still_come
                {
                    let notes = std::mem::take(notes);
                    self.begin(&notes);
                }
            }
            Phase::Counting => {
                // Its own, or words that came too late.
                while self.subscriber.take_note().is_some() {}
                if let Some(shard) = self.subscriber.shard_to_present() {
                    self.notes.extend(self.detector.notes_of(shard));
                }
            }
        }
    }

    /// The proxy has come anew, and has no notes: it gets those of when this detector counted. Newer ones of others win.
    fn present(&mut self) {
        if let Some(shard) = self.subscriber.shard_to_present() {
            let (number, notes) = &self.remembered;
            for note in notes.iter().filter(|note| note.shard == shard) {
                self.subscriber.put_note(shard, &note.key, &note.value, *number);
            }
        }
    }

    fn begin(&mut self, notes: &[StateNote]) {
        self.detector = Detector::new(self.settings.clone(), clock());
        self.metrics.begin();
        let from_file = std::mem::take(&mut self.from_file);
        let remembered = std::mem::take(&mut self.remembered.1);
        let (notes, from) = match (notes.is_empty(), remembered.is_empty()) {
            (false, _) => (notes, "group"),
            (true, false) => (&remembered[..], "itself"),
            (true, true) => (&from_file[..], "file"),
        };
        for note in notes {
            self.detector.restore(note, from != "file");
        }
        self.detector.restored();
        // What was not counted for much longer than a take-over takes may be gone from the publishers' memory.
        let gap_ns = self.settings.interval_ns.saturating_mul(2).max(60_000_000_000);
        let now = clock();
        let mut closed = Vec::new();
        if self.detector.next_ns().saturating_add(gap_ns) < now.wall_ns {
            self.detector.skip_to(now.wall_ns.saturating_add(self.settings.interval_ns), &mut closed);
        }
        closed.iter().for_each(|closed| self.metrics.show(closed));
        self.offered.clear();
        let firing: Vec<Event> = self.detector.firing().collect();
        self.telling.set_firing(&firing);
        self.metrics.active.set(1);
        self.phase = Phase::Counting;
        self.drained_at = None;
        match notes.is_empty() {
            true => info!("counting, from the beginning"),
            false => info!(notes = notes.len(), from, firing = firing.len(), "counting, with what was known before"),
        }
        self.held_bytes = 0;
        for delivery in std::mem::take(&mut self.held) {
            self.count(delivery);
        }
    }

    /// Somebody else counts: what was counted and is not noted is counted again there.
    fn stand_by(&mut self) {
        if matches!(self.phase, Phase::Counting) {
            info!("standing by: not all shards are this detector's any more");
            self.remembered = (self.note_number, self.detector.all_notes());
        }
        let held = std::mem::take(&mut self.held);
        let tickets =
            self.counted.drain(..).chain(self.noted.drain(..)).chain(held.into_iter().map(|held| held.ticket));
        tickets.for_each(|ticket| ticket.abandon());
        self.held_bytes = 0;
        self.notes.clear();
        self.offered.clear();
        self.telling.stand_by();
        self.detector = Detector::new(self.settings.clone(), clock());
        self.metrics.stand_by();
        self.phase = Phase::StandingBy;
    }

    fn take(&mut self, delivery: GroupDelivery) {
        match self.phase {
            Phase::Counting => self.count(delivery),
            Phase::StandingBy | Phase::Restoring { .. } => {
                self.held_bytes += delivery.batch.body_len();
                self.held.push_back(delivery);
            }
        }
    }

    fn count(&mut self, delivery: GroupDelivery) {
        let GroupDelivery { topic, stream, first_sequence, first_captured_at_ns, last_captured_at_ns, batch, ticket } =
            delivery;
        let captured = (first_captured_at_ns, last_captured_at_ns);
        self.newest_ns = self.newest_ns.max(last_captured_at_ns);
        self.detector.take(topic.shard, (&stream.name, stream.epoch), first_sequence, captured, &batch);
        self.metrics.counted.inc_by(batch.len() as u64);
        self.counted.push(ticket);
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
            tell_log(closed);
        }
        self.metrics.count_losses(self.detector.losses());
        self.tell();
        if !closed.is_empty() {
            self.save();
        }
    }

    /// Whether everything that was captured until a moment ago has been counted: nothing is being repaired, and either there was nothing
    /// more to be had, or what comes is new.
    fn is_complete(&self, now: Now) -> bool {
        let is_drained = self.drained_at.is_some_and(|at| at.elapsed() < Duration::from_secs(1));
        let is_new = self.newest_ns.saturating_add(self.settings.grace_ns.max(1_000_000_000)) >= now.wall_ns;
        self.subscriber.has_lease() && (is_drained || is_new) && self.subscriber.has_received_all()
    }

    /// Has what is new told, and forgets what has been.
    fn tell(&mut self) {
        for (id, state) in self.telling.take_told() {
            self.detector.acknowledge(&id, state);
            self.offered.remove(&(id, state));
            // Whoever takes over now should not tell it again.
            self.is_urgent = true;
        }
        let new: Vec<Event> = self
            .detector
            .events()
            .filter(|event| !self.offered.contains(&(event.id.clone(), event.state)))
            .cloned()
            .collect();
        for event in new {
            self.is_urgent = true;
            self.offered.insert((event.id.clone(), event.state));
            self.told.count(&event);
            let said = object(&event, &self.about);
            let (series, kind, count) = (&*event.series, event.kind.as_str(), event.count);
            let summary = said["summary"].as_str().unwrap_or_default().to_owned();
            match event.state {
                EventState::Firing => warn!(series, kind, count, "{summary}"),
                EventState::Resolved => info!(series, kind, count, "{summary}"),
            }
            self.publisher.publish(said.to_string().as_bytes());
            self.telling.offer(&event);
        }
    }

    /// Puts what has changed, and drops the tickets that it covers when the proxy has it.
    fn put_notes(&mut self, at_once: bool) {
        while self.subscriber.waiting_notes() < ENOUGH_NOTES
            && let Some(note) = self.notes.pop_front()
        {
            if note.value.len() > MAX_NOTE_BYTES {
                // A window of a thousand intervals of billions: it does not move.
                self.metrics.lost_note();
                continue;
            }
            self.note_number = self.note_number.max(clock().wall_ns) + 1;
            if !self.subscriber.put_note(note.shard, &note.key, &note.value, self.note_number) {
                // No room: until there is some, what it covers is not done with.
                self.notes.push_front(note);
                break;
            }
        }
        if !self.notes.is_empty() || self.subscriber.waiting_notes() > 0 {
            return;
        }
        self.noted.clear();
        let is_due = self.noted_at.elapsed() >= NOTE_EVERY || at_once || std::mem::take(&mut self.is_urgent);
        if !is_due {
            return;
        }
        self.noted_at = Instant::now();
        self.notes.extend(self.detector.take_changed());
        self.noted = std::mem::take(&mut self.counted);
        if self.notes.is_empty() {
            self.noted.clear();
        }
    }

    fn save(&mut self) {
        if let Some(files) = &self.files
            && matches!(self.phase, Phase::Counting)
        {
            // A writer that has not written the one before gets the next one.
            let _ = files.try_send(self.detector.all_notes());
        }
    }

    fn answer(&self) {
        self.desk.answer(|| {
            let phase = match self.phase {
                Phase::StandingBy => "standing_by",
                Phase::Restoring { .. } => "restoring",
                Phase::Counting => "counting",
            };
            let mut sources: Vec<_> =
                self.detector.series().filter(|(key, _)| matches!(key, Key::Source(_))).collect();
            let known = sources.len();
            sources.sort_by_key(|(_, series)| std::cmp::Reverse(series.last().map_or(0, |last| last.0)));
            sources.truncate(SHOWN_SOURCES);
            let others = self.detector.series().filter(|(key, _)| !matches!(key, Key::Source(_)));
            let series = others.chain(sources).map(|(key, series)| {
                let last = series.last();
                let bands = last.and_then(|(_, bands, _)| bands);
                let value = json!({
                    "window": series.window().counts().collect::<Vec<_>>(),
                    "count": last.map(|(count, ..)| count),
                    "average": bands.map(|bands| bands.average),
                    "lower": bands.map(|bands| bands.lower_shown()),
                    "upper": bands.map(|bands| bands.upper),
                    "verdict": last.map(|(_, _, verdict)| verdict),
                });
                (key.to_string(), value)
            });
            json!({
                "phase": phase,
                "interval_seconds": self.about.interval_seconds,
                "next_interval": self.detector.next_ns() / 1_000_000_000,
                "known_sources": known,
                "firing": self.detector.firing().take(SHOWN_SOURCES).map(|event| object(&event, &self.about)).collect::<Vec<_>>(),
                "series": series.collect::<serde_json::Map<String, Value>>(),
            })
        });
    }
}

fn tell_log(closed: &Closed) {
    for judged in &closed.series {
        let (series, count, verdict) = (&*judged.series, judged.count, judged.verdict);
        if let (Some(bands), Verdict::Normal | Verdict::High | Verdict::Low) = (judged.bands, verdict) {
            let (average, upper) = (bands.average, bands.upper);
            tracing::debug!(series, count, average, upper, ?verdict, "an interval is over");
        }
    }
}

fn clock() -> Now {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Now { wall_ns: u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), boot_ns: boot_now() }
}
