//! The two clocks of the project, read in one place.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::time::{ClockId, clock_gettime};

/// The wall clock (CLOCK_REALTIME): nanoseconds since 1970-01-01T00:00:00Z, the clock of capture
/// times. It may step in either direction. 0 if the clock is set before 1970.
#[inline]
pub fn wall_now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // 64 bits of nanoseconds last until the year 2554.
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Time since boot (CLOCK_BOOTTIME), nanoseconds: the clock of leases. It never steps, and it keeps
/// running while the process, or the whole machine, is suspended.
#[inline]
pub fn boot_now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
