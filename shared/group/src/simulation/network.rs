//! Clocks and links.

use super::random::Random;
use crate::MILLISECOND;

/// A party's clock: true time, from another beginning and at another rate.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    offset: u64,
    millionths: i64,
}

impl Clock {
    pub(super) fn new(random: &mut Random) -> Clock {
        Clock { offset: random.within(1..1 << 50), millionths: random.within(0..400) as i64 - 200 }
    }

    pub(super) fn local(self, time: u64) -> u64 {
        self.offset + (i128::from(time) * i128::from(1_000_000 + self.millionths) / 1_000_000) as u64
    }

    /// The first true time at which the clock shows `local` or more.
    pub(super) fn time(self, local: u64) -> u64 {
        (i128::from(local.saturating_sub(self.offset)) * 1_000_000 / i128::from(1_000_000 + self.millionths)) as u64 + 1
    }
}

/// One direction of one connection.
#[derive(Default)]
pub(super) struct Link {
    last_arrival: u64,
    /// What is sent until then is lost: a contiguous run.
    pub(super) loses_until: u64,
    /// What is sent until then takes long.
    pub(super) slow_until: u64,
    pub(super) bytes: u64,
    pub(super) messages: u64,
}

impl Link {
    /// When what is sent at `time` arrives, if it does.
    pub(super) fn send(&mut self, time: u64, bytes: usize, random: &mut Random) -> Option<u64> {
        self.bytes += bytes as u64;
        self.messages += 1;
        if time < self.loses_until {
            return None;
        }
        let slowness = if time < self.slow_until { random.within(100..900) } else { random.within(0..8) };
        let delay = slowness * MILLISECOND + random.within(50_000..MILLISECOND);
        self.last_arrival = self.last_arrival.max(time + delay);
        Some(self.last_arrival)
    }
}
