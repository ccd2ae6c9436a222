//! The detector: counts of syslog an interval against Bollinger bands. Logic without I/O, clock or thread.

pub mod alarm;
pub mod bands;
pub mod detector;
mod positions;
