//! The stop of a role, and its deadline.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Condvar, Mutex, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::write,
};

use crate::health::lock;

/// The stop of one role, as its threads see it. Clones refer to the same stop; once requested, it
/// is not withdrawn.
#[derive(Clone, Debug)]
pub struct Stop(Arc<Request>);

/// Requests the stop of a role. Dropping it also requests the stop, with a deadline in the past.
#[derive(Debug)]
pub struct Stopper(Arc<Request>);

/// What both ends share.
#[derive(Debug)]
struct Request {
    /// Set by the request.
    deadline: OnceLock<Instant>,
    /// Locked for the request, so that no thread misses it between its look and its sleep.
    requesting: Mutex<()>,
    requested: Condvar,
    /// Readable from the request on. `None` if no descriptor was left for it.
    signal: Option<OwnedFd>,
}

/// A stop and its stopper.
pub fn stop_pair() -> (Stopper, Stop) {
    let request = Arc::new(Request {
        deadline: OnceLock::new(),
        requesting: Mutex::default(),
        requested: Condvar::new(),
        signal: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok(),
    });
    (Stopper(Arc::clone(&request)), Stop(request))
}

impl Stop {
    /// Whether the stop was requested.
    pub fn stopping(&self) -> bool {
        self.0.deadline.get().is_some()
    }

    /// The deadline for draining; `None` until the stop is requested.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline.get().copied()
    }

    /// Sleeps until the stop is requested, for `timeout` at most. Returns whether it was requested.
    pub fn wait(&self, timeout: Duration) -> bool {
        let requesting = lock(&self.0.requesting);
        drop(self.0.requested.wait_timeout_while(requesting, timeout, |()| !self.stopping()));
        self.stopping()
    }

    /// Sleeps until the stop is requested.
    pub fn wait_forever(&self) {
        let requesting = lock(&self.0.requesting);
        drop(self.0.requested.wait_while(requesting, |()| !self.stopping()));
    }

    /// A descriptor that becomes readable when the stop is requested, for a thread that waits for
    /// other descriptors too. `None` from then on, because a wait for it would end at once; also in
    /// a process without descriptors, so every wait needs a time limit.
    pub fn signal(&self) -> Option<BorrowedFd<'_>> {
        if self.stopping() { None } else { self.0.signal.as_ref().map(AsFd::as_fd) }
    }
}

impl Stopper {
    /// Requests the stop, with a deadline for draining. Only the first call counts.
    pub fn stop(&mut self, deadline: Instant) {
        let Request { deadline: first, requesting, requested, signal } = &*self.0;
        let requesting = lock(requesting);
        if first.set(deadline).is_err() {
            return;
        }
        drop(requesting);
        requested.notify_all();
        if let Some(signal) = signal {
            // It cannot fail: the counter is far from its limit.
            let _ = write(signal, &1_u64.to_ne_bytes());
        }
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

#[cfg(test)]
mod tests {
    use std::thread;

    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    /// A wait of this length has missed the request.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn request_ends_every_wait() {
        for _ in 0..100 {
            let (mut stopper, stop) = stop_pair();
            let waiting = |wait: fn(&Stop)| {
                let stop = stop.clone();
                thread::spawn(move || wait(&stop))
            };
            let sleeping = waiting(|stop| assert!(stop.wait(LONG)));
            let forever = waiting(Stop::wait_forever);
            let polling = waiting(|stop| {
                let Some(signal) = stop.signal() else { return };
                let mut descriptors = [PollFd::from_borrowed_fd(signal, PollFlags::IN)];
                assert_eq!(poll(&mut descriptors, None), Ok(1));
            });
            let deadline = Instant::now();
            stopper.stop(deadline);
            stopper.stop(deadline + LONG);
            [sleeping, forever, polling].into_iter().for_each(|thread| thread.join().unwrap());
            assert_eq!(stop.deadline(), Some(deadline));
            assert!(stop.signal().is_none(), "a wait for it would end at once");
        }
    }

    #[test]
    fn wait_without_a_request_ends_at_its_limit() {
        let (stopper, stop) = stop_pair();
        assert!(!stop.wait(Duration::ZERO) && !stop.wait(Duration::from_millis(1)));
        assert!(stop.signal().is_some());
        drop(stopper);
        assert!(stop.wait(Duration::ZERO));
    }
}
