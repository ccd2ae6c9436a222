//! Runs the roles of a process until they end, in order.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tracing::{error, info, warn};

use crate::health::{Health, Phase};
use crate::losses::Due;
use crate::scope::Scope;
use crate::stop::Stopper;

/// How often the supervisor looks around, at least.
const ROUND: Duration = Duration::from_secs(1);

/// How often it names who is still draining.
const NAMING_INTERVAL: Duration = Duration::from_secs(2);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All roles ended in order: done, or told to stop.
    Done,
    /// A worker died, or somebody was late.
    Failed,
}

impl Ending {
    /// The exit status.
    pub const fn status(self) -> u8 {
        match self {
            Ending::Done => 0,
            Ending::Failed => 1,
        }
    }
}

/// What the supervisor is told.
#[derive(Debug)]
pub(crate) enum Event {
    /// A worker's body has returned or panicked.
    WorkerEnded { position: usize, id: u64, outcome: Outcome },
    /// Somebody wants the process to stop.
    StopRequested { why: &'static str },
}

/// How a worker ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done,
    Failed(anyhow::Error),
    Panicked(String),
}

/// Asks a running process to stop, as a signal would.
#[derive(Clone, Debug)]
pub struct StopHandle {
    events: Sender<Event>,
}

impl StopHandle {
    pub(crate) fn new(events: Sender<Event>) -> StopHandle {
        StopHandle { events }
    }

    /// Drain and end. `why` is for the log.
    pub fn stop(&self, why: &'static str) {
        // Refused when the process has ended: that is what was wanted.
        let _ = self.events.send(Event::StopRequested { why });
    }
}

/// The roles, and how far they are.
#[derive(Debug)]
pub(crate) struct Supervisor {
    roles: Vec<SupervisedRole>,
    health: Arc<Health>,
    drain: Duration,
    ending: Ending,
    draining: Option<Draining>,
}

#[derive(Debug)]
pub(crate) struct SupervisedRole {
    pub(crate) scope: Scope,
    pub(crate) stopper: Stopper,
}

#[derive(Debug)]
struct Draining {
    /// The role that was told to stop last; those before it are joined.
    position: usize,
    deadline: Instant,
    next_naming: Instant,
}

impl Supervisor {
    pub(crate) fn new(roles: Vec<SupervisedRole>, health: Arc<Health>, drain: Duration) -> Supervisor {
        Supervisor { roles, health, drain, ending: Ending::Done, draining: None }
    }

    /// Runs to the end.
    pub(crate) fn run(mut self, events: &Receiver<Event>) -> Ending {
        loop {
            let now = Instant::now();
            let ending = self.advance(now);
            for role in &self.roles {
                role.scope.report_losses(if ending.is_some() { Due::Finally } else { Due::At(now) });
            }
            if let Some(ending) = ending {
                return ending;
            }
            match events.recv_timeout(self.patience(now)) {
                Ok(event) => self.hear(event, Instant::now()),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
        }
    }

    /// Something failed that is not a worker: drain, and end with a failure.
    pub(crate) fn fail(&mut self, now: Instant) {
        self.ending = Ending::Failed;
        self.begin_draining(now);
    }

    /// Takes in what has happened.
    fn hear(&mut self, event: Event, now: Instant) {
        match event {
            Event::StopRequested { why } => {
                info!(why, "stopping");
                self.begin_draining(now);
            }
            Event::WorkerEnded { position, id, outcome } => {
                let scope = &self.roles[position].scope;
                let (service, worker) = (scope.service(), scope.bury(id).unwrap_or_default());
                match outcome {
                    Outcome::Done => return,
                    Outcome::Failed(error) => error!(service, worker, error = format!("{error:#}"), "worker failed"),
                    Outcome::Panicked(message) => error!(service, worker, message, "worker panicked"),
                }
                self.fail(now);
            }
        }
    }

    /// Does what is to be done now. Returns how the process ended, once it has.
    fn advance(&mut self, now: Instant) -> Option<Ending> {
        if self.draining.is_none()
            && let Some(done) = self.roles.iter().find(|role| role.scope.live().is_empty())
        {
            info!(service = done.scope.service(), "done");
            self.begin_draining(now);
        }
        let draining = self.draining.as_mut()?;
        while self.roles.get(draining.position).is_none_or(|role| role.scope.live().is_empty()) {
            draining.position += 1;
            match self.roles.get_mut(draining.position) {
                Some(next) => next.stopper.stop(draining.deadline),
                None => return Some(self.ending),
            }
        }
        let late = || -> Vec<String> {
            let of_role = |role: &SupervisedRole| {
                let service = role.scope.service();
                role.scope.live().into_iter().map(move |worker| format!("{service} {worker}")).collect::<Vec<_>>()
            };
            self.roles.iter().flat_map(of_role).collect()
        };
        if now >= draining.deadline {
            error!(late = late().join(", "), limit = ?self.drain, "not drained in time, ending all the same");
            return Some(Ending::Failed);
        }
        if now >= draining.next_naming {
            draining.next_naming = now + NAMING_INTERVAL;
            warn!(waiting_for = late().join(", "), left = ?draining.deadline - now, "still draining");
        }
        None
    }

    /// How long nothing is due.
    fn patience(&self, now: Instant) -> Duration {
        match &self.draining {
            None => ROUND,
            Some(draining) => ROUND.min(draining.deadline.min(draining.next_naming).saturating_duration_since(now)),
        }
    }

    fn begin_draining(&mut self, now: Instant) {
        if self.draining.is_some() {
            return;
        }
        self.health.enter(Phase::Stopping);
        let deadline = now + self.drain;
        if let Some(first) = self.roles.first_mut() {
            first.stopper.stop(deadline);
        }
        self.draining = Some(Draining { position: 0, deadline, next_naming: now + NAMING_INTERVAL });
    }
}
