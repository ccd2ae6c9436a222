//! What readers without a group receive.

use std::sync::Arc;

use sekiwake_group::{MAX_NUMBER, Stream};
use sekiwake_record::{Batch, DecodeError, Topic};
use sekiwake_sys::clock::wall_now_ns;

use crate::Frame;

/// A checked batch without duplicates.
#[derive(Debug)]
pub struct Delivery {
    /// Its topic.
    pub topic: Topic,
    /// The name of its stream.
    pub stream_name: Arc<str>,
    /// The epoch of its stream.
    pub stream_epoch: u64,
    /// The sequence number of the first record in `batch`.
    pub first_sequence: u64,
    /// The records.
    pub batch: Batch<Frame>,
    /// Whether a publisher has sent it again, to this reader.
    pub is_retransmitted: bool,
}

/// Recent records that are not delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingRecent {
    /// All: there is no control connection.
    NoConnection,
    /// All: the proxy does not answer, perhaps because it is of a version that does not know the
    /// request.
    NoAnswer,
    /// Those of a stream whose publisher does not answer, perhaps because it is of a version that
    /// does not know the request.
    Silent(Stream),
    /// Those of a stream whose publisher the proxy does not know, or no longer.
    Gone(Stream),
    /// Some of a stream: not everything arrived in time.
    Late(Stream),
    /// Some of a stream: too many live records arrived meanwhile.
    NoRoom(Stream),
}

/// Rejects sequence numbers that no stream can reach.
pub(crate) fn check_sequence(next_sequence: u64, part: &'static str) -> Result<(), DecodeError> {
    match next_sequence {
        0..=MAX_NUMBER => Ok(()),
        _ => Err(DecodeError::Malformed {
            part,
            reason: format!("sequence number {next_sequence} is out of range, at most {MAX_NUMBER}"),
        }),
    }
}

/// Seconds since a capture time; 0 for a time in the future.
pub(crate) fn age_seconds(captured_at_ns: u64) -> f64 {
    wall_now_ns().saturating_sub(captured_at_ns) as f64 / 1e9
}
