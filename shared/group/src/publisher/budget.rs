//! The token bucket that repairs are sent from.

use std::time::Duration;

use crate::BootTime;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// Bytes that may be retransmitted. A batch may overdraw it, and the debt is paid before the next.
#[derive(Debug)]
pub(crate) struct RepairBudget {
    bytes_per_second: u64,
    /// Negative while it is overdrawn.
    allowance: i64,
    /// When the allowance was computed.
    refilled_at: BootTime,
}

impl RepairBudget {
    pub(crate) fn new(bytes_per_second: u64, now: BootTime) -> RepairBudget {
        let bytes_per_second = bytes_per_second.max(1);
        RepairBudget { bytes_per_second, allowance: burst(bytes_per_second), refilled_at: now }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.allowance > 0
    }

    pub(crate) fn spend(&mut self, bytes: u64) {
        self.allowance -= bytes as i64;
    }

    /// Takes back what was spent and not used.
    pub(crate) fn refund(&mut self, bytes: u64) {
        self.allowance = (self.allowance + bytes as i64).min(burst(self.bytes_per_second));
    }

    /// When there is room again; in the past if there is.
    pub(crate) fn next_room(&self) -> BootTime {
        if self.has_room() {
            return self.refilled_at;
        }
        // Until the debt is paid and one byte more, but at least a millisecond.
        let owed = u128::from(self.allowance.unsigned_abs() + 1);
        self.refilled_at + self.time_for(owed).clamp(Duration::from_millis(1), Duration::from_secs(1))
    }

    pub(crate) fn refill(&mut self, now: BootTime) {
        let most = burst(self.bytes_per_second);
        let elapsed = now - self.refilled_at;
        let earned = u128::from(self.bytes_per_second) * elapsed.as_nanos() / NANOS_PER_SECOND;
        let room = most.abs_diff(self.allowance.min(most));
        if earned >= u128::from(room) {
            self.allowance = most;
            self.refilled_at = now;
            return;
        }
        // The time for less than a whole byte counts next time, so that even a low rate is kept.
        self.allowance += earned as i64;
        self.refilled_at += self.time_for(earned);
    }

    /// How long it takes until this many bytes may be sent, rounded up.
    fn time_for(&self, bytes: u128) -> Duration {
        let nanos = (bytes * NANOS_PER_SECOND).div_ceil(u128::from(self.bytes_per_second));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Maximum bytes that may be sent in one burst: a tenth of a second.
fn burst(bytes_per_second: u64) -> i64 {
    i64::try_from(bytes_per_second / 10).unwrap_or(i64::MAX).max(1)
}
