//! A subscriber's knowledge of the streams: the next record of each topic, and so which records
//! are missing and which are duplicates. No clock, no socket.

use std::sync::Arc;

use sekiwake_record::{Announcement, Header, Kind, Topic};

use crate::{UNKNOWN, wire::MAX_STREAMS};

/// Derives gaps and duplicates from the headers of batches and the announcements of streams. At
/// most [`MAX_STREAMS`] streams, each one run of a publisher, are tracked: beyond that one that was
/// observed only once is forgotten, or else the one that has been silent for longest.
#[derive(Debug, Default)]
pub struct Tracker {
    streams: Vec<TrackedStream>,
    /// Counts observations, to order streams by their last one.
    observations: u64,
    forgotten: u64,
}

#[derive(Debug)]
struct TrackedStream {
    name: Arc<str>,
    epoch: u64,
    last_observed: u64,
    /// It was observed more than once: anybody can invent a stream, but few keep it up.
    is_lasting: bool,
    /// The next sequence number, by topic; [`UNKNOWN`] before the first batch or announcement.
    next: Box<[u64]>,
}

/// The result of recording a batch.
#[derive(Debug, PartialEq, Eq)]
pub struct Observation {
    /// The stream's name.
    pub stream_name: Arc<str>,
    /// How many records are missing between the previous batch and this one.
    pub missing: u64,
    /// How many records at the beginning of the batch are duplicates.
    pub duplicates: u32,
}

impl Tracker {
    /// Records a batch. A stream or topic that is seen for the first time begins with this batch:
    /// earlier records were published before this subscriber connected.
    pub fn observe(&mut self, topic: Topic, header: &Header<'_>) -> Observation {
        let stream = self.stream(header.stream_name, header.stream_epoch);
        let next = &mut stream.next[topic.index()];
        let expected = if *next == UNKNOWN { header.first_sequence } else { *next };
        let missing = header.first_sequence.saturating_sub(expected);
        let duplicates = expected.saturating_sub(header.first_sequence).min(u64::from(header.count)) as u32;
        *next = expected.max(header.next_sequence()).min(UNKNOWN - 1);
        Observation { stream_name: Arc::clone(&stream.name), missing, duplicates }
    }

    /// Records a publisher's announcement, as far as `subscribed` selects its topics. Returns per
    /// kind the number of records that were published before the announcement and are missing.
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
        // A topic that is not listed has no records yet: its first one will be number 0.
        stream.next.iter_mut().filter(|next| **next == UNKNOWN).for_each(|next| *next = 0);
        if announcement.ended {
            let epoch = announcement.stream_epoch;
            self.streams.retain(|stream| stream.epoch != epoch || *stream.name != *announcement.stream_name);
        }
        missing
    }

    /// How many streams are tracked.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// How many streams were forgotten because there were too many.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    fn stream(&mut self, name: &str, epoch: u64) -> &mut TrackedStream {
        self.observations += 1;
        let known = self.streams.iter().position(|stream| stream.epoch == epoch && *stream.name == *name);
        let index = known.unwrap_or_else(|| self.track(name, epoch));
        let stream = &mut self.streams[index];
        stream.is_lasting |= known.is_some();
        stream.last_observed = self.observations;
        stream
    }

    fn track(&mut self, name: &str, epoch: u64) -> usize {
        if self.streams.len() >= MAX_STREAMS {
            let oldest =
                self.streams.iter().enumerate().min_by_key(|(_, stream)| (stream.is_lasting, stream.last_observed));
            if let Some((index, _)) = oldest {
                self.streams.swap_remove(index);
                self.forgotten += 1;
            }
        }
        let next = vec![UNKNOWN; Topic::COUNT].into_boxed_slice();
        let last_observed = self.observations;
        self.streams.push(TrackedStream { name: Arc::from(name), epoch, last_observed, is_lasting: false, next });
        self.streams.len() - 1
    }
}

#[cfg(test)]
mod tests;
