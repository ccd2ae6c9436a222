//! The addresses that the destinations of one forwarder send to, so that captures can leave alone what goes there.
//!
//! ```text
//! destination's thread        pump                         control plane
//! propose(address) ──▶ list, number ──▶ register ──▶ every capture goes by it
//!   may_use ◀── approved ◀────────────────────────────────┘ (or two seconds have passed)
//! ```
//! A destination sends to an address only once that is approved, or a capture on the same wire would take it for a device's.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

use sekiwake_bus::Transport;

/// The addresses of one forwarder. Clones are the same registry.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    places: Mutex<Vec<Place>>,
    /// Rises with each change.
    number: AtomicU64,
    approved: AtomicU64,
}

/// One destination's addresses: the one in use is registered for as long as it is.
#[derive(Clone, Copy, Debug)]
struct Place {
    transport: Transport,
    in_use: Option<SocketAddr>,
    proposed: Option<SocketAddr>,
    is_vacant: bool,
}

impl Place {
    fn empty(transport: Transport) -> Place {
        Place { transport, in_use: None, proposed: None, is_vacant: false }
    }
}

/// One destination's part of the registry. Dropping it takes the addresses out of the list.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Registry,
    index: usize,
    /// The number under which the newest proposal stands; 0 while there is none.
    number: u64,
}

impl Registry {
    /// A registry that somebody serves: nothing is approved by itself.
    pub fn new() -> Registry {
        Registry::approving(0)
    }

    /// A registry that nobody serves: everything is approved.
    pub fn open() -> Registry {
        Registry::approving(u64::MAX)
    }

    fn approving(approved: u64) -> Registry {
        Registry(Arc::new(Inner {
            places: Mutex::default(),
            number: AtomicU64::new(0),
            approved: AtomicU64::new(approved),
        }))
    }

    /// Rises with each change of the list.
    pub fn number(&self) -> u64 {
        self.0.number.load(Acquire)
    }

    /// The list, and its number.
    pub fn list(&self) -> (u64, Vec<(SocketAddr, Transport)>) {
        let places = self.0.places.lock().unwrap_or_else(PoisonError::into_inner);
        let of_place = |place: &Place| {
            let transport = place.transport;
            [place.in_use, place.proposed].into_iter().flatten().map(move |address| (address, transport))
        };
        let addresses = places.iter().flat_map(of_place).collect();
        (self.0.number.load(Acquire), addresses)
    }

    /// Every capture goes by the list of this number.
    pub fn approve(&self, number: u64) {
        self.0.approved.fetch_max(number, Release);
    }

    /// A place for a destination that is sent to over UDP.
    pub(crate) fn register(&self) -> Registration {
        self.register_over(Transport::Udp)
    }

    pub(crate) fn register_over(&self, transport: Transport) -> Registration {
        let mut places = self.0.places.lock().unwrap_or_else(PoisonError::into_inner);
        // The place of one that is gone is used again, or a list that is replaced often would grow for ever.
        let vacant = places.iter().position(|place| place.is_vacant);
        let index = vacant.unwrap_or_else(|| {
            places.push(Place::empty(transport));
            places.len() - 1
        });
        places[index] = Place::empty(transport);
        Registration { registry: self.clone(), index, number: 0 }
    }
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new()
    }
}

impl Registration {
    /// The destination is going to send to this address.
    pub(crate) fn propose(&mut self, address: SocketAddr) {
        self.change(|place| place.proposed = Some(address));
    }

    /// Whether what was proposed last may be sent to.
    pub(crate) fn may_use(&self) -> bool {
        self.number > 0 && self.registry.0.approved.load(Acquire) >= self.number
    }

    /// The destination sends to what was proposed, and no longer to what it sent to before.
    pub(crate) fn moved(&mut self) {
        let number = self.number;
        self.change(|place| place.in_use = place.proposed.take());
        // What is in use stays approved while the list without the old address is on its way.
        self.number = number;
    }

    fn change(&mut self, change: impl FnOnce(&mut Place)) {
        let mut places = self.registry.0.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get_mut(self.index) {
            change(place);
        }
        self.number = self.registry.0.number.fetch_add(1, Release) + 1;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.change(|place| *place = Place { is_vacant: true, ..Place::empty(place.transport) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, last], 514))
    }

    #[test]
    fn an_address_may_be_used_once_a_list_that_holds_it_is_approved() {
        let registry = Registry::new();
        let (mut one, mut other) = (registry.register(), registry.register());
        assert!(!one.may_use(), "nothing has been proposed");
        one.propose(address(1));
        let (number, list) = registry.list();
        assert_eq!(list, [(address(1), Transport::Udp)]);
        other.propose(address(2));
        registry.approve(number);
        assert!(one.may_use() && !other.may_use());
        registry.approve(registry.number());
        assert!(other.may_use());
    }

    #[test]
    fn the_address_in_use_stays_in_the_list_until_the_destination_has_moved() {
        let registry = Registry::new();
        let mut destination = registry.register_over(Transport::Tcp);
        let listed = |last| (address(last), Transport::Tcp);
        for last in 1..3 {
            destination.propose(address(last));
            registry.approve(registry.number());
        }
        destination.moved();
        destination.propose(address(3));
        assert_eq!(registry.list().1, [listed(2), listed(3)]);
        assert!(!destination.may_use());
        registry.approve(registry.number());
        destination.moved();
        assert!(destination.may_use());
        assert_eq!(registry.list().1, [listed(3)]);
    }

    #[test]
    fn a_destination_that_is_gone_is_in_no_list_and_its_place_is_used_again() {
        let registry = Registry::new();
        let (mut first, mut second) = (registry.register(), registry.register());
        first.propose(address(1));
        second.propose(address(2));
        let before = registry.number();
        drop(first);
        assert!(registry.number() > before);
        let listed = |last| (address(last), Transport::Udp);
        assert_eq!(registry.list().1, [listed(2)]);
        let mut third = registry.register();
        assert!(!third.may_use());
        third.propose(address(3));
        assert_eq!(registry.list().1, [listed(3), listed(2)]);
    }
}
