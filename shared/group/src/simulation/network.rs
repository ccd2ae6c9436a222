//! Clocks and links.

use std::time::Duration;

use super::random::Random;
use crate::{BootTime, time::MILLISECOND};

/// A party's clock: true time with another offset and rate.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    offset: u64,
    millionths: i64,
}

impl Clock {
    pub(super) fn new(random: &mut Random) -> Clock {
        Clock { offset: random.within(1..1 << 50), millionths: random.within(0..400) as i64 - 200 }
    }

    pub(super) fn local(self, time: BootTime) -> BootTime {
        let elapsed = i128::from(time.as_nanos()) * i128::from(1_000_000 + self.millionths) / 1_000_000;
        BootTime::from_nanos(self.offset + elapsed as u64)
    }

    /// The first true time at which the clock shows `local` or more.
    pub(super) fn time(self, local: BootTime) -> BootTime {
        let elapsed = i128::from(local.as_nanos().saturating_sub(self.offset));
        BootTime::from_nanos((elapsed * 1_000_000 / i128::from(1_000_000 + self.millionths)) as u64 + 1)
    }
}

/// One direction of one connection.
#[derive(Default)]
pub(super) struct Link {
    last_arrival: BootTime,
    /// Messages sent until then are lost: a contiguous run.
    pub(super) loses_until: BootTime,
    /// Messages sent until then are slow.
    pub(super) slow_until: BootTime,
    pub(super) bytes: u64,
    pub(super) messages: u64,
}

impl Link {
    /// When a message sent at `time` arrives, if it does.
    pub(super) fn send(&mut self, time: BootTime, bytes: usize, random: &mut Random) -> Option<BootTime> {
        self.bytes += bytes as u64;
        self.messages += 1;
        if time < self.loses_until {
            return None;
        }
        let slowness = if time < self.slow_until { random.millis(100..900) } else { random.millis(0..8) };
        let delay = slowness + random.duration(Duration::from_micros(50)..MILLISECOND);
        self.last_arrival = self.last_arrival.max(time + delay);
        Some(self.last_arrival)
    }
}
