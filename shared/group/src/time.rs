//! Times of the monotonic clock.

use std::{
    ops::{Add, AddAssign, Sub},
    time::Duration,
};

/// A millisecond, for tests to multiply.
#[cfg(test)]
pub(crate) const MILLISECOND: Duration = Duration::from_millis(1);
/// A second, for tests to multiply.
#[cfg(test)]
pub(crate) const SECOND: Duration = Duration::from_secs(1);

/// A time of a host's CLOCK_BOOTTIME, which also runs while the host is suspended, in nanoseconds.
/// Never compared with another host's.
///
/// Sums saturate, so that [`BootTime::NEVER`] plus any duration is still never, and the difference
/// of a time and a later one is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BootTime(u64);

impl BootTime {
    /// The boot itself.
    pub const ZERO: BootTime = BootTime(0);
    /// The deadline of a machine that has nothing to do.
    pub const NEVER: BootTime = BootTime(u64::MAX);

    /// The time this many nanoseconds after the boot.
    pub const fn from_nanos(nanos: u64) -> BootTime {
        BootTime(nanos)
    }

    /// Nanoseconds since the boot.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for BootTime {
    type Output = BootTime;

    fn add(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for BootTime {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for BootTime {
    type Output = BootTime;

    fn sub(self, duration: Duration) -> BootTime {
        BootTime(self.0.saturating_sub(nanos(duration)))
    }
}

impl Sub for BootTime {
    type Output = Duration;

    fn sub(self, earlier: BootTime) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// A duration in nanoseconds; 584 years at most.
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
