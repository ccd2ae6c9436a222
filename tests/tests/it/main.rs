//! End to end: the real binaries, real packets over veth pairs, and every byte compared at the collectors.
//!
//! Takes root, iproute2 and `cargo build --release --workspace`. Where namespaces cannot be made the tests say loudly that
//! they are skipped; with `TEST_SEKIWAKE_REQUIRE_NETNS=1` they fail.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accounting;
mod all_in_one;
mod anomaly;
mod collectors;
mod destinations;
mod discover;
mod documents;
mod forwarding;
mod interfaces;
mod keys;
mod life;
mod live;
mod load;
mod monitoring;
mod payloads;
mod replicas;
mod savefile;
mod settings;
mod storing;
mod support;
