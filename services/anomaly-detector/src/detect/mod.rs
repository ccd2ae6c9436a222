//! The detector compares counts of syslog per interval with Bollinger bands. Logic without I/O,
//! clock or thread.
//!
//! ```text
//! batch ─▶ Tally of its shard: ─── interval complete ───▶ Series: window, bands, alarms ─▶ Event
//!          positions, open counts                                    │
//!              └── state entries: one per shard, one per series ─────┴──▶ next owner, or file
//! ```

mod alarm;
mod bands;
mod detector;
mod event;
mod handoff;
mod key;
mod positions;
mod series;
mod sources;
mod tally;

pub use alarm::{Alarm, Alarms, Change, Observation, What};
pub use bands::{BandSettings, Bands, Side, Usual, Verdict, Window};
pub use detector::{BatchInfo, Closed, Detector, Losses, Now, SeriesResult, Settings, SourceTotals};
pub use event::{Event, EventKind, EventName, EventState, Reason};
pub use handoff::{MAX_HANDOFF_ENTRY_BYTES, StateEntry, StateFile, read_file, write_file};
pub use key::Key;
pub use series::{Criteria, Evaluation, Interval, Series};

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
