//! Own destinations: a client registers them in the state stream, captures leave them alone and say
//! so in their announcements.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use sekiwake_group::OwnDestinations;
use tracing::{debug, info};

use super::{
    connection::Nats,
    keys::{ReadFailed, Stored},
    state::{AT, At, Living, OWN, Own, Registration},
    streams::STATE_STREAM,
};

/// How often a capture reads the registrations.
const READ_EVERY: Duration = Duration::from_millis(500);
/// The most destinations of all clients together.
const MAX_DESTINATIONS: usize = 16_384;

/// The registrations that a capture leaves alone, for its announcements.
#[derive(Clone, Debug, Default)]
pub(crate) struct LeftAlone(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// The list has been read once.
    is_known: bool,
    applied: Vec<Registration>,
    malformed: u64,
}

impl LeftAlone {
    /// Whether the registrations have been read once: earlier datagrams may be the output of a
    /// forwarder.
    pub(crate) fn is_known(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_known
    }

    pub(crate) fn applied(&self) -> Vec<Registration> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).applied.clone()
    }

    /// Messages that could not be read.
    pub(crate) fn malformed(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).malformed
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The list of a capture and where it comes from.
struct Follower {
    own: OwnDestinations,
    left_alone: LeftAlone,
    living: Living,
    number: u64,
    addresses: BTreeSet<SocketAddr>,
    counted: BTreeSet<SocketAddr>,
    registrations: Vec<Registration>,
}

/// Keeps a capture's list up to date, for as long as the connection lasts. While the servers are
/// away, the list stays as it is.
pub(crate) async fn follow(nats: Nats, own: OwnDestinations, left_alone: LeftAlone) {
    let mut follower = Follower {
        own,
        left_alone,
        living: Living::default(),
        number: 0,
        addresses: BTreeSet::new(),
        counted: BTreeSet::new(),
        registrations: Vec::new(),
    };
    loop {
        if nats.link.is_connected() {
            match nats.multi_last(STATE_STREAM, &[format!("{OWN}>")]).await {
                Ok(stored) => follower.take(stored, Instant::now()),
                Err(error) => debug!(%error, "own destinations not read"),
            }
        }
        follower.acknowledge();
        tokio::time::sleep(READ_EVERY).await;
    }
}

impl Follower {
    fn take(&mut self, stored: Vec<Stored>, now: Instant) {
        let alive = self.living.update(stored, now);
        let mut malformed = 0;
        let mut addresses = BTreeSet::new();
        let mut counted = BTreeSet::new();
        let mut registrations = Vec::new();
        // An empty message ends a registration.
        for one in alive.into_iter().filter(|one| !one.value.is_empty()) {
            let Some(own) = Own::decode(&one.value) else {
                malformed += 1;
                continue;
            };
            if addresses.len() + own.udp.len() > MAX_DESTINATIONS {
                continue;
            }
            addresses.extend(&own.udp);
            if !own.is_member {
                counted.extend(&own.udp);
            }
            registrations.push(own.registration);
        }
        registrations.sort();
        let is_changed = addresses != self.addresses || counted != self.counted || self.number == 0;
        if is_changed {
            self.number += 1;
            let of_clients: Vec<SocketAddr> = counted.iter().copied().collect();
            info!(
                destinations = addresses.len(),
                of_clients = of_clients.len(),
                "own destinations received, not capturing them"
            );
            self.own.set(self.number, addresses.iter().copied(), &of_clients);
            self.addresses = addresses;
            self.counted = counted;
        }
        self.registrations = registrations;
        self.left_alone.change(|state| {
            state.is_known = true;
            state.malformed += malformed;
        });
    }

    /// What all capture threads use may be acknowledged.
    fn acknowledge(&self) {
        if self.own.applied() == self.number {
            self.left_alone.change(|state| state.applied.clone_from(&self.registrations));
        }
    }
}

/// A client's side: it registers destinations, and sees whether all live publishers have
/// acknowledged them.
#[derive(Debug)]
pub(crate) struct Registrant {
    own: Own,
    publishers: Living,
    sent_at: Option<Instant>,
}

impl Registrant {
    /// `client` is a name, or several with slashes between them.
    pub(crate) fn new(client: String, incarnation: u64, is_member: bool) -> Registrant {
        let registration = Registration { client, incarnation, number: 0 };
        Registrant {
            own: Own { registration, is_member, udp: Vec::new() },
            publishers: Living::default(),
            sent_at: None,
        }
    }

    /// Replaces the destinations. Nobody has acknowledged them yet.
    pub(crate) fn set(&mut self, udp: Vec<SocketAddr>) {
        self.own.udp = udp;
        self.own.registration.number += 1;
        self.sent_at = None;
    }

    /// The message to send now, with its subject, if it is time.
    pub(crate) fn due(&mut self, now: Instant) -> Option<(String, Vec<u8>)> {
        if self.sent_at.is_some_and(|at| now.duration_since(at) < super::state::REPEAT_EVERY) {
            return None;
        }
        self.sent_at = Some(now);
        Some((self.subject(), self.own.encode()))
    }

    /// The subject of the registration. An empty message to it ends the registration.
    pub(crate) fn subject(&self) -> String {
        Own::subject(&self.own.registration.client, self.own.registration.incarnation)
    }

    /// Whether every live publisher has acknowledged the newest destinations.
    ///
    /// # Errors
    /// The announcements could not be read.
    pub(crate) async fn is_acknowledged(&mut self, nats: &Nats) -> Result<bool, ReadFailed> {
        let stored = nats.multi_last(STATE_STREAM, &[format!("{AT}>")]).await?;
        Ok(self.take(stored, Instant::now()))
    }

    /// Takes all announcements, and says the same.
    pub(crate) fn take(&mut self, stored: Vec<Stored>, now: Instant) -> bool {
        let alive = self.publishers.update(stored, now);
        let Registration { client, incarnation, number } = &self.own.registration;
        let has_acknowledged = |at: &At| {
            at.own.iter().any(|one| one.client == *client && one.incarnation == *incarnation && one.number >= *number)
        };
        alive.iter().filter_map(|one| At::decode(&one.value)).all(|at| at.has_ended || has_acknowledged(&at))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use sekiwake_record::Name;

    use super::*;

    #[test]
    fn destinations_are_acknowledged_by_every_live_publisher() {
        let mut registrant = Registrant::new("replay".to_owned(), 7, false);
        registrant.set(vec!["198.51.100.7:514".parse().unwrap()]);
        let at = |name: &str, sequence, has_ended, own: Vec<Registration>| Stored {
            subject: format!("{AT}{name}"),
            sequence,
            value: At {
                name: Name::new(name).unwrap(),
                epoch: 1,
                has_ended,
                at_ns: 0,
                stored_until_ns: None,
                positions: BTreeMap::new(),
                sent: None,
                own,
            }
            .encode(),
        };
        let registration = |number| Registration { client: "replay".to_owned(), incarnation: 7, number };
        let start = Instant::now();
        let after = |milliseconds| start + Duration::from_millis(milliseconds);
        assert!(!registrant.take(vec![at("a", 1, false, vec![]), at("b", 2, true, vec![])], after(0)));
        assert!(!registrant.take(vec![at("a", 3, false, vec![registration(0)])], after(1000)));
        assert!(registrant.take(vec![at("a", 4, false, vec![registration(1)])], after(2000)));
        registrant.set(Vec::new());
        assert!(!registrant.take(vec![at("a", 5, false, vec![registration(1)])], after(3000)));
        // The publisher has died.
        for second in 4..12 {
            let is_alive = registrant.take(vec![at("a", 5, false, vec![registration(1)])], after(second * 1000));
            assert!(!is_alive, "{second}");
        }
        assert!(registrant.take(vec![at("a", 5, false, vec![registration(1)])], after(13_000)));
    }

    #[test]
    fn list_is_acknowledged_once_capture_threads_use_it() {
        let own = OwnDestinations::default();
        let watch = own.watch();
        // It captures from here on.
        drop(watch.changed());
        let left_alone = LeftAlone::default();
        let mut follower = Follower {
            own: own.clone(),
            left_alone: left_alone.clone(),
            living: Living::default(),
            number: 0,
            addresses: BTreeSet::new(),
            counted: BTreeSet::new(),
            registrations: Vec::new(),
        };
        let message = Own {
            registration: Registration { client: "a".to_owned(), incarnation: 1, number: 1 },
            is_member: true,
            udp: vec!["198.51.100.7:514".parse().unwrap()],
        };
        let stored = |value: Vec<u8>, sequence| Stored { subject: format!("{OWN}1.a"), sequence, value };
        assert!(!left_alone.is_known());
        follower.take(vec![stored(message.encode(), 1)], Instant::now());
        follower.acknowledge();
        assert!(left_alone.is_known());
        assert_eq!(left_alone.applied(), [], "a thread still uses the list before");
        assert_eq!(watch.changed().unwrap().addresses().len(), 1);
        follower.acknowledge();
        assert_eq!(left_alone.applied(), [message.registration]);
        follower.take(vec![stored(b"{}".to_vec(), 2)], Instant::now());
        assert_eq!((left_alone.malformed(), own.list().addresses().len()), (1, 0));
    }
}
