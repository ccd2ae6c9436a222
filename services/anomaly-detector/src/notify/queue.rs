//! The queue of one notifier.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus::{IntCounter, IntGauge};
use sekiwake_runtime::{LossReason, Losses, Scope};

use super::lock;
use crate::{detect::Event, metrics::names};

/// The most queued events.
const MAX_EVENTS: usize = 256;

/// The most firing alarms that are repeated.
const MAX_FIRING: usize = 1000;

/// Why a notification was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    /// The queue was full.
    QueueFull,
    /// All attempts failed until the timeout.
    GaveUp,
    /// The receiver rejected it.
    Rejected,
    /// The drain deadline was reached. The next detector delivers it.
    Shutdown,
    /// Another detector is active now, and delivers it.
    HandedOver,
}

impl LossReason for Dropped {
    const ALL: &'static [Dropped] =
        &[Dropped::QueueFull, Dropped::GaveUp, Dropped::Rejected, Dropped::Shutdown, Dropped::HandedOver];

    fn index(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static str {
        match self {
            Dropped::QueueFull => "queue_full",
            Dropped::GaveUp => "gave_up",
            Dropped::Rejected => "rejected",
            Dropped::Shutdown => "shutdown",
            Dropped::HandedOver => "handed_over",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<QueuedEvent>,
    instructions: Option<Instructions>,
}

/// An event in the queue.
#[derive(Debug)]
pub(super) struct QueuedEvent {
    pub(super) event: Event,
    pub(super) queued_at: Instant,
    /// Failed attempts.
    pub(super) attempts: u32,
}

/// Instructions for a notifier besides events.
#[derive(Debug)]
pub(super) struct Instructions {
    /// The firing alarms.
    pub(super) firing: Vec<Event>,
    /// Whether another detector delivers the event that is being attempted.
    pub(super) is_handed_over: bool,
}

/// A bounded queue between the dispatcher and one notifier.
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    length: IntGauge,
    /// The bit of this notifier.
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
        let dropped = "Notifications dropped, by notifier and reason.";
        let up = metrics.gauge(names::NOTIFY_UP, "1 if the last attempt succeeded, 0 if it failed.", &labels);
        up.set(1);
        Queue {
            state: Mutex::default(),
            changed: Condvar::new(),
            bit,
            length: metrics.gauge(names::NOTIFY_QUEUE, "Notifications queued.", &labels),
            dropped: scope.losses(names::NOTIFY_DROPPED, dropped, format!("notifying {label}"), &labels),
            sent: metrics.counter(names::NOTIFY_SENT, "Notifications accepted.", &labels),
            retries: metrics.counter(names::NOTIFY_RETRIES, "Delivery attempts failed and retried.", &labels),
            up,
        }
    }

    /// Adds an event; returns the one that was dropped for it.
    pub(super) fn push(&self, event: Event) -> Option<Event> {
        let mut state = lock(&self.state);
        let dropped = if state.events.len() >= MAX_EVENTS { state.events.pop_front() } else { None };
        if dropped.is_some() {
            self.dropped.add(Dropped::QueueFull, 1);
        }
        state.events.push_back(QueuedEvent { event, queued_at: Instant::now(), attempts: 0 });
        self.length.set(state.events.len() as i64);
        self.changed.notify_all();
        dropped.map(|dropped| dropped.event)
    }

    /// Lets the other events go first: puts an event back at the end, but before the next one of
    /// the same alarm.
    pub(super) fn postpone(&self, queued: QueuedEvent) {
        let mut state = lock(&self.state);
        let is_same = |other: &QueuedEvent| other.event.id == queued.event.id;
        let at = state.events.iter().position(is_same).unwrap_or(state.events.len());
        state.events.insert(at, queued);
        self.length.set(state.events.len() as i64);
    }

    pub(super) fn is_empty(&self) -> bool {
        lock(&self.state).events.is_empty()
    }

    pub(super) fn set_firing(&self, mut firing: Vec<Event>) {
        firing.truncate(MAX_FIRING);
        let mut state = lock(&self.state);
        // Keep a hand-over that the notifier has not seen yet.
        let is_handed_over = state.instructions.take().is_some_and(|instructions| instructions.is_handed_over);
        state.instructions = Some(Instructions { firing, is_handed_over });
        self.changed.notify_all();
    }

    /// Leaves queued events and firing alarms to another detector.
    pub(super) fn stand_by(&self) {
        self.dropped.add(Dropped::HandedOver, self.clear());
        lock(&self.state).instructions = Some(Instructions { firing: Vec::new(), is_handed_over: true });
        self.changed.notify_all();
    }

    /// Drops all queued events, and returns their number.
    pub(super) fn clear(&self) -> u64 {
        let events = std::mem::take(&mut lock(&self.state).events);
        self.length.set(0);
        events.len() as u64
    }

    /// The instructions since the last call.
    pub(super) fn take_instructions(&self) -> Option<Instructions> {
        lock(&self.state).instructions.take()
    }

    /// Removes the oldest event. Waits up to `timeout` for one, or for instructions.
    pub(super) fn pop(&self, timeout: Duration) -> Option<QueuedEvent> {
        let state = lock(&self.state);
        let waiting = |state: &mut State| state.events.is_empty() && state.instructions.is_none();
        let waited = self.changed.wait_timeout_while(state, timeout, waiting);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        // Instructions come first, because they may be about the queued events.
        let event = if state.instructions.is_none() { state.events.pop_front() } else { None };
        self.length.set(state.events.len() as i64);
        event
    }
}
