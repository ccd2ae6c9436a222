//! Everything that the console reads from the bus. The only file that knows the bus.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sekiwake_bus::{
    Bus, BusError, Controlling, Delivery, EventSource, KnownTemplates, STATUS_PREFIX, Source, Subscribing,
};
use sekiwake_decode::Decoder;
use sekiwake_record::Kind;
use sekiwake_runtime::{Latch, Metrics, Stop, Worker};
use tracing::warn;

use crate::{
    ConsoleSettings, clock, lock,
    metrics::ConsoleMetrics,
    model::{Model, Moment},
    watch::{Filter, Row, Watched, Watches},
};

/// How long to wait for a message.
const WAIT: Duration = Duration::from_secs(1);
/// How often to look whether somebody looks, while status is read on demand.
const PAUSE: Duration = Duration::from_millis(250);
/// While nobody looks, status is read for so long, once per interval of this length, so that the
/// charts have every interval of the detectors, and losses are dated.
const GLANCE: Duration = Duration::from_secs(3);
const GLANCE_EVERY: Duration = Duration::from_secs(30);
/// How often the model forgets what is out of date.
const EXPIRE_EVERY: Duration = Duration::from_secs(1);
/// How many messages are taken under one lock.
const BURST: usize = 64;

/// How long to wait for a batch while anything is watched.
const RECORD_WAIT: Duration = Duration::from_millis(50);
/// How often to look whether anything is watched.
const IDLE: Duration = Duration::from_millis(200);
/// How many batches of one watch are taken before the next one's turn.
const BATCHES: usize = 64;
/// How often the count of lost records is read.
const COUNT_EVERY: Duration = Duration::from_secs(1);
/// How long to wait for the templates of flows.
const TEMPLATE_WAIT: Duration = Duration::from_secs(3);
/// How often a failing subscription is logged.
const WARN_EVERY: Duration = Duration::from_secs(10);
/// The sources of records of this age are shown when the page is opened.
const SOURCES_SINCE: Duration = Duration::from_secs(60);
/// The most rows of one record.
const ROWS_PER_RECORD: usize = 30;

/// The subscription to the status of all services.
pub(crate) struct StatusReader {
    events: Box<dyn EventSource>,
    connected: Latch,
    metrics: ConsoleMetrics,
}

/// When status is read, if it is not read all the time.
pub(crate) struct Looks {
    watches: Arc<Mutex<Watches>>,
    /// When the last glance began.
    glanced_at: Option<Moment>,
}

impl Looks {
    pub(crate) fn new(watches: Arc<Mutex<Watches>>) -> Looks {
        Looks { watches, glanced_at: None }
    }

    /// Whether status is wanted now.
    fn is_wanted(&mut self, now: Moment) -> bool {
        if self.glanced_at.is_none_or(|at| now.since(at) >= GLANCE_EVERY) {
            self.glanced_at = Some(now);
        }
        let is_glance = self.glanced_at.is_some_and(|at| now.since(at) < GLANCE);
        is_glance || lock(&self.watches).is_looked_at(now)
    }
}

impl StatusReader {
    /// Waits for messages end when the role is to stop.
    pub(crate) fn end_waits_at(&mut self, stop: Stop) {
        self.events.end_waits_at(stop);
    }

    pub(crate) fn connect(
        bus: &Bus,
        from: &Subscribing,
        metrics: &Metrics,
        connected: Latch,
        counters: ConsoleMetrics,
    ) -> Result<StatusReader, BusError> {
        let events = bus.event_source(from, &[STATUS_PREFIX.to_owned()], metrics)?;
        Ok(StatusReader { events, connected, metrics: counters })
    }

    /// Keeps the model up to date until the worker is to stop.
    pub(crate) fn run(mut self, model: &Mutex<Model>, mut looks: Option<Looks>, worker: &Worker) -> anyhow::Result<()> {
        let mut expired_at = Instant::now();
        let mut is_subscribed = true;
        while !worker.stopping() {
            worker.beat();
            let is_wanted = looks.as_mut().is_none_or(|looks| looks.is_wanted(clock::now()));
            if is_wanted != is_subscribed {
                is_subscribed = is_wanted;
                self.events.set_subscribed(is_subscribed)?;
                match is_subscribed {
                    true => lock(model).resume(clock::now()),
                    false => lock(model).pause(),
                }
            }
            if !is_subscribed {
                self.connected.set(self.events.is_connected());
                worker.stop().wait(PAUSE);
                continue;
            }
            let first = self.events.receive(WAIT)?;
            let now = clock::now();
            let is_connected = self.events.is_connected();
            self.connected.set(is_connected);
            let mut model = lock(model);
            model.set_connected(is_connected, now);
            let mut next = first;
            let mut left = BURST;
            while let Some(event) = next {
                model.apply(&event.topic, &event.json, now);
                self.metrics.parts.inc();
                left -= 1;
                next = if left == 0 { None } else { self.events.receive(Duration::ZERO)? };
            }
            if expired_at.elapsed() >= EXPIRE_EVERY {
                expired_at = Instant::now();
                model.expire(now);
                self.metrics.follow(&model);
            }
        }
        Ok(())
    }
}

/// Reads records for those who watch, and only then.
pub(crate) struct RecordReader {
    subscribing: Subscribing,
    controlling: Controlling,
    watches: Arc<Mutex<Watches>>,
    open: BTreeMap<Watched, Open>,
}

/// An open subscription.
struct Open {
    records: Box<dyn Source>,
    /// Apart from the service's own metrics: what a page misses is no loss of the installation.
    metrics: Metrics,
    counted_at: Instant,
    decoder: Decoder,
}

impl RecordReader {
    pub(crate) fn new(settings: &ConsoleSettings, watches: Arc<Mutex<Watches>>) -> RecordReader {
        let (subscribing, controlling) = (settings.subscribing.clone(), settings.controlling.clone());
        RecordReader { subscribing, controlling, watches, open: BTreeMap::new() }
    }

    /// Subscribes while pages are open, until the worker is to stop.
    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        let mut warned_at = None;
        while !worker.stopping() {
            worker.beat();
            let wanted = lock(&self.watches).wanted(clock::now());
            self.open.retain(|watched, _| wanted.contains(watched));
            for watched in wanted {
                if !self.open.contains_key(&watched) {
                    match self.connect(&watched, worker) {
                        Ok(open) => {
                            self.open.insert(watched, open);
                        }
                        Err(error) => {
                            if warned_at.is_none_or(|at: Instant| at.elapsed() >= WARN_EVERY) {
                                warn!(%error, "cannot subscribe to records for the console");
                                warned_at = Some(Instant::now());
                            }
                        }
                    }
                }
            }
            if self.open.is_empty() {
                worker.stop().wait(IDLE);
                continue;
            }
            let wait = RECORD_WAIT / self.open.len() as u32;
            for (watched, open) in &mut self.open {
                open.take(watched, &self.watches, wait)?;
            }
        }
        Ok(())
    }

    fn connect(&self, watched: &Watched, worker: &Worker) -> Result<Open, BusError> {
        let bus = Bus::shared();
        let metrics = Metrics::new("console");
        let mut decoder = Decoder::new();
        let kind = match watched {
            Watched::Tail(filter) => filter.kind,
            Watched::Sources => None,
        };
        let kinds = Kind::ALL.into_iter().filter(|one| kind.is_none_or(|kind| *one == kind));
        let prefixes: Vec<String> = kinds.map(|kind| format!("{kind}/")).collect();
        let records = match watched {
            Watched::Tail(filter) => {
                let live = bus.source(&self.subscribing, &prefixes, &metrics, None)?;
                // After the subscription: what follows the templates is not missed.
                if filter.kind.is_none_or(|kind| kind == Kind::Xflow) {
                    self.learn(&bus, filter, &mut decoder, worker)?;
                }
                live
            }
            Watched::Sources => {
                bus.recent_source(&self.subscribing, &self.controlling, &prefixes, SOURCES_SINCE, &metrics, None)?
            }
        };
        Ok(Open { records, metrics, counted_at: Instant::now(), decoder })
    }

    /// Asks for the templates of flows.
    fn learn(&self, bus: &Bus, filter: &Filter, decoder: &mut Decoder, worker: &Worker) -> Result<(), BusError> {
        let until = Instant::now() + TEMPLATE_WAIT;
        let known = bus.requests(&self.controlling)?.templates(Kind::Xflow, &|| {
            worker.beat();
            worker.stopping() || Instant::now() >= until
        })?;
        let note = match known {
            KnownTemplates::Entries(entries) => {
                for entry in entries {
                    decoder.learn(entry.key.as_bytes(), entry.value.as_bytes(), entry.at_ns);
                }
                None
            }
            KnownTemplates::NoGroup => Some(
                "No xflow forwarder is running: NetFlow v9 and IPFIX are decoded once exporters send their templates.",
            ),
            _ => Some("No templates on the bus: NetFlow v9 and IPFIX are decoded once exporters send their templates."),
        };
        if let Some(tail) = lock(&self.watches).tail_mut(filter) {
            tail.note = note;
        }
        Ok(())
    }
}

impl Open {
    /// Takes what has arrived.
    fn take(&mut self, watched: &Watched, watches: &Mutex<Watches>, mut wait: Duration) -> Result<(), BusError> {
        for _ in 0..BATCHES {
            let Some(delivery) = self.receive(wait)? else { break };
            wait = Duration::ZERO;
            let now = clock::now();
            let mut watches = lock(watches);
            match watched {
                Watched::Tail(filter) => self.add_rows(filter, &delivery, &mut watches, now),
                Watched::Sources => add_sources(&delivery, &mut watches, now),
            }
        }
        let mut watches = lock(watches);
        if let (Watched::Sources, Some(sources)) = (watched, watches.sources_mut()) {
            sources.turn(clock::now());
        }
        if let Watched::Tail(filter) = watched
            && self.counted_at.elapsed() >= COUNT_EVERY
            && let Some(tail) = watches.tail_mut(filter)
        {
            self.counted_at = Instant::now();
            tail.lost = lost(&self.metrics);
        }
        Ok(())
    }

    fn receive(&mut self, wait: Duration) -> Result<Option<Delivery>, BusError> {
        let delivery = self.records.receive(wait);
        // Without recent records the page shows live ones alone.
        while self.records.next_missing().is_some() {}
        delivery
    }

    fn add_rows(&mut self, filter: &Filter, delivery: &Delivery, watches: &mut Watches, now: Moment) {
        let Some(tail) = watches.tail_mut(filter) else { return };
        let kind = delivery.topic.kind;
        for record in delivery.batch.records() {
            tail.received += 1;
            if !tail.selects(record.source) {
                continue;
            }
            let mut rows = 0;
            self.decoder.decode(Some(kind), &record, |row| {
                rows += 1;
                if rows > ROWS_PER_RECORD {
                    tail.skipped += 1;
                    return;
                }
                let captured_at = Duration::from_nanos(record.captured_at_ns);
                let row = Row { captured_at, kind, source: record.source, text: row.to_string() };
                tail.add(filter, row, now);
            });
        }
    }
}

fn add_sources(delivery: &Delivery, watches: &mut Watches, now: Moment) {
    let Some(sources) = watches.sources_mut() else { return };
    for record in delivery.batch.records() {
        // Not in the future, if the clocks of the hosts differ.
        let age = now.wall.saturating_sub(Duration::from_nanos(record.captured_at_ns));
        let at = Moment { elapsed: now.elapsed.saturating_sub(age), wall: now.wall - age };
        sources.add(record.source, delivery.topic.kind, at);
    }
}

/// The records that a subscription has missed.
fn lost(metrics: &Metrics) -> u64 {
    let text = metrics.text();
    let lines = text.lines().filter(|line| line.starts_with(sekiwake_bus::names::LOST_RECORDS));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64
}
