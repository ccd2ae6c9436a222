//! Numbered test traffic, sent by `sekiwake-sender` and counted by `sekiwake-receiver` and the
//! tests.
//!
//! [`generate`] makes payloads without sockets or clocks. [`sequence_of`] reads back the numbers
//! that [`generate`] wrote, so that a [`sink`] can prove that nothing is missing.

pub mod generate;
pub mod mix;
mod protocol;
mod sequence;
pub mod sink;
pub mod wait;

pub use protocol::Protocol;
pub use sequence::{Sequenced, sequence_of};

/// The largest payload of an IPv4 datagram, in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 65_507;
