//! Publishing, up to the hand-over to the thread that writes: what every bus has in common.

mod early;
mod producer;
mod rejections;
mod subscription_watch;

use sekiwake_group::OwnDestinations;
use sekiwake_record::{Kind, Name};
use serde_json::Value;

use crate::{Publishing, Responder, Writer};

pub(crate) use early::{EarlyQueue, Filtered, without_own};
pub(crate) use producer::{HANDOVERS, Intake};
pub use producer::{Overflow, Producer};
pub(crate) use rejections::Handover;
pub use subscription_watch::SubscriptionWatch;

/// A stream that is about to be published.
pub struct PublishedStream {
    /// The capture threads' end.
    pub producer: Producer,
    /// The destinations that captures must not publish.
    pub own: OwnDestinations,
    /// For threads that wait for a subscriber before they publish.
    pub subscribers: SubscriptionWatch,
    /// Makes the part of `/status` that lists the sources with the most retained records.
    pub sources: Box<dyn Fn() -> Value + Send + Sync>,
    /// To be run by a thread.
    pub writer: Box<dyn Writer>,
    /// To be run by another thread, if the bus needs one.
    pub responder: Option<Box<dyn Responder>>,
}

/// Settings of a stream.
#[derive(Clone, Debug)]
pub struct StreamSettings {
    /// The stream's name.
    pub name: Name,
    /// Where it is published.
    pub publishing: Publishing,
    /// Memory for recent batches by kind, in the order of [`Kind::ALL`], bytes. Batches are
    /// retransmitted from it, and wait in it for room on the bus. When it is full, the oldest batch
    /// of the kind is dropped.
    pub retain_bytes: [usize; Kind::ALL.len()],
    /// What producers do when the writer cannot keep up.
    pub overflow: Overflow,
}

/// Divides a memory budget among the kinds. Traps are few and small; their share of an eighth keeps
/// the other kinds from evicting them.
pub fn retain_shares(bytes: usize) -> [usize; Kind::ALL.len()] {
    Kind::ALL.map(|kind| match kind {
        Kind::Syslog | Kind::Xflow => bytes / 16 * 7,
        Kind::SnmpTrap => bytes / 8,
    })
}

/// The totals of a stream at its end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Records offered to it.
    pub offered: u64,
    /// Offered records that were not published: there was no subscriber, or no room.
    pub unpublished: u64,
    /// Whether the deadline passed before the bus had taken everything, so that some of the last
    /// published records may be lost. Unknown, and `false`, if the context is shared with other
    /// sockets of the process.
    pub cut_short: bool,
    /// Published records that some group had not handled at the end.
    pub uncommitted: u64,
}
