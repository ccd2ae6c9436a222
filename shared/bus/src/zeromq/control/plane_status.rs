//! The coordinator's part of `/status`.

use std::collections::BTreeMap;

use sekiwake_group::{ClientView, CoordinatorView, Difference, GroupView, HandoffView, StreamView, wire::Destination};
use sekiwake_record::{Kind, Name};
use serde_json::{Value, json};

pub(super) fn coordinator_status(view: &CoordinatorView, handoff: &HandoffView) -> Value {
    let mut rejected: BTreeMap<&str, u64> = view.rejections.by_reason().into_iter().collect();
    for (reason, count) in handoff.rejections.by_reason() {
        *rejected.entry(reason).or_default() += count;
    }
    // Members of an object are sorted by name: `topics`, hundreds of lines per group, is the last.
    json!({
        "epoch": format!("{:016x}", view.epoch),
        "granting": view.grace_period_over,
        "destinations": view.destinations,
        "destinations_version": view.list_version,
        "groups": view.groups.iter().map(|group| group_status(group, handoff)).collect::<Vec<_>>(),
        "clients": view.clients.iter().map(client_status).collect::<Vec<_>>(),
        "streams": view.streams.iter().map(stream_status).collect::<Vec<_>>(),
        "handoff": handoff_status(handoff),
        "rejected_messages": rejected,
        "topics": view.groups.iter().map(topics_status).collect::<Vec<_>>(),
    })
}

/// The hand-off state of all groups, including those that have lost all members: their state is
/// kept for a while.
fn handoff_status(handoff: &HandoffView) -> Value {
    let groups = handoff.groups.iter().map(|group| {
        json!({ "group": group.name.as_str(), "entries": group.entries, "bytes": group.bytes, "evicted": group.evicted })
    });
    json!({ "bytes": handoff.bytes, "evicted": handoff.evicted, "groups": groups.collect::<Vec<_>>() })
}

fn group_status(group: &GroupView, handoff: &HandoffView) -> Value {
    let group_handoff = handoff.groups.iter().find(|handoff| handoff.name == group.name);
    let members = group.members.iter().map(|member| {
        json!({
            "label": member.label.as_str(),
            "incarnation": format!("{:016x}", member.incarnation),
            "leaving": member.leaving,
            "lease_seconds_left": member.lease_left.as_secs_f64(),
            "protocols": [member.protocols.0, member.protocols.1],
            "destinations": member.destinations,
            "destinations_acknowledged": member.destinations_acknowledged,
            "shards": member.shards.len(),
        })
    });
    json!({
        "name": group.name.as_str(),
        "kind": group.kind.as_str(),
        "protocol": group.protocol,
        "members": members.collect::<Vec<_>>(),
        "different_destinations": group.difference.as_ref().map(difference_status),
        "unowned_shards": group.unowned.len(),
        "next_generation": group.next_generation,
        "lag_records": group.positions.iter().map(|position| position.lag).sum::<u64>(),
        "handoff_entries": group_handoff.map_or(0, |handoff| handoff.entries),
        "handoff_bytes": group_handoff.map_or(0, |handoff| handoff.bytes),
    })
}

/// The owner of each shard of a group, and the group's positions in each stream.
fn topics_status(group: &GroupView) -> Value {
    let owned = group.members.iter().flat_map(|member| {
        member.shards.iter().map(|shard| {
            let owner = json!({
                "shard": format!("{:02x}", shard.shard),
                "owner": member.label.as_str(),
                "generation": shard.generation,
                "state": shard.state.as_str(),
            });
            (shard.shard, owner)
        })
    });
    let free = group.unowned.iter().map(|&shard| {
        (shard, json!({ "shard": format!("{shard:02x}"), "owner": null, "generation": null, "state": "free" }))
    });
    // Sorted by shard.
    let shards: BTreeMap<u8, Value> = owned.chain(free).collect();
    let mut positions: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for position in &group.positions {
        positions.entry(position.stream.to_string()).or_default().push(json!({
            "shard": format!("{:02x}", position.shard),
            "committed": position.committed,
            "lag_records": position.lag,
        }));
    }
    let positions = positions.into_iter().map(|(stream, shards)| json!({ "stream": stream, "shards": shards }));
    json!({
        "group": group.name.as_str(),
        "owners": shards.into_values().collect::<Vec<_>>(),
        "positions": positions.collect::<Vec<_>>(),
    })
}

/// Members whose destinations differ, by set of destinations.
fn difference_status(difference: &Difference) -> Value {
    let labels = |set: &Vec<Name>| set.iter().map(Name::as_str).map(Value::from).collect::<Value>();
    json!({
        "seconds": difference.lasts.as_secs_f64(),
        "reported": difference.is_reported,
        "members": difference.sets.iter().map(labels).collect::<Vec<_>>(),
    })
}

/// A client without a group that has registered destinations.
fn client_status(client: &ClientView) -> Value {
    json!({
        "client": client.name.as_str(),
        "incarnation": format!("{:016x}", client.incarnation),
        "destinations": client.destinations.iter().map(Destination::to_string).collect::<Vec<_>>(),
        "destinations_acknowledged": client.is_acknowledged,
        "ended": client.has_ended,
        "left_alone_datagrams": client.left_alone,
    })
}

fn stream_status(stream: &StreamView) -> Value {
    let by_kind = |counts: &[u64; Kind::ALL.len()]| -> BTreeMap<&str, u64> {
        Kind::ALL.iter().map(|kind| kind.as_str()).zip(counts.iter().copied()).collect()
    };
    json!({
        "stream": stream.stream.to_string(),
        "live": stream.is_responsive,
        "ended": stream.ended,
        "last_heard_seconds_ago": stream.silent_for.as_secs_f64(),
        "waits_for_groups": stream.wants_commits,
        "has_destinations": stream.has_list,
        "retained": by_kind(&stream.retained),
        "published": by_kind(&stream.published),
    })
}

#[cfg(test)]
mod tests {
    use sekiwake_group::{BootTime, Coordinator, CoordinatorSettings, GroupHandoff, HandoffRejections};

    use super::*;

    #[test]
    fn status_shows_hand_off_state_of_groups_without_members() {
        let coordinator = Coordinator::new(CoordinatorSettings::default(), 1, BootTime::ZERO);
        let name = Name::new("xflow-forwarder.default").unwrap();
        let groups = vec![GroupHandoff { name: name.clone(), entries: 3, bytes: 1000, evicted: 2 }];
        let rejections = HandoffRejections { malformed: 4, foreign: 5, over_rate: 6, reader_requests: 7 };
        let handoff = HandoffView { groups, bytes: 1000, evicted: 7, rejections };
        let mut view = coordinator.view(BootTime::ZERO);
        let page = coordinator_status(&view, &handoff);
        let expected = json!({
            "bytes": 1000,
            "evicted": 7,
            "groups": [{ "group": "xflow-forwarder.default", "entries": 3, "bytes": 1000, "evicted": 2 }],
        });
        assert_eq!(page["handoff"], expected);
        assert_eq!(
            (&page["rejected_messages"]["foreign"], &page["rejected_messages"]["handoff_rate"]),
            (&json!(5), &json!(6))
        );
        view.groups.push(GroupView {
            name,
            kind: Kind::Xflow,
            protocol: Some(1),
            members: Vec::new(),
            unowned: Vec::new(),
            next_generation: 1,
            positions: Vec::new(),
            difference: None,
        });
        let page = coordinator_status(&view, &handoff);
        assert_eq!(
            (&page["groups"][0]["handoff_entries"], &page["groups"][0]["handoff_bytes"]),
            (&json!(3), &json!(1000))
        );
    }
}
