//! The metrics of the bus, registered once by each part.

pub mod names;

use std::collections::BTreeMap;

use prometheus::{Gauge, IntCounter, IntGauge};
use sekiwake_deduplicate::{Counters, Deduplicator, ViewCounters};
use sekiwake_group::{
    ClientView, GiveUp, GroupView, HandoffCounters, HandoffRejections, HandoffView, LeaseExpired, MemberCounters,
    MemberStatus, RecentRejections, Rejections, StatusRejections, StreamView,
};
use sekiwake_record::Kind;
#[cfg(feature = "jetstream")]
use sekiwake_record::{Name, SHARDS, Shard};
use sekiwake_runtime::Metrics;

/// Maximum number of groups with metrics at the proxy.
const MAX_GROUPS_SHOWN: usize = 64;

// Help of the families that subscribers with and without a group share.
/// The most streams, or names of clients, with a label of their own: anybody can use any name.
const MAX_LABELS: usize = 64;
/// The reason of a gap in one view while another one is live, at members that deduplicate.
pub(crate) const ONE_VIEW: &str = "one_view";
/// The label of all further ones.
const OTHER: &str = "other";
const LOST: &str = "Records lost to this subscriber, by stream and reason.";
const RECEIVED: &str = "Records received for the first time.";
const DUPLICATES: &str = "Duplicate records discarded.";
const RECEIVED_AGE: &str = "Age of the newest record when it was received.";
const STREAMS: &str = "Streams followed.";
const DESTINATIONS_DIFFER: &str =
    "Whether members of the group have had different destinations or settings for a minute.";

/// One counter per kind, by [`Kind::index`].
pub(crate) type PerKind = [IntCounter; 3];

fn per_kind(metrics: &Metrics, name: &str, help: &str, more: &[(&str, &str)]) -> PerKind {
    Kind::ALL.map(|kind| {
        let mut labels = vec![("kind", kind.as_str())];
        labels.extend_from_slice(more);
        metrics.counter(name, help, &labels)
    })
}

/// Of a member that delivers once what several captures have seen.
pub(crate) struct DeduplicateMetrics {
    metrics: Metrics,
    pub(crate) not_compared: IntCounter,
    pub(crate) past_incomplete: IntCounter,
    pub(crate) past_seconds: Gauge,
    entries: IntGauge,
    bytes: IntGauge,
    views: IntGauge,
    apart_seconds: Gauge,
    evicted: IntCounter,
    late: IntCounter,
    apart: IntCounter,
    without_view: IntCounter,
    before: Counters,
    /// By stream name and interface.
    of_views: BTreeMap<(String, u8), ViewMetrics>,
}

struct ViewMetrics {
    duplicates: IntCounter,
    only: IntCounter,
    /// By epoch, so that a restart of the capture continues the counters.
    before: BTreeMap<u64, ViewCounters>,
}

impl DeduplicateMetrics {
    pub(crate) fn new(metrics: &Metrics) -> DeduplicateMetrics {
        let unmatched = |reason| {
            metrics.counter(
                names::DEDUPLICATE_UNMATCHED,
                "Records delivered without a safe comparison, by reason.",
                &[("reason", reason)],
            )
        };
        let mut deduplicate = DeduplicateMetrics {
            metrics: metrics.clone(),
            not_compared: unmatched("no_origin"),
            late: unmatched("late"),
            apart: unmatched("apart"),
            without_view: unmatched("too_many_views"),
            past_incomplete: metrics.counter(
                names::DEDUPLICATE_PAST_INCOMPLETE,
                "Times that the past of new shards could not be read completely.",
                &[],
            ),
            past_seconds: metrics.float_gauge(
                names::DEDUPLICATE_PAST_SECONDS,
                "Time that reading the past of new shards took last.",
                &[],
            ),
            entries: metrics.gauge(names::DEDUPLICATE_ENTRIES, "Delivered datagrams remembered.", &[]),
            bytes: metrics.gauge(names::DEDUPLICATE_BYTES, "Memory for delivered datagrams.", &[]),
            views: metrics.gauge(names::DEDUPLICATE_VIEWS, "Views that are live.", &[]),
            apart_seconds: metrics.float_gauge(
                names::DEDUPLICATE_CLOCK_DIFFERENCE,
                "Difference between the capture times of the last datagram that was captured further apart than the duration.",
                &[],
            ),
            evicted: metrics.counter(
                names::DEDUPLICATE_EVICTED,
                "Delivered datagrams forgotten because the memory was used up.",
                &[],
            ),
            before: Counters::default(),
            of_views: BTreeMap::new(),
        };
        // Registers the families before anything is received.
        let _ = deduplicate.of_view("", 0);
        deduplicate
    }

    fn of_view(&mut self, stream: &str, interface: u8) -> &mut ViewMetrics {
        let is_known = self.of_views.contains_key(&(stream.to_owned(), interface));
        let stream = if is_known || self.of_views.len() < MAX_LABELS { stream } else { OTHER };
        let metrics = &self.metrics;
        self.of_views.entry((stream.to_owned(), interface)).or_insert_with(|| {
            let number = interface.to_string();
            let labels = [("interface", &*number), ("stream", stream)];
            ViewMetrics {
                duplicates: metrics.counter(
                    names::DEDUPLICATE_DUPLICATES,
                    "Records of a view that another view had shown before.",
                    &labels,
                ),
                only: metrics.counter(names::DEDUPLICATE_ONLY, "Datagrams that only this view has shown.", &labels),
                before: BTreeMap::new(),
            }
        })
    }

    pub(crate) fn set(&mut self, state: &Deduplicator) {
        let now = state.counters();
        self.entries.set(state.len() as i64);
        self.bytes.set(state.memory_bytes() as i64);
        self.views.set(state.live_views() as i64);
        self.apart_seconds.set(state.newest_apart().as_secs_f64());
        self.evicted.inc_by(now.evicted - self.before.evicted);
        self.late.inc_by(now.late - self.before.late);
        self.apart.inc_by(now.apart - self.before.apart);
        self.without_view.inc_by(now.without_view - self.before.without_view);
        self.before = now;
        for (stream, interface, counters) in state.views() {
            let view = self.of_view(&stream.name, interface);
            let before = view.before.insert(stream.epoch, counters).unwrap_or_default();
            view.duplicates.inc_by(counters.duplicates.saturating_sub(before.duplicates));
            view.only.inc_by(counters.only.saturating_sub(before.only));
            if view.before.len() > MAX_LABELS {
                view.before.retain(|epoch, _| state.views().any(|(stream, _, _)| stream.epoch == *epoch));
            }
        }
    }
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
    pub(crate) subscribed_topics: [IntGauge; 3],
    pub(crate) connected: IntGauge,
}

impl PublisherMetrics {
    pub(crate) fn new(metrics: &Metrics) -> PublisherMetrics {
        let unpublished = "Records offered but not published, by reason.";
        PublisherMetrics {
            records: per_kind(metrics, names::PUBLISHED_RECORDS, "Records published.", &[]),
            batches: per_kind(metrics, names::PUBLISHED_BATCHES, "Batches published.", &[]),
            bytes: per_kind(metrics, names::PUBLISHED_BYTES, "Bytes of batch bodies published.", &[]),
            no_subscriber: per_kind(metrics, names::UNPUBLISHED_RECORDS, unpublished, &[("reason", "no_subscriber")]),
            bus_full: per_kind(metrics, names::UNPUBLISHED_RECORDS, unpublished, &[("reason", "bus_full")]),
            own_destination: per_kind(
                metrics,
                names::UNPUBLISHED_RECORDS,
                unpublished,
                &[("reason", "own_destination")],
            ),
            waiting_records: metrics.gauge(names::WAITING_RECORDS, "Records waiting for room on the bus.", &[]),
            waiting_bytes: metrics.gauge(names::WAITING_BYTES, "Bytes of batches waiting for room on the bus.", &[]),
            subscribed_topics: Kind::ALL.map(|kind| {
                let help = "Topics with a subscriber.";
                metrics.gauge(names::SUBSCRIBED_TOPICS, help, &[("kind", kind.as_str())])
            }),
            connected: connected(metrics),
        }
    }
}

/// Records that are not published, by reason.
#[derive(Clone)]
pub(crate) struct Unpublished([(&'static str, PerKind); 3]);

impl Unpublished {
    /// A JSON object.
    pub(crate) fn by_reason(&self) -> serde_json::Value {
        let total = |counters: &PerKind| counters.iter().map(IntCounter::get).sum::<u64>();
        self.0
            .iter()
            .map(|(reason, counters)| ((*reason).to_owned(), serde_json::Value::from(total(counters))))
            .collect()
    }
}

impl PublisherMetrics {
    pub(crate) fn unpublished(&self) -> Unpublished {
        Unpublished([
            ("bus_full", self.bus_full.clone()),
            ("no_subscriber", self.no_subscriber.clone()),
            ("own_destination", self.own_destination.clone()),
        ])
    }
}

/// What only a publisher on JetStream has.
#[cfg(feature = "jetstream")]
#[derive(Clone)]
pub(crate) struct JetStreamPublisherMetrics {
    /// Sent and not acknowledged at the end.
    pub(crate) unacknowledged: PerKind,
    pub(crate) unacknowledged_seconds: Gauge,
    pub(crate) acknowledgement_seconds: prometheus::Histogram,
    pub(crate) reconnects: IntCounter,
    pub(crate) without_leader_seconds: prometheus::Counter,
    pub(crate) retained_seconds: [Gauge; 3],
}

#[cfg(feature = "jetstream")]
impl JetStreamPublisherMetrics {
    pub(crate) fn new(metrics: &Metrics) -> JetStreamPublisherMetrics {
        let unpublished = "Records offered but not published, by reason.";
        JetStreamPublisherMetrics {
            unacknowledged: per_kind(metrics, names::UNPUBLISHED_RECORDS, unpublished, &[("reason", "unacknowledged")]),
            unacknowledged_seconds: metrics.float_gauge(
                names::UNACKNOWLEDGED_SECONDS,
                "Age of the oldest message sent to a NATS server and not acknowledged.",
                &[],
            ),
            acknowledgement_seconds: metrics.histogram(
                names::ACKNOWLEDGEMENT_SECONDS,
                "Time from the first transmission of a message to its acknowledgement by a NATS server.",
                &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
                &[],
            ),
            reconnects: metrics.counter(names::RECONNECTS, "Connections to a NATS server after the first.", &[]),
            without_leader_seconds: metrics.float_counter(
                names::WITHOUT_LEADER_SECONDS,
                "Time in which messages were sent to a NATS server and none was acknowledged.",
                &[],
            ),
            retained_seconds: Kind::ALL.map(|kind| {
                let help = "Time between the oldest and the newest message that the NATS servers retain.";
                metrics.float_gauge(names::STREAM_SECONDS, help, &[("kind", kind.as_str())])
            }),
        }
    }
}

/// What only a member on JetStream has.
#[cfg(feature = "jetstream")]
pub(crate) struct JetStreamGroupMetrics {
    pub(crate) lease_age_seconds: Gauge,
    /// The proxy's, where there is one.
    pub(crate) destinations_differ: IntGauge,
    lag_records: prometheus::IntGaugeVec,
    group: String,
    kind: Kind,
    /// By shard; `None` for those of other members.
    shards: [Option<IntGauge>; SHARDS],
}

#[cfg(feature = "jetstream")]
impl JetStreamGroupMetrics {
    pub(crate) fn new(metrics: &Metrics, group: &Name, kind: Kind) -> JetStreamGroupMetrics {
        JetStreamGroupMetrics {
            lease_age_seconds: metrics.float_gauge(
                names::LEASE_AGE_SECONDS,
                "Age of the newest renewal of the lease acknowledged by a NATS server. The lease ends at 3 s.",
                &[],
            ),
            destinations_differ: metrics.gauge(
                names::GROUP_DESTINATIONS_DIFFER,
                DESTINATIONS_DIFFER,
                &[("group", group.as_str())],
            ),
            lag_records: metrics.gauge_vec(
                names::SHARD_LAG_RECORDS,
                "Records of an owned shard announced and not yet committed.",
                &["group", "kind", "shard"],
            ),
            group: group.to_string(),
            kind,
            shards: [const { None }; SHARDS],
        }
    }

    /// Sets the lag of a shard, or forgets it if another member owns the shard.
    pub(crate) fn set_lag(&mut self, shard: Shard, records: Option<u64>) {
        let known = &mut self.shards[shard.index()];
        let name = || format!("{:02x}", shard.index());
        match records {
            Some(records) => {
                let (family, group, kind) = (&self.lag_records, &self.group, self.kind);
                let child = || family.with_label_values(&[group.as_str(), kind.as_str(), &name()]);
                known.get_or_insert_with(child).set(i64::try_from(records).unwrap_or(i64::MAX));
            }
            None if known.take().is_some() => {
                // It was there.
                let _ = self.lag_records.remove_label_values(&[self.group.as_str(), self.kind.as_str(), &name()]);
            }
            None => {}
        }
    }
}

pub(crate) struct RelayMetrics {
    pub(crate) received: PerKind,
    pub(crate) sent: PerKind,
    pub(crate) events: IntCounter,
    pub(crate) malformed: IntCounter,
    pub(crate) unknown_topic: IntCounter,
    pub(crate) no_room: IntCounter,
    pub(crate) rejected_subscriptions: IntCounter,
    pub(crate) queue_full: IntCounter,
    pub(crate) subscriptions: IntGauge,
}

impl RelayMetrics {
    pub(crate) fn new(metrics: &Metrics) -> RelayMetrics {
        let rejected = "Messages from publishers rejected by the relay, by reason.";
        RelayMetrics {
            received: per_kind(metrics, names::RELAY_RECEIVED_RECORDS, "Records received from publishers.", &[]),
            sent: per_kind(metrics, names::RELAY_SENT_RECORDS, "Records sent to subscribers.", &[]),
            events: metrics.counter(names::RELAY_EVENTS, "Events sent to subscribers.", &[]),
            malformed: metrics.counter(names::RELAY_REJECTED_MESSAGES, rejected, &[("reason", "malformed")]),
            unknown_topic: metrics.counter(names::RELAY_REJECTED_MESSAGES, rejected, &[("reason", "unknown_topic")]),
            no_room: metrics.counter(names::RELAY_REJECTED_MESSAGES, rejected, &[("reason", "no_room")]),
            rejected_subscriptions: metrics.counter(
                names::RELAY_REJECTED_SUBSCRIPTIONS,
                "Messages from subscribers rejected because they are not subscriptions to a topic of the bus.",
                &[],
            ),
            queue_full: metrics.counter(names::RELAY_QUEUE_FULL, "Times a subscriber's queue was full.", &[]),
            subscriptions: metrics.gauge(names::RELAY_SUBSCRIPTIONS, "Distinct subscriptions.", &[]),
        }
    }
}

/// Events offered to a publisher, by outcome.
pub(crate) struct EventMetrics {
    pub(crate) published: IntCounter,
    pub(crate) no_subscriber: IntCounter,
    pub(crate) no_room: IntCounter,
    pub(crate) rejected: IntCounter,
}

impl EventMetrics {
    pub(crate) fn new(metrics: &Metrics) -> EventMetrics {
        let events = |outcome| metrics.counter(names::EVENTS, "Events offered, by outcome.", &[("outcome", outcome)]);
        EventMetrics {
            published: events("published"),
            no_subscriber: events("no_subscriber"),
            no_room: events("no_room"),
            rejected: events("rejected"),
        }
    }
}

pub(crate) struct SubscriberMetrics {
    pub(crate) received: PerKind,
    pub(crate) duplicates: PerKind,
    pub(crate) lost: PerKind,
    pub(crate) malformed: IntCounter,
    pub(crate) forgotten: IntCounter,
    pub(crate) streams: IntGauge,
    pub(crate) received_age_seconds: Gauge,
    pub(crate) connected: IntGauge,
}

impl SubscriberMetrics {
    pub(crate) fn new(metrics: &Metrics) -> SubscriberMetrics {
        SubscriberMetrics {
            received: per_kind(metrics, names::RECEIVED_RECORDS, RECEIVED, &[]),
            duplicates: per_kind(metrics, names::DUPLICATE_RECORDS, DUPLICATES, &[]),
            lost: per_kind(metrics, names::LOST_RECORDS, LOST, &[("reason", "gap"), ("stream", "")]),
            malformed: malformed_messages(metrics, "malformed"),
            forgotten: malformed_messages(metrics, "too_many_streams"),
            streams: metrics.gauge(names::STREAMS, STREAMS, &[]),
            received_age_seconds: metrics.float_gauge(names::RECEIVED_AGE_SECONDS, RECEIVED_AGE, &[]),
            connected: connected(metrics),
        }
    }
}

pub(crate) struct StreamControlMetrics {
    pub(crate) retained_bytes: [IntGauge; 3],
    pub(crate) retained_seconds: [Gauge; 3],
    pub(crate) retransmitted_bytes: IntCounter,
    pub(crate) rejected: IntCounter,
    pub(crate) connected: IntGauge,
}

impl StreamControlMetrics {
    pub(crate) fn new(metrics: &Metrics) -> StreamControlMetrics {
        let bytes = "Bytes retained for retransmission.";
        let seconds = "Age of the oldest retained batch.";
        StreamControlMetrics {
            retained_bytes: Kind::ALL
                .map(|kind| metrics.gauge(names::RETAINED_BYTES, bytes, &[("kind", kind.as_str())])),
            retained_seconds: Kind::ALL
                .map(|kind| metrics.float_gauge(names::RETAINED_SECONDS, seconds, &[("kind", kind.as_str())])),
            retransmitted_bytes: metrics.counter(
                names::RETRANSMITTED_BYTES,
                "Bytes of batch bodies retransmitted.",
                &[],
            ),
            rejected: control_rejected(metrics, "malformed"),
            connected: control_connected(metrics),
        }
    }
}

pub(crate) struct ControlPlaneMetrics {
    metrics: Metrics,
    pub(crate) malformed: IntCounter,
    rejections: Vec<IntCounter>,
    pub(crate) dropped: IntCounter,
    pub(crate) received_bytes: IntCounter,
    pub(crate) sent_bytes: IntCounter,
    live_streams: IntGauge,
    groups: BTreeMap<String, GroupGauges>,
    handoff_rejections: Vec<IntCounter>,
    status_rejections: Vec<IntCounter>,
    recent_rejections: Vec<IntCounter>,
    evicted_handoff: IntCounter,
    clients: BTreeMap<String, ClientMetrics>,
    /// By incarnation of a client: the datagrams that are counted already.
    left_alone: BTreeMap<u64, u64>,
}

/// The metrics of the clients of one name.
struct ClientMetrics {
    destinations: IntGauge,
    left_alone: IntCounter,
}

impl ControlPlaneMetrics {
    pub(crate) fn new(metrics: &Metrics) -> ControlPlaneMetrics {
        let bytes = |direction| {
            metrics.counter(names::CONTROL_BYTES, "Bytes of control messages.", &[("direction", direction)])
        };
        let mut plane = ControlPlaneMetrics {
            metrics: metrics.clone(),
            malformed: control_rejected(metrics, "malformed"),
            rejections: Rejections::default()
                .by_reason()
                .iter()
                .map(|(reason, _)| control_rejected(metrics, reason))
                .collect(),
            dropped: control_dropped(metrics),
            received_bytes: bytes("in"),
            sent_bytes: bytes("out"),
            live_streams: metrics.gauge(names::LIVE_STREAMS, "Streams with a live publisher.", &[]),
            groups: BTreeMap::new(),
            handoff_rejections: HandoffRejections::default()
                .by_reason()
                .iter()
                .map(|(reason, _)| control_rejected(metrics, reason))
                .collect(),
            status_rejections: StatusRejections::default()
                .by_reason()
                .iter()
                .map(|(reason, _)| control_rejected(metrics, reason))
                .collect(),
            recent_rejections: RecentRejections::default()
                .by_reason()
                .iter()
                .map(|(reason, _)| control_rejected(metrics, reason))
                .collect(),
            evicted_handoff: metrics.counter(names::EVICTED_HANDOFF_ENTRIES, "Hand-off entries evicted.", &[]),
            clients: BTreeMap::new(),
            left_alone: BTreeMap::new(),
        };
        // The families exist before there is a client.
        plane.client_metrics(OTHER);
        plane
    }

    /// Adds the messages rejected since `before`, and returns their number.
    pub(crate) fn count_rejected(&self, before: &Rejections, now: &Rejections) -> u64 {
        count_rejections(&self.rejections, &before.by_reason(), &now.by_reason())
    }

    /// The same for messages about hand-off state.
    pub(crate) fn count_rejected_handoff(&self, before: &HandoffRejections, now: &HandoffRejections) -> u64 {
        count_rejections(&self.handoff_rejections, &before.by_reason(), &now.by_reason())
    }

    /// The same for messages about status.
    pub(crate) fn count_rejected_status(&self, before: &StatusRejections, now: &StatusRejections) -> u64 {
        count_rejections(&self.status_rejections, &before.by_reason(), &now.by_reason())
    }

    /// The same for messages about recent records.
    pub(crate) fn count_rejected_recent(&self, before: &RecentRejections, now: &RecentRejections) -> u64 {
        count_rejections(&self.recent_rejections, &before.by_reason(), &now.by_reason())
    }

    /// Sets the gauges. A group that no longer exists shows 0 members.
    pub(crate) fn set(&mut self, groups: &[GroupView], streams: &[StreamView], handoff: &HandoffView) {
        self.live_streams.set(streams.iter().filter(|stream| stream.is_responsive).count() as i64);
        for gauges in self.groups.values() {
            gauges.reset();
        }
        for group in groups {
            let Some(gauges) = self.group_gauges(group.name.as_str()) else { continue };
            gauges.members.set(group.members.len() as i64);
            gauges.unowned_shards.set(group.unowned.len() as i64);
            gauges.lag_records.set(group.positions.iter().map(|position| position.lag).sum::<u64>() as i64);
            let differ = group.difference.as_ref().is_some_and(|difference| difference.is_reported);
            gauges.destinations_differ.set(i64::from(differ));
        }
        for group in &handoff.groups {
            let Some(gauges) = self.group_gauges(group.name.as_str()) else { continue };
            gauges.handoff_entries.set(group.entries as i64);
            gauges.handoff_bytes.set(group.bytes as i64);
        }
        self.evicted_handoff.inc_by(handoff.evicted - self.evicted_handoff.get());
    }

    /// Sets the metrics of clients that have registered destinations. A client that is gone shows 0
    /// destinations.
    pub(crate) fn set_clients(&mut self, clients: &[ClientView]) {
        self.left_alone.retain(|incarnation, _| clients.iter().any(|client| client.incarnation == *incarnation));
        self.clients.values().for_each(|of_name| of_name.destinations.set(0));
        for client in clients {
            let before = self.left_alone.insert(client.incarnation, client.left_alone).unwrap_or(0);
            let of_name = self.client_metrics(client.name.as_str());
            of_name.destinations.add(client.destinations.len() as i64);
            of_name.left_alone.inc_by(client.left_alone.saturating_sub(before));
        }
    }

    fn client_metrics(&mut self, name: &str) -> &ClientMetrics {
        let has_label = self.clients.contains_key(name) || self.clients.len() < MAX_LABELS;
        let name = if has_label { name } else { OTHER };
        let metrics = &self.metrics;
        self.clients.entry(name.to_owned()).or_insert_with(|| {
            let labels = [("client", name)];
            ClientMetrics {
                destinations: metrics.gauge(
                    names::CLIENT_DESTINATIONS,
                    "Destinations registered by a client without a group.",
                    &labels,
                ),
                left_alone: metrics.counter(
                    names::LEFT_ALONE_DATAGRAMS,
                    "Datagrams to destinations of a client without a group that captures have not published.",
                    &labels,
                ),
            }
        })
    }

    /// Counts an expired lease.
    pub(crate) fn lease_expired(&mut self, expired: &LeaseExpired) {
        if let Some(of_group) = self.group_gauges(expired.group.as_str()) {
            of_group.expired_leases.inc();
            of_group.possible_duplicates.inc_by(expired.unacknowledged);
        }
    }

    fn group_gauges(&mut self, name: &str) -> Option<&GroupGauges> {
        if !self.groups.contains_key(name) && self.groups.len() >= MAX_GROUPS_SHOWN {
            return None;
        }
        let metrics = &self.metrics;
        let gauges = self.groups.entry(name.to_owned()).or_insert_with(|| {
            let labels = [("group", name)];
            let gauge = |name: &str, help: &str| metrics.gauge(name, help, &labels);
            let counter = |name: &str, help: &str| metrics.counter(name, help, &labels);
            GroupGauges {
                members: gauge(names::GROUP_MEMBERS, "Members of the group."),
                unowned_shards: gauge(names::GROUP_UNOWNED_SHARDS, "Shards of the group without an owner."),
                lag_records: gauge(names::GROUP_LAG_RECORDS, "Records not yet committed by the group."),
                handoff_entries: gauge(names::GROUP_HANDOFF_ENTRIES, "Hand-off entries kept for the group."),
                handoff_bytes: gauge(names::GROUP_HANDOFF_BYTES, "Bytes of hand-off state."),
                destinations_differ: gauge(names::GROUP_DESTINATIONS_DIFFER, DESTINATIONS_DIFFER),
                expired_leases: counter(names::GROUP_EXPIRED_LEASES, "Leases of members expired."),
                possible_duplicates: counter(
                    names::GROUP_POSSIBLE_DUPLICATES,
                    "Upper bound of records sent twice: not acknowledged when the lease of their owner expired.",
                ),
            }
        });
        Some(gauges)
    }
}

/// The metrics of one group at the proxy.
struct GroupGauges {
    members: IntGauge,
    unowned_shards: IntGauge,
    lag_records: IntGauge,
    handoff_entries: IntGauge,
    handoff_bytes: IntGauge,
    destinations_differ: IntGauge,
    expired_leases: IntCounter,
    possible_duplicates: IntCounter,
}

impl GroupGauges {
    /// Sets the gauges to 0.
    fn reset(&self) {
        let GroupGauges {
            members,
            unowned_shards,
            lag_records,
            handoff_entries,
            handoff_bytes,
            destinations_differ,
            ..
        } = self;
        for gauge in [members, unowned_shards, lag_records, handoff_entries, handoff_bytes, destinations_differ] {
            gauge.set(0);
        }
    }
}

/// Adds the rejections since `before` to the counters, and returns their sum.
fn count_rejections(counters: &[IntCounter], before: &[(&str, u64)], now: &[(&str, u64)]) -> u64 {
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
    pub(crate) duplicates: IntCounter,
    pub(crate) malformed: IntCounter,
    pub(crate) received_age_seconds: Gauge,
    pub(crate) connected: IntGauge,
    pub(crate) dropped: IntCounter,
    pub(crate) repaired_batches: IntCounter,
    pub(crate) repaired_bytes: IntCounter,
    pub(crate) no_room: IntCounter,
    pub(crate) rejected_joins: IntCounter,
    requests: IntCounter,
    rejected: IntCounter,
    late: IntCounter,
    skipped: IntCounter,
    refused_streams: IntCounter,
    before: MemberCounters,
    owned: IntGauge,
    leased: IntGauge,
    reorder_bytes: IntGauge,
    unacknowledged_bytes: IntGauge,
    doubted: IntGauge,
    streams: IntGauge,
    /// By stream name and reason.
    lost: BTreeMap<(String, &'static str), IntCounter>,
}

impl GroupMetrics {
    pub(crate) fn new(metrics: &Metrics, kind: Kind) -> GroupMetrics {
        let labels = [("kind", kind.as_str())];
        let mut group_metrics = GroupMetrics {
            metrics: metrics.clone(),
            kind,
            received: metrics.counter(names::RECEIVED_RECORDS, RECEIVED, &labels),
            duplicates: metrics.counter(names::DUPLICATE_RECORDS, DUPLICATES, &labels),
            malformed: malformed_messages(metrics, "malformed"),
            received_age_seconds: metrics.float_gauge(names::RECEIVED_AGE_SECONDS, RECEIVED_AGE, &[]),
            connected: connected(metrics),
            dropped: control_dropped(metrics),
            repaired_batches: metrics.counter(names::REPAIRED_BATCHES, "Retransmitted batches received.", &[]),
            repaired_bytes: metrics.counter(
                names::REPAIRED_BYTES,
                "Bytes of retransmitted batch bodies received.",
                &[],
            ),
            no_room: metrics.counter(
                names::REORDER_DROPPED,
                "Batches dropped because the reorder buffer was full, requested again later.",
                &[],
            ),
            rejected_joins: metrics.counter(names::REJECTED_JOINS, "Joins rejected by the proxy.", &[]),
            requests: metrics.counter(names::REPAIR_REQUESTS, "Repair requests sent.", &[]),
            rejected: control_rejected(metrics, "malformed"),
            late: metrics.counter(
                names::LATE_RECORDS,
                "Records delivered late, after later ones of their topic.",
                &labels,
            ),
            skipped: metrics.counter(
                names::SKIPPED_RECORDS,
                "Records skipped because another party presented them as handled.",
                &labels,
            ),
            refused_streams: metrics.counter(
                names::REFUSED_STREAMS,
                "Batches and announcements ignored because too many streams are followed.",
                &[],
            ),
            before: MemberCounters::default(),
            owned: metrics.gauge(names::OWNED_SHARDS, "Shards owned by this member.", &[]),
            leased: metrics.gauge(names::LEASED, "Whether this member has a lease.", &[]),
            reorder_bytes: metrics.gauge(names::REORDER_BYTES, "Bytes waiting for gaps to be repaired.", &[]),
            unacknowledged_bytes: metrics.gauge(
                names::UNACKNOWLEDGED_BYTES,
                "Bytes delivered and not yet acknowledged.",
                &[],
            ),
            doubted: metrics.gauge(
                names::DOUBTED_RECORDS,
                "Records no longer retained that a former owner of their shard may have handled, not yet counted as lost.",
                &[],
            ),
            streams: metrics.gauge(names::STREAMS, STREAMS, &[]),
            lost: BTreeMap::new(),
        };
        for reason in GiveUp::ALL {
            // Registers the family before anything is lost.
            let _ = group_metrics.lost("", reason.as_str());
        }
        let _ = group_metrics.lost("", ONE_VIEW);
        group_metrics
    }

    /// The counter of a stream's lost records. Beyond the limit of streams they share one.
    pub(crate) fn lost(&mut self, stream: &str, reason: &'static str) -> &IntCounter {
        let known = self.lost.contains_key(&(stream.to_owned(), reason));
        let stream = if known || self.lost.len() < (GiveUp::ALL.len() + 1) * MAX_LABELS { stream } else { OTHER };
        let metrics = &self.metrics;
        let kind = self.kind;
        self.lost.entry((stream.to_owned(), reason)).or_insert_with(|| {
            let labels = [("kind", kind.as_str()), ("reason", reason), ("stream", stream)];
            metrics.counter(names::LOST_RECORDS, LOST, &labels)
        })
    }

    pub(crate) fn set(&mut self, status: &MemberStatus, owned: usize) {
        self.owned.set(owned as i64);
        self.leased.set(i64::from(status.is_leased));
        self.reorder_bytes.set(status.reorder_bytes as i64);
        self.unacknowledged_bytes.set(status.outstanding_bytes as i64);
        self.doubted.set(status.in_doubt as i64);
        self.streams.set(status.streams.len() as i64);
        let counters = status.counters;
        self.requests.inc_by(counters.requests - self.before.requests);
        self.rejected.inc_by(counters.rejected - self.before.rejected);
        self.late.inc_by(counters.late - self.before.late);
        self.skipped.inc_by(counters.skipped - self.before.skipped);
        self.refused_streams.inc_by(counters.refused_streams - self.before.refused_streams);
        self.before = counters;
    }
}

/// Metrics of a member's hand-off state, if it has any.
pub(crate) struct HandoffMetrics {
    pending: IntGauge,
    no_room: IntCounter,
    received: IntCounter,
    rejected: IntCounter,
    before: HandoffCounters,
}

impl HandoffMetrics {
    pub(crate) fn new(metrics: &Metrics) -> HandoffMetrics {
        let pending = "Hand-off entries not yet acknowledged by the proxy.";
        HandoffMetrics {
            pending: metrics.gauge(names::PENDING_HANDOFF_ENTRIES, pending, &[]),
            no_room: metrics.counter(
                names::REJECTED_HANDOFF_ENTRIES,
                "Hand-off entries rejected as too large or for lack of room.",
                &[],
            ),
            received: metrics.counter(
                names::RECEIVED_HANDOFF_ENTRIES,
                "Hand-off entries received from previous owners.",
                &[],
            ),
            rejected: control_rejected(metrics, "handoff_entries"),
            before: HandoffCounters::default(),
        }
    }

    pub(crate) fn set(&mut self, counters: HandoffCounters, pending: usize) {
        self.pending.set(pending as i64);
        self.no_room.inc_by(counters.no_room - self.before.no_room);
        self.received.inc_by(counters.received - self.before.received);
        self.rejected.inc_by(counters.rejected - self.before.rejected);
        self.before = counters;
    }
}

/// Counts unusable messages from the bus.
pub(crate) fn malformed_messages(metrics: &Metrics, reason: &str) -> IntCounter {
    let help = "Messages that could not be read, and streams forgotten because there were too many, by reason.";
    metrics.counter(names::MALFORMED_MESSAGES, help, &[("reason", reason)])
}

fn control_rejected(metrics: &Metrics, reason: &str) -> IntCounter {
    metrics.counter(names::CONTROL_REJECTED, "Control messages rejected, by reason.", &[("reason", reason)])
}

fn control_dropped(metrics: &Metrics) -> IntCounter {
    let help = "Control messages dropped because the receiver's queue was full.";
    metrics.counter(names::CONTROL_DROPPED, help, &[])
}

fn control_connected(metrics: &Metrics) -> IntGauge {
    metrics.gauge(names::CONTROL_CONNECTED, "Whether the control connection to the proxy is established.", &[])
}

/// Why a connection was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// The peer's key is not in the list of allowed keys.
    Key,
    /// The peer uses no encryption, or another mechanism.
    Mechanism,
    /// The peer's handshake does not decrypt: it has another public key of the proxy.
    ServerKey,
    /// The peer closed the connection, was silent, or sent no valid handshake. A peer without
    /// encryption may close it before its mechanism is known.
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
    pub(crate) allowed_keys_in_use: IntGauge,
    pub(crate) allowed_keys_errors: IntCounter,
}

impl GatekeeperMetrics {
    pub(crate) fn new(metrics: &Metrics) -> GatekeeperMetrics {
        let denied = "Connections rejected by the proxy, by reason.";
        let errors = "Times a changed list of allowed keys could not be read, and the old list stayed in use.";
        GatekeeperMetrics {
            denied: Denial::ALL
                .map(|denial| metrics.counter(names::DENIED_CONNECTIONS, denied, &[("reason", denial.name())])),
            allowed_keys: metrics.gauge(names::ALLOWED_KEYS, "Keys allowed to connect to the proxy.", &[]),
            allowed_keys_in_use: metrics.gauge(
                names::ALLOWED_KEYS_FILE_IN_USE,
                "Whether the contents of the list of allowed keys are in use.",
                &[],
            ),
            allowed_keys_errors: metrics.counter(names::ALLOWED_KEYS_ERRORS, errors, &[]),
        }
    }

    pub(crate) fn denied(&self, denial: Denial) -> &IntCounter {
        &self.denied[denial as usize]
    }
}

/// Connections cut by the proxy at one of its ports.
pub(crate) fn cut_connections(metrics: &Metrics, port: &str) -> IntCounter {
    let help = "Connections cut by the proxy because they sent more than it keeps, by port.";
    metrics.counter(names::CUT_CONNECTIONS, help, &[("port", port)])
}

fn connected(metrics: &Metrics) -> IntGauge {
    metrics.gauge(names::CONNECTED, "Whether the connection to the proxy, or to a NATS server, is established.", &[])
}
