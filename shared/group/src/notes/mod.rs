//! Notes: small values that the owner of a shard leaves with the coordinator for whoever owns the shard next.
//!
//! ```text
//!              put                 Notes, again until NotesKept
//!   owner ────────────▶ NoteKeeper ─────────────────────────────▶ NoteStore      newest at_ns of each key,
//!         ◀── present ─     ▲                                    (in the proxy)  within a budget
//!                           └ another coordinator grants            │
//!   next  ◀── take ──── NoteKeeper ◀────────────────────────────────┘
//!   owner                          HeldNotes, for each WantNotes, until all are had
//! ```
//!
//! What an owner has learnt of a shard may be older than any publisher's memory: a template of an exporter that sends it once an
//! hour. Repair cannot bring it back, so it is handed on this way. The machines stand beside [`Member`](crate::Member) and
//! [`Coordinator`](crate::Coordinator), not in them, and their messages have numbers that those do not know: leases, positions and repair
//! are what they were, with notes or without.
//!
//! **Versions.** The store counts what it takes. A request says up to which version a shard's notes are had already, and the answer goes
//! on from there, in the order in which the notes came: so nothing that is put meanwhile is missed, a request that is lost is made
//! again, and the store remembers nothing of it.
//!
//! **Other parties' versions.** A coordinator that does not know these messages counts them as refused and does not answer. So a keeper
//! says one thing only, and again ever more rarely, until a coordinator has answered it.

mod keeper;
#[cfg(test)]
mod simulation;
mod store;
#[cfg(test)]
mod tests;

pub use keeper::{NoteCounters, NoteKeeper, NoteKeeperSettings};
pub use store::{GroupNotes, NoteRefusals, NoteStore, NoteStoreSettings, NotesView};
