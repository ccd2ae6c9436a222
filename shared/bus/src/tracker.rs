//! What a subscriber knows of the streams: which record comes next on each topic, and so what is missing and what is repeated.
//! No clock, no socket.

use std::sync::Arc;

use sekiwake_record::{Announcement, Header, Kind, Topic};

/// How many streams are followed at once. Each run of a publisher is one; the one unheard of for longest is forgotten.
pub(crate) const MAX_STREAMS: usize = 256;

/// No record of this topic has been seen and no announcement has spoken of it.
const UNKNOWN: u64 = u64::MAX;

/// The largest sequence number that is believed: what a stream of ten million records a second reaches in 28 years. A peer
/// that claims more would only make the counters of what is lost meaningless.
pub(crate) const MAX_SEQUENCE: u64 = 1 << 53;

/// What the headers of batches and the announcements of streams add up to.
#[derive(Debug, Default)]
pub struct Tracker {
    streams: Vec<Stream>,
    /// Counts observations, to tell which stream was heard of last.
    now: u64,
    forgotten: u64,
}

#[derive(Debug)]
struct Stream {
    name: Arc<str>,
    epoch: u64,
    heard: u64,
    /// The sequence number that comes next, by topic.
    next: Box<[u64]>,
}

/// What a batch means to a subscriber.
#[derive(Debug, PartialEq, Eq)]
pub struct Observation {
    /// The stream's name.
    pub stream_name: Arc<str>,
    /// How many records between what came before and this batch never came.
    pub missing: u64,
    /// How many records at the batch's beginning have come before.
    pub repeated: u32,
}

impl Tracker {
    /// Takes note of a batch. A stream or topic seen for the first time begins with this batch: what went before it was
    /// published before this subscriber was there.
    pub fn observe(&mut self, topic: Topic, header: &Header<'_>) -> Observation {
        let stream = self.stream(header.stream_name, header.stream_epoch);
        let next = &mut stream.next[topic.index()];
        let expected = if *next == UNKNOWN { header.first_sequence } else { *next };
        let missing = header.first_sequence.saturating_sub(expected);
        let repeated = expected.saturating_sub(header.first_sequence).min(u64::from(header.count)) as u32;
        *next = expected.max(header.next_sequence()).min(UNKNOWN - 1);
        Observation { stream_name: Arc::clone(&stream.name), missing, repeated }
    }

    /// Takes note of what a publisher says of its stream, on the topics that `subscribed` names, and gives the number of
    /// records by kind that have been published, should have come before the announcement, and did not.
    pub fn announced(&mut self, announcement: &Announcement, subscribed: impl Fn(Topic) -> bool) -> [u64; 3] {
        let mut missing = [0; Kind::ALL.len()];
        let stream = self.stream(&announcement.stream_name, announcement.stream_epoch);
        for position in announcement.positions.iter().filter(|position| subscribed(position.topic)) {
            let next = &mut stream.next[position.topic.index()];
            let announced = position.next_sequence.min(UNKNOWN - 1);
            if *next == UNKNOWN {
                *next = announced;
                continue;
            }
            let missed = &mut missing[position.topic.kind.index()];
            *missed = announced.saturating_sub(*next).saturating_add(*missed);
            *next = announced.max(*next);
        }
        // A topic that is not listed has had no record yet: its first one is number 0.
        stream.next.iter_mut().filter(|next| **next == UNKNOWN).for_each(|next| *next = 0);
        if announcement.ended {
            let epoch = announcement.stream_epoch;
            self.streams.retain(|stream| stream.epoch != epoch || *stream.name != *announcement.stream_name);
        }
        missing
    }

    /// How many streams are followed.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// How many streams were forgotten because there were too many.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn stream(&mut self, name: &str, epoch: u64) -> &mut Stream {
        self.now += 1;
        let known = self.streams.iter().position(|stream| stream.epoch == epoch && *stream.name == *name);
        let index = known.unwrap_or_else(|| self.follow(name, epoch));
        let stream = &mut self.streams[index];
        stream.heard = self.now;
        stream
    }

    fn follow(&mut self, name: &str, epoch: u64) -> usize {
        if self.streams.len() >= MAX_STREAMS {
            let oldest = self.streams.iter().enumerate().min_by_key(|(_, stream)| stream.heard);
            if let Some((index, _)) = oldest {
                self.streams.swap_remove(index);
                self.forgotten += 1;
            }
        }
        let next = vec![UNKNOWN; Topic::COUNT].into_boxed_slice();
        self.streams.push(Stream { name: Arc::from(name), epoch, heard: self.now, next });
        self.streams.len() - 1
    }
}
