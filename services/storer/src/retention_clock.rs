//! The time by which files are deleted: the wall clock, without its steps forward.
//!
//! A wrong clock must not cost files. A step forward therefore counts once it has lasted a day;
//! until then time goes on from before the step. A step back counts at once: it deletes less.

use std::time::Duration;

use sekiwake_record::WallTime;

/// How long a step forward is not believed.
const DISBELIEF: Duration = Duration::from_secs(24 * 3600);

/// The largest difference between two rounds that is not a step.
const TOLERANCE: Duration = Duration::from_secs(60);

/// Follows two clocks: the wall clock, and the time since boot.
#[derive(Debug, Default)]
pub(crate) struct RetentionClock {
    /// When the wall clock was believed last.
    believed: Option<Reading>,
    /// When the step forward was found, since boot.
    stepped_at: Option<Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    wall: WallTime,
    since_boot: Duration,
}

impl RetentionClock {
    /// The time for retention. To be called at least every few minutes. The first call believes the
    /// wall clock.
    pub(crate) fn now(&mut self, wall: WallTime, since_boot: Duration) -> WallTime {
        let Some(believed) = self.believed else { return self.believe(wall, since_boot) };
        let expected = believed.wall + since_boot.saturating_sub(believed.since_boot);
        if wall <= expected + TOLERANCE {
            return self.believe(wall, since_boot);
        }
        let stepped_at = *self.stepped_at.get_or_insert(since_boot);
        if since_boot.saturating_sub(stepped_at) >= DISBELIEF {
            return self.believe(wall, since_boot);
        }
        expected
    }

    fn believe(&mut self, wall: WallTime, since_boot: Duration) -> WallTime {
        self.believed = Some(Reading { wall, since_boot });
        self.stepped_at = None;
        wall
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(number: u64) -> Duration {
        Duration::from_secs(number * 3600)
    }

    fn wall(hour: u64) -> WallTime {
        WallTime::from_nanos(0) + hours(500_000 + hour)
    }

    #[test]
    fn step_forward_counts_once_it_has_lasted_a_day() {
        let mut clock = RetentionClock::default();
        assert_eq!(clock.now(wall(0), hours(7)), wall(0));
        assert_eq!(clock.now(wall(1), hours(8)), wall(1));
        for hour in 2..26 {
            assert_eq!(clock.now(wall(24 + hour), hours(7 + hour)), wall(hour));
        }
        assert_eq!(clock.now(wall(50), hours(33)), wall(50));
        assert_eq!(clock.now(wall(51), hours(34)), wall(51));
    }

    #[test]
    fn step_forward_and_back_changes_nothing() {
        let mut clock = RetentionClock::default();
        clock.now(wall(0), hours(1));
        assert_eq!(clock.now(wall(25), hours(2)), wall(1));
        assert_eq!(clock.now(wall(2), hours(3)), wall(2));
        // The next one is not believed either.
        assert_eq!(clock.now(wall(29), hours(6)), wall(5));
    }

    #[test]
    fn step_back_counts_at_once() {
        let mut clock = RetentionClock::default();
        clock.now(wall(24), hours(1));
        assert_eq!(clock.now(wall(0), hours(2)), wall(0));
        assert_eq!(clock.now(wall(25), hours(2)), wall(0));
    }
}
