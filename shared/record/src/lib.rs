//! The record: one datagram as it travels on the bus, and everything that identifies it.
//!
//! This crate knows nobody: no socket, no clock, no service. It turns datagrams into batches and back:
//!
//! ```text
//! frame 1  topic    "syslog/3f"                          kind and shard
//! frame 2  header   [version, stream_name, stream_epoch, first_sequence, count, first_captured_at_ns, last_captured_at_ns]
//! frame 3  body     [[captured_at_ns, source_ip, source_port, destination_ip, destination_port,
//!                     format, flags, payload, vlans, dscp_ttl], ...]
//! ```
//!
//! Header and body are msgpack arrays. Later versions append to them, so readers skip what they do not know.
//! `docs/bus.md` describes the same for people who write a subscriber in another language.

mod announcement;
mod batch;
mod format;
mod header;
mod kind;
pub mod msgpack;
mod prefix;
mod record;
mod topic;

pub use announcement::{Announcement, TopicPosition};
pub use batch::{Batch, BatchBuilder, ClosedBatch, MAX_BATCH_BYTES, MAX_BATCH_RECORDS};
pub use format::Format;
pub use header::{Header, PROTOCOL_VERSION};
pub use kind::Kind;
pub use prefix::Prefix;
pub use record::{Flags, MAX_PAYLOAD, MAX_VLANS, Record, Vlans, dscp_ttl};
pub use topic::{Name, NameError, SHARDS, Shard, Topic, canonical_octets};

/// Why bytes from the bus are not what they claim to be. Input is hostile: each of these is counted and the message dropped.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum DecodeError {
    /// The bytes are no msgpack, or not of the shape that the format prescribes.
    #[error("malformed {part}: {reason}")]
    Malformed {
        /// Which part of the message: `header`, `body`, `announcement`.
        part: &'static str,
        /// What the reader disliked.
        reason: String,
    },
    /// Bytes are left after the last element.
    #[error("trailing garbage after the {0}")]
    Trailing(&'static str),
    /// The header says one number of records, the body holds another.
    #[error("the header counts {header} records, the body {body}")]
    CountDisagrees {
        /// `count` of the header.
        header: u32,
        /// Length of the body's array.
        body: u32,
    },
    /// A version that this reader cannot read.
    #[error("protocol version {0} is not supported")]
    Version(u64),
}
