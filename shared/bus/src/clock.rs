//! The clock of the control plane, and how long to poll by it.

use std::time::Duration;

use sekiwake_group::BootTime;

use crate::socket::milliseconds;

/// The time on the clock of leases, CLOCK_BOOTTIME, which also runs while the process is stopped or
/// the host is suspended.
#[inline]
pub fn boot_now() -> BootTime {
    BootTime::from_nanos(sekiwake_sys::clock::boot_now_ns())
}

/// Milliseconds until `deadline`, at most `limit` and at least 1, because 0 would make a poll spin.
pub(crate) fn poll_timeout(now: BootTime, deadline: BootTime, limit: Duration) -> i64 {
    i64::from(milliseconds((deadline - now).min(limit))).max(1)
}
