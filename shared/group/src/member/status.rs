//! What a member shows of itself, for `/status` and for metrics.

use sekiwake_record::SHARDS;

use super::{GiveUp, Hold, Member};
use crate::{Stream, UNKNOWN};

/// Sums since the member began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberCounters {
    /// Requests for repair.
    pub requests: u64,
    /// Renewals that were sent.
    pub renewals: u64,
    /// Messages that were refused, and batches whose numbers are beyond belief.
    pub refused: u64,
    /// Records that were given up, by reason in the order of [`GiveUp::ALL`].
    pub given_up: [u64; GiveUp::ALL.len()],
}

/// A member's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its random number.
    pub incarnation: u64,
    /// The epoch of the coordinator whose grants it follows; 0 for none.
    pub coordinator: u64,
    /// The group's protocol; 0 until there is a grant.
    pub protocol: u64,
    /// Whether its lease runs.
    pub is_leased: bool,
    /// How long it still runs, ns.
    pub lease_left: u64,
    /// Whether it is leaving.
    pub is_leaving: bool,
    /// The shards that it has, or has given up and not yet said so.
    pub shards: Vec<ShardStatus>,
    /// The streams that it follows.
    pub streams: Vec<StreamStatus>,
    /// Bytes that are held behind holes.
    pub held_bytes: usize,
    /// Bytes that were delivered and not handled.
    pub outstanding_bytes: usize,
    /// Sums since it began.
    pub counters: MemberCounters,
}

/// A shard of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardStatus {
    /// The shard.
    pub shard: u8,
    /// The generation of its grant; 0 while it is prepared.
    pub generation: u64,
    /// What the member does with it.
    pub state: HoldState,
}

/// What a member does with a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldState {
    /// Buffers.
    Preparing,
    /// Delivers.
    Owned,
    /// Waits for what was delivered to be handled.
    Releasing,
    /// Has stopped.
    Released,
}

impl HoldState {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            HoldState::Preparing => "preparing",
            HoldState::Owned => "owned",
            HoldState::Releasing => "releasing",
            HoldState::Released => "released",
        }
    }
}

/// Where a member stands in a stream, summed over the shards that it owns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamStatus {
    /// The stream.
    pub stream: Stream,
    /// Whether it has said its last word.
    pub ended: bool,
    /// How long ago a batch or an announcement came, ns.
    pub heard_ago: u64,
    /// Shards of which it knows where it stands.
    pub located: usize,
    /// Records that were delivered, given up or before the start: the sum of what is next.
    pub received: u64,
    /// The same of what is handled.
    pub handled: u64,
    /// Records that are known to have been published and have not been delivered.
    pub lag: u64,
    /// Bytes that are held behind holes, of any shard.
    pub held_bytes: usize,
    /// Bytes that were delivered and not handled, of any shard.
    pub outstanding_bytes: usize,
}

impl<B> Member<B> {
    /// Sums since it began.
    pub fn counters(&self) -> MemberCounters {
        self.counters
    }

    /// Whether its lease runs.
    pub fn is_leased(&self, now: u64) -> bool {
        now < self.permit.until()
    }

    /// The epoch of the coordinator whose grants it follows; 0 for none.
    pub fn coordinator(&self) -> u64 {
        self.coordinator
    }

    /// Whether all that it knows to have been published on its shards has been delivered: no hole is left open. What was delivered
    /// need not be handled yet.
    pub fn has_received_all(&self) -> bool {
        self.held_bytes == 0
            && self.streams.iter().all(|followed| {
                let owned =
                    self.holds.iter().zip(&followed.positions).filter(|(hold, _)| matches!(hold, Hold::Owned(_)));
                // Where it is not known yet where to begin, whatever was published is still to come.
                owned.map(|(_, position)| position).all(|position| match position.received {
                    UNKNOWN => position.announced == 0,
                    received => position.announced <= received,
                })
            })
    }

    /// All that it knows, at `now`.
    pub fn status(&self, now: u64) -> MemberStatus {
        MemberStatus {
            incarnation: self.incarnation,
            coordinator: self.coordinator,
            protocol: self.protocol,
            is_leased: self.is_leased(now),
            lease_left: self.permit.until().saturating_sub(now),
            is_leaving: self.leaving_since.is_some(),
            shards: self.shard_statuses().collect(),
            streams: self.stream_statuses(now),
            held_bytes: self.held_bytes,
            outstanding_bytes: self.outstanding_bytes,
            counters: self.counters,
        }
    }

    /// The shards that it has, or has given up and not yet said so.
    pub fn shard_statuses(&self) -> impl Iterator<Item = ShardStatus> {
        self.holds.iter().enumerate().filter_map(|(index, hold)| {
            let (generation, state) = match *hold {
                Hold::Nothing => return None,
                Hold::Preparing => (0, HoldState::Preparing),
                Hold::Owned(generation) => (generation, HoldState::Owned),
                Hold::Releasing(generation) => (generation, HoldState::Releasing),
                Hold::Released(generation) => (generation, HoldState::Released),
            };
            Some(ShardStatus { shard: index as u8, generation, state })
        })
    }

    fn stream_statuses(&self, now: u64) -> Vec<StreamStatus> {
        let mut statuses = Vec::with_capacity(self.streams.len());
        for followed in &self.streams {
            let mut status = StreamStatus {
                stream: followed.stream.clone(),
                ended: followed.ended,
                heard_ago: now.saturating_sub(followed.heard_at),
                located: 0,
                received: 0,
                handled: 0,
                lag: 0,
                held_bytes: 0,
                outstanding_bytes: 0,
            };
            for shard in 0..SHARDS {
                let position = &followed.positions[shard];
                status.held_bytes += position.held_bytes;
                status.outstanding_bytes += position.outstanding_bytes();
                if matches!(self.holds[shard], Hold::Owned(_)) && position.received != UNKNOWN {
                    status.located += 1;
                    status.received += position.received;
                    status.handled += position.handled();
                    status.lag += position.announced.saturating_sub(position.received);
                }
            }
            statuses.push(status);
        }
        statuses
    }
}
