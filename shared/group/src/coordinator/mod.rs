//! The coordinator, in the proxy: which member owns which shard, the positions of groups, which
//! publisher a request for repair goes to, and which destinations captures leave alone.
//!
//! ```text
//! start ── LEASE + LEASE_MARGIN: the grace period ──▶ granting
//!   members report their shards and keep them           free shards are granted, uneven ones move
//!   nothing is granted
//! ```
//!
//! Its state is soft: members report theirs with each renewal and publishers once a second, so a
//! new coordinator learns all of it within the grace period. By then every lease that the last
//! coordinator granted has expired.
//!
//! The shell calls four types of methods:
//!
//! - [`Coordinator::on_message`] is the only input: a message of a member, a publisher or a
//!   client without a group.
//! - [`Coordinator::on_tick`] performs the actions that are due.
//! - [`Coordinator::next_deadline`] says when to call `on_tick` next. It may change with every
//!   other call.
//! - [`Coordinator::poll_output`] returns one message after another, each with its receiver. Poll
//!   it after every input and tick, until it returns `None`. So does [`Coordinator::poll_event`]
//!   with what the log should say of members.

mod agreement;
mod api;
mod assignment;
mod clients;
mod destination_list;
mod doubts;
mod events;
mod fuzz;
mod group;
mod positions;
mod routes;
#[cfg(test)]
mod single_active;
mod streams;
#[cfg(test)]
mod tests;
mod view;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use sekiwake_record::{Name, Topic};

pub use self::{
    agreement::{Agreement, REPORT_DIFFERENCE_AFTER},
    api::{CoordinatorSettings, Rejections},
    clients::ClientView,
    events::{CoordinatorEvent, LeaseExpired, Taker},
    fuzz::fuzz,
    view::{CoordinatorView, Difference, GroupView, MemberView, PositionView, ShardState, ShardView, StreamView},
};
use self::{
    clients::Clients,
    destination_list::DestinationList,
    group::{Granted, Group, Member},
    routes::Route,
    streams::StreamState,
};
use crate::{
    BootTime, LEASE, LEASE_MARGIN, Peer, Stream,
    wire::{Answer, Grant, MAX_GROUPS, MAX_MESSAGE_BYTES, Message, Rejected, RejectionReason, Renew},
};
pub use assignment::{assign_all, assign_evenly};

/// The most members of one group: one per shard, and as many standing by.
const MAX_MEMBERS: usize = 128;
/// Maximum number of groups that one peer is a member of, and of streams that it publishes.
const MAX_MEMBERSHIPS: usize = 8;
/// How often ended and silent streams are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// The machine of the proxy's control plane.
pub struct Coordinator {
    settings: CoordinatorSettings,
    epoch: u64,
    /// The end of the grace period.
    grants_from: BootTime,
    /// The end of the grace period was handled.
    is_granting: bool,
    /// The last sign of life of the coordinator before this one, as far as is known.
    former_lived_at: BootTime,
    /// Counts grants.
    grants: u64,
    groups: BTreeMap<Name, Group>,
    streams: BTreeMap<Stream, StreamState>,
    routes: BTreeMap<Peer, Route>,
    list: DestinationList,
    clients: Clients,
    sweep_at: BootTime,
    outputs: VecDeque<(Peer, Vec<u8>)>,
    events: VecDeque<CoordinatorEvent>,
    rejections: Rejections,
}

/// Why a renewal is not admitted.
enum NotAdmitted {
    /// The member gets the reason.
    Rejected(RejectionReason),
    /// It comes from another peer than the member's, which gets no answer.
    Foreign,
}

impl From<RejectionReason> for NotAdmitted {
    fn from(reason: RejectionReason) -> NotAdmitted {
        NotAdmitted::Rejected(reason)
    }
}

impl Coordinator {
    /// A coordinator that knows nothing. `epoch` is random and not 0.
    pub fn new(settings: CoordinatorSettings, epoch: u64, now: BootTime) -> Coordinator {
        Coordinator {
            settings,
            epoch,
            grants_from: now + LEASE + LEASE_MARGIN,
            is_granting: false,
            former_lived_at: BootTime::ZERO,
            grants: 0,
            groups: BTreeMap::new(),
            streams: BTreeMap::new(),
            routes: BTreeMap::new(),
            list: DestinationList::new(),
            clients: Clients::default(),
            sweep_at: now + SWEEP_EVERY,
            outputs: VecDeque::new(),
            events: VecDeque::new(),
            rejections: Rejections::default(),
        }
    }

    /// Takes a message from a peer.
    pub fn on_message(&mut self, now: BootTime, peer: &Peer, frame: &[u8]) {
        match Answer::peek(frame) {
            Ok(None) => {}
            Ok(Some(answer)) => return self.pass_on(peer, &answer, frame),
            Err(_) => return self.rejections.malformed += 1,
        }
        match Message::decode(frame) {
            Ok(Message::Renew(renew)) => self.on_renew(now, peer, &renew),
            Ok(Message::Register(register)) => self.on_register(now, peer, register),
            Ok(Message::Repair(repair)) => self.on_repair(now, peer, repair),
            Ok(Message::RegisterClient(register)) => self.on_register_client(now, peer, register),
            Ok(Message::Advertise(advertise)) => self.on_advertise(now, peer, &advertise),
            _ => self.rejections.malformed += 1,
        }
    }

    /// Performs the actions that are due.
    pub fn on_tick(&mut self, now: BootTime) {
        let names: Vec<Name> = self.groups.keys().cloned().collect();
        for name in names {
            self.tick_group(now, &name);
        }
        // A group without members and publishers is not mentioned by any message.
        for group in self.groups.values_mut().filter(|group| group.members.is_empty()) {
            group.doubts.update(now, group.kind, &group.positions, &self.streams, self.former_lived_at);
        }
        let keep = self.settings.keep_positions;
        self.groups.retain(|_, group| !group.is_unused() && group.empty_since.is_none_or(|since| now < since + keep));
        self.maintain_clients(now);
        self.maintain_list(now);
        if now >= self.sweep_at {
            self.sweep_at = now + SWEEP_EVERY;
            self.forget_streams(now);
        }
        if self.grace_period_over(now) && !self.is_granting {
            self.is_granting = true;
            // The first complete list includes registrations that wait for the next update.
            self.update_list(now);
            self.list.bump_version();
            self.notify_all(now);
        }
    }

    fn tick_group(&mut self, now: BootTime, name: &Name) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let expired = group.members.iter().filter(|(_, member)| member.lease_until <= now);
        let expired: Vec<u64> = expired.map(|(&incarnation, _)| incarnation).collect();
        let may_grant = [group.next_grant(), group.waits_until].into_iter().flatten().any(|at| now >= at);
        if may_grant || !expired.is_empty() || !self.is_granting {
            let leases = expired.iter().filter_map(|&incarnation| self.expired_lease(now, name, incarnation)).collect();
            for incarnation in expired {
                self.remove(now, name, incarnation);
            }
            self.reassign(now, name);
            self.report_expired(leases);
        }
    }

    /// When [`Coordinator::on_tick`] has something to do.
    pub fn next_deadline(&self) -> BootTime {
        let mut deadline = self.sweep_at;
        for group in self.groups.values() {
            let leases = group.members.values().map(|member| member.lease_until);
            // What may be granted in the grace period is granted at its end.
            let grant = group.next_grant().map(|at| at.max(self.grants_from));
            let expiry = group.empty_since.map(|since| since + self.settings.keep_positions);
            let waits_until = group.waits_until.map(|at| at.max(self.grants_from));
            let others = [grant, expiry, waits_until];
            deadline = leases.chain(others.into_iter().flatten()).fold(deadline, BootTime::min);
        }
        if !self.is_granting {
            deadline = deadline.min(self.grants_from);
        }
        deadline = deadline.min(self.clients.next_deadline());
        self.list.next_deadline().map_or(deadline, |list| deadline.min(list))
    }

    /// The next message, and its receiver.
    pub fn poll_output(&mut self) -> Option<(Peer, Vec<u8>)> {
        self.outputs.pop_front()
    }

    /// Rejected messages and parts of messages.
    pub fn rejections(&self) -> Rejections {
        self.rejections
    }

    /// Whether the grace period after the start is over, so that every lease of an earlier
    /// coordinator has expired and this one grants.
    pub fn grace_period_over(&self, now: BootTime) -> bool {
        now >= self.grants_from
    }

    fn on_renew(&mut self, now: BootTime, peer: &Peer, renew: &Renew) {
        match self.admit(now, peer, renew) {
            Ok(()) => {}
            Err(NotAdmitted::Rejected(reason)) => {
                self.rejections.joins += 1;
                let rejected = Rejected { group: renew.group.clone(), incarnation: renew.incarnation, reason };
                return self.send(peer, rejected);
            }
            Err(NotAdmitted::Foreign) => return self.rejections.foreign += 1,
        }
        let grace_period_over = self.grace_period_over(now);
        let Some(group) = self.groups.get_mut(&renew.group) else { return };
        let Some(member) = group.members.get_mut(&renew.incarnation) else { return };
        if renew.renewal <= member.renewal {
            self.rejections.stale += 1;
            return;
        }
        member.renewal = renew.renewal;
        member.lease_until = now + LEASE + LEASE_MARGIN;
        member.needs_grant = true;
        let rejected = group.on_renewal(now, grace_period_over, self.epoch, renew);
        self.rejections.holdings += rejected.holdings;
        self.rejections.commits += rejected.commits;
        self.reassign(now, &renew.group);
        let group = self.groups.get(&renew.group);
        if renew.leaving && group.is_some_and(|group| group.grants_nothing(renew.incarnation)) {
            self.on_left(&renew.group, renew.incarnation);
            self.remove(now, &renew.group, renew.incarnation);
            self.reassign(now, &renew.group);
        }
    }

    /// Adds the group and the member if they are new.
    fn admit(&mut self, now: BootTime, peer: &Peer, renew: &Renew) -> Result<(), NotAdmitted> {
        if let Some(group) = self.groups.get(&renew.group) {
            if let Some(member) = group.members.get(&renew.incarnation) {
                return if member.peer == *peer { Ok(()) } else { Err(NotAdmitted::Foreign) };
            }
            if group.kind != renew.kind {
                if !group.members.is_empty() {
                    return Err(RejectionReason::Kind.into());
                }
                // Nobody but a publisher has said that there is such a group.
                self.groups.remove(&renew.group);
            }
        }
        if let Some(group) = self.groups.get(&renew.group) {
            if !group.speaks(renew.lowest_protocol, renew.highest_protocol) {
                return Err(RejectionReason::Protocol.into());
            }
            if group.members.len() >= MAX_MEMBERS || group.members.values().any(|member| member.peer == *peer) {
                return Err(RejectionReason::Full.into());
            }
        } else if self.groups.len() >= MAX_GROUPS {
            // The group that has been without members for longest makes room.
            let empty = self.groups.iter().filter_map(|(name, group)| Some((group.empty_since?, name.clone()))).min();
            let (_, name) = empty.ok_or(RejectionReason::Full)?;
            self.groups.remove(&name);
        }
        if self.routes.get(peer).is_some_and(|route| route.memberships >= MAX_MEMBERSHIPS) {
            return Err(RejectionReason::Full.into());
        }
        let mutants = self.settings.mutants;
        // A group that was here before may have members that are still on their way.
        let returns = renew.coordinator != 0;
        let is_inherited = returns && renew.coordinator != self.epoch;
        let group = self.groups.entry(renew.group.clone()).or_insert_with(|| Group::new(renew.kind, mutants, now));
        if is_inherited {
            group.doubts.inherit(now);
        }
        group.join(now, renew.incarnation, Member::new(now, peer.clone(), renew), returns);
        self.routes.entry(peer.clone()).or_insert_with(|| Route::new(now)).memberships += 1;
        Ok(())
    }

    /// Removes a member. Its destinations stay listed for a while.
    fn remove(&mut self, now: BootTime, name: &Name, incarnation: u64) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let Some(member) = group.members.get(&incarnation) else { return };
        let peer = member.peer.clone();
        let destinations = member.destinations.clone();
        let last_grant = member.leaving.then(|| Grant {
            group: name.clone(),
            incarnation,
            coordinator: self.epoch,
            number: self.grants + 1,
            renewal: member.renewal,
            protocol: member.protocols.1,
            registration: 0,
            assignments: Vec::new(),
            starts: Vec::new(),
            known_registration: member.registration,
            coverage: Vec::new(),
            age_ns: 0,
            differing: Vec::new(),
            doubts: Vec::new(),
        });
        group.remove(now, incarnation);
        if group.is_unused() {
            self.groups.remove(name);
        }
        if let Some(route) = self.routes.get_mut(&peer) {
            route.memberships -= 1;
            if route.memberships == 0 {
                self.routes.remove(&peer);
            }
        }
        self.linger(now, &peer, destinations);
        if let Some(grant) = last_grant {
            self.grants = grant.number;
            self.send(&peer, grant);
        }
    }

    /// Frees and grants shards of a group where that is possible now, and sends grants to the
    /// members that this concerns.
    fn reassign(&mut self, now: BootTime, name: &Name) {
        let grace_period_over = self.grace_period_over(now);
        let Some(group) = self.groups.get_mut(name) else { return };
        group.reassign(now, grace_period_over);
        let streams = &self.streams;
        group.doubts.update(now, group.kind, &group.positions, streams, self.former_lived_at);
        let is_known = |list_version: u64| {
            let mut responsive = streams.values().filter(|state| state.is_responsive(now));
            responsive.all(|state| state.list_version >= list_version)
        };
        let next = |stream: &Stream, topic: Topic| {
            let state = streams.get(stream);
            state.map_or((0, false), |state| (state.next[topic.index()], state.is_responsive(now)))
        };
        let protocol = group.protocol().unwrap_or_default();
        let needs_grant = group.members.iter().filter(|(_, member)| member.needs_grant);
        let needs_grant: Vec<u64> = needs_grant.map(|(&incarnation, _)| incarnation).collect();
        let mut grants = Vec::new();
        for incarnation in needs_grant {
            let Granted { assignments, starts, coverage, doubts } = group.grant(now, incarnation, next);
            let age_ns = group.age.nanos(now);
            let differing = group.differing_from(now, incarnation);
            let Some(member) = group.members.get_mut(&incarnation) else { continue };
            member.needs_grant = false;
            let is_acknowledged = grace_period_over && member.listed_version > 0 && is_known(member.listed_version);
            let registration = if is_acknowledged { member.registration } else { 0 };
            member.acknowledged_registration = member.acknowledged_registration.max(registration);
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
                known_registration: member.registration,
                coverage,
                age_ns,
                differing,
                doubts,
            };
            grants.push((member.peer.clone(), grant));
        }
        for (peer, grant) in grants {
            self.send(&peer, grant);
        }
    }

    fn send(&mut self, peer: &Peer, message: impl Into<Message>) {
        let frame = message.into().encode();
        debug_assert!(frame.len() <= MAX_MESSAGE_BYTES, "all lists are bounded");
        self.outputs.push_back((peer.clone(), frame));
    }
}
