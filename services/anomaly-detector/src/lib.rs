//! Notices that the rate of syslog is not what it was.

mod detect;
mod explain;
pub mod notify;
