//! How a member that has been told to stop leaves its group.

use std::time::{Duration, Instant};

use tracing::warn;

use crate::GroupSubscriber;

/// How long nothing must have come before a member that has its group to itself, and is told to stop, believes that nothing
/// more comes.
const QUIET: Duration = Duration::from_millis(200);

/// A member that has been told to stop. One that has the group to itself first takes what still comes: nobody else would, and
/// captures that were told to stop at the same time wait for it. Then it gives its shards back.
#[derive(Debug)]
pub struct Leaving {
    /// When something came last.
    last: Instant,
    /// Silence is waited for no longer than until then: the rest of the time is for giving the shards back.
    quiet_until: Instant,
    /// What is under way is waited for until then.
    leave_until: Instant,
    has_begun: bool,
}

/// What a member that leaves has seen of itself since it was last asked.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Something came.
    pub received: bool,
    /// It has more to do than it takes on.
    pub is_behind: bool,
    /// All that it has to leave behind for the next owners has been left.
    pub is_noted: bool,
}

impl Leaving {
    /// Begins, with so much time.
    pub fn until(now: Instant, deadline: Instant) -> Leaving {
        let left = deadline.saturating_duration_since(now);
        Leaving { last: now, quiet_until: now + left / 2, leave_until: now + left * 9 / 10, has_begun: false }
    }

    /// Whether the member has said that it leaves: from then on it is given nothing new.
    pub fn has_begun(&self) -> bool {
        self.has_begun
    }

    /// Goes on, and says when that is done. To be called again and again, with [`GroupSubscriber::receive`] or
    /// [`GroupSubscriber::tend`] between the calls.
    pub fn go_on(&mut self, subscriber: &mut GroupSubscriber, progress: Progress, now: Instant) -> bool {
        // Silence of our own making is none: work that is not done, holes that are being repaired.
        if progress.received || !self.has_begun && (progress.is_behind || !subscriber.is_caught_up()) {
            self.last = now;
        }
        let quiet = now.duration_since(self.last) >= QUIET || now >= self.quiet_until;
        let is_noted = progress.is_noted || now >= self.quiet_until;
        if !self.has_begun && is_noted && (quiet || !subscriber.owns_all()) {
            self.has_begun = true;
            subscriber.leave();
        }
        if !self.has_begun {
            return false;
        }
        if subscriber.has_left() {
            return true;
        }
        // Without a proxy there is nobody to give anything back to; what was not committed is given to others again.
        let alone = quiet && !subscriber.has_lease();
        if alone || now >= self.leave_until {
            warn!("ending without having given all shards back: the group takes them when the lease runs out");
            return true;
        }
        false
    }
}
