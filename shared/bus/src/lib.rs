//! The bus: records on their way from captures to services.
//!
//! ```text
//!  capture            forwarders, storer, detector      tap, sender, detector
//!  Batcher            AckToken, Leaving, HandoffWait
//!     ▼                    ▲                                │
//!  Producer           GroupDelivery                     Delivery, Event
//! ════╪════ Bus ═══════════╪════════════════════════════════╪════════════════════ the seam
//!     ▼                    │                                │
//!  Writer             GroupSource                       Source, EventSource, EventSink,
//!  Responder          HandoffState                      Requests, Registrar
//!     └────────────────────┴──── zeromq ────────────────────┘
//! ```
//!
//! Services name [`Bus`] and the traits. Settings say which bus it is; [`Bus`] makes the trait
//! objects. Above the seam is what every bus has in common: how batches are handed over
//! (`stream`), what a member of a group has to do (`group`), events, status, metrics. Below it is
//! what a message contains, when it is sent again, and what a position is.
//!
//! A trait object is called once per batch. It belongs to one thread.

mod bell;
mod bus;
mod clock;
mod error;
mod events;
mod frame;
mod group;
mod jetstream;
mod metrics;
mod outgoing;
mod reading;
mod reminder;
mod reporting;
mod requests;
mod settings;
mod status;
mod stream;
mod traits;
pub mod zeromq;

pub use bus::{Bus, check_login, subject_publisher};
pub use clock::boot_now;
pub use error::{BusError, Cause};
pub use events::{EVENT_PREFIX, Event, MAX_EVENT_BYTES};
pub use frame::Frame;
pub use group::{AckToken, Deduplicate, GroupDelivery, GroupSettings, HandoffWait, Leaving, Progress};
#[cfg(feature = "jetstream")]
pub use jetstream::fuzz as fuzz_jetstream;
pub use jetstream::{NatsAccess, NatsIdentity, NatsLogin};
pub use metrics::names;
pub use outgoing::{NotPublished, NotPublishedCause, Outgoing, Published};
pub use reading::{Delivery, MissingRecent};
pub use reporting::Reporting;
pub use requests::{KnownTemplates, Registered};
pub use sekiwake_deduplicate::StreamProgress;
pub use sekiwake_group::{
    BootTime, Permission, Stream,
    wire::{Destination as RegisteredDestination, HandoffEntry, HandoffKey, HandoffValue, Transport},
};
pub use settings::{Controlling, Grouping, Publishing, Subscribing};
pub use status::STATUS_PREFIX;
pub use stream::{Outcome, Overflow, Producer, PublishedStream, StreamSettings, SubscriptionWatch, retain_shares};
pub use traits::{
    EventSink, EventSource, GroupSource, HandoffState, Registrar, Requests, Responder, Source, SubjectPublisher, Writer,
};
