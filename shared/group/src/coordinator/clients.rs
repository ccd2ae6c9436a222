//! Clients that are in no group and register destinations, such as a replay.
//!
//! ```text
//! RegisterClient ─▶ listed ── every responsive publisher has the list ──▶ acknowledged to the client
//!                     │ leaves, or is silent for 3.5 s
//!                     ▼
//!                   ended ── 10 s: datagrams to its destinations may be in flight ──▶ forgotten
//! ```
//!
//! A client's destinations stand in the list beside those of members, and publishers report how
//! many datagrams to them they have left alone. Since a client can blind captures in this way, each
//! one is reported with its name. Limits count clients that have ended until they are forgotten,
//! so that a client that comes and goes does not use up the members' room.

use std::collections::{BTreeMap, BTreeSet};

use sekiwake_record::Name;

use super::{
    Coordinator, CoordinatorEvent,
    destination_list::{LINGER, MAX_LISTED},
};
use crate::{
    BootTime, LEASE, LEASE_MARGIN, Peer, Stream,
    wire::{
        Advertise, ClientOutcome, ClientRegistered, Destination, MAX_CLIENT_DESTINATIONS, MAX_CLIENTS_DESTINATIONS,
        RegisterClient,
    },
};

/// The most clients, with those that have ended.
pub(super) const MAX_CLIENTS: usize = 64;

/// The clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    by_incarnation: BTreeMap<u64, Client>,
    /// How many there have been.
    came: u64,
}

/// A client.
#[derive(Debug)]
struct Client {
    peer: Peer,
    name: Name,
    destinations: Vec<Destination>,
    /// Numbers the clients in the order in which they came.
    came: u64,
    /// The newest message.
    number: u64,
    last_heard: BootTime,
    /// When it is forgotten; `None` while it lives.
    ends_at: Option<BootTime>,
    /// The version of the list that has its destinations; 0 before.
    listed_version: u64,
    is_acknowledged: bool,
    /// Datagrams to its destinations that publishers have reported.
    left_alone: u64,
}

/// A client that has registered destinations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientView {
    /// Its name.
    pub name: Name,
    /// The random number of its run.
    pub incarnation: u64,
    /// Its destinations.
    pub destinations: Vec<Destination>,
    /// Whether every publisher has acknowledged them.
    pub is_acknowledged: bool,
    /// Whether it has left, or is silent: its destinations are listed for some seconds more.
    pub has_ended: bool,
    /// Datagrams to its destinations that publishers have left alone.
    pub left_alone: u64,
}

impl Clients {
    pub(super) fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.by_incarnation.values().flat_map(|client| &client.destinations)
    }

    pub(super) fn next_deadline(&self) -> BootTime {
        let deadlines = self.by_incarnation.values().map(|client| client.ends_at.unwrap_or(client.silent_at()));
        deadlines.min().unwrap_or(BootTime::NEVER)
    }

    /// Notes which version of the list has the destinations of clients that were in none.
    pub(super) fn listed(&mut self, version: u64) {
        for client in self.by_incarnation.values_mut().filter(|client| client.listed_version == 0) {
            client.listed_version = version;
        }
    }

    /// Whether there is room for these destinations of another client.
    fn has_room(&self, peer: &Peer, destinations: usize) -> bool {
        (1..=MAX_CLIENT_DESTINATIONS).contains(&destinations)
            && self.by_incarnation.len() < MAX_CLIENTS
            && self.destinations().count() + destinations <= MAX_CLIENTS_DESTINATIONS
            && !self.by_incarnation.values().any(|client| client.peer == *peer)
    }
}

impl Client {
    fn silent_at(&self) -> BootTime {
        self.last_heard + LEASE + LEASE_MARGIN
    }

    fn outcome(&self) -> ClientOutcome {
        if self.is_acknowledged { ClientOutcome::Acknowledged } else { ClientOutcome::Waiting }
    }
}

impl Coordinator {
    pub(super) fn on_register_client(&mut self, now: BootTime, peer: &Peer, register: RegisterClient) {
        match self.clients.by_incarnation.get_mut(&register.incarnation) {
            Some(client) if client.peer != *peer => self.rejections.foreign += 1,
            Some(client) if register.number <= client.number => self.rejections.stale += 1,
            Some(client) if register.destinations != client.destinations || register.client != client.name => {
                self.rejections.clients += 1;
            }
            Some(client) if register.leaving => {
                client.number = register.number;
                client.ends_at.get_or_insert(now + LINGER);
            }
            Some(client) => {
                (client.number, client.last_heard, client.ends_at) = (register.number, now, None);
                let is_told = self.acknowledge_clients(now).contains(&register.incarnation);
                if !is_told {
                    self.answer_client(register.incarnation);
                }
            }
            None if register.leaving => {}
            None => self.add_client(now, peer, register),
        }
    }

    fn add_client(&mut self, now: BootTime, peer: &Peer, register: RegisterClient) {
        let RegisterClient { client: name, incarnation, number, destinations, .. } = register;
        let unlisted = self.list.unlisted(&destinations);
        if !self.clients.has_room(peer, destinations.len()) || self.list.length() + unlisted > MAX_LISTED {
            self.rejections.clients += 1;
            let (coordinator, outcome) = (self.epoch, ClientOutcome::Full);
            return self.send(peer, ClientRegistered { incarnation, coordinator, number, outcome });
        }
        self.list.reserve(unlisted);
        self.events
            .push_back(CoordinatorEvent::ClientCame { client: name.clone(), destinations: destinations.clone() });
        self.clients.came += 1;
        let client = Client {
            peer: peer.clone(),
            name,
            destinations,
            came: self.clients.came,
            number,
            last_heard: now,
            ends_at: None,
            listed_version: 0,
            is_acknowledged: false,
            left_alone: 0,
        };
        self.clients.by_incarnation.insert(incarnation, client);
        self.update_list_soon(now);
        self.answer_client(incarnation);
    }

    fn answer_client(&mut self, incarnation: u64) {
        let Some(client) = self.clients.by_incarnation.get(&incarnation) else { return };
        let (coordinator, number, outcome) = (self.epoch, client.number, client.outcome());
        let peer = client.peer.clone();
        self.send(&peer, ClientRegistered { incarnation, coordinator, number, outcome });
    }

    /// Tells the clients whose destinations every responsive publisher now knows, and returns them.
    pub(super) fn acknowledge_clients(&mut self, now: BootTime) -> Vec<u64> {
        if !self.grace_period_over(now) {
            return Vec::new();
        }
        let known_version = self.known_version(now);
        let at_once = self.settings.mutants.acknowledges_clients_at_once();
        let is_known = |client: &Client| at_once || (1..=known_version).contains(&client.listed_version);
        let mut acknowledged = Vec::new();
        for (&incarnation, client) in &mut self.clients.by_incarnation {
            if client.ends_at.is_none() && !client.is_acknowledged && is_known(client) {
                client.is_acknowledged = true;
                acknowledged.push(incarnation);
            }
        }
        acknowledged.iter().for_each(|&incarnation| self.answer_client(incarnation));
        acknowledged
    }

    /// Ends clients that are silent, and forgets those that have ended long enough ago.
    pub(super) fn maintain_clients(&mut self, now: BootTime) {
        for client in self.clients.by_incarnation.values_mut() {
            if client.ends_at.is_none() && now >= client.silent_at() {
                client.ends_at = Some(now + LINGER);
            }
        }
        let expired =
            self.clients.by_incarnation.extract_if(.., |_, client| client.ends_at.is_some_and(|at| at <= now));
        let expired: Vec<Client> = expired.map(|(_, client)| client).collect();
        if expired.is_empty() {
            return;
        }
        for Client { name, left_alone, .. } in expired {
            self.events.push_back(CoordinatorEvent::ClientGone { client: name, left_alone });
        }
        self.update_list_soon(now);
    }

    /// Adds the datagrams to destinations of clients that a publisher has left alone since its last
    /// advertisement.
    pub(super) fn take_left_alone(&mut self, stream: &Stream, advertise: &Advertise) {
        let Some(state) = self.streams.get_mut(stream) else { return };
        let mut counts = BTreeMap::new();
        for reported in &advertise.left_alone {
            let address = (reported.address, reported.port);
            let before = state.left_alone.get(&address).copied().unwrap_or(0);
            // A publisher that counts less counts from 0 again.
            let new = reported.datagrams.checked_sub(before).unwrap_or(reported.datagrams);
            let has = |client: &&mut Client| client.destinations.iter().any(|own| (own.address, own.port) == address);
            // One datagram counts once, however many clients have its destination.
            let latest = self.clients.by_incarnation.values_mut().filter(has);
            if let Some(client) = latest.max_by_key(|client| (client.ends_at.is_none(), client.came)) {
                client.left_alone = client.left_alone.saturating_add(new);
                counts.insert(address, reported.datagrams);
            } else if before > 0 {
                // The next client of this address begins behind what this one was told.
                counts.insert(address, before.min(reported.datagrams));
            }
        }
        state.left_alone = counts;
    }

    /// The clients that have registered destinations, also those that have just ended.
    pub fn clients(&self) -> Vec<ClientView> {
        let view = |(&incarnation, client): (&u64, &Client)| ClientView {
            name: client.name.clone(),
            incarnation,
            destinations: client.destinations.clone(),
            is_acknowledged: client.is_acknowledged,
            has_ended: client.ends_at.is_some(),
            left_alone: client.left_alone,
        };
        self.clients.by_incarnation.iter().map(view).collect()
    }

    /// Checks the limits of clients.
    pub(crate) fn check_clients(&self) {
        assert!(self.clients.by_incarnation.len() <= MAX_CLIENTS, "bounded number of clients");
        assert!(self.clients.destinations().count() <= MAX_CLIENTS_DESTINATIONS, "bounded number of destinations");
        let peers: BTreeSet<&Peer> = self.clients.by_incarnation.values().map(|client| &client.peer).collect();
        assert_eq!(peers.len(), self.clients.by_incarnation.len(), "one client per peer");
        assert!(self.list.entries().len() <= MAX_LISTED, "bounded list");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::{
        CoordinatorSettings,
        time::SECOND,
        wire::{LeftAlone, Message, Transport},
    };

    fn peer(number: u64) -> Peer {
        Peer::new(&number.to_be_bytes()).unwrap()
    }

    fn destination(port: u16) -> Destination {
        Destination::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), port, Transport::Udp)
    }

    fn register(incarnation: u64, number: u64, ports: std::ops::Range<u16>) -> RegisterClient {
        RegisterClient {
            client: Name::new("replay").unwrap(),
            incarnation,
            number,
            leaving: false,
            destinations: ports.map(destination).collect(),
        }
    }

    fn granting() -> (Coordinator, BootTime) {
        let mut coordinator = Coordinator::new(CoordinatorSettings::default(), 9, BootTime::ZERO);
        let now = BootTime::ZERO + 5 * SECOND;
        coordinator.on_tick(now);
        // The list may change at once again.
        (coordinator, now + SECOND)
    }

    /// Sends a message, and returns what became of the registration, if there is an answer.
    fn send(coordinator: &mut Coordinator, now: BootTime, from: u64, message: RegisterClient) -> Option<ClientOutcome> {
        coordinator.on_message(now, &peer(from), &Message::from(message).encode());
        coordinator.check_clients();
        let mut outcome = None;
        while let Some((to, frame)) = coordinator.poll_output() {
            if let (true, Ok(Message::ClientRegistered(answer))) = (to == peer(from), Message::decode(&frame)) {
                outcome = Some(answer.outcome);
            }
        }
        outcome
    }

    #[test]
    fn clients_are_bounded_each_and_in_all() {
        let (mut coordinator, now) = granting();
        let full = Some(ClientOutcome::Full);
        assert_eq!(send(&mut coordinator, now, 1, register(1, 1, 1..66)), full, "too many of one client");
        assert_eq!(send(&mut coordinator, now, 1, register(1, 1, 1..1)), full, "none");
        for client in 1..5 {
            let now = now + u32::try_from(client).unwrap() * SECOND / 4;
            let outcome = send(&mut coordinator, now, client, register(client, 1, 1..65));
            assert!(outcome.is_some_and(|outcome| outcome != ClientOutcome::Full), "{client}");
        }
        let later = now + SECOND;
        assert_eq!(send(&mut coordinator, later, 5, register(5, 1, 1..2)), full, "256 in all");
        assert_eq!(send(&mut coordinator, later, 1, register(6, 1, 1..2)), full, "one per peer");
        assert_eq!(coordinator.rejections().clients, 4);
        // Those of clients that have ended count until they are forgotten.
        let leaving = RegisterClient { leaving: true, ..register(1, 2, 1..65) };
        send(&mut coordinator, later, 1, leaving);
        assert_eq!(send(&mut coordinator, later, 5, register(5, 1, 1..2)), full);
        coordinator.on_tick(later + LINGER);
        let outcome = send(&mut coordinator, later + LINGER, 5, register(5, 1, 1..2));
        assert!(outcome.is_some_and(|outcome| outcome != ClientOutcome::Full));
    }

    #[test]
    fn only_its_own_peer_renews_a_registration_unchanged() {
        let (mut coordinator, now) = granting();
        assert_eq!(send(&mut coordinator, now, 1, register(1, 1, 1..3)), Some(ClientOutcome::Acknowledged));
        assert_eq!(send(&mut coordinator, now, 2, register(1, 2, 1..3)), None);
        assert_eq!(send(&mut coordinator, now, 1, register(1, 2, 1..9)), None, "other destinations");
        assert_eq!(send(&mut coordinator, now, 1, register(1, 1, 1..3)), None, "not newer");
        let rejections = coordinator.rejections();
        assert_eq!((rejections.foreign, rejections.clients, rejections.stale), (1, 1, 1));
        assert_eq!(send(&mut coordinator, now, 1, register(1, 2, 1..3)), Some(ClientOutcome::Acknowledged));
    }

    #[test]
    fn client_is_reported_when_it_comes_and_when_it_is_forgotten() {
        let (mut coordinator, now) = granting();
        send(&mut coordinator, now, 1, register(1, 1, 1..3));
        let client = Name::new("replay").unwrap();
        let came =
            CoordinatorEvent::ClientCame { client: client.clone(), destinations: vec![destination(1), destination(2)] };
        assert_eq!((coordinator.poll_event(), coordinator.poll_event()), (Some(came), None));
        // A publisher reports datagrams, some to an address that no client has.
        let stream = Stream::new(&Name::new("tap").unwrap(), 5);
        let advertise = |number, datagrams| {
            let at = |port, datagrams| LeftAlone { address: destination(port).address, port, datagrams };
            Message::from(Advertise {
                stream: stream.clone(),
                number,
                ended: false,
                wants_commits: false,
                coordinator: 0,
                list_version: 0,
                extents: Vec::new(),
                groups: Vec::new(),
                former_age_ns: 0,
                left_alone: vec![at(1, datagrams), at(7, 100)],
            })
            .encode()
        };
        for (number, datagrams, all) in [(1, 10, 10), (2, 10, 10), (3, 25, 25), (4, 5, 30)] {
            coordinator.on_message(now, &peer(9), &advertise(number, datagrams));
            assert_eq!(coordinator.clients()[0].left_alone, all, "{number}");
        }
        // Another client has one of the destinations for a while.
        send(&mut coordinator, now, 2, register(2, 1, 1..2));
        assert!(matches!(coordinator.poll_event(), Some(CoordinatorEvent::ClientCame { .. })));
        coordinator.on_message(now, &peer(9), &advertise(5, 12));
        assert_eq!(coordinator.clients().iter().map(|client| client.left_alone).collect::<Vec<_>>(), [30, 7]);
        send(&mut coordinator, now, 2, RegisterClient { leaving: true, ..register(2, 2, 1..2) });
        coordinator.on_message(now, &peer(9), &advertise(6, 14));
        assert_eq!(coordinator.clients().iter().map(|client| client.left_alone).collect::<Vec<_>>(), [32, 7]);
        coordinator.on_tick(now + LEASE);
        // It dies. Its destinations stay listed for a while.
        let silent = now + LEASE + LEASE_MARGIN;
        assert_eq!(coordinator.clients.next_deadline(), silent);
        coordinator.on_tick(silent);
        assert!(coordinator.clients()[0].has_ended && coordinator.list.entries().len() == 2);
        coordinator.on_tick(silent + LINGER);
        assert!(coordinator.clients().is_empty() && coordinator.list.entries().is_empty());
        let gone = [32, 7].map(|left_alone| Some(CoordinatorEvent::ClientGone { client: client.clone(), left_alone }));
        assert_eq!([coordinator.poll_event(), coordinator.poll_event()], gone);
    }

    #[test]
    fn client_waits_for_every_live_publisher() {
        let (mut coordinator, now) = granting();
        let stream = Stream::new(&Name::new("tap").unwrap(), 5);
        let mut number = 0;
        let mut advertise = |coordinator: &mut Coordinator, now, list_version| {
            number += 1;
            let advertise = Advertise {
                stream: stream.clone(),
                number,
                ended: false,
                wants_commits: false,
                coordinator: 9,
                list_version,
                extents: Vec::new(),
                groups: Vec::new(),
                former_age_ns: 0,
                left_alone: Vec::new(),
            };
            coordinator.on_message(now, &peer(9), &Message::from(advertise).encode());
        };
        advertise(&mut coordinator, now, 1);
        assert_eq!(send(&mut coordinator, now, 1, register(1, 1, 1..3)), Some(ClientOutcome::Waiting));
        let version = coordinator.list.version();
        advertise(&mut coordinator, now, version - 1);
        assert!(!coordinator.clients()[0].is_acknowledged);
        advertise(&mut coordinator, now, version);
        let told = std::iter::from_fn(|| coordinator.poll_output()).any(|(to, frame)| {
            let outcome = match Message::decode(&frame) {
                Ok(Message::ClientRegistered(answer)) => Some(answer.outcome),
                _ => None,
            };
            to == peer(1) && outcome == Some(ClientOutcome::Acknowledged)
        });
        assert!(told && coordinator.clients()[0].is_acknowledged);
    }
}
