//! Destinations that acknowledge messages: one worker, one request at a time, first in, first out.
//!
//! ```text
//!  queue ─▶ worker ─ decode ─▶ Outbox ─ request ─▶ sending thread ─ Sink ─▶ collector
//!                               │  ▲   ◀─ answer ─
//!                               ▼  │
//!                              Spool (on disk)
//! ```
//! **At least once.** The ack token of a batch is held until the other side has acknowledged all of
//! it, or the spool is synced. A request without an answer is sent again, so that records may
//! arrive twice.
//!
//! **Order.** Records of one source arrive in order: the spool is first in, first out, and a
//! request that fails is sent again before anything newer. When a shard moves while its owner has a
//! spool, the new owner does not wait for that: its records may arrive before older ones of the
//! same source.
//!
//! **A record that the other side rejects for good** (too large, malformed) is found by halving the
//! request. It is dropped as `rejected` once another record is accepted: until then the settings
//! may be wrong, and after 64 such records it is an outage.

pub(crate) mod entries;
pub(crate) mod kafka;
pub(crate) mod nats;
pub(crate) mod otlp;
pub(crate) mod outbox;
mod places;
pub(crate) mod secrets;
pub(crate) mod sending;
pub(crate) mod spool;
pub(crate) mod worker;

pub(crate) use worker::{DeliverySettings, DeliveryWorker};

/// Reads bytes as every answer that the other side of a delivery may give, for the fuzz target.
#[doc(hidden)]
pub fn read_answers(answer: &[u8]) {
    kafka::read_answers(answer);
    otlp::read_answers(answer);
}

/// What is delivered of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// The envelope, with the payload as text or base64.
    Json,
    /// The payload.
    Raw,
    /// One record per decoded row.
    Decoded,
}

impl Value {
    /// Its name in the option `value`.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Value::Json => "json",
            Value::Raw => "raw",
            Value::Decoded => "decoded",
        }
    }
}

/// The folder of a delivery's spool: its label without characters that a file name cannot have.
/// Different labels have different folders.
pub(crate) fn spool_name(label: &str) -> String {
    let mut name = String::new();
    for character in label.replace("://", "_").chars() {
        match character {
            '/' => name.push_str("%2F"),
            '%' => name.push_str("%25"),
            ',' | ':' => name.push('_'),
            other => name.push(other),
        }
    }
    name
}
