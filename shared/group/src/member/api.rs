//! The settings of a member, and its outputs.

use std::time::Duration;

use sekiwake_record::{Kind, Name, Topic};

use crate::{
    Stream,
    mutants::Mutants,
    wire::{self, HIGHEST_PROTOCOL, LOWEST_PROTOCOL},
};

/// Settings of a [`Member`](super::Member).
#[derive(Clone, Debug)]
pub struct MemberSettings {
    /// The group, `<service>.<name>`.
    pub group: Name,
    /// The kind that the group works on.
    pub kind: Kind,
    /// The member's name in logs and `/status`.
    pub label: Name,
    /// Where to start when the group has no position: at the oldest record that was published no
    /// longer ago than this.
    pub start_age: Duration,
    /// Maximum bytes in one reorder buffer, of one topic of one stream.
    pub reorder_bytes_per_topic: usize,
    /// Maximum bytes in all reorder buffers.
    pub reorder_bytes: usize,
    /// Maximum bytes that are delivered and not handled while repairs are requested. This is more
    /// than one unreachable destination can hold back, because the others still need repairs.
    pub outstanding_bytes: usize,
    /// Maximum bytes of answers to one request for repair.
    pub request_bytes: u64,
    /// One member of the group has all shards, and the others stand by.
    pub single_active: bool,
    /// The lowest and the highest protocol that the member speaks. The group runs the lowest of its
    /// members' highest.
    pub protocols: (u64, u64),
    pub(crate) mutants: Mutants,
}

impl MemberSettings {
    /// The defaults for a member of this group.
    pub fn new(group: Name, kind: Kind, label: Name) -> MemberSettings {
        MemberSettings {
            group,
            kind,
            label,
            start_age: Duration::from_secs(30),
            reorder_bytes_per_topic: 4 << 20,
            reorder_bytes: 64 << 20,
            outstanding_bytes: 96 << 20,
            request_bytes: 1 << 20,
            single_active: false,
            protocols: (LOWEST_PROTOCOL, HIGHEST_PROTOCOL),
            mutants: Mutants::default(),
        }
    }
}

/// An action of a member.
#[derive(Debug)]
pub enum MemberOutput<B> {
    /// Send this message to the coordinator.
    Send(Vec<u8>),
    /// Subscribe to the topic.
    Subscribe(Topic),
    /// Unsubscribe from the topic.
    Unsubscribe(Topic),
    /// Act on the batch from record `skip` on, while the [`Permit`](super::Permit) allows it. Then
    /// call [`Member::handled`](super::Member::handled).
    Deliver {
        /// The stream.
        stream: Stream,
        /// The topic.
        topic: Topic,
        /// For [`Permit::may_act`](super::Permit::may_act) and
        /// [`Member::handled`](super::Member::handled).
        generation: u64,
        /// The sequence number of the first record to act on. It identifies the delivery in
        /// [`Member::handled`](super::Member::handled).
        first_sequence: u64,
        /// How many records at the beginning of the batch were delivered before.
        skip: u32,
        /// The batch.
        batch: B,
    },
    /// A retransmitted batch has arrived. Check it like one of the data plane, and pass it to
    /// [`Member::on_batch`](super::Member::on_batch).
    Repaired {
        /// The topic.
        topic: Topic,
        /// The header frame.
        header: Vec<u8>,
        /// The body frame.
        body: Vec<u8>,
    },
    /// Records that this member would have delivered are skipped, because another party says that
    /// they were handled. They are not lost if that is true.
    Skipped {
        /// The stream.
        stream: Stream,
        /// The topic.
        topic: Topic,
        /// How many. Records that are not published yet count once they are.
        records: u64,
        /// The label of the member that says so; `None` for the publisher.
        presenter: Option<Name>,
    },
    /// Records are lost for this group.
    GaveUp {
        /// The stream.
        stream: Stream,
        /// The topic.
        topic: Topic,
        /// The first lost record.
        from: u64,
        /// The record after the last lost one.
        to: u64,
        /// Why.
        reason: GiveUp,
    },
    /// The coordinator does not admit this member.
    Rejected(wire::RejectionReason),
}

/// Why records are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GiveUp {
    /// The publisher no longer retains them.
    NotRetained,
    /// The stream is over, and they did not arrive.
    StreamGone,
    /// The stream is over, and where the group stood in it was never known. This is the upper
    /// bound: all records that the publisher retained when it was last heard.
    Unknown,
}

impl GiveUp {
    /// All reasons.
    pub const ALL: [GiveUp; 3] = [GiveUp::NotRetained, GiveUp::StreamGone, GiveUp::Unknown];

    /// The label value in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            GiveUp::NotRetained => "not_retained",
            GiveUp::StreamGone => "stream_gone",
            GiveUp::Unknown => "unknown",
        }
    }
}

/// The result of [`Member::on_batch`](super::Member::on_batch).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Delivered, or buffered behind a gap.
    Accepted,
    /// All of its records had been delivered before.
    Duplicate,
    /// The shard belongs to another member, or the sequence numbers are out of range.
    NotOwned,
    /// The reorder buffer is full. The batch will be requested again.
    NoRoom,
}
