//! What the proxy's log says of groups, their members, and clients without a group. No clock: the
//! caller passes the time.

use std::{collections::BTreeMap, num::NonZeroU64, time::Instant};

use sekiwake_group::{CoordinatorEvent, GroupView, LeaseExpired, wire::Destination};
use sekiwake_record::Name;
use sekiwake_runtime::{LOG_INTERVAL, Suppressed};
use tracing::{info, warn};

use crate::reminder::{Due, Reminder};

/// The most lines about single members per [`LOG_INTERVAL`]: more than the members of a large site,
/// because any client may join and leave.
const MAX_LINES: u32 = 200;

/// What was logged.
#[derive(Debug, Default)]
pub(super) struct GroupLog {
    groups: BTreeMap<Name, Logged>,
    budget: LineBudget,
}

/// What was last logged of a group.
#[derive(Debug, Default)]
struct Logged {
    members: usize,
    difference: Reminder<Vec<Vec<Name>>>,
}

/// Lines that may still be logged in an interval.
#[derive(Debug, Default)]
struct LineBudget {
    since: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl GroupLog {
    /// Logs changes of the groups.
    pub(super) fn groups(&mut self, groups: &[GroupView], now: Instant) {
        self.groups.retain(|name, _| groups.iter().any(|group| group.name == *name));
        for group in groups {
            let logged = self.groups.entry(group.name.clone()).or_default();
            if logged.members != group.members.len() {
                logged.members = group.members.len();
                let labels: Vec<&str> = group.members.iter().map(|member| member.label.as_str()).collect();
                info!(group = %group.name, members = logged.members, labels = labels.join(","), "group members changed");
            }
            let sets = group.difference.as_ref().filter(|difference| difference.is_reported);
            let sets = sets.map(|difference| &difference.sets);
            match (logged.difference.due(sets, now), sets) {
                (Some(Due::Lasts), Some(sets)) => warn!(
                    group = %group.name,
                    members = shown_sets(sets),
                    "members of one group have different destinations, each source is sent to those of one member: \
                     make them equal, or set another SEKIWAKE_GROUP for the other destinations; \
                 the same line is about another SEKIWAKE_DEDUPLICATE"
                ),
                (Some(Due::Over), _) => info!(group = %group.name, "members have the same destinations again"),
                _ => {}
            }
        }
    }

    /// Logs what happened to a member or a client.
    pub(super) fn event(&mut self, event: &CoordinatorEvent, now: Instant) {
        let Some(suppressed) = self.budget.take(now) else { return };
        match event {
            CoordinatorEvent::Left { group, member } => info!(%group, %member, suppressed, "member left"),
            CoordinatorEvent::LeaseExpired(expired) => log_expired(expired, suppressed),
            CoordinatorEvent::ClientCame { client, destinations } => {
                let destinations = destinations.iter().map(Destination::to_string).collect::<Vec<_>>().join(",");
                info!(%client, destinations, suppressed, "client registered destinations, captures leave them alone");
            }
            CoordinatorEvent::ClientGone { client, left_alone } => {
                info!(%client, left_alone, suppressed, "registration of a client ended, its destinations are captured again");
            }
        }
    }
}

fn log_expired(expired: &LeaseExpired, suppressed: Suppressed) {
    let LeaseExpired { group, member, silent_for, unacknowledged, .. } = expired;
    let silent_seconds = silent_for.as_secs_f64();
    let shards = shown_shards(expired.shards);
    let takers = expired.takers.iter().map(|taker| format!("{}: {}", taker.member, shown_shards(taker.shards)));
    let taken_by = takers.collect::<Vec<_>>().join(", ");
    let possible_duplicates = unacknowledged;
    if expired.shards == 0 {
        warn!(%group, %member, silent_seconds, suppressed, "lease of a member without shards expired");
    } else if taken_by.is_empty() {
        warn!(
            %group, %member, silent_seconds, shards, possible_duplicates, suppressed,
            "lease of a member expired, no other member takes its shards yet"
        );
    } else {
        warn!(
            %group, %member, silent_seconds, shards, taken_by, possible_duplicates, suppressed,
            "lease of a member expired, other members take its shards"
        );
    }
}

impl LineBudget {
    /// Whether to log another line: `Some` with the number of lines suppressed since the last one.
    fn take(&mut self, now: Instant) -> Option<Suppressed> {
        let is_same = self.since.is_some_and(|since| now.saturating_duration_since(since) < LOG_INTERVAL);
        if !is_same {
            self.since = Some(now);
            self.lines = 0;
        }
        if self.lines >= MAX_LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(NonZeroU64::new(std::mem::take(&mut self.suppressed)))
    }
}

/// `a | b, c`.
fn shown_sets(sets: &[Vec<Name>]) -> String {
    let shown = |set: &Vec<Name>| set.iter().map(Name::as_str).collect::<Vec<_>>().join(", ");
    sets.iter().map(shown).collect::<Vec<_>>().join(" | ")
}

/// How many, and which: `33 (00-1f,3f)`.
fn shown_shards(shards: u64) -> String {
    let mut ranges = Vec::new();
    let mut rest = shards;
    while rest != 0 {
        let first = rest.trailing_zeros();
        let length = (rest >> first).trailing_ones();
        let last = first + length - 1;
        ranges.push(if length == 1 { format!("{first:02x}") } else { format!("{first:02x}-{last:02x}") });
        // Clears the bits up to `last`.
        rest = if last == 63 { 0 } else { rest >> (last + 1) << (last + 1) };
    }
    format!("{} ({})", shards.count_ones(), ranges.join(","))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn shards_are_shown_as_ranges() {
        assert_eq!(shown_shards(u64::MAX), "64 (00-3f)");
        assert_eq!(shown_shards(1), "1 (00)");
        assert_eq!(shown_shards(0xffff_0001 | 1 << 63), "18 (00,10-1f,3f)");
    }

    #[test]
    fn sets_of_members_are_shown_apart() {
        let names = |names: &[&str]| names.iter().map(|name| Name::new(name).unwrap()).collect::<Vec<_>>();
        assert_eq!(shown_sets(&[names(&["a"]), names(&["b", "c"])]), "a | b, c");
    }

    #[test]
    fn lines_about_members_are_limited() {
        let start = Instant::now();
        let mut budget = LineBudget::default();
        let allowed = (0..1000).filter(|_| budget.take(start).is_some()).count();
        assert_eq!(allowed, MAX_LINES as usize);
        assert_eq!(budget.take(start + LOG_INTERVAL - Duration::from_nanos(1)), None);
        assert_eq!(budget.take(start + LOG_INTERVAL), Some(NonZeroU64::new(801)));
        assert_eq!(budget.take(start + LOG_INTERVAL), Some(None));
    }
}
