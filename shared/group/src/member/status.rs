//! The state of a member, for `/status` and for metrics.

use std::time::Duration;

use sekiwake_record::{Name, SHARDS, Shard};

use super::{GiveUp, Member, Ownership};
use crate::{BootTime, Stream, coverage::Span};

/// Counters since the member started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberCounters {
    /// Requests for repair sent.
    pub requests: u64,
    /// Renewals sent.
    pub renewals: u64,
    /// Messages rejected, and batches whose sequence numbers are out of range.
    pub rejected: u64,
    /// Records of gaps that were left behind, delivered later.
    pub late: u64,
    /// Records not delivered because another party says that they were handled.
    pub skipped: u64,
    /// Streams not followed, because there are too many.
    pub refused_streams: u64,
    /// Records given up, by reason in the order of [`GiveUp::ALL`].
    pub given_up: [u64; GiveUp::ALL.len()],
}

/// A member's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// The random number of this run.
    pub incarnation: u64,
    /// The epoch of the coordinator whose grants the member follows; 0 before the first.
    pub coordinator: u64,
    /// The group's protocol; 0 before the first grant.
    pub protocol: u64,
    /// Whether the member has a lease.
    pub is_leased: bool,
    /// How long the lease still runs.
    pub lease_left: Duration,
    /// Whether the member is leaving.
    pub is_leaving: bool,
    /// The shards, without those whose release the coordinator knows of.
    pub shards: Vec<ShardStatus>,
    /// The streams that the member follows.
    pub streams: Vec<StreamStatus>,
    /// Records that are no longer retained, and that former owners may have handled.
    pub in_doubt: u64,
    /// Bytes in reorder buffers.
    pub reorder_bytes: usize,
    /// Bytes that are delivered and not handled.
    pub outstanding_bytes: usize,
    /// The labels of members whose destinations have differed from this member's for a minute.
    pub differing: Vec<Name>,
    /// Counters since the member started.
    pub counters: MemberCounters,
}

/// A shard of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The shard.
    pub shard: u8,
    /// The generation of its grant; 0 while preparing.
    pub generation: u64,
    /// What the member does with it.
    pub state: ShardPhase,
}

/// What a member does with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardPhase {
    /// Buffers, until the shard is granted.
    Preparing,
    /// Delivers.
    Owned,
    /// Waits until all deliveries are handled.
    Releasing,
    /// Has stopped; the coordinator may not know yet.
    Released,
}

impl ShardPhase {
    /// The name, in `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            ShardPhase::Preparing => "preparing",
            ShardPhase::Owned => "owned",
            ShardPhase::Releasing => "releasing",
            ShardPhase::Released => "released",
        }
    }
}

/// A member's position in a stream, summed over the shards that it owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStatus {
    /// The stream.
    pub stream: Stream,
    /// Whether the stream has ended.
    pub ended: bool,
    /// How long ago the last batch or announcement arrived.
    pub silent_for: Duration,
    /// Shards whose position is known.
    pub located: usize,
    /// The sum of the next sequence numbers: records delivered, given up, or before the start.
    pub received: u64,
    /// The sum of the commits.
    pub handled: u64,
    /// Records that are owed: known to be published and not delivered.
    pub lag: u64,
    /// Records that are no longer retained, and that a former owner may have handled.
    pub in_doubt: u64,
    /// Bytes in reorder buffers, of any shard.
    pub reorder_bytes: usize,
    /// Bytes that are delivered and not handled, of any shard.
    pub outstanding_bytes: usize,
}

impl<B> Member<B> {
    /// Counters since the member started.
    pub fn counters(&self) -> MemberCounters {
        self.counters
    }

    /// Whether the member has a lease.
    pub fn is_leased(&self, now: BootTime) -> bool {
        now < self.permit.until()
    }

    /// The epoch of the coordinator whose grants the member follows; 0 before the first.
    pub fn coordinator(&self) -> u64 {
        self.coordinator
    }

    /// Whether everything that is known to be published on the owned shards is delivered, so that
    /// no gap is being repaired. Streams that nobody answers for do not count. Deliveries need not
    /// be handled yet.
    pub fn has_received_all(&self) -> bool {
        self.reorder_bytes == 0
            && self.streams.iter().filter(|followed| !followed.repair.is_slow()).all(|followed| {
                let owned = self
                    .ownership
                    .iter()
                    .zip(&followed.positions)
                    .filter(|(ownership, _)| matches!(ownership, Ownership::Owned(_)));
                // Before the start is located, everything that was published is still to come.
                owned.map(|(_, position)| position).all(|position| {
                    if position.covered.is_empty() { position.announced == 0 } else { position.owed() == 0 }
                })
            })
    }

    /// Whether all of these records of a stream are delivered, handled by others, or lost, as far
    /// as is known.
    pub fn is_covered(&self, stream: &Stream, shard: Shard, from: u64, to: u64) -> bool {
        let Some(index) = self.find(stream) else { return false };
        let covered = &self.streams[index].positions[shard.index()].covered;
        covered.count_within(Span { from, to }) == to.saturating_sub(from)
    }

    /// The shards, one bit each, in which something is published of the stream that this member has
    /// to deliver, or may have to.
    pub fn behind(&self, stream: &Stream) -> u64 {
        let Some(index) = self.find(stream) else { return 0 };
        let mut behind = 0;
        for (shard, (ownership, position)) in self.ownership.iter().zip(&self.streams[index].positions).enumerate() {
            let is_all = if position.covered.is_empty() { position.announced == 0 } else { position.owed() == 0 };
            let is_owned = matches!(ownership, Ownership::Owned(_));
            behind |= u64::from(!is_owned || !is_all || !position.reorder.is_empty()) << shard;
        }
        behind
    }

    /// Whether another stream with records in this shard was heard within this time.
    pub fn has_other_stream(&self, stream: &Stream, shard: Shard, now: BootTime, within: Duration) -> bool {
        self.streams.iter().any(|followed| {
            followed.stream != *stream
                && !followed.ended
                && now < followed.last_heard + within
                && followed.positions[shard.index()].announced > 0
        })
    }

    /// The whole state, at `now`.
    pub fn status(&self, now: BootTime) -> MemberStatus {
        let streams = self.stream_statuses(now);
        MemberStatus {
            incarnation: self.incarnation,
            coordinator: self.coordinator,
            protocol: self.protocol,
            is_leased: self.is_leased(now),
            lease_left: self.permit.until() - now,
            is_leaving: self.leaving_from_renewal.is_some(),
            shards: self.shard_statuses().collect(),
            in_doubt: streams.iter().map(|stream| stream.in_doubt).sum(),
            streams,
            reorder_bytes: self.reorder_bytes,
            outstanding_bytes: self.outstanding_bytes,
            differing: self.differing.clone(),
            counters: self.counters,
        }
    }

    /// The shards, without those whose release the coordinator knows of.
    pub fn shard_statuses(&self) -> impl Iterator<Item = ShardStatus> {
        self.ownership.iter().enumerate().filter_map(|(index, ownership)| {
            let state = match ownership {
                Ownership::None => return None,
                Ownership::Preparing => ShardPhase::Preparing,
                Ownership::Owned(_) => ShardPhase::Owned,
                Ownership::Releasing(_) => ShardPhase::Releasing,
                Ownership::Released(_) => ShardPhase::Released,
            };
            Some(ShardStatus { shard: index as u8, generation: ownership.generation().unwrap_or(0), state })
        })
    }

    fn stream_statuses(&self, now: BootTime) -> Vec<StreamStatus> {
        let mut statuses = Vec::with_capacity(self.streams.len());
        for followed in &self.streams {
            let mut status = StreamStatus {
                stream: followed.stream.clone(),
                ended: followed.ended,
                silent_for: now - followed.last_heard,
                located: 0,
                received: 0,
                handled: 0,
                lag: 0,
                in_doubt: 0,
                reorder_bytes: 0,
                outstanding_bytes: 0,
            };
            for shard in 0..SHARDS {
                let position = &followed.positions[shard];
                status.reorder_bytes += position.reorder_bytes;
                status.outstanding_bytes += position.outstanding_bytes();
                let received = position.received().filter(|_| matches!(self.ownership[shard], Ownership::Owned(_)));
                if let Some(received) = received {
                    status.located += 1;
                    status.received += received;
                    status.handled += position.committed();
                    status.lag += position.owed();
                    status.in_doubt += position.in_doubt();
                }
            }
            statuses.push(status);
        }
        statuses
    }
}
