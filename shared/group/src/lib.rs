//! The logic of the control plane, as three state machines: the owners of shards, the positions of
//! groups, and repairs.
//!
//! ```text
//!                    Advertise, Repaired, Done                 Renew, Register, Repair
//!   PublisherControl ─────────────────────────▶ Coordinator ◀───────────────────────── Member
//!   + Retention      ◀───────────────────────── (in the proxy) ──────────────────────▶ + Permit
//!                    Notice, Repair                            Grant, Rejected, Repaired, Done
//! ```
//!
//! A client that is in no group registers destinations with a [`Registrant`]: captures leave them
//! alone as they do those of members.
//!
//! Beside them stand [`HandoffKeeper`] and [`HandoffStore`], which transfer the state that the
//! owner of a shard leaves for the next, and [`StatusSender`] and [`StatusBoard`], which pass on
//! what services say of themselves.
//!
//! The machines have no socket, clock, thread or random numbers. Messages and the time go in, as a
//! [`BootTime`] of the party's own host, and outputs are polled out. The shell around a machine
//! owns its ROUTER or DEALER. It calls `on_message`, then `on_tick` when `next_deadline` says so,
//! and `poll_output` until that returns `None`.
//!
//! **Invariant:** every message carries a complete state, not a change: whichever messages are
//! lost, the next one makes up for them. **Invariant:** a lease is extended only by a message that
//! also lists the shards that it covers. **Invariant:** every table has a limit. A message that
//! would exceed one is rejected, counted, and changes nothing.
//!
//! `docs/bus.md` has the guarantees and the correctness argument; [`wire`] draws the messages.

mod coordinator;
mod coverage;
mod handoff;
mod member;
mod mutants;
mod own;
mod publisher;
mod recent;
mod registrant;
mod retention;
#[cfg(test)]
mod simulation;
mod status;
mod stream;
mod time;
mod tracker;
pub mod wire;

use std::time::Duration;

pub use coordinator::{
    Agreement, ClientView, Coordinator, CoordinatorEvent, CoordinatorSettings, CoordinatorView, Difference, GroupView,
    LeaseExpired, MemberView, PositionView, REPORT_DIFFERENCE_AFTER, Rejections, ShardState, ShardView, StreamView,
    Taker, assign_all, assign_evenly, fuzz,
};
pub use handoff::{
    GroupHandoff, HandoffCounters, HandoffKeeper, HandoffKeeperSettings, HandoffRejections, HandoffStore,
    HandoffStoreSettings, HandoffView, TemplateReader, TemplatesRead,
};
pub use member::{
    Arrival, GiveUp, Member, MemberCounters, MemberOutput, MemberSettings, MemberStatus, Permission, Permit, Received,
    ShardPhase, ShardStatus, StreamStatus,
};
pub use own::{OwnDestinations, OwnList, OwnWatch};
pub use publisher::{CurrentList, PublisherControl, PublisherControlSettings};
pub use recent::{
    Missing, MissingPart, RecentAnswers, RecentDelivery, RecentDesk, RecentReader, RecentReaderSettings,
    RecentRejections,
};
pub use registrant::{Registrant, RegistrantState};
pub use retention::{Retained, Retention};
pub use status::{Publication, STATUS_PREFIX, StatusBoard, StatusIdentity, StatusRejections, StatusSender};
pub use stream::{Peer, Stream};
pub use time::BootTime;
pub use tracker::{Observation, Tracker};

/// How long a member may act after it *sent* the newest renewal that was granted.
pub const LEASE: Duration = Duration::from_secs(3);
/// How much longer the coordinator waits, counted from when it *granted*. This covers clocks that
/// run at different rates, and the one send call in which a member may have been stopped.
pub const LEASE_MARGIN: Duration = Duration::from_millis(500);
/// How often a member renews its lease.
pub const RENEW_EVERY: Duration = Duration::from_millis(500);
/// The same while it has nothing to handle and nothing to report.
pub const RENEW_IDLE_EVERY: Duration = Duration::from_secs(1);
/// How often a publisher advertises its stream.
pub const ADVERTISE_EVERY: Duration = Duration::from_secs(1);
/// How long a publisher may be silent before it counts as unavailable, until it advertises again.
pub const PUBLISHER_SILENT_AFTER: Duration = Duration::from_secs(3);
/// How long a gap waits without an answer, while the coordinator grants, before delivery goes on
/// behind it.
pub const LEAVE_BEHIND_AFTER: Duration = Duration::from_secs(2);
/// How long a forwarder waits until publishers have acknowledged a new destination, before it sends
/// to it anyway.
pub const REGISTER_WITHIN: Duration = Duration::from_secs(2);

/// Sequence numbers and generations are below this: ten million per second for 28 years.
pub const MAX_NUMBER: u64 = 1 << 53;
/// The value of an unknown position.
pub(crate) const UNKNOWN: u64 = u64::MAX;
