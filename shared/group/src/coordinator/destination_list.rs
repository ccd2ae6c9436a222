//! The list of destinations that publishers must not capture, made of the registrations of members
//! and clients.
//!
//! ```text
//! registration ─▶ in the list of version v ─▶ every responsive publisher has v or newer ─▶ acknowledged to the member
//! member has left, or has replaced them ─▶ its old ones stay listed for 10 s: datagrams to them may be in flight
//! ```

use std::{collections::VecDeque, time::Duration};

use sekiwake_record::Name;

use super::Coordinator;
use crate::{
    BootTime, Peer,
    wire::{Destination, MAX_DESTINATIONS, Register},
};

/// How long destinations stay listed after their member has left or replaced them.
pub(super) const LINGER: Duration = Duration::from_secs(10);
/// Maximum number of destinations in the list. A registration that would make it longer is
/// rejected, because a member must not assume that an unlisted destination is listed.
pub(super) const MAX_LISTED: usize = 16 * MAX_DESTINATIONS;
/// Maximum number of lingering former registrations, of one peer and of all peers.
const MAX_LINGERING_PER_PEER: usize = 2;
pub(super) const MAX_LINGERING: usize = 256;
/// The shortest pause between two lists, because each is sent to every publisher.
pub(super) const MIN_UPDATE_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct DestinationList {
    entries: Vec<Destination>,
    /// Those of clients, to which publishers count datagrams.
    counted: Vec<Destination>,
    /// Counts changes, from 1.
    version: u64,
    /// Oldest first.
    lingering: VecDeque<Lingering>,
    updated_at: Option<BootTime>,
    update_due: Option<BootTime>,
    /// How many destinations were registered since the list was made.
    unlisted: usize,
}

/// Destinations of a former registration.
struct Lingering {
    until: BootTime,
    peer: Peer,
    destinations: Vec<Destination>,
}

impl DestinationList {
    pub(super) fn new() -> DestinationList {
        DestinationList {
            entries: Vec::new(),
            counted: Vec::new(),
            version: 1,
            lingering: VecDeque::new(),
            updated_at: None,
            update_due: None,
            unlisted: 0,
        }
    }

    pub(super) fn entries(&self) -> &[Destination] {
        &self.entries
    }

    pub(super) fn counted(&self) -> &[Destination] {
        &self.counted
    }

    /// How many destinations the list will have.
    pub(super) fn length(&self) -> usize {
        self.entries.len() + self.unlisted
    }

    /// How many of these destinations are not in the list.
    pub(super) fn unlisted(&self, destinations: &[Destination]) -> usize {
        destinations.iter().filter(|destination| self.entries.binary_search(destination).is_err()).count()
    }

    /// Notes that so many destinations will be in the next list.
    pub(super) fn reserve(&mut self, unlisted: usize) {
        self.unlisted += unlisted;
    }

    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Makes publishers acknowledge the list again although it has not changed.
    pub(super) fn bump_version(&mut self) {
        self.version += 1;
    }

    #[cfg(test)]
    pub(super) fn lingering(&self) -> usize {
        self.lingering.len()
    }

    pub(super) fn next_deadline(&self) -> Option<BootTime> {
        let expires = self.lingering.front().map(|lingering| lingering.until);
        expires.into_iter().chain(self.update_due).min()
    }

    /// Keeps former destinations listed for a while. A peer that replaces its own too quickly only
    /// shortens that for itself.
    fn linger(&mut self, now: BootTime, peer: &Peer, destinations: Vec<Destination>) {
        if destinations.is_empty() {
            return;
        }
        let of_peer = self.lingering.iter().filter(|lingering| lingering.peer == *peer).count();
        let makes_room = if of_peer >= MAX_LINGERING_PER_PEER {
            self.lingering.iter().position(|lingering| lingering.peer == *peer)
        } else {
            (self.lingering.len() >= MAX_LINGERING).then_some(0)
        };
        if let Some(index) = makes_room {
            self.lingering.remove(index);
        }
        self.lingering.push_back(Lingering { until: now + LINGER, peer: peer.clone(), destinations });
    }

    /// Replaces the entries. Returns whether they have changed.
    fn replace(&mut self, now: BootTime, mut entries: Vec<Destination>, mut counted: Vec<Destination>) -> bool {
        self.updated_at = Some(now);
        self.update_due = None;
        self.unlisted = 0;
        entries.extend(self.lingering.iter().flat_map(|lingering| &lingering.destinations).cloned());
        entries.extend_from_slice(&counted);
        for list in [&mut entries, &mut counted] {
            list.sort();
            list.dedup();
        }
        let has_changed = entries != self.entries || counted != self.counted;
        if has_changed {
            self.entries = entries;
            self.counted = counted;
            self.version += 1;
        }
        has_changed
    }
}

impl Coordinator {
    pub(super) fn on_register(&mut self, now: BootTime, peer: &Peer, register: Register) {
        let group = self.groups.get_mut(&register.group);
        let member = group.and_then(|group| group.members.get_mut(&register.incarnation));
        let Some(member) = member.filter(|member| member.peer == *peer) else {
            self.rejections.foreign += 1;
            return;
        };
        if register.registration <= member.registration {
            return;
        }
        let unlisted = self.list.unlisted(&register.destinations);
        if register.destinations.len() > MAX_DESTINATIONS || self.list.length() + unlisted > MAX_LISTED {
            self.rejections.destinations += register.destinations.len() as u64;
            return;
        }
        self.list.reserve(unlisted);
        member.registration = register.registration;
        member.listed_version = 0;
        let former = std::mem::replace(&mut member.destinations, register.destinations);
        self.linger(now, peer, former);
        self.update_list_soon(now);
    }

    /// Keeps former destinations of a member listed for a while.
    pub(super) fn linger(&mut self, now: BootTime, peer: &Peer, destinations: Vec<Destination>) {
        self.list.linger(now, peer, destinations);
    }

    /// Drops expired destinations and updates the list, where that is due.
    pub(super) fn maintain_list(&mut self, now: BootTime) {
        while self.list.lingering.pop_front_if(|lingering| lingering.until <= now).is_some() {
            self.update_list_soon(now);
        }
        if self.list.update_due.is_some_and(|at| now >= at) {
            self.update_list(now);
        }
    }

    /// Updates the list now, or when the last update is long enough ago.
    pub(super) fn update_list_soon(&mut self, now: BootTime) {
        match self.list.updated_at.map(|at| at + MIN_UPDATE_PAUSE) {
            Some(at) if now < at => {
                self.list.update_due.get_or_insert(at);
            }
            _ => self.update_list(now),
        }
    }

    /// Rebuilds the list, and sends it to publishers if it has changed.
    pub(super) fn update_list(&mut self, now: BootTime) {
        let members = self.groups.values().flat_map(|group| group.members.values());
        let registered: Vec<Destination> = members.flat_map(|member| &member.destinations).cloned().collect();
        let of_clients = self.clients.destinations().cloned().collect();
        if self.list.replace(now, registered, of_clients) {
            self.notify_all(now);
        }
        let version = self.list.version;
        self.clients.listed(version);
        self.acknowledge_clients(now);
        let members = self.groups.values_mut().flat_map(|group| group.members.values_mut());
        for member in members.filter(|member| member.registration > 0 && member.listed_version == 0) {
            // When publishers have all of it already, there is nothing to wait for.
            member.listed_version = version;
            member.needs_grant = true;
        }
        let names: Vec<Name> = self.groups.keys().cloned().collect();
        names.iter().for_each(|name| self.reassign(now, name));
    }

    /// The version of the list that every responsive publisher has acknowledged.
    pub(super) fn known_version(&self, now: BootTime) -> u64 {
        let responsive = self.streams.values().filter(|state| state.is_responsive(now));
        responsive.map(|state| state.list_version).min().unwrap_or(self.list.version)
    }

    /// Marks the members for a grant whose destinations every publisher now knows, and tells such
    /// clients.
    pub(super) fn mark_acknowledged(&mut self, now: BootTime) {
        self.acknowledge_clients(now);
        let known_version = self.known_version(now);
        for member in self.groups.values_mut().flat_map(|group| group.members.values_mut()) {
            let is_known = (1..=known_version).contains(&member.listed_version);
            member.needs_grant |= is_known && member.acknowledged_registration < member.registration;
        }
    }
}
