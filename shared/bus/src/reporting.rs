//! How a part of the bus reports to the process that it runs in.

use sekiwake_runtime::{Latch, Metrics, Scope, StatusFeed, StatusResponder};

/// Where a part of the bus reports its state.
pub struct Reporting {
    /// Its metrics.
    pub metrics: Metrics,
    /// Its readiness.
    pub ready: Latch,
    /// Its part of `/status`.
    pub status: StatusResponder,
    /// What the role says of itself to readers of status.
    pub feed: StatusFeed,
}

impl Reporting {
    /// Reports to a role's `scope`, under these names on `/readyz` and `/status`.
    pub fn new(scope: &Scope, readiness: &str, status: &str) -> Reporting {
        Reporting {
            metrics: scope.metrics().clone(),
            ready: scope.readiness(readiness),
            status: scope.status(status),
            feed: scope.status_feed(),
        }
    }
}
