//! A log of entries on disk: appended at one end, read in order, bounded, whole after a crash.
//!
//! ```text
//!                commit                       read                          append
//!                  │                            │                              │
//!   ┌ 0…0 ───────┐ ▼ ┌ 0…70000 ───┐ ┌ 0…141000 ─▼┐ ┌ 0…212000 ───┐  buffer ◀───┘
//!   │  deleted   │   │  a segment │ │            │ │ the active │◀───┘ one write per flush
//!   └────────────┘   └────────────┘ └────────────┘ └────────────┘
//! ```
//!
//! Entries are bytes; each has a sequence number, which goes on rising over restarts. Segments are files of bounded size,
//! named by the sequence number of their first entry. The oldest are deleted when all their entries are committed, or
//! when the log has reached its bound: then what was not committed is counted as evicted.
//!
//! **Invariant:** the files never hold more than `max_bytes`, with 8 KiB for the position and what the file system rounds
//! up besides. **Invariant:** what was appended before a [`Log::sync`] that succeeded is there after a crash, of the
//! machine too. **Invariant:** only the last segment can have a torn end, for a segment is synced before the next one is
//! made: opening scans one segment, however large the log. **Invariant:** a file of another format version is never
//! written to. There are no threads, and there is no clock: when to flush and to sync is the caller's to say.

mod directory;
mod error;
mod format;
mod log;
mod position;
mod reader;
mod recovery;
mod scan;
mod window;

pub use error::LogError;
pub use format::MAX_ENTRY_BYTES;
pub use log::{Log, Settings};
pub use reader::{Entry, Reader};
pub use recovery::Recovered;
pub use scan::{Scan, scan};
