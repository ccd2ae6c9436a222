//! What the coordinator shows of itself, for `/status` and for metrics.

use sekiwake_record::{Kind, Name, SHARDS, Topic};

use super::{Coordinator, Refusals, group::Group, streams::StreamState};
use crate::{Peer, Stream, UNKNOWN};

/// All that the coordinator knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoordinatorView {
    /// The coordinator's random number.
    pub epoch: u64,
    /// Whether it grants.
    pub settled: bool,
    /// The version of the list of destinations.
    pub list_version: u64,
    /// How many destinations it holds.
    pub destinations: usize,
    /// The groups, by name.
    pub groups: Vec<GroupView>,
    /// The streams, by name and epoch.
    pub streams: Vec<StreamView>,
    /// What was refused.
    pub refusals: Refusals,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// Its name.
    pub name: Name,
    /// What it works on.
    pub kind: Kind,
    /// The protocol that its members have in common; `None` without members.
    pub protocol: Option<u64>,
    /// Its members, by incarnation.
    pub members: Vec<MemberView>,
    /// Shards that nobody owns.
    pub unowned: Vec<u8>,
    /// The generation that the next grant of a shard will have.
    pub next_generation: u64,
    /// Where it stands, where that is known.
    pub positions: Vec<PositionView>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its random number.
    pub incarnation: u64,
    /// Its label.
    pub label: Name,
    /// Whether it is leaving.
    pub leaving: bool,
    /// How long its lease still runs here, ns; it ends at the member before.
    pub lease_left: u64,
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
    /// What the member is to do with it.
    pub state: ShardState,
}

/// What becomes of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardState {
    /// The member acts on it.
    Own,
    /// It has been told to stop.
    ReleaseOrdered,
}

impl ShardState {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            ShardState::Own => "own",
            ShardState::ReleaseOrdered => "release_ordered",
        }
    }
}

/// Where a group stands on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PositionView {
    /// The stream.
    pub stream: Stream,
    /// The shard.
    pub shard: u8,
    /// The sequence number below which everything is handled.
    pub committed: u64,
    /// Records that the stream has announced beyond it.
    pub lag: u64,
}

/// A stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamView {
    /// Its publisher and run.
    pub stream: Stream,
    /// Whether its publisher has said its last word.
    pub ended: bool,
    /// Whether it has been heard of lately and has not ended: requests are passed on to it.
    pub answers: bool,
    /// How long ago it was heard of, ns.
    pub heard_ago: u64,
    /// It drains, or reads a file.
    pub wants_commits: bool,
    /// Whether it has applied the newest list of destinations.
    pub has_list: bool,
    /// Records that can be repeated, by kind in the order of [`Kind::ALL`].
    pub retained: [u64; Kind::ALL.len()],
    /// Records that were published, by kind.
    pub published: [u64; Kind::ALL.len()],
}

impl Coordinator {
    /// All that it knows, at `now`.
    pub fn view(&self, now: u64) -> CoordinatorView {
        CoordinatorView {
            epoch: self.epoch,
            settled: self.settled(now),
            list_version: self.list_version,
            destinations: self.list.len(),
            groups: self.groups(now),
            streams: self.streams(now),
            refusals: self.refusals,
        }
    }

    /// The groups.
    pub fn groups(&self, now: u64) -> Vec<GroupView> {
        self.groups.iter().map(|(name, group)| self.view_group(now, name, group)).collect()
    }

    /// The streams.
    pub fn streams(&self, now: u64) -> Vec<StreamView> {
        let view = |(stream, state): (&Stream, &StreamState)| {
            let sums = |number: &dyn Fn(usize) -> u64| {
                Kind::ALL.map(|kind| {
                    Topic::all().filter(|topic| topic.kind == kind).map(|topic| number(topic.index())).sum()
                })
            };
            StreamView {
                stream: stream.clone(),
                ended: state.ended,
                answers: state.answers(now),
                heard_ago: now.saturating_sub(state.heard_at),
                wants_commits: state.wants_commits,
                has_list: state.list_version == self.list_version,
                retained: sums(&|topic| state.next[topic] - state.oldest[topic]),
                published: sums(&|topic| state.next[topic]),
            }
        };
        self.streams.iter().map(view).collect()
    }

    /// What the group works on of which `peer` is the member `incarnation`, if it is and has a lease.
    pub fn leased_kind(&self, now: u64, peer: &Peer, group: &Name, incarnation: u64) -> Option<Kind> {
        let group = self.groups.get(group)?;
        let member = group.members.get(&incarnation)?;
        (member.peer == *peer && now < member.lease_until).then_some(group.kind)
    }

    /// Whether the group has members.
    pub fn has_members(&self, group: &Name) -> bool {
        self.groups.get(group).is_some_and(|group| !group.members.is_empty())
    }

    /// Whether some member is leaving.
    pub fn has_leavers(&self) -> bool {
        self.groups.values().flat_map(|group| group.members.values()).any(|member| member.leaving)
    }

    /// Whether some member is leaving, or some publisher wants to know of commits because it drains or reads a file: a proxy that is
    /// told to stop waits for those.
    pub fn is_being_left(&self, now: u64) -> bool {
        let mut members = self.groups.values().flat_map(|group| group.members.values());
        members.any(|member| member.leaving)
            || self.streams.values().any(|state| state.answers(now) && state.wants_commits)
    }

    fn view_group(&self, now: u64, name: &Name, group: &Group) -> GroupView {
        let shards = |incarnation| {
            let held = group.shards.iter().enumerate().filter(move |(_, slot)| slot.holder == Some(incarnation));
            let view = held.map(|(index, slot)| ShardView {
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
            lease_left: member.lease_until.saturating_sub(now),
            protocols: member.protocols,
            destinations: member.destinations.len(),
            destinations_acknowledged: member.registration > 0 && member.told == member.registration,
            shards: shards(incarnation),
        });
        let positions = group.positions.iter().flat_map(|(stream, places)| {
            let state = self.streams.get(stream);
            let known = places.iter().enumerate().filter(|(_, place)| **place != UNKNOWN);
            known.map(move |(index, &committed)| {
                let next = state.map_or(0, |state| state.next[group.kind.index() * SHARDS + index]);
                let lag = next.saturating_sub(committed);
                PositionView { stream: stream.clone(), shard: index as u8, committed, lag }
            })
        });
        let unowned = group.shards.iter().enumerate().filter(|(_, slot)| slot.holder.is_none());
        GroupView {
            name: name.clone(),
            kind: group.kind,
            protocol: group.protocol(),
            members: members.collect(),
            unowned: unowned.map(|(index, _)| index as u8).collect(),
            next_generation: group.next_generation,
            positions: positions.collect(),
        }
    }
}
