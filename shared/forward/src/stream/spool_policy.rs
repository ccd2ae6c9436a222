//! The spool of a stream worker, if it has one, and when waiting messages go into it.

use std::time::{Duration, Instant};

use sekiwake_runtime::RateLimited;
use sekiwake_segments::LogError;
use tracing::warn;

use super::{
    StreamError,
    spooling::{Opening, Spool},
};

/// Messages that have waited for this long go into the spool. Once that has begun, they go there in
/// groups at shorter intervals, because each group costs a sync.
const SPOOL_AFTER: Duration = Duration::from_millis(500);
const SPOOL_EVERY: Duration = Duration::from_millis(50);

/// A queue of this size goes into the spool, before the queue is full, and before the group pauses
/// for it.
const SPOOL_BYTES: i64 = 12 * 1024 * 1024;

/// How often a locked spool is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Decides when waiting messages go into the spool, and opens the spool.
pub(super) struct SpoolPolicy {
    label: String,
    spool: Option<Spool>,
    /// A spool that the worker before this one has not closed yet.
    locked: Option<Opening>,
    retry_at: Instant,
    failed_log: RateLimited,
    /// Messages are going into the spool: the next ones follow soon.
    is_spooling: bool,
}

/// The facts that decide whether waiting messages go into the spool.
pub(super) struct Backlog {
    /// How long the oldest message has waited.
    pub(super) waited: Duration,
    pub(super) queue_bytes: i64,
    pub(super) is_connected: bool,
    /// The peer reads too slowly.
    pub(super) is_held_up: bool,
    /// The queue is closed.
    pub(super) is_ending: bool,
    /// The drain deadline is reached.
    pub(super) is_over: bool,
}

impl SpoolPolicy {
    /// Opens the spool, if there is an `opening`.
    pub(super) fn new(label: &str, opening: Option<Opening>, now: Instant) -> Result<SpoolPolicy, StreamError> {
        let mut policy = SpoolPolicy {
            label: label.to_owned(),
            spool: None,
            locked: None,
            retry_at: now + RETRY_EVERY,
            failed_log: RateLimited::default(),
            is_spooling: false,
        };
        if let Some(opening) = opening {
            match opening.open(label, now) {
                Ok(spool) => policy.spool = Some(spool),
                // The worker that this one replaces still has it.
                Err(LogError::Locked(_)) => policy.locked = Some(opening),
                Err(source) => return Err(StreamError::Spool { dir: opening.settings.dir, source }),
            }
        }
        Ok(policy)
    }

    /// Opens a locked spool, when it is time to try again.
    pub(super) fn open_locked(&mut self, now: Instant) {
        let Some(opening) = self.locked.as_ref().filter(|_| self.retry_at <= now) else { return };
        self.retry_at = now + RETRY_EVERY;
        match opening.open(&self.label, now) {
            Ok(spool) => {
                self.spool = Some(spool);
                self.locked = None;
            }
            Err(error) => {
                opening.count_failure(&error);
                if let Some(suppressed) = self.failed_log.allow(now) {
                    warn!(destination = self.label, %error, suppressed, "spool cannot be opened yet");
                }
            }
        }
    }

    pub(super) fn spool(&self) -> Option<&Spool> {
        self.spool.as_ref()
    }

    pub(super) fn spool_mut(&mut self) -> Option<&mut Spool> {
        self.spool.as_mut()
    }

    /// The spool, if the disk has not failed lately.
    pub(super) fn usable(&mut self, now: Instant) -> Option<&mut Spool> {
        self.spool.as_mut().and_then(|spool| spool.is_usable(now).then_some(spool))
    }

    /// Whether the oldest waiting messages go into the spool now. `None`: nothing is waiting.
    pub(super) fn is_due(&mut self, backlog: Option<&Backlog>, is_sending: bool) -> bool {
        if is_sending {
            self.is_spooling = false;
        }
        let Some(backlog) = backlog else { return false };
        let limit = if self.is_spooling { SPOOL_EVERY } else { SPOOL_AFTER };
        let is_filling_up = backlog.queue_bytes >= SPOOL_BYTES && (!backlog.is_connected || backlog.is_held_up);
        let is_ending_unconnected = backlog.is_ending && !backlog.is_connected;
        backlog.waited >= limit || backlog.is_over || is_ending_unconnected || is_filling_up
    }

    /// Messages went into the spool.
    pub(super) fn spooled(&mut self) {
        self.is_spooling = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> SpoolPolicy {
        SpoolPolicy::new("tcp://198.51.100.7:514", None, Instant::now()).unwrap()
    }

    fn backlog(waited_ms: u64) -> Backlog {
        Backlog {
            waited: Duration::from_millis(waited_ms),
            queue_bytes: 0,
            is_connected: false,
            is_held_up: false,
            is_ending: false,
            is_over: false,
        }
    }

    #[test]
    fn messages_go_into_the_spool_after_half_a_second_then_sooner() {
        let mut policy = policy();
        assert!(!policy.is_due(None, false));
        assert!(!policy.is_due(Some(&backlog(499)), false));
        assert!(policy.is_due(Some(&backlog(500)), false));
        policy.spooled();
        assert!(!policy.is_due(Some(&backlog(49)), false));
        assert!(policy.is_due(Some(&backlog(50)), false));
        assert!(!policy.is_due(Some(&backlog(50)), true), "a peer that reads ends spooling");
    }

    #[test]
    fn stop_and_a_large_queue_spool_at_once() {
        let mut policy = policy();
        assert!(policy.is_due(Some(&Backlog { is_over: true, ..backlog(0) }), false));
        assert!(policy.is_due(Some(&Backlog { is_ending: true, ..backlog(0) }), false));
        let connected = Backlog { is_connected: true, ..backlog(0) };
        assert!(!policy.is_due(Some(&Backlog { is_ending: true, ..connected }), true));
        let large = Backlog { queue_bytes: SPOOL_BYTES, is_connected: true, ..backlog(0) };
        assert!(!policy.is_due(Some(&large), true), "the peer keeps reading");
        assert!(policy.is_due(Some(&Backlog { is_held_up: true, ..large }), false));
        assert!(policy.is_due(Some(&Backlog { is_connected: false, ..large }), false));
    }
}
