//! Notices that the rate of syslog is not what it was.

pub mod detect;
mod explain;
pub mod notify;
