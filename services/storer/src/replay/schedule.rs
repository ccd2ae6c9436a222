//! When each datagram is due. No clock: every method takes the time.

use std::time::{Duration, Instant};

use sekiwake_record::WallTime;

/// A later datagram than this counts as late.
pub(super) const LATE_AFTER: Duration = Duration::from_millis(100);

/// What is later than this is not caught up with: the rest is sent that much later.
const CATCH_UP: Duration = Duration::from_secs(1);

/// How fast to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pace {
    /// With the recorded spacing divided by this.
    Speed(f64),
    /// This many datagrams per second, evenly spaced.
    Rate(f64),
    /// As fast as the destinations take them.
    Fastest,
}

/// The times of datagrams, in order.
#[derive(Debug)]
pub(super) struct Schedule {
    pace: Pace,
    /// When the first one was due, later by all delays.
    origin: Option<Origin>,
    /// Datagrams that were taken.
    taken: u64,
    delayed: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Origin {
    at: Instant,
    captured_at: WallTime,
}

impl Schedule {
    pub(super) fn new(pace: Pace) -> Schedule {
        Schedule { pace, origin: None, taken: 0, delayed: Duration::ZERO }
    }

    /// When the next datagram is due, which was captured at this time. The first one is due now.
    pub(super) fn due(&mut self, captured_at: WallTime, now: Instant) -> Instant {
        let Origin { at, captured_at: first } = *self.origin.get_or_insert(Origin { at: now, captured_at });
        let after = match self.pace {
            Pace::Speed(speed) => (captured_at - first).div_f64(speed),
            Pace::Rate(rate) => Duration::try_from_secs_f64(self.taken as f64 / rate).unwrap_or(Duration::MAX),
            Pace::Fastest => return now,
        };
        at.checked_add(after).unwrap_or(now + Duration::from_secs(365 * 86_400))
    }

    /// The next datagram is sent, which was due at `due`. Returns whether it is late.
    pub(super) fn take(&mut self, due: Instant, now: Instant) -> bool {
        self.taken += 1;
        let late = now.saturating_duration_since(due);
        if late >= CATCH_UP
            && let Some(origin) = &mut self.origin
        {
            origin.at += late;
            self.delayed += late;
        }
        late >= LATE_AFTER
    }

    /// How much later than planned the rest is sent.
    pub(super) fn delayed(&self) -> Duration {
        self.delayed
    }
}

/// How long a number of datagrams takes, captured within `span`.
pub(super) fn planned(pace: Pace, datagrams: u64, span: Duration) -> Option<Duration> {
    match pace {
        Pace::Speed(speed) => Some(span.div_f64(speed)),
        Pace::Rate(rate) => Duration::try_from_secs_f64(datagrams.saturating_sub(1) as f64 / rate).ok(),
        Pace::Fastest => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn captured(milliseconds: u64) -> WallTime {
        WallTime::from_nanos(1_795_615_200_000_000_000 + milliseconds * 1_000_000)
    }

    #[test]
    fn spacing_is_the_recorded_one_divided_by_the_speed() {
        let now = Instant::now();
        for (speed, after) in [(1.0, 500), (10.0, 50), (0.5, 1000)] {
            let mut schedule = Schedule::new(Pace::Speed(speed));
            assert_eq!(schedule.due(captured(0), now), now);
            assert!(!schedule.take(now, now));
            assert_eq!(schedule.due(captured(500), now), now + Duration::from_millis(after));
        }
    }

    #[test]
    fn rate_spaces_evenly_whatever_was_recorded() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Pace::Rate(1000.0));
        for number in 0..3 {
            let due = schedule.due(captured(0), now);
            assert_eq!(due, now + Duration::from_millis(number));
            schedule.take(due, due);
        }
    }

    #[test]
    fn long_delay_moves_the_rest_and_a_short_one_is_caught_up_with() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Pace::Speed(1.0));
        let first = schedule.due(captured(0), now);
        assert!(schedule.take(first, now + Duration::from_millis(200)), "late");
        assert_eq!(schedule.due(captured(300), now), now + Duration::from_millis(300));
        let second = schedule.due(captured(300), now);
        assert!(schedule.take(second, second + Duration::from_secs(60)));
        assert_eq!(schedule.delayed(), Duration::from_secs(60));
        assert_eq!(schedule.due(captured(400), now), now + Duration::from_millis(60_400));
    }

    #[test]
    fn distant_times_do_not_overflow() {
        let now = Instant::now();
        let mut schedule = Schedule::new(Pace::Speed(0.001));
        schedule.due(WallTime::EPOCH, now);
        assert!(schedule.due(WallTime::MAX, now) > now + Duration::from_secs(86_400));
    }
}
