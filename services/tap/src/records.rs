//! Records: live ones, and with `--since` those that the captures still hold before them.

use std::time::Duration;

use sekiwake_bus::{BusError, Delivery, MissingRecent, RecentSubscriber, Subscriber};
use tracing::warn;

/// The subscription to records.
pub(crate) enum Records {
    Live(Box<Subscriber>),
    /// It begins with recent records. `endpoint` is that of the control connection.
    Recent {
        recent: Box<RecentSubscriber>,
        endpoint: String,
    },
}

impl Records {
    pub(crate) fn receive(&mut self, timeout: Duration) -> Result<Option<Delivery>, BusError> {
        let (recent, endpoint) = match self {
            Records::Live(subscriber) => return subscriber.receive(timeout),
            Records::Recent { recent, endpoint } => (recent, endpoint),
        };
        let delivery = recent.receive(timeout);
        while let Some(missing) = recent.next_missing() {
            report(&missing, endpoint);
        }
        delivery
    }

    /// The capture time before which retransmitted records are not printed, nanoseconds since 1970.
    pub(crate) fn since_ns(&self) -> u64 {
        match self {
            Records::Live(_) => 0,
            Records::Recent { recent, .. } => recent.since_ns(),
        }
    }
}

/// Says in one line what is missing.
fn report(missing: &MissingRecent, endpoint: &str) {
    let (stream, text) = match missing {
        MissingRecent::NoConnection => {
            return warn!(endpoint, "no recent records: no control connection to the proxy (SEKIWAKE_BUS_CONTROL)");
        }
        MissingRecent::NoAnswer => {
            return warn!(
                endpoint,
                "no recent records: the proxy does not answer requests for them, perhaps an earlier version"
            );
        }
        MissingRecent::Silent(stream) => {
            (stream, "no recent records of a stream: its publisher does not answer, perhaps an earlier version")
        }
        MissingRecent::Gone(stream) => (stream, "no recent records of a stream: the proxy knows no live publisher"),
        MissingRecent::Late(stream) => (stream, "recent records of a stream incomplete: not all received within 60 s"),
        MissingRecent::NoRoom(stream) => {
            (stream, "recent records of a stream incomplete: over 128 MiB of live records arrived meanwhile")
        }
    };
    warn!(endpoint, %stream, "{text}");
}
