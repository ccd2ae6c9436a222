//! The clock of the control plane, and how long to poll by it.

use std::time::Duration;

use sekiwake_group::BootTime;

/// See [`wait_until`].
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

/// The time on the clock of leases, CLOCK_BOOTTIME, which also runs while the process is stopped or
/// the host is suspended.
#[inline]
pub fn boot_now() -> BootTime {
    BootTime::from_nanos(sekiwake_sys::clock::boot_now_ns())
}

/// How long to wait until `deadline`: at most `limit`, and at least a millisecond, because a wait
/// of 0 would spin.
pub(crate) fn wait_until(now: BootTime, deadline: BootTime, limit: Duration) -> Duration {
    (deadline - now).min(limit).max(SHORTEST_WAIT)
}
