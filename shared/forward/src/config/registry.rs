//! The addresses that one forwarder sends to, so that captures can exclude the traffic to them.
//!
//! ```text
//! endpoint's thread           pump                         control plane
//! propose(address) ──▶ list, number ──▶ register ──▶ every capture excludes it
//!   may_use ◀── approved ◀────────────────────────────────┘ (or two seconds have passed)
//! ```
//! An endpoint sends to an address only once it is approved. Otherwise a capture on the same
//! network would mistake the datagrams for those of a device, and they would loop.

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

/// The addresses that captures have to exclude.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressList {
    /// Every change of the list increments it.
    pub number: u64,
    /// The addresses, each once.
    pub addresses: Vec<RegisteredAddress>,
}

/// An address that one or more endpoints send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisteredAddress {
    /// Address and port.
    pub address: SocketAddr,
    /// The transport of the datagrams.
    pub transport: Transport,
}

#[derive(Debug)]
struct Inner {
    entries: Mutex<Vec<Entry>>,
    /// Counts changes.
    number: AtomicU64,
    approved: AtomicU64,
}

/// The addresses of one endpoint: the one in use stays registered until it is replaced.
#[derive(Clone, Copy, Debug)]
struct Entry {
    transport: Transport,
    in_use: Option<SocketAddr>,
    proposed: Option<SocketAddr>,
    is_vacant: bool,
}

impl Entry {
    fn empty(transport: Transport) -> Entry {
        Entry { transport, in_use: None, proposed: None, is_vacant: false }
    }
}

/// The entry of one endpoint in the registry. Dropping it removes its addresses from the list.
#[derive(Debug)]
pub(crate) struct Registration {
    registry: Registry,
    index: usize,
    /// The number of the list with the newest proposal; 0 before the first.
    number: u64,
}

impl Registry {
    /// A registry that is served: addresses wait for approval.
    pub fn new() -> Registry {
        Registry::approving(0)
    }

    /// A registry that is not served: every address is approved.
    pub fn open() -> Registry {
        Registry::approving(u64::MAX)
    }

    fn approving(approved: u64) -> Registry {
        Registry(Arc::new(Inner {
            entries: Mutex::default(),
            number: AtomicU64::new(0),
            approved: AtomicU64::new(approved),
        }))
    }

    /// The number of the list, which every change increments.
    pub fn number(&self) -> u64 {
        self.0.number.load(Acquire)
    }

    /// The current list.
    pub fn list(&self) -> AddressList {
        let entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses_of = |entry: &Entry| {
            let transport = entry.transport;
            [entry.in_use, entry.proposed]
                .into_iter()
                .flatten()
                .map(move |address| RegisteredAddress { address, transport })
        };
        let mut addresses: Vec<RegisteredAddress> = Vec::new();
        // Two endpoints may have the same address for a moment, while one replaces the other.
        for address in entries.iter().flat_map(addresses_of) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        AddressList { number: self.0.number.load(Acquire), addresses }
    }

    /// Every capture uses the list of this number.
    pub fn approve(&self, number: u64) {
        self.0.approved.fetch_max(number, Release);
    }

    /// An entry for an endpoint that is sent to over this transport.
    pub(crate) fn register(&self, transport: Transport) -> Registration {
        let mut entries = self.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        // Reuses the entry of a removed endpoint. Otherwise every reload would make the list
        // longer.
        let vacant = entries.iter().position(|entry| entry.is_vacant);
        let index = vacant.unwrap_or_else(|| {
            entries.push(Entry::empty(transport));
            entries.len() - 1
        });
        entries[index] = Entry::empty(transport);
        Registration { registry: self.clone(), index, number: 0 }
    }
}

impl Default for Registry {
    fn default() -> Registry {
        Registry::new()
    }
}

impl Registration {
    /// The endpoint is going to send to this address.
    pub(crate) fn propose(&mut self, address: SocketAddr) {
        self.change(|entry| entry.proposed = Some(address));
    }

    /// Whether the address that was proposed last may be sent to.
    pub(crate) fn may_use(&self) -> bool {
        self.number > 0 && self.registry.0.approved.load(Acquire) >= self.number
    }

    /// The endpoint sends to the proposed address, and no longer to the one before.
    pub(crate) fn moved(&mut self) {
        let number = self.number;
        self.change(|entry| entry.in_use = entry.proposed.take());
        // The address in use stays approved while the list without the old one is on its way.
        self.number = number;
    }

    fn change(&mut self, change: impl FnOnce(&mut Entry)) {
        let mut entries = self.registry.0.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.get_mut(self.index) {
            change(entry);
        }
        self.number = self.registry.0.number.fetch_add(1, Release) + 1;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.change(|entry| *entry = Entry { is_vacant: true, ..Entry::empty(entry.transport) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, last], 514))
    }

    #[test]
    fn address_may_be_used_once_its_list_is_approved() {
        let registry = Registry::new();
        let mut one = registry.register(Transport::Udp);
        let mut other = registry.register(Transport::Udp);
        assert!(!one.may_use(), "nothing has been proposed");
        one.propose(address(1));
        let AddressList { number, addresses } = registry.list();
        assert_eq!(addresses, [RegisteredAddress { address: address(1), transport: Transport::Udp }]);
        other.propose(address(2));
        registry.approve(number);
        assert!(one.may_use() && !other.may_use());
        registry.approve(registry.number());
        assert!(other.may_use());
    }

    #[test]
    fn address_in_use_stays_listed_until_the_move() {
        let registry = Registry::new();
        let mut destination = registry.register(Transport::Tcp);
        let listed = |last| RegisteredAddress { address: address(last), transport: Transport::Tcp };
        for last in 1..3 {
            destination.propose(address(last));
            registry.approve(registry.number());
        }
        destination.moved();
        destination.propose(address(3));
        assert_eq!(registry.list().addresses, [listed(2), listed(3)]);
        assert!(!destination.may_use());
        registry.approve(registry.number());
        destination.moved();
        assert!(destination.may_use());
        assert_eq!(registry.list().addresses, [listed(3)]);
    }

    #[test]
    fn entry_of_a_removed_endpoint_is_reused() {
        let registry = Registry::new();
        let mut first = registry.register(Transport::Udp);
        let mut second = registry.register(Transport::Udp);
        first.propose(address(1));
        second.propose(address(2));
        let before = registry.number();
        drop(first);
        assert!(registry.number() > before);
        let listed = |last| RegisteredAddress { address: address(last), transport: Transport::Udp };
        assert_eq!(registry.list().addresses, [listed(2)]);
        let mut third = registry.register(Transport::Udp);
        assert!(!third.may_use());
        third.propose(address(3));
        assert_eq!(registry.list().addresses, [listed(3), listed(2)]);
    }
}
