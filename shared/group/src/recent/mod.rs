//! Recent records for readers that are in no group: what publishers still retain of the last
//! seconds.
//!
//! ```text
//!                GetStreams            RecentDesk: a request per reader and stream waits, the readers take turns,
//! RecentReader ─────────────▶          32 MiB/s for all of them, 4 open requests per stream
//!              ◀───────────── Streams
//!                GetRecent                 GetRecent
//!              ─────────────▶ RecentDesk ─────────────▶ RecentAnswers: one job per reader, 32 MiB/s, after repairs
//!              ◀──────────────────────────────────────  Recent … RecentEnd
//! ```
//!
//! Every request is complete: where to look for the beginning, or which records. So neither the
//! proxy nor a publisher knows how far a reader is, and whatever is lost is requested again.

mod answers;
mod desk;
mod reader;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

pub use self::{
    answers::RecentAnswers,
    desk::{RecentDesk, RecentRejections},
    reader::{Missing, MissingPart, RecentDelivery, RecentReader, RecentReaderSettings},
};
