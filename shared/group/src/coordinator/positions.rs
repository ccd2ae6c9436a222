//! Where a group stands: what it has handled of each stream, by shard.
//!
//! ```text
//! a member of the group, or the publisher of the stream ── says what was handled ──▶ union
//!                                                                                    └─▶ the owner, if it knows less
//! ```
//!
//! Positions are facts: whoever knows one may say so, at any time. One may lie beyond what its
//! stream has announced, because the announcement is late or this coordinator has just started.
//!
//! **Invariant:** what a position covers only grows.

use std::{collections::BTreeMap, time::Duration};

use sekiwake_record::{Name, SHARDS, Shard};

use crate::{BootTime, Stream, coverage::Coverage, mutants::Mutants, wire::MAX_STREAMS};

/// The positions of one group.
pub(super) struct Positions {
    streams: BTreeMap<Stream, StreamPosition>,
    mutants: Mutants,
}

/// The position in one stream.
struct StreamPosition {
    shards: Vec<ShardPosition>,
    /// When something was last said about it.
    last_heard: BootTime,
}

/// The position in one topic.
#[derive(Clone, Default)]
pub(super) struct ShardPosition {
    pub(super) covered: Coverage,
    /// The owner of the shard has not reported all of it.
    pub(super) owner_lacks: bool,
    /// The member that has said more than the owner.
    pub(super) presenter: Option<Name>,
    /// The member that has said the newest of it, and when.
    newest: Option<(Name, BootTime)>,
}

/// A position that is beyond what its stream has announced for so long was not handled: the
/// publisher advertises every second.
const AHEAD_AFTER: Duration = Duration::from_secs(3);

impl ShardPosition {
    /// The member to name when its position makes the owner skip something: one that has said more
    /// than the owner, or more than the stream has. `next` is what a live stream has announced.
    pub(super) fn presenter(&self, now: BootTime, next: Option<u64>) -> Option<&Name> {
        let is_ahead = next.is_some_and(|next| self.covered.end() > Some(next));
        let newest = self.newest.as_ref().filter(|(_, said_at)| is_ahead && now >= *said_at + AHEAD_AFTER);
        self.presenter.as_ref().or(newest.map(|(label, _)| label))
    }
}

/// Who says what was handled.
#[derive(Clone, Copy)]
pub(super) enum Speaker<'a> {
    /// The owner of the shard, by its label.
    Owner(&'a Name),
    /// Another member, by its label.
    Member(&'a Name),
    /// The publisher of the stream.
    Publisher,
}

impl Positions {
    pub(super) fn new(mutants: Mutants) -> Positions {
        Positions { streams: BTreeMap::new(), mutants }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    #[cfg(test)]
    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    pub(super) fn contains(&self, stream: &Stream) -> bool {
        self.streams.contains_key(stream)
    }

    /// What is handled of a shard, if anything is known.
    pub(super) fn covered(&self, stream: &Stream, shard: Shard) -> Option<&Coverage> {
        self.streams.get(stream).map(|known| &known.shards[shard.index()].covered).filter(|known| !known.is_empty())
    }

    /// Whether everything before `end` is handled.
    pub(super) fn has_handled(&self, stream: &Stream, shard: Shard, end: u64) -> bool {
        let is_handled = |known: &Coverage| known.end() >= Some(end) && known.gaps().all(|gap| gap.from >= end);
        end == 0 || self.covered(stream, shard).is_some_and(is_handled)
    }

    /// The known positions in a stream, by shard.
    pub(super) fn of_stream(&self, stream: &Stream) -> impl Iterator<Item = (Shard, &ShardPosition)> {
        self.streams.get(stream).into_iter().flat_map(StreamPosition::known)
    }

    /// The known positions, by stream and shard.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Stream, impl Iterator<Item = (Shard, &ShardPosition)>)> {
        self.streams.iter().map(|(stream, known)| (stream, known.known()))
    }

    /// Takes what is said about a shard. Returns whether the owner has to be told, or `None` if
    /// there is no room for the stream.
    pub(super) fn merge(
        &mut self,
        now: BootTime,
        stream: &Stream,
        shard: Shard,
        covered: &Coverage,
        speaker: Speaker<'_>,
    ) -> Option<bool> {
        if !self.streams.contains_key(stream) && self.streams.len() >= MAX_STREAMS {
            return None;
        }
        let known = self
            .streams
            .entry(stream.clone())
            .or_insert_with(|| StreamPosition { shards: vec![ShardPosition::default(); SHARDS], last_heard: now });
        known.last_heard = now;
        let position = &mut known.shards[shard.index()];
        let is_new = if self.mutants.keeps_the_newest() {
            let is_newer = covered.end() > position.covered.end();
            if is_newer {
                position.covered = covered.clone();
            }
            is_newer
        } else {
            position.covered.union(covered)
        };
        if let Speaker::Owner(label) | Speaker::Member(label) = speaker
            && is_new
        {
            position.newest = Some((label.clone(), now));
        }
        match speaker {
            Speaker::Owner(_) if covered.contains(&position.covered) => {
                position.owner_lacks = false;
                position.presenter = None;
            }
            Speaker::Owner(_) => {}
            Speaker::Member(label) if is_new => {
                position.owner_lacks = true;
                position.presenter = Some(label.clone());
            }
            Speaker::Publisher if is_new => position.owner_lacks = true,
            Speaker::Member(_) | Speaker::Publisher => {}
        }
        Some(is_new && position.owner_lacks)
    }

    /// Another member has the shard, and has to learn what its former owner, if any is known, has
    /// reported.
    pub(super) fn change_owner(&mut self, shard: Shard, former: Option<&Name>) {
        let positions = self.streams.values_mut().map(|known| &mut known.shards[shard.index()]);
        for position in positions.filter(|position| !position.covered.is_empty()) {
            position.owner_lacks = true;
            position.presenter = former.cloned();
        }
    }

    /// Forgets the streams that nobody has said anything about for so long.
    pub(super) fn forget_old(&mut self, now: BootTime, keep: Duration, is_advertised: impl Fn(&Stream) -> bool) {
        self.streams.retain(|stream, known| is_advertised(stream) || now < known.last_heard + keep);
    }

    pub(super) fn forget(&mut self, stream: &Stream) {
        self.streams.remove(stream);
    }
}

impl StreamPosition {
    fn known(&self) -> impl Iterator<Item = (Shard, &ShardPosition)> {
        let known = self.shards.iter().enumerate().filter(|(_, position)| !position.covered.is_empty());
        known.filter_map(|(index, position)| Some((Shard::new(index as u8)?, position)))
    }
}
