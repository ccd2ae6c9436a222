//! Where a group begins in the streams of publishers that are older than it.

use std::collections::BTreeMap;

use sekiwake_group::Stream;
use sekiwake_record::Shard;

/// The first record of a publisher's stream that a group is owed in a shard, while nothing of the
/// stream is known there. Earlier records that can still be read are delivered too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owed {
    /// This record.
    From(u64),
    /// This record, or a later one. Nobody knows.
    AtMostFrom(u64),
    /// The first record that is read.
    AsRead,
}

impl Owed {
    /// The next record to be delivered, if the first one that can be read is `first`.
    pub(crate) fn next(self, first: u64) -> u64 {
        match self {
            Owed::From(next) | Owed::AtMostFrom(next) => next.min(first),
            Owed::AsRead => first,
        }
    }
}

/// What a publisher had sent when the group began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// The publisher's stream.
    pub stream: Stream,
    /// Whether the publisher said so after the place was known where the group begins.
    pub is_known: bool,
    /// The sequence number of the next record, by shard; 0 in all others.
    pub next: BTreeMap<Shard, u64>,
}

impl Beginning {
    /// What the group is owed in a shard.
    pub fn owed(&self, shard: Shard) -> Owed {
        let next = self.next.get(&shard).copied().unwrap_or(0);
        if self.is_known { Owed::From(next) } else { Owed::AtMostFrom(next) }
    }
}
