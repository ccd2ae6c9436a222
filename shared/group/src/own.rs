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
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{
            AtomicU64,
            Ordering::{Acquire, Relaxed, Release},
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
    list: Mutex<Arc<OwnList>>,
    watches: Mutex<Vec<Weak<AtomicU64>>>,
}

/// Addresses that must not be captured.
#[derive(Debug, Default)]
pub struct OwnList {
    /// Sorted.
    addresses: Box<[SocketAddr]>,
    /// The addresses whose datagrams are counted, sorted by their index.
    counted: Box<[Counted]>,
}

/// An address that a client has registered.
#[derive(Clone, Debug)]
struct Counted {
    /// Its index in the addresses.
    index: usize,
    /// Datagrams left alone, shared by all lists in a row that count them.
    datagrams: Arc<AtomicU64>,
}

/// One thread's view of the list.
#[derive(Debug)]
pub struct OwnWatch {
    own: OwnDestinations,
    /// The number of the list in use, or `RESTING`.
    seen: Arc<AtomicU64>,
}

impl OwnList {
    /// A list of these addresses, none of which is counted.
    pub fn new(addresses: impl IntoIterator<Item = SocketAddr>) -> OwnList {
        OwnList::counting(addresses, &[], &OwnList::default())
    }

    /// A list of these addresses, of which `counted` are counted, from where `former` has come.
    fn counting(addresses: impl IntoIterator<Item = SocketAddr>, counted: &[SocketAddr], former: &OwnList) -> OwnList {
        let canonical = |address: SocketAddr| canonical(address.ip(), address.port());
        let mut addresses: Vec<SocketAddr> = addresses.into_iter().map(canonical).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let indices: BTreeMap<usize, SocketAddr> = counted
            .iter()
            .map(|address| canonical(*address))
            .filter_map(|address| Some((addresses.binary_search(&address).ok()?, address)))
            .collect();
        let counted = indices.into_iter().map(|(index, address)| {
            let known = former.counted.iter().find(|known| former.addresses[known.index] == address);
            Counted { index, datagrams: known.map(|known| Arc::clone(&known.datagrams)).unwrap_or_default() }
        });
        OwnList { counted: counted.collect(), addresses: addresses.into() }
    }

    /// The addresses, sorted.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The index of this address and port in the list, if it is in it.
    #[inline]
    pub fn position(&self, address: IpAddr, port: u16) -> Option<usize> {
        if self.addresses.is_empty() {
            return None;
        }
        self.addresses.binary_search(&canonical(address, port)).ok()
    }

    /// Whether the list has addresses whose datagrams are counted.
    pub fn counts(&self) -> bool {
        !self.counted.is_empty()
    }

    /// Counts a datagram to the address with this index, if that is counted.
    pub fn count(&self, index: usize) {
        if let Ok(counted) = self.counted.binary_search_by_key(&index, |counted| counted.index) {
            self.counted[counted].datagrams.fetch_add(1, Relaxed);
        }
    }

    /// Adds a thread's own counts, by index, and sets them to 0.
    pub fn take_counts(&self, counts: &mut [u64]) {
        for Counted { index, datagrams } in &self.counted {
            if let Some(count) = counts.get_mut(*index).filter(|count| **count > 0) {
                datagrams.fetch_add(std::mem::take(count), Relaxed);
            }
        }
    }

    /// The counted addresses that datagrams were left alone to, with their number.
    pub fn left_alone(&self) -> impl Iterator<Item = (SocketAddr, u64)> {
        let all = self.counted.iter().map(|counted| (self.addresses[counted.index], counted.datagrams.load(Relaxed)));
        all.filter(|(_, datagrams)| *datagrams > 0)
    }
}

impl OwnDestinations {
    /// Replaces the list. `number` is higher than that of any list before. Datagrams to `counted`
    /// addresses are counted, from 0 if the list before did not count them.
    pub fn set(&self, number: u64, addresses: impl IntoIterator<Item = SocketAddr>, counted: &[SocketAddr]) {
        let mut list = self.0.list.lock().unwrap_or_else(PoisonError::into_inner);
        *list = Arc::new(OwnList::counting(addresses, counted, &list));
        self.0.number.store(number, Release);
    }

    /// The current list.
    pub fn list(&self) -> Arc<OwnList> {
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

    /// Whether this thread uses a list.
    pub fn has_list(&self) -> bool {
        !matches!(self.seen.load(Acquire), 0 | RESTING)
    }

    /// The list, if it differs from the one in use. The thread counts as using it from here on.
    pub fn changed(&self) -> Option<Arc<OwnList>> {
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
        own.set(1, addresses(&["[::ffff:198.51.100.7]:514", "[2001:db8::7]:514"]), &[]);
        let known = own.list();
        for (address, port, expected) in [
            ("198.51.100.7", 514, true),
            ("::ffff:198.51.100.7", 514, true),
            ("2001:db8::7", 514, true),
            ("198.51.100.7", 515, false),
            ("198.51.100.8", 514, false),
        ] {
            let is_own = known.position(address.parse().unwrap(), port).is_some();
            assert_eq!(is_own, expected, "{address} {port}");
        }
    }

    #[test]
    fn list_is_applied_once_every_capturing_thread_uses_it() {
        let own = OwnDestinations::default();
        let busy = own.watch();
        let resting = own.watch();
        assert_eq!(own.applied(), 0, "no list yet");
        own.set(1, addresses(&["198.51.100.7:514"]), &[]);
        assert_eq!(own.applied(), 1, "no thread captures");
        assert_eq!(busy.changed().unwrap().addresses().len(), 1);
        own.set(2, [], &[]);
        assert_eq!(own.applied(), 1);
        assert_eq!(busy.changed().unwrap().addresses().len(), 0);
        assert!(own.applied() == 2 && busy.changed().is_none());
        assert!(resting.changed().is_some(), "a resting thread gets the list before it resumes");
        own.set(3, [], &[]);
        drop(busy);
        assert_eq!(own.applied(), 2);
        resting.rest();
        assert_eq!(own.applied(), 3);
    }

    #[test]
    fn datagrams_are_counted_as_long_as_every_list_counts_their_address() {
        let own = OwnDestinations::default();
        let [first, second, third] = ["198.51.100.7:514", "198.51.100.8:514", "198.51.100.9:514"];
        let counted = |own: &OwnDestinations| own.list().left_alone().collect::<Vec<_>>();
        own.set(1, addresses(&[first, second]), &addresses(&[second]));
        let of_thread = own.list();
        let mut counts = [5, 7];
        of_thread.take_counts(&mut counts);
        assert_eq!((counts, counted(&own)), ([5, 0], vec![(second.parse().unwrap(), 7)]), "one is not counted");
        // The thread still uses the first list, in which the address has another index.
        own.set(2, addresses(&[third, second]), &addresses(&[third, second, first]));
        of_thread.count(1);
        of_thread.count(0);
        assert_eq!(counted(&own), [(second.parse().unwrap(), 8)]);
        own.set(3, addresses(&[second]), &[]);
        assert!(!own.list().counts());
        own.set(4, addresses(&[second]), &addresses(&[second]));
        assert_eq!(counted(&own), [], "another registration");
    }
}
