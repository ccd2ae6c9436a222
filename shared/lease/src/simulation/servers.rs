//! The simulated servers: keys with revisions, as the leader and a follower have them, and a stored
//! stream of batches.

use std::collections::BTreeMap;

use crate::{Outcome, Write};

/// A batch in the stored stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    pub(super) sequence: u64,
    pub(super) publisher: usize,
    pub(super) first: u64,
    pub(super) count: u32,
}

/// Keys with their revisions and values.
pub(super) type Keys = BTreeMap<String, (u64, Vec<u8>)>;

#[derive(Default)]
pub(super) struct Servers {
    pub(super) keys: Keys,
    /// The same, some time ago.
    pub(super) follower: Keys,
    pub(super) revision: u64,
    pub(super) created: u64,
    pub(super) last_sequence: u64,
    /// By shard, in order.
    pub(super) log: BTreeMap<usize, Vec<Stored>>,
    /// The first sequence number that is retained.
    pub(super) first_sequence: u64,
}

impl Servers {
    /// Stores a write if the key has the expected revision.
    pub(super) fn write(&mut self, write: &Write) -> Outcome {
        let name = write.key.to_string();
        let revision = self.keys.get(&name).map_or(0, |(revision, _)| *revision);
        if write.expected.is_some_and(|expected| expected != revision) {
            return Outcome::Conflict;
        }
        match &write.value {
            Some(value) => self.put(name, value.clone()),
            None => {
                self.keys.remove(&name);
                Outcome::Stored(revision)
            }
        }
    }

    /// Stores a value, whatever the key has.
    pub(super) fn put(&mut self, name: String, value: Vec<u8>) -> Outcome {
        self.revision += 1;
        self.keys.insert(name, (self.revision, value));
        Outcome::Stored(self.revision)
    }

    pub(super) fn append(&mut self, shard: usize, publisher: usize, first: u64, count: u32) -> u64 {
        self.last_sequence += 1;
        let sequence = self.last_sequence;
        self.log.entry(shard).or_default().push(Stored { sequence, publisher, first, count });
        sequence
    }

    /// Forgets all batches below a sequence number.
    pub(super) fn evict(&mut self, below: u64) {
        self.first_sequence = below.max(self.first_sequence);
        self.log.values_mut().for_each(|log| log.retain(|stored| stored.sequence >= below));
    }

    /// Deletes the stream and creates it again.
    pub(super) fn recreate(&mut self) {
        self.created += 1;
        self.last_sequence = 0;
        self.first_sequence = 1;
        self.log.clear();
    }

    /// Whether records of a publisher in a shard are retained.
    pub(super) fn retains(&self, shard: usize, publisher: usize, from: u64, to: u64) -> bool {
        let overlaps = |stored: &Stored| {
            stored.publisher == publisher && stored.first < to && from < stored.first + u64::from(stored.count)
        };
        self.log.get(&shard).is_some_and(|log| log.iter().any(overlaps))
    }

    /// The next batch of a shard after a sequence number.
    pub(super) fn next(&self, shard: usize, after: u64) -> Option<Stored> {
        let log = self.log.get(&shard)?;
        log.get(log.partition_point(|stored| stored.sequence <= after)).copied()
    }
}
