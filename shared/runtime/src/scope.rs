//! A role's part of the process: its workers, metrics, latches, status, pages and stop.

use std::{
    any::Any,
    collections::BTreeMap,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, mpsc::SyncSender},
    thread::{self, JoinHandle},
    time::Instant,
};

use serde_json::Value;

use crate::{
    health::{Health, Latch, Pulse, lock},
    losses::{Due, Ledger, LossReason, Losses},
    metrics::Metrics,
    pages::{PageBody, PageError, PageRequest, Pages},
    site::{SiteRequest, SiteResponse, Sites},
    status::{StatusParts, StatusResponder},
    status_feed::StatusFeed,
    stop::{Hangups, Stop},
    supervisor::{Event, Outcome},
};

/// One role's part of the process. Clones refer to the same scope, so a worker can keep one and
/// spawn more workers.
#[derive(Clone, Debug)]
pub struct Scope {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    service: &'static str,
    /// The index of this role in the process, in the order in which the roles were added.
    position: usize,
    stop: Stop,
    shared: SharedState,
    metrics: Metrics,
    workers: Mutex<Workers>,
    losses: Mutex<Vec<Arc<Ledger>>>,
    at_end: Mutex<Vec<AtEnd>>,
    status: StatusParts,
}

/// A function to be called at the end of the process.
struct AtEnd(Box<dyn FnOnce() + Send>);

impl fmt::Debug for AtEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtEnd")
    }
}

/// The state that the scopes of a process share.
#[derive(Clone, Debug)]
pub(crate) struct SharedState {
    pub(crate) health: Arc<Health>,
    pub(crate) hangups: Hangups,
    pub(crate) events: SyncSender<Event>,
    pub(crate) pages: Pages,
    pub(crate) sites: Sites,
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

/// A worker's access to the process: its heartbeat and its stop.
#[derive(Debug)]
pub struct Worker {
    pulse: Arc<Pulse>,
    stop: Stop,
}

impl Scope {
    pub(crate) fn new(service: &'static str, position: usize, stop: Stop, shared: SharedState) -> Scope {
        Scope {
            inner: Arc::new(Inner {
                service,
                position,
                stop,
                shared,
                metrics: Metrics::new(service),
                workers: Mutex::default(),
                losses: Mutex::default(),
                at_end: Mutex::default(),
                status: StatusParts::default(),
            }),
        }
    }

    /// The name of the role's service.
    pub fn service(&self) -> &'static str {
        self.inner.service
    }

    /// The role's metrics.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// A condition of readiness: until it is set, `/readyz` is 503 and names it.
    pub fn readiness(&self, what: impl Into<String>) -> Latch {
        self.inner.shared.health.latch(self.inner.service, what.into())
    }

    /// Losses of one stage, counted in the family `name` by `labels` and `reason`, and logged by
    /// the runtime. Call it once per set of labels and clone the result: two results for the same
    /// counters would both log.
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

    /// Calls a function once at the end of the process, when all workers have ended or were given
    /// up: for a last line about what the role has done. It must not block.
    pub fn at_end(&self, function: impl FnOnce() + Send + 'static) {
        lock(&self.inner.at_end).push(AtEnd(Box::new(function)));
    }

    /// A part of the role's `/status` for which a worker answers: the worker owns the responder and
    /// calls it once per round of its loop. A part without an answer within 1 s, or whose responder
    /// was dropped, shows an error. The part replaces an earlier one of the same name, so that a
    /// role can restart a component. A part is listed until the process ends, so names must be few
    /// and must not come from the network.
    pub fn status(&self, part: impl Into<String>) -> StatusResponder {
        self.inner.status.add_worker(part.into())
    }

    /// A part of the role's `/status` made from shared state by `make`, in one of two threads for
    /// this purpose: it may take several hundred milliseconds. There is one call at a time. If it
    /// takes longer than 1 s the part shows an error, and the next page gets the result of the same
    /// call. Names are as in [`Scope::status`].
    ///
    /// The function is kept until the process ends, which does not wait for it to return.
    pub fn status_with(&self, part: impl Into<String>, make: impl Fn() -> Value + Send + Sync + 'static) {
        self.inner.status.add_function(part.into(), false, make);
    }

    /// As [`Scope::status_with`], for a function that makes the part of a few counters, within
    /// microseconds. A [`StatusFeed`] has it too.
    pub fn brief_status_with(&self, part: impl Into<String>, make: impl Fn() -> Value + Send + Sync + 'static) {
        self.inner.status.add_function(part.into(), true, make);
    }

    /// The status of this role, for readers on the bus: all parts of `/status` but those of
    /// [`Scope::status_with`], and one of the process.
    pub fn status_feed(&self) -> StatusFeed {
        StatusFeed::new(self.inner.service, self.inner.status.clone(), Arc::clone(&self.inner.shared.health))
    }

    /// Adds `GET path` to the admin port: a response of any length, made by a function that may
    /// block, in a thread of its own. At most `limit` are made or sent at once; excess requests get
    /// 503. The function returns an error, or a body that writes the response. If writing fails
    ///      within the first 64 KiB the status is 500; after that the response is truncated. The
    ///      connection is closed when the client reads nothing for 10 s, and after 10 minutes. A
    ///      process that ends does not wait for a page.
    ///
    /// # Panics
    /// When another role or the server already has a page at this path.
    pub fn page(
        &self,
        path: &'static str,
        limit: usize,
        page: impl Fn(&PageRequest) -> Result<PageBody, PageError> + Send + Sync + 'static,
    ) {
        self.inner.shared.pages.add(path, limit, Arc::new(page));
    }

    /// Adds short pages for a browser on the admin server: `/`, and every path below `prefix` that
    /// is no other page. Each is made by `answer` in a thread of its own, at most 16 at a time.
    pub fn site(&self, prefix: &'static str, answer: impl Fn(SiteRequest) -> SiteResponse + Send + Sync + 'static) {
        self.inner.shared.sites.add(prefix, Arc::new(answer));
    }

    /// Runs `body` in a thread of this name (the kernel shows its first 15 bytes). When it returns
    /// an error or panics, the process drains and ends with status 1. When all workers of a role
    /// have returned `Ok`, the role has finished.
    ///
    /// # Errors
    /// When the thread cannot be spawned.
    pub fn spawn(
        &self,
        name: impl Into<String>,
        body: impl FnOnce(&Worker) -> anyhow::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let name = name.into();
        let pulse = Arc::new(Pulse::new(format!("{} {name}", self.inner.service)));
        let worker = Worker { pulse: pulse.clone(), stop: self.inner.stop.clone() };
        let events = self.inner.shared.events.clone();
        let position = self.inner.position;

        // Locked until the worker is in the table, because its end is looked up there.
        let mut workers = lock(&self.inner.workers);
        let id = workers.next_id;
        workers.next_id += 1;
        let thread = thread::Builder::new().name(name).spawn(move || {
            worker.pulse.begin();
            let outcome = match catch_unwind(AssertUnwindSafe(|| body(&worker))) {
                Ok(Ok(())) => Outcome::Done,
                Ok(Err(error)) => Outcome::Failed(error),
                Err(panic) => Outcome::Panicked(panic_message(&*panic)),
            };
            // Fails only if the process has ended without waiting for this worker.
            let _ = events.send(Event::WorkerEnded { position, id, outcome });
        })?;
        self.inner.shared.health.watch(&pulse);
        workers.live.insert(id, LiveWorker { pulse, thread });
        Ok(())
    }

    /// Keeps a role without work alive until it is stopped.
    ///
    /// # Errors
    /// As [`Scope::spawn`].
    pub fn idle(&self) -> io::Result<()> {
        self.spawn("idle", |worker| {
            worker.stop().wait_forever();
            Ok(())
        })
    }

    /// How often the process has been asked to reload (SIGHUP).
    pub fn hangups(&self) -> Hangups {
        self.inner.shared.hangups.clone()
    }

    /// The role's stop.
    pub fn stop(&self) -> Stop {
        self.inner.stop.clone()
    }

    /// Removes a worker that has ended from the table, joins its thread, and returns its name.
    pub(crate) fn reap(&self, id: u64) -> Option<String> {
        let worker = lock(&self.inner.workers).live.remove(&id)?;
        self.inner.shared.health.forget(&worker.pulse);
        // Panics are caught inside the thread, so this only waits for the thread to end.
        let name = worker.thread.thread().name().unwrap_or_default().to_owned();
        let _ = worker.thread.join();
        Some(name)
    }

    /// The names of the running workers.
    pub(crate) fn live(&self) -> Vec<String> {
        let name = |worker: &LiveWorker| worker.thread.thread().name().unwrap_or_default().to_owned();
        lock(&self.inner.workers).live.values().map(name).collect()
    }

    /// The parts of `/status`.
    pub(crate) fn status_parts(&self) -> StatusParts {
        self.inner.status.clone()
    }

    pub(crate) fn end(&self) {
        let functions = std::mem::take(&mut *lock(&self.inner.at_end));
        for AtEnd(function) in functions {
            function();
        }
    }

    pub(crate) fn report_losses(&self, due: Due) {
        for ledger in lock(&self.inner.losses).iter() {
            ledger.report(due);
        }
    }
}

impl Worker {
    /// Sends a heartbeat. Call it once per round of the worker's loop, at least every few seconds.
    /// `/healthz` is 503 when a worker that has sent a heartbeat sends none for 30 s.
    pub fn beat(&self) {
        self.pulse.beat();
    }

    /// Whether the role is to stop.
    pub fn stopping(&self) -> bool {
        self.stop.stopping()
    }

    /// The deadline for draining; `None` until the role is to stop.
    pub fn deadline(&self) -> Option<Instant> {
        self.stop.deadline()
    }

    /// The role's stop, to wait for or to pass on.
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
