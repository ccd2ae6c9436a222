//! Decodes the datagrams that records carry into typed rows: syslog, flows, traps.
//!
//! No I/O. Input is hostile: rows, depth and output are bounded, and what cannot be decoded is a
//! row that says why.
