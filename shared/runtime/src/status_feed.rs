//! What a role says of itself to readers of status on the bus: the parts of `/status`, and one of
//! the process.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use crate::{
    VERSION,
    health::{Health, lock},
    status::{Part, StatusParts},
};

/// How long workers may take to answer.
const ANSWER_TIME: Duration = Duration::from_millis(700);

/// Collects the status of a role without waiting. Made by
/// [`Scope::status_feed`](crate::Scope::status_feed).
///
/// Parts that may take long to make are left out, because a feed is read once per second.
#[derive(Debug)]
pub struct StatusFeed {
    service: &'static str,
    parts: StatusParts,
    health: Arc<Health>,
    started_at: Instant,
    pending: Vec<(String, oneshot::Receiver<Value>)>,
    answered: Vec<(String, Value)>,
    /// When what has not been answered is left out.
    until: Option<Instant>,
}

impl StatusFeed {
    pub(crate) fn new(service: &'static str, parts: StatusParts, health: Arc<Health>) -> StatusFeed {
        StatusFeed {
            service,
            parts,
            health,
            started_at: Instant::now(),
            pending: Vec::new(),
            answered: Vec::new(),
            until: None,
        }
    }

    /// The name of the role's service.
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// Whether the process is stopping.
    pub fn is_stopping(&self) -> bool {
        self.health.is_stopping()
    }

    /// The part of the process.
    pub fn process(&self) -> Value {
        let missing = self.health.missing_of(self.service);
        json!({
            "version": VERSION,
            "state": self.health.phase_name(),
            "is_ready": missing.is_empty() && self.health.is_ready(self.service),
            "waits_for": missing,
            "uptime_seconds": self.started_at.elapsed().as_secs_f64(),
            "cpu_seconds": cpu_seconds(),
            "memory_bytes": memory_bytes(),
        })
    }

    /// Asks all parts. Workers answer between two rounds of their loops, perhaps the caller itself.
    pub fn ask(&mut self, now: Instant) {
        self.pending.clear();
        self.answered.clear();
        self.answered.push(("process".to_owned(), self.process()));
        let parts: Vec<(String, Part)> = self.parts.all();
        for (name, part) in parts {
            match part {
                Part::Worker(pending) => {
                    let answer = pending.upgrade().map(|pending| pending.put());
                    self.pending.extend(answer.map(|answer| (name, answer)));
                }
                Part::Function(function) => self.answered.extend(function.brief().map(|value| (name, value))),
            }
        }
        self.until = Some(now + ANSWER_TIME);
    }

    /// Whether parts have been asked and not been taken.
    pub fn is_asked(&self) -> bool {
        self.until.is_some()
    }

    /// The parts by name, once all have answered or have had time to; then `None` until asked
    /// again.
    pub fn take(&mut self, now: Instant) -> Option<Vec<(String, Value)>> {
        let until = self.until?;
        let answered = &mut self.answered;
        self.pending.retain_mut(|(name, answer)| match answer.try_recv() {
            Ok(value) => {
                answered.push((std::mem::take(name), value));
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        });
        if !self.pending.is_empty() && now < until {
            return None;
        }
        self.until = None;
        self.pending.clear();
        Some(std::mem::take(&mut self.answered))
    }
}

/// Processor time of the process so far.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Resident memory of the process: the second field of `/proc/self/statm`, in pages (proc(5)).
fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

impl Health {
    /// The conditions that are missing before this role is ready.
    fn missing_of(&self, service: &str) -> Vec<String> {
        let prefix = format!("{service}: ");
        self.missing().iter().filter_map(|text| text.strip_prefix(&prefix).map(str::to_owned)).collect()
    }
}

impl StatusParts {
    fn all(&self) -> Vec<(String, Part)> {
        lock(&self.parts).iter().map(|(name, part)| (name.clone(), part.clone())).collect()
    }
}
