//! Listening sockets of libzmq in a process without free descriptors.
//!
//! libzmq would repeat an `accept` that fails, without a pause, and take what others free. While no
//! descriptor is left, it is kept from accepting, and new connections wait in the kernel's queue.

use std::time::{Duration, Instant};

use sekiwake_runtime::{RateLimited, has_free_descriptor, with_reserve};
use sekiwake_sys::{EpollListener, epoll_listeners};
use tracing::warn;

/// How often the sockets are checked, and how soon after connections were found to wait.
const CHECK_EVERY: Duration = Duration::from_millis(250);
const CHECK_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How long a pause lasts at least.
const PAUSE: Duration = Duration::from_secs(1);

/// How many checks look for sockets that libzmq does not listen on yet.
const SEARCHES: u32 = 80;

/// The listening sockets of one owner. Belongs to its thread, and ends before its sockets do.
pub(crate) struct Listeners {
    ports: Vec<u16>,
    /// Found when libzmq's I/O thread has begun to listen.
    sockets: Vec<EpollListener>,
    searches_left: u32,
    checked_at: Instant,
    /// Connections were waiting at the last check.
    is_suspect: bool,
    paused_at: Option<Instant>,
    log: RateLimited,
}

impl Listeners {
    /// Those of endpoints that the owner has bound.
    pub(crate) fn new(endpoints: &[String]) -> Listeners {
        let mut listeners = Listeners {
            ports: Vec::new(),
            sockets: Vec::new(),
            searches_left: 0,
            checked_at: Instant::now(),
            is_suspect: false,
            paused_at: None,
            log: RateLimited::default(),
        };
        listeners.add(endpoints);
        listeners
    }

    /// More endpoints that the owner has bound. Those that are not `tcp` are local, and not
    /// watched. A port must not be added before it is bound for good: the socket that is found
    /// would be one that libzmq is closing.
    pub(crate) fn add(&mut self, endpoints: &[String]) {
        let port = |endpoint: &String| endpoint.strip_prefix("tcp://")?.rsplit_once(':')?.1.parse::<u16>().ok();
        self.ports.extend(endpoints.iter().filter_map(port));
        self.searches_left = SEARCHES;
        self.search();
    }

    /// Calls `call`, which needs descriptors, while no connection takes one.
    pub(crate) fn while_paused<T>(&self, call: impl FnOnce() -> T) -> T {
        self.sockets.iter().for_each(EpollListener::pause);
        let called = call();
        self.restore();
        called
    }

    /// Looks for sockets that have not been found yet.
    fn search(&mut self) {
        if self.sockets.len() >= self.ports.len() || self.searches_left == 0 {
            return;
        }
        self.searches_left -= 1;
        let ports = self.ports.clone();
        let found = self.while_paused(|| with_reserve(|| epoll_listeners(&ports)));
        if found.len() > self.sockets.len() {
            self.sockets = found;
            self.restore();
        }
    }

    fn restore(&self) {
        match self.paused_at {
            Some(_) => self.sockets.iter().for_each(EpollListener::pause),
            None => self.sockets.iter().for_each(EpollListener::resume),
        }
    }

    /// Pauses the sockets when no descriptor is left, and resumes them when there are some again.
    /// To be called several times per second.
    pub(crate) fn check(&mut self, now: Instant) {
        let interval = if self.is_suspect { CHECK_AGAIN_AFTER } else { CHECK_EVERY };
        if now.saturating_duration_since(self.checked_at) < interval {
            return;
        }
        self.checked_at = now;
        self.search();
        let has_waiting = self.sockets.iter().any(EpollListener::has_waiting);
        let was_suspect = std::mem::replace(&mut self.is_suspect, has_waiting);
        match self.paused_at {
            Some(paused_at) if now >= paused_at + PAUSE && has_free_descriptor() => {
                self.paused_at = None;
                self.sockets.iter().for_each(EpollListener::resume);
            }
            None if has_waiting && was_suspect && !has_free_descriptor() => {
                self.paused_at = Some(now);
                self.sockets.iter().for_each(EpollListener::pause);
                if let Some(suppressed) = self.log.allow(now) {
                    warn!(ports = ?self.ports, suppressed, "no file descriptor left, connections have to wait");
                }
            }
            _ => {}
        }
    }
}
