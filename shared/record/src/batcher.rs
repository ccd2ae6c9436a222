//! The batcher collects records into batches. It has no clock and no socket: the caller decides
//! when a tick is due.

use crate::{BatchBuilder, ClosedBatch, MAX_BATCH_BYTES, Record, Topic};

/// A closed batch on its way to the stream's writer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outbound {
    /// Its topic.
    pub topic: Topic,
    /// Its records.
    pub batch: ClosedBatch,
}

/// The open batches of one capture thread, at most one per topic.
///
/// All of them leave together on the publisher's tick: with one timer per topic, many topics cost
/// five times as much.
#[derive(Debug)]
pub struct Batcher {
    open: Vec<Option<BatchBuilder>>,
    /// Indices of the topics that have an open batch, in the order in which they were opened.
    opened: Vec<usize>,
    closed: Vec<Outbound>,
    spare: Vec<Vec<u8>>,
}

impl Default for Batcher {
    fn default() -> Batcher {
        Batcher {
            open: (0..Topic::COUNT).map(|_| None).collect(),
            opened: Vec::with_capacity(Topic::COUNT),
            closed: Vec::new(),
            spare: Vec::new(),
        }
    }
}

impl Batcher {
    /// Appends a record to its topic's batch. A batch without room for it is closed first.
    pub fn push(&mut self, topic: Topic, record: &Record<'_>) {
        let slot = &mut self.open[topic.index()];
        if let Some(batch) = slot {
            if batch.has_room_for(record) {
                batch.push(record);
                return;
            }
            let full = slot.take().and_then(BatchBuilder::close);
            self.closed.extend(full.map(|batch| Outbound { topic, batch }));
        } else {
            self.opened.push(topic.index());
        }
        let buffer = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(MAX_BATCH_BYTES));
        slot.insert(BatchBuilder::new(buffer)).push(record);
    }

    /// Takes the full batches, which need not wait for the tick.
    pub fn take_full(&mut self) -> Vec<Outbound> {
        std::mem::take(&mut self.closed)
    }

    /// Takes all batches, including the open ones, on a tick. Batches of one topic stay in order.
    pub fn take_all(&mut self) -> Vec<Outbound> {
        for index in self.opened.drain(..) {
            let batch = self.open[index].take().and_then(BatchBuilder::close);
            let topic = Topic::from_index(index);
            self.closed.extend(topic.zip(batch).map(|(topic, batch)| Outbound { topic, batch }));
        }
        self.take_full()
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.closed.is_empty()
    }

    /// Returns a buffer for use by another batch. At most one per topic is kept, and none that a
    /// large record has enlarged.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < Topic::COUNT && buffer.capacity() <= 2 * MAX_BATCH_BYTES {
            self.spare.push(buffer);
        }
    }
}
