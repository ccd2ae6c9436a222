//! Test traffic: syslog, NetFlow v5 and v9, IPFIX, sFlow and SNMP traps, paced, numbered, from many sources.
//!
//! [`generate`] makes payloads and [`pacer`] says when; both know neither sockets nor clocks. [`send`] is the shell around
//! them. [`sequence_of`] reads back what [`generate`] numbered, so that a receiver can prove that nothing is missing.

pub mod cli;
pub mod generate;
pub mod mix;
pub mod pacer;
pub mod plan;
pub mod protocol;
pub mod send;
pub mod sequence;
pub mod sizes;
pub mod sources;
pub mod summary;

pub use protocol::Protocol;
pub use sequence::{Sequenced, sequence_of};
