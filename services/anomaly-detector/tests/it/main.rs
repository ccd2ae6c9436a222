//! The bands against a reference, and notifiers against real receivers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod notify;
mod reference;
