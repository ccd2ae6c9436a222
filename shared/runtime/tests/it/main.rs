//! Toy roles in whole processes: over real HTTP, with real threads and real signals.

#![allow(clippy::unwrap_used, reason = "what the tests share is outside of the test functions")]

mod admin;
mod command_line;
mod life;
mod losses;
mod metrics;
mod pages;
mod status;
mod toys;
