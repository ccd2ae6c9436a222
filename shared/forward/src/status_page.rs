//! The destinations' part of `/status`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use serde_json::{Map, Value, json};

use crate::{
    metrics::{DestinationMetrics, SkipReason, SpoolMetrics},
    status::LastError,
};

/// One endpoint, as `/status` shows it.
#[derive(Clone)]
pub(crate) struct ShownEndpoint {
    pub(crate) metrics: DestinationMetrics,
    /// `None` without a spool.
    pub(crate) spool: Option<SpoolMetrics>,
}

/// The endpoints in use by the value of the label `destination`, in the order in which they are
/// configured. Clones share the list.
#[derive(Clone, Default)]
pub(crate) struct ShownEndpoints(Arc<Mutex<Vec<(String, ShownEndpoint)>>>);

impl ShownEndpoints {
    pub(crate) fn set(&self, endpoints: Vec<(String, ShownEndpoint)>) {
        *self.lock() = endpoints;
    }

    pub(crate) fn by_label(&self) -> BTreeMap<String, ShownEndpoint> {
        self.lock().iter().cloned().collect()
    }

    pub(crate) fn to_json(&self) -> Value {
        let endpoints = self.lock().clone();
        endpoints.iter().map(|(label, endpoint)| endpoint.to_json(label)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(String, ShownEndpoint)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ShownEndpoint {
    fn to_json(&self, label: &str) -> Value {
        let ShownEndpoint { metrics, spool } = self;
        let history = metrics.status.history();
        let skipped = SkipReason::NAMES.into_iter().zip(metrics.skipped.iter().map(|counter| counter.get()));
        json!({
            "destination": label,
            "state": metrics.status.state().as_str(),
            "seconds_in_state": history.changed_at.elapsed().as_secs_f64(),
            "address": history.address,
            "last_error": history.last_error.map(|LastError { text, at }| {
                json!({ "error": text, "seconds_ago": at.elapsed().as_secs_f64() })
            }),
            "sent": metrics.sent_datagrams.get(),
            "dropped": by_reason(metrics.dropped.by_reason()),
            "filtered_out": by_reason(skipped),
            "handed_over": metrics.handed_over.get(),
            "queue": { "records": metrics.queue_records.get(), "bytes": metrics.queue_bytes.get() },
            "spool": spool.as_ref().map(|spool| {
                json!({ "datagrams": spool.datagrams.get(), "bytes": spool.bytes.get(), "errors": spool.errors.get() })
            }),
        })
    }
}

/// The counts that are not 0.
fn by_reason(counts: impl Iterator<Item = (&'static str, u64)>) -> Map<String, Value> {
    counts.filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.to_owned(), count.into())).collect()
}
