//! What former owners of shards may have handled without any living party's knowledge.
//!
//! ```text
//! a lease expires ───────────▶ in doubt ── the member reports ──────────────────▶ over: exactly what it handled
//! this coordinator is new ───▶    │ ─────── everything before its end is handled ─▶ over
//!                                 └ 10 min, or 5 s after the member's restart ────▶ unknowable
//! ```
//!
//! A record in doubt that its publisher no longer retains is neither lost nor handled, as far as is
//! known. The owner leaves it behind and counts it once the doubt is over; if it cannot be known,
//! under the reason `unknown`.
//!
//! **Invariant:** a former owner handled nothing beyond the end of its doubt.

use std::{collections::BTreeMap, time::Duration};

use sekiwake_record::{Kind, Name, SHARDS, Shard, Topic};

use super::{assignment::Incarnation, group::Member, positions::Positions, streams::StreamState};
use crate::{
    ADVERTISE_EVERY, BootTime, LEASE, LEASE_MARGIN, MAX_NUMBER, Stream,
    mutants::Mutants,
    time::nanos,
    wire::{self, MAX_DOUBT_ENDS, MAX_DOUBTS, Number, StreamPositions},
};

/// A former owner that has not returned after so long does not return.
const UNKNOWABLE_AFTER: Duration = Duration::from_secs(600);
/// The same, after a run with its label has begun later.
const UNKNOWABLE_AFTER_RESTART: Duration = Duration::from_secs(5);
/// How long what nobody can know is remembered, once everything known is handled or counted.
const KEEP_UNKNOWABLE: Duration = Duration::from_secs(60);
/// An advertisement was sent after the lease expired if it arrives so much later. One that was
/// under way for longer follows a silence.
const SETTLED_AFTER: Duration = Duration::from_secs(3);
/// A coordinator grants a shard again `LEASE + LEASE_MARGIN` after a lease began, at the earliest.
/// Publishers hear one that lives so long once more in the last `ADVERTISE_EVERY` before. One that
/// was last heard earlier did not grant the shard again.
const SURE_FOR: Duration = Duration::from_millis(2500);
const _: () = assert!(
    SURE_FOR.as_millis() + ADVERTISE_EVERY.as_millis() == LEASE.as_millis() + LEASE_MARGIN.as_millis(),
    "a coordinator is heard once more before it grants a shard again"
);
/// How often it is looked whether a doubt has ended.
const UPDATE_EVERY: Duration = Duration::from_millis(100);
/// The end of a doubt about a stream that has not advertised since.
const UNBOUNDED: u64 = MAX_NUMBER - 1;

/// The most streams whose ends one doubt has.
const MAX_ENDS: usize = 1024;

/// The doubts about one group.
pub(super) struct Doubts {
    /// The owners under coordinators before this one.
    past: Past,
    /// Members whose leases have expired; the oldest first.
    former: Vec<Doubt>,
    updated_at: BootTime,
    mutants: Mutants,
}

/// What this coordinator cannot know, because it is new to the group.
struct Past {
    doubt: Doubt,
    history: History,
    /// By shard: when the last lease began of a member that had it under another coordinator, and
    /// has reported what it had handled.
    claimed: [Option<BootTime>; SHARDS],
}

/// Whether the group existed before this coordinator.
#[derive(Clone, Copy, PartialEq, Eq)]
enum History {
    /// Not every party has been heard.
    Unheard,
    /// No party knows of it.
    New,
    /// A party knows of it.
    Inherited,
    /// It did, and nothing of it is in doubt.
    Over,
}

struct Doubt {
    /// 0 if nobody knows who it was.
    member: Incarnation,
    label: Option<Name>,
    /// One bit each.
    shards: u64,
    since: BootTime,
    /// No former owner acts from then on.
    over_at: BootTime,
    /// When it becomes unknowable.
    unknowable_at: BootTime,
    /// By stream, and by shard: only records before these are in doubt; 0 if none is.
    ends: BTreeMap<Stream, Box<[u64; SHARDS]>>,
}

impl Doubts {
    /// The doubts about a group that this coordinator has just met.
    pub(super) fn new(mutants: Mutants, now: BootTime) -> Doubts {
        let doubt = Doubt { over_at: now + LEASE + LEASE_MARGIN, ..Doubt::new(now, 0, None, u64::MAX) };
        let past = Past { doubt, history: History::Unheard, claimed: [None; SHARDS] };
        Doubts { past, former: Vec::new(), updated_at: BootTime::ZERO, mutants }
    }

    /// Whether there is any.
    pub(super) fn any(&self) -> bool {
        self.past.is_open() || !self.former.is_empty()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        1 + self.former.len()
    }

    /// A party knows of the group from another coordinator.
    pub(super) fn inherit(&mut self, now: BootTime) {
        if self.past.history != History::Over && now < self.past.doubt.unknowable_at {
            self.past.history = History::Inherited;
        }
    }

    /// A member loses shards, and may act on them until `over_at`. Since `heard_at` it is silent.
    pub(super) fn add(
        &mut self,
        now: BootTime,
        over_at: BootTime,
        shards: u64,
        incarnation: Incarnation,
        members: &BTreeMap<Incarnation, Member>,
    ) {
        let Some(member) = members.get(&incarnation).filter(|_| shards != 0) else { return };
        let heard_at = member.lease_until - (LEASE + LEASE_MARGIN);
        let mut doubt = Doubt { over_at, ..Doubt::new(now, incarnation, Some(member.label.clone()), shards) };
        let same = members.values().filter(|other| other.label == member.label);
        for began_at in same.filter_map(|other| other.began_at).filter(|&at| at > heard_at) {
            doubt.restart(began_at);
        }
        self.insert(now, doubt);
    }

    /// Takes the doubts of another coordinator about these shards, from their owner.
    pub(super) fn import(&mut self, now: BootTime, doubts: &[wire::Doubt], shards: u64) {
        for doubt in doubts.iter().map(|known| Doubt::import(now, known, shards)) {
            let is_same = |known: &&mut Doubt| known.member == doubt.member && known.label == doubt.label;
            match self.former.iter_mut().find(is_same) {
                Some(known) => known.merge(&doubt),
                None if doubt.shards != 0 => self.insert(now, doubt),
                None => {}
            }
        }
    }

    fn insert(&mut self, now: BootTime, doubt: Doubt) {
        // One place is the past's.
        if self.former.len() + 1 >= MAX_DOUBTS {
            let oldest = self.former.remove(0);
            let next = &mut self.former[0];
            next.merge(&oldest);
            (next.member, next.label, next.unknowable_at) = (0, None, now);
        }
        self.former.push(doubt);
    }

    /// A run with this label begins: the member before it does not return.
    pub(super) fn restart(&mut self, now: BootTime, label: &Name) {
        let same = self.former.iter_mut().filter(|doubt| doubt.label.as_ref() == Some(label));
        same.for_each(|doubt| doubt.restart(now));
    }

    /// A member has reported all that it has handled of these shards, and does not act on them.
    pub(super) fn close(&mut self, member: Incarnation, shards: u64) {
        let own = self.former.iter_mut().filter(|doubt| doubt.member == member);
        own.for_each(|doubt| doubt.shards &= !shards);
    }

    /// A member has reported all that it had handled of these shards when it met this coordinator.
    /// Its last lease before began at `leased_at`.
    pub(super) fn claim(&mut self, shards: u64, leased_at: BootTime) {
        for (shard, claimed) in self.past.claimed.iter_mut().enumerate() {
            if shards & (1 << shard) != 0 {
                *claimed = (*claimed).max(Some(leased_at));
            }
        }
    }

    /// Ends the doubts about records that are handled, or that no former owner can have handled.
    /// The coordinator before this one was last heard at `former_lived_at`: a shard whose lease ran
    /// then had no owner after that one.
    pub(super) fn update(
        &mut self,
        now: BootTime,
        kind: Kind,
        positions: &Positions,
        streams: &BTreeMap<Stream, StreamState>,
        former_lived_at: BootTime,
    ) {
        if now < self.updated_at + UPDATE_EVERY {
            return;
        }
        self.updated_at = now;
        let mut responsive = streams.values().filter(|state| state.is_responsive(now));
        let is_heard = now >= self.past.doubt.over_at && responsive.all(|state| state.has_presented);
        match self.past.history {
            History::Unheard if is_heard => self.past.history = History::New,
            History::Inherited if self.past.doubt.may_be_forgotten(now) => self.past.history = History::Over,
            _ => {}
        }
        let claimed = self.past.claimed;
        if self.past.is_open() {
            self.past.doubt.update(kind, positions, streams, |state, shard| {
                let was_last = |leased_at| leased_at + SURE_FOR >= former_lived_at;
                state.has_presented && claimed[shard.index()].is_some_and(was_last)
            });
        }
        for doubt in &mut self.former {
            doubt.update(kind, positions, streams, |_, _| false);
        }
        self.former.retain(|doubt| doubt.shards != 0 && !doubt.may_be_forgotten(now));
    }

    /// The doubts about shards, one bit each, for their owner.
    pub(super) fn of(&self, now: BootTime, kind: Kind, shards: u64) -> Vec<wire::Doubt> {
        if self.mutants.has_no_doubts() {
            return Vec::new();
        }
        let past = Some(&self.past.doubt).filter(|_| self.past.is_open());
        let mut room = MAX_DOUBT_ENDS;
        let doubts = self.former.iter().chain(past).filter(|doubt| doubt.shards & shards != 0);
        doubts.map(|doubt| doubt.encode(now, kind, shards, &mut room)).collect()
    }
}

impl Past {
    fn is_open(&self) -> bool {
        matches!(self.history, History::Unheard | History::Inherited)
    }
}

impl Doubt {
    fn new(since: BootTime, member: Incarnation, label: Option<Name>, shards: u64) -> Doubt {
        let unknowable_at = since + UNKNOWABLE_AFTER;
        Doubt { member, label, shards, since, over_at: since, unknowable_at, ends: BTreeMap::new() }
    }

    fn import(now: BootTime, known: &wire::Doubt, shards: u64) -> Doubt {
        let known_shards = known.topics.iter().fold(0, |shards, topic| shards | 1 << topic.shard.index());
        let since = now - Duration::from_nanos(known.age_ns);
        let mut doubt = Doubt::new(since, known.member, known.label.clone(), known_shards & shards);
        doubt.over_at = now;
        if known.is_unknowable {
            doubt.unknowable_at = now;
        }
        for StreamPositions { stream, positions } in &known.ends {
            let mut ends = Box::new([0; SHARDS]);
            positions.iter().for_each(|end| ends[end.topic.shard.index()] = end.sequence.0.min(UNBOUNDED));
            doubt.ends.insert(stream.clone(), ends);
        }
        doubt
    }

    /// Adds what another doubt is about.
    fn merge(&mut self, other: &Doubt) {
        for stream in other.ends.keys() {
            // Without an end, all of a stream is in doubt.
            if self.ends.len() < MAX_ENDS {
                self.ends.entry(stream.clone()).or_insert_with(|| Box::new([UNBOUNDED; SHARDS]));
            }
        }
        for (stream, ends) in &mut self.ends {
            for (shard, end) in ends.iter_mut().enumerate().filter(|(shard, _)| other.shards & (1 << shard) != 0) {
                let ours = if self.shards & (1 << shard) != 0 { *end } else { 0 };
                *end = ours.max(other.ends.get(stream).map_or(UNBOUNDED, |ends| ends[shard]));
            }
        }
        self.shards |= other.shards;
    }

    fn restart(&mut self, began_at: BootTime) {
        self.unknowable_at = self.unknowable_at.min(began_at.max(self.since) + UNKNOWABLE_AFTER_RESTART);
    }

    /// Whether it has long been unknowable, and everything known is handled or counted.
    fn may_be_forgotten(&self, now: BootTime) -> bool {
        let mut ends = self.ends.values().flat_map(|ends| ends.iter());
        now >= self.unknowable_at + KEEP_UNKNOWABLE && ends.all(|&end| end == 0)
    }

    fn update(
        &mut self,
        kind: Kind,
        positions: &Positions,
        streams: &BTreeMap<Stream, StreamState>,
        is_over: impl Fn(&StreamState, Shard) -> bool,
    ) {
        self.ends.retain(|stream, _| streams.contains_key(stream) || positions.contains(stream));
        for (stream, state) in streams {
            let settled_at = self.over_at.max(state.steady_since) + SETTLED_AFTER;
            let is_settled = state.ended || state.last_heard >= settled_at;
            let ends = self.ends.entry(stream.clone()).or_insert_with(|| Box::new([UNBOUNDED; SHARDS]));
            for topic in Topic::all().filter(|topic| topic.kind == kind) {
                let end = &mut ends[topic.shard.index()];
                if *end == UNBOUNDED && is_settled {
                    *end = state.next[topic.index()].min(UNBOUNDED - 1);
                }
                let is_handled = *end < UNBOUNDED && positions.has_handled(stream, topic.shard, *end);
                if self.shards & (1 << topic.shard.index()) == 0 || is_handled || is_over(state, topic.shard) {
                    *end = 0;
                }
            }
        }
    }

    fn encode(&self, now: BootTime, kind: Kind, shards: u64, room: &mut usize) -> wire::Doubt {
        let listed = |topic: &Topic| topic.kind == kind && self.shards & shards & (1 << topic.shard.index()) != 0;
        let topics: Vec<Topic> = Topic::all().filter(listed).collect();
        let mut ends = Vec::new();
        for (stream, of_stream) in &self.ends {
            let position = |&topic: &Topic| {
                let end = of_stream[topic.shard.index()];
                (end > 0).then_some(wire::Position { topic, sequence: Number(end) })
            };
            let positions: Vec<wire::Position> = topics.iter().filter_map(position).collect();
            let Some(left) = room.checked_sub(positions.len() + 8) else { break };
            *room = left;
            ends.push(StreamPositions { stream: stream.clone(), positions });
        }
        wire::Doubt {
            member: self.member,
            label: self.label.clone(),
            age_ns: nanos(now - self.since),
            is_unknowable: now >= self.unknowable_at,
            topics,
            ends,
        }
    }
}
