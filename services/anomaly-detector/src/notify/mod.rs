//! Telling people and machines: Alertmanager, webhooks, syslog.
//!
//! ```text
//! event ─ offer ─▶ queue of each notifier ═▶ its thread ─ tries, again with back-off ─▶ HTTP or UDP
//!                                               └─ told, or given up ─▶ the detector may forget it
//! ```
//! A notifier has a thread and a bounded queue of its own: one that is dead delays neither the others nor the counting.

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

use crate::detect::{Event, EventState};

pub use message::About;
pub use queue::names;
pub use uri::{Notifier, Notifiers, NotifyError};

pub(crate) use message::object;
use queue::Queue;
use worker::NotifierWorker;

/// How patient notifiers are.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// The first pause before another try; it doubles from try to try.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// How long one event is tried.
    pub give_up_after: Duration,
    /// How long one request may take.
    pub request: Duration,
    /// How often Alertmanager is told again what fires.
    pub repeat: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            first_pause: Duration::from_secs(1),
            longest_pause: Duration::from_secs(60),
            give_up_after: Duration::from_secs(900),
            request: Duration::from_secs(10),
            repeat: Duration::from_secs(60),
        }
    }
}

/// What an event is named by: an alarm's begin and its end have one id.
type Name = (String, EventState);

/// Events that some notifier still has to tell: a bit for each that has.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    left: HashMap<Name, u32>,
    told: Vec<Name>,
}

/// Running notifiers.
#[derive(Debug)]
pub struct Telling {
    queues: Vec<Arc<Queue>>,
    progress: Arc<Mutex<Progress>>,
}

impl Telling {
    /// Starts a thread for each notifier.
    ///
    /// # Errors
    /// When the system gives no threads, or no certificates can be had for one that speaks TLS.
    pub fn start(notifiers: &Notifiers, about: &About, patience: Patience, scope: &Scope) -> anyhow::Result<Telling> {
        let progress: Arc<Mutex<Progress>> = Arc::default();
        let mut queues = Vec::new();
        for notifier in notifiers.iter() {
            let queue = Arc::new(Queue::new(scope, notifier.label(), 1 << queues.len()));
            let worker = NotifierWorker::new(
                notifier.clone(),
                about.clone(),
                patience,
                (Arc::clone(&queue), Arc::clone(&progress)),
            )?;
            scope.spawn(format!("notify {}", queues.len()), move |thread| {
                worker.run(thread);
                Ok(())
            })?;
            queues.push(queue);
        }
        Ok(Telling { queues, progress })
    }

    /// Has everybody told. Never waits: a notifier whose queue is full loses the oldest event in it, counted.
    pub fn offer(&self, event: &Event) {
        let name = (event.id.clone(), event.state);
        {
            let mut progress = lock(&self.progress);
            match self.queues.len() {
                0 => progress.told.push(name),
                // 16 at most.
                count => drop(progress.left.insert(name, (1 << count) - 1)),
            }
        }
        for queue in &self.queues {
            if let Some(lost) = queue.push(event.clone()) {
                finish(&self.progress, queue.bit, &(lost.id, lost.state));
            }
        }
    }

    /// What everybody has been told, or has been given up with, since the last call.
    pub fn take_told(&self) -> Vec<(String, EventState)> {
        std::mem::take(&mut lock(&self.progress).told)
    }

    /// Says which alarms are on, for those who must be told again and again.
    pub fn set_firing(&self, firing: &[Event]) {
        self.queues.iter().for_each(|queue| queue.set_firing(firing.to_vec()));
    }

    /// Somebody else tells from now on, also what waits here: whoever went on telling of an alarm would never hear of its end.
    pub fn stand_by(&self) {
        lock(&self.progress).left.clear();
        self.queues.iter().for_each(|queue| queue.stand_by());
    }
}

/// One notifier, that with this bit, is done with an event. To be done with it twice is no harm.
pub(crate) fn finish(progress: &Mutex<Progress>, bit: u32, name: &Name) {
    let mut progress = lock(progress);
    let Some(left) = progress.left.get_mut(name) else { return };
    *left &= !bit;
    if *left == 0 {
        progress.left.remove(name);
        progress.told.push(name.clone());
    }
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
