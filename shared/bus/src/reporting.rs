//! How a part of the bus reports to the process that it runs in.

use crate::Deduplicate;
use sekiwake_runtime::{Latch, Metrics, Scope, StatusFeed, StatusResponder, Stop};

/// Where a part of the bus reports its state.
pub struct Reporting {
    /// Its metrics.
    pub metrics: Metrics,
    /// Its readiness.
    pub ready: Latch,
    /// Its part of `/status`.
    pub status: StatusResponder,
    /// The part of `/status` about duplicates.
    pub deduplicate: Option<StatusResponder>,
    /// What the role says of itself to readers of status.
    pub feed: StatusFeed,
    /// The role's stop, which ends its waits.
    pub stop: Stop,
}

impl Reporting {
    /// Reports to a role's `scope`, under these names on `/readyz` and `/status`.
    pub fn new(scope: &Scope, readiness: &str, status: &str) -> Reporting {
        Reporting {
            metrics: scope.metrics().clone(),
            ready: scope.readiness(readiness),
            status: scope.status(status),
            feed: scope.status_feed(),
            deduplicate: None,
            stop: scope.stop(),
        }
    }

    /// The same, for a member that deduplicates, if it does.
    #[must_use]
    pub fn deduplicating(mut self, scope: &Scope, setting: Option<Deduplicate>) -> Reporting {
        self.deduplicate = setting.map(|_| scope.status("deduplicate"));
        self
    }
}
