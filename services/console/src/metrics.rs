//! The console's metrics.

use sekiwake_runtime::{
    Metrics,
    prometheus::{IntCounter, IntGauge},
};

use crate::model::Model;

/// Metric names.
pub mod names {
    /// Parts of status received.
    pub const PARTS: &str = "sekiwake_console_status_parts_total";
    /// Parts of status that are not shown, by reason: `invalid`, `no_room`.
    pub const REJECTED: &str = "sekiwake_console_rejected_parts_total";
    /// Services known.
    pub const SERVICES: &str = "sekiwake_console_services";
    /// Requests denied, by reason: `host`, `token`.
    pub const DENIED: &str = "sekiwake_console_denied_requests_total";
}

/// Counters and gauges.
#[derive(Clone, Debug)]
pub(crate) struct ConsoleMetrics {
    pub(crate) parts: IntCounter,
    pub(crate) wrong_host: IntCounter,
    pub(crate) wrong_token: IntCounter,
    invalid: IntCounter,
    no_room: IntCounter,
    services: IntGauge,
}

impl ConsoleMetrics {
    pub(crate) fn new(metrics: &Metrics) -> ConsoleMetrics {
        let rejected = |reason| {
            let help = "Parts of status that are not shown, by reason.";
            metrics.counter(names::REJECTED, help, &[("reason", reason)])
        };
        let denied = |reason| metrics.counter(names::DENIED, "Requests denied, by reason.", &[("reason", reason)]);
        ConsoleMetrics {
            parts: metrics.counter(names::PARTS, "Parts of status received.", &[]),
            wrong_host: denied("host"),
            wrong_token: denied("token"),
            invalid: rejected("invalid"),
            no_room: rejected("no_room"),
            services: metrics.gauge(names::SERVICES, "Services whose status is shown.", &[]),
        }
    }

    /// Follows the model's counts.
    pub(crate) fn follow(&self, model: &Model) {
        self.invalid.inc_by(model.invalid - self.invalid.get());
        self.no_room.inc_by(model.no_room - self.no_room.get());
        self.services.set(model.services() as i64);
    }
}
