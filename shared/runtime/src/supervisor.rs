//! Runs the roles of a process and stops them in order, up to the exit status.
//!
//! ```text
//!   Starting ──── every role has started ────▶ Running
//!      │                                          │ signal, a role finished, a worker failed
//!      │ a role cannot start                      ▼
//!      └────────────────────────────────────▶ Stopping
//!         stop role 1, join its workers ─▶ role 2 ─▶ ... ─▶ all joined: 0, or 1 after a failure
//!             └─────────────────────── deadline exceeded ──────────────▶ 1
//! ```
//! The phases are [`Phase`]s, which `/readyz` shows. All roles drain before one deadline.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender},
    },
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use crate::{
    health::{Health, Phase},
    losses::Due,
    scope::Scope,
    stop::{Hangups, Stopper},
    systemd::Systemd,
};

/// The longest time between two rounds of the supervisor.
const ROUND: Duration = Duration::from_secs(1);

/// How often the workers that are still draining are logged.
const LOG_INTERVAL: Duration = Duration::from_secs(2);

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// All roles have finished, or were stopped in time.
    Done,
    /// A worker failed, or exceeded the deadline.
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

/// The end of a process.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) ending: Ending,
    /// The first failure of a worker, for the last line of the log.
    pub(crate) cause: Option<String>,
}

/// An event for the supervisor.
#[derive(Debug)]
pub(crate) enum Event {
    /// A worker's body has returned or panicked.
    WorkerEnded { position: usize, id: u64, outcome: Outcome },
    /// A request to stop the process.
    StopRequested { why: &'static str },
    /// A request to read files again.
    ReloadRequested,
}

/// How a worker ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Done,
    Failed(anyhow::Error),
    Panicked(String),
}

/// Stops a running process, as a signal does.
#[derive(Clone, Debug)]
pub struct StopHandle {
    events: SyncSender<Event>,
}

impl StopHandle {
    pub(crate) fn new(events: SyncSender<Event>) -> StopHandle {
        StopHandle { events }
    }

    /// Starts draining. `why` is for the log.
    pub fn stop(&self, why: &'static str) {
        // Fails only if the process has ended already.
        let _ = self.events.send(Event::StopRequested { why });
    }

    /// Makes roles read their files again, as SIGHUP does.
    pub(crate) fn reload(&self) {
        // Without waiting, so that the next signal is handled while a role is stuck in its start. A
        // full channel fails only after hundreds of requests.
        let _ = self.events.try_send(Event::ReloadRequested);
    }
}

/// The roles and the state of the process.
#[derive(Debug)]
pub(crate) struct Supervisor {
    roles: Vec<SupervisedRole>,
    health: Arc<Health>,
    hangups: Hangups,
    systemd: Systemd,
    drain: Duration,
    ending: Ending,
    cause: Option<String>,
    draining: Option<Draining>,
}

#[derive(Debug)]
pub(crate) struct SupervisedRole {
    pub(crate) scope: Scope,
    pub(crate) stopper: Stopper,
}

#[derive(Debug)]
struct Draining {
    /// The role that is being stopped; those before it are joined.
    position: usize,
    deadline: Instant,
    next_log: Instant,
}

impl Supervisor {
    pub(crate) fn new(
        roles: Vec<SupervisedRole>,
        health: Arc<Health>,
        hangups: Hangups,
        systemd: Systemd,
        drain: Duration,
    ) -> Supervisor {
        Supervisor { roles, health, hangups, systemd, drain, ending: Ending::Done, cause: None, draining: None }
    }

    /// Every role has started.
    pub(crate) fn started(&self) {
        self.health.enter(Phase::Running);
        self.systemd.ready();
    }

    /// Runs to the end.
    pub(crate) fn run(mut self, events: &Receiver<Event>) -> Ended {
        loop {
            let now = Instant::now();
            let ending = self.advance(now);
            for role in &self.roles {
                role.scope.report_losses(if ending.is_some() { Due::Finally } else { Due::At(now) });
            }
            if let Some(ending) = ending {
                self.roles.iter().for_each(|role| role.scope.end());
                self.systemd.finish();
                return Ended { ending, cause: self.cause };
            }
            self.systemd.round(&self.health, now);
            if let Ok(event) = events.recv_timeout(self.idle_time(now)) {
                self.handle(event, Instant::now());
            }
        }
    }

    /// Drains, and ends with a failure.
    pub(crate) fn fail(&mut self, now: Instant) {
        self.ending = Ending::Failed;
        self.begin_draining(now);
    }

    fn handle(&mut self, event: Event, now: Instant) {
        match event {
            Event::StopRequested { why } => {
                info!(why, "stopping");
                self.begin_draining(now);
            }
            // READY would end STOPPING.
            Event::ReloadRequested if self.draining.is_some() => {}
            Event::ReloadRequested => {
                self.systemd.reloading();
                self.hangups.add();
                self.systemd.ready();
            }
            Event::WorkerEnded { position, id, outcome } => {
                let scope = &self.roles[position].scope;
                let service = scope.service();
                let worker = scope.reap(id).unwrap_or_default();
                let cause = match outcome {
                    Outcome::Done => return,
                    Outcome::Failed(error) => {
                        let error = format!("{error:#}");
                        error!(service, worker, error, "worker failed");
                        error
                    }
                    Outcome::Panicked(message) => {
                        error!(service, worker, message, "worker panicked");
                        format!("panic in {worker}: {message}")
                    }
                };
                self.cause.get_or_insert(cause);
                self.fail(now);
            }
        }
    }

    /// Performs the steps that are due. Returns how the process ended, once it has.
    fn advance(&mut self, now: Instant) -> Option<Ending> {
        if self.draining.is_none()
            && let Some(done) = self.roles.iter().find(|role| role.scope.live().is_empty())
        {
            info!(service = done.scope.service(), "role finished");
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
            let workers = |role: &SupervisedRole| {
                let service = role.scope.service();
                role.scope.live().into_iter().map(move |worker| format!("{service} {worker}")).collect::<Vec<_>>()
            };
            self.roles.iter().flat_map(workers).collect()
        };
        if now >= draining.deadline {
            error!(late = late().join(", "), limit = ?self.drain, "drain deadline exceeded, exiting anyway");
            return Some(Ending::Failed);
        }
        if now >= draining.next_log {
            draining.next_log = now + LOG_INTERVAL;
            warn!(waiting_for = late().join(", "), left = ?draining.deadline - now, "still draining");
        }
        None
    }

    /// The time until something is due.
    fn idle_time(&self, now: Instant) -> Duration {
        let round = ROUND.min(self.systemd.idle_time(now));
        match &self.draining {
            None => round,
            Some(draining) => round.min(draining.deadline.min(draining.next_log).saturating_duration_since(now)),
        }
    }

    fn begin_draining(&mut self, now: Instant) {
        if self.draining.is_some() {
            return;
        }
        self.health.enter(Phase::Stopping);
        self.systemd.stopping(self.drain);
        let deadline = now + self.drain;
        if let Some(first) = self.roles.first_mut() {
            first.stopper.stop(deadline);
        }
        self.draining = Some(Draining { position: 0, deadline, next_log: now + LOG_INTERVAL });
    }
}
