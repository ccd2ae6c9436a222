//! Reading: a reader for the shards that the member has, and its messages as deliveries.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use sekiwake_group::{Stream, wire::MAX_STREAMS};
use sekiwake_lease::Position;
use sekiwake_record::{DecodeError, Name, Shard, Topic};
use tracing::debug;

use super::{
    super::{
        reader::{Incoming, Reader, ReaderLost},
        streams::topic_of,
    },
    JetStreamGroup, Owned,
    jobs::{self, Opened},
};
use crate::{GroupDelivery, group::Completion, reading::age_seconds};

/// A reader that has had no message for so long has read everything that is stored.
const IDLE: Duration = Duration::from_millis(300);
/// After a longer pause between two looks a reader is not known to have been idle.
const LOOKED_WITHIN: Duration = Duration::from_secs(1);

/// The reader of the member's shards.
pub(super) struct Feed {
    pub(super) reader: Reader,
    /// When the stream was created.
    pub(super) created: u64,
    /// Everything up to this sequence number has been taken.
    pub(super) sequence: u64,
    pub(super) idle: Idle,
    /// No message follows the last one for now.
    is_at_end: bool,
}

/// How long a reader has had no message although it was looked at.
#[derive(Debug, Default)]
pub(super) struct Idle {
    since: Option<Instant>,
    looked_at: Option<Instant>,
}

impl Idle {
    /// There was no message.
    fn looked(&mut self, now: Instant) {
        let was_away = self.looked_at.is_none_or(|at| now.duration_since(at) > LOOKED_WITHIN);
        if was_away || self.since.is_none() {
            self.since = Some(now);
        }
        self.looked_at = Some(now);
    }

    /// There was a message, or there may be one that was not looked for.
    pub(super) fn end(&mut self) {
        self.since = None;
    }

    pub(super) fn lasted(&self, now: Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.duration_since(since))
    }
}

impl JetStreamGroup {
    /// Opens a reader for the shards that the member has.
    pub(super) fn open(&mut self, now: Instant) {
        let jobs = &mut self.jobs;
        if !jobs.must_open || jobs.is_opening || jobs.open_at.is_some_and(|at| now < at) {
            return;
        }
        jobs.must_open = false;
        let mut positions: Vec<(Shard, Position)> = Vec::new();
        for shard in Shard::all() {
            let owned = self.shards[shard.index()].as_ref().filter(|owned| !owned.is_stopping);
            if let Some(owned) = owned {
                let Position { created, sequence, .. } = *owned.handling.delivered();
                positions.push((shard, Position { created, sequence, progress: Vec::new() }));
            }
        }
        if positions.is_empty() {
            self.jobs.unopened_since = None;
            self.feed = None;
            return;
        }
        self.jobs.is_opening = true;
        self.spawn(jobs::open(self.connection.nats().clone(), self.kind, positions));
    }

    pub(super) fn opened(&mut self, opened: Opened) {
        let Opened { reader, created, starts, after } = opened;
        self.shards.iter_mut().flatten().for_each(|owned| owned.is_read = false);
        for (shard, start) in starts {
            if let Some(owned) = &mut self.shards[shard.index()] {
                // What the former reader has received meanwhile is not taken again.
                let delivered = owned.handling.delivered();
                if delivered.created != created {
                    owned.replaced = delivered.progress.iter().map(|progress| progress.stream.clone()).collect();
                }
                let is_same = delivered.created == created && start > 0;
                owned.after = if is_same { start.max(delivered.sequence) } else { start };
                owned.is_read = true;
            }
        }
        self.feed = Some(Feed { reader, created, sequence: after, idle: Idle::default(), is_at_end: false });
    }

    pub(super) fn take_message(&mut self, message: Incoming) {
        let Some(feed) = &mut self.feed else { return };
        let (created, sequence) = (feed.created, message.stream_sequence);
        feed.sequence = sequence.max(feed.sequence);
        self.reached.fetch_max(sequence, Relaxed);
        feed.idle.end();
        feed.is_at_end = message.pending == 0;
        let Some(topic) = topic_of(&message.subject).filter(|topic| topic.kind == self.kind) else {
            self.metrics.malformed.inc();
            return;
        };
        if let Err(error) = self.batch(topic, created, &message) {
            self.metrics.malformed.inc();
            debug!(%error, %topic, "message rejected");
        }
    }

    /// Checks a message of a shard, and delivers what is new of it.
    fn batch(&mut self, topic: Topic, created: u64, message: &Incoming) -> Result<(), DecodeError> {
        let sequence = message.stream_sequence;
        let is_wanted = self.shards[topic.shard.index()]
            .as_ref()
            .is_some_and(|owned| owned.is_read && !owned.is_stopping && sequence > owned.after);
        if !is_wanted {
            return Ok(());
        }
        let (_, header, mut batch) = message.decode()?;
        let stream = self.stream(header.stream_name, header.stream_epoch)?;
        let owed = self.table.owed(&stream, topic.shard);
        let Some(owned) = &mut self.shards[topic.shard.index()] else { return Ok(()) };
        owned.after = sequence;
        let is_replaced = take_replaced(owned, &stream);
        let taken = owned.handling.take(created, sequence, &stream, header.first_sequence, header.count, owed);
        let generation = owned.handling.generation();
        if taken.missing > 0 {
            self.lost(&stream, topic, taken, is_replaced);
        }
        self.metrics.duplicates.inc_by(u64::from(taken.skip));
        self.metrics.received_age_seconds.set(age_seconds(header.last_captured_at_ns));
        if taken.new == 0 {
            return Ok(());
        }
        batch.drop_first(taken.skip as usize);
        self.metrics.received.inc_by(u64::from(taken.new));
        let first_sequence = header.first_sequence + u64::from(taken.skip);
        let (first_captured_at_ns, last_captured_at_ns) = (header.first_captured_at_ns, header.last_captured_at_ns);
        self.log.delivered(&stream, topic, header.next_sequence(), first_captured_at_ns, last_captured_at_ns);
        let ack_token =
            self.acks.token(Completion { stream: stream.clone(), shard: topic.shard, generation, first_sequence });
        self.deliveries.push_back(GroupDelivery {
            topic,
            stream,
            first_sequence,
            first_captured_at_ns,
            last_captured_at_ns,
            batch,
            ack_token,
        });
        Ok(())
    }

    /// The stream of this name and epoch, with a shared name. The newest streams are in front.
    fn stream(&mut self, name: &str, epoch: u64) -> Result<Stream, DecodeError> {
        let known = self.streams.iter().position(|stream| stream.epoch == epoch && *stream.name == *name);
        if let Some(index) = known {
            return Ok(self.streams[index].clone());
        }
        let checked = Name::new(name);
        let checked = checked.map_err(|error| DecodeError::Malformed { part: "header", reason: error.to_string() })?;
        let stream = Stream::new(&checked, epoch);
        self.streams.truncate(MAX_STREAMS - 1);
        self.streams.push_front(stream.clone());
        Ok(stream)
    }

    /// The next message that has arrived already.
    pub(super) fn next_message(&mut self) -> Option<Incoming> {
        let JetStreamGroup { connection, feed, .. } = self;
        let feed = feed.as_mut()?;
        match connection.block_on(feed.reader.next(Duration::ZERO)) {
            Ok(message) => {
                if message.is_none() {
                    feed.idle.looked(Instant::now());
                }
                message
            }
            Err(error) => {
                self.reader_lost(&error);
                None
            }
        }
    }

    pub(super) fn reader_lost(&mut self, error: &ReaderLost) {
        debug!(%error, "reader lost, opening another");
        self.feed = None;
        self.jobs.must_open = true;
    }

    /// Whether the reader has read everything that is stored.
    pub(super) fn has_read_all(&self) -> bool {
        match &self.feed {
            Some(feed) => !self.jobs.must_open && (feed.is_at_end || feed.idle.lasted(Instant::now()) >= IDLE),
            None => self.table.owned().next().is_none(),
        }
    }
}

/// Whether nothing of a publisher's stream has been seen since the stored stream was replaced. Now
/// something has.
pub(super) fn take_replaced(owned: &mut Owned, stream: &Stream) -> bool {
    let known = owned.replaced.iter().position(|replaced| replaced == stream);
    known.map(|index| owned.replaced.swap_remove(index)).is_some()
}
