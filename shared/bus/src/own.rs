//! Addresses that this installation itself sends to. What is addressed there is not captured, or a forwarder's output would be
//! forwarded again, and again.
//!
//! ```text
//! control thread ── list ──▶ OwnDestinations ──▶ OwnWatch of each capture thread
//!                ◀────── the oldest list that any of them still goes by: what may be acknowledged
//! ```
//! A list counts as acknowledged when every thread that captures goes by it: forwarders send to a new destination only then.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Release},
        },
    },
};

/// A thread that captures nothing holds up no acknowledgement.
const RESTING: u64 = u64::MAX;

/// The list, shared between the thread that gets it and the threads that go by it. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct OwnDestinations(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Rises with every list; 0 while there is none.
    number: AtomicU64,
    list: Mutex<Arc<[SocketAddr]>>,
    watches: Mutex<Vec<Weak<AtomicU64>>>,
}

/// One thread's view of the list.
#[derive(Debug)]
pub struct OwnWatch {
    own: OwnDestinations,
    /// The number of the list that it goes by.
    seen: Arc<AtomicU64>,
}

impl OwnDestinations {
    /// Replaces the list by the one of this number.
    pub fn set(&self, number: u64, mut addresses: Vec<SocketAddr>) {
        addresses.iter_mut().for_each(|address| *address = canonical(address.ip(), address.port()));
        addresses.sort_unstable();
        addresses.dedup();
        let mut list = self.0.list.lock().unwrap_or_else(PoisonError::into_inner);
        *list = addresses.into();
        self.0.number.store(number, Release);
    }

    /// The list as it is now.
    pub fn list(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.0.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A view for one more thread, which rests at first.
    pub fn watch(&self) -> OwnWatch {
        let seen = Arc::new(AtomicU64::new(RESTING));
        let mut watches = self.0.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Arc::downgrade(&seen));
        OwnWatch { own: self.clone(), seen }
    }

    /// The number of the newest list that all threads go by.
    pub(crate) fn applied(&self) -> u64 {
        let watches = self.0.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = watches.iter().filter_map(Weak::upgrade).map(|seen| seen.load(Acquire));
        seen.min().unwrap_or(RESTING).min(self.0.number.load(Acquire))
    }
}

impl OwnWatch {
    /// Whether there is another list than the thread goes by. One load.
    pub fn has_changed(&self) -> bool {
        self.seen.load(Acquire) != self.own.0.number.load(Acquire)
    }

    /// The list, if it is another one than the thread goes by. The thread goes by it from here on.
    pub fn changed(&self) -> Option<Arc<[SocketAddr]>> {
        if !self.has_changed() {
            return None;
        }
        let list = self.own.0.list.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that number and list are of one time.
        self.seen.store(self.own.0.number.load(Acquire), Release);
        Some(Arc::clone(&list))
    }

    /// The thread captures nothing until it asks again.
    pub fn rest(&self) {
        self.seen.store(RESTING, Release);
    }
}

/// Whether a datagram to this address and port is one of our own, by a list of [`OwnDestinations`].
#[inline]
pub fn is_own(list: &[SocketAddr], address: IpAddr, port: u16) -> bool {
    !list.is_empty() && list.binary_search(&canonical(address, port)).is_ok()
}

/// An IPv4 address may be written as an IPv6 one; in packets it never is.
fn canonical(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address.to_canonical(), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn an_address_is_own_however_it_is_written() {
        let own = OwnDestinations::default();
        own.set(1, addresses(&["[::ffff:198.51.100.7]:514", "[2001:db8::7]:514"]));
        let known = own.list();
        for (address, port, expected) in [
            ("198.51.100.7", 514, true),
            ("::ffff:198.51.100.7", 514, true),
            ("2001:db8::7", 514, true),
            ("198.51.100.7", 515, false),
            ("198.51.100.8", 514, false),
        ] {
            assert_eq!(is_own(&known, address.parse().unwrap(), port), expected, "{address} {port}");
        }
    }

    #[test]
    fn a_list_is_applied_when_every_thread_that_captures_goes_by_it() {
        let own = OwnDestinations::default();
        let (busy, resting) = (own.watch(), own.watch());
        assert_eq!(own.applied(), 0, "there is no list yet");
        own.set(1, addresses(&["198.51.100.7:514"]));
        assert_eq!(own.applied(), 1, "nobody captures");
        assert_eq!(busy.changed().unwrap().len(), 1);
        own.set(2, Vec::new());
        assert_eq!(own.applied(), 1);
        assert_eq!(busy.changed().unwrap().len(), 0);
        assert_eq!((own.applied(), busy.changed()), (2, None));
        assert!(resting.changed().is_some(), "who comes back gets the list first");
        own.set(3, Vec::new());
        drop(busy);
        assert_eq!(own.applied(), 2);
        resting.rest();
        assert_eq!(own.applied(), 3);
    }
}
