//! Membership in a group: what every bus has in common.

mod ack_token;
mod deduplicate;
mod handoff_wait;
mod leaving;
mod log;
mod loss_log;
#[cfg(test)]
mod memory;
mod status;

use std::time::Duration;

use sekiwake_group::Stream;
use sekiwake_record::{Batch, Kind, Name, Topic};
use sekiwake_runtime::Finding;

use crate::{Controlling, Frame, Subscribing};

pub use ack_token::AckToken;
pub(crate) use ack_token::{Acks, Completion};
pub use deduplicate::Deduplicate;
pub(crate) use deduplicate::{DeduplicatingSource, ReadPast};
pub use handoff_wait::HandoffWait;
pub use leaving::{Leaving, Progress};
pub(crate) use log::MemberLog;
pub(crate) use loss_log::{LossLog, Lost};
pub(crate) use status::{handoff_status, member_status};

/// Settings of a member of a group.
#[derive(Clone, Debug)]
pub struct GroupSettings {
    /// Where records are received.
    pub subscribing: Subscribing,
    /// The coordinator.
    pub controlling: Controlling,
    /// The group, `<service>.<name>`.
    pub group: Name,
    /// The member's name, for logs and `/status`.
    pub label: Name,
    /// The kind that it receives.
    pub kind: Kind,
    /// Where to start if the group has no known position: at the oldest record that was published
    /// no longer ago than this.
    pub start_age: Duration,
    /// Whether one member of the group owns all shards and the others stand by.
    pub single_active: bool,
    /// Whether it leaves hand-off state for the next owners of its shards, and requests that of the
    /// previous owners.
    pub handoff: bool,
    /// How it delivers once what several captures have seen; `None` if it does not.
    pub deduplicate: Option<Deduplicate>,
}

impl GroupSettings {
    /// Whether existing streams of the servers promise what a member needs.
    pub fn examine(&self) -> Vec<Finding> {
        #[cfg(feature = "jetstream")]
        if let Some(servers) = &self.subscribing.jetstream {
            return crate::jetstream::examine_group(servers, self);
        }
        Vec::new()
    }
}

/// A batch to act on. As far as the group knows, none of its records has been delivered to the
/// group before.
#[derive(Debug)]
pub struct GroupDelivery {
    /// Its topic.
    pub topic: Topic,
    /// Its stream.
    pub stream: Stream,
    /// The sequence number of the first record in `batch`. Duplicates between others may be
    /// missing: see [`Batch::offset`].
    pub first_sequence: u64,
    /// Capture time of the earliest record of the published batch, nanoseconds since
    /// 1970-01-01T00:00:00Z. Duplicates at its beginning may be missing from `batch`.
    pub first_captured_at_ns: u64,
    /// Capture time of the latest one.
    pub last_captured_at_ns: u64,
    /// The records.
    pub batch: Batch<Frame>,
    /// The right to act on it, and the duty to acknowledge it. It must be kept until every record
    /// has been sent, stored, or counted as dropped; dropping it moves the group's position past
    /// the batch.
    pub ack_token: AckToken,
}
