//! The engine against real sockets.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accounting;
mod delivery;
mod destinations;
mod names;
mod namespaces;
mod payloads;
mod reload;
mod rig;
mod routing;
mod stream;
mod templates;
