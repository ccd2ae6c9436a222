//! Metric names.

/// Records published.
pub const PUBLISHED_RECORDS: &str = "sekiwake_bus_published_records_total";
/// Batches published.
pub const PUBLISHED_BATCHES: &str = "sekiwake_bus_published_batches_total";
/// Bytes of published batch bodies.
pub const PUBLISHED_BYTES: &str = "sekiwake_bus_published_bytes_total";
/// Records offered to a publisher but not published, by reason.
pub const UNPUBLISHED_RECORDS: &str = "sekiwake_bus_unpublished_records_total";
/// Records waiting at a publisher for room on the bus.
pub const WAITING_RECORDS: &str = "sekiwake_bus_waiting_records";
/// Bytes of waiting batches.
pub const WAITING_BYTES: &str = "sekiwake_bus_waiting_bytes";
/// Topics with a subscriber, as known to a publisher, which sends no others.
pub const SUBSCRIBED_TOPICS: &str = "sekiwake_bus_subscribed_topics";
/// Records received by the relay.
pub const RELAY_RECEIVED_RECORDS: &str = "sekiwake_relay_received_records_total";
/// Records sent by the relay to subscribers.
pub const RELAY_SENT_RECORDS: &str = "sekiwake_relay_sent_records_total";
/// Events sent by the relay to subscribers.
pub const RELAY_EVENTS: &str = "sekiwake_relay_events_total";
/// Events offered, by outcome: `published`, `no_subscriber`, `no_room`, `rejected` (not a JSON
/// object, or too large).
pub const EVENTS: &str = "sekiwake_bus_events_total";
/// Messages rejected by the relay, by reason.
pub const RELAY_REJECTED_MESSAGES: &str = "sekiwake_relay_rejected_messages_total";
/// Subscriptions rejected by the relay.
pub const RELAY_REJECTED_SUBSCRIPTIONS: &str = "sekiwake_relay_rejected_subscriptions_total";
/// Times that a subscriber's queue was full. The subscriber counts missed records itself, by
/// sequence numbers.
pub const RELAY_QUEUE_FULL: &str = "sekiwake_relay_subscriber_queue_full_total";
/// Distinct subscriptions at the relay.
pub const RELAY_SUBSCRIPTIONS: &str = "sekiwake_relay_subscriptions";
/// Records received for the first time by a subscriber.
pub const RECEIVED_RECORDS: &str = "sekiwake_bus_received_records_total";
/// Duplicate records discarded by a subscriber.
pub const DUPLICATE_RECORDS: &str = "sekiwake_bus_duplicate_records_total";
/// Records lost: gaps in the sequence of a stream and topic.
pub const LOST_RECORDS: &str = "sekiwake_bus_lost_records_total";
/// Messages that a subscriber could not use, by reason.
pub const MALFORMED_MESSAGES: &str = "sekiwake_bus_malformed_messages_total";
/// Streams followed by a subscriber.
pub const STREAMS: &str = "sekiwake_bus_streams";
/// Age of the newest record when it was received, from its capture time.
pub const RECEIVED_AGE_SECONDS: &str = "sekiwake_bus_received_age_seconds";
/// Bytes retained by a publisher for retransmission.
pub const RETAINED_BYTES: &str = "sekiwake_bus_retained_bytes";
/// Age of the oldest retained batch.
pub const RETAINED_SECONDS: &str = "sekiwake_bus_retained_seconds";
/// Bytes of batch bodies retransmitted by a publisher.
pub const RETRANSMITTED_BYTES: &str = "sekiwake_bus_retransmitted_bytes_total";
/// Control messages rejected, by reason.
pub const CONTROL_REJECTED: &str = "sekiwake_control_rejected_messages_total";
/// Control messages dropped because their receiver's queue was full.
pub const CONTROL_DROPPED: &str = "sekiwake_control_dropped_messages_total";
/// Whether the control connection to the proxy is established.
pub const CONTROL_CONNECTED: &str = "sekiwake_control_connected";
/// Bytes of control messages at the proxy, by direction.
pub const CONTROL_BYTES: &str = "sekiwake_control_bytes_total";
/// Members of each group.
pub const GROUP_MEMBERS: &str = "sekiwake_group_members";
/// Shards of a group without an owner.
pub const GROUP_UNOWNED_SHARDS: &str = "sekiwake_group_unowned_shards";
/// Records not yet committed by a group.
pub const GROUP_LAG_RECORDS: &str = "sekiwake_group_lag_records";
/// Whether members of a group have had different destinations for a minute.
pub const GROUP_DESTINATIONS_DIFFER: &str = "sekiwake_group_destinations_differ";
/// Leases of members that expired: the members were killed, stalled, or could not reach the proxy.
pub const GROUP_EXPIRED_LEASES: &str = "sekiwake_group_expired_leases_total";
/// Records published and not acknowledged when the lease of their owner expired. The owner may have
/// sent some of them, and the next owners send all of them, so this is an upper bound of the
/// duplicates.
pub const GROUP_POSSIBLE_DUPLICATES: &str = "sekiwake_group_possible_duplicate_records_total";
/// Streams with a live publisher.
pub const LIVE_STREAMS: &str = "sekiwake_control_live_streams";
/// Destinations that a client without a group has registered.
pub const CLIENT_DESTINATIONS: &str = "sekiwake_control_client_destinations";
/// Datagrams to them that captures have left alone.
pub const LEFT_ALONE_DATAGRAMS: &str = "sekiwake_control_left_alone_datagrams_total";
/// Hand-off entries that the proxy keeps for a group.
pub const GROUP_HANDOFF_ENTRIES: &str = "sekiwake_group_handoff_entries";
/// Bytes of those entries.
pub const GROUP_HANDOFF_BYTES: &str = "sekiwake_group_handoff_bytes";
/// Hand-off entries evicted at the proxy.
pub const EVICTED_HANDOFF_ENTRIES: &str = "sekiwake_control_evicted_handoff_entries_total";
/// Hand-off entries of a member that the proxy has not acknowledged.
pub const PENDING_HANDOFF_ENTRIES: &str = "sekiwake_group_pending_handoff_entries";
/// Hand-off entries of a member rejected as too large or for lack of room.
pub const REJECTED_HANDOFF_ENTRIES: &str = "sekiwake_group_rejected_handoff_entries_total";
/// Hand-off entries received by a member.
pub const RECEIVED_HANDOFF_ENTRIES: &str = "sekiwake_group_received_handoff_entries_total";
/// Shards owned by a member.
pub const OWNED_SHARDS: &str = "sekiwake_group_owned_shards";
/// Whether a member has a lease.
pub const LEASED: &str = "sekiwake_group_leased";
/// Bytes in a member's reorder buffer, waiting for gaps to be repaired.
pub const REORDER_BYTES: &str = "sekiwake_group_reorder_bytes";
/// Bytes delivered by a member and not yet acknowledged.
pub const UNACKNOWLEDGED_BYTES: &str = "sekiwake_group_unacknowledged_bytes";
/// Repair requests sent by a member.
pub const REPAIR_REQUESTS: &str = "sekiwake_group_repair_requests_total";
/// Retransmitted batches received.
pub const REPAIRED_BATCHES: &str = "sekiwake_group_repaired_batches_total";
/// Bytes of their bodies.
pub const REPAIRED_BYTES: &str = "sekiwake_group_repaired_bytes_total";
/// Batches dropped because a member's reorder buffer was full. They are requested again.
pub const REORDER_DROPPED: &str = "sekiwake_group_reorder_dropped_batches_total";
/// Records delivered after later ones of their topic.
pub const LATE_RECORDS: &str = "sekiwake_group_late_records_total";
/// Records not delivered because another party says that they were handled.
pub const SKIPPED_RECORDS: &str = "sekiwake_group_skipped_records_total";
/// Records in doubt.
pub const DOUBTED_RECORDS: &str = "sekiwake_group_doubted_records";
/// Batches and announcements of streams that a member has no room for.
pub const REFUSED_STREAMS: &str = "sekiwake_group_refused_streams_total";
/// Joins of a member rejected by the proxy.
pub const REJECTED_JOINS: &str = "sekiwake_group_rejected_joins_total";
/// Delivered datagrams that a member remembers, to recognise their copies.
pub const DEDUPLICATE_ENTRIES: &str = "sekiwake_deduplicate_entries";
/// Memory for them, bytes.
pub const DEDUPLICATE_BYTES: &str = "sekiwake_deduplicate_memory_bytes";
/// Views (interfaces of captures) that are live.
pub const DEDUPLICATE_VIEWS: &str = "sekiwake_deduplicate_views";
/// Records of a view that another view had shown before, by stream and interface.
pub const DEDUPLICATE_DUPLICATES: &str = "sekiwake_deduplicate_duplicate_records_total";
/// Datagrams that only one view has shown, by that view's stream and interface.
pub const DEDUPLICATE_ONLY: &str = "sekiwake_deduplicate_only_view_records_total";
/// Delivered datagrams forgotten because the memory was used up.
pub const DEDUPLICATE_EVICTED: &str = "sekiwake_deduplicate_evicted_records_total";
/// Records delivered without a safe comparison, by reason.
pub const DEDUPLICATE_UNMATCHED: &str = "sekiwake_deduplicate_uncompared_records_total";
/// The difference between the clocks of two captures, if it exceeds the duration.
pub const DEDUPLICATE_CLOCK_DIFFERENCE: &str = "sekiwake_deduplicate_clock_difference_seconds";
/// How long it took to read the past of new shards.
pub const DEDUPLICATE_PAST_SECONDS: &str = "sekiwake_deduplicate_past_read_seconds";
/// Times that the past of new shards could not be read completely.
pub const DEDUPLICATE_PAST_INCOMPLETE: &str = "sekiwake_deduplicate_past_incomplete_total";
/// Whether the connection to the relay is established.
pub const CONNECTED: &str = "sekiwake_bus_connected";
/// Age of the oldest message that a publisher has sent and the servers have not acknowledged.
pub const UNACKNOWLEDGED_SECONDS: &str = "sekiwake_bus_unacknowledged_seconds";
/// Time from a message's first transmission to its acknowledgement.
pub const ACKNOWLEDGEMENT_SECONDS: &str = "sekiwake_bus_acknowledgement_seconds";
/// Further connections to a NATS server after the first.
pub const RECONNECTS: &str = "sekiwake_bus_reconnects_total";
/// Time in which messages were sent and none was acknowledged.
pub const WITHOUT_LEADER_SECONDS: &str = "sekiwake_bus_without_leader_seconds_total";
/// Time between the oldest and the newest message that the servers retain.
pub const STREAM_SECONDS: &str = "sekiwake_bus_stream_seconds";
/// Records of a shard that are announced, and that its owner has not committed.
pub const SHARD_LAG_RECORDS: &str = "sekiwake_bus_shard_lag_records";
/// Age of the newest renewal of a member's lease that a server has acknowledged.
pub const LEASE_AGE_SECONDS: &str = "sekiwake_bus_lease_age_seconds";
/// Connections rejected by the proxy, by reason.
pub const DENIED_CONNECTIONS: &str = "sekiwake_bus_denied_connections_total";
/// Connections cut by the proxy because they sent more than it keeps, by port.
pub const CUT_CONNECTIONS: &str = "sekiwake_bus_cut_connections_total";
/// Keys allowed to connect to the proxy.
pub const ALLOWED_KEYS: &str = "sekiwake_bus_allowed_keys";
/// 1 while the contents of the list of allowed keys are in use, 0 while they are rejected and an
/// older list is in use.
pub const ALLOWED_KEYS_FILE_IN_USE: &str = "sekiwake_bus_allowed_keys_file_in_use";
/// Times that a changed list of allowed keys could not be read, and the old list stayed in use.
pub const ALLOWED_KEYS_ERRORS: &str = "sekiwake_bus_allowed_keys_errors_total";
