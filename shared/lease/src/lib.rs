//! Groups without a coordinator: a table of leases and positions in a replicated store of keys that
//! are written by compare-and-set. State machines, without the store.
//!
//! ```text
//!  keys of a group   <group>.<kind>.m.<incarnation>   one per member, written by it every 500 ms
//!                    <group>.<kind>.a                 who owns which shard, since which position
//!
//!                  reads of all keys, every 250 ms              Own, Stop
//!   key-value store ─────────────────────────▶ Table + Permit ─────────────▶ a Handling per shard ◀─ batches
//!                   ◀─────────────────────────       ▲                            │
//!                  compare-and-set, outcomes         └───── commits, stopped ─────┘
//! ```
//!
//! A member, in its own key:
//!
//! ```text
//!  absent ── created ──▶ live ── renewed, revision + 1 ──▶ live ── asked to stop ──▶ leaving ── all released ──▶ gone
//!                         └────── unchanged for 3.5 s by another member's clock: that one writes it ───────────────▲
//! ```
//!
//! A shard, in the assignment (planned by the live member with the lowest incarnation) and in the
//! keys of members:
//!
//! ```text
//!  assignment   free ─ owner N, g+1 ─▶ owned by N ─ next := M ─▶ moving ─┬ N's key says released g ─▶ owner M, g+1
//!                                          │                             └ N's key says gone ───────▶ owner M, g+1
//!                                          └ N's key says gone ─▶ free, at the position in N's key
//!  member N     none ─ reads "owner N, g+1" ─▶ claiming ─ its key, which lists g+1, is stored ─▶ owned: acts
//!               owned ─ reads "next M", or leaves ─▶ stopping ─ all is handled ─▶ released g, with its position
//! ```
//!
//! **Invariant:** a member acts on a shard only while its own key, as it knows it to be stored,
//! lists the shard, and for 3 s after it *sent* the newest write of that key that was acknowledged.
//! **Invariant:** another member becomes the owner only after the key says `released` or `gone`.
//! `gone` is written by compare-and-set on the revision that was unchanged for 3.5 s. A renewal in
//! between makes that write fail, and after it every renewal fails: the store decides, no clock of
//! another party. **Invariant:** `released` and `gone` are final, so a write that is stored late
//! does no harm. **Invariant:** positions only grow; they are merged, never replaced.
//!
//! Values are versioned and bounded ([`value`]). What cannot be read is counted and skipped.

mod beginning;
mod handling;
mod key;
mod mutants;
mod position;
#[cfg(test)]
mod simulation;
mod table;
pub mod value;

pub use beginning::{Beginning, Owed};
pub use handling::{Handling, Taken};
pub use key::{Key, group_token};
pub use position::{MAX_SHARD_STREAMS, Position, Progress};
pub use table::{Birth, Entry, Event, Outcome, Table, TableCounters, TableSettings, Write};

use std::time::Duration;

/// How often the keys of the group are read.
pub const READ_EVERY: Duration = Duration::from_millis(250);
/// How often they are read while a shard moves, or a write is unsettled.
pub const READ_SOON: Duration = Duration::from_millis(50);
