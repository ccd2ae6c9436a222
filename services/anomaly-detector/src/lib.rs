//! Detects sudden rises and drops in the rate of syslog.
//!
//! ```text
//! bus ─▶ count: Detector ─ events ─▶ log, bus (anomaly/), notifiers ═▶ Alertmanager, webhooks, syslog
//!            └─ state ─▶ proxy ─▶ the next active detector
//! ```

mod command;
mod counting;
pub mod detect;
pub mod explain;
mod metrics;
pub mod notify;
mod service;
mod settings;

pub use command::process;
pub use metrics::names;
pub use service::AnomalyDetector;
pub use settings::AnomalySettings;
