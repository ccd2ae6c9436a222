//! The connection of a stream worker, and its state as the worker knows it.

use std::time::{Duration, Instant};

use super::{backoff::Backoff, connection::Connection};

/// How long a connection must have lasted before its acknowledgements are trusted.
const TRUSTED_AFTER: Duration = Duration::from_millis(500);

/// How long a connection has to last after a part is acknowledged, for the part to count as sent
/// while a message is suspect: at least this, and at least as long as connecting took.
const LEAST_GRACE: Duration = Duration::from_millis(20);

/// The pause after a connection that the peer ended, if a suspect message was found by that.
const NEXT_STEP: Duration = Duration::from_millis(5);

/// A connection, open or not, and the state of connecting.
///
/// ```text
/// none ─ retry_at ─▶ connecting ─▶ open ─ 0.5 s ─▶ trusted ─┐
///  ▲                     │           │                      │
///  └── failed, back-off ─┴───────────┴── disconnected ──────┘
/// ```
pub(super) struct Link {
    pub(super) connection: Option<Connection>,
    opened_at: Option<Instant>,
    is_trusted: bool,
    /// Since when everything given to the connection is acknowledged.
    pub(super) quiet_since: Option<Instant>,
    grace: Duration,
    /// Connections get one part at a time.
    is_careful: bool,
    /// The peer has ended the connection before this one with messages on it, and none has been
    /// trusted since.
    has_ended_young: bool,
    /// The socket accepts nothing at the moment.
    pub(super) is_blocked: bool,
    /// So much is unacknowledged that nothing is written at the moment.
    pub(super) is_full: bool,
    /// When the connection ends at the latest, because the endpoint has a new address.
    pub(super) leave_at: Option<Instant>,
    pub(super) acknowledged: u64,
    written: u64,
    /// When the peer last made progress, or nothing was waiting.
    pub(super) progress_at: Instant,
    pub(super) checked_at: Instant,
    pub(super) retry_at: Instant,
    backoff: Backoff,
}

impl Link {
    pub(super) fn new(now: Instant) -> Link {
        Link {
            connection: None,
            opened_at: None,
            is_trusted: false,
            quiet_since: None,
            grace: LEAST_GRACE,
            is_careful: false,
            has_ended_young: false,
            is_blocked: false,
            is_full: false,
            leave_at: None,
            acknowledged: 0,
            written: 0,
            progress_at: now,
            checked_at: now,
            retry_at: now,
            backoff: Backoff::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.connection.as_ref().is_some_and(Connection::is_open)
    }

    /// Whether acknowledgements are trusted: the connection has lasted for a while.
    pub(super) fn is_trusted(&self) -> bool {
        self.is_trusted
    }

    /// Whether the peer reads more slowly than messages are written.
    pub(super) fn is_held_up(&self) -> bool {
        self.is_blocked || self.is_full
    }

    /// Whether connections get one part at a time, because the peer ends them at some message.
    pub(super) fn is_careful(&self) -> bool {
        self.is_careful
    }

    /// The peer has ended a connection that is not trusted, with messages on it. Returns whether
    /// that is the first in a row: it may be for any reason.
    pub(super) fn ended_young(&mut self) -> bool {
        !std::mem::replace(&mut self.has_ended_young, true)
    }

    pub(super) fn set_careful(&mut self, is_careful: bool) {
        self.is_careful = is_careful;
    }

    /// Whether the connection has lasted for a moment since everything on it was acknowledged.
    pub(super) fn has_survived(&self, now: Instant) -> bool {
        self.quiet_since.is_some_and(|since| now.saturating_duration_since(since) >= self.grace)
    }

    /// The connection is open from now on.
    pub(super) fn opened(&mut self, now: Instant) {
        self.opened_at = Some(now);
        let took = self.connection.as_ref().map_or(Duration::ZERO, |connection| connection.age(now));
        self.grace = took.clamp(LEAST_GRACE, TRUSTED_AFTER);
        self.progress_at = now;
    }

    /// Trusts a connection that has lasted long enough. Returns whether it has just become trusted.
    pub(super) fn update_trust(&mut self, now: Instant) -> bool {
        let lasts = self.opened_at.is_some_and(|at| now.duration_since(at) >= TRUSTED_AFTER);
        let is_new = !self.is_trusted && lasts;
        if is_new {
            self.is_trusted = true;
            self.has_ended_young = false;
            self.backoff.reset();
        }
        is_new
    }

    /// Reads the positions of an open connection. `is_waiting`: whether anything is unacknowledged.
    pub(super) fn update_progress(&mut self, is_waiting: bool, now: Instant) {
        let Some(connection) = self.connection.as_ref().filter(|connection| connection.is_open()) else { return };
        let acknowledged = connection.acknowledged();
        let written = connection.written();
        // Data that the worker has forgotten (see `forget_held_up`) is still for the peer to
        // acknowledge.
        let is_quiet = connection.pushed() <= acknowledged;
        let is_idle = !is_waiting && is_quiet;
        self.quiet_since = if is_quiet { self.quiet_since.or(Some(now)) } else { None };
        if is_idle || acknowledged > self.acknowledged || written > self.written {
            self.progress_at = now;
        }
        self.acknowledged = acknowledged;
        self.written = written;
    }

    /// Ends the connection cleanly, and returns whether there was one.
    pub(super) fn close(&mut self) {
        if let Some(mut connection) = self.take() {
            connection.finish();
        }
    }

    /// Takes the connection out; the link is as before connecting.
    pub(super) fn take(&mut self) -> Option<Connection> {
        self.opened_at = None;
        self.is_trusted = false;
        self.quiet_since = None;
        self.leave_at = None;
        self.is_blocked = false;
        self.is_full = false;
        self.acknowledged = 0;
        self.written = 0;
        self.connection.take()
    }

    /// Messages were sent: the next pause is short again.
    pub(super) fn sent(&mut self) {
        self.backoff.reset();
    }

    /// Reconnects at once.
    pub(super) fn retry_now(&mut self, now: Instant) {
        self.retry_at = now;
        self.backoff.reset();
    }

    /// Reconnects after a short pause, which is returned: the peer accepts connections, and ended
    /// this one. `is_step`: the search for a suspect message is one step further.
    pub(super) fn retry_soon(&mut self, is_step: bool, now: Instant) -> Duration {
        if is_step {
            self.backoff.reset();
        }
        let pause = if is_step { NEXT_STEP } else { self.backoff.pause_after_end() };
        self.retry_at = now + pause;
        pause
    }

    /// Reconnects after the next pause, which is returned.
    pub(super) fn retry_later(&mut self, now: Instant) -> Duration {
        let pause = self.backoff.pause();
        self.retry_at = now + pause;
        pause
    }
}
