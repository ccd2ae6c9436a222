//! The permission that sending threads check just before each send.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

use sekiwake_record::{SHARDS, Shard};

use crate::BootTime;

/// Whether records of a shard may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Yes, now.
    Granted,
    /// Not now: the lease has expired and may be renewed. Wait; neither send nor drop.
    Lapsed,
    /// No, and never again in this generation: another member is responsible. Forget the records
    /// without counting them; they are not lost.
    Revoked,
}

/// The member's lease and shards, shared with the threads that send. A check is two atomic loads.
#[derive(Debug)]
pub struct Permit {
    /// The end of the lease, nanoseconds of CLOCK_BOOTTIME.
    until: AtomicU64,
    /// By shard; 0 where the member may not act.
    generations: [AtomicU64; SHARDS],
}

impl Default for Permit {
    fn default() -> Permit {
        Permit::new()
    }
}

impl Permit {
    /// Nothing may be acted on.
    pub fn new() -> Permit {
        Permit { until: AtomicU64::new(0), generations: [const { AtomicU64::new(0) }; SHARDS] }
    }

    /// Whether records of a shard that were delivered in `generation` may be sent. `now` must be
    /// read for this very check.
    pub fn may_act(&self, shard: Shard, generation: u64, now: BootTime) -> Permission {
        // The end of the lease is read before the shard: a thread that sees an extended lease then
        // also sees the shards that it was extended for.
        let until = self.until();
        if self.generations[shard.index()].load(Acquire) != generation {
            Permission::Revoked
        } else if now >= until {
            Permission::Lapsed
        } else {
            Permission::Granted
        }
    }

    /// Extends the lease. The shards must be set before.
    pub fn extend(&self, until: BootTime) {
        self.until.fetch_max(until.as_nanos(), Release);
    }

    /// Sets the generation in which a shard may be acted on; 0 for none.
    pub fn set(&self, shard: Shard, generation: u64) {
        self.generations[shard.index()].store(generation, Release);
    }

    /// The end of the lease.
    pub fn until(&self) -> BootTime {
        BootTime::from_nanos(self.until.load(Acquire))
    }
}
