//! Schedules datagrams by the clock, in bursts of a millisecond unless they are limited further.
//! After a delay it catches up at most `CATCH_UP`.

use std::{num::NonZeroU64, time::Duration};

/// By default, a burst is at most the datagrams of this time, or one datagram.
const BURST: Duration = Duration::from_millis(1);

/// Datagrams that are later than this are skipped: the schedule moves on instead.
const CATCH_UP: Duration = Duration::from_millis(20);

/// The next step of the schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Send this many, at least one.
    Now(u64),
    /// Nothing is due; ask again after this time.
    After(Duration),
}

/// A schedule of evenly spread datagrams. Times count from its start.
#[derive(Clone, Debug)]
pub struct Pacer {
    /// Datagrams per second; 0 is as fast as possible.
    rate: u64,
    /// Start of the schedule. It moves forward when datagrams are skipped.
    origin: Duration,
    sent: u64,
    /// The largest number of datagrams sent at once.
    burst: u64,
}

impl Pacer {
    /// A schedule of `rate` datagrams per second; 0 is as fast as possible.
    pub fn new(rate: u64) -> Pacer {
        let mut pacer = Pacer { rate, origin: Duration::ZERO, sent: 0, burst: 1 };
        pacer.burst = pacer.within(BURST).max(1);
        pacer
    }

    /// Limits the number of datagrams that are sent at once.
    #[must_use]
    pub fn with_burst(self, limit: NonZeroU64) -> Pacer {
        Pacer { burst: limit.get().min(self.burst), ..self }
    }

    /// The datagrams due at `now`.
    pub fn due(&mut self, now: Duration) -> Due {
        if self.rate == 0 {
            return Due::Now(u64::MAX);
        }
        // The first datagram is due at once, so the n-th is due n-1 intervals after the origin.
        let scheduled = self.within(now.saturating_sub(self.origin)) + 1;
        let late = scheduled.saturating_sub(self.sent);
        if late == 0 {
            return Due::After(self.time_of(self.sent).saturating_sub(now.saturating_sub(self.origin)).min(BURST_WAIT));
        }
        let excess = late.saturating_sub(self.within(CATCH_UP).max(1));
        self.origin += self.time_of(excess);
        let burst = self.burst;
        if late < burst && burst > 1 {
            // Wait for a whole burst, because a wake-up costs more than a datagram.
            return Due::After(self.time_of(burst - late).min(BURST));
        }
        Due::Now((late - excess).min(burst))
    }

    /// Records that `count` datagrams were sent.
    pub fn sent(&mut self, count: u64) {
        self.sent += count;
    }

    /// The number of intervals in `time`.
    fn within(&self, time: Duration) -> u64 {
        u64::try_from(time.as_nanos() * u128::from(self.rate) / 1_000_000_000).unwrap_or(u64::MAX)
    }

    /// The length of `count` intervals, rounded up.
    fn time_of(&self, count: u64) -> Duration {
        let nanoseconds = (u128::from(count) * 1_000_000_000).div_ceil(u128::from(self.rate));
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }
}

/// The longest wait, so that a stop is noticed.
const BURST_WAIT: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a schedule for `length` on a clock that overshoots each wait by `overshoot`. Returns
    /// the number of datagrams and the largest burst.
    fn run(mut pacer: Pacer, length: Duration, overshoot: Duration) -> (u64, u64) {
        let mut now = Duration::ZERO;
        let mut sent = 0;
        let mut largest = 0;
        while now < length {
            match pacer.due(now) {
                Due::Now(count) => {
                    pacer.sent(count);
                    sent += count;
                    largest = largest.max(count);
                }
                Due::After(wait) => {
                    assert!(!wait.is_zero());
                    now += wait + overshoot;
                }
            }
        }
        (sent, largest)
    }

    #[test]
    fn rate_is_kept_in_bursts_of_a_millisecond() {
        for rate in [1, 7, 999, 1000, 1001, 50_000, 400_000] {
            let (sent, largest) = run(Pacer::new(rate), Duration::from_secs(10), Duration::from_micros(60));
            let burst = (rate / 1000).max(1);
            assert!(sent.abs_diff(rate * 10) <= burst + 1, "{rate}: {sent}");
            assert!(largest <= burst, "{rate}: {largest}");
        }
    }

    #[test]
    fn limited_bursts_keep_the_rate() {
        for rate in [1, 1_000, 5_000, 20_000] {
            let pacer = Pacer::new(rate).with_burst(NonZeroU64::MIN);
            let (sent, largest) = run(pacer, Duration::from_secs(10), Duration::from_micros(60));
            assert!(sent.abs_diff(rate * 10) <= rate / 1_000 + 2, "{rate}: {sent}");
            assert_eq!(largest, 1);
        }
    }

    #[test]
    fn long_stall_is_not_caught_up() {
        let mut pacer = Pacer::new(100_000);
        assert_eq!(pacer.due(Duration::from_secs(1)), Due::Now(100));
        let mut late = 100;
        pacer.sent(100);
        while let Due::Now(count) = pacer.due(Duration::from_secs(1)) {
            pacer.sent(count);
            late += count;
        }
        assert!((1_900..=2_100).contains(&late), "{late}");
    }
}
