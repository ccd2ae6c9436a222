//! The writer and the maintenance, on a real and on a simulated disk.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod hostile;
mod model;
mod real;
mod replay;
mod simulated;
