//! How a member that is asked to stop leaves its group.

use std::time::{Duration, Instant};

use tracing::warn;

use crate::GroupSource;

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
    /// [`GroupSource::receive`] or [`GroupSource::poll_control`] between the calls.
    pub fn advance(&mut self, source: &mut dyn GroupSource, progress: Progress, now: Instant) -> bool {
        // While the member is behind or repairs gaps, receiving nothing does not mean silence.
        if progress.received || !self.has_begun && (progress.is_behind || !source.is_caught_up()) {
            self.last_received = now;
        }
        let is_quiet = now.duration_since(self.last_received) >= QUIET || now >= self.quiet_until;
        let is_put = progress.is_put || now >= self.quiet_until;
        if !self.has_begun && is_put && (is_quiet || !source.owns_all()) {
            self.has_begun = true;
            source.leave();
        }
        if !self.has_begun {
            return false;
        }
        if source.has_left() {
            return true;
        }
        // With nobody to release the shards to, waiting is useless. Records that were not
        // acknowledged are delivered to the next owners.
        let is_alone = is_quiet && !source.can_release();
        if is_alone || now >= self.leave_until {
            if source.owns_any() {
                warn!("ending without releasing all shards, the group reassigns them when the lease expires");
            }
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        GroupDelivery,
        group::memory::{MemoryMember, Owned},
    };

    const NOTHING: Progress = Progress { received: false, is_behind: false, is_put: true };
    const DEADLINE: Duration = Duration::from_secs(10);

    /// A member that leaves, by a clock of its own.
    struct Test {
        member: MemoryMember,
        start: Instant,
        leaving: Leaving,
    }

    impl Test {
        fn new(records: u32) -> Test {
            let start = Instant::now();
            Test { member: MemoryMember::new(records), start, leaving: Leaving::until(start, start + DEADLINE) }
        }

        /// Receives, and takes the next step at this time.
        fn step(&mut self, milliseconds: u64) -> (Option<GroupDelivery>, bool) {
            let delivery = self.member.receive(Duration::ZERO).unwrap();
            let progress = Progress { received: delivery.is_some(), ..NOTHING };
            let now = self.start + Duration::from_millis(milliseconds);
            let has_left = self.leaving.advance(&mut self.member, progress, now);
            (delivery, has_left)
        }

        /// Takes the next step at this time, with nothing to receive, and returns whether it has
        /// left.
        fn idle(&mut self, milliseconds: u64) -> bool {
            let (delivery, has_left) = self.step(milliseconds);
            assert!(delivery.is_none());
            has_left
        }
    }

    #[test]
    fn only_member_waits_for_silence_before_it_leaves() {
        let mut test = Test::new(1);
        drop(test.step(100));
        assert!(!test.idle(299) && !test.member.is_leaving, "silent for less than 200 ms");
        assert!(!test.idle(300) && test.member.is_leaving);
        assert!(test.idle(301) && test.member.position == 1);
    }

    #[test]
    fn member_beside_others_leaves_at_once() {
        let mut test = Test::new(0);
        test.member.owned = Owned::Some;
        assert!(!test.idle(0) && test.member.is_leaving);
        assert!(test.idle(1));
    }

    #[test]
    fn unacknowledged_records_are_waited_for_until_half_of_the_time() {
        let mut test = Test::new(2);
        let (first, _) = test.step(0);
        let (second, _) = test.step(1);
        assert!(!test.idle(4_000) && !test.member.is_leaving && test.member.has_outstanding());
        // Acknowledgements may arrive in another order.
        drop(second);
        assert!(!test.idle(4_100) && test.member.position == 0);
        drop(first);
        assert!(!test.idle(4_200) && test.member.position == 2 && !test.member.is_leaving);
        assert!(!test.idle(4_300) && test.member.is_leaving, "silent since 4.1 s");
        let mut test = Test::new(1);
        let (first, _) = test.step(0);
        first.unwrap().ack_token.abandon();
        assert!(!test.idle(4_999) && !test.member.is_leaving && test.member.position == 0);
        assert!(!test.idle(5_000) && test.member.is_leaving);
    }

    #[test]
    fn release_is_tried_until_the_deadline_while_it_may_succeed() {
        let mut test = Test::new(0);
        // As during an election.
        (test.member.has_lease, test.member.tries) = (false, None);
        assert!(!test.idle(200) && test.member.is_leaving);
        assert!(!test.idle(8_999));
        assert!(test.idle(9_000) && test.member.owns_any());
        let mut test = Test::new(0);
        test.member.tries = Some(3);
        assert!(!test.idle(200) && !test.idle(300) && !test.idle(400));
        assert!(test.idle(500) && !test.member.owns_any());
    }

    #[test]
    fn member_that_cannot_release_ends_after_the_silence() {
        let mut test = Test::new(1);
        test.member.can_release = false;
        drop(test.step(0));
        assert!(!test.idle(199));
        assert!(test.idle(200) && test.member.owns_any());
    }
}
