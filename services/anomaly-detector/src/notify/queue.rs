//! What one notifier still has to tell.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntGauge};
use sekiwake_runtime::{LossReason, Losses, Scope};

use super::lock;
use crate::detect::Event;

/// The most events that wait.
const MAX_EVENTS: usize = 256;

/// The most alarms that are told again and again.
const MAX_FIRING: usize = 1000;

/// Metric names.
pub mod names {
    /// Notifications that were accepted, by notifier. Alarms that are told to Alertmanager once more are not among them.
    pub const SENT: &str = "sekiwake_notify_sent_total";
    /// Notifications that were given up, by notifier and reason.
    pub const DROPPED: &str = "sekiwake_notify_dropped_total";
    /// Tries that failed and are done again.
    pub const RETRIES: &str = "sekiwake_notify_retries_total";
    /// Notifications that wait.
    pub const QUEUE: &str = "sekiwake_notify_queue";
    /// 1 when the last try succeeded, 0 when it failed; 1 before the first.
    pub const UP: &str = "sekiwake_notify_up";
}

/// Why a notification was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// More came than could be told.
    QueueFull,
    /// It was tried for as long as it is tried.
    GaveUp,
    /// The other side does not want it.
    Refused,
    /// The time to stop was up. The next detector tells it.
    Shutdown,
    /// Another detector counts now, and tells it.
    HandedOver,
}

impl LossReason for Dropped {
    const ALL: &'static [Dropped] =
        &[Dropped::QueueFull, Dropped::GaveUp, Dropped::Refused, Dropped::Shutdown, Dropped::HandedOver];

    fn index(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static str {
        match self {
            Dropped::QueueFull => "queue_full",
            Dropped::GaveUp => "gave_up",
            Dropped::Refused => "refused",
            Dropped::Shutdown => "shutdown",
            Dropped::HandedOver => "handed_over",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// With when they came.
    events: VecDeque<(Instant, Event)>,
    orders: Option<Orders>,
}

/// What a notifier is told beside events.
#[derive(Debug)]
pub(super) struct Orders {
    /// The alarms that are on.
    pub(super) firing: Vec<Event>,
    /// What it was telling is told by somebody else.
    pub(super) is_handed_over: bool,
}

/// See the module.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    length: IntGauge,
    /// Which of the notifiers it is.
    pub(super) bit: u32,
    pub(super) dropped: Losses<Dropped>,
    pub(super) sent: IntCounter,
    pub(super) retries: IntCounter,
    pub(super) up: IntGauge,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("length", &self.length.get()).finish_non_exhaustive()
    }
}

impl Queue {
    pub(super) fn new(scope: &Scope, label: &str, bit: u32) -> Queue {
        let labels = [("notifier", label)];
        let metrics = scope.metrics();
        let dropped = "Notifications that were given up, by notifier and reason.";
        let up = metrics.gauge(names::UP, "1 when the last try succeeded, 0 when it failed.", &labels);
        up.set(1);
        Queue {
            state: Mutex::default(),
            changed: Condvar::new(),
            bit,
            length: metrics.gauge(names::QUEUE, "Notifications that wait.", &labels),
            dropped: scope.losses(names::DROPPED, dropped, format!("notifying {label}"), &labels),
            sent: metrics.counter(names::SENT, "Notifications that were accepted.", &labels),
            retries: metrics.counter(names::RETRIES, "Tries that failed and are done again.", &labels),
            up,
        }
    }

    /// Adds an event; gives the one that had to go for it.
    pub(super) fn push(&self, event: Event) -> Option<Event> {
        let mut state = lock(&self.state);
        let lost = if state.events.len() >= MAX_EVENTS { state.events.pop_front().map(|(_, lost)| lost) } else { None };
        if lost.is_some() {
            self.dropped.add(Dropped::QueueFull, 1);
        }
        state.events.push_back((Instant::now(), event));
        self.length.set(state.events.len() as i64);
        self.changed.notify_all();
        lost
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.state).events.is_empty()
    }

    pub(super) fn set_firing(&self, mut firing: Vec<Event>) {
        firing.truncate(MAX_FIRING);
        let mut state = lock(&self.state);
        // Whoever has not yet heard of a hand-over still has to.
        let is_handed_over = state.orders.take().is_some_and(|orders| orders.is_handed_over);
        state.orders = Some(Orders { firing, is_handed_over });
        self.changed.notify_all();
    }

    /// Somebody else tells what waits, and what fires.
    pub(super) fn stand_by(&self) {
        self.dropped.add(Dropped::HandedOver, self.clear());
        lock(&self.state).orders = Some(Orders { firing: Vec::new(), is_handed_over: true });
        self.changed.notify_all();
    }

    /// Forgets what waits: so many events.
    pub(super) fn clear(&self) -> u64 {
        let waited = std::mem::take(&mut lock(&self.state).events);
        self.length.set(0);
        waited.len() as u64
    }

    /// What has been said since the last call.
    pub(super) fn take_orders(&self) -> Option<Orders> {
        lock(&self.state).orders.take()
    }

    /// The oldest event, and when it came; waits for one, or for something else to be said, for so long at most.
    pub(super) fn pop(&self, patience: Duration) -> Option<(Instant, Event)> {
        let state = lock(&self.state);
        let waiting = |state: &mut State| state.events.is_empty() && state.orders.is_none();
        let waited = self.changed.wait_timeout_while(state, patience, waiting);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        // Orders come first: they may speak of the events.
        let event = if state.orders.is_none() { state.events.pop_front() } else { None };
        self.length.set(state.events.len() as i64);
        event
    }
}
