//! Streams and their publishers, as the coordinator knows them.

use std::{collections::BTreeMap, net::Ipv6Addr, time::Duration};

use sekiwake_record::{Kind, Name, Topic};

use super::{Coordinator, MAX_MEMBERSHIPS, group::Group};
use crate::{
    BootTime, PUBLISHER_SILENT_AFTER, Peer, Stream,
    coverage::Coverage,
    wire::{Advertise, MAX_GROUPS, MAX_STREAMS, Notice, Number, Position},
};

/// How long a silent stream is kept when every group has all of it. A stream with uncommitted
/// records is kept as long as positions, so that the member that gets the shard counts the loss.
pub(super) const KEEP_COMPLETE_STREAMS: Duration = Duration::from_secs(600);
/// How long a stream has to be silent before it makes room for another.
const REPLACE_SILENT_STREAMS: Duration = Duration::from_secs(10);

/// A stream, as its publisher advertises it.
#[derive(Debug)]
pub(super) struct StreamState {
    pub(super) peer: Peer,
    pub(super) last_heard: BootTime,
    /// Since when it was never silent for long.
    pub(super) steady_since: BootTime,
    /// It has advertised since it knows this coordinator, and so has presented what it remembers.
    pub(super) has_presented: bool,
    /// The number of the newest advertisement.
    pub(super) number: u64,
    pub(super) ended: bool,
    pub(super) wants_commits: bool,
    /// The version of this coordinator's list of destinations that the publisher has; 0 for none.
    pub(super) list_version: u64,
    /// By topic: the oldest record that is retained.
    pub(super) oldest: Box<[u64]>,
    /// By topic: the next sequence number.
    pub(super) next: Box<[u64]>,
    /// Datagrams to addresses of clients that its publisher has left alone.
    pub(super) left_alone: BTreeMap<(Ipv6Addr, u16), u64>,
}

impl StreamState {
    fn new(peer: Peer) -> StreamState {
        StreamState {
            peer,
            last_heard: BootTime::ZERO,
            steady_since: BootTime::ZERO,
            has_presented: false,
            number: 0,
            ended: false,
            wants_commits: false,
            list_version: 0,
            oldest: vec![0; Topic::COUNT].into_boxed_slice(),
            next: vec![0; Topic::COUNT].into_boxed_slice(),
            left_alone: BTreeMap::new(),
        }
    }

    /// Takes an advertisement with valid extents. Returns whether the publisher has
    /// acknowledged another list.
    fn update(&mut self, now: BootTime, advertise: &Advertise, coordinator: u64) -> bool {
        if self.number == 0 || now >= self.last_heard + PUBLISHER_SILENT_AFTER {
            self.steady_since = now;
        }
        self.last_heard = now;
        self.has_presented |= advertise.coordinator == coordinator;
        self.number = advertise.number;
        self.ended = advertise.ended;
        self.wants_commits = advertise.wants_commits;
        for extent in &advertise.extents {
            let topic = extent.topic.index();
            self.next[topic] = extent.next.0.max(self.next[topic]);
            self.oldest[topic] = extent.oldest.0.max(self.oldest[topic]);
        }
        let before = self.list_version;
        self.list_version = if advertise.coordinator == coordinator { advertise.list_version } else { 0 };
        self.list_version != before
    }

    /// Whether it has not ended and was heard lately: requests are passed on to its publisher.
    pub(super) fn is_responsive(&self, now: BootTime) -> bool {
        !self.ended && now < self.last_heard + PUBLISHER_SILENT_AFTER
    }
}

impl Coordinator {
    pub(super) fn on_advertise(&mut self, now: BootTime, peer: &Peer, advertise: &Advertise) {
        if advertise.extents.iter().any(|extent| extent.oldest > extent.next) {
            self.rejections.advertisements += 1;
            return;
        }
        if let Some(state) = self.streams.get(&advertise.stream) {
            // A publisher keeps its routing id for its lifetime, so any other peer is an impostor.
            if state.peer != *peer {
                self.rejections.foreign += 1;
                return;
            }
            if advertise.number <= state.number {
                self.rejections.stale += 1;
                return;
            }
        } else if !self.make_room_for_stream(now, peer) {
            self.rejections.streams += 1;
            return;
        }
        let state = self.streams.entry(advertise.stream.clone()).or_insert_with(|| StreamState::new(peer.clone()));
        if advertise.coordinator == self.epoch && !state.has_presented && advertise.former_age_ns > 0 {
            self.former_lived_at = self.former_lived_at.max(now - Duration::from_nanos(advertise.former_age_ns));
        }
        let has_acknowledged = state.update(now, advertise, self.epoch);
        self.take_presented(now, advertise);
        self.take_left_alone(&advertise.stream, advertise);
        if has_acknowledged {
            self.mark_acknowledged(now);
        }
        let names: Vec<Name> = self.groups.keys().cloned().collect();
        names.iter().for_each(|name| self.reassign(now, name));
        if !advertise.ended {
            self.notify(now, &advertise.stream, advertise.number, self.grace_period_over(now));
        }
    }

    /// The streams whose publishers answer requests.
    pub(crate) fn live_streams(&self, now: BootTime) -> Vec<Stream> {
        let live = self.streams.iter().filter(|(_, state)| state.is_responsive(now));
        live.map(|(stream, _)| stream.clone()).collect()
    }

    /// The publisher of a stream, if it answers requests.
    pub(crate) fn live_publisher(&self, now: BootTime, stream: &Stream) -> Option<Peer> {
        let state = self.streams.get(stream)?;
        state.is_responsive(now).then(|| state.peer.clone())
    }

    /// Takes what the publisher remembers of groups.
    fn take_presented(&mut self, now: BootTime, advertise: &Advertise) {
        for known in &advertise.groups {
            if !self.groups.contains_key(&known.group) {
                let first = known.covered.first().filter(|_| self.groups.len() < MAX_GROUPS);
                let Some(first) = first else {
                    self.rejections.commits += known.covered.len() as u64;
                    continue;
                };
                let group = Group::new(first.topic.kind, self.settings.mutants, now);
                self.groups.insert(known.group.clone(), group);
            }
            if let Some(group) = self.groups.get_mut(&known.group) {
                self.rejections.commits += group.on_presented(now, &advertise.stream, known);
            }
        }
    }

    /// Sends a notice to every publisher.
    pub(super) fn notify_all(&mut self, now: BootTime) {
        let live = self.streams.iter().filter(|(_, state)| !state.ended);
        let live: Vec<(Stream, u64)> = live.map(|(stream, state)| (stream.clone(), state.number)).collect();
        let is_granting = self.is_granting;
        live.iter().for_each(|(stream, number)| self.notify(now, stream, *number, is_granting));
    }

    /// Sends a notice to a publisher that answers its advertisement with this number.
    fn notify(&mut self, now: BootTime, stream: &Stream, number: u64, complete: bool) {
        let Some(state) = self.streams.get(stream) else { return };
        let has_list = state.list_version != self.list.version();
        let is_live =
            |kind: &&Kind| self.groups.values().any(|group| group.kind == **kind && group.empty_since.is_none());
        let live_kinds = Kind::ALL.iter().filter(is_live).fold(0, |mask, kind| mask | 1 << kind.index());
        let notice = Notice {
            stream: stream.clone(),
            coordinator: self.epoch,
            number,
            complete,
            list_version: self.list.version(),
            has_list,
            destinations: if has_list { self.list.entries().to_vec() } else { Vec::new() },
            live_kinds,
            commits: if state.wants_commits { self.slowest_commits(stream, state) } else { Vec::new() },
            groups: self.groups.iter().map(|(name, group)| group.coverage_of(now, name, stream)).collect(),
            counted: if has_list { self.list.counted().to_vec() } else { Vec::new() },
        };
        let peer = state.peer.clone();
        self.send(&peer, notice);
    }

    /// The commits of the slowest live group, by topic.
    fn slowest_commits(&self, stream: &Stream, state: &StreamState) -> Vec<Position> {
        let slowest = |topic: Topic| {
            let live = self.groups.values().filter(|group| group.kind == topic.kind && group.empty_since.is_none());
            // What is no longer retained need not be waited for.
            let oldest = state.oldest[topic.index()];
            let commit = |covered: &Coverage| covered.handled_from(oldest);
            live.map(|group| group.positions.covered(stream, topic.shard).map_or(0, commit)).min()
        };
        let topics = Topic::all().filter(|topic| state.next[topic.index()] > 0);
        topics.filter_map(|topic| Some(Position { topic, sequence: Number(slowest(topic)?) })).collect()
    }

    /// Forgets streams that have ended or have long been silent, and the positions in them.
    pub(super) fn forget_streams(&mut self, now: BootTime) {
        let is_expired = |stream: &Stream, state: &StreamState| {
            let keep =
                if self.is_complete(stream, state) { KEEP_COMPLETE_STREAMS } else { self.settings.keep_positions };
            !state.is_responsive(now) && now >= state.last_heard + keep
        };
        let expired = self.streams.iter().filter(|(stream, state)| is_expired(stream, state));
        let expired: Vec<Stream> = expired.map(|(stream, _)| stream.clone()).collect();
        expired.iter().for_each(|stream| self.forget_stream(stream));
        let (streams, keep) = (&self.streams, self.settings.keep_positions);
        for group in self.groups.values_mut() {
            group.positions.forget_old(now, keep, |stream| streams.contains_key(stream));
        }
    }

    /// Whether every group that has a position in the stream has handled all of it.
    fn is_complete(&self, stream: &Stream, state: &StreamState) -> bool {
        self.groups.values().filter(|group| group.positions.contains(stream)).all(|group| {
            Topic::all().filter(|topic| topic.kind == group.kind).all(|topic| {
                let covered = group.positions.covered(stream, topic.shard);
                covered.is_none_or(|covered| {
                    covered.gaps().next().is_none() && covered.end() >= Some(state.next[topic.index()])
                })
            })
        })
    }

    fn forget_stream(&mut self, stream: &Stream) {
        self.streams.remove(stream);
        self.groups.values_mut().for_each(|group| group.positions.forget(stream));
    }

    /// Makes room for another stream of a peer, within the peer's limit. When there are too many in
    /// all, the one that has been silent for longest makes room.
    fn make_room_for_stream(&mut self, now: BootTime, peer: &Peer) -> bool {
        let streams_of_peer = self.streams.values().filter(|state| state.peer == *peer).count();
        if streams_of_peer >= MAX_MEMBERSHIPS {
            return false;
        }
        if self.streams.len() < MAX_STREAMS {
            return true;
        }
        let is_silent = |state: &StreamState| state.ended || now >= state.last_heard + REPLACE_SILENT_STREAMS;
        let silent = self.streams.iter().filter(|(_, state)| is_silent(state));
        let Some(oldest) = silent.min_by_key(|(_, state)| state.last_heard).map(|(stream, _)| stream.clone()) else {
            return false;
        };
        self.forget_stream(&oldest);
        true
    }
}
