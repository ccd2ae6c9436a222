//! Exporters: hand-made datagrams, properties, and the captures of others.

#![allow(clippy::unwrap_used, reason = "a test that cannot read its own input has failed")]

mod corpus;
mod cost;
mod datagram;
mod properties;
mod templates;
