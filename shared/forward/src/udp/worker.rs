//! The thread of one UDP endpoint: takes batches from its queue and sends them. Everything that
//! concerns the endpoint happens here, so that it cannot delay another.
//!
//! ```text
//! queue ─ take_more ─▶ batches ─▶ Sending::send ─▶ sent, given up, or left to the group
//! ```
//! While there is little to send and the endpoint takes everything at once, the receiving thread
//! sends itself ([`Shortcut`]), and the worker only looks after the endpoint.
//!
//! Until the name of the endpoint is resolved for the first time, batches wait as long as there is
//! room for them. Others that wait longer than [`MAX_AGE`](crate::queue::MAX_AGE) are dropped, and
//! at the drain deadline everything is left to the group or dropped.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sekiwake_bus::{Permission, boot_now};
use sekiwake_runtime::Worker;

use super::{flush::Unsent, sending::Sending};
use crate::{
    metrics::DropReason,
    queue::{MAX_BATCHES, MAX_UNACKNOWLEDGED_TIME, Outlet, Queued, Waited},
};

/// The longest sleep without anything to do. A changed address of a name is noticed then.
const IDLE: Duration = Duration::from_secs(1);

/// A flush takes no further batch once it has this many records.
const FLUSH_RECORDS: usize = 1024;

const UNRESOLVED_PAUSE: Duration = Duration::from_millis(100);

/// The worker of one UDP endpoint.
pub(crate) struct UdpWorker<B> {
    outlet: Outlet<B>,
    /// Batches that wait for the name to be resolved.
    unresolved: VecDeque<Queued<B>>,
    sending: Arc<Mutex<Sending>>,
}

/// The receiving thread's way past the worker.
pub(crate) struct Shortcut(Arc<Mutex<Sending>>);

impl Shortcut {
    /// Sends what the kernel takes now, as [`Sending::send_at_once`]. To be called only while the
    /// worker has nothing to send, so that the order stays.
    pub(crate) fn send<B: AsRef<[u8]>>(&self, taken: &[Queued<B>]) -> Option<Vec<Unsent>> {
        // The worker has it while it checks the endpoint.
        self.0.try_lock().ok()?.send_at_once(taken)
    }
}

/// The result of [`UdpWorker::keep_until_resolved`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kept {
    Waiting,
    /// The queue is closed, and nothing is kept.
    Closed,
}

impl<B: AsRef<[u8]> + From<Vec<u8>>> UdpWorker<B> {
    pub(crate) fn new(outlet: Outlet<B>, sending: Sending) -> UdpWorker<B> {
        UdpWorker { outlet, unresolved: VecDeque::new(), sending: Arc::new(Mutex::new(sending)) }
    }

    pub(crate) fn shortcut(&self) -> Shortcut {
        Shortcut(Arc::clone(&self.sending))
    }

    /// Sends until the queue is closed and empty.
    pub(crate) fn run(mut self, worker: &Worker) {
        let sending = Arc::clone(&self.sending);
        let mut taken: Vec<Queued<B>> = Vec::new();
        loop {
            worker.beat();
            let mut state = lock(&sending);
            state.maintain(Instant::now());
            state.clock.observe(Instant::now());
            if state.target.is_unresolved() {
                if self.keep_until_resolved(&mut state, worker) == Kept::Closed {
                    return state.end();
                }
                continue;
            }
            drop(state);
            match self.next() {
                Waited::Batch(queued) => self.take_more(queued, &mut taken),
                Waited::Nothing => continue,
                Waited::Closed => return lock(&sending).end(),
            }
            let mut state = lock(&sending);
            self.drop_expired(&mut state, &mut taken, worker);
            state.send(&taken, worker);
            drop(state);
            taken.drain(..).for_each(|queued| self.outlet.release(&queued));
        }
    }

    /// The next batch: those that have waited for the name come first.
    fn next(&mut self) -> Waited<B> {
        match self.unresolved.pop_front() {
            Some(queued) => Waited::Batch(queued),
            None => self.outlet.wait(IDLE),
        }
    }

    /// Takes batches from the queue and keeps them for the name. On a stop, and when the
    /// destination is removed, they are given up at once.
    fn keep_until_resolved(&mut self, sending: &mut Sending, worker: &Worker) -> Kept {
        sending.target.wait(UNRESOLVED_PAUSE);
        let now = Instant::now();
        sending.clock.exclude_until(now);
        let mut kept = Kept::Waiting;
        while self.unresolved.len() < MAX_BATCHES {
            match self.outlet.wait(Duration::ZERO) {
                Waited::Batch(queued) => self.unresolved.push_back(queued),
                Waited::Nothing => break,
                Waited::Closed => {
                    kept = Kept::Closed;
                    break;
                }
            }
        }
        if !self.unresolved.is_empty() {
            sending.mark_down(&"the name has not been resolved yet");
        }
        // The group's positions do not wait for the name.
        let is_long = |queued: &&mut Queued<B>| now.duration_since(queued.since) >= MAX_UNACKNOWLEDGED_TIME;
        self.unresolved.iter_mut().take_while(is_long).for_each(Queued::detach);
        let is_stopping = worker.deadline().is_some();
        if is_stopping || kept == Kept::Closed {
            let reason = if is_stopping { DropReason::Shutdown } else { DropReason::Unresolved };
            while let Some(queued) = self.unresolved.pop_front() {
                sending.give_up_parcel(&queued, reason);
                self.outlet.release(&queued);
            }
        }
        kept
    }

    /// Takes further queued batches. It does not wait for more: under load the queue fills by
    /// itself.
    fn take_more(&mut self, first: Queued<B>, taken: &mut Vec<Queued<B>>) {
        let mut records = first.len();
        taken.push(first);
        while records < FLUSH_RECORDS {
            let Some(queued) = self.unresolved.pop_front().or_else(|| self.outlet.take()) else { return };
            records += queued.len();
            taken.push(queued);
        }
    }

    /// Gives up the batches that have waited too long, or all of them at the drain deadline.
    fn drop_expired(&self, sending: &mut Sending, taken: &mut Vec<Queued<B>>, worker: &Worker) {
        let now = Instant::now();
        sending.clock.observe(now);
        let boot_now = boot_now();
        if taken.iter().any(|queued| queued.parcel.permission(boot_now) == Permission::Lapsed) {
            sending.clock.exclude_until(now);
        }
        let is_over = sending.clock.is_over(worker.deadline(), now);
        let reason = if is_over { DropReason::Shutdown } else { sending.wait_reason };
        taken.retain(|queued| {
            let revoked = queued.parcel.permission(boot_now) == Permission::Revoked;
            if revoked {
                // Unsent records must not be committed, not even by a member that stops.
                queued.parcel.leave_to_group();
                sending.metrics.handed_over.inc_by(queued.records() as u64);
            } else if is_over || queued.is_expired(now, &sending.clock) {
                sending.give_up_parcel(queued, reason);
            } else {
                return true;
            }
            self.outlet.release(queued);
            false
        });
    }
}

fn lock(sending: &Mutex<Sending>) -> MutexGuard<'_, Sending> {
    sending.lock().unwrap_or_else(PoisonError::into_inner)
}
