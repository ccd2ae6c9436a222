//! The bands against a reference implementation, and notifiers against real receivers.

#![allow(clippy::unwrap_used, reason = "a test without its preconditions fails")]

mod notify;
mod reference;
