//! Where a stream destination is: its address, which may change, and which captures must know before it is used.

use std::{io, net::SocketAddr};

use prometheus::IntCounter;

use crate::{
    destination::Host,
    registry::Registration,
    resolve::{Addresses, Resolution},
};

/// The address of a stream destination, as far as there is one.
pub(crate) struct Place {
    /// `None` when the destination was written as an address.
    addresses: Option<Addresses>,
    current: Option<SocketAddr>,
    /// The address to move to as soon as captures leave alone what goes there.
    next: Option<SocketAddr>,
    registration: Registration,
}

impl Place {
    /// # Errors
    /// When the system gives no thread for look-ups.
    pub(crate) fn new(
        host: &Host,
        port: u16,
        resolution: Resolution,
        failures: IntCounter,
        mut registration: Registration,
    ) -> io::Result<Place> {
        let (addresses, next) = match host {
            Host::Address(ip) => (None, Some(SocketAddr::new(*ip, port))),
            Host::Name(name) => (Some(Addresses::of(name.clone(), port, resolution, failures)?), None),
        };
        if let Some(address) = next {
            registration.propose(address);
        }
        Ok(Place { addresses, current: None, next, registration })
    }

    /// The address in use.
    pub(crate) fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    /// Whether there is no address yet that captures know, so that nothing can be sent for reasons of our own.
    pub(crate) fn awaits_approval(&self) -> bool {
        self.current.is_none() && self.next.is_some()
    }

    /// Whether there is an address to move to, which captures know. The one in use stays registered until [`Place::move_on`].
    pub(crate) fn may_move(&mut self) -> bool {
        if let Some(address) = self.addresses.as_ref().and_then(Addresses::changed) {
            self.next = Some(address);
            self.registration.propose(address);
        }
        self.next.is_some() && self.registration.may_use()
    }

    /// Nothing is sent any more to the address that was in use.
    pub(crate) fn move_on(&mut self) {
        self.current = self.next.take();
        self.registration.moved();
    }
}
