//! Times of the wall clock.

use std::{
    ops::{Add, Sub},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A time of the wall clock, in which capture times are given: nanoseconds since
/// 1970-01-01T00:00:00Z, until the year 2554. Sums and differences saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WallTime(u64);

impl WallTime {
    /// 1970-01-01T00:00:00Z, which also stands for a time that is not known.
    pub const EPOCH: WallTime = WallTime(0);
    /// The latest time.
    pub const MAX: WallTime = WallTime(u64::MAX);

    /// The time this many nanoseconds after 1970-01-01T00:00:00Z.
    pub const fn from_nanos(nanos: u64) -> WallTime {
        WallTime(nanos)
    }

    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1e9
    }

    /// The distance of two times, whichever is earlier.
    pub fn abs_diff(self, other: WallTime) -> Duration {
        Duration::from_nanos(self.0.abs_diff(other.0))
    }
}

impl Add<Duration> for WallTime {
    type Output = WallTime;

    fn add(self, duration: Duration) -> WallTime {
        WallTime(self.0.saturating_add(nanos(duration)))
    }
}

impl Sub<Duration> for WallTime {
    type Output = WallTime;

    fn sub(self, duration: Duration) -> WallTime {
        WallTime(self.0.saturating_sub(nanos(duration)))
    }
}

impl Sub for WallTime {
    type Output = Duration;

    /// Zero if the other time is the later one.
    fn sub(self, earlier: WallTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A duration in nanoseconds; 584 years at most.
fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
