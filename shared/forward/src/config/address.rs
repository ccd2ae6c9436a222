//! The addresses of one endpoint, which may change, and which captures must know before they are
//! used.
//!
//! ```text
//! name ─ look-up ─▶ addresses ─ one ─▶ proposed ─ every capture excludes it ─▶ move_on ─▶ current
//!                       ▲                                                        │
//!                       └──────────────── try_another, when it fails ────────────┘
//! ```

use std::{io, net::SocketAddr, thread, time::Duration};

use prometheus::IntCounter;

use super::{
    destination::{Endpoint, Host},
    registry::Registration,
    resolve::{LookUps, Resolution},
};

/// An endpoint's address, used only once every capture excludes it.
pub(crate) struct ApprovedAddress {
    /// `None` when the endpoint was configured as an address.
    look_ups: Option<LookUps>,
    candidates: Candidates,
    current: Option<SocketAddr>,
    /// The address to move to as soon as captures exclude datagrams to it.
    proposed: Option<SocketAddr>,
    /// The current address has failed, and the proposed one takes its place.
    has_failed: bool,
    registration: Registration,
}

impl ApprovedAddress {
    /// # Errors
    /// When no thread for look-ups can be spawned.
    pub(crate) fn new(
        endpoint: &Endpoint,
        resolution: Resolution,
        failures: IntCounter,
        registration: Registration,
    ) -> io::Result<ApprovedAddress> {
        let mut address = ApprovedAddress {
            look_ups: None,
            candidates: Candidates::default(),
            current: None,
            proposed: None,
            has_failed: false,
            registration,
        };
        match &endpoint.host {
            Host::Address(ip) => address.propose(SocketAddr::new(*ip, endpoint.port)),
            Host::Name(name) => {
                address.look_ups = Some(LookUps::of(name.clone(), endpoint.port, resolution, failures)?);
            }
        }
        Ok(address)
    }

    /// The address in use.
    pub(crate) fn current(&self) -> Option<SocketAddr> {
        self.current
    }

    /// The address to use once captures know it.
    pub(crate) fn proposed(&self) -> Option<SocketAddr> {
        self.proposed
    }

    /// Whether captures do not know any address yet: then nothing is sent, and the destination is
    /// not at fault.
    pub(crate) fn awaits_approval(&self) -> bool {
        self.current.is_none() && self.proposed.is_some()
    }

    /// Whether the address in use has failed, and another one is about to take its place.
    pub(crate) fn is_changing(&self) -> bool {
        self.has_failed
    }

    /// Whether the name has not been resolved yet.
    pub(crate) fn is_unresolved(&self) -> bool {
        self.current.is_none() && self.proposed.is_none()
    }

    /// Proposes an address of the newest answer of the resolver, and returns it, unless the one in
    /// use is still among them.
    pub(crate) fn poll(&mut self) -> Option<SocketAddr> {
        let addresses = self.look_ups.as_ref().and_then(LookUps::changed)?;
        self.answered(addresses)
    }

    /// As [`ApprovedAddress::poll`], waiting for an answer. An endpoint without a name just waits.
    pub(crate) fn wait(&mut self, timeout: Duration) -> Option<SocketAddr> {
        let Some(look_ups) = &self.look_ups else {
            thread::sleep(timeout);
            return None;
        };
        let addresses = look_ups.wait(timeout)?;
        self.answered(addresses)
    }

    fn answered(&mut self, addresses: Vec<SocketAddr>) -> Option<SocketAddr> {
        let in_use = self.proposed.or(self.current);
        let address = self.candidates.replace(addresses, in_use)?;
        self.propose(address);
        Some(address)
    }

    /// The address in use has failed: proposes another one of the name. Returns whether that has
    /// not failed since one of them last worked.
    pub(crate) fn try_another(&mut self) -> bool {
        let Some(current) = self.current.filter(|_| self.proposed.is_none()) else { return false };
        let (next, is_untried) = self.candidates.after(current);
        if next != current {
            self.propose(next);
            self.has_failed = true;
        }
        is_untried
    }

    /// The address in use works.
    pub(crate) fn works(&mut self) {
        self.candidates.failed.clear();
    }

    /// Whether there is an address to move to, which captures know. The one in use stays registered
    /// until [`ApprovedAddress::move_on`].
    pub(crate) fn may_move_on(&self) -> bool {
        self.proposed.is_some() && self.registration.may_use()
    }

    /// The proposed address is in use from now on, and nothing is sent to the one before. Returns
    /// whether that one had failed.
    pub(crate) fn move_on(&mut self) -> bool {
        self.current = self.proposed.take();
        self.registration.moved();
        std::mem::take(&mut self.has_failed)
    }

    fn propose(&mut self, address: SocketAddr) {
        self.proposed = Some(address);
        self.registration.propose(address);
    }
}

/// The addresses of one name, and which of them have failed since one of them last worked.
#[derive(Debug, Default)]
struct Candidates {
    /// Best first.
    addresses: Vec<SocketAddr>,
    failed: Vec<SocketAddr>,
}

impl Candidates {
    /// The name has these addresses now. Returns the one to use, unless the one in use is among
    /// them: it stays, because resolvers shuffle them.
    fn replace(&mut self, addresses: Vec<SocketAddr>, in_use: Option<SocketAddr>) -> Option<SocketAddr> {
        self.failed.retain(|address| addresses.contains(address));
        self.addresses = addresses;
        if in_use.is_some_and(|in_use| self.addresses.contains(&in_use)) {
            return None;
        }
        self.addresses.iter().find(|address| !self.failed.contains(address)).or(self.addresses.first()).copied()
    }

    /// The address to use after a failure of the one in use, and whether it has not failed itself.
    fn after(&mut self, in_use: SocketAddr) -> (SocketAddr, bool) {
        if !self.failed.contains(&in_use) {
            self.failed.push(in_use);
        }
        match self.addresses.iter().find(|address| !self.failed.contains(address)) {
            Some(address) => (*address, true),
            None => {
                self.failed.clear();
                (self.addresses.first().copied().unwrap_or(in_use), false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        SocketAddr::from(([198, 51, 100, last], 514))
    }

    #[test]
    fn address_stays_in_use_while_the_name_has_it() {
        let mut candidates = Candidates::default();
        assert_eq!(candidates.replace(vec![address(1), address(2)], None), Some(address(1)));
        assert_eq!(candidates.replace(vec![address(2), address(1)], Some(address(1))), None);
        assert_eq!(candidates.replace(vec![address(2), address(3)], Some(address(1))), Some(address(2)));
        assert_eq!(candidates.replace(vec![address(2)], Some(address(2))), None);
    }

    #[test]
    fn every_address_is_tried_before_one_is_tried_again() {
        let mut candidates = Candidates::default();
        candidates.replace((1..4).map(address).collect(), None);
        assert_eq!(candidates.after(address(1)), (address(2), true));
        assert_eq!(candidates.after(address(2)), (address(3), true));
        assert_eq!(candidates.after(address(3)), (address(1), false));
        assert_eq!(candidates.after(address(1)), (address(2), true));
        candidates.failed.clear();
        assert_eq!(candidates.after(address(2)), (address(1), true), "the first one may work again");
        let mut only = Candidates::default();
        assert_eq!(only.after(address(1)), (address(1), false), "without a name");
    }

    #[test]
    fn new_address_is_preferred_to_a_failed_one() {
        let mut candidates = Candidates::default();
        candidates.replace(vec![address(1), address(2)], None);
        candidates.after(address(1));
        let next = candidates.replace(vec![address(1), address(3)], Some(address(2)));
        assert_eq!(next, Some(address(3)));
    }
}
