//! How long to wait before another try.

use std::time::Duration;

use super::Patience;

/// The pause after so many tries, from 1: doubled each time, bounded, and anything below that (full jitter), so that those who failed together
/// do not come back together. `random` is any number.
pub(super) fn pause(patience: &Patience, tries: u32, random: u64) -> Duration {
    let doubled = patience.first_pause.saturating_mul(1 << tries.saturating_sub(1).min(16));
    let most = doubled.min(patience.longest_pause).max(Duration::from_millis(1));
    // Not less than a tenth: nobody is to be tried in a loop.
    let least = most / 10;
    let span = u64::try_from((most - least).as_nanos()).unwrap_or(u64::MAX).max(1);
    least + Duration::from_nanos(random % span)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_have_bounds() {
        let patience = Patience::default();
        for tries in [1, 2, 5, 20, u32::MAX] {
            let most = Duration::from_secs(1 << (tries - 1).min(6)).min(Duration::from_secs(60));
            for random in [0, 1, 12_345_678_901, u64::MAX] {
                let pause = pause(&patience, tries, random);
                assert!(pause >= most / 10 && pause <= most, "{tries} {random}: {pause:?}");
            }
        }
    }
}
