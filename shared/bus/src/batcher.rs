//! The batcher: records go in, batches come out. No clock, no socket: the caller says when the tick has come.

use sekiwake_record::{BatchBuilder, ClosedBatch, MAX_BATCH_BYTES, Record, Topic};

/// A closed batch on its way to the stream's one writer.
pub type Outbound = (Topic, ClosedBatch);

/// The open batches of one capture thread, one for each topic that has records.
///
/// All of them leave together on the publisher's tick: many topics with a timer each cost five times as much.
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
    /// Appends a record to its topic's batch. A batch that it does not fit into is closed first.
    pub fn push(&mut self, topic: Topic, record: &Record<'_>) {
        let slot = &mut self.open[topic.index()];
        if let Some(batch) = slot {
            if batch.has_room_for(record) {
                batch.push(record);
                return;
            }
            let full = slot.take().and_then(BatchBuilder::close);
            self.closed.extend(full.map(|batch| (topic, batch)));
        } else {
            self.opened.push(topic.index());
        }
        let buffer = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(MAX_BATCH_BYTES));
        slot.insert(BatchBuilder::new(buffer)).push(record);
    }

    /// The batches that are full. They need not wait for the tick.
    pub fn take_full(&mut self) -> Vec<Outbound> {
        std::mem::take(&mut self.closed)
    }

    /// All batches, the open ones too: what leaves on the tick. Those of one topic stay in order.
    pub fn take_all(&mut self) -> Vec<Outbound> {
        for index in self.opened.drain(..) {
            let batch = self.open[index].take().and_then(BatchBuilder::close);
            self.closed.extend(Topic::from_index(index).zip(batch));
        }
        self.take_full()
    }

    /// Whether nothing waits in it.
    pub fn is_empty(&self) -> bool {
        self.opened.is_empty() && self.closed.is_empty()
    }

    /// Gives a buffer back for another batch. At most one for each topic is kept, and none that a jumbo record made large.
    pub fn recycle(&mut self, buffer: Vec<u8>) {
        if self.spare.len() < Topic::COUNT && buffer.capacity() <= 2 * MAX_BATCH_BYTES {
            self.spare.push(buffer);
        }
    }
}
