//! Events: an alarm fires or resolves.

use std::net::IpAddr;

use sekiwake_record::WallTime;
use serde::{Deserialize, Serialize};

use super::{
    bands::{Bands, Side},
    key::Key,
};

/// The kind of an anomaly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// More messages than the upper band.
    High,
    /// Fewer messages than the lower band, or none.
    Low,
    /// A regularly sending source has stopped.
    SilentSource,
}

/// The state of an alarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventState {
    /// The alarm fires.
    Firing,
    /// The alarm has resolved.
    Resolved,
}

/// Why an alarm resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The rate is back to normal.
    Recovered,
    /// It has lasted for so long that it is the usual level.
    NewLevel,
    /// The source was evicted to make room for others, so that its state is unknown.
    Forgotten,
    /// Counting restarted with intervals of another length.
    Reset,
}

/// A span of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: WallTime,
    pub(super) end: WallTime,
}

/// Identifies an event. An alarm's start and its end share one id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EventName {
    /// The id of the alarm.
    pub id: String,
    /// Whether it fires or has resolved.
    pub state: EventState,
}

/// A change to be delivered: an alarm fires or resolves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The same for an alarm's start and end: series, kind and start time.
    pub id: String,
    /// The kind.
    pub kind: EventKind,
    /// Whether it fires or has resolved.
    pub state: EventState,
    /// Why an alarm resolved.
    pub reason: Option<Reason>,
    /// The series: `total`, `severity/err`, `source/198.51.100.7`.
    pub series: String,
    /// The source, if the series is of a source.
    pub source: Option<IpAddr>,
    /// Start of the interval that changed it; for a silent source the time of its last message.
    pub start: WallTime,
    /// End of the interval; for a silent source the time of detection.
    pub end: WallTime,
    /// When the alarm started: the start of its first interval, or the source's last message.
    pub since: WallTime,
    /// Messages in the interval.
    pub count: u64,
    /// The bands of the alarm's first interval, or those kept from an earlier alarm.
    pub bands: Option<Bands>,
    /// The usual time between messages of a silent source, seconds.
    pub usual_pause_seconds: Option<f64>,
}

impl Event {
    pub(super) fn new(key: Key, kind: EventKind, state: EventState, since: WallTime, span: Span) -> Event {
        Event {
            id: format!("{key}/{}/{}", kind.as_str(), since.as_nanos()),
            kind,
            state,
            reason: (state == EventState::Resolved).then_some(Reason::Recovered),
            series: key.to_string(),
            source: key.source(),
            start: span.start,
            end: span.end,
            since,
            count: 0,
            bands: None,
            usual_pause_seconds: None,
        }
    }

    /// Its name.
    pub fn name(&self) -> EventName {
        EventName { id: self.id.clone(), state: self.state }
    }
}

impl From<Side> for EventKind {
    fn from(side: Side) -> EventKind {
        match side {
            Side::High => EventKind::High,
            Side::Low => EventKind::Low,
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
