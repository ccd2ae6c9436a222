//! Notices that the rate of syslog is not what it was.
//!
//! ```text
//! bus ─▶ count: Detector ─ events ─▶ log, bus (anomaly/), notifiers ═▶ Alertmanager, webhooks, syslog
//!            └─ notes ─▶ proxy ─▶ the next detector that counts
//! ```

mod counting;
pub mod detect;
pub mod explain;
mod metrics;
pub mod notify;
mod service;
mod settings;

pub use metrics::names;
pub use service::AnomalyDetector;
pub use settings::AnomalySettings;
