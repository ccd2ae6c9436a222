//! The control plane as three state machines: who owns which shard, where a group stands, what is repaired.
//!
//! ```text
//!                    Advertise, Repaired, Done                 Renew, Register, Repair
//!   PublisherControl ─────────────────────────▶ Coordinator ◀───────────────────────── Member
//!   + Retention      ◀───────────────────────── (in the proxy) ──────────────────────▶ + Permit
//!                    Notice, Repair                            Grant, Refused, Repaired, Done
//! ```
//!
//! Beside them, [`NoteKeeper`] and [`NoteStore`]: what the owner of a shard leaves for the next.
//!
//! There is no socket, no clock, no thread and no randomness in this crate. Messages and `now` go in (nanoseconds of the party's
//! own CLOCK_BOOTTIME, never compared with another party's), and outputs are polled out. The shell around a machine owns its
//! ROUTER or DEALER and calls `on_message`, `on_tick` when `next_deadline` says so, and `poll_output` until it gives `None`.
//!
//! **Invariant:** every message tells a state, not a change: whatever run of messages is lost, the next one repairs it.
//! **Invariant:** a lease is only ever extended by a message that also lists the shards it is for.
//! **Invariant:** every table has a bound; a message that would break one is refused, counted, and changes nothing.
//!
//! `docs/bus.md` says what is promised and why it holds; [`wire`] draws the messages.

mod coordinator;
mod member;
mod notes;
mod publisher;
mod retention;
#[cfg(test)]
mod simulation;
mod stream;
pub mod wire;

pub use coordinator::{
    Coordinator, CoordinatorSettings, CoordinatorView, GroupView, MemberView, PositionView, Refusals, ShardState,
    ShardView, StreamView, fuzz,
};
pub use member::{
    Arrival, GiveUp, HoldState, Member, MemberCounters, MemberOutput, MemberSettings, MemberStatus, Permission, Permit,
    Received, ShardStatus, StreamStatus,
};
pub use notes::{
    GroupNotes, NoteCounters, NoteKeeper, NoteKeeperSettings, NoteRefusals, NoteStore, NoteStoreSettings, NotesView,
};
pub use publisher::{PublisherControl, PublisherControlSettings};
pub use retention::{Retained, Retention};
pub use stream::{Peer, Stream};

/// Nanoseconds in a millisecond: settings and time limits are in nanoseconds.
pub const MILLISECOND: u64 = 1_000_000;
/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;

/// How long a member may act after it *sent* the last renewal that was granted.
pub const LEASE: u64 = 3 * SECOND;
/// How much longer the coordinator waits, from when it *granted*: clocks that run at different rates, and the one send call in
/// which a member may have been stopped.
pub const LEASE_MARGIN: u64 = 500 * MILLISECOND;
/// How often a member renews its lease.
pub const RENEW_EVERY: u64 = 500 * MILLISECOND;
/// How often a publisher says where its stream stands.
pub const ADVERTISE_EVERY: u64 = SECOND;
/// A publisher that has said nothing for so long is taken for gone, until it speaks again.
pub const PUBLISHER_SILENT_AFTER: u64 = 3 * SECOND;
/// How long a hole may wait without any answer, while the coordinator is there, before it is given up.
pub const GIVE_UP_AFTER: u64 = 2 * SECOND;
/// How long a forwarder waits for publishers to acknowledge a new destination before it sends to it all the same.
pub const REGISTER_WITHIN: u64 = 2 * SECOND;

/// The largest sequence number or generation that is believed: ten million a second for 28 years.
pub const MAX_NUMBER: u64 = 1 << 53;
/// A position that is not known.
pub(crate) const UNKNOWN: u64 = u64::MAX;
