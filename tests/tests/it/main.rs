//! End-to-end tests: the real binaries, real packets over veth pairs, and every byte compared at
//! the collectors.
//!
//! They require root, iproute2 and `cargo build --release --workspace`. Without network namespaces
//! they report that they are skipped; with `TEST_SEKIWAKE_REQUIRE_NETNS=1` they fail.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod accounting;
mod all_in_one;
mod anomaly;
mod collectors;
mod console;
mod decoding;
mod destinations;
mod discover;
mod documents;
mod forwarding;
mod interfaces;
mod jetstream;
mod keys;
mod life;
mod links;
mod live;
mod load;
mod logs;
mod monitoring;
mod moved_proxy;
mod outages;
mod package;
mod payloads;
mod recent;
mod registration;
mod renames;
mod replay;
mod replicas;
mod savefile;
mod send_test;
mod settings;
mod status;
mod storing;
mod support;
mod systemd;
mod tree;
mod unreachable;
