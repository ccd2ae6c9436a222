//! When to reconnect: soon at first, then with growing pauses, and with jitter, so that the
//! forwarders of a site do not reconnect at the same moment. While connecting succeeds, the pauses
//! stay short. Own code, because it is a few lines.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);
const LONGEST_AFTER_END: Duration = Duration::from_secs(1);

/// Pauses between attempts to connect: 0.2 s, doubling to 30 s; half of each is random.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        // The random keys of a hash map are good enough for jitter.
        Backoff::seeded(RandomState::new().build_hasher().finish())
    }

    fn seeded(seed: u64) -> Backoff {
        Backoff { next: FIRST, random: seed | 1 }
    }

    /// How long to wait after another failure.
    pub(crate) fn pause(&mut self) -> Duration {
        self.pause_at_most(LONGEST)
    }

    /// How long to wait after the peer has ended a connection: not long, because it accepts others.
    pub(crate) fn pause_after_end(&mut self) -> Duration {
        self.pause_at_most(LONGEST_AFTER_END)
    }

    fn pause_at_most(&mut self, longest: Duration) -> Duration {
        let pause = self.next.min(longest);
        self.next = (pause * 2).min(longest);
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let fraction = (self.random >> 11) as f64 / (1u64 << 53) as f64;
        pause / 2 + (pause / 2).mul_f64(fraction)
    }

    /// A connection has lasted: the next pause is short again.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_short_while_connecting_succeeds() {
        let mut backoff = Backoff::seeded(4711);
        for _ in 0..40 {
            assert!(backoff.pause_after_end() <= LONGEST_AFTER_END);
        }
        assert!(backoff.pause() <= LONGEST_AFTER_END, "the first failure after that");
        for _ in 0..40 {
            backoff.pause();
        }
        assert!(backoff.pause_after_end() <= LONGEST_AFTER_END, "after an outage");
    }

    #[test]
    fn pauses_double_to_thirty_seconds_with_jitter() {
        let mut backoff = Backoff::seeded(4711);
        let mut longest = FIRST;
        for _ in 0..40 {
            let pause = backoff.pause();
            assert!(pause >= longest / 2 && pause <= longest, "{pause:?} of {longest:?}");
            longest = (longest * 2).min(LONGEST);
        }
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
        let pauses: Vec<Duration> =
            (1..9).map(|seed: u64| Backoff::seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)).pause()).collect();
        assert!(pauses.iter().max().unwrap().saturating_sub(*pauses.iter().min().unwrap()) > FIRST / 8, "{pauses:?}");
    }
}
