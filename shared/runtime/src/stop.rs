//! The word to stop, and how long stopping may take.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

/// Tells the threads of one role to stop. Clones speak of the same stop; it is given once and not taken back.
#[derive(Clone, Debug)]
pub struct Stop {
    deadline: Arc<OnceLock<Instant>>,
    /// Nothing is ever sent: the channel is disconnected when the stop is given, which wakes everybody who waits.
    woken: Receiver<()>,
}

/// Gives the stop that its [`Stop`]s wait for. Dropping it stops them too, with no time left.
#[derive(Debug)]
pub struct Stopper {
    deadline: Arc<OnceLock<Instant>>,
    keep_asleep: Option<Sender<()>>,
}

/// A stop and the one who gives it.
pub fn stop_pair() -> (Stopper, Stop) {
    let deadline = Arc::new(OnceLock::new());
    let (sender, woken) = crossbeam_channel::bounded(0);
    (Stopper { deadline: deadline.clone(), keep_asleep: Some(sender) }, Stop { deadline, woken })
}

impl Stop {
    /// Whether the stop was given.
    pub fn stopping(&self) -> bool {
        self.deadline.get().is_some()
    }

    /// When draining must have ended; `None` until the stop is given.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline.get().copied()
    }

    /// Sleeps until the stop is given, at most this long. Returns whether it was given.
    pub fn wait(&self, timeout: Duration) -> bool {
        match self.woken.recv_timeout(timeout) {
            Err(RecvTimeoutError::Disconnected) => true,
            Err(RecvTimeoutError::Timeout) | Ok(()) => self.stopping(),
        }
    }

    /// Sleeps until the stop is given.
    pub fn wait_forever(&self) {
        // An error is the disconnection, which is the stop.
        let _ = self.woken.recv();
    }

    /// For `crossbeam_channel::select!`: never yields a message, is disconnected when the stop is given.
    pub fn receiver(&self) -> &Receiver<()> {
        &self.woken
    }
}

impl Stopper {
    /// Gives the stop. Draining has to end before `deadline`; the first one given counts.
    pub fn stop(&mut self, deadline: Instant) {
        self.deadline.get_or_init(|| deadline);
        self.keep_asleep = None;
    }
}

impl Drop for Stopper {
    fn drop(&mut self) {
        self.stop(Instant::now());
    }
}

/// How often the process has been asked (SIGHUP) to read again what can be read again. Clones are the same count.
#[derive(Clone, Debug, Default)]
pub struct Hangups(Arc<AtomicU64>);

impl Hangups {
    /// Since the start.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more.
    pub fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
