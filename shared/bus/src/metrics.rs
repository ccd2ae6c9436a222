//! The names of the bus's metrics, and the counters behind them, resolved once.

use prometheus::{Gauge, IntCounter, IntGauge};
use sekiwake_record::Kind;
use sekiwake_runtime::Metrics;

/// Metric names.
pub mod names {
    /// Records that a publisher gave to the bus.
    pub const PUBLISHED_RECORDS: &str = "sekiwake_bus_published_records_total";
    /// Messages that they travelled in.
    pub const PUBLISHED_BATCHES: &str = "sekiwake_bus_published_batches_total";
    /// Bytes of their bodies.
    pub const PUBLISHED_BYTES: &str = "sekiwake_bus_published_bytes_total";
    /// Records that a publisher was offered and did not give to the bus, by reason.
    pub const UNPUBLISHED_RECORDS: &str = "sekiwake_bus_unpublished_records_total";
    /// Records that wait at a publisher because the bus takes no more for the moment.
    pub const WAITING_RECORDS: &str = "sekiwake_bus_waiting_records";
    /// Bytes of the batches that wait.
    pub const WAITING_BYTES: &str = "sekiwake_bus_waiting_bytes";
    /// Topics that somebody has subscribed to, as a publisher knows. What nobody wants does not leave it.
    pub const WANTED_TOPICS: &str = "sekiwake_bus_wanted_topics";
    /// Records that the relay received from publishers.
    pub const RELAY_RECEIVED_RECORDS: &str = "sekiwake_relay_received_records_total";
    /// Records that the relay passed on.
    pub const RELAY_PASSED_RECORDS: &str = "sekiwake_relay_passed_records_total";
    /// Messages that the relay refused, by reason.
    pub const RELAY_REFUSED_MESSAGES: &str = "sekiwake_relay_refused_messages_total";
    /// Subscriptions that the relay refused.
    pub const RELAY_REFUSED_SUBSCRIPTIONS: &str = "sekiwake_relay_refused_subscriptions_total";
    /// Times that a subscriber's queue was found full. What it missed it counts itself, by sequence numbers.
    pub const RELAY_QUEUE_FULL: &str = "sekiwake_relay_subscriber_queue_full_total";
    /// Subscriptions that the relay holds.
    pub const RELAY_SUBSCRIPTIONS: &str = "sekiwake_relay_subscriptions";
    /// Records that a subscriber received and that are new to it.
    pub const RECEIVED_RECORDS: &str = "sekiwake_bus_received_records_total";
    /// Records that a subscriber had received before.
    pub const REPEATED_RECORDS: &str = "sekiwake_bus_repeated_records_total";
    /// Records that never came: holes in the sequence of a stream and topic.
    pub const LOST_RECORDS: &str = "sekiwake_bus_lost_records_total";
    /// Messages that a subscriber could not read, by reason.
    pub const MALFORMED_MESSAGES: &str = "sekiwake_bus_malformed_messages_total";
    /// Streams that a subscriber follows.
    pub const STREAMS: &str = "sekiwake_bus_streams";
    /// Age of the newest record when it was received: now less its capture time.
    pub const LAG_SECONDS: &str = "sekiwake_bus_lag_seconds";
    /// Whether the connection to the relay stands.
    pub const CONNECTED: &str = "sekiwake_bus_connected";
    /// Connections that the proxy refused, by reason.
    pub const DENIED_CONNECTIONS: &str = "sekiwake_bus_denied_connections_total";
    /// Keys that may connect to the proxy.
    pub const ALLOWED_KEYS: &str = "sekiwake_bus_allowed_keys";
    /// Times that a changed list of allowed keys could not be read, so that the old one stayed.
    pub const ALLOWED_KEYS_ERRORS: &str = "sekiwake_bus_allowed_keys_errors_total";
}

/// One counter for each kind, by [`Kind::index`].
pub(crate) type PerKind = [IntCounter; 3];

fn per_kind(metrics: &Metrics, name: &str, help: &str, more: &[(&str, &str)]) -> PerKind {
    Kind::ALL.map(|kind| {
        let mut labels = vec![("kind", kind.as_str())];
        labels.extend_from_slice(more);
        metrics.counter(name, help, &labels)
    })
}

#[derive(Clone)]
pub(crate) struct PublisherMetrics {
    pub(crate) records: PerKind,
    pub(crate) batches: PerKind,
    pub(crate) bytes: PerKind,
    pub(crate) no_subscriber: PerKind,
    pub(crate) bus_full: PerKind,
    pub(crate) waiting_records: IntGauge,
    pub(crate) waiting_bytes: IntGauge,
    pub(crate) wanted_topics: [IntGauge; 3],
    pub(crate) connected: IntGauge,
}

impl PublisherMetrics {
    pub(crate) fn new(metrics: &Metrics) -> PublisherMetrics {
        let unpublished = "Records that were offered to the bus and did not get onto it.";
        PublisherMetrics {
            records: per_kind(metrics, names::PUBLISHED_RECORDS, "Records given to the bus.", &[]),
            batches: per_kind(metrics, names::PUBLISHED_BATCHES, "Batches given to the bus.", &[]),
            bytes: per_kind(metrics, names::PUBLISHED_BYTES, "Bytes of batch bodies given to the bus.", &[]),
            no_subscriber: per_kind(metrics, names::UNPUBLISHED_RECORDS, unpublished, &[("reason", "no_subscriber")]),
            bus_full: per_kind(metrics, names::UNPUBLISHED_RECORDS, unpublished, &[("reason", "bus_full")]),
            waiting_records: metrics.gauge(names::WAITING_RECORDS, "Records that wait for room on the bus.", &[]),
            waiting_bytes: metrics.gauge(names::WAITING_BYTES, "Bytes of batches that wait for room on the bus.", &[]),
            wanted_topics: Kind::ALL.map(|kind| {
                let help = "Topics that somebody has subscribed to.";
                metrics.gauge(names::WANTED_TOPICS, help, &[("kind", kind.as_str())])
            }),
            connected: connected(metrics),
        }
    }
}

pub(crate) struct RelayMetrics {
    pub(crate) received: PerKind,
    pub(crate) passed: PerKind,
    pub(crate) malformed: IntCounter,
    pub(crate) foreign: IntCounter,
    pub(crate) refused_subscriptions: IntCounter,
    pub(crate) queue_full: IntCounter,
    pub(crate) subscriptions: IntGauge,
}

impl RelayMetrics {
    pub(crate) fn new(metrics: &Metrics) -> RelayMetrics {
        let refused = "Messages from publishers that the relay refused.";
        RelayMetrics {
            received: per_kind(metrics, names::RELAY_RECEIVED_RECORDS, "Records received from publishers.", &[]),
            passed: per_kind(metrics, names::RELAY_PASSED_RECORDS, "Records passed on to subscribers.", &[]),
            malformed: metrics.counter(names::RELAY_REFUSED_MESSAGES, refused, &[("reason", "malformed")]),
            foreign: metrics.counter(names::RELAY_REFUSED_MESSAGES, refused, &[("reason", "unknown_topic")]),
            refused_subscriptions: metrics.counter(
                names::RELAY_REFUSED_SUBSCRIPTIONS,
                "Messages from subscribers that are no subscription to a topic of the bus.",
                &[],
            ),
            queue_full: metrics.counter(names::RELAY_QUEUE_FULL, "Times a subscriber's queue was found full.", &[]),
            subscriptions: metrics.gauge(names::RELAY_SUBSCRIPTIONS, "Distinct subscriptions held.", &[]),
        }
    }
}

pub(crate) struct SubscriberMetrics {
    pub(crate) received: PerKind,
    pub(crate) repeated: PerKind,
    pub(crate) lost: PerKind,
    pub(crate) malformed: IntCounter,
    pub(crate) forgotten: IntCounter,
    pub(crate) streams: IntGauge,
    pub(crate) lag_seconds: Gauge,
    pub(crate) connected: IntGauge,
}

impl SubscriberMetrics {
    pub(crate) fn new(metrics: &Metrics) -> SubscriberMetrics {
        let malformed = "Messages from the bus that could not be read, or whose stream had to be forgotten.";
        let lost = "Records that never came, by the holes they left in their sequence.";
        SubscriberMetrics {
            received: per_kind(metrics, names::RECEIVED_RECORDS, "Records received for the first time.", &[]),
            repeated: per_kind(metrics, names::REPEATED_RECORDS, "Records received before and not used again.", &[]),
            lost: per_kind(metrics, names::LOST_RECORDS, lost, &[("reason", "gap")]),
            malformed: metrics.counter(names::MALFORMED_MESSAGES, malformed, &[("reason", "malformed")]),
            forgotten: metrics.counter(names::MALFORMED_MESSAGES, malformed, &[("reason", "too_many_streams")]),
            streams: metrics.gauge(names::STREAMS, "Streams that are followed.", &[]),
            lag_seconds: metrics.float_gauge(names::LAG_SECONDS, "Age of the newest record when it was received.", &[]),
            connected: connected(metrics),
        }
    }
}

/// Why a connection was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// The peer has a key, but none that is allowed.
    Key,
    /// The peer speaks without encryption, or with another one.
    Mechanism,
    /// What the peer encrypted cannot be read: it takes the proxy for somebody else.
    ServerKey,
    /// The peer hung up, was silent, or said what is no handshake. One without encryption may hang up before that is seen.
    Handshake,
}

impl Denial {
    const ALL: [Denial; 4] = [Denial::Key, Denial::Mechanism, Denial::ServerKey, Denial::Handshake];

    /// The value of the label `reason`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Denial::Key => "key_not_allowed",
            Denial::Mechanism => "not_encrypted",
            Denial::ServerKey => "wrong_server_key",
            Denial::Handshake => "handshake_failed",
        }
    }
}

pub(crate) struct GatekeeperMetrics {
    denied: [IntCounter; 4],
    pub(crate) allowed_keys: IntGauge,
    pub(crate) allowed_keys_errors: IntCounter,
}

impl GatekeeperMetrics {
    pub(crate) fn new(metrics: &Metrics) -> GatekeeperMetrics {
        let denied = "Connections to the proxy that were refused.";
        let errors = "Times a changed list of allowed keys could not be read, so that the old one stayed.";
        GatekeeperMetrics {
            denied: Denial::ALL
                .map(|denial| metrics.counter(names::DENIED_CONNECTIONS, denied, &[("reason", denial.name())])),
            allowed_keys: metrics.gauge(names::ALLOWED_KEYS, "Keys that may connect to the proxy.", &[]),
            allowed_keys_errors: metrics.counter(names::ALLOWED_KEYS_ERRORS, errors, &[]),
        }
    }

    pub(crate) fn denied(&self, denial: Denial) -> &IntCounter {
        &self.denied[denial as usize]
    }
}

fn connected(metrics: &Metrics) -> IntGauge {
    metrics.gauge(names::CONNECTED, "Whether the connection to the proxy stands.", &[])
}
