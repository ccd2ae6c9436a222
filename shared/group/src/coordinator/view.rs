//! The state of the coordinator, for `/status` and for metrics.

use std::{collections::BTreeMap, time::Duration};

use sekiwake_record::{Kind, Name, Topic};

use super::{ClientView, Coordinator, Rejections, group::Group, streams::StreamState};
use crate::{BootTime, Peer, Stream};

/// The whole state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorView {
    /// The random number of this run.
    pub epoch: u64,
    /// Whether the grace period after the start is over, so that shards are granted.
    pub grace_period_over: bool,
    /// The version of the list of destinations.
    pub list_version: u64,
    /// How many destinations it has.
    pub destinations: usize,
    /// The groups, by name.
    pub groups: Vec<GroupView>,
    /// The streams, by name and epoch.
    pub streams: Vec<StreamView>,
    /// The clients without a group that have registered destinations.
    pub clients: Vec<ClientView>,
    /// Rejected messages and parts of messages.
    pub rejections: Rejections,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// The name.
    pub name: Name,
    /// The kind that it works on.
    pub kind: Kind,
    /// The protocol that it runs; `None` without members.
    pub protocol: Option<u64>,
    /// The members, by incarnation.
    pub members: Vec<MemberView>,
    /// Shards without an owner.
    pub unowned: Vec<u8>,
    /// The generation of the next grant of a shard.
    pub next_generation: u64,
    /// The known positions.
    pub positions: Vec<PositionView>,
    /// How the members' destinations differ; `None` if they are equal.
    pub difference: Option<Difference>,
}

/// Members of a group have different destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// For how long.
    pub lasts: Duration,
    /// Whether that is long enough to be reported.
    pub is_reported: bool,
    /// The labels of the members, by set of destinations.
    pub sets: Vec<Vec<Name>>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// The random number of its run.
    pub incarnation: u64,
    /// The label.
    pub label: Name,
    /// Whether it is leaving.
    pub leaving: bool,
    /// How long its lease still runs here. At the member it ends earlier.
    pub lease_left: Duration,
    /// The lowest and the highest protocol that it speaks.
    pub protocols: (u64, u64),
    /// How many destinations it has registered.
    pub destinations: usize,
    /// Whether every publisher has acknowledged them.
    pub destinations_acknowledged: bool,
    /// Its shards.
    pub shards: Vec<ShardView>,
}

/// A shard that a member has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardView {
    /// The shard.
    pub shard: u8,
    /// The generation of its grant.
    pub generation: u64,
    /// What the member must do with it.
    pub state: ShardState,
}

/// What the member of a shard must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// Act on it.
    Own,
    /// It has been ordered to stop.
    ReleaseOrdered,
}

impl ShardState {
    /// The name, in `/status`.
    pub fn as_str(self) -> &'static str {
        match self {
            ShardState::Own => "own",
            ShardState::ReleaseOrdered => "release_ordered",
        }
    }
}

/// The position of a group in a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionView {
    /// The stream.
    pub stream: Stream,
    /// The shard.
    pub shard: u8,
    /// The sequence number below which everything is handled.
    pub committed: u64,
    /// Records that are owed: announced and not handled.
    pub lag: u64,
}

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamView {
    /// The stream.
    pub stream: Stream,
    /// Whether it has ended.
    pub ended: bool,
    /// Whether it has not ended and was heard lately: requests are passed on to its publisher.
    pub is_responsive: bool,
    /// How long ago it was last heard.
    pub silent_for: Duration,
    /// Whether its publisher requests commits, because it drains or reads a file.
    pub wants_commits: bool,
    /// Whether it has applied the newest list of destinations.
    pub has_list: bool,
    /// Records retained, by kind in the order of [`Kind::ALL`].
    pub retained: [u64; Kind::ALL.len()],
    /// Records published, by kind.
    pub published: [u64; Kind::ALL.len()],
}

impl Coordinator {
    /// The whole state, at `now`.
    pub fn view(&self, now: BootTime) -> CoordinatorView {
        CoordinatorView {
            epoch: self.epoch,
            grace_period_over: self.grace_period_over(now),
            list_version: self.list.version(),
            destinations: self.list.entries().len(),
            groups: self.groups(now),
            streams: self.streams(now),
            clients: self.clients(),
            rejections: self.rejections,
        }
    }

    /// The groups.
    pub fn groups(&self, now: BootTime) -> Vec<GroupView> {
        self.groups.iter().map(|(name, group)| self.view_group(now, name, group)).collect()
    }

    /// The streams.
    pub fn streams(&self, now: BootTime) -> Vec<StreamView> {
        let view = |(stream, state): (&Stream, &StreamState)| {
            let sums = |number: &dyn Fn(usize) -> u64| {
                Kind::ALL.map(|kind| {
                    Topic::all().filter(|topic| topic.kind == kind).map(|topic| number(topic.index())).sum()
                })
            };
            StreamView {
                stream: stream.clone(),
                ended: state.ended,
                is_responsive: state.is_responsive(now),
                silent_for: now - state.last_heard,
                wants_commits: state.wants_commits,
                has_list: state.list_version == self.list.version(),
                retained: sums(&|topic| state.next[topic] - state.oldest[topic]),
                published: sums(&|topic| state.next[topic]),
            }
        };
        self.streams.iter().map(view).collect()
    }

    /// The kind that the group works on, if `peer` is its member `incarnation` and has a lease.
    pub fn leased_kind(&self, now: BootTime, peer: &Peer, group: &Name, incarnation: u64) -> Option<Kind> {
        let group = self.groups.get(group)?;
        let member = group.members.get(&incarnation)?;
        (member.peer == *peer && now < member.lease_until).then_some(group.kind)
    }

    /// Whether the group has members.
    pub fn has_members(&self, group: &Name) -> bool {
        self.groups.get(group).is_some_and(|group| !group.members.is_empty())
    }

    /// Whether a group with members works on this kind.
    pub fn has_group_of(&self, kind: Kind) -> bool {
        self.groups.values().any(|group| group.kind == kind && !group.members.is_empty())
    }

    /// Whether a member is leaving.
    pub fn has_leavers(&self) -> bool {
        self.groups.values().flat_map(|group| group.members.values()).any(|member| member.leaving)
    }

    /// Whether some member is leaving, or some publisher requests commits because it drains
    /// or reads a file: a proxy that is asked to stop waits for those.
    pub fn is_being_left(&self, now: BootTime) -> bool {
        let mut members = self.groups.values().flat_map(|group| group.members.values());
        members.any(|member| member.leaving)
            || self.streams.values().any(|state| state.is_responsive(now) && state.wants_commits)
    }

    fn view_group(&self, now: BootTime, name: &Name, group: &Group) -> GroupView {
        let shards = |incarnation| {
            let owned = group.shards.iter().enumerate().filter(move |(_, slot)| slot.holder == Some(incarnation));
            let view = owned.map(|(index, slot)| ShardView {
                shard: index as u8,
                generation: slot.generation,
                state: if slot.release_ordered { ShardState::ReleaseOrdered } else { ShardState::Own },
            });
            view.collect()
        };
        let members = group.members.iter().map(|(&incarnation, member)| MemberView {
            incarnation,
            label: member.label.clone(),
            leaving: member.leaving,
            lease_left: member.lease_until - now,
            protocols: member.protocols,
            destinations: member.destinations.len(),
            destinations_acknowledged: member.registration > 0
                && member.acknowledged_registration == member.registration,
            shards: shards(incarnation),
        });
        let unowned = group.shards.iter().enumerate().filter(|(_, slot)| slot.holder.is_none());
        GroupView {
            name: name.clone(),
            kind: group.kind,
            protocol: group.protocol(),
            members: members.collect(),
            unowned: unowned.map(|(index, _)| index as u8).collect(),
            next_generation: group.next_generation,
            positions: self.position_views(group).collect(),
            difference: group.difference(now),
        }
    }

    /// The known positions of a group.
    pub(super) fn position_views(&self, group: &Group) -> impl Iterator<Item = PositionView> {
        let kind = group.kind;
        group.positions.iter().flat_map(move |(stream, positions)| {
            let state = self.streams.get(stream);
            positions.map(move |(shard, position)| {
                let topic = Topic { kind, shard };
                let next = state.map_or(0, |state| state.next[topic.index()]);
                let committed = position.covered.prefix_end().unwrap_or(0);
                // What is no longer retained is lost, or in doubt.
                let oldest = state.map_or(0, |state| state.oldest[topic.index()]);
                let gaps = position.covered.gaps();
                let owed: u64 = gaps.map(|gap| gap.to.saturating_sub(gap.from.max(oldest))).sum();
                let lag = owed + next.saturating_sub(position.covered.end().unwrap_or(next));
                PositionView { stream: stream.clone(), shard: shard.index() as u8, committed, lag }
            })
        })
    }
}

impl Group {
    fn difference(&self, now: BootTime) -> Option<Difference> {
        let lasts = self.agreement.differing_for(now)?;
        let mut by_digest: BTreeMap<u64, Vec<Name>> = BTreeMap::new();
        for member in self.members.values().filter(|member| member.destinations_digest != 0) {
            by_digest.entry(member.destinations_digest).or_default().push(member.label.clone());
        }
        let mut sets: Vec<Vec<Name>> = by_digest.into_values().collect();
        sets.iter_mut().for_each(|set| set.sort_unstable());
        sets.sort_unstable();
        Some(Difference { lasts, is_reported: self.agreement.is_reported(now), sets })
    }
}
