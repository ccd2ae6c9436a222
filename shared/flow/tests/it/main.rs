//! Exporters: built datagrams, properties, and public captures.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its input has failed")]

mod corpus;
mod cost;
mod datagram;
mod known;
mod losses;
mod options;
mod ports;
mod properties;
mod refresh;
mod templates;
