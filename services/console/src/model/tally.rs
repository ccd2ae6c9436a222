//! Counts of streams, summed over all streams of a service.
//!
//! A member's count is the sum of the positions of its shards, which jumps when a shard changes its
//! owner. So differences are added, and only between two samples of the same shards.

use std::collections::BTreeMap;

use super::{Part, Text};

/// The most streams of a service; those beyond are not counted.
const MAX_STREAMS: usize = 1024;
/// The most sums: kinds, and what a member has handled.
const MAX_SUMS: usize = 32;

/// What a service has counted since it was first seen.
#[derive(Debug, Default)]
pub(super) struct Tally {
    last: BTreeMap<Key, Sample>,
    shards: Vec<Shard>,
    sums: BTreeMap<String, u64>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    stream: Text,
    sum: String,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    count: u64,
    located_shards: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Shard {
    shard: Text,
    generation: u64,
}

impl Tally {
    /// Adds the differences to the last sample. `false` if some counts cannot be compared with it.
    pub(super) fn advance<'a>(&mut self, parts: impl Iterator<Item = &'a Part>) -> bool {
        let mut samples = BTreeMap::new();
        let mut shards = Vec::new();
        for part in parts {
            match part {
                Part::Group(group) => {
                    for stream in &group.streams.0 {
                        let key = Key { stream: stream.stream.clone(), sum: "handled".to_owned() };
                        let sample = Sample { count: stream.handled, located_shards: stream.located_shards };
                        samples.insert(key, sample);
                    }
                    let owned = group.shards.0.iter().filter(|shard| shard.state.as_str() == "owned");
                    shards
                        .extend(owned.map(|shard| Shard { shard: shard.shard.clone(), generation: shard.generation }));
                }
                Part::Control(control) => {
                    for stream in &control.streams.0 {
                        for (kind, count) in &stream.published.0 {
                            let key = Key { stream: stream.stream.clone(), sum: format!("published.{kind}") };
                            samples.insert(key, Sample { count: *count, located_shards: 0 });
                        }
                    }
                }
                _ => {}
            }
        }
        shards.sort();
        let is_same = shards == self.shards;
        self.shards = shards;
        let mut is_complete = true;
        if self.last.len() + samples.len() > MAX_STREAMS {
            self.last.retain(|key, _| samples.contains_key(key));
        }
        for (key, sample) in samples {
            let has_sum = self.sums.len() < MAX_SUMS || self.sums.contains_key(&key.sum);
            let has_room = has_sum && self.last.len() < MAX_STREAMS;
            let Some(last) = self.last.get_mut(&key) else {
                if has_room {
                    self.sums.entry(key.sum.clone()).or_default();
                    self.last.insert(key, sample);
                }
                is_complete &= has_room;
                continue;
            };
            let more = sample.count.checked_sub(last.count);
            let is_comparable = is_same && sample.located_shards == last.located_shards;
            *last = sample;
            match (more.filter(|_| is_comparable), self.sums.get_mut(&key.sum)) {
                (Some(more), Some(sum)) => *sum = sum.saturating_add(more),
                _ => is_complete = false,
            }
        }
        is_complete
    }

    /// The sums by name.
    pub(super) fn counts(&self) -> impl Iterator<Item = (String, u64)> {
        self.sums.iter().map(|(name, sum)| (name.clone(), *sum))
    }
}
