//! A log of entries on disk: appended at one end, read in order, bounded, and consistent after a
//! crash. Written by hand because existing log crates neither evict at a bound nor work without an
//! async runtime.
//!
//! ```text
//!                commit                       read                          append
//!                  │                            │                              │
//!   ┌ 0…0 ───────┐ ▼ ┌ 0…70000 ───┐ ┌ 0…141000 ─▼┐ ┌ 0…212000 ───┐  buffer ◀───┘
//!   │  deleted   │   │  segment   │ │  segment   │ │   active   │◀───┘ one write per flush
//!   └────────────┘   └────────────┘ └────────────┘ └────────────┘
//! ```
//!
//! Entries are bytes. Each has a sequence number, which continues to rise after restarts. Segments
//! are files of bounded size, named by the sequence number of their first entry. The oldest are
//! deleted when all their entries are committed, or when the log has reached its bound; entries
//! that were not committed then are counted as evicted.
//!
//! **Invariant:** the files never exceed `max_bytes`, plus 8 KiB for the position and the rounding
//! of the file system. **Invariant:** an entry that was appended before a successful [`Log::sync`]
//! survives a crash, also of the machine. **Invariant:** only the last segment can have a torn end,
//! because a segment is synced before the next one is created: opening scans one segment, however
//! large the log is. **Invariant:** damage costs the damaged entries only, and they are counted.
//! **Invariant:** a file of another format version is never written. There are no threads and no
//! clock: the caller decides when to flush and to sync.

mod directory;
mod error;
mod format;
mod log;
mod position;
mod reader;
mod recovery;
mod resync;
mod scan;
mod window;

pub use error::LogError;
pub use format::MAX_ENTRY_BYTES;
pub use log::{Log, Mark, Settings};
pub use reader::{Entry, Reader};
pub use recovery::Recovered;
pub use scan::{Scan, scan};
