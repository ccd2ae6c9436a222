//! The bus: publishers, the relay in the middle, and subscribers, on ZeroMQ.
//!
//! ```text
//! capture thread ─▶ Batcher ─▶ Producer ─▶ Publisher thread ─XPUB─▶ Relay (XSUB ⇄ XPUB) ─▶ SUB Subscriber
//!      sans-I/O ──────┘          bounded      numbers records          counts, never blocks      Tracker: gaps, repeats
//! ```
//!
//! This crate alone opens ZeroMQ sockets. A socket belongs to one thread; threads talk through bounded channels.

mod batcher;
mod error;
mod gatekeeper;
mod key_files;
mod keys;
mod metrics;
mod publisher;
mod refusals;
mod relay;
mod settings;
mod socket;
mod subscriber;
mod subscriptions;
mod tracker;

pub use batcher::{Batcher, Outbound};
pub use error::BusError;
pub use gatekeeper::{Gatekeeper, GatekeeperSettings, ServerKeys};
pub use key_files::{AllowedKeys, KeyFileError, read_key_pair, read_public_key, write_key_pair};
pub use keys::{ClientKeys, KeyError, KeyPair, PublicKey, parse_allowed_keys};
pub use metrics::names;
pub use publisher::{Outcome, Overflow, Producer, Publisher, PublisherSettings, SubscriptionWatch};
pub use relay::{Relay, RelaySettings};
pub use settings::{Controlling, Publishing, Subscribing};
pub use socket::{Bus, INPROC_PUBLISH, INPROC_SUBSCRIBE, MAX_MESSAGE_BYTES};
pub use subscriber::{Delivery, Frame, Subscriber};
pub use tracker::{Observation, Tracker};
