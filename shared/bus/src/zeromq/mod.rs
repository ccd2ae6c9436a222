//! The bus on ZeroMQ: sockets, the relay in the middle, and the threads of the control plane.
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
//! This folder alone opens ZeroMQ sockets. A socket belongs to one thread; threads communicate
//! through bounded channels. Threads wait for their sockets as `Inlet`s.
//!
//! [`Producer`]: crate::Producer

mod auth;
mod connections;
mod control;
mod data;
mod events;
mod group_subscriber;
mod inlet;
mod listeners;
mod port_guard;
mod settings;
mod socket;
mod status;

pub use auth::{
    AllowedKeys, ClientKeys, Gatekeeper, GatekeeperSettings, KeyChanges, KeyError, KeyFileError, KeyPair, PublicKey,
    ServerKeys, parse_allowed_keys, read_key_pair, read_public_key, write_key_pair,
};
pub use control::{
    ControlPlane, ControlPlaneSettings, ControlReader, DestinationRegistrar, RecentSubscriber, StreamControl,
};
pub use data::{Publisher, Relay, RelaySettings, Subscriber};
pub use events::{EventPublisher, EventSubscriber};
pub use group_subscriber::GroupSubscriber;
pub use settings::Endpoints;
pub use socket::{Context, INPROC_CONTROL, INPROC_PUBLISH, INPROC_SUBSCRIBE, MAX_MESSAGE_BYTES};
pub use status::{StatusInlet, StatusOutlet, status_channel};
pub(crate) use zmq::Message;
