//! The data plane: batches from producers through a publisher and the relay to subscribers.

mod backlog;
mod publisher;
mod publisher_socket;
mod relay;
mod subscriber;
mod subscriptions;
mod waiting;

pub use publisher::Publisher;
pub use relay::{Relay, RelaySettings};
pub use subscriber::Subscriber;
pub(crate) use subscriptions::Subscriptions;
