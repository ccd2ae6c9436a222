//! The coordinator, in the proxy: who owns what, where groups stand, whom a repair is passed to.
//!
//! ```text
//! start ── LEASE + LEASE_MARGIN ──▶ settled
//!   members present what they hold     grants what is free, moves what is uneven
//!   and keep it; nothing is granted
//! ```
//!
//! Its state is soft. What it forgets members and publishers say again: members with each renewal, publishers once a second.

mod assignment;
mod fuzz;
mod group;
mod streams;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};

use sekiwake_record::{Kind, Name};

pub use fuzz::fuzz;
use group::{Group, Member};
use streams::{Route, StreamState};

use crate::{
    LEASE, LEASE_MARGIN, Peer, SECOND, Stream,
    wire::{
        Advertise, Destination, Done, Grant, MAX_DESTINATIONS, MAX_MESSAGE_BYTES, MAX_STREAMS, Message, Notice, Number,
        Outcome, Position, RefusalReason, Refused, Register, Renew, Repair,
    },
};

/// The most groups.
const MAX_GROUPS: usize = 64;
/// The most members of one group: one for each shard, and as many to stand by.
const MAX_MEMBERS: usize = 128;
/// The most groups that one peer is a member of.
const MAX_MEMBERSHIPS: usize = 8;
/// How long destinations are still kept from being captured after their forwarder has gone: what is on its way.
const DESTINATIONS_LINGER: u64 = 10 * SECOND;

/// Settings of a [`Coordinator`].
#[derive(Clone, Debug)]
pub struct CoordinatorSettings {
    /// How long the positions of a group are kept after its last member left, ns.
    pub keep_positions: u64,
    /// A fault, to show that the simulation finds it.
    #[cfg(test)]
    pub(crate) mutant: Option<crate::simulation::Mutant>,
}

impl Default for CoordinatorSettings {
    fn default() -> CoordinatorSettings {
        CoordinatorSettings {
            keep_positions: 24 * 3600 * SECOND,
            #[cfg(test)]
            mutant: None,
        }
    }
}

/// What was refused, by reason. A refusal changes nothing for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Messages that are none, or too large, or not for a coordinator.
    pub malformed: u64,
    /// Joins: of another kind or protocol, too many of one peer, no room.
    pub joins: u64,
    /// Messages in the name of a member or stream that is another peer's.
    pub foreign: u64,
    /// Messages that a newer one has overtaken.
    pub stale: u64,
    /// Commits on shards of others, and beyond what a stream has announced.
    pub commits: u64,
    /// Requests over the peer's rate or of no member, answers that nobody asked for.
    pub repairs: u64,
    /// Streams over the number that is kept.
    pub streams: u64,
}

/// A member, as `/status` shows it.
#[derive(Clone, Debug)]
pub struct MemberView {
    /// Its random number.
    pub incarnation: u64,
    /// Its label.
    pub label: Name,
    /// Whether it is leaving.
    pub leaving: bool,
    /// Its shards and their generations.
    pub shards: Vec<(u8, u64)>,
}

/// A group, as `/status` shows it.
#[derive(Clone, Debug)]
pub struct GroupView {
    /// Its name.
    pub name: Name,
    /// What it works on.
    pub kind: Kind,
    /// Its members.
    pub members: Vec<MemberView>,
    /// Where it stands, by stream and shard, where that is known, and how many records are not committed yet.
    pub positions: Vec<(Stream, u8, u64, u64)>,
}

/// The machine of the proxy's control plane.
pub struct Coordinator {
    settings: CoordinatorSettings,
    epoch: u64,
    settled_at: u64,
    was_settled: bool,
    grants: u64,
    groups: BTreeMap<Name, Group>,
    streams: BTreeMap<Stream, StreamState>,
    routes: BTreeMap<Peer, Route>,
    list: Vec<Destination>,
    list_version: u64,
    lingering: VecDeque<(u64, Vec<Destination>)>,
    outputs: VecDeque<(Peer, Vec<u8>)>,
    refusals: Refusals,
}

impl Coordinator {
    /// A coordinator that knows nothing. `epoch` is random and not 0.
    pub fn new(settings: CoordinatorSettings, epoch: u64, now: u64) -> Coordinator {
        Coordinator {
            settings,
            epoch,
            settled_at: now + LEASE + LEASE_MARGIN,
            was_settled: false,
            grants: 0,
            groups: BTreeMap::new(),
            streams: BTreeMap::new(),
            routes: BTreeMap::new(),
            list: Vec::new(),
            list_version: 1,
            lingering: VecDeque::new(),
            outputs: VecDeque::new(),
            refusals: Refusals::default(),
        }
    }

    /// Takes a message from a peer.
    pub fn on_message(&mut self, now: u64, peer: &Peer, frame: &[u8]) {
        match Message::decode(frame) {
            Ok(Message::Renew(renew)) => self.on_renew(now, peer, &renew),
            Ok(Message::Register(register)) => self.on_register(now, peer, register),
            Ok(Message::Repair(repair)) => self.on_repair(now, peer, repair),
            Ok(Message::Advertise(advertise)) => self.on_advertise(now, peer, advertise),
            Ok(Message::Repaired(repaired)) => self.pass_on(peer, &repaired.stream, &repaired.requester, frame),
            Ok(Message::Done(done)) => self.pass_on(peer, &done.stream, &done.requester, frame),
            Ok(Message::Grant(_) | Message::Refused(_) | Message::Notice(_)) | Err(_) => self.refusals.malformed += 1,
        }
    }

    /// Does what is due.
    pub fn on_tick(&mut self, now: u64) {
        let settled = self.settled(now);
        let names: Vec<Name> = self.groups.keys().cloned().collect();
        for name in names {
            let Some(group) = self.groups.get_mut(&name) else { continue };
            let expired = group
                .members
                .iter()
                .filter(|(_, member)| member.lease_until <= now)
                .map(|(&incarnation, _)| incarnation);
            let expired: Vec<u64> = expired.collect();
            let refused = group.refuse_claims(now);
            self.refusals.commits += refused;
            let grants = group.next_grant().is_some_and(|at| now >= at);
            if refused > 0 || grants || !expired.is_empty() || !self.was_settled {
                expired.into_iter().for_each(|incarnation| self.remove(now, &name, incarnation));
                self.settle(now, &name);
            }
        }
        let keep = self.settings.keep_positions;
        self.groups.retain(|_, group| group.empty_since.is_none_or(|since| now < since + keep));
        while self.lingering.front().is_some_and(|(until, _)| *until <= now) {
            self.lingering.pop_front();
            self.relist();
        }
        if settled && !self.was_settled {
            self.was_settled = true;
            self.list_version += 1;
            self.notify_all();
        }
    }

    /// When [`Coordinator::on_tick`] has something to do.
    pub fn next_deadline(&self) -> u64 {
        let leases = self.groups.values().flat_map(|group| group.members.values().map(|member| member.lease_until));
        let claims = self.groups.values().filter_map(Group::claims_end);
        let grants = self.groups.values().filter_map(Group::next_grant).map(|at| at.max(self.settled_at));
        let empty = self
            .groups
            .values()
            .filter_map(|group| group.empty_since)
            .map(|since| since + self.settings.keep_positions);
        let settled = (!self.was_settled).then_some(self.settled_at);
        let lingering = self.lingering.front().map(|(until, _)| *until);
        leases.chain(claims).chain(grants).chain(empty).chain(settled).chain(lingering).min().unwrap_or(u64::MAX)
    }

    /// The next message, and whom it is for.
    pub fn poll_output(&mut self) -> Option<(Peer, Vec<u8>)> {
        self.outputs.pop_front()
    }

    /// What was refused.
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// Whether it grants: every lease of a coordinator before it has run out.
    pub fn settled(&self, now: u64) -> bool {
        now >= self.settled_at
    }

    /// The groups.
    pub fn groups(&self) -> Vec<GroupView> {
        let view = |(name, group): (&Name, &Group)| {
            let shards = |incarnation| {
                let held = group.shards.iter().enumerate().filter(move |(_, slot)| slot.holder == Some(incarnation));
                held.map(|(index, slot)| (index as u8, slot.generation)).collect()
            };
            let members = group.members.iter().map(|(&incarnation, member)| MemberView {
                incarnation,
                label: member.label.clone(),
                leaving: member.leaving,
                shards: shards(incarnation),
            });
            let positions = group.positions.iter().flat_map(|(stream, places)| {
                let state = self.streams.get(stream);
                places.iter().enumerate().filter(|(_, place)| **place != crate::UNKNOWN).map(move |(index, &place)| {
                    let next =
                        state.map_or(0, |state| state.next[group.kind.index() * sekiwake_record::SHARDS + index]);
                    (stream.clone(), index as u8, place, next.saturating_sub(place))
                })
            });
            GroupView {
                name: name.clone(),
                kind: group.kind,
                members: members.collect(),
                positions: positions.collect(),
            }
        };
        self.groups.iter().map(view).collect()
    }

    fn on_renew(&mut self, now: u64, peer: &Peer, renew: &Renew) {
        let settled = self.settled(now);
        if let Err(reason) = self.admit(now, peer, renew) {
            match reason {
                Some(reason) => {
                    self.refusals.joins += 1;
                    let (group, incarnation) = (renew.group.clone(), renew.incarnation);
                    self.send(peer, Refused { group, incarnation, reason });
                }
                None => self.refusals.foreign += 1,
            }
            return;
        }
        let Some(group) = self.groups.get_mut(&renew.group) else { return };
        let Some(member) = group.members.get_mut(&renew.incarnation) else { return };
        if renew.renewal <= member.renewal {
            self.refusals.stale += 1;
            return;
        }
        (member.renewal, member.lease_until, member.dirty) = (renew.renewal, now + LEASE + LEASE_MARGIN, true);
        let streams = &self.streams;
        let announced = |stream: &Stream, topic: sekiwake_record::Topic| Some(streams.get(stream)?.next[topic.index()]);
        self.refusals.commits += group.present(now, settled, renew, announced);
        for stream in group.claimed() {
            self.ask_to_advertise(now, &stream);
        }
        self.settle(now, &renew.group);
        let leaver = self.groups.get(&renew.group).filter(|_| renew.leaving);
        if leaver.is_some_and(|group| group.granted(renew.incarnation).0.is_empty()) {
            self.remove(now, &renew.group, renew.incarnation);
            self.settle(now, &renew.group);
        }
    }

    /// Makes the group and the member, where they are not known. The error is the reason to tell, or none for a message in
    /// another's name.
    fn admit(&mut self, now: u64, peer: &Peer, renew: &Renew) -> Result<(), Option<RefusalReason>> {
        if let Some(group) = self.groups.get(&renew.group) {
            if let Some(member) = group.members.get(&renew.incarnation) {
                return if member.peer == *peer { Ok(()) } else { Err(None) };
            }
            if group.kind != renew.kind {
                return Err(Some(RefusalReason::Kind));
            }
            if !group.speaks(renew.lowest_protocol, renew.highest_protocol) {
                return Err(Some(RefusalReason::Protocol));
            }
            if group.members.len() >= MAX_MEMBERS || group.members.values().any(|member| member.peer == *peer) {
                return Err(Some(RefusalReason::Full));
            }
        } else if self.groups.len() >= MAX_GROUPS {
            // A group whose members are gone makes room, the one that has been empty for longest first.
            let empty = self.groups.iter().filter_map(|(name, group)| Some((group.empty_since?, name.clone()))).min();
            let (_, name) = empty.ok_or(Some(RefusalReason::Full))?;
            self.groups.remove(&name);
        }
        if self.routes.get(peer).is_some_and(|route| route.memberships >= MAX_MEMBERSHIPS) {
            return Err(Some(RefusalReason::Full));
        }
        #[cfg(test)]
        let mutant = self.settings.mutant;
        let group = self.groups.entry(renew.group.clone()).or_insert_with(|| Group::new(renew.kind));
        #[cfg(test)]
        {
            group.mutant = mutant;
        }
        group.join(renew.incarnation, Member::new(peer.clone(), renew));
        self.routes.entry(peer.clone()).or_insert_with(|| Route::new(now)).memberships += 1;
        Ok(())
    }

    /// Removes a member; what it sends to lingers.
    fn remove(&mut self, now: u64, name: &Name, incarnation: u64) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(member) = group.members.get(&incarnation) else { return };
        let (peer, destinations, renewal) = (member.peer.clone(), member.destinations.clone(), member.renewal);
        let leaving = member.leaving;
        group.remove(now, incarnation);
        if group.members.is_empty() && group.positions.is_empty() {
            self.groups.remove(name);
        }
        if let Some(route) = self.routes.get_mut(&peer) {
            route.memberships -= 1;
            if route.memberships == 0 {
                self.routes.remove(&peer);
            }
        }
        if !destinations.is_empty() && self.lingering.len() < MAX_MEMBERS {
            self.lingering.push_back((now + DESTINATIONS_LINGER, destinations));
        }
        if leaving {
            self.grants += 1;
            let grant = Grant {
                group: name.clone(),
                incarnation,
                coordinator: self.epoch,
                number: self.grants,
                renewal,
                protocol: crate::wire::HIGHEST_PROTOCOL,
                registration: 0,
                assignments: Vec::new(),
                starts: Vec::new(),
            };
            self.send(&peer, grant);
        }
    }

    /// Does in a group what can be done, and tells those whom it concerns.
    fn settle(&mut self, now: u64, name: &Name) {
        let settled = self.settled(now);
        let Some(group) = self.groups.get_mut(name) else { return };
        group.settle(now, settled);
        let (mut grants, streams) = (Vec::new(), &self.streams);
        let listed =
            |version| streams.values().filter(|state| state.answers(now)).all(|state| state.list_version >= version);
        let protocol = group.protocol();
        let take_dirty =
            |(&incarnation, member): (&u64, &mut Member)| std::mem::take(&mut member.dirty).then_some(incarnation);
        let dirty: Vec<u64> = group.members.iter_mut().filter_map(take_dirty).collect();
        for incarnation in dirty {
            let (assignments, starts) = group.granted(incarnation);
            let member = &group.members[&incarnation];
            let acknowledged = member.listed_in > 0 && listed(member.listed_in);
            self.grants += 1;
            let grant = Grant {
                group: name.clone(),
                incarnation,
                coordinator: self.epoch,
                number: self.grants,
                renewal: member.renewal,
                protocol,
                registration: if acknowledged && settled { member.registration } else { 0 },
                assignments,
                starts,
            };
            grants.push((member.peer.clone(), grant));
        }
        grants.into_iter().for_each(|(peer, grant)| self.send(&peer, grant));
    }

    fn on_register(&mut self, now: u64, peer: &Peer, register: Register) {
        let group = self.groups.get_mut(&register.group);
        let member = group.and_then(|group| group.members.get_mut(&register.incarnation));
        let Some(member) =
            member.filter(|member| member.peer == *peer && register.destinations.len() <= MAX_DESTINATIONS)
        else {
            self.refusals.foreign += 1;
            return;
        };
        if register.registration <= member.registration {
            return;
        }
        member.registration = register.registration;
        let before = std::mem::replace(&mut member.destinations, register.destinations);
        if !before.is_empty() && self.lingering.len() < MAX_MEMBERS {
            self.lingering.push_back((now + DESTINATIONS_LINGER, before));
        }
        self.relist();
        let version = self.list_version;
        let group = self.groups.get_mut(&register.group);
        if let Some(member) = group.and_then(|group| group.members.get_mut(&register.incarnation)) {
            member.listed_in = version;
        }
    }

    /// Makes the list of destinations again, and tells publishers if it has changed.
    fn relist(&mut self) {
        let members =
            self.groups.values().flat_map(|group| group.members.values()).flat_map(|member| &member.destinations);
        let mut list: Vec<Destination> =
            members.chain(self.lingering.iter().flat_map(|(_, list)| list)).cloned().collect();
        list.sort();
        list.dedup();
        list.truncate(16 * MAX_DESTINATIONS);
        if list != self.list {
            (self.list, self.list_version) = (list, self.list_version + 1);
            self.notify_all();
        }
    }

    fn notify_all(&mut self) {
        let streams: Vec<Stream> =
            self.streams.iter().filter(|(_, state)| state.is_live()).map(|(stream, _)| stream.clone()).collect();
        let settled = self.was_settled;
        streams.iter().for_each(|stream| self.notify(stream, settled));
    }

    fn notify(&mut self, stream: &Stream, settled: bool) {
        let Some(state) = self.streams.get(stream) else { return };
        let has_list = state.list_version != self.list_version;
        let live = |kind: &&Kind| self.groups.values().any(|group| group.kind == **kind && group.empty_since.is_none());
        let live_kinds = Kind::ALL.iter().filter(live).fold(0, |mask, kind| mask | 1 << kind.index());
        let commits = if state.wants_commits { self.commits(stream, state) } else { Vec::new() };
        let notice = Notice {
            stream: stream.clone(),
            coordinator: self.epoch,
            number: state.number,
            settled,
            list_version: self.list_version,
            has_list,
            destinations: if has_list { self.list.clone() } else { Vec::new() },
            live_kinds,
            commits,
        };
        let peer = state.peer.clone();
        self.send(&peer, notice);
    }

    /// Where the slowest live group stands, by topic.
    fn commits(&self, stream: &Stream, state: &StreamState) -> Vec<Position> {
        let slowest = |topic: sekiwake_record::Topic| {
            let live = self.groups.values().filter(|group| group.kind == topic.kind && group.empty_since.is_none());
            live.map(|group| group.committed(stream, topic.shard).unwrap_or(0)).min()
        };
        let topics = sekiwake_record::Topic::all().filter(|topic| state.next[topic.index()] > 0);
        topics.filter_map(|topic| Some(Position { topic, sequence: Number(slowest(topic)?) })).collect()
    }

    fn on_advertise(&mut self, now: u64, peer: &Peer, advertise: Advertise) {
        let settled = self.settled(now);
        if let Some(state) = self.streams.get(&advertise.stream) {
            if state.peer != *peer && state.answers(now) {
                self.refusals.foreign += 1;
                return;
            }
            if state.peer == *peer && advertise.number <= state.number {
                self.refusals.stale += 1;
                return;
            }
        } else if !self.make_room_for_stream(now, peer) {
            self.refusals.streams += 1;
            return;
        }
        let state = self.streams.entry(advertise.stream.clone()).or_insert_with(|| StreamState::new(peer.clone()));
        state.update(now, peer, &advertise, self.epoch);
        let live = state.is_live();
        for group in self.groups.values_mut() {
            let next = &state.next;
            group.announced(&advertise.stream, |topic| next[topic.index()]);
            // The acknowledgement of a list may be what a member waits for.
            let waits = group.members.values_mut().filter(|member| member.listed_in > 0 && state.acknowledged_newly);
            waits.for_each(|member| member.dirty = true);
        }
        let names: Vec<Name> = self.groups.keys().cloned().collect();
        names.iter().for_each(|name| self.settle(now, name));
        if live {
            self.notify(&advertise.stream, settled);
        }
    }

    /// One peer may speak for few streams. Where there are too many in all, one that is long gone makes room.
    fn make_room_for_stream(&mut self, now: u64, peer: &Peer) -> bool {
        let of_peer = self.streams.values().filter(|state| state.peer == *peer).count();
        if of_peer >= MAX_MEMBERSHIPS {
            return false;
        }
        if self.streams.len() < MAX_STREAMS {
            return true;
        }
        let silent = self.streams.iter().filter(|(_, state)| !state.is_live() || now >= state.heard_at + 10 * SECOND);
        let Some(oldest) = silent.min_by_key(|(_, state)| state.heard_at).map(|(stream, _)| stream.clone()) else {
            return false;
        };
        self.streams.remove(&oldest);
        self.groups.values_mut().for_each(|group| drop(group.positions.remove(&oldest)));
        true
    }

    fn on_repair(&mut self, now: u64, peer: &Peer, repair: Repair) {
        let Some(route) = self.routes.get_mut(peer) else {
            self.refusals.repairs += 1;
            return;
        };
        if !route.ask(now, repair.max_bytes) {
            self.refusals.repairs += 1;
            return;
        }
        let settled = self.settled(now);
        let state = self.streams.get(&repair.stream);
        match state.filter(|state| state.answers(now)) {
            Some(state) => {
                let publisher = state.peer.clone();
                self.send(&publisher, Repair { requester: peer.clone(), ..repair });
            }
            None => {
                let outcome = if settled { Outcome::Gone } else { Outcome::Wait };
                let Repair { request, stream, .. } = repair;
                let requester = peer.clone();
                self.send(
                    peer,
                    Done { requester, request, stream, outcome, retained: Vec::new(), located: Vec::new() },
                );
            }
        }
    }

    /// Passes an answer on, as it is, to the member that asked.
    fn pass_on(&mut self, peer: &Peer, stream: &Stream, requester: &Peer, frame: &[u8]) {
        let theirs = self.streams.get(stream).is_some_and(|state| state.peer == *peer);
        let asked = self.routes.get_mut(requester).is_some_and(|route| theirs && route.answer(frame.len()));
        if asked {
            self.outputs.push_back((requester.clone(), frame.to_vec()));
        } else {
            self.refusals.repairs += 1;
        }
    }

    /// Asks a stream where it stands, not more often than it can answer.
    fn ask_to_advertise(&mut self, now: u64, stream: &Stream) {
        let settled = self.settled(now);
        if let Some(state) = self.streams.get_mut(stream)
            && state.may_ask(now)
        {
            // A notice whose number is not the newest asks for an advertisement.
            let number = std::mem::take(&mut state.number);
            self.notify(stream, settled);
            if let Some(state) = self.streams.get_mut(stream) {
                state.number = number;
            }
        }
    }

    fn send(&mut self, peer: &Peer, message: impl Into<Message>) {
        let frame = message.into().encode();
        debug_assert!(frame.len() <= MAX_MESSAGE_BYTES, "all lists are bounded");
        self.outputs.push_back((peer.clone(), frame));
    }
}
