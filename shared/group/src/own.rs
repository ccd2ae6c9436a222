//! The addresses that this installation itself sends to. Datagrams to them are not captured,
//! because a forwarder's output would be captured and forwarded again in an endless loop.
//!
//! ```text
//! control thread ── list ──▶ OwnDestinations ──▶ OwnWatch of each capture thread
//!                ◀────── the oldest list that a thread still uses, which may be acknowledged
//! ```
//! A list is acknowledged when every capturing thread uses it: forwarders send to a new destination
//! only after that.

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

/// A thread that captures nothing does not delay an acknowledgement.
const RESTING: u64 = u64::MAX;

/// The list, shared between the thread that receives it and the threads that use it. Clones share
/// the same list.
#[derive(Clone, Debug, Default)]
pub struct OwnDestinations(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// The number of the list, which rises with every new one; 0 before the first.
    number: AtomicU64,
    list: Mutex<Arc<[SocketAddr]>>,
    watches: Mutex<Vec<Weak<AtomicU64>>>,
}

/// One thread's view of the list.
#[derive(Debug)]
pub struct OwnWatch {
    own: OwnDestinations,
    /// The number of the list in use, or `RESTING`.
    seen: Arc<AtomicU64>,
}

impl OwnDestinations {
    /// Replaces the list. `number` is higher than that of any list before.
    pub fn set(&self, number: u64, mut addresses: Vec<SocketAddr>) {
        addresses.iter_mut().for_each(|address| *address = canonical(address.ip(), address.port()));
        addresses.sort_unstable();
        addresses.dedup();
        let mut list = self.0.list.lock().unwrap_or_else(PoisonError::into_inner);
        *list = addresses.into();
        self.0.number.store(number, Release);
    }

    /// The current list.
    pub fn list(&self) -> Arc<[SocketAddr]> {
        Arc::clone(&self.0.list.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A view for another thread, which is resting at first.
    pub fn watch(&self) -> OwnWatch {
        let seen = Arc::new(AtomicU64::new(RESTING));
        let mut watches = self.0.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Arc::downgrade(&seen));
        OwnWatch { own: self.clone(), seen }
    }

    /// The number of the newest list that all capturing threads use.
    pub fn applied(&self) -> u64 {
        let watches = self.0.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = watches.iter().filter_map(Weak::upgrade).map(|seen| seen.load(Acquire));
        seen.min().unwrap_or(RESTING).min(self.0.number.load(Acquire))
    }
}

impl OwnWatch {
    /// Whether there is a list that this thread does not use yet. Costs two atomic loads.
    pub fn has_changed(&self) -> bool {
        self.seen.load(Acquire) != self.own.0.number.load(Acquire)
    }

    /// The list, if it differs from the one in use. The thread counts as using it from here on.
    pub fn changed(&self) -> Option<Arc<[SocketAddr]>> {
        if !self.has_changed() {
            return None;
        }
        let list = self.own.0.list.lock().unwrap_or_else(PoisonError::into_inner);
        // The number is read under the lock so that it belongs to this list.
        self.seen.store(self.own.0.number.load(Acquire), Release);
        Some(Arc::clone(&list))
    }

    /// Declares that the thread captures nothing until its next call of `changed`.
    pub fn rest(&self) {
        self.seen.store(RESTING, Release);
    }
}

/// Whether `list`, from [`OwnDestinations`], contains this address and port.
#[inline]
pub fn is_own(list: &[SocketAddr], address: IpAddr, port: u16) -> bool {
    !list.is_empty() && list.binary_search(&canonical(address, port)).is_ok()
}

/// IPv4-mapped IPv6 addresses become IPv4 addresses: packets never carry the mapped form.
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
    fn mapped_addresses_match_ipv4_packets() {
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
    fn list_is_applied_once_every_capturing_thread_uses_it() {
        let own = OwnDestinations::default();
        let busy = own.watch();
        let resting = own.watch();
        assert_eq!(own.applied(), 0, "no list yet");
        own.set(1, addresses(&["198.51.100.7:514"]));
        assert_eq!(own.applied(), 1, "no thread captures");
        assert_eq!(busy.changed().unwrap().len(), 1);
        own.set(2, Vec::new());
        assert_eq!(own.applied(), 1);
        assert_eq!(busy.changed().unwrap().len(), 0);
        assert_eq!((own.applied(), busy.changed()), (2, None));
        assert!(resting.changed().is_some(), "a resting thread gets the list before it resumes");
        own.set(3, Vec::new());
        drop(busy);
        assert_eq!(own.applied(), 2);
        resting.rest();
        assert_eq!(own.applied(), 3);
    }
}
