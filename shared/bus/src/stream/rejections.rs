//! Batches that producers offered and the writer never took. They are counted wherever they are
//! dropped: by the producer, or in the channel when the writer has ended.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use sekiwake_record::{Outbound, Topic};

use crate::metrics::PerKind;

/// Counts rejected records. They have no sequence numbers, because only retained records are
/// numbered: so a stream's numbers have no gaps.
pub(crate) struct Rejections {
    bus_full: PerKind,
    total: AtomicU64,
}

impl Rejections {
    pub(crate) fn new(bus_full: PerKind) -> Rejections {
        Rejections { bus_full, total: AtomicU64::new(0) }
    }

    /// The total number of rejected records.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    fn count(&self, topic: Topic, records: u64) {
        self.bus_full[topic.kind.index()].inc_by(records);
        self.total.fetch_add(records, Ordering::Relaxed);
    }
}

/// Batches on their way to the writer. Those that are dropped before they arrive are counted as
/// rejected.
pub(crate) struct Handover {
    batches: Vec<Outbound>,
    rejections: Arc<Rejections>,
}

impl Handover {
    pub(crate) fn new(batches: Vec<Outbound>, rejections: &Arc<Rejections>) -> Handover {
        Handover { batches, rejections: Arc::clone(rejections) }
    }

    /// How many records it has.
    pub(crate) fn records(&self) -> u64 {
        self.batches.iter().map(|outbound| u64::from(outbound.batch.count)).sum()
    }

    /// The batches, which the writer is responsible for from here on.
    pub(crate) fn take(mut self) -> Vec<Outbound> {
        std::mem::take(&mut self.batches)
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        for Outbound { topic, batch } in &self.batches {
            self.rejections.count(*topic, u64::from(batch.count));
        }
    }
}
