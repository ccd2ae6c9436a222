//! The exporters of one address, version and domain, which their ports tell apart (RFC 7011 §2: a
//! transport session of UDP is its addresses and ports).
//!
//! An exporter that takes another port for each datagram is not told apart: after 16 ports within
//! an hour, the address is one exporter.

use std::collections::HashMap;

use crate::{header::Key, lru::Seeded};

/// The number of ports that are told apart.
pub(crate) const MAX_PORTS: usize = 16;

/// The exporters of an address, by their indices.
#[derive(Debug, Default)]
pub(crate) struct Address {
    /// Those with a port, at most [`MAX_PORTS`].
    pub(crate) ports: Vec<u32>,
    /// What is known of the address without a port.
    pub(crate) whole: Option<u32>,
    /// The address is one exporter.
    pub(crate) is_one: bool,
}

impl Address {
    pub(crate) fn members(&self) -> impl Iterator<Item = u32> {
        self.ports.iter().copied().chain(self.whole)
    }
}

/// The addresses of the known exporters.
pub(crate) struct Addresses(HashMap<Key, Address, Seeded>);

impl Addresses {
    pub(crate) fn new() -> Addresses {
        Addresses(HashMap::with_hasher(Seeded::new()))
    }

    /// The address of an exporter with this key.
    pub(crate) fn get(&self, key: &Key) -> Option<&Address> {
        self.0.get(&key.without_port())
    }

    /// Adds an exporter.
    pub(crate) fn add(&mut self, key: &Key, index: u32) {
        let address = self.0.entry(key.without_port()).or_default();
        match key.port() {
            0 => address.whole = Some(index),
            _ => address.ports.push(index),
        }
    }

    /// Removes an exporter. An address without exporters is removed.
    pub(crate) fn remove(&mut self, key: &Key, index: u32) {
        let key = key.without_port();
        let Some(address) = self.0.get_mut(&key) else { return };
        address.ports.retain(|port| *port != index);
        address.whole = address.whole.filter(|whole| *whole != index);
        if address.members().next().is_none() {
            self.0.remove(&key);
        }
    }

    /// From now on the address is one exporter, its `whole`.
    pub(crate) fn unite(&mut self, key: &Key, whole: u32) {
        self.0.insert(key.without_port(), Address { ports: Vec::new(), whole: Some(whole), is_one: true });
    }
}
