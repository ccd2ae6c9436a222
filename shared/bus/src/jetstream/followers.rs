//! The groups that follow the publisher of a file: it ends when they have handled everything, and
//! is never far ahead of the slowest.
//!
//! ```text
//! acknowledged ─▶ open, by topic ─▶ handled by every group
//!                 bounds what is read ahead     ◀─ positions in the groups' keys
//! ```
//!
//! Groups are those that had a live member at some time since the publisher started. One that has
//! ended is waited for, but not for long.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sekiwake_lease::{
    Key,
    value::{Assignment, MemberValue, State},
};
use sekiwake_record::{Kind, SHARDS, Shard, Topic};

use super::{
    connection::Nats,
    keys::Stored,
    streams::{GROUPS_PREFIX, GROUPS_STREAM},
};

/// How often the keys of groups are read.
const READ_EVERY: Duration = Duration::from_millis(250);
/// A member whose key has not changed for this time has ended.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// Published records that a group has not handled, and the groups.
#[derive(Debug)]
pub(crate) struct Followers {
    open: Vec<VecDeque<Open>>,
    records: u64,
    bytes: usize,
    groups: BTreeMap<String, Group>,
    /// The members' keys.
    revisions: BTreeMap<String, Revision>,
}

/// An acknowledged message.
#[derive(Debug)]
struct Open {
    stream_sequence: u64,
    records: u32,
    bytes: usize,
}

/// A group of a kind.
#[derive(Debug)]
struct Group {
    kind: Kind,
    /// Per shard the sequence number in the stream of the last message that is handled.
    handled: [u64; SHARDS],
    live_at: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Revision {
    sequence: u64,
    /// When a newer revision was seen than before: a key that never changes is what a member that
    /// was killed has left.
    changed_at: Option<Instant>,
}

impl Followers {
    pub(crate) fn new() -> Followers {
        Followers {
            open: (0..Topic::COUNT).map(|_| VecDeque::new()).collect(),
            records: 0,
            bytes: 0,
            groups: BTreeMap::new(),
            revisions: BTreeMap::new(),
        }
    }

    /// Records that a group has not handled.
    pub(crate) fn records(&self) -> u64 {
        self.records
    }

    /// Bytes of their messages' bodies.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes an acknowledged message.
    pub(crate) fn stored(&mut self, topic: Topic, stream_sequence: u64, records: u32, bytes: usize) {
        self.open[topic.index()].push_back(Open { stream_sequence, records, bytes });
        self.records += u64::from(records);
        self.bytes += bytes;
        self.settle(topic);
    }

    /// Whether a group that has not handled everything has had a live member in this time.
    pub(crate) fn is_followed(&self, within: Duration, now: Instant) -> bool {
        let has_open = |group: &Group| {
            Topic::all().filter(|topic| topic.kind == group.kind).any(|topic| {
                let newest = self.open[topic.index()].back();
                newest.is_some_and(|newest| group.handled[topic.shard.index()] < newest.stream_sequence)
            })
        };
        self.groups.values().any(|group| now.saturating_duration_since(group.live_at) < within && has_open(group))
    }

    /// Takes the keys of all groups. Returns whether there is a group that was not known.
    pub(crate) fn read(&mut self, stored: &[Stored], now: Instant) -> bool {
        let mut found: BTreeMap<String, Group> = BTreeMap::new();
        let mut revisions = BTreeMap::new();
        let mut live = Vec::new();
        for Stored { subject, sequence, value } in stored {
            let Some((name, kind, key)) = group_of(subject) else { continue };
            let group = found.entry(name.clone()).or_insert(Group { kind, handled: [0; SHARDS], live_at: now });
            let mut reach = |shard: Shard, sequence: u64| {
                let handled = &mut group.handled[shard.index()];
                *handled = sequence.max(*handled);
            };
            match key {
                Key::Assignment => {
                    let Ok(assignment) = Assignment::decode(value) else { continue };
                    // Only a group that is born has positions.
                    live.push((name, false));
                    for (shard, assigned) in Shard::all().zip(&assignment.shards) {
                        reach(shard, assigned.position.sequence);
                    }
                }
                Key::Member(_) => {
                    let Ok(member) = MemberValue::decode(value) else { continue };
                    for claim in &member.claims {
                        reach(claim.shard, claim.position.sequence);
                    }
                    let changed_at = match self.revisions.get(subject) {
                        Some(known) if known.sequence == *sequence => known.changed_at,
                        Some(_) => Some(now),
                        None => None,
                    };
                    revisions.insert(subject.clone(), Revision { sequence: *sequence, changed_at });
                    let is_silent = changed_at.is_none_or(|at| now.saturating_duration_since(at) >= SILENT_AFTER);
                    if member.state != State::Gone && !is_silent {
                        live.push((name, true));
                    }
                }
            }
        }
        self.revisions = revisions;
        let mut is_new = false;
        for (name, group) in found {
            let has = |what: bool| live.iter().any(|(live, is_member)| *live == name && *is_member == what);
            let is_live = has(true) && has(false);
            match self.groups.get_mut(&name) {
                Some(known) => {
                    for (known, handled) in known.handled.iter_mut().zip(group.handled) {
                        *known = handled.max(*known);
                    }
                    if is_live {
                        known.live_at = now;
                    }
                }
                None if is_live => {
                    self.groups.insert(name, group);
                    is_new = true;
                }
                None => {}
            }
        }
        Topic::all().for_each(|topic| self.settle(topic));
        is_new
    }

    /// Forgets what every group of the kind has handled.
    fn settle(&mut self, topic: Topic) {
        let groups = self.groups.values().filter(|group| group.kind == topic.kind);
        let handled = groups.map(|group| group.handled[topic.shard.index()]).min().unwrap_or(u64::MAX);
        let open = &mut self.open[topic.index()];
        while open.front().is_some_and(|first| first.stream_sequence <= handled) {
            let Some(Open { records, bytes, .. }) = open.pop_front() else { break };
            self.records -= u64::from(records);
            self.bytes -= bytes;
        }
    }
}

/// The group of a subject, with its kind in its name, and the key.
fn group_of(subject: &str) -> Option<(String, Kind, Key)> {
    let name = subject.strip_prefix(GROUPS_PREFIX)?;
    let (group, rest) = name.split_once('.')?;
    let (kind, key) = rest.split_once('.')?;
    let kind = Kind::ALL.into_iter().find(|known| known.as_str() == kind)?;
    Some((format!("{group}.{kind}"), kind, Key::parse(key)?))
}

/// The keys of groups, until the publisher takes them.
#[derive(Clone, Debug, Default)]
pub(crate) struct GroupKeys(Arc<Mutex<Option<Vec<Stored>>>>);

impl GroupKeys {
    pub(crate) fn take(&self) -> Option<Vec<Stored>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Reads the keys of all groups, again and again.
pub(crate) async fn read_groups(nats: Nats, keys: GroupKeys) {
    loop {
        // It fails while there are no groups, or no leader.
        if nats.link.is_connected()
            && let Ok(stored) = nats.multi_last(GROUPS_STREAM, &[format!("{GROUPS_PREFIX}>")]).await
        {
            *keys.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(stored);
        }
        tokio::time::sleep(READ_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_lease::{
        Position,
        value::{Assigned, Claim, Phase},
    };

    use super::*;

    const TOPIC: Topic = Topic { kind: Kind::Syslog, shard: Shard::FIRST };

    fn position(sequence: u64) -> Position {
        Position { created: 1, sequence, progress: Vec::new() }
    }

    fn assignment(group: &str, revision: u64, handled: u64) -> Stored {
        let assigned = Assigned { position: position(handled), ..Assigned::default() };
        let value =
            Assignment { planner: 1, older: Vec::new(), beginnings: Vec::new(), shards: vec![assigned; SHARDS] };
        Stored { subject: format!("{GROUPS_PREFIX}{group}.syslog.a"), sequence: revision, value: value.encode() }
    }

    fn member(group: &str, revision: u64, state: State, handled: u64) -> Stored {
        let claims =
            Shard::all().map(|shard| Claim { shard, generation: 1, phase: Phase::Held, position: position(handled) });
        let value = MemberValue { number: revision, state, label: None, claims: claims.collect(), digest: 0 };
        let subject = format!("{GROUPS_PREFIX}{group}.syslog.m.0000000000000001");
        Stored { subject, sequence: revision, value: value.encode() }
    }

    /// Reads keys twice, with newer revisions of the members the second time. Returns whether there
    /// is a new group.
    fn follow(followers: &mut Followers, keys: &[Stored], now: Instant) -> bool {
        let renewed = keys.iter().map(|stored| Stored { sequence: stored.sequence + 100, ..stored.clone() });
        followers.read(keys, now) | followers.read(&renewed.collect::<Vec<_>>(), now)
    }

    #[test]
    fn slowest_group_decides_what_is_handled() {
        let (mut followers, now) = (Followers::new(), Instant::now());
        let keys = |a: u64, b: u64| {
            let revision = 10 * (a + b);
            [
                assignment("a", 1, 4),
                member("a", revision, State::Live, a),
                assignment("b", 2, 4),
                member("b", revision + 1, State::Live, b),
            ]
        };
        assert!(follow(&mut followers, &keys(4, 4), now));
        for sequence in [5, 6] {
            followers.stored(TOPIC, sequence, 10, 100);
        }
        assert!(!follow(&mut followers, &keys(6, 5), now), "both are known");
        assert_eq!((followers.records(), followers.bytes()), (10, 100));
        assert!(followers.is_followed(SILENT_AFTER, now));
        followers.read(&[assignment("b", 3, 6)], now);
        assert_eq!((followers.records(), followers.bytes()), (0, 0));
        assert!(!followers.is_followed(SILENT_AFTER, now), "nothing is left to do");
    }

    #[test]
    fn group_is_known_once_it_has_positions_and_a_member_that_renews() {
        let (mut followers, now) = (Followers::new(), Instant::now());
        assert!(!follow(&mut followers, &[member("a", 1, State::Live, 0)], now));
        assert!(!follow(&mut followers, &[assignment("a", 2, 0), member("a", 3, State::Gone, 0)], now));
        let left = [assignment("b", 4, 0), member("b", 5, State::Live, 0)];
        assert!(!followers.read(&left, now) && !followers.read(&left, now), "left by a member that was killed");
        assert!(follow(&mut followers, &left, now));
        followers.stored(TOPIC, 1, 10, 100);
        let later = now + SILENT_AFTER;
        followers.read(&left, later);
        assert!(!followers.is_followed(SILENT_AFTER, later + SILENT_AFTER));
        assert_eq!(followers.records(), 10, "it has not handled them");
    }

    #[test]
    fn without_groups_nothing_is_open() {
        let mut followers = Followers::new();
        followers.stored(TOPIC, 1, 10, 100);
        assert_eq!(followers.records(), 0);
    }
}
