//! The writer and the keeping, on disks that are real and on one that is not.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hostile;
mod model;
mod real;
mod simulated;
