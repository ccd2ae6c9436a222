//! What a member that deduplicates asks of this bus: how far each publisher is, and what former
//! owners of its shards have handled.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use sekiwake_group::{Stream, Tracker};
use sekiwake_record::{DecodeError, Kind, Shard, Topic};
use tokio::{
    runtime::Handle,
    sync::mpsc::{Receiver, Sender, channel, error::TryRecvError},
};
use tracing::debug;

use super::{
    super::{
        connection::Nats,
        reader::{Incoming, Reader, ReaderLost, Start},
        source::EARLIER,
        state::{At, Position},
        streams::{data_stream, data_subjects},
    },
    Owned, RETRY,
    reading::Feed,
};
use crate::{BusError, Delivery, MissingRecent, Source, StreamProgress};

/// A publisher is live if it was heard within this time.
const OTHER_VIEW_WITHIN: Duration = Duration::from_secs(3);
/// Messages of the past that wait for the caller, at most half a MiB each.
const WAITING: usize = 16;
/// How often the reader of the past looks whether it is still wanted.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What publishers have announced, for a member that deduplicates.
#[derive(Default)]
pub(super) struct Views {
    progress: VecDeque<StreamProgress>,
    heard: BTreeMap<Stream, Heard>,
}

/// The newest announcement of a publisher.
#[derive(Clone, Copy)]
struct Heard {
    at_ns: u64,
    /// When a change was seen. The first announcement that is seen may be old.
    changed_at: Option<Instant>,
}

impl Views {
    /// Takes all announcements.
    pub(super) fn announced(
        &mut self,
        now: Instant,
        announced: &BTreeMap<Stream, At>,
        kind: Kind,
        shards: &[Option<Owned>],
        feed: Option<&Feed>,
    ) {
        let mut heard = BTreeMap::new();
        for (stream, at) in announced {
            let known = self.heard.get(stream).copied();
            let is_changed = known.is_some_and(|known| known.at_ns != at.at_ns);
            let changed_at = if is_changed { Some(now) } else { known.and_then(|known| known.changed_at) };
            heard.insert(stream.clone(), Heard { at_ns: at.at_ns, changed_at });
            if is_changed {
                // The next one of a stream says at least as much.
                self.progress.retain(|older| older.stream != *stream);
                self.progress.push_back(StreamProgress {
                    stream: stream.clone(),
                    ended: at.has_ended,
                    clock_ns: at.stored_until_ns,
                    behind: behind(stream, at, kind, shards, feed),
                });
            }
        }
        self.heard = heard;
    }

    pub(super) fn next_progress(&mut self) -> Option<StreamProgress> {
        self.progress.pop_front()
    }

    /// Whether another publisher with records of this topic was heard recently.
    pub(super) fn has_other(
        &self,
        stream: &Stream,
        topic: Topic,
        announced: &BTreeMap<Stream, At>,
        now: Instant,
    ) -> bool {
        announced.iter().any(|(other, at)| {
            let changed_at = self.heard.get(other).and_then(|heard| heard.changed_at);
            let is_live = changed_at.is_some_and(|at| now.saturating_duration_since(at) < OTHER_VIEW_WITHIN);
            other != stream && !at.has_ended && is_live && at.positions.contains_key(&topic)
        })
    }
}

/// The shards, one bit each, of which not everything announced has been received.
fn behind(stream: &Stream, at: &At, kind: Kind, shards: &[Option<Owned>], feed: Option<&Feed>) -> u64 {
    let mut behind = 0;
    for (shard, owned) in Shard::all().zip(shards) {
        let is_complete = match (owned, at.positions.get(&Topic { kind, shard })) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(owned), Some(Position { next_sequence, stream_sequence })) => {
                let is_read = owned.is_read && !owned.is_stopping;
                let is_passed = is_read && feed.is_some_and(|feed| feed.sequence >= *stream_sequence);
                is_passed || owned.handling.delivered().next(stream).is_some_and(|next| next >= *next_sequence)
            }
        };
        behind |= u64::from(!is_complete) << shard.index();
    }
    behind
}

/// Opens readers of the past on the member's connection.
pub(crate) struct PastReader {
    pub(super) nats: Nats,
    pub(super) runtime: Handle,
    pub(super) kind: Kind,
    /// No message after this one was received, or handled by former owners.
    pub(super) reached: Arc<AtomicU64>,
}

impl PastReader {
    /// Reads the topics that begin with one of `prefixes`, from what was captured at `since_ns` up
    /// to what the member has received. It makes progress while the member is called.
    pub(crate) fn open(&self, prefixes: &[String], since_ns: u64) -> Past {
        let (sender, messages) = channel(WAITING);
        let reading = Reading {
            nats: self.nats.clone(),
            stream: data_stream(self.kind),
            subjects: data_subjects(self.kind, prefixes),
            start: Start::Time(since_ns.saturating_sub(EARLIER.as_nanos() as u64)),
            until: self.reached.load(Relaxed),
            messages: sender,
        };
        drop(self.runtime.spawn(reading.run()));
        Past { messages, tracker: Tracker::default(), since_ns, is_over: false }
    }
}

/// The task that reads.
struct Reading {
    nats: Nats,
    stream: &'static str,
    subjects: Vec<String>,
    start: Start,
    /// The last message that is wanted.
    until: u64,
    messages: Sender<Incoming>,
}

impl Reading {
    /// Ends when everything is read, which closes the channel, or when nobody takes it.
    async fn run(mut self) {
        while !self.messages.is_closed() {
            match self.read().await {
                Ok(()) => return,
                Err(error) => debug!(%error, "past records not read, trying again"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn read(&mut self) -> Result<(), ReaderLost> {
        let mut reader = Reader::open(&self.nats, self.stream, &self.subjects, self.start).await?;
        if !reader.has_messages() {
            return Ok(());
        }
        while !self.messages.is_closed() {
            let Some(incoming) = reader.next(LOOK_EVERY).await? else { continue };
            let (sequence, pending) = (incoming.stream_sequence, incoming.pending);
            // An error is that nobody takes it.
            if self.messages.send(incoming).await.is_err() || sequence >= self.until || pending == 0 {
                break;
            }
            self.start = Start::Sequence(sequence + 1);
        }
        Ok(())
    }
}

/// Records of the past. See [`PastReader::open`].
pub(crate) struct Past {
    messages: Receiver<Incoming>,
    tracker: Tracker,
    since_ns: u64,
    is_over: bool,
}

impl Past {
    /// Reads a message; `None` if all of it was read before.
    fn delivery(&mut self, incoming: &Incoming) -> Result<Option<Delivery>, DecodeError> {
        let (topic, header, mut batch) = incoming.decode()?;
        let seen = self.tracker.observe(topic, &header);
        if seen.duplicates == header.count {
            return Ok(None);
        }
        batch.drop_first(seen.duplicates as usize);
        Ok(Some(Delivery {
            topic,
            stream_name: seen.stream_name,
            stream_epoch: header.stream_epoch,
            first_sequence: header.first_sequence + u64::from(seen.duplicates),
            batch,
            is_retransmitted: true,
        }))
    }
}

impl Source for Past {
    /// Does not wait: the connection is the member's, and makes no progress here.
    fn receive(&mut self, _timeout: Duration) -> Result<Option<Delivery>, BusError> {
        loop {
            match self.messages.try_recv() {
                Ok(incoming) => match self.delivery(&incoming) {
                    Ok(Some(delivery)) => return Ok(Some(delivery)),
                    Ok(None) => {}
                    Err(error) => debug!(%error, "past message rejected"),
                },
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => {
                    self.is_over = true;
                    return Ok(None);
                }
            }
        }
    }

    fn next_missing(&mut self) -> Option<MissingRecent> {
        None
    }

    fn is_live(&self) -> bool {
        self.is_over
    }

    fn since_ns(&self) -> u64 {
        self.since_ns
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_lease::{Handling, Owed, Position as Handled};
    use sekiwake_record::{Name, SHARDS};

    use super::*;

    fn announced(at_ns: u64, has_ended: bool) -> BTreeMap<Stream, At> {
        let shard = Shard::new(0).unwrap();
        let position = Position { next_sequence: 10, stream_sequence: 5 };
        let at = At {
            name: Name::new("tap-a").unwrap(),
            epoch: 1,
            has_ended,
            at_ns,
            stored_until_ns: Some(at_ns - 1),
            positions: BTreeMap::from([(Topic { kind: Kind::Syslog, shard }, position)]),
            sent: None,
            own: Vec::new(),
        };
        BTreeMap::from([(Stream::new(&at.name, at.epoch), at)])
    }

    #[test]
    fn publisher_is_heard_when_its_announcement_changes() {
        let mut views = Views::default();
        let mut shards: Vec<Option<Owned>> = (0..SHARDS).map(|_| None).collect();
        let handling = Handling::new(1, Handled::default());
        shards[0] = Some(Owned { handling, is_stopping: false, is_read: true, after: 0, replaced: Vec::new() });
        let now = Instant::now();
        let stream = announced(1, false).into_keys().next().unwrap();
        let other = Stream::new(&Name::new("tap-b").unwrap(), 2);
        let topic = Topic { kind: Kind::Syslog, shard: Shard::new(0).unwrap() };
        let mut announce = |shards: &[Option<Owned>], at_ns: u64, has_ended: bool| {
            let all = announced(at_ns, has_ended);
            views.announced(now, &all, Kind::Syslog, shards, None);
            let is_other = views.has_other(&other, topic, &all, now + OTHER_VIEW_WITHIN / 2);
            let is_itself = views.has_other(&stream, topic, &all, now);
            let is_silent = !views.has_other(&other, topic, &all, now + OTHER_VIEW_WITHIN);
            assert!(!is_itself && is_silent);
            (views.next_progress().map(|progress| (progress.clock_ns, progress.ended, progress.behind)), is_other)
        };
        // The first one that is read may be old.
        assert_eq!(announce(&shards, 7, false), (None, false));
        assert_eq!(announce(&shards, 7, false), (None, false));
        assert_eq!(announce(&shards, 8, false), (Some((Some(7), false, u64::MAX)), true));
        assert_eq!(announce(&shards, 8, false), (None, true));
        // Everything announced has been received, of the only shard that the member has.
        shards[0].as_mut().unwrap().handling.take(9, 5, &stream, 0, 10, Owed::From(0));
        assert_eq!(announce(&shards, 9, false), (Some((Some(8), false, !1)), true));
        assert_eq!(announce(&shards, 10, true), (Some((Some(9), true, !1)), false));
    }
}
