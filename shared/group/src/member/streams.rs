//! The streams that a member follows.

use std::time::Duration;

use sekiwake_record::SHARDS;

use super::{Member, Ownership, Position, RepairState};
use crate::{BootTime, Stream, wire::MAX_STREAMS};

/// How long an ended stream with nothing missing is still followed.
pub(super) const FOLLOW_ENDED: Duration = Duration::from_secs(300);
/// How long a silent stream with nothing missing is still followed: its publisher may be cut
/// off.
const FOLLOW_SILENT: Duration = Duration::from_secs(24 * 3600);

/// A stream is not forgotten for a new one while it was heard within this time.
const KEEP_HEARD: Duration = Duration::from_secs(600);
/// The same for one that no coordinator or publisher has ever said anything about: anybody can
/// publish in a name that does not exist.
const KEEP_UNANSWERED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct FollowedStream<B> {
    pub(super) stream: Stream,
    /// The member's count of stream uses when this one was last used.
    last_use: u64,
    /// When its last batch or announcement arrived.
    pub(super) last_heard: BootTime,
    pub(super) ended: bool,
    /// A grant or an answer to a request was about it.
    pub(super) is_answered: bool,
    /// By shard.
    pub(super) positions: Vec<Position<B>>,
    pub(super) repair: RepairState,
}

impl<B> FollowedStream<B> {
    /// Whether nothing of it is buffered or outstanding.
    fn is_idle(&self) -> bool {
        self.positions.iter().all(|position| position.is_idle() && position.reorder.is_empty())
    }
}

impl<B> Member<B> {
    pub(super) fn find(&self, stream: &Stream) -> Option<usize> {
        let is_same = |followed: &FollowedStream<B>| {
            // The epoch first, which is the cheaper comparison and nearly always decides.
            followed.stream.epoch == stream.epoch && followed.stream.name == stream.name
        };
        self.streams.iter().position(is_same)
    }

    /// The index of the stream, which is heard, and followed from now on. When too many are
    /// followed, an ended or silent one makes room. If none is, the new one is not followed.
    pub(super) fn follow(&mut self, now: BootTime, stream: &Stream) -> Option<usize> {
        self.stream_uses += 1;
        if let Some(index) = self.find(stream) {
            self.streams[index].last_use = self.stream_uses;
            self.streams[index].last_heard = now;
            return Some(index);
        }
        if self.streams.len() >= MAX_STREAMS {
            let may_go = |followed: &FollowedStream<B>| {
                let keep = if followed.is_answered { KEEP_HEARD } else { KEEP_UNANSWERED };
                followed.is_idle() && (followed.ended || now >= followed.last_heard + keep)
            };
            let candidates = self.streams.iter().enumerate().filter(|(_, followed)| may_go(followed));
            let oldest =
                candidates.min_by_key(|(_, followed)| (followed.is_answered, !followed.ended, followed.last_use));
            let Some((oldest, _)) = oldest else {
                self.counters.refused_streams += 1;
                return None;
            };
            self.streams.swap_remove(oldest);
        }
        self.streams.push(FollowedStream {
            stream: stream.clone(),
            last_use: self.stream_uses,
            last_heard: now,
            ended: false,
            is_answered: false,
            positions: (0..SHARDS).map(|_| Position::default()).collect(),
            repair: RepairState::default(),
        });
        Some(self.streams.len() - 1)
    }

    /// The index of a stream that a grant is about.
    pub(super) fn follow_answered(&mut self, now: BootTime, stream: &Stream) -> Option<usize> {
        let index = self.find(stream).or_else(|| self.follow(now, stream))?;
        self.streams[index].is_answered = true;
        Some(index)
    }

    /// Forgets ended and silent streams of which nothing is missing, buffered or outstanding.
    pub(super) fn forget_streams(&mut self, now: BootTime) {
        let ownership = &self.ownership;
        let is_complete = |followed: &FollowedStream<B>| {
            let shards = ownership.iter().zip(&followed.positions);
            let mut owned = shards.filter(|(ownership, _)| matches!(ownership, Ownership::Owned(_)));
            followed.is_idle() && owned.all(|(_, position)| !position.has_gap() && position.in_doubt() == 0)
        };
        self.streams.retain(|followed| {
            let limit = if followed.ended { FOLLOW_ENDED } else { FOLLOW_SILENT };
            now < followed.last_heard + limit || followed.repair.is_scheduled() || !is_complete(followed)
        });
    }
}
