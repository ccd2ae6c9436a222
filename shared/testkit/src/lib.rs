//! What only tests use: namespaces, sinks, packets, processes.

pub mod netns;
pub mod packets;
pub mod process;
pub mod sink;
pub mod wait;
