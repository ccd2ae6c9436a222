//! The names of the bus's metrics, and the counters behind them, resolved once.

use std::collections::BTreeMap;

use prometheus::{Gauge, IntCounter, IntGauge};
use sekiwake_group::{
    GiveUp, GroupView, MemberCounters, MemberStatus, NoteCounters, NoteRefusals, NotesView, Refusals, StreamView,
};
use sekiwake_record::Kind;
use sekiwake_runtime::Metrics;

use crate::tracker::MAX_STREAMS;

/// Groups that have metrics of their own at the proxy.
const MAX_GROUPS_SHOWN: usize = 64;

/// Help of the one family that subscribers with and without a group share.
const LOST: &str = "Records that are lost to this subscriber, by stream and reason.";

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
    /// Events that the relay passed on.
    pub const RELAY_EVENTS: &str = "sekiwake_relay_events_total";
    /// Events that were to be published, by outcome: `published`, `no_subscriber`, `no_room`, `refused` (no JSON object, or too large).
    pub const EVENTS: &str = "sekiwake_bus_events_total";
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
    /// Bytes of memory in which a publisher keeps batches to repeat them.
    pub const RETAINED_BYTES: &str = "sekiwake_bus_retained_bytes";
    /// How far back that reaches.
    pub const RETAINED_SECONDS: &str = "sekiwake_bus_retained_seconds";
    /// Bytes of bodies that a publisher has sent again.
    pub const REPEATED_BYTES: &str = "sekiwake_bus_repaired_bytes_total";
    /// Control messages that were refused, by reason.
    pub const CONTROL_REFUSED: &str = "sekiwake_control_refused_messages_total";
    /// Control messages that found no room in the way to their receiver.
    pub const CONTROL_UNSENT: &str = "sekiwake_control_unsent_messages_total";
    /// Whether the control connection to the proxy stands.
    pub const CONTROL_CONNECTED: &str = "sekiwake_control_connected";
    /// Bytes of control messages at the proxy, by direction.
    pub const CONTROL_BYTES: &str = "sekiwake_control_bytes_total";
    /// Members of each group.
    pub const GROUP_MEMBERS: &str = "sekiwake_group_members";
    /// Shards of a group that nobody owns.
    pub const GROUP_UNOWNED_SHARDS: &str = "sekiwake_group_unowned_shards";
    /// Records that a group has not committed yet.
    pub const GROUP_LAG_RECORDS: &str = "sekiwake_group_lag_records";
    /// Streams whose publishers are heard of.
    pub const LIVE_STREAMS: &str = "sekiwake_control_live_streams";
    /// Notes that the proxy holds for a group.
    pub const GROUP_NOTES: &str = "sekiwake_group_notes";
    /// Bytes of those.
    pub const GROUP_NOTES_BYTES: &str = "sekiwake_group_notes_bytes";
    /// Notes that had to make room at the proxy.
    pub const EVICTED_NOTES: &str = "sekiwake_control_evicted_notes_total";
    /// Notes of a member that the proxy has not acknowledged yet.
    pub const WAITING_NOTES: &str = "sekiwake_group_waiting_notes";
    /// Notes of a member that found no room to wait, or were too large.
    pub const NO_ROOM_NOTES: &str = "sekiwake_group_no_room_notes_total";
    /// Notes that came to a member.
    pub const RECEIVED_NOTES: &str = "sekiwake_group_received_notes_total";
    /// Shards that a member owns.
    pub const OWNED_SHARDS: &str = "sekiwake_group_owned_shards";
    /// Whether a member has a lease.
    pub const LEASED: &str = "sekiwake_group_leased";
    /// Bytes that a member holds behind holes.
    pub const HELD_BYTES: &str = "sekiwake_group_held_bytes";
    /// Bytes that a member has given out and that are not done with.
    pub const OUTSTANDING_BYTES: &str = "sekiwake_group_outstanding_bytes";
    /// Requests for repair that a member has made.
    pub const REPAIR_REQUESTS: &str = "sekiwake_group_repair_requests_total";
    /// Batches that came again.
    pub const REPAIRED_BATCHES: &str = "sekiwake_group_repaired_batches_total";
    /// Bytes of their bodies.
    pub const REPAIRED_BYTES: &str = "sekiwake_group_repaired_bytes_total";
    /// Batches that a member had no room for behind a hole. They are asked for again.
    pub const NO_ROOM: &str = "sekiwake_group_no_room_batches_total";
    /// Times that the proxy did not take a member into its group.
    pub const REFUSED_JOINS: &str = "sekiwake_group_refused_joins_total";
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
    pub(crate) own_destination: PerKind,
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
            own_destination: per_kind(
                metrics,
                names::UNPUBLISHED_RECORDS,
                unpublished,
                &[("reason", "own_destination")],
            ),
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
    pub(crate) events: IntCounter,
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
            events: metrics.counter(names::RELAY_EVENTS, "Events passed on to subscribers.", &[]),
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

/// Of who publishes events, by what became of them.
pub(crate) struct EventMetrics {
    pub(crate) published: IntCounter,
    pub(crate) no_subscriber: IntCounter,
    pub(crate) no_room: IntCounter,
    pub(crate) refused: IntCounter,
}

impl EventMetrics {
    pub(crate) fn new(metrics: &Metrics) -> EventMetrics {
        let of = |outcome| {
            metrics.counter(names::EVENTS, "Events that were to be published, by outcome.", &[("outcome", outcome)])
        };
        EventMetrics {
            published: of("published"),
            no_subscriber: of("no_subscriber"),
            no_room: of("no_room"),
            refused: of("refused"),
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
        SubscriberMetrics {
            received: per_kind(metrics, names::RECEIVED_RECORDS, "Records received for the first time.", &[]),
            repeated: per_kind(metrics, names::REPEATED_RECORDS, "Records received before and not used again.", &[]),
            lost: per_kind(metrics, names::LOST_RECORDS, LOST, &[("reason", "gap"), ("stream", "")]),
            malformed: metrics.counter(names::MALFORMED_MESSAGES, malformed, &[("reason", "malformed")]),
            forgotten: metrics.counter(names::MALFORMED_MESSAGES, malformed, &[("reason", "too_many_streams")]),
            streams: metrics.gauge(names::STREAMS, "Streams that are followed.", &[]),
            lag_seconds: metrics.float_gauge(names::LAG_SECONDS, "Age of the newest record when it was received.", &[]),
            connected: connected(metrics),
        }
    }
}

pub(crate) struct StreamControlMetrics {
    pub(crate) retained_bytes: [IntGauge; 3],
    pub(crate) retained_seconds: [Gauge; 3],
    pub(crate) repaired_bytes: IntCounter,
    pub(crate) refused: IntCounter,
    pub(crate) connected: IntGauge,
}

impl StreamControlMetrics {
    pub(crate) fn new(metrics: &Metrics) -> StreamControlMetrics {
        let bytes = "Bytes of memory in which batches are kept, to repeat them.";
        let seconds = "How far back what is kept reaches.";
        StreamControlMetrics {
            retained_bytes: Kind::ALL
                .map(|kind| metrics.gauge(names::RETAINED_BYTES, bytes, &[("kind", kind.as_str())])),
            retained_seconds: Kind::ALL
                .map(|kind| metrics.float_gauge(names::RETAINED_SECONDS, seconds, &[("kind", kind.as_str())])),
            repaired_bytes: metrics.counter(names::REPEATED_BYTES, "Bytes of batch bodies that were sent again.", &[]),
            refused: control_refused(metrics, "malformed"),
            connected: control_connected(metrics),
        }
    }
}

pub(crate) struct ControlPlaneMetrics {
    metrics: Metrics,
    pub(crate) malformed: IntCounter,
    refusals: Vec<IntCounter>,
    pub(crate) undeliverable: IntCounter,
    pub(crate) received_bytes: IntCounter,
    pub(crate) sent_bytes: IntCounter,
    live_streams: IntGauge,
    groups: BTreeMap<String, [IntGauge; 5]>,
    note_refusals: Vec<IntCounter>,
    evicted_notes: IntCounter,
}

impl ControlPlaneMetrics {
    pub(crate) fn new(metrics: &Metrics) -> ControlPlaneMetrics {
        let bytes = |direction| {
            metrics.counter(names::CONTROL_BYTES, "Bytes of control messages.", &[("direction", direction)])
        };
        ControlPlaneMetrics {
            metrics: metrics.clone(),
            malformed: control_refused(metrics, "malformed"),
            refusals: Refusals::default()
                .by_reason()
                .iter()
                .map(|(reason, _)| control_refused(metrics, reason))
                .collect(),
            undeliverable: control_unsent(metrics),
            received_bytes: bytes("in"),
            sent_bytes: bytes("out"),
            live_streams: metrics.gauge(names::LIVE_STREAMS, "Streams whose publishers are heard of.", &[]),
            groups: BTreeMap::new(),
            note_refusals: NoteRefusals::default()
                .by_reason()
                .iter()
                .map(|(reason, _)| control_refused(metrics, reason))
                .collect(),
            evicted_notes: metrics.counter(names::EVICTED_NOTES, "Notes that had to make room.", &[]),
        }
    }

    /// Adds what has been refused since `before`, and gives its number.
    pub(crate) fn refuse(&self, before: &Refusals, now: &Refusals) -> u64 {
        count_refusals(&self.refusals, &before.by_reason(), &now.by_reason())
    }

    /// The same of messages about notes.
    pub(crate) fn refuse_notes(&self, before: &NoteRefusals, now: &NoteRefusals) -> u64 {
        count_refusals(&self.note_refusals, &before.by_reason(), &now.by_reason())
    }

    /// Shows the groups. The coordinator holds a bounded number of them; one that is gone shows 0 members.
    pub(crate) fn follow(&mut self, groups: &[GroupView], streams: &[StreamView], notes: &NotesView) {
        self.live_streams.set(streams.iter().filter(|stream| stream.answers).count() as i64);
        for gauges in self.groups.values() {
            gauges.iter().for_each(|gauge| gauge.set(0));
        }
        for group in groups {
            let Some(gauges) = self.of_group(group.name.as_str()) else { continue };
            gauges[0].set(group.members.len() as i64);
            gauges[1].set(group.unowned.len() as i64);
            gauges[2].set(group.positions.iter().map(|position| position.lag).sum::<u64>() as i64);
        }
        for group in &notes.groups {
            let Some(gauges) = self.of_group(group.name.as_str()) else { continue };
            gauges[3].set(group.notes as i64);
            gauges[4].set(group.bytes as i64);
        }
        self.evicted_notes.inc_by(notes.evicted - self.evicted_notes.get());
    }

    fn of_group(&mut self, name: &str) -> Option<&[IntGauge; 5]> {
        if !self.groups.contains_key(name) && self.groups.len() >= MAX_GROUPS_SHOWN {
            return None;
        }
        let metrics = &self.metrics;
        let gauges = self.groups.entry(name.to_owned()).or_insert_with(|| {
            let labels = [("group", name)];
            [
                metrics.gauge(names::GROUP_MEMBERS, "Members of the group.", &labels),
                metrics.gauge(names::GROUP_UNOWNED_SHARDS, "Shards of the group that nobody owns.", &labels),
                metrics.gauge(names::GROUP_LAG_RECORDS, "Records that the group has not committed yet.", &labels),
                metrics.gauge(names::GROUP_NOTES, "Notes that are kept for the group's next owners.", &labels),
                metrics.gauge(names::GROUP_NOTES_BYTES, "Bytes that those take.", &labels),
            ]
        });
        Some(gauges)
    }
}

/// Adds to the counters what has been refused since `before`, and gives the sum.
fn count_refusals(counters: &[IntCounter], before: &[(&str, u64)], now: &[(&str, u64)]) -> u64 {
    let mut total = 0;
    for (counter, ((_, now), (_, before))) in counters.iter().zip(now.iter().zip(before)) {
        counter.inc_by(now - before);
        total += now - before;
    }
    total
}

pub(crate) struct GroupMetrics {
    metrics: Metrics,
    kind: Kind,
    pub(crate) received: IntCounter,
    pub(crate) repeated: IntCounter,
    pub(crate) malformed: IntCounter,
    pub(crate) lag_seconds: Gauge,
    pub(crate) connected: IntGauge,
    pub(crate) unsent: IntCounter,
    pub(crate) repaired_batches: IntCounter,
    pub(crate) repaired_bytes: IntCounter,
    pub(crate) no_room: IntCounter,
    pub(crate) refused_joins: IntCounter,
    requests: IntCounter,
    refused: IntCounter,
    before: MemberCounters,
    owned: IntGauge,
    leased: IntGauge,
    held_bytes: IntGauge,
    outstanding_bytes: IntGauge,
    streams: IntGauge,
    /// By stream name and reason.
    lost: BTreeMap<(String, &'static str), IntCounter>,
}

impl GroupMetrics {
    pub(crate) fn new(metrics: &Metrics, kind: Kind) -> GroupMetrics {
        let of_kind = [("kind", kind.as_str())];
        let malformed = "Messages from the bus that could not be read, or whose stream had to be forgotten.";
        let mut of_group = GroupMetrics {
            metrics: metrics.clone(),
            kind,
            received: metrics.counter(names::RECEIVED_RECORDS, "Records received for the first time.", &of_kind),
            repeated: metrics.counter(names::REPEATED_RECORDS, "Records received before and not used again.", &of_kind),
            malformed: metrics.counter(names::MALFORMED_MESSAGES, malformed, &[("reason", "malformed")]),
            lag_seconds: metrics.float_gauge(names::LAG_SECONDS, "Age of the newest record when it was received.", &[]),
            connected: connected(metrics),
            unsent: control_unsent(metrics),
            repaired_batches: metrics.counter(names::REPAIRED_BATCHES, "Batches that came again.", &[]),
            repaired_bytes: metrics.counter(names::REPAIRED_BYTES, "Bytes of batch bodies that came again.", &[]),
            no_room: metrics.counter(names::NO_ROOM, "Batches without room behind a hole, to be asked for again.", &[]),
            refused_joins: metrics.counter(names::REFUSED_JOINS, "Times the proxy refused this member.", &[]),
            requests: metrics.counter(names::REPAIR_REQUESTS, "Requests for repair.", &[]),
            refused: control_refused(metrics, "malformed"),
            before: MemberCounters::default(),
            owned: metrics.gauge(names::OWNED_SHARDS, "Shards that this member owns.", &[]),
            leased: metrics.gauge(names::LEASED, "Whether this member has a lease.", &[]),
            held_bytes: metrics.gauge(names::HELD_BYTES, "Bytes held behind holes.", &[]),
            outstanding_bytes: metrics.gauge(names::OUTSTANDING_BYTES, "Bytes given out and not done with.", &[]),
            streams: metrics.gauge(names::STREAMS, "Streams that are followed.", &[]),
            lost: BTreeMap::new(),
        };
        for reason in GiveUp::ALL {
            // So that the family is there before anything is lost.
            let _ = of_group.lost("", reason);
        }
        of_group
    }

    /// The count of what is lost of a stream. Names that are too many share one.
    pub(crate) fn lost(&mut self, stream: &str, reason: GiveUp) -> &IntCounter {
        let known = self.lost.contains_key(&(stream.to_owned(), reason.as_str()));
        let stream = if known || self.lost.len() < GiveUp::ALL.len() * MAX_STREAMS { stream } else { "other" };
        let (metrics, kind) = (&self.metrics, self.kind);
        self.lost.entry((stream.to_owned(), reason.as_str())).or_insert_with(|| {
            let labels = [("kind", kind.as_str()), ("reason", reason.as_str()), ("stream", stream)];
            metrics.counter(names::LOST_RECORDS, LOST, &labels)
        })
    }

    pub(crate) fn follow(&mut self, status: &MemberStatus, owned: usize) {
        self.owned.set(owned as i64);
        self.leased.set(i64::from(status.is_leased));
        self.held_bytes.set(status.held_bytes as i64);
        self.outstanding_bytes.set(status.outstanding_bytes as i64);
        self.streams.set(status.streams.len() as i64);
        let counters = status.counters;
        self.requests.inc_by(counters.requests - self.before.requests);
        self.refused.inc_by(counters.refused - self.before.refused);
        self.before = counters;
    }
}

/// What is counted of a member's notes, where it has any.
pub(crate) struct NoteMetrics {
    waiting: IntGauge,
    no_room: IntCounter,
    received: IntCounter,
    refused: IntCounter,
    before: NoteCounters,
}

impl NoteMetrics {
    pub(crate) fn new(metrics: &Metrics) -> NoteMetrics {
        let waiting = "Notes that the proxy has not acknowledged yet.";
        NoteMetrics {
            waiting: metrics.gauge(names::WAITING_NOTES, waiting, &[]),
            no_room: metrics.counter(names::NO_ROOM_NOTES, "Notes that found no room, or were too large.", &[]),
            received: metrics.counter(names::RECEIVED_NOTES, "Notes of the owners before.", &[]),
            refused: control_refused(metrics, "notes"),
            before: NoteCounters::default(),
        }
    }

    pub(crate) fn follow(&mut self, counters: NoteCounters, waiting: usize) {
        self.waiting.set(waiting as i64);
        self.no_room.inc_by(counters.no_room - self.before.no_room);
        self.received.inc_by(counters.received - self.before.received);
        self.refused.inc_by(counters.refused - self.before.refused);
        self.before = counters;
    }
}

fn control_refused(metrics: &Metrics, reason: &str) -> IntCounter {
    metrics.counter(names::CONTROL_REFUSED, "Control messages that were refused.", &[("reason", reason)])
}

fn control_unsent(metrics: &Metrics) -> IntCounter {
    let help = "Control messages that found no room on the way to their receiver.";
    metrics.counter(names::CONTROL_UNSENT, help, &[])
}

fn control_connected(metrics: &Metrics) -> IntGauge {
    metrics.gauge(names::CONTROL_CONNECTED, "Whether the control connection to the proxy stands.", &[])
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
