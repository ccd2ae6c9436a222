//! The bus on NATS JetStream: servers that a site runs anyway keep the records, replicated and on
//! disk, and a table of leases in a bucket says who handles which shard.
//!
//! ```text
//! capture ─▶ Producer ═▶ JetStreamWriter ─▶ SEKIWAKE_SYSLOG ─▶ Reader ─▶ group, tap
//!                        one unacknowledged   _XFLOW           one throw-away
//!                        message per subject  _SNMPTRAP        consumer each
//!                             └────────────▶ SEKIWAKE_STATE: announcements, own destinations
//! ```
//!
//! | part | type |
//! |---|---|
//! | a connection, in the thread that uses it | [`Connection`], [`Nats`] |
//! | streams, and what they must promise | `streams`; before a start `examine` |
//! | reading keys by their newest value, or a stream | [`Nats::multi_last`], [`Reader`] |
//! | writing: a key if nobody has written it meanwhile | [`Nats::put_if`] |
//! | publisher | [`JetStreamWriter`], `lanes`, `own`; of a file `followers` |
//! | reader without a group | [`JetStreamSource`], [`JetStreamRequests`] |
//! | client that registers destinations | [`JetStreamRegistrar`] |
//! | client that delivers to a stream of the site | [`JetStreamSubject`] |
//! | events, status | [`JetStreamEventSink`], [`JetStreamEventSource`], `status` |
//! | member of a group | [`JetStreamGroup`]; what is stored for it: `handoff`, `state` |
//!
//! This folder alone connects to NATS servers. Each thread has a connection of its own: the client
//! runs within the calls of that thread, and does nothing between them.
#![allow(dead_code, reason = "some of it is for members of groups only")]

#[cfg(feature = "jetstream")]
mod connection;
#[cfg(feature = "jetstream")]
mod events;
#[cfg(feature = "jetstream")]
mod examine;
#[cfg(feature = "jetstream")]
mod followers;
#[cfg(feature = "jetstream")]
mod fuzz;
#[cfg(feature = "jetstream")]
mod group;
#[cfg(feature = "jetstream")]
mod handoff;
#[cfg(feature = "jetstream")]
mod keys;
#[cfg(feature = "jetstream")]
mod lanes;
#[cfg(feature = "jetstream")]
mod own;
#[cfg(feature = "jetstream")]
mod reader;
#[cfg(feature = "jetstream")]
mod registrar;
#[cfg(feature = "jetstream")]
mod requests;
mod settings;
#[cfg(feature = "jetstream")]
mod source;
#[cfg(feature = "jetstream")]
mod state;
#[cfg(feature = "jetstream")]
mod status;
#[cfg(feature = "jetstream")]
mod streams;
#[cfg(feature = "jetstream")]
mod subject;
#[cfg(feature = "jetstream")]
mod writer;

#[cfg(feature = "jetstream")]
pub use fuzz::fuzz;
pub(crate) use settings::JetStreamSettings;
pub use settings::{NatsAccess, NatsIdentity, NatsLogin};
#[cfg(feature = "jetstream")]
pub(crate) use {
    connection::check_login,
    events::{JetStreamEventSink, JetStreamEventSource},
    examine::{examine_group, examine_publisher},
    group::JetStreamGroup,
    registrar::JetStreamRegistrar,
    requests::JetStreamRequests,
    source::JetStreamSource,
    subject::JetStreamSubject,
    writer::JetStreamWriter,
};
