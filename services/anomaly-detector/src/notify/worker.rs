//! The thread of one notifier.

use std::{
    cell::OnceCell,
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sekiwake_runtime::{RateLimited, Worker};
use serde_json::Value;
use tracing::{info, warn};

use super::{
    About, Notifier, Patience, Progress,
    attempt::Attempt,
    backoff::pause,
    finish,
    message::{alert, object, syslog},
    queue::{Dropped, Queue},
    transport::{Http, Outcome},
    uri::NotifierKind,
};
use crate::detect::{Event, EventState};

/// The longest sleep.
const IDLE: Duration = Duration::from_millis(200);

/// How many times the interval of repetition an alert of Alertmanager's lasts when it is not repeated.
const LASTS: u32 = 4;

/// See the module.
pub(super) struct NotifierWorker {
    notifier: Notifier,
    about: About,
    patience: Patience,
    queue: Arc<Queue>,
    progress: Arc<Mutex<Progress>>,
    http: Http,
    /// What fires, for Alertmanager: it forgets what is not repeated.
    firing: BTreeMap<String, Event>,
    repeated_at: Instant,
    /// When to stop although something waits, once there is a stop.
    stop_by: OnceCell<Instant>,
    is_down: bool,
    log: RateLimited,
}

/// The event that is being told.
struct Trying {
    event: Event,
    /// When it came.
    since: Instant,
    tries: u32,
    next: Instant,
}

impl NotifierWorker {
    pub(super) fn new(
        notifier: Notifier,
        about: About,
        patience: Patience,
        (queue, progress): (Arc<Queue>, Arc<Mutex<Progress>>),
    ) -> anyhow::Result<NotifierWorker> {
        let needs_tls = match &notifier.kind {
            NotifierKind::Alertmanager { url, .. } | NotifierKind::Webhook { url, .. } => url.starts_with("https:"),
            NotifierKind::Syslog { .. } => false,
        };
        let http = Http::new(&patience, needs_tls)?;
        Ok(NotifierWorker {
            notifier,
            about,
            patience,
            queue,
            progress,
            http,
            firing: BTreeMap::new(),
            repeated_at: Instant::now(),
            stop_by: OnceCell::new(),
            is_down: false,
            log: RateLimited::default(),
        })
    }

    pub(super) fn run(mut self, worker: &Worker) {
        let mut trying: Option<Trying> = None;
        let mut is_hurried = false;
        loop {
            worker.beat();
            if let Some(orders) = self.queue.take_orders() {
                self.firing = orders.firing.into_iter().map(|event| (event.id.clone(), event)).collect();
                if orders.is_handed_over && trying.take().is_some() {
                    self.queue.dropped.add(Dropped::HandedOver, 1);
                }
            }
            self.repeat(worker);
            if trying.is_none() {
                trying = self.queue.pop(IDLE).map(|(since, event)| {
                    let now = Instant::now();
                    Trying { event, since, tries: 0, next: now }
                });
            }
            // Who is told to stop does not wait for a pause to be over.
            if worker.stopping() && !is_hurried {
                is_hurried = true;
                trying.iter_mut().for_each(|trying| trying.next = Instant::now());
            }
            trying = trying.and_then(|trying| self.go_on(trying, worker));
            if worker.stopping() && trying.is_none() && self.queue.is_empty() {
                return;
            }
            if self.is_over(worker) {
                // They stay with the detector's state, and the next one tells them.
                self.queue.dropped.add(Dropped::Shutdown, u64::from(trying.is_some()) + self.queue.clear());
                return;
            }
        }
    }

    /// Whether the time to stop is up: half of what there is, for roles that come later need some of it.
    fn is_over(&self, worker: &Worker) -> bool {
        let Some(deadline) = worker.deadline() else { return false };
        let now = Instant::now();
        now >= *self.stop_by.get_or_init(|| now + deadline.saturating_duration_since(now) / 2)
    }

    /// Tries once, if it is time. Gives it back where it has to be tried again.
    fn go_on(&mut self, mut trying: Trying, worker: &Worker) -> Option<Trying> {
        let now = Instant::now();
        if now < trying.next {
            std::thread::sleep(IDLE.min(trying.next - now));
            return Some(trying);
        }
        let Some(outcome) = self.tell(&trying.event, worker) else { return Some(trying) };
        trying.tries += 1;
        match outcome {
            Outcome::Told => {
                self.queue.sent.inc();
                self.went_well();
                self.done(&trying.event);
                None
            }
            Outcome::Refused { why } => {
                self.queue.dropped.add(Dropped::Refused, 1);
                self.went_wrong(&why);
                self.done(&trying.event);
                None
            }
            Outcome::Later { why, after } => {
                self.went_wrong(&why);
                if trying.since.elapsed() >= self.patience.give_up_after {
                    self.queue.dropped.add(Dropped::GaveUp, 1);
                    self.done(&trying.event);
                    return None;
                }
                self.queue.retries.inc();
                let pause = pause(&self.patience, trying.tries, random());
                trying.next = Instant::now() + after.map_or(pause, |after| after.max(pause));
                Some(trying)
            }
        }
    }

    /// What came of it, unless the time to stop was up first.
    fn tell(&self, event: &Event, worker: &Worker) -> Option<Outcome> {
        let attempt = match &self.notifier.kind {
            NotifierKind::Alertmanager { url, authorization, labels } => {
                self.alerts(url, authorization.as_deref(), labels, std::slice::from_ref(event))
            }
            NotifierKind::Webhook { url, authorization } => {
                let object = object(event, &self.about);
                let key = format!("{}/{}", event.id, object["status"].as_str().unwrap_or_default());
                let (url, authorization, json) = (url.clone(), authorization.clone(), object.to_string());
                Attempt::Post { http: self.http.clone(), url, authorization, key: Some(key), json }
            }
            NotifierKind::Syslog { host, port, priority } => {
                let line = syslog(event, &self.about, *priority, now_ns());
                Attempt::Send { host: host.clone(), port: *port, line }
            }
        };
        attempt.make(worker, || self.is_over(worker))
    }

    fn alerts(&self, url: &str, authorization: Option<&str>, labels: &[(String, String)], events: &[Event]) -> Attempt {
        let lasts = u64::try_from((self.patience.repeat * LASTS).as_nanos()).unwrap_or(u64::MAX);
        let ends_at = |event: &Event| match event.state {
            EventState::Firing => now_ns().saturating_add(lasts),
            EventState::Resolved => now_ns(),
        };
        let alerts: Vec<Value> = events.iter().map(|event| alert(event, &self.about, labels, ends_at(event))).collect();
        let (url, authorization) = (url.to_owned(), authorization.map(str::to_owned));
        Attempt::Post { http: self.http.clone(), url, authorization, key: None, json: Value::Array(alerts).to_string() }
    }

    /// Alertmanager forgets what it is not told again.
    fn repeat(&mut self, worker: &Worker) {
        if self.repeated_at.elapsed() < self.patience.repeat || worker.stopping() {
            return;
        }
        self.repeated_at = Instant::now();
        let NotifierKind::Alertmanager { url, authorization, labels } = &self.notifier.kind else { return };
        if self.firing.is_empty() {
            return;
        }
        let firing: Vec<Event> = self.firing.values().cloned().collect();
        let attempt = self.alerts(url, authorization.as_deref(), labels, &firing);
        match attempt.make(worker, || self.is_over(worker)) {
            None => {}
            Some(Outcome::Told) => self.went_well(),
            Some(Outcome::Later { why, .. } | Outcome::Refused { why }) => {
                self.went_wrong(&why);
                // Sooner than usual: what it knew may be gone.
                let soon = self.patience.repeat.saturating_sub(self.patience.first_pause * 5);
                self.repeated_at = Instant::now().checked_sub(soon).unwrap_or_else(Instant::now);
            }
        }
    }

    fn done(&mut self, event: &Event) {
        match event.state {
            EventState::Firing => drop(self.firing.insert(event.id.clone(), event.clone())),
            EventState::Resolved => drop(self.firing.remove(&event.id)),
        }
        finish(&self.progress, self.queue.bit, &(event.id.clone(), event.state));
    }

    fn went_well(&mut self) {
        self.queue.up.set(1);
        if std::mem::take(&mut self.is_down) {
            info!(notifier = self.notifier.label(), "notifications are accepted again");
        }
    }

    fn went_wrong(&mut self, why: &str) {
        self.queue.up.set(0);
        self.is_down = true;
        if let Some(suppressed) = self.log.allow(Instant::now()) {
            warn!(notifier = self.notifier.label(), error = why, suppressed, "a notification was not accepted");
        }
    }
}

/// Any number; where there are no random ones, the time will do.
fn random() -> u64 {
    getrandom::u64().unwrap_or_else(|_| now_ns())
}

fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
