//! The stop of a role, and its deadline.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

/// The stop of one role, as its threads see it. Clones refer to the same stop; once requested, it
/// is not withdrawn.
#[derive(Clone, Debug)]
pub struct Stop {
    deadline: Arc<OnceLock<Instant>>,
    /// Nothing is ever sent: the channel is disconnected when the stop is requested, which wakes
    /// all waiting threads.
    requested: Receiver<()>,
}

/// Requests the stop of a role. Dropping it also requests the stop, with a deadline in the past.
#[derive(Debug)]
pub struct Stopper {
    deadline: Arc<OnceLock<Instant>>,
    /// Dropped when the stop is requested.
    keep_running: Option<Sender<()>>,
}

/// A stop and its stopper.
pub fn stop_pair() -> (Stopper, Stop) {
    let deadline = Arc::new(OnceLock::new());
    let (sender, requested) = crossbeam_channel::bounded(0);
    (Stopper { deadline: deadline.clone(), keep_running: Some(sender) }, Stop { deadline, requested })
}

impl Stop {
    /// Whether the stop was requested.
    pub fn stopping(&self) -> bool {
        self.deadline.get().is_some()
    }

    /// The deadline for draining; `None` until the stop is requested.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied()
    }

    /// Sleeps until the stop is requested, for `timeout` at most. Returns whether it was requested.
    pub fn wait(&self, timeout: Duration) -> bool {
        match self.requested.recv_timeout(timeout) {
            Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) | Ok(()) => self.stopping(),
        }
    }

    /// Sleeps until the stop is requested.
    pub fn wait_forever(&self) {
        // An error is the disconnection, which is the stop.
        let _ = self.requested.recv();
    }

    /// For `crossbeam_channel::select!`: it yields no message and is disconnected when the stop is
    /// requested.
    pub fn receiver(&self) -> &Receiver<()> {
        &self.requested
    }
}

impl Stopper {
    /// Requests the stop, with a deadline for draining. Only the first call counts.
    pub fn stop(&mut self, deadline: Instant) {
        self.deadline.get_or_init(|| deadline);
        self.keep_running = None;
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.stop(Instant::now());
    }
}

/// How often the process has been asked to reload (SIGHUP). Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct Hangups(Arc<AtomicU64>);

impl Hangups {
    /// The count since the start.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds one.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
