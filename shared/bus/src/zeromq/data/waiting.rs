//! Numbered batches that wait for room on the bus. They stay in the publisher's retained memory, so
//! that one bound holds for both; the queue has only their places in it.

use std::collections::VecDeque;

use sekiwake_group::{Retained, Retention};
use sekiwake_record::Topic;

/// Length of the queue above which batches that are no longer retained are removed.
const PRUNE_AT: usize = 1 << 18;

/// A batch that waits, by its place in the retained memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WaitingBatch {
    pub(crate) topic: Topic,
    pub(crate) first_sequence: u64,
    pub(crate) count: u32,
    bytes: usize,
}

/// Waiting batches, oldest first.
#[derive(Debug)]
pub(crate) struct WaitingQueue {
    batches: VecDeque<WaitingBatch>,
    bytes: usize,
    records: u64,
    /// The length of the queue at which it is pruned next.
    prune_at: usize,
}

impl Default for WaitingQueue {
    fn default() -> WaitingQueue {
        WaitingQueue { batches: VecDeque::new(), bytes: 0, records: 0, prune_at: PRUNE_AT }
    }
}

impl WaitingQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    pub(crate) fn push<B: AsRef<[u8]>>(&mut self, topic: Topic, batch: &Retained<B>) {
        let bytes = batch.body.as_ref().len();
        self.bytes += bytes;
        self.records += u64::from(batch.count);
        let Retained { first_sequence, count, .. } = *batch;
        self.batches.push_back(WaitingBatch { topic, first_sequence, count, bytes });
    }

    pub(crate) fn front(&self) -> Option<WaitingBatch> {
        self.batches.front().copied()
    }

    pub(crate) fn pop(&mut self) -> Option<WaitingBatch> {
        let batch = self.batches.pop_front()?;
        self.bytes -= batch.bytes;
        self.records -= u64::from(batch.count);
        Some(batch)
    }

    /// Whether the queue has grown enough to be pruned.
    pub(crate) fn should_prune(&self) -> bool {
        self.batches.len() >= self.prune_at
    }

    /// Removes batches that are no longer retained, so that the queue is bounded as the memory is,
    /// and passes them to `lost`.
    pub(crate) fn prune<B: AsRef<[u8]>>(&mut self, retention: &Retention<B>, mut lost: impl FnMut(WaitingBatch)) {
        self.batches.retain(|batch| {
            let is_retained = batch.first_sequence >= retention.oldest_sequence(batch.topic);
            if !is_retained {
                lost(*batch);
            }
            is_retained
        });
        // If everything is retained, pruning again is useless before the queue has doubled.
        self.prune_at = PRUNE_AT.max(2 * self.batches.len());
        self.bytes = self.batches.iter().map(|batch| batch.bytes).sum();
        self.records = self.batches.iter().map(|batch| u64::from(batch.count)).sum();
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_group::BootTime;

    use super::*;

    #[test]
    fn batches_that_are_no_longer_retained_are_pruned() {
        let topic = Topic::all().next().unwrap();
        let mut retention = Retention::new([4096; 3]);
        let mut queue = WaitingQueue::default();
        for first_sequence in 0..100 {
            let batch = Retained {
                first_sequence,
                count: 1,
                first_captured_at_ns: 0,
                last_captured_at_ns: 0,
                published_at: BootTime::ZERO,
                body: vec![0; 1000],
            };
            retention.store(topic, batch.clone());
            queue.push(topic, &batch);
        }
        let oldest = retention.oldest_sequence(topic);
        assert!(oldest > 0 && oldest < 100);
        let mut lost = Vec::new();
        queue.prune(&retention, |batch| lost.push(batch.first_sequence));
        assert_eq!(lost, (0..oldest).collect::<Vec<_>>());
        assert_eq!((queue.records(), queue.bytes()), (100 - oldest, (100 - oldest) as usize * 1000));
        assert_eq!(queue.front().map(|batch| batch.first_sequence), Some(oldest));
        while queue.pop().is_some() {}
        assert_eq!((queue.records(), queue.bytes(), queue.should_prune()), (0, 0, false));
    }
}
