//! How long a new owner of a shard waits for the hand-off state of the previous owner. No clock:
//! the caller passes the time.

use std::time::{Duration, Instant};

/// The longest wait while no entries arrive.
const SILENT_WAIT: Duration = Duration::from_secs(1);

/// The longest wait while entries are arriving.
const ARRIVING_WAIT: Duration = Duration::from_secs(5);

/// Entries are arriving if the last one is not older than this.
const ARRIVAL_GAP: Duration = Duration::from_millis(300);

/// Tracks the arrival of hand-off entries.
#[derive(Clone, Copy, Debug, Default)]
pub struct HandoffWait {
    last_arrival: Option<Instant>,
}

impl HandoffWait {
    /// Entries that may be on their way to the coordinator at once: with more, the rest stays with
    /// its owner until some are acknowledged.
    pub const MAX_PENDING_ENTRIES: usize = 4096;

    /// Bytes of batches that may wait for hand-off state: beyond that nothing more is received.
    pub const MAX_HELD_BYTES: usize = 16 << 20;

    /// Records that an entry has arrived.
    pub fn entry_arrived(&mut self, now: Instant) {
        self.last_arrival = Some(now);
    }

    /// Whether entries are arriving.
    pub fn is_arriving(&self, now: Instant) -> bool {
        self.last_arrival.is_some_and(|at| now.duration_since(at) < ARRIVAL_GAP)
    }

    /// Whether a wait that began at `since` has lasted long enough, complete or not.
    pub fn is_over(&self, since: Instant, now: Instant) -> bool {
        let waited = now.duration_since(since);
        waited >= ARRIVING_WAIT || waited >= SILENT_WAIT && !self.is_arriving(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_is_longer_while_entries_arrive() {
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut wait = HandoffWait::default();
        assert!(!wait.is_over(start, after(999)));
        assert!(wait.is_over(start, after(1_000)));
        wait.entry_arrived(after(900));
        assert!(wait.is_arriving(after(1_199)) && !wait.is_over(start, after(1_199)));
        assert!(!wait.is_arriving(after(1_200)) && wait.is_over(start, after(1_200)));
        wait.entry_arrived(after(4_999));
        assert!(wait.is_over(start, after(5_000)), "the longest wait is over even while entries arrive");
    }
}
