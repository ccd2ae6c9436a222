//! When to try again: soon at first, then ever more slowly, and not all forwarders of a site in the same moment.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);

/// The pauses between the tries to connect: 0.2 s, doubling up to 30 s; half of each is left to chance.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    random: u64,
}

impl Backoff {
    pub(crate) fn new() -> Backoff {
        // The keys of a hash map are random, and nobody has to be able to guess less than that here.
        Backoff::seeded(RandomState::new().build_hasher().finish())
    }

    fn seeded(seed: u64) -> Backoff {
        Backoff { next: FIRST, random: seed | 1 }
    }

    /// How long to wait after another failure.
    pub(crate) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST);
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let chance = (self.random >> 11) as f64 / (1u64 << 53) as f64;
        pause / 2 + (pause / 2).mul_f64(chance)
    }

    /// A connection has lasted.
    pub(crate) fn reset(&mut self) {
        self.next = FIRST;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_thirty_seconds_and_half_of_each_is_chance() {
        let mut backoff = Backoff::seeded(4711);
        let mut longest = FIRST;
        for _ in 0..40 {
            let pause = backoff.pause();
            assert!(pause >= longest / 2 && pause <= longest, "{pause:?} of {longest:?}");
            longest = (longest * 2).min(LONGEST);
        }
        backoff.reset();
        assert!(backoff.pause() <= FIRST);
        let pauses: Vec<Duration> = (1..9).map(|seed| Backoff::seeded(seed * 0x9e37_79b9_7f4a_7c15).pause()).collect();
        assert!(pauses.iter().max().unwrap().saturating_sub(*pauses.iter().min().unwrap()) > FIRST / 8, "{pauses:?}");
    }
}
