//! What producers offered and the writer never took. It is counted wherever it ends: at the producer's hand, or in the channel
//! when the writer goes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use sekiwake_record::Topic;

use crate::{batcher::Outbound, metrics::PerKind};

/// Counts refused records. They have no sequence numbers: a stream's numbers are those of what can be repeated, without holes.
pub(crate) struct Refusals {
    bus_full: PerKind,
    total: AtomicU64,
}

impl Refusals {
    pub(crate) fn new(bus_full: PerKind) -> Refusals {
        Refusals { bus_full, total: AtomicU64::new(0) }
    }

    /// How many records were refused in all.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn refuse(&self, topic: Topic, records: u64) {
        self.bus_full[topic.kind.index()].inc_by(records);
        self.total.fetch_add(records, Ordering::Relaxed);
    }
}

/// Batches on their way to the writer. What is dropped before it got there is refused.
pub(crate) struct Handover {
    batches: Vec<Outbound>,
    refusals: Arc<Refusals>,
}

impl Handover {
    pub(crate) fn new(batches: Vec<Outbound>, refusals: &Arc<Refusals>) -> Handover {
        Handover { batches, refusals: Arc::clone(refusals) }
    }

    /// How many records are in it.
    pub(crate) fn records(&self) -> u64 {
        self.batches.iter().map(|(_, batch)| u64::from(batch.count)).sum()
    }

    /// The batches, which are the writer's now.
    pub(crate) fn take(mut self) -> Vec<Outbound> {
        std::mem::take(&mut self.batches)
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        for (topic, batch) in &self.batches {
            self.refusals.refuse(*topic, u64::from(batch.count));
        }
    }
}
