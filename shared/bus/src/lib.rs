//! The bus: publishers, the relay in the middle, and subscribers, on ZeroMQ.
//!
//! ```text
//! capture thread ─▶ Batcher ─▶ Producer ─▶ Publisher thread ─XPUB─▶ Relay (XSUB ⇄ XPUB) ─▶ SUB Subscriber
//!      sans-I/O ──────┘          bounded      numbers records          counts, never blocks      Tracker: gaps, repeats
//! ```
//!
//! Beside it the control plane ([`ControlPlane`], [`StreamControl`], [`GroupSubscriber`]): who owns which shard, and what is
//! repeated. Its logic is in `sekiwake-group`.
//!
//! This crate alone opens ZeroMQ sockets. A socket belongs to one thread; threads talk through bounded channels.

mod batcher;
mod control;
mod early;
mod error;
mod events;
mod gatekeeper;
mod group_subscriber;
mod key_files;
mod keys;
mod leaving;
mod metrics;
mod own;
mod publisher;
mod refusals;
mod relay;
mod settings;
mod socket;
mod subscriber;
mod subscriptions;
mod tracker;

pub use batcher::{Batcher, Outbound};
pub use control::{ControlPlane, ControlPlaneSettings, StreamControl, boot_now};
pub use error::BusError;
pub use events::{EVENT_PREFIX, Event, EventPublisher, EventSubscriber, MAX_EVENT_BYTES};
pub use gatekeeper::{Gatekeeper, GatekeeperSettings, ServerKeys};
pub use group_subscriber::{GroupDelivery, GroupSubscriber, GroupSubscriberSettings, Ticket};
pub use key_files::{AllowedKeys, KeyFileError, read_key_pair, read_public_key, write_key_pair};
pub use keys::{ClientKeys, KeyError, KeyPair, PublicKey, parse_allowed_keys};
pub use leaving::{Leaving, Progress};
pub use metrics::names;
pub use own::{OwnDestinations, OwnWatch, is_own};
pub use publisher::{Outcome, Overflow, Producer, Publisher, PublisherSettings, SubscriptionWatch, retain_shares};
pub use relay::{Relay, RelaySettings};
pub use sekiwake_group::{
    Permission, Stream,
    wire::{Destination as RegisteredDestination, Note, NoteKey, NoteValue, Transport},
};
pub use settings::{Controlling, Grouping, Publishing, Subscribing};
pub use socket::{Bus, INPROC_CONTROL, INPROC_PUBLISH, INPROC_SUBSCRIBE, MAX_MESSAGE_BYTES};
pub use subscriber::{Delivery, Frame, Subscriber};
pub use tracker::{Observation, Tracker};
