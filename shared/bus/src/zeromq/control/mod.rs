//! The control plane's shells: sockets, clock and threads around the state machines of
//! `sekiwake-group`.
//!
//! ```text
//! StreamControl (DEALER)  ──▶  ControlPlane (ROUTER, in the proxy)  ◀──  GroupSubscriber (DEALER)
//!  + PublisherControl           + Coordinator                             + Member
//! ```
//! One frame per message. A message that its socket has no room for waits in the publisher's state
//! machine; at the proxy it is dropped and counted, because every message describes a state and the
//! next one repeats it.

pub(crate) mod dealer;
mod group_log;
mod intake;
mod phase;
mod plane;
mod plane_status;
mod reader;
mod recent;
mod registrar;
mod shared;
mod sources;
mod stream;

pub use plane::{ControlPlane, ControlPlaneSettings};
pub use reader::ControlReader;
pub use recent::RecentSubscriber;
pub use registrar::DestinationRegistrar;
pub(crate) use shared::{Body, StreamShared};
pub use stream::StreamControl;
pub(crate) use stream::StreamControlOptions;
