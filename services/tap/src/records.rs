//! Records, and what is missing of those that the captures still hold.

use std::time::Duration;

use sekiwake_bus::{BusError, Delivery, MissingRecent, Source};
use tracing::warn;

/// The subscription to records.
pub(crate) struct Records {
    source: Box<dyn Source>,
    /// Where recent records are requested.
    endpoint: String,
}

impl Records {
    pub(crate) fn new(source: Box<dyn Source>, endpoint: String) -> Records {
        Records { source, endpoint }
    }

    pub(crate) fn receive(&mut self, timeout: Duration) -> Result<Option<Delivery>, BusError> {
        let delivery = self.source.receive(timeout);
        while let Some(missing) = self.source.next_missing() {
            report(&missing, &self.endpoint);
        }
        delivery
    }

    /// The capture time before which retransmitted records are not printed, nanoseconds since 1970.
    pub(crate) fn since_ns(&self) -> u64 {
        self.source.since_ns()
    }
}

/// Says in one line what is missing.
fn report(missing: &MissingRecent, endpoint: &str) {
    let (stream, text) = match missing {
        MissingRecent::NoConnection => {
            return warn!(
                endpoint,
                "no recent records: no control connection to the bus (SEKIWAKE_BUS_CONTROL or SEKIWAKE_BUS)"
            );
        }
        MissingRecent::NoAnswer => {
            return warn!(
                endpoint,
                "no recent records: the bus does not answer requests for them, perhaps an earlier version or a missing permission"
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
