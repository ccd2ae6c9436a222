//! How a member that is asked to stop leaves its group.

use std::time::{Duration, Instant};

use tracing::warn;

use super::GroupSubscriber;

/// How long a stopping member that owns all shards must have received nothing before it assumes
/// that the publishers are silent.
const QUIET: Duration = Duration::from_millis(200);

/// A member that is asked to stop. If it owns all shards, it first waits for silence, because no
/// other member would receive the last records, and captures that are stopped at the same time wait
/// for them to be handled. Then it releases its shards.
#[derive(Debug)]
pub struct Leaving {
    /// When something was last received.
    last_received: Instant,
    /// The wait for silence ends here at the latest: the rest of the time is for releasing the
    /// shards.
    quiet_until: Instant,
    /// Here the member ends, whether all shards are released or not.
    leave_until: Instant,
    has_begun: bool,
}

/// The activity of a leaving member since the last call of [`Leaving::advance`].
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// It has received records.
    pub received: bool,
    /// It cannot take more records for the moment.
    pub is_behind: bool,
    /// All hand-off state for the next owners has been put.
    pub is_put: bool,
}

impl Leaving {
    /// Begins to leave, with this deadline.
    pub fn until(now: Instant, deadline: Instant) -> Leaving {
        let left = deadline.saturating_duration_since(now);
        Leaving { last_received: now, quiet_until: now + left / 2, leave_until: now + left * 9 / 10, has_begun: false }
    }

    /// Whether the member has announced that it leaves. From then on it receives nothing new.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Takes the next step, and returns whether the member has left. To be called repeatedly, with
    /// [`GroupSubscriber::receive`] or [`GroupSubscriber::poll_control`] between the calls.
    pub fn advance(&mut self, subscriber: &mut GroupSubscriber, progress: Progress, now: Instant) -> bool {
        // While the member is behind or repairs gaps, receiving nothing does not mean silence.
        if progress.received || !self.has_begun && (progress.is_behind || !subscriber.is_caught_up()) {
            self.last_received = now;
        }
        let is_quiet = now.duration_since(self.last_received) >= QUIET || now >= self.quiet_until;
        let is_put = progress.is_put || now >= self.quiet_until;
        if !self.has_begun && is_put && (is_quiet || !subscriber.owns_all()) {
            self.has_begun = true;
            subscriber.leave();
        }
        if !self.has_begun {
            return false;
        }
        if subscriber.has_left() {
            return true;
        }
        // Without a lease there is no proxy to release the shards to. Records that were not
        // acknowledged are delivered to the next owners.
        let is_alone = is_quiet && !subscriber.has_lease();
        if is_alone || now >= self.leave_until {
            if subscriber.owns_any() {
                warn!("ending without releasing all shards, the group reassigns them when the lease expires");
            }
            return true;
        }
        false
    }
}
