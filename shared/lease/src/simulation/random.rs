//! Random numbers from a seed, and clocks.

use std::time::Duration;

use sekiwake_group::BootTime;

/// SplitMix64 (Steele, Lea, Flood 2014). By hand, because a seed must be the same run on every
/// machine and with every version of a library.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d)
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From `range`, without its end.
    pub(super) fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.number() % (range.end - range.start)
    }

    /// From `range` of milliseconds, without its end.
    pub(super) fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_micros(self.within(range.start * 1000..range.end * 1000))
    }

    /// True once in this many times.
    pub(super) fn once_in(&mut self, times: u64) -> bool {
        self.number().is_multiple_of(times)
    }

    pub(super) fn index(&mut self, length: usize) -> usize {
        (self.number() % length as u64) as usize
    }
}

/// A member's clock: true time with another offset and rate.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    offset: u64,
    /// Up to 5 %: the margin between lease and declaration is 16 %.
    thousandths: i64,
}

impl Clock {
    pub(super) fn new(random: &mut Random) -> Clock {
        Clock { offset: random.within(1..1 << 50), thousandths: random.within(0..100) as i64 - 50 }
    }

    pub(super) fn local(self, time: BootTime) -> BootTime {
        let elapsed = i128::from(time.as_nanos()) * i128::from(1_000 + self.thousandths) / 1_000;
        BootTime::from_nanos(self.offset + elapsed as u64)
    }

    /// The first true time at which the clock shows `local` or more.
    pub(super) fn time(self, local: BootTime) -> BootTime {
        if local == BootTime::NEVER {
            return local;
        }
        let elapsed = i128::from(local.as_nanos().saturating_sub(self.offset));
        BootTime::from_nanos((elapsed * 1_000 / i128::from(1_000 + self.thousandths)) as u64 + 1)
    }
}
