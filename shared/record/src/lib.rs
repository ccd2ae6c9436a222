//! The data format of the bus: a record is one datagram, a batch is the records of one topic that
//! travel as one message.
//!
//! This crate depends on no other crate of the workspace, and has no socket and no clock. It
//! encodes and decodes these messages:
//!
//! ```text
//! frame 1  topic    "syslog/3f"                                  kind and shard
//! frame 2  header   [version, stream_name, stream_epoch, first_sequence, count,
//!                    first_captured_at_ns, last_captured_at_ns]
//! frame 3  body     [[captured_at_ns, source_ip, source_port, destination_ip, destination_port,
//!                     format, flags, payload, vlans, dscp_ttl, ip_id, interface], ...]
//! ```
//!
//! Header and body are msgpack arrays. Later versions append elements, and readers skip elements
//! that they do not know. `docs/bus.md` has the same description for authors of subscribers in
//! other languages.

mod announcement;
mod batch;
mod batcher;
pub mod bytes;
mod format;
mod header;
mod kind;
pub mod msgpack;
mod prefix;
mod record;
mod time;
mod topic;

pub use announcement::{Announcement, TopicPosition};
pub use batch::{Batch, BatchBuilder, ClosedBatch, MAX_BATCH_BYTES, MAX_BATCH_RECORDS};
pub use batcher::{Batcher, Outbound};
pub use format::Format;
pub use header::{Header, PROTOCOL_VERSION};
pub use kind::Kind;
pub use prefix::Prefix;
pub use record::{Flags, MAX_PAYLOAD, MAX_VLANS, Origin, Record, Vlans, dscp_ttl};
pub use time::WallTime;
pub use topic::{Name, NameError, SHARDS, Shard, Topic, canonical_octets};

/// Why a message from the bus cannot be decoded. Input is hostile: the receiver counts the error
/// and drops the message.
#[derive(Debug, thiserror::Error, PartialEq, Eq, Clone)]
pub enum DecodeError {
    /// The bytes are not msgpack, or do not have the structure of the format.
    #[error("malformed {part}: {reason}")]
    Malformed {
        /// The part of the message: `header`, `body`, `announcement`.
        part: &'static str,
        /// The decoder's error.
        reason: String,
    },
    /// There are bytes after the last element.
    #[error("unexpected bytes after the {0}")]
    Trailing(&'static str),
    /// Header and body disagree about the number of records.
    #[error("header has a count of {header} records, body has {body}")]
    CountDisagrees {
        /// `count` of the header.
        header: u32,
        /// Length of the body's array.
        body: u32,
    },
    /// The protocol version is not supported.
    #[error("protocol version {0} is not supported")]
    Version(u64),
}
