//! What the threads that send ask just before each send.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Release},
};

use sekiwake_record::{SHARDS, Shard};

/// Whether records of a shard may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Yes, now.
    Granted,
    /// Not now: the lease has run out and may come back. Wait; neither send nor drop.
    Lapsed,
    /// No, never in this generation: another member does it. Forget the records without a word; they are not lost.
    Revoked,
}

/// Shared between a member's machine and the threads that send. Two loads, no lock.
#[derive(Debug)]
pub struct Permit {
    until: AtomicU64,
    /// By shard; 0 where the member may not act at all.
    generations: [AtomicU64; SHARDS],
}

impl Permit {
    pub(super) fn new() -> Permit {
        Permit { until: AtomicU64::new(0), generations: [const { AtomicU64::new(0) }; SHARDS] }
    }

    /// Whether records of a shard that were delivered in `generation` may be sent at `now`, CLOCK_BOOTTIME of this host, ns, read
    /// for this question and not before.
    pub fn may_act(&self, shard: Shard, generation: u64, now: u64) -> Permission {
        // The end of the lease first: who sees one that was extended sees the shards that it was extended for.
        let until = self.until.load(Acquire);
        if self.generations[shard.index()].load(Acquire) != generation {
            Permission::Revoked
        } else if now >= until {
            Permission::Lapsed
        } else {
            Permission::Granted
        }
    }

    /// Shards first, then the lease.
    pub(super) fn extend(&self, until: u64) {
        self.until.fetch_max(until, Release);
    }

    pub(super) fn set(&self, shard: Shard, generation: u64) {
        self.generations[shard.index()].store(generation, Release);
    }

    pub(super) fn until(&self) -> u64 {
        self.until.load(Acquire)
    }
}
