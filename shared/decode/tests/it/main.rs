//! Rows from built datagrams, hostile bytes, and their cost.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its input has failed")]

mod cost;
mod datagram;
mod lists;
mod netflow;
mod properties;
mod secrets;
mod seeds;
mod sflow;
mod syslog;
mod templates;
