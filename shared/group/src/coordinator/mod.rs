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
#[cfg(test)]
mod one_works;
mod streams;
#[cfg(test)]
mod tests;
mod view;

use std::collections::{BTreeMap, VecDeque};

use sekiwake_record::{Kind, Name, Topic};

pub use fuzz::fuzz;
use group::{Announced, CLAIM_WAITS, Group, Member};
use streams::{Route, StreamState};
pub use view::{CoordinatorView, GroupView, MemberView, PositionView, ShardState, ShardView, StreamView};

use crate::{
    LEASE, LEASE_MARGIN, MILLISECOND, Peer, SECOND, Stream,
    wire::{
        Advertise, Answer, Destination, Done, Grant, MAX_DESTINATIONS, MAX_MESSAGE_BYTES, MAX_STREAMS, Message, Notice,
        Number, Outcome, Position, RefusalReason, Refused, Register, Renew, Repair,
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
/// The most destinations in the list for publishers. A registration that would make it longer is refused: what is not in the list
/// must not be taken for listed.
const MAX_LISTED: usize = 16 * MAX_DESTINATIONS;
/// The most former lists of one peer that linger, and the most in all.
const MAX_LINGERING_OF_PEER: usize = 2;
const MAX_LINGERING: usize = 256;
/// The least time between two lists: each goes to every publisher.
const RELIST_SOONEST: u64 = 100 * MILLISECOND;
/// How often streams that are over are looked for.
const SWEEP_EVERY: u64 = 60 * SECOND;
/// How long a stream is known after its publisher was last heard of, when every group has all of it. One of which something is left
/// is kept as long as positions are, so that the loss is counted when a member takes the shard.
const KEEP_DONE_STREAMS: u64 = 600 * SECOND;

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
    /// Shards held in a generation that nobody can have granted.
    pub holdings: u64,
    /// Commits on shards of others, and beyond what a stream has announced.
    pub commits: u64,
    /// Commits in streams that nobody speaks for: of publishers that were gone before this coordinator began. No fault.
    pub unknown_streams: u64,
    /// Destinations for which there is no room in the list.
    pub destinations: u64,
    /// Requests over the peer's rate or of no member, answers that nobody asked for.
    pub repairs: u64,
    /// Streams over the number that is kept.
    pub streams: u64,
    /// Advertisements in which a topic's oldest record comes after its next.
    pub advertisements: u64,
}

impl Refusals {
    /// The sums with their names, as metrics have them.
    pub fn by_reason(&self) -> [(&'static str, u64); 11] {
        [
            ("malformed", self.malformed),
            ("joins", self.joins),
            ("foreign", self.foreign),
            ("stale", self.stale),
            ("holdings", self.holdings),
            ("commits", self.commits),
            ("unknown_streams", self.unknown_streams),
            ("destinations", self.destinations),
            ("repairs", self.repairs),
            ("streams", self.streams),
            ("advertisements", self.advertisements),
        ]
    }
}

/// Destinations that are kept in the list after their member has gone or changed them.
struct Lingering {
    until: u64,
    peer: Peer,
    destinations: Vec<Destination>,
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
    lingering: VecDeque<Lingering>,
    relisted_at: Option<u64>,
    relist_at: Option<u64>,
    /// Destinations that were registered since the list was made.
    unlisted: usize,
    sweep_at: u64,
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
            relisted_at: None,
            relist_at: None,
            unlisted: 0,
            sweep_at: now + SWEEP_EVERY,
            outputs: VecDeque::new(),
            refusals: Refusals::default(),
        }
    }

    /// Takes a message from a peer.
    pub fn on_message(&mut self, now: u64, peer: &Peer, frame: &[u8]) {
        match Answer::peek(frame) {
            Ok(None) => {}
            Ok(Some(answer)) => return self.pass_on(peer, &answer, frame),
            Err(_) => return self.refusals.malformed += 1,
        }
        match Message::decode(frame) {
            Ok(Message::Renew(renew)) => self.on_renew(now, peer, &renew),
            Ok(Message::Register(register)) => self.on_register(now, peer, register),
            Ok(Message::Repair(repair)) => self.on_repair(now, peer, repair),
            Ok(Message::Advertise(advertise)) => self.on_advertise(now, peer, &advertise),
            _ => self.refusals.malformed += 1,
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
        while self.lingering.front().is_some_and(|lingering| lingering.until <= now) {
            self.lingering.pop_front();
            self.relist_soon(now);
        }
        if self.relist_at.is_some_and(|at| now >= at) {
            self.relist(now);
        }
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            self.forget_streams(now);
        }
        if settled && !self.was_settled {
            self.was_settled = true;
            // What is registered and waits for its turn belongs into the list that is the first to be complete.
            self.relist(now);
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
        let lingering = self.lingering.front().map(|lingering| lingering.until);
        let once = settled.into_iter().chain(lingering).chain(self.relist_at);
        leases.chain(claims).chain(grants).chain(empty).chain(once).min().unwrap_or(u64::MAX).min(self.sweep_at)
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
        let (streams, awaited) = (&self.streams, now < self.settled_at + CLAIM_WAITS);
        let announced = |stream: &Stream, topic: Topic| match streams.get(stream) {
            Some(state) => Announced::Next(state.next[topic.index()]),
            None if awaited => Announced::Awaited,
            None => Announced::Unknown,
        };
        let refused = group.present(now, settled, renew, announced);
        self.refusals.holdings += refused.holdings;
        self.refusals.commits += refused.commits;
        self.refusals.unknown_streams += refused.unknown;
        for stream in group.claimed() {
            self.ask_to_advertise(now, &stream);
        }
        self.settle(now, &renew.group);
        let leaver = self.groups.get(&renew.group).filter(|_| renew.leaving);
        if leaver.is_some_and(|group| group.grants_nothing(renew.incarnation)) {
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
        let (leaving, heard_registration, protocol) = (member.leaving, member.registration, member.protocols.1);
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
        self.linger(now, &peer, destinations);
        if leaving {
            self.grants += 1;
            let grant = Grant {
                group: name.clone(),
                incarnation,
                coordinator: self.epoch,
                number: self.grants,
                renewal,
                protocol,
                registration: 0,
                assignments: Vec::new(),
                starts: Vec::new(),
                heard_registration,
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
        let protocol = group.protocol().unwrap_or_default();
        let take_dirty =
            |(&incarnation, member): (&u64, &mut Member)| std::mem::take(&mut member.dirty).then_some(incarnation);
        let dirty: Vec<u64> = group.members.iter_mut().filter_map(take_dirty).collect();
        let next = |stream: &Stream, topic: Topic| streams.get(stream).map_or(0, |state| state.next[topic.index()]);
        for incarnation in dirty {
            let (assignments, starts) = group.granted(incarnation, next);
            let Some(member) = group.members.get_mut(&incarnation) else { continue };
            let acknowledged = settled && member.listed_in > 0 && listed(member.listed_in);
            let registration = if acknowledged { member.registration } else { 0 };
            member.told = member.told.max(registration);
            self.grants += 1;
            let grant = Grant {
                group: name.clone(),
                incarnation,
                coordinator: self.epoch,
                number: self.grants,
                renewal: member.renewal,
                protocol,
                registration,
                assignments,
                starts,
                heard_registration: member.registration,
            };
            grants.push((member.peer.clone(), grant));
        }
        grants.into_iter().for_each(|(peer, grant)| self.send(&peer, grant));
    }

    fn on_register(&mut self, now: u64, peer: &Peer, register: Register) {
        let group = self.groups.get_mut(&register.group);
        let member = group.and_then(|group| group.members.get_mut(&register.incarnation));
        let Some(member) = member.filter(|member| member.peer == *peer) else {
            self.refusals.foreign += 1;
            return;
        };
        if register.registration <= member.registration {
            return;
        }
        let new =
            register.destinations.iter().filter(|destination| self.list.binary_search(destination).is_err()).count();
        if register.destinations.len() > MAX_DESTINATIONS || self.list.len() + self.unlisted + new > MAX_LISTED {
            self.refusals.destinations += register.destinations.len() as u64;
            return;
        }
        self.unlisted += new;
        (member.registration, member.listed_in) = (register.registration, 0);
        let before = std::mem::replace(&mut member.destinations, register.destinations);
        self.linger(now, peer, before);
        self.relist_soon(now);
    }

    /// Keeps destinations in the list for a while. A peer that changes its own in haste only shortens that for itself.
    fn linger(&mut self, now: u64, peer: &Peer, destinations: Vec<Destination>) {
        if destinations.is_empty() {
            return;
        }
        let of_peer = self.lingering.iter().filter(|lingering| lingering.peer == *peer).count();
        let too_many = if of_peer >= MAX_LINGERING_OF_PEER {
            self.lingering.iter().position(|lingering| lingering.peer == *peer)
        } else {
            (self.lingering.len() >= MAX_LINGERING).then_some(0)
        };
        too_many.map(|index| self.lingering.remove(index));
        self.lingering.push_back(Lingering { until: now + DESTINATIONS_LINGER, peer: peer.clone(), destinations });
    }

    /// Makes the list now, or when the last one is old enough.
    fn relist_soon(&mut self, now: u64) {
        match self.relisted_at.map(|at| at + RELIST_SOONEST) {
            Some(at) if now < at => drop(self.relist_at.get_or_insert(at)),
            _ => self.relist(now),
        }
    }

    /// Makes the list of destinations again, and tells publishers if it has changed.
    fn relist(&mut self, now: u64) {
        (self.relisted_at, self.relist_at, self.unlisted) = (Some(now), None, 0);
        let members = self.groups.values().flat_map(|group| group.members.values());
        let lingering = self.lingering.iter().flat_map(|lingering| &lingering.destinations);
        let mut list: Vec<Destination> =
            members.flat_map(|member| &member.destinations).chain(lingering).cloned().collect();
        list.sort();
        list.dedup();
        if list != self.list {
            (self.list, self.list_version) = (list, self.list_version + 1);
            self.notify_all();
        }
        let version = self.list_version;
        let members = self.groups.values_mut().flat_map(|group| group.members.values_mut());
        for member in members.filter(|member| member.registration > 0 && member.listed_in == 0) {
            // Where publishers have all of it already, there is nothing to wait for.
            (member.listed_in, member.dirty) = (version, true);
        }
        let names: Vec<Name> = self.groups.keys().cloned().collect();
        names.iter().for_each(|name| self.settle(now, name));
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
        let slowest = |topic: Topic| {
            let live = self.groups.values().filter(|group| group.kind == topic.kind && group.empty_since.is_none());
            live.map(|group| group.committed(stream, topic.shard).unwrap_or(0)).min()
        };
        let topics = Topic::all().filter(|topic| state.next[topic.index()] > 0);
        topics.filter_map(|topic| Some(Position { topic, sequence: Number(slowest(topic)?) })).collect()
    }

    fn on_advertise(&mut self, now: u64, peer: &Peer, advertise: &Advertise) {
        if advertise.extents.iter().any(|extent| extent.oldest > extent.next) {
            self.refusals.advertisements += 1;
            return;
        }
        let settled = self.settled(now);
        if let Some(state) = self.streams.get(&advertise.stream) {
            // A publisher keeps its routing id for all its life, so nobody else can have come to speak for it.
            if state.peer != *peer {
                self.refusals.foreign += 1;
                return;
            }
            if advertise.number <= state.number {
                self.refusals.stale += 1;
                return;
            }
        } else if !self.make_room_for_stream(now, peer) {
            self.refusals.streams += 1;
            return;
        }
        let state = self.streams.entry(advertise.stream.clone()).or_insert_with(|| StreamState::new(peer.clone()));
        state.update(now, advertise, self.epoch);
        let (live, acknowledged_newly) = (state.is_live(), state.acknowledged_newly);
        for group in self.groups.values_mut() {
            let next = &state.next;
            group.announced(&advertise.stream, |topic| next[topic.index()]);
        }
        if acknowledged_newly {
            self.mark_acknowledged(now);
        }
        let names: Vec<Name> = self.groups.keys().cloned().collect();
        names.iter().for_each(|name| self.settle(now, name));
        if live {
            self.notify(&advertise.stream, settled);
        }
    }

    /// Has those told whose destinations every publisher knows now.
    fn mark_acknowledged(&mut self, now: u64) {
        let answering = self.streams.values().filter(|state| state.answers(now));
        let everywhere = answering.map(|state| state.list_version).min().unwrap_or(self.list_version);
        for member in self.groups.values_mut().flat_map(|group| group.members.values_mut()) {
            let listed = (1..=everywhere).contains(&member.listed_in);
            member.dirty |= listed && member.told < member.registration;
        }
    }

    /// Forgets streams that are over, and where groups stood in them.
    fn forget_streams(&mut self, now: u64) {
        let is_done = |stream: &Stream, state: &StreamState| {
            self.groups.values().filter(|group| group.positions.contains_key(stream)).all(|group| {
                let mut topics = Topic::all().filter(|topic| topic.kind == group.kind);
                topics.all(|topic| {
                    let committed = group.committed(stream, topic.shard);
                    committed.is_none_or(|committed| committed >= state.next[topic.index()])
                })
            })
        };
        let keep = |stream: &Stream, state: &StreamState| {
            let limit = if is_done(stream, state) { KEEP_DONE_STREAMS } else { self.settings.keep_positions };
            now < state.heard_at.saturating_add(limit)
        };
        let over: Vec<Stream> = self
            .streams
            .iter()
            .filter(|(stream, state)| !state.answers(now) && !keep(stream, state))
            .map(|(stream, _)| stream.clone())
            .collect();
        over.iter().for_each(|stream| self.forget_stream(stream));
    }

    fn forget_stream(&mut self, stream: &Stream) {
        self.streams.remove(stream);
        self.groups.values_mut().for_each(|group| drop(group.positions.remove(stream)));
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
        self.forget_stream(&oldest);
        true
    }

    fn on_repair(&mut self, now: u64, peer: &Peer, repair: Repair) {
        let Some(route) = self.routes.get_mut(peer) else {
            self.refusals.repairs += 1;
            return;
        };
        if !route.may_ask(now) {
            self.refusals.repairs += 1;
            return;
        }
        let settled = self.settled_at <= now;
        match self.streams.get(&repair.stream).filter(|state| state.answers(now)) {
            Some(state) => {
                route.ask(now, &repair.stream, repair.request, repair.max_bytes);
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
    fn pass_on(&mut self, peer: &Peer, answer: &Answer, frame: &[u8]) {
        let theirs = self.streams.get(&answer.stream).is_some_and(|state| state.peer == *peer);
        let route = self.routes.get_mut(&answer.requester).filter(|_| theirs);
        if route.is_some_and(|route| route.answer(answer, frame.len())) {
            self.outputs.push_back((answer.requester.clone(), frame.to_vec()));
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
