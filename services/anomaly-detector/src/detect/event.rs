//! What somebody must be told.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{bands::Bands, series::Key};

/// What has been noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// More messages than the upper band.
    High,
    /// Fewer messages than the lower band, or none.
    Low,
    /// A source that has always talked says nothing.
    SilentSource,
}

/// Whether it begins or is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    /// It is on.
    Firing,
    /// It is over.
    Resolved,
}

/// Why it is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It is as it was.
    Recovered,
    /// The source had to make room for others, and nobody will know.
    Forgotten,
}

/// A change that is to be told: an alarm begins, or is over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The same for an alarm and its end: series, kind, begin.
    pub id: String,
    /// What has been noticed.
    pub kind: EventKind,
    /// Whether it begins or is over.
    pub state: EventState,
    /// Why it is over.
    pub reason: Option<Reason>,
    /// What was counted: `total`, `severity/err`, `source/198.51.100.7`.
    pub series: String,
    /// The source, where it is about one.
    pub source: Option<IpAddr>,
    /// The interval that changed it, nanoseconds since 1970-01-01T00:00:00Z; for a silent source from when it spoke last until now.
    pub start_ns: u64,
    /// The end of that.
    pub end_ns: u64,
    /// When it began: the begin of the first interval, or when the source spoke last.
    pub since_ns: u64,
    /// Messages in the interval.
    pub count: u64,
    /// What it was judged against.
    pub bands: Option<Bands>,
    /// The usual pause of a silent source, seconds.
    pub usual_pause_seconds: Option<f64>,
}

impl Event {
    pub(super) fn new(key: Key, kind: EventKind, state: EventState, since_ns: u64, span: (u64, u64)) -> Event {
        Event {
            id: format!("{key}/{}/{since_ns}", kind.as_str()),
            kind,
            state,
            reason: (state == EventState::Resolved).then_some(Reason::Recovered),
            series: key.to_string(),
            source: key.source(),
            start_ns: span.0,
            end_ns: span.1,
            since_ns,
            count: 0,
            bands: None,
            usual_pause_seconds: None,
        }
    }
}

impl EventKind {
    /// Its name in notifications.
    pub const fn as_str(self) -> &'static str {
        match self {
            EventKind::High => "high",
            EventKind::Low => "low",
            EventKind::SilentSource => "silent_source",
        }
    }
}
