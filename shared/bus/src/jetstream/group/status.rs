//! The member's part of `/status`.

use std::{collections::BTreeMap, time::Duration};

use sekiwake_group::{BootTime, GiveUp, MemberCounters, MemberStatus, ShardPhase, ShardStatus, Stream, StreamStatus};
use sekiwake_lease::Table;
use sekiwake_record::{Kind, Name, Shard, Topic};
use serde_json::{Value, json};

use super::{super::state::At, Owned};
use crate::group::member_status;

/// What is shown.
pub(super) struct View<'a> {
    pub(super) table: &'a Table,
    pub(super) shards: &'a [Option<Owned>],
    pub(super) announced: &'a BTreeMap<Stream, At>,
    pub(super) kind: Kind,
    pub(super) given_up: [u64; GiveUp::ALL.len()],
    pub(super) is_reading: bool,
}

impl View<'_> {
    /// The page, in the form that members on every bus have.
    pub(super) fn page(&self, now: BootTime, group: &Name) -> Value {
        let mut page = member_status(&self.status(now), group);
        let counters = self.table.counters();
        let lag: BTreeMap<String, u64> =
            Shard::all().filter_map(|shard| Some((format!("{:02x}", shard.index()), self.lag(shard)?))).collect();
        page["table"] = json!({
            "members": self.table.live_members(),
            "free_shards": self.table.free_shards(),
            "lease_age_seconds": self.table.lease_age(now).map(|age| age.as_secs_f64()),
            "reading": self.is_reading,
            "lag_records_by_shard": lag,
            "conflicts": counters.conflicts,
            "unanswered_writes": counters.unknown,
            "unreadable_values": counters.unreadable,
            "foreign_keys": counters.foreign,
            "declared_gone": counters.declared_gone,
            "rejoined": counters.rejoined,
        });
        page
    }

    pub(super) fn status(&self, now: BootTime) -> MemberStatus {
        let until = self.table.lease_until();
        let shards = Shard::all().filter_map(|shard| {
            let (state, generation) = self.table.shard_state(shard)?;
            let state = match state {
                "owned" => ShardPhase::Owned,
                "stopping" => ShardPhase::Releasing,
                "released" => ShardPhase::Released,
                _ => ShardPhase::Preparing,
            };
            Some(ShardStatus { shard: shard.index() as u8, generation, state })
        });
        let counters = self.table.counters();
        MemberStatus {
            incarnation: self.table.incarnation(),
            coordinator: 0,
            protocol: 0,
            is_leased: now < until,
            lease_left: until - now,
            is_leaving: self.table.is_leaving(),
            shards: shards.collect(),
            streams: self.streams(),
            in_doubt: 0,
            reorder_bytes: 0,
            outstanding_bytes: 0,
            differing: self.table.differing(now),
            counters: MemberCounters {
                renewals: counters.renewals,
                rejected: counters.unreadable,
                given_up: self.given_up,
                ..MemberCounters::default()
            },
        }
    }

    /// Announced records of a shard that are not handled; `None` if the member does not have it.
    pub(super) fn lag(&self, shard: Shard) -> Option<u64> {
        let owned = self.shards[shard.index()].as_ref()?;
        let topic = Topic { kind: self.kind, shard };
        let lags = self.announced.iter().filter_map(|(stream, at)| {
            let announced = at.positions.get(&topic)?.next_sequence;
            Some(owned.handling.lag(stream, announced, self.table.owed(stream, shard)))
        });
        Some(lags.sum())
    }

    fn streams(&self) -> Vec<StreamStatus> {
        let mut streams: BTreeMap<&Stream, StreamStatus> = BTreeMap::new();
        let new = |stream: &Stream| StreamStatus {
            stream: stream.clone(),
            ended: self.announced.get(stream).is_some_and(|at| at.has_ended),
            silent_for: Duration::ZERO,
            located: 0,
            received: 0,
            handled: 0,
            lag: 0,
            in_doubt: 0,
            reorder_bytes: 0,
            outstanding_bytes: 0,
        };
        for shard in Shard::all() {
            let Some(owned) = &self.shards[shard.index()] else { continue };
            let topic = Topic { kind: self.kind, shard };
            for progress in &owned.handling.delivered().progress {
                let status = streams.entry(&progress.stream).or_insert_with(|| new(&progress.stream));
                status.located += 1;
                status.received += progress.next;
                status.handled += owned.handling.committed().next(&progress.stream).unwrap_or(0);
                let announced = self.announced.get(&progress.stream).and_then(|at| at.positions.get(&topic));
                let owed = self.table.owed(&progress.stream, shard);
                status.lag += announced.map_or(0, |at| owned.handling.lag(&progress.stream, at.next_sequence, owed));
            }
        }
        streams.into_values().collect()
    }
}
