//! The member's part of `/status`.

use std::collections::BTreeMap;

use sekiwake_group::{GiveUp, HandoffKeeper, MemberStatus};
use sekiwake_record::Name;
use serde_json::{Value, json};

pub(crate) fn handoff_status(keeper: &HandoffKeeper) -> Value {
    let counters = keeper.counters();
    json!({
        "coordinator_keeps_handoff": keeper.is_answered(),
        "pending": keeper.pending(),
        "acknowledged": counters.stored,
        "rejected": counters.no_room,
        "received": counters.received,
        "incomplete_shards": keeper.incomplete(),
    })
}

pub(crate) fn member_status(status: &MemberStatus, group: &Name) -> Value {
    let shards = status.shards.iter().map(|shard| {
        json!({ "shard": format!("{:02x}", shard.shard), "generation": shard.generation, "state": shard.state.as_str() })
    });
    let streams = status.streams.iter().map(|stream| {
        json!({
            "stream": stream.stream.to_string(),
            "ended": stream.ended,
            "last_heard_seconds_ago": stream.silent_for.as_secs_f64(),
            "located_shards": stream.located,
            "received": stream.received,
            "handled": stream.handled,
            "lag_records": stream.lag,
            "doubted_records": stream.in_doubt,
            "reorder_bytes": stream.reorder_bytes,
            "unacknowledged_bytes": stream.outstanding_bytes,
        })
    });
    let given_up = GiveUp::ALL.iter().zip(status.counters.given_up).map(|(reason, count)| (reason.as_str(), count));
    json!({
        "group": group.as_str(),
        "incarnation": format!("{:016x}", status.incarnation),
        "coordinator": format!("{:016x}", status.coordinator),
        "protocol": status.protocol,
        "leased": status.is_leased,
        "lease_seconds_left": status.lease_left.as_secs_f64(),
        "leaving": status.is_leaving,
        "shards": shards.collect::<Vec<_>>(),
        "streams": streams.collect::<Vec<_>>(),
        "reorder_bytes": status.reorder_bytes,
        "unacknowledged_bytes": status.outstanding_bytes,
        "members_with_other_destinations": status.differing.iter().map(Name::as_str).collect::<Vec<_>>(),
        "repair_requests": status.counters.requests,
        "renewals": status.counters.renewals,
        "rejected_messages": status.counters.rejected,
        "late_records": status.counters.late,
        "skipped_records": status.counters.skipped,
        "refused_streams": status.counters.refused_streams,
        "given_up": given_up.collect::<BTreeMap<_, _>>(),
    })
}
