//! The bus: publishers, the relay in the middle, and subscribers, on ZeroMQ.
//!
//! ```text
//! capture thread ─▶ Batcher ─▶ Producer ═▶ Publisher ─XPUB─▶ Relay ─XPUB─▶ Subscriber
//!                              (bounded)   numbers          counts,       Tracker: gaps,
//!                                          records          never blocks  duplicates
//! ```
//!
//! Beside this data plane there is a control plane, which decides which member owns which shard and
//! what is retransmitted. Each part of the bus consists of several types:
//!
//! | part | data plane | control plane: shell | and logic in `sekiwake-group` |
//! |---|---|---|---|
//! | proxy | [`Relay`] | [`ControlPlane`] | `Coordinator`, `HandoffStore` |
//! | publisher | [`Publisher`], [`Producer`] | [`StreamControl`] | `PublisherControl` |
//! | between its threads | `StreamShared` | `StreamPhase` | `Retention`, `OwnDestinations` |
//! | member of a group | [`GroupSubscriber`] | [`GroupSubscriber`] | `Member`, `HandoffKeeper` |
//! | reader without a group | [`Subscriber`] | [`ControlReader`] | `Tracker`, `TemplateReader` |
//! | recent records | [`RecentSubscriber`] | the same | `RecentReader`, `RecentAnswers` |
//! | client that registers destinations | none | [`DestinationRegistrar`] | `Registrant` |
//! | events | [`EventPublisher`], [`EventSubscriber`] | none | none |
//! | status | [`EventSubscriber`] | `StatusReporter` | `StatusSender`, `StatusBoard` |
//! | encryption | [`Gatekeeper`], [`ServerKeys`], [`ClientKeys`] | the same | none |
//!
//! This crate alone opens ZeroMQ sockets. A socket belongs to one thread; threads communicate
//! through bounded channels. Threads wait for their sockets as `Inlet`s.

mod auth;
mod clock;
mod connections;
mod control;
mod data;
mod error;
mod events;
mod group_subscriber;
mod inlet;
mod listeners;
mod metrics;
mod port_guard;
mod reminder;
mod reporting;
mod settings;
mod socket;
mod status;

pub use auth::{
    AllowedKeys, ClientKeys, Gatekeeper, GatekeeperSettings, KeyChanges, KeyError, KeyFileError, KeyPair, PublicKey,
    ServerKeys, parse_allowed_keys, read_key_pair, read_public_key, write_key_pair,
};
pub use clock::boot_now;
pub use control::{
    ControlPlane, ControlPlaneSettings, ControlReader, DestinationRegistrar, KnownTemplates, MissingRecent,
    RecentSubscriber, Registered, StreamControl,
};
pub use data::{
    Delivery, Frame, Outcome, Overflow, Producer, Publisher, PublisherSettings, Relay, RelaySettings, Subscriber,
    SubscriptionWatch, retain_shares,
};
pub use error::BusError;
pub use events::{EVENT_PREFIX, Event, EventPublisher, EventSubscriber, MAX_EVENT_BYTES};
pub use group_subscriber::{
    AckToken, GroupDelivery, GroupSubscriber, GroupSubscriberSettings, HandoffWait, Leaving, Progress,
};
pub use metrics::names;
pub use reporting::Reporting;
pub use sekiwake_group::{
    BootTime, Permission, Stream,
    wire::{Destination as RegisteredDestination, HandoffEntry, HandoffKey, HandoffValue, Transport},
};
pub use settings::{Controlling, Grouping, Publishing, Subscribing};
pub use socket::{Bus, INPROC_CONTROL, INPROC_PUBLISH, INPROC_SUBSCRIBE, MAX_MESSAGE_BYTES};
pub use status::{STATUS_PREFIX, StatusInlet, StatusOutlet, status_channel};
