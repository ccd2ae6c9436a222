//! Notifications to Alertmanager, webhooks and syslog servers.
//!
//! ```text
//! event ─ offer ─▶ queue of each notifier ═▶ its thread ─ attempts with back-off ─▶ HTTP or UDP
//!                                               └─ delivered or dropped ─▶ acknowledged to the detector
//! ```
//! Each notifier has its own thread and bounded queue, so that an unavailable receiver delays
//! neither the others nor the counting.

mod attempt;
mod backoff;
mod message;
mod queue;
mod transport;
mod uri;
mod worker;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use sekiwake_runtime::Scope;

use crate::detect::{Event, EventName};

pub use message::About;
pub use uri::{Notifier, Notifiers, NotifyError};

pub(crate) use message::object;
use queue::Queue;
use worker::NotifierWorker;

/// Timeouts and intervals of notifiers.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The pause after the first failed attempt; it doubles with each attempt.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How long delivery of one event is attempted.
    pub give_up_after: Duration,
    /// The timeout of one request.
    pub request: Duration,
    /// How often firing alerts are sent to Alertmanager again.
    pub repeat: Duration,
}

impl Default for Timing {
    fn default() -> Timing {
        Timing {
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            give_up_after: Duration::from_secs(900),
            request: Duration::from_secs(10),
            repeat: Duration::from_secs(60),
        }
    }
}

/// Events that have not been finished by all notifiers.
#[derive(Debug, Default)]
pub(crate) struct Undelivered {
    /// One bit per notifier that has not finished an event.
    pending: HashMap<EventName, u32>,
    /// Events that all notifiers have finished.
    finished: Vec<EventName>,
}

/// Running notifiers.
#[derive(Debug)]
pub struct Dispatcher {
    queues: Vec<Arc<Queue>>,
    undelivered: Arc<Mutex<Undelivered>>,
}

impl Dispatcher {
    /// Starts a thread per notifier.
    ///
    /// # Errors
    /// A thread cannot be spawned, or no certificates can be loaded for a notifier with TLS.
    pub fn start(notifiers: &Notifiers, about: &About, timing: Timing, scope: &Scope) -> anyhow::Result<Dispatcher> {
        let undelivered: Arc<Mutex<Undelivered>> = Arc::default();
        let mut queues = Vec::new();
        for notifier in notifiers.iter() {
            let queue = Arc::new(Queue::new(scope, notifier.label(), 1 << queues.len()));
            let worker = NotifierWorker::new(
                notifier.clone(),
                about.clone(),
                timing,
                Arc::clone(&queue),
                Arc::clone(&undelivered),
            )?;
            scope.spawn(format!("notify {}", queues.len()), move |thread| {
                worker.run(thread);
                Ok(())
            })?;
            queues.push(queue);
        }
        Ok(Dispatcher { queues, undelivered })
    }

    /// Queues an event for all notifiers. Never blocks: a notifier whose queue is full drops the
    /// oldest event in it, counted.
    pub fn offer(&self, event: &Event) {
        {
            let mut undelivered = lock(&self.undelivered);
            match self.queues.len() {
                0 => undelivered.finished.push(event.name()),
                // At most 16 notifiers, so the bits fit.
                count => drop(undelivered.pending.insert(event.name(), (1 << count) - 1)),
            }
        }
        for queue in &self.queues {
            if let Some(dropped) = queue.push(event.clone()) {
                finish(&self.undelivered, queue.bit, &dropped.name());
            }
        }
    }

    /// The events that every notifier has delivered or dropped since the last call.
    pub fn take_finished(&self) -> Vec<EventName> {
        std::mem::take(&mut lock(&self.undelivered).finished)
    }

    /// Sets the firing alarms, for receivers that need them repeatedly.
    pub fn set_firing(&self, firing: &[Event]) {
        self.queues.iter().for_each(|queue| queue.set_firing(firing.to_vec()));
    }

    /// Leaves everything to another detector, including queued events. Repeating an alarm here
    /// would keep it firing after the other detector has resolved it.
    pub fn stand_by(&self) {
        lock(&self.undelivered).pending.clear();
        self.queues.iter().for_each(|queue| queue.stand_by());
    }
}

/// Marks an event as finished by the notifier with this bit. Idempotent.
pub(crate) fn finish(undelivered: &Mutex<Undelivered>, bit: u32, name: &EventName) {
    let mut undelivered = lock(undelivered);
    let Some(pending) = undelivered.pending.get_mut(name) else { return };
    *pending &= !bit;
    if *pending == 0 {
        undelivered.pending.remove(name);
        undelivered.finished.push(name.clone());
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
