//! The thread of one notifier.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sekiwake_record::WallTime;
use sekiwake_runtime::{RateLimited, Worker};
use sekiwake_sys::clock::wall_now_ns;
use serde_json::Value;
use tracing::{info, warn};

use super::{
    About, Notifier, Timing, Undelivered,
    attempt::Attempt,
    backoff::pause,
    finish,
    message::{alert, object, syslog},
    queue::{Dropped, Queue, QueuedEvent},
    transport::{Http, Outcome},
    uri::NotifierKind,
};
use crate::detect::{Event, EventState};

/// The longest wait for an event.
const IDLE: Duration = Duration::from_millis(200);

/// How many repetition intervals an alert stays active in Alertmanager without being repeated.
const ALERT_LIFETIME: u32 = 4;

/// The most attempts to deliver an event.
const MAX_ATTEMPTS: u32 = 30;

/// After this many answers other than success to an event, another one is tried: the receiver may
/// reject only this one.
const ATTEMPTS_IN_A_ROW: u32 = 3;

/// The state of the thread.
pub(super) struct NotifierWorker {
    notifier: Notifier,
    about: About,
    timing: Timing,
    queue: Arc<Queue>,
    undelivered: Arc<Mutex<Undelivered>>,
    http: Http,
    /// Firing alarms, for Alertmanager, which resolves alerts that are not repeated.
    firing: BTreeMap<String, Event>,
    repeated_at: Instant,
    /// When to stop even if events are queued, once a stop is requested.
    stop_by: OnceCell<Instant>,
    is_down: bool,
    /// Failed attempts since the last success.
    failures: u32,
    /// The earliest time of the next attempt.
    next_attempt_at: Instant,
    log: RateLimited,
    drop_log: RateLimited,
}

impl NotifierWorker {
    pub(super) fn new(
        notifier: Notifier,
        about: About,
        timing: Timing,
        queue: Arc<Queue>,
        undelivered: Arc<Mutex<Undelivered>>,
    ) -> anyhow::Result<NotifierWorker> {
        let needs_tls = match &notifier.kind {
            NotifierKind::Alertmanager { url, .. } | NotifierKind::Webhook { url, .. } => url.starts_with("https:"),
            NotifierKind::Syslog { .. } => false,
        };
        let http = Http::new(&timing, needs_tls)?;
        Ok(NotifierWorker {
            notifier,
            about,
            timing,
            queue,
            undelivered,
            http,
            firing: BTreeMap::new(),
            repeated_at: Instant::now(),
            stop_by: OnceCell::new(),
            is_down: false,
            failures: 0,
            next_attempt_at: Instant::now(),
            log: RateLimited::default(),
            drop_log: RateLimited::default(),
        })
    }

    pub(super) fn run(mut self, worker: &Worker) {
        let mut pending: Option<QueuedEvent> = None;
        let mut is_hurried = false;
        loop {
            worker.beat();
            if let Some(instructions) = self.queue.take_instructions() {
                self.firing = instructions.firing.into_iter().map(|event| (event.id.clone(), event)).collect();
                if instructions.is_handed_over && pending.take().is_some() {
                    self.queue.dropped.add(Dropped::HandedOver, 1);
                }
            }
            self.repeat(worker);
            if pending.is_none() {
                pending = self.queue.pop(IDLE);
            }
            // Do not wait for the end of a back-off pause during a stop.
            if worker.stopping() && !is_hurried {
                is_hurried = true;
                self.next_attempt_at = Instant::now();
            }
            pending = pending.and_then(|pending| self.deliver(pending, worker));
            if worker.stopping() && pending.is_none() && self.queue.is_empty() {
                return;
            }
            if self.is_over(worker) {
                // They remain in the detector's state, and the next detector delivers them.
                self.queue.dropped.add(Dropped::Shutdown, u64::from(pending.is_some()) + self.queue.clear());
                return;
            }
        }
    }

    /// Whether the time for a stop is used up: half of the drain time, because roles that stop
    /// later need some of it.
    fn is_over(&self, worker: &Worker) -> bool {
        let Some(deadline) = worker.deadline() else { return false };
        let now = Instant::now();
        now >= *self.stop_by.get_or_init(|| now + deadline.saturating_duration_since(now) / 2)
    }

    /// Makes one attempt, if it is due. Returns the event if it has to be attempted again.
    fn deliver(&mut self, mut pending: QueuedEvent, worker: &Worker) -> Option<QueuedEvent> {
        let now = Instant::now();
        if now < self.next_attempt_at {
            std::thread::sleep(IDLE.min(self.next_attempt_at - now));
            return Some(pending);
        }
        let Some(outcome) = self.attempt(&pending.event, worker) else { return Some(pending) };
        pending.attempts = pending.attempts.saturating_add(1);
        match outcome {
            Outcome::Accepted => {
                self.queue.sent.inc();
                self.mark_up();
                self.finish(&pending.event);
                None
            }
            Outcome::Rejected { why } => {
                self.mark_down(&why);
                self.drop_event(&pending, Dropped::Rejected, &why);
                None
            }
            Outcome::Retry { why, after, is_answer } => {
                self.mark_down(&why);
                let is_late = pending.queued_at.elapsed() >= self.timing.give_up_after;
                if is_late || pending.attempts >= MAX_ATTEMPTS {
                    self.drop_event(&pending, Dropped::GaveUp, &why);
                    return None;
                }
                self.queue.retries.inc();
                self.failures = self.failures.saturating_add(1);
                let pause = pause(&self.timing, self.failures, random());
                self.next_attempt_at = Instant::now() + after.map_or(pause, |after| after.max(pause));
                if is_answer && pending.attempts.is_multiple_of(ATTEMPTS_IN_A_ROW) {
                    self.queue.postpone(pending);
                    return None;
                }
                Some(pending)
            }
        }
    }

    /// Drops an event for good, and logs which.
    fn drop_event(&mut self, pending: &QueuedEvent, reason: Dropped, why: &str) {
        self.queue.dropped.add(reason, 1);
        if let Some(suppressed) = self.drop_log.allow(Instant::now()) {
            let QueuedEvent { event, attempts, .. } = pending;
            let id = &*event.id;
            warn!(notifier = self.notifier.label(), id, attempts, error = why, suppressed, "notification dropped");
        }
        self.finish(&pending.event);
    }

    /// The outcome of one attempt; `None` if the time for a stop was used up first.
    fn attempt(&self, event: &Event, worker: &Worker) -> Option<Outcome> {
        let attempt = match &self.notifier.kind {
            NotifierKind::Alertmanager { url, authorization, labels } => {
                self.alerts(url, authorization.as_deref(), labels, std::slice::from_ref(event))
            }
            NotifierKind::Webhook { url, authorization } => {
                let object = object(event, &self.about);
                let key = format!("{}/{}", event.id, object["status"].as_str().unwrap_or_default());
                let url = url.clone();
                let authorization = authorization.clone();
                let json = object.to_string();
                Attempt::Post { http: self.http.clone(), url, authorization, key: Some(key), json }
            }
            NotifierKind::Syslog { host, port, priority } => {
                let line = syslog(event, &self.about, *priority, WallTime::from_nanos(wall_now_ns()));
                Attempt::Send { host: host.clone(), port: *port, line }
            }
        };
        attempt.make(worker, || self.is_over(worker)).map(|outcome| self.with_path(outcome))
    }

    /// Adds the path to the reason of an answer that there is nothing at this path.
    fn with_path(&self, outcome: Outcome) -> Outcome {
        let Some(path) = self.notifier.kind.shown_path() else { return outcome };
        match outcome {
            Outcome::Rejected { why } if why.starts_with("status 404") => {
                Outcome::Rejected { why: format!("{} (nothing at {path})", why.trim_end()) }
            }
            other => other,
        }
    }

    fn alerts(&self, url: &str, authorization: Option<&str>, labels: &[(String, String)], events: &[Event]) -> Attempt {
        let now = WallTime::from_nanos(wall_now_ns());
        let ends_at = |event: &Event| match event.state {
            EventState::Firing => now + self.timing.repeat * ALERT_LIFETIME,
            EventState::Resolved => now,
        };
        let alerts: Vec<Value> = events.iter().map(|event| alert(event, &self.about, labels, ends_at(event))).collect();
        let url = url.to_owned();
        let authorization = authorization.map(str::to_owned);
        Attempt::Post { http: self.http.clone(), url, authorization, key: None, json: Value::Array(alerts).to_string() }
    }

    /// Repeats firing alerts, because Alertmanager resolves them otherwise.
    fn repeat(&mut self, worker: &Worker) {
        if self.repeated_at.elapsed() < self.timing.repeat || worker.stopping() {
            return;
        }
        self.repeated_at = Instant::now();
        let NotifierKind::Alertmanager { url, authorization, labels } = &self.notifier.kind else { return };
        if self.firing.is_empty() {
            return;
        }
        let firing: Vec<Event> = self.firing.values().cloned().collect();
        let attempt = self.alerts(url, authorization.as_deref(), labels, &firing);
        match attempt.make(worker, || self.is_over(worker)).map(|outcome| self.with_path(outcome)) {
            None => {}
            Some(Outcome::Accepted) => self.mark_up(),
            Some(Outcome::Retry { why, .. } | Outcome::Rejected { why }) => {
                self.mark_down(&why);
                // Repeat sooner than usual, because Alertmanager may have lost its alerts.
                let soon = self.timing.repeat.saturating_sub(self.timing.first_pause * 5);
                self.repeated_at = Instant::now().checked_sub(soon).unwrap_or_else(Instant::now);
            }
        }
    }

    fn finish(&mut self, event: &Event) {
        match event.state {
            EventState::Firing => drop(self.firing.insert(event.id.clone(), event.clone())),
            EventState::Resolved => drop(self.firing.remove(&event.id)),
        }
        finish(&self.undelivered, self.queue.bit, &event.name());
    }

    fn mark_up(&mut self) {
        self.queue.up.set(1);
        self.failures = 0;
        self.next_attempt_at = Instant::now();
        if std::mem::take(&mut self.is_down) {
            info!(notifier = self.notifier.label(), "notifications accepted again");
        }
    }

    fn mark_down(&mut self, why: &str) {
        self.queue.up.set(0);
        self.is_down = true;
        if let Some(suppressed) = self.log.allow(Instant::now()) {
            warn!(notifier = self.notifier.label(), error = why, suppressed, "notification failed");
        }
    }
}

/// A random number, or the time if the system has no randomness.
fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| wall_now_ns())
}
