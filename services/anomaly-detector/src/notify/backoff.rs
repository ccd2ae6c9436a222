//! Back-off between delivery attempts.

use std::time::Duration;

use super::Timing;

/// The pause after this many attempts, from 1: doubled each time up to a limit, with full jitter,
/// so that clients that failed together do not retry together. `random` is any number.
pub(super) fn pause(timing: &Timing, attempts: u32, random: u64) -> Duration {
    let doubled = timing.first_pause.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    let most = doubled.min(timing.longest_pause).max(Duration::from_millis(1));
    // At least a tenth, so that attempts never form a busy loop.
    let least = most / 10;
    let span = u64::try_from((most - least).as_nanos()).unwrap_or(u64::MAX).max(1);
    least + Duration::from_nanos(random % span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_within_bounds() {
        let timing = Timing::default();
        for attempts in [1, 2, 5, 20, u32::MAX] {
            let most = Duration::from_secs(1 << (attempts - 1).min(6)).min(Duration::from_secs(60));
            for random in [0, 1, 12_345_678_901, u64::MAX] {
                let pause = pause(&timing, attempts, random);
                assert!(pause >= most / 10 && pause <= most, "{attempts} {random}: {pause:?}");
            }
        }
    }
}
