//! The data plane: batches from producers through a publisher and the relay to subscribers.

mod backlog;
mod early;
mod producer;
mod publisher;
mod publisher_socket;
mod rejections;
mod relay;
mod subscriber;
mod subscription_watch;
mod subscriptions;
mod waiting;

pub use producer::{Overflow, Producer};
pub use publisher::{Outcome, Publisher, PublisherSettings, retain_shares};
pub use relay::{Relay, RelaySettings};
pub use subscriber::{Delivery, Frame, Subscriber};
pub(crate) use subscriber::{age_seconds, check_sequence};
pub use subscription_watch::SubscriptionWatch;
pub(crate) use subscriptions::Subscriptions;
