//! Hand-off state: small values that the owner of a shard leaves with the coordinator for the next
//! owner.
//!
//! ```text
//!                 put                      PutHandoff, again until HandoffStored
//!   owner ───────────────────▶ HandoffKeeper ──────────────────────────▶ HandoffStore    newest at_ns per key,
//!         ◀─ next_shard_to_replay   ▲                                    (in the proxy)  within a budget
//!                                   └ another coordinator grants             │
//!   next  ◀────── take ─────── HandoffKeeper ◀───────────────────────────────┘
//!   owner                                    HandoffEntries per GetHandoff, until complete
//! ```
//!
//! An owner may have state that no publisher retains any more, such as a template of an exporter
//! that sends it once an hour. Repair cannot bring them back, so they are handed over this way. The
//! machines stand beside [`Member`](crate::Member) and [`Coordinator`](crate::Coordinator), not in
//! them, and have messages of their own. Leases, positions and repair do not depend on them.
//!
//! **Versions.** The store numbers the entries that it accepts. A request says up to which version
//! the member has a shard's entries, and the answer continues from there in that order. Writes
//! during the transfer are therefore not lost, a lost request is simply repeated, and the store
//! keeps no state about a transfer.
//!
//! **Readers.** Clients that are in no group read the hand-off state of flows with a
//! [`TemplateReader`], page by page.
//!
//! **Older coordinators.** A coordinator that does not know these messages counts them as rejected
//! and does not answer. A keeper therefore sends a single message, with growing pauses, until its
//! coordinator has answered once.

mod keeper;
#[cfg(test)]
mod simulation;
mod store;
mod templates;
#[cfg(test)]
mod tests;

pub use keeper::{HandoffCounters, HandoffKeeper, HandoffKeeperSettings};
pub use store::{GroupHandoff, HandoffRejections, HandoffStore, HandoffStoreSettings, HandoffView};
pub use templates::{TemplateReader, TemplatesRead};
