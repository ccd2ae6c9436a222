//! Toy roles in complete processes, with HTTP, threads and signals.

#![allow(clippy::unwrap_used, reason = "shared helpers are not test functions")]

mod admin;
mod command_line;
mod life;
mod losses;
mod metrics;
mod pages;
mod status;
mod toys;
