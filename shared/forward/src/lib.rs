//! The forwarding engine, and the service around it that all forwarders share.
//!
//! ```text
//!                                 ┌──────────────────────▶ sendmmsg, UDP_SEGMENT ─▶ endpoint, if it is little
//!                                 ├─ queue ═▶ UdpWorker ─▶ the same
//! bus ─▶ Pump ─▶ Engine ─ Route ──┤
//!                                 ├─ queue ═▶ StreamWorker ─▶ TCP, TLS, spool ────▶ endpoint
//!                                 └─ queue ═▶ DeliveryWorker ─▶ OTLP, Kafka, NATS ─▶ endpoint
//! ```
//!
//! | folder | |
//! |---|---|
//! | `config` | destinations as they are configured, their files, names, addresses and checks |
//! | `routing` | which records of a batch go to which endpoint: filter, rate, pool |
//! | `udp`, `spoof` | the worker of a UDP endpoint; sending with the devices' addresses |
//! | `stream` | the worker of a TCP or TLS endpoint, and its spool |
//! | `delivery` | the worker of an endpoint that acknowledges (OTLP, Kafka, NATS), and its spool |
//! | `templates` | flows only: templates, sequences, hand-off state |
//! | `send_test` | the subcommand that sends one message through each destination |
//!
//! **Invariant:** the receiving thread never waits for a destination, nor one destination for
//! another: each endpoint has a bounded queue, a thread and counters of its own, and the receiving
//! thread sends only what an endpoint takes at once. **Invariant:**
//! payloads are sent unmodified, from the memory they were received in, unless `rewrite` says
//! otherwise. **Invariant:** datagrams of one source leave in the order of their capture; there is
//! no order between sources.

mod ber;
mod config;
mod delivery;
mod engine;
mod metrics;
mod orphans;
mod parcel;
mod pump;
mod queue;
mod rewrite;
mod routing;
mod send_test;
mod service;
mod spoof;
mod status;
mod status_page;
pub mod stream;
mod templates;
#[cfg(test)]
mod testing;
mod totals;
mod udp;

pub use config::{
    destination::{
        DeliveryOptions, Destination, DestinationError, Destinations, Dscp, Endpoint, Host, KafkaOptions,
        MAX_ENDPOINTS, NatsOptions, Options, TlsFiles, Transport,
    },
    registry::{AddressList, RegisteredAddress, Registry},
    reload::DestinationsFile,
    resolve::{Resolution, Resolve, SystemResolver},
};
pub use delivery::{
    Value,
    kafka::{Compression, Mechanism},
    otlp::Encoding,
    read_answers,
};
pub use engine::{Engine, EngineOptions};
pub use metrics::{DropReason, names};
pub use parcel::Parcel;
pub use routing::filter::{Facilities, Filter};
pub use send_test::send_test;
pub use service::{Forwarder, ForwarderSettings, Protocol};
