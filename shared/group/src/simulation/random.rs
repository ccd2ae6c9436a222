//! Random numbers from a seed: SplitMix64 (Steele, Lea, Flood 2014). By hand, because a seed must
//! be the same run on every machine and with every version of a library.

use std::time::Duration;

use crate::time::nanos;

pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(crate) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `range`, without its end.
    pub(crate) fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.number() % (range.end - range.start)
    }

    /// From `range` of milliseconds, without its end.
    pub(crate) fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.within(range))
    }

    /// From `range`, without its end.
    pub(crate) fn duration(&mut self, range: std::ops::Range<Duration>) -> Duration {
        Duration::from_nanos(self.within(nanos(range.start)..nanos(range.end)))
    }

    /// True once in this many times.
    pub(crate) fn once_in(&mut self, times: u64) -> bool {
        self.number().is_multiple_of(times)
    }

    pub(crate) fn index(&mut self, length: usize) -> usize {
        (self.number() % length as u64) as usize
    }
}
