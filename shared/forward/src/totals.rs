//! What a forwarder sent and dropped in all, for its last line in the log.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::IntCounter;
use sekiwake_record::Kind;
use sekiwake_runtime::{LossReason, Losses};
use tracing::info;

use crate::metrics::{DestinationMetrics, DropReason};

/// The counters of a forwarder. Clones share the destinations.
#[derive(Clone)]
pub(crate) struct Totals {
    kind: Kind,
    received: IntCounter,
    unmatched: IntCounter,
    /// By label, also those that are removed by now.
    destinations: Arc<Mutex<BTreeMap<String, DestinationTotals>>>,
}

struct DestinationTotals {
    sent: IntCounter,
    dropped: Losses<DropReason>,
    handed_over: IntCounter,
}

impl Totals {
    pub(crate) fn new(kind: Kind, received: IntCounter, unmatched: IntCounter) -> Totals {
        Totals { kind, received, unmatched, destinations: Arc::default() }
    }

    /// Counts a destination in, once.
    pub(crate) fn include(&self, label: &str, metrics: &DestinationMetrics) {
        let mut destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        destinations.entry(label.to_owned()).or_insert_with(|| DestinationTotals {
            sent: metrics.sent_datagrams.clone(),
            dropped: metrics.dropped.clone(),
            handed_over: metrics.handed_over.clone(),
        });
    }

    /// Logs the sums over all destinations.
    pub(crate) fn log(&self) {
        let destinations = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |count: fn(&DestinationTotals) -> u64| destinations.values().map(count).sum::<u64>();
        let by_reason = DropReason::ALL.iter().filter_map(|&reason| {
            let dropped: u64 = destinations.values().map(|of_one| of_one.dropped.total(reason)).sum();
            (dropped > 0).then(|| format!("{} {dropped}", reason.name()))
        });
        let reasons = by_reason.collect::<Vec<_>>().join(", ");
        info!(
            kind = %self.kind,
            destinations = destinations.len(),
            received = self.received.get(),
            unmatched = self.unmatched.get(),
            sent = sum(|of_one| of_one.sent.get()),
            dropped = sum(|of_one| of_one.dropped.sum()),
            reasons,
            left_to_group = sum(|of_one| of_one.handed_over.get()),
            "forwarding ended"
        );
    }
}
