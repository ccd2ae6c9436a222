//! The errors that brokers answer with, and what follows from them.

use super::Failure;
use crate::metrics::ErrorKind;

pub(super) const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
pub(super) const MESSAGE_TOO_LARGE: i16 = 10;
pub(super) const SASL_AUTHENTICATION_FAILED: i16 = 58;

/// What an error says about a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Stored,
    /// Never stored, because of its contents.
    Rejected,
    /// Not stored now, and soon perhaps. `may_be_stored`: the broker does not know.
    Later {
        may_be_stored: bool,
    },
    /// The broker does not know the producer, or not its last sequence.
    UnknownProducer,
    /// A setting has to be changed, here or at the broker.
    Refused,
}

pub(super) fn verdict(error: i16) -> Verdict {
    match error {
        // 46: the batch was stored when it was sent before.
        0 | 46 => Verdict::Stored,
        // Corrupt, too large (2), invalid time, not for this format, invalid.
        2 | 10 | 18 | 32 | 43 | 87 => Verdict::Rejected,
        // Timed out, connection lost, stored by too few replicas.
        7 | 13 | 20 => Verdict::Later { may_be_stored: true },
        // Leader unknown, none, another one (2); too few replicas, disk, epoch of the leader (2),
        // listener, controller, coordinator, throttled.
        3 | 5 | 6 | 8 | 9 | 14 | 15 | 16 | 19 | 41 | 56 | 72 | 74 | 75 | 89 => Verdict::Later { may_be_stored: false },
        45 | 47 | 49 | 59 | 90 => Verdict::UnknownProducer,
        _ => Verdict::Refused,
    }
}

/// The name of an error, and a hint where one is needed.
pub(super) fn describe(error: i16) -> String {
    let text = match error {
        -1 => "UNKNOWN_SERVER_ERROR",
        2 => "CORRUPT_MESSAGE",
        3 => "UNKNOWN_TOPIC_OR_PARTITION",
        5 => "LEADER_NOT_AVAILABLE",
        6 => "NOT_LEADER_OR_FOLLOWER",
        7 => "REQUEST_TIMED_OUT",
        10 => "MESSAGE_TOO_LARGE, see max.message.bytes of the topic",
        17 => "INVALID_TOPIC_EXCEPTION",
        18 => "RECORD_LIST_TOO_LARGE",
        19 => "NOT_ENOUGH_REPLICAS, see min.insync.replicas of the topic",
        20 => "NOT_ENOUGH_REPLICAS_AFTER_APPEND",
        29 => "TOPIC_AUTHORIZATION_FAILED: the user may not write to the topic",
        31 => "CLUSTER_AUTHORIZATION_FAILED: the user may not write idempotently",
        32 => "INVALID_TIMESTAMP",
        33 => "UNSUPPORTED_SASL_MECHANISM",
        34 => "ILLEGAL_SASL_STATE: the broker expects no sasl= here",
        35 => "UNSUPPORTED_VERSION: expected a broker of at least version 2.5",
        45 => "OUT_OF_ORDER_SEQUENCE_NUMBER",
        47 => "INVALID_PRODUCER_EPOCH",
        49 => "INVALID_PRODUCER_ID_MAPPING",
        53 => "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
        56 => "KAFKA_STORAGE_ERROR",
        58 => "SASL_AUTHENTICATION_FAILED",
        59 => "UNKNOWN_PRODUCER_ID",
        74 => "FENCED_LEADER_EPOCH",
        76 => "UNSUPPORTED_COMPRESSION_TYPE, see compression=",
        87 => "INVALID_RECORD",
        89 => "THROTTLING_QUOTA_EXCEEDED",
        90 => "PRODUCER_FENCED",
        other => return format!("error {other}"),
    };
    text.to_owned()
}

/// A failure with an error of a broker.
pub(super) fn failure(what: &str, error: i16) -> Failure {
    Failure { kind: ErrorKind::Answer, why: format!("{what}: {}", describe(error)), is_passing: false }
}
