//! Sends test traffic: syslog, NetFlow v5 and v9, IPFIX, sFlow and SNMP traps, paced and numbered,
//! from many sources.
//!
//! `sekiwake_traffic` generates the payloads. [`pacer`] schedules datagrams, and [`plan`] assigns
//! protocols and destinations to sources; both work without sockets and clocks. [`send`] drives
//! them.

pub mod cli;
pub mod pacer;
pub mod plan;
mod register;
pub mod send;
pub mod share;
pub mod sizes;
pub mod sources;
pub mod summary;
mod tool;

pub use tool::SenderTool;
