//! The detector: counts of syslog an interval against Bollinger bands. Logic without I/O, clock or thread.
//!
//! ```text
//! batch ─▶ Tally of its shard: positions, counts of open intervals ─ an interval is over and complete ─▶ each Series: window, bands, alarms ─▶ Event
//!              └──────────── notes: one a shard, one a series ──▶ the next owner, or a file
//! ```

mod alarm;
mod bands;
mod detector;
mod event;
mod notes;
mod positions;
mod series;
mod sources;
mod tally;

pub use alarm::{Alarm, Change};
pub use bands::{BandSettings, Bands, Verdict, Window};
pub use detector::{Closed, Detector, Judged, Losses, Now, Settings, SourcesJudged};
pub use event::{Event, EventKind, EventState, Reason};
pub use notes::{MAX_NOTE_BYTES, StateNote, read_file, write_file};
pub use series::{Key, Series};

#[cfg(test)]
mod tests;
