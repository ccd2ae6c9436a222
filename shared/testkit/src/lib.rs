//! For tests only: namespaces, packets, processes, fixtures. The sink and the waits are those of
//! `sekiwake-receiver`.

pub mod bad_log;
pub mod corpus;
pub mod fixtures;
pub mod log_lines;
pub mod netns;
pub mod packets;
pub mod process;
pub mod random;
pub mod role;
pub mod skip;

pub use sekiwake_traffic::{sink, wait};
