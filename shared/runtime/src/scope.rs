//! What a role gets from the process: its workers, its metrics, its latches, its stop.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use crossbeam_channel::Sender;
use serde_json::Value;

use crate::health::{Health, Latch, Pulse, lock};
use crate::losses::{Due, Ledger, LossReason, Losses};
use crate::metrics::Metrics;
use crate::pages::{PageBody, PageRefusal, PageRequest, Pages};
use crate::status::{Board, StatusDesk};
use crate::stop::{Hangups, Stop};
use crate::supervisor::{Event, Outcome};

/// One role's part of the process. Clones are the same scope, so that a worker can keep one and spawn more workers.
#[derive(Clone, Debug)]
pub struct Scope {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    service: &'static str,
    /// Which role of the process this is, in the order in which they were added.
    position: usize,
    metrics: Metrics,
    health: Arc<Health>,
    stop: Stop,
    hangups: Hangups,
    events: Sender<Event>,
    workers: Mutex<Workers>,
    losses: Mutex<Vec<Arc<Ledger>>>,
    status: Board,
    pages: Pages,
}

#[derive(Debug, Default)]
struct Workers {
    next_id: u64,
    live: BTreeMap<u64, LiveWorker>,
}

#[derive(Debug)]
struct LiveWorker {
    pulse: Arc<Pulse>,
    thread: JoinHandle<()>,
}

/// What a worker has of its surroundings.
#[derive(Debug)]
pub struct Worker {
    pulse: Arc<Pulse>,
    stop: Stop,
}

impl Scope {
    pub(crate) fn new(
        service: &'static str,
        position: usize,
        health: Arc<Health>,
        (stop, hangups): (Stop, Hangups),
        events: Sender<Event>,
        pages: Pages,
    ) -> Scope {
        let metrics = Metrics::new(service);
        let (workers, losses, status) = (Mutex::default(), Mutex::default(), Board::default());
        Scope {
            inner: Arc::new(Inner {
                service,
                position,
                metrics,
                health,
                stop,
                hangups,
                events,
                workers,
                losses,
                status,
                pages,
            }),
        }
    }

    /// The name of the service whose role this is.
    pub fn service(&self) -> &'static str {
        self.inner.service
    }

    /// The role's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// A condition for being ready: until it is set, `/readyz` is 503 and names it.
    pub fn readiness(&self, what: impl Into<String>) -> Latch {
        self.inner.health.latch(self.inner.service, what.into())
    }

    /// Losses of one stage, counted in the family `name` by `labels` and `reason`, and logged by the runtime. Ask once for
    /// each set of labels and clone: two that count into the same counters would both log.
    pub fn losses<R: LossReason>(
        &self,
        name: &str,
        help: &str,
        stage: impl Into<String>,
        labels: &[(&str, &str)],
    ) -> Losses<R> {
        let losses = Losses::new(&self.inner.metrics, name, help, stage, labels);
        lock(&self.inner.losses).push(losses.ledger());
        losses
    }

    /// A part of the role's `/status` that a worker answers for: the desk is the worker's to take along, and to look at in each
    /// round of its loop. A part that is not answered for within 1 s shows that instead, and so does one whose desk is gone.
    /// The part takes the place of an earlier one of the same name, as when a role starts something again; what has a name
    /// is listed until the process ends, so names are few and do not come from the network.
    pub fn status(&self, part: impl Into<String>) -> StatusDesk {
        self.inner.status.desk(part.into())
    }

    /// A part of the role's `/status` that is made of shared state, by one of two threads that are there for this: it may take
    /// some hundred milliseconds. It never runs twice at a time. One that takes more than 1 s shows that instead, and whoever
    /// asks while it still runs gets what it returns. Names are as in [`Scope::status`].
    ///
    /// The function is kept until the process ends, and what it owns with it; the process does not wait for it to return.
    pub fn status_with(&self, part: impl Into<String>, make: impl Fn() -> Value + Send + Sync + 'static) {
        self.inner.status.maker(part.into(), make);
    }

    /// Adds `GET path` to the admin port: an answer of any length, made by a function that may block, in a thread of its own. So many are
    /// made, or are on their way, at a time; whoever comes beyond is answered 503. The function says no, or gives what writes the
    /// answer: where that fails before its first 64 KiB the status is 500, and behind them the answer is cut off. A peer that takes
    /// nothing for 10 s is left, and so is an answer that takes 10 minutes. When the process ends it does not wait for a page.
    ///
    /// # Panics
    /// When a role of the process has a page with this path, or the server itself has.
    pub fn page(
        &self,
        path: &'static str,
        at_a_time: usize,
        page: impl Fn(&PageRequest) -> Result<PageBody, PageRefusal> + Send + Sync + 'static,
    ) {
        self.inner.pages.add(path, at_a_time, Arc::new(page));
    }

    /// Runs `body` in a thread of this name (the kernel shows its first 15 bytes). When it returns an error or panics, the
    /// process drains and ends with status 1; when all workers of a role have returned `Ok`, the role is done.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn(
        &self,
        name: impl Into<String>,
        body: impl FnOnce(&Worker) -> anyhow::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let name = name.into();
        let pulse = Arc::new(Pulse::new(format!("{} {name}", self.inner.service)));
        let worker = Worker { pulse: pulse.clone(), stop: self.inner.stop.clone() };
        let (events, position) = (self.inner.events.clone(), self.inner.position);

        // Held until the worker is in the table, so that its end is not looked up before.
        let mut workers = lock(&self.inner.workers);
        let id = workers.next_id;
        workers.next_id += 1;
        let thread = thread::Builder::new().name(name).spawn(move || {
            let outcome = match catch_unwind(AssertUnwindSafe(|| body(&worker))) {
                Ok(Ok(())) => Outcome::Done,
                Ok(Err(error)) => Outcome::Failed(error),
                Err(panic) => Outcome::Panicked(panic_message(&*panic)),
            };
            // It is refused when the process has ended without waiting for this worker: nobody is left to tell.
            let _ = events.send(Event::WorkerEnded { position, id, outcome });
        })?;
        self.inner.health.watch(&pulse);
        workers.live.insert(id, LiveWorker { pulse, thread });
        Ok(())
    }

    /// Keeps the role alive although it has nothing to do: until it is stopped.
    ///
    /// # Errors
    /// As [`Scope::spawn`].
    pub fn idle(&self) -> io::Result<()> {
        self.spawn("idle", |worker| {
            worker.stop().wait_forever();
            Ok(())
        })
    }

    /// How often the process has been asked to read again what can be read again.
    pub fn hangups(&self) -> Hangups {
        self.inner.hangups.clone()
    }

    /// The role's stop.
    pub fn stop(&self) -> Stop {
        self.inner.stop.clone()
    }

    /// Takes a worker that has ended out of the table, joins its thread, and returns its name.
    pub(crate) fn bury(&self, id: u64) -> Option<String> {
        let worker = lock(&self.inner.workers).live.remove(&id)?;
        self.inner.health.forget(&worker.pulse);
        // Its panic, if any, was caught inside; here only the thread's own clean-up is waited for.
        let name = worker.thread.thread().name().unwrap_or_default().to_owned();
        let _ = worker.thread.join();
        Some(name)
    }

    /// The names of the workers that have not ended.
    pub(crate) fn live(&self) -> Vec<String> {
        let name = |worker: &LiveWorker| worker.thread.thread().name().unwrap_or_default().to_owned();
        lock(&self.inner.workers).live.values().map(name).collect()
    }

    /// The parts of `/status`.
    pub(crate) fn board(&self) -> Board {
        self.inner.status.clone()
    }

    pub(crate) fn report_losses(&self, due: Due) {
        for ledger in lock(&self.inner.losses).iter() {
            ledger.report(due);
        }
    }
}

impl Worker {
    /// Says that the worker is alive; to be called once in each round of its loop, which must come at least every few
    /// seconds. `/healthz` is 503 when a worker that has beaten once is silent for 30 s.
    pub fn beat(&self) {
        self.pulse.beat();
    }

    /// Whether to stop.
    pub fn stopping(&self) -> bool {
        self.stop.stopping()
    }

    /// When draining must have ended; `None` until it is time to stop.
    pub fn deadline(&self) -> Option<Instant> {
        self.stop.deadline()
    }

    /// The role's stop, to wait for or to hand on.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_owned(),
        (_, Some(text)) => text.clone(),
        _ => "no message".to_owned(),
    }
}
