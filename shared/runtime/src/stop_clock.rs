//! The clock of a delivering thread: how long data has waited, not counting delays caused by this
//! process, and when a stopping thread leaves undelivered data to the group.
//!
//! ```text
//!   stop requested                      give up               deadline
//!        │◀──────── keep delivering ────────▶│◀──── margin ────────▶│
//! ```
//! The margin lets the thread end before the deadline. If there is little time, it is the last
//! quarter of it.

use std::time::{Duration, Instant};

/// A longer time than this between two observations means that the process was suspended or
/// starved. It is several times the longest pause of any thread that uses the clock.
const SUSPENDED_FOR: Duration = Duration::from_millis(500);

/// The clock described above. It reads no system clock: every method takes the current time.
#[derive(Debug)]
pub struct StopClock {
    margin: Duration,
    give_up_at: Option<Instant>,
    observed_at: Option<Instant>,
    resumed_at: Option<Instant>,
    left_to_group: u64,
}

impl StopClock {
    /// A clock that gives up `margin` before the deadline, but not before three quarters of the
    /// time to the deadline have passed.
    pub fn new(margin: Duration) -> StopClock {
        StopClock { margin, give_up_at: None, observed_at: None, resumed_at: None, left_to_group: 0 }
    }

    /// Detects that the process was suspended since the last observation. Call it at least once per
    /// pause of the thread.
    pub fn observe(&mut self, now: Instant) {
        if self.observed_at.is_some_and(|at| now.duration_since(at) >= SUSPENDED_FOR) {
            self.exclude_until(now);
        }
        self.observed_at = Some(now);
    }

    /// Excludes the time until `now` from all waiting times: nothing could be delivered, for
    /// reasons of this process's own (an expired lease, for example).
    pub fn exclude_until(&mut self, now: Instant) {
        self.resumed_at = Some(now);
    }

    /// The start of the wait of data queued at `queued_at`, moved forward by the excluded time.
    pub fn waiting_since(&self, queued_at: Instant) -> Instant {
        self.resumed_at.map_or(queued_at, |at| at.max(queued_at))
    }

    /// Whether the thread has to leave its undelivered data to the group. `deadline` is that of the
    /// role's stop, `None` while the role is running.
    pub fn is_over(&mut self, deadline: Option<Instant>, now: Instant) -> bool {
        let Some(deadline) = deadline else { return false };
        // Decided once: a quarter of the remaining time would change with every call.
        let give_up_at = *self.give_up_at.get_or_insert_with(|| {
            let left = deadline.saturating_duration_since(now);
            now + left - self.margin.min(left / 4)
        });
        give_up_at <= now
    }

    /// Counts datagrams that were given up and left to the group's next owner.
    pub fn leave_to_group(&mut self, datagrams: u64) {
        self.left_to_group += datagrams;
    }

    /// The number of datagrams left to the group.
    pub fn left_to_group(&self) -> u64 {
        self.left_to_group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARGIN: Duration = Duration::from_secs(2);

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn running_thread_never_gives_up() {
        let mut clock = StopClock::new(MARGIN);
        assert!(!clock.is_over(None, Instant::now() + Duration::from_secs(3600)));
    }

    #[test]
    fn gives_up_the_margin_before_the_deadline() {
        let start = Instant::now();
        let deadline = Some(start + Duration::from_secs(10));
        let mut clock = StopClock::new(MARGIN);
        assert!(!clock.is_over(deadline, start));
        assert!(!clock.is_over(deadline, start + ms(7_999)));
        assert!(clock.is_over(deadline, start + ms(8_000)));
    }

    #[test]
    fn margin_is_the_last_quarter_of_a_short_drain() {
        let start = Instant::now();
        let deadline = Some(start + ms(400));
        let mut clock = StopClock::new(MARGIN);
        assert!(!clock.is_over(deadline, start));
        assert!(!clock.is_over(deadline, start + ms(299)));
        assert!(clock.is_over(deadline, start + ms(300)), "not a quarter of the time remaining now");
    }

    #[test]
    fn passed_deadline_is_over_at_once() {
        let start = Instant::now();
        let mut clock = StopClock::new(MARGIN);
        assert!(clock.is_over(Some(start), start));
        assert!(StopClock::new(MARGIN).is_over(Some(start), start + ms(1)));
    }

    #[test]
    fn suspended_process_does_not_age_its_data() {
        let start = Instant::now();
        let mut clock = StopClock::new(MARGIN);
        clock.observe(start);
        clock.observe(start + ms(499));
        assert_eq!(clock.waiting_since(start), start, "an ordinary pause counts");
        clock.observe(start + ms(999));
        assert_eq!(clock.waiting_since(start), start + ms(999));
        let later = start + ms(1_200);
        assert_eq!(clock.waiting_since(later), later, "data queued afterwards is not older than it is");
    }

    #[test]
    fn excluded_time_does_not_move_the_end_of_the_drain() {
        let start = Instant::now();
        let deadline = Some(start + ms(400));
        let mut clock = StopClock::new(MARGIN);
        assert!(!clock.is_over(deadline, start));
        clock.exclude_until(start + ms(350));
        assert!(clock.is_over(deadline, start + ms(350)));
        clock.leave_to_group(3);
        clock.leave_to_group(4);
        assert_eq!(clock.left_to_group(), 7);
    }
}
