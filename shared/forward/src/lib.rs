//! The forwarding engine, and the service around it that all forwarders share.
//!
//! ```text
//!                          ┌─ queue ─▶ worker ─ plan ─▶ sendmmsg, UDP_SEGMENT ─▶ destination
//! bus ─▶ pump ─▶ Engine ───┤
//!                          └─ queue ─▶ worker ─ plan ─▶ sendmmsg, UDP_SEGMENT ─▶ destination
//! ```
//!
//! **Invariant:** the receiving thread waits for no destination, and no destination for another: each has a bounded queue, a
//! thread and counters of its own. **Invariant:** payloads are sent as they came, from the memory they were received in.
//! **Invariant:** datagrams of one source leave in the order in which they were captured; between sources there is no order.

mod destination;
mod egress;
mod engine;
mod filter;
mod flows;
mod flush;
mod health;
mod metrics;
mod noting;
mod parcel;
mod plan;
mod pool;
mod preflight;
mod pump;
mod queue;
mod rate;
mod registry;
mod reload;
mod resolve;
mod rewrite;
mod route;
mod selection;
mod service;
mod spoof;
mod spools;
pub mod stream;
mod target;
#[cfg(test)]
mod testing;
mod udp;
mod worker;

pub use destination::{
    Destination, DestinationError, Destinations, Dscp, Host, MAX_PLACES, Options, Place, TlsFiles, Transport,
};
pub use engine::Engine;
pub use filter::{Facilities, Filter};
pub use metrics::{DropReason, names};
pub use parcel::Parcel;
pub use registry::Registry;
pub use reload::DestinationsFile;
pub use resolve::{Resolution, Resolve, SystemResolver};
pub use service::{Forwarder, ForwarderSettings, Protocol};
