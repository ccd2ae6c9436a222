//! The real binaries in network namespaces: shared by end-to-end tests, demo and benchmarks.
//!
//! ```text
//!  devices                    host                                   collectors
//!  198.18.0.0/15 ──wire0── capture, proxy, forwarders ──out0── 198.51.100.11, .12, ...
//!  2001:db8:18::/48            (and the old collector)             2001:db8:51::11, ...
//! ```

mod browser;
pub mod collectors;
mod ledger;
mod metrics;
pub mod nats;
pub mod outage;
pub mod receivers;
pub mod servers;
mod services;
mod site;
mod webhook;

pub use browser::{Browser, Screen, Tree, has_browser};
pub use ledger::{FORWARDERS, Flow, Ledger};
pub use metrics::{Samples, get};
pub use services::{Service, Services, binary, command, sent_by};
pub use site::{
    DEVICES_WIRE, FIRST_DEVICE, FIRST_DEVICE_V6, HOST, HOST_V6, Links, MIRRORED, MIRRORED_V6, Site, WIRE, collector,
    collector_v6,
};
pub use webhook::Webhook;
