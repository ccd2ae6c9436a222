//! The messages of the control plane. Each is one frame, a msgpack array that begins with the
//! version and the message's number.
//!
//! ```text
//! member ─▶ coordinator
//!   1 Renew           [1, 1, group, kind, incarnation, label, renewal, lowest_protocol, highest_protocol, leaving,
//!                      coordinator, [[shard, generation, phase]],
//!                      [[[stream_name, stream_epoch], [[topic, sequence]]]], single_active,
//!                      [[[stream_name, stream_epoch], [covered]]], age_ns, destinations_digest,
//!                      [doubt], former_lease_age_ns]
//!   2 Register        [1, 2, group, incarnation, registration, [[address, port, transport]]]
//!   3 Repair          [1, 3, requester, request, [stream_name, stream_epoch], max_bytes, [[topic, from, to]], [topic],
//!                      max_age_ns, group]
//! publisher ─▶ coordinator
//!   4 Advertise       [1, 4, [stream_name, stream_epoch], number, ended, wants_commits, coordinator, list_version,
//!                      [[topic, oldest_sequence, next_sequence]], [[group, age_ns, [covered]]], former_age_ns,
//!                      [[address, port, datagrams]]]
//! publisher ─▶ coordinator ─▶ member, unchanged
//!   5 Repaired        [1, 5, requester, request, [stream_name, stream_epoch], topic, header, body]
//!   6 Done            [1, 6, requester, request, [stream_name, stream_epoch], outcome, [[topic, oldest]],
//!                      [[topic, start]], [covered]]
//! coordinator ─▶ member
//!   7 Grant           [1, 7, group, incarnation, coordinator, number, renewal, protocol, registration,
//!                      [[shard, generation, role]],
//!                      [[[stream_name, stream_epoch], [[topic, sequence, next_sequence]]]], known_registration,
//!                      [[[stream_name, stream_epoch], [covered]]], age_ns, [label], [doubt]]
//!   8 Rejected        [1, 8, group, incarnation, reason]
//! coordinator ─▶ publisher
//!   3 Repair          unchanged, with the requester filled in
//!   9 Notice          [1, 9, [stream_name, stream_epoch], coordinator, number, complete, list_version, has_list,
//!                      [[address, port, transport]], live_kinds, [[topic, committed_sequence]],
//!                      [[group, age_ns, [covered]]], [[address, port, transport]]]
//! member ─▶ coordinator
//!  10 PutHandoff      [1, 10, group, incarnation, number, [[shard, key, value, at_ns]]]
//!  11 GetHandoff      [1, 11, group, incarnation, coordinator, request, [[shard, after_version]]]
//! coordinator ─▶ member
//!  12 HandoffStored   [1, 12, group, incarnation, coordinator, number]
//!  13 HandoffEntries  [1, 13, group, incarnation, coordinator, request, [[shard, up_to_version, is_whole]],
//!                      [[shard, key, value, at_ns]]]
//! reader ─▶ coordinator
//!  14 GetTemplates    [1, 14, kind, request, coordinator, group, shard, after_version]
//! coordinator ─▶ reader
//!  15 Templates       [1, 15, kind, request, coordinator, outcome, group, shard, after_version,
//!                      [[shard, key, value, at_ns]]]
//! service ─▶ coordinator
//!  16 OfferStatus     [1, 16, service, group, member, incarnation]
//! coordinator ─▶ service
//!  17 StatusWanted    [1, 17, coordinator, is_wanted]
//! service ─▶ coordinator
//!  18 Status          [1, 18, incarnation, [[part, text]]]
//! reader ─▶ coordinator
//!  19 GetStreams      [1, 19, request]
//! coordinator ─▶ reader
//!  20 Streams         [1, 20, request, coordinator, is_complete, [[stream_name, stream_epoch]]]
//! reader ─▶ coordinator ─▶ publisher, with the requester filled in
//!  21 GetRecent       [1, 21, requester, request, [stream_name, stream_epoch], max_bytes, [[topic, from, to]], [topic],
//!                      since_ns]
//! publisher ─▶ coordinator ─▶ reader, unchanged
//!  22 Recent          [1, 22, requester, request, [stream_name, stream_epoch], [[topic, from, header, body]]]
//!  23 RecentEnd       [1, 23, requester, request, [stream_name, stream_epoch], outcome, [[topic, oldest]],
//!                      [[topic, from, next]]]
//! client ─▶ coordinator
//!  24 RegisterClient  [1, 24, client, incarnation, number, leaving, [[address, port, transport]]]
//! coordinator ─▶ client
//!  25 ClientRegistered [1, 25, incarnation, coordinator, number, outcome]
//! ```
//!
//! `covered` is `[topic, [from, to, from, to …], presenter]`: ranges of handled records. `doubt` is
//! `[member, label, age_ns, is_unknowable, [topic], ends]` with `ends` as
//! `[[[stream_name, stream_epoch], [[topic, end]]]]`.
//! `shard` is 0 to 63 and `topic` is 64 × kind + shard; kinds are 0 syslog, 1 xflow, 2 snmptrap.
//! `header` and `body` are the frames of the data plane, as bin. `address` is bin of 16, with an
//! IPv4 address mapped; `key` is bin of 1 to 64 bytes, `value` of 0 to 8 KiB. Later versions append
//! to the arrays, at every level: a reader takes the elements that it knows and skips the rest.

mod clients;
mod codec;
mod handoff;
mod messages;
mod recent;
mod status;
#[cfg(test)]
mod tests;

use sekiwake_record::msgpack::Unexpected;

pub use clients::{
    ClientOutcome, ClientRegistered, LeftAlone, MAX_CLIENT_DESTINATIONS, MAX_CLIENTS_DESTINATIONS, RegisterClient,
};
pub use codec::{Frame, Number};
pub use handoff::{
    GetHandoff, GetTemplates, HandoffEntries, HandoffEntry, HandoffKey, HandoffStored, HandoffValue, MAX_HANDOFF_BYTES,
    MAX_HANDOFF_ENTRIES, MAX_HANDOFF_KEY, MAX_HANDOFF_VALUE, PageOutcome, PutHandoff, ShardCursor, ShardReached,
    Templates,
};
pub(crate) use messages::Answer;
pub use messages::{
    Advertise, Assignment, Covered, Destination, Done, Doubt, Extent, Grant, GroupCoverage, Holding, Message, Notice,
    Outcome, Phase, Position, Range, Register, Rejected, RejectionReason, Renew, Repair, Repaired, Role, Start,
    StreamCoverage, StreamPositions, StreamStarts, Transport, is_handoff, is_recent, is_status,
};
pub(crate) use recent::RecentAnswer;
pub use recent::{GetRecent, GetStreams, MAX_RECENT_BATCHES, Recent, RecentBatch, RecentEnd, RecentOutcome, Streams};
pub use status::{
    MAX_STATUS_BYTES, MAX_STATUS_PART, MAX_STATUS_PARTS, OfferStatus, Status, StatusPart, StatusText, StatusWanted,
};

/// The version of the envelope. Appending does not change it.
pub const VERSION: u64 = 1;
/// The lowest protocol of a group that this crate's machines speak.
pub const LOWEST_PROTOCOL: u64 = 1;
/// The highest protocol of a group that they speak.
pub const HIGHEST_PROTOCOL: u64 = 1;
/// The largest message that is decoded. The positions of all shards in all streams fit.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// Maximum number of streams of one message, and of one party.
pub const MAX_STREAMS: usize = 256;
/// The most groups.
pub const MAX_GROUPS: usize = 64;
/// The most ranges of handled records in one message, so that the message stays below its limit.
pub(crate) const MAX_COVERED_RANGES: usize = 16_384;
/// The most destinations of one member. The list for publishers has up to sixteen times as many.
pub const MAX_DESTINATIONS: usize = 256;
/// The most doubts about a group, and the most ends in them: a stream without room has none, so
/// that all of it is in doubt.
pub(crate) const MAX_DOUBTS: usize = 16;
pub(crate) const MAX_DOUBT_ENDS: usize = 4096;
/// The most members that a grant names because their destinations differ.
pub(crate) const MAX_DIFFERING: usize = 8;
/// Maximum number of ranges in one request.
pub const MAX_RANGES: usize = 256;

/// Why a control message is rejected. A rejected message changes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Larger than any valid message.
    #[error("control message of {0} bytes, expected at most {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
    /// Not msgpack of the expected shape, or out of bounds.
    #[error("malformed control message: {0}")]
    Malformed(String),
    /// An unknown version or message.
    #[error("unknown control message, version {version}, number {number}")]
    Unknown {
        /// The envelope's version.
        version: u64,
        /// The message's number.
        number: u64,
    },
    /// Bytes follow after the array.
    #[error("control message followed by other bytes")]
    Trailing,
}

impl From<Unexpected> for WireError {
    fn from(unexpected: Unexpected) -> WireError {
        WireError::Malformed(unexpected.to_string())
    }
}
