//! Announcements of publishers, and the records that they say are missing.

use std::time::{Duration, Instant};

use sekiwake_group::{GiveUp, Stream, wire::MAX_STREAMS};
use sekiwake_lease::{Owed, Taken};
use sekiwake_record::Topic;
use sekiwake_sys::clock::wall_now_ns;

use super::{
    super::{
        keys::Stored,
        state::{At, Position as Announced},
    },
    JetStreamGroup, jobs,
    reading::take_replaced,
};
use crate::{group::Lost, metrics::ONE_VIEW};

/// How often announcements are read.
const ANNOUNCED_EVERY: Duration = Duration::from_secs(1);
/// Announced records that an idle reader has not received for so long were evicted.
const EVICTED_AFTER: Duration = Duration::from_secs(5);
/// Announced records beyond the end of the stream for so long were in one that was deleted. Longer
/// than a server takes to notice that it leads no majority, until which its answers may be old.
const DELETED_AFTER: Duration = Duration::from_secs(15);
/// How often the end of the stream is compared with announcements while records are missing.
const COMPARE_EVERY: Duration = Duration::from_secs(5);

/// The stream of the kind, as the servers describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamEnd {
    /// When it was created, nanoseconds since 1970.
    pub(super) created: u64,
    pub(super) last_sequence: u64,
}

/// Records that a publisher announces, and that are not all delivered.
struct AnnouncedEnd {
    stream: Stream,
    topic: Topic,
    position: Announced,
    owed: Owed,
}

impl JetStreamGroup {
    pub(super) fn read_announcements(&mut self, now: Instant) {
        let is_due = self.jobs.announced_at.is_none_or(|at| now >= at + ANNOUNCED_EVERY);
        if self.jobs.is_announcing || !is_due {
            return;
        }
        self.jobs.is_announcing = true;
        self.jobs.announced_at = Some(now);
        self.spawn(jobs::announcements(self.connection.nats().clone()));
    }

    /// Takes all announcements. If records are missing at the end that should have been read by
    /// now, the end of the stream is read before they are counted: the announcement may be of a
    /// stream that is newer than the reader.
    pub(super) fn announced(&mut self, now: Instant, stored: Vec<Stored>) {
        let decoded: Vec<At> = stored.iter().filter_map(|stored| At::decode(&stored.value)).collect();
        self.is_acknowledged = self.registrant.take(stored, now);
        self.announced.clear();
        for at in decoded.into_iter().take(MAX_STREAMS) {
            self.announced.insert(Stream::new(&at.name, at.epoch), at);
        }
        self.must_meter_lag = true;
        if let Some(feed) = &self.feed {
            let is_idle = feed.idle.lasted(now) >= EVICTED_AFTER;
            let is_due = self.jobs.compared_at.is_none_or(|at| now >= at + COMPARE_EVERY);
            let is_suspect = |end: &AnnouncedEnd| is_idle || is_due || feed.sequence >= end.position.stream_sequence;
            if self.missing_ends().iter().any(is_suspect) {
                self.jobs.compared_at = Some(now);
                // Until then no announcement is read: the known ones are older than the answer.
                self.jobs.is_announcing = true;
                self.spawn(jobs::end(self.connection.nats().clone(), self.kind));
            } else {
                self.jobs.exceeds_since = None;
            }
        }
        if let Some(views) = &mut self.views {
            views.announced(now, &self.announced, self.kind, &self.shards, self.feed.as_ref());
        }
    }

    /// Records that are announced and not delivered, of shards that are read.
    fn missing_ends(&self) -> Vec<AnnouncedEnd> {
        let mut ends = Vec::new();
        for (stream, at) in &self.announced {
            for (&topic, &position) in at.positions.iter().filter(|(topic, _)| topic.kind == self.kind) {
                let owned = self.shards[topic.shard.index()].as_ref();
                let Some(owned) = owned.filter(|owned| owned.is_read && !owned.is_stopping) else { continue };
                let owed = self.table.owed(stream, topic.shard);
                if owned.handling.is_behind(stream, position.next_sequence, owed) {
                    ends.push(AnnouncedEnd { stream: stream.clone(), topic, position, owed });
                }
            }
        }
        ends
    }

    /// Counts what is announced, and cannot be read any more.
    pub(super) fn count_evicted(&mut self, now: Instant, end: StreamEnd) {
        let Some(feed) = self.feed.as_ref().filter(|feed| feed.created == end.created) else { return };
        let (passed, idle) = (feed.sequence, feed.idle.lasted(now));
        let ends = self.missing_ends();
        let exceeds = |position: &Announced| position.stream_sequence > end.last_sequence;
        let exceeds_since = ends.iter().any(|missing| exceeds(&missing.position)).then(|| {
            // Since when this is known.
            self.jobs.exceeds_since.unwrap_or(now)
        });
        self.jobs.exceeds_since = exceeds_since;
        let was_deleted = exceeds_since.is_some_and(|since| now.duration_since(since) >= DELETED_AFTER);
        for AnnouncedEnd { stream, topic, position, owed } in ends {
            let is_beyond = exceeds(&position);
            let is_past = passed >= position.stream_sequence || idle >= EVICTED_AFTER || is_beyond && was_deleted;
            let Some(owned) = self.shards[topic.shard.index()].as_mut().filter(|_| is_past) else { continue };
            let taken = owned.handling.announced(&stream, position.next_sequence, owed);
            let is_replaced = take_replaced(owned, &stream) || is_beyond;
            if taken.missing > 0 {
                self.lost(&stream, topic, taken, is_replaced);
            }
        }
    }

    /// Counts records that are missing, of the stream that was replaced or of the one that is read.
    pub(super) fn lost(&mut self, stream: &Stream, topic: Topic, taken: Taken, is_replaced: bool) {
        let Taken { missing, missing_from: from, is_bound, .. } = taken;
        let reason = match (is_bound, is_replaced) {
            (true, _) => GiveUp::Unknown,
            (false, true) => GiveUp::StreamGone,
            (false, false) => GiveUp::NotRetained,
        };
        if let Some(index) = GiveUp::ALL.iter().position(|known| *known == reason) {
            self.given_up[index] += missing;
        }
        let now = Instant::now();
        // With another capture on the same shard, it may have shown the same datagrams.
        let is_one_view = self.views.as_ref().is_some_and(|views| views.has_other(stream, topic, &self.announced, now));
        let reason = if is_one_view { ONE_VIEW } else { reason.as_str() };
        self.metrics.lost(&stream.name, reason).inc_by(missing);
        let lost = Lost { topic, from, to: from + missing, reason };
        self.log.lost(stream, lost, now, wall_now_ns());
    }
}
