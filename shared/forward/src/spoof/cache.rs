//! Per-device sockets: bound to the device's address and port, so that the kernel segments its runs
//! (`UDP_SEGMENT`).
//!
//! A socket costs several system calls and a descriptor. So a source gets one with its second long
//! run, if there is room, or if the least recently used socket has been idle for [`IDLE`]. Ten
//! thousand sources that take turns therefore open no more sockets than fit, and are sent through
//! the raw socket otherwise.
//!
//! A bound socket takes its port on this host. A daemon that starts later without `SO_REUSEADDR`
//! could not listen there, so the usual ports of daemons are never bound: those below 1024, and the
//! destination's own.

use std::{
    collections::{HashMap, HashSet},
    hash::{BuildHasher, RandomState},
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Resource, getrlimit},
};
use socket2::{Domain, Socket, Type};

use super::socket::{prepare, set_transparent};

/// Maximum number of sockets of one destination.
const MAX_SOCKETS: usize = 512;

/// How long a socket must have been idle before it makes room for another.
const IDLE: Duration = Duration::from_secs(10);

/// How many sources with one long run are remembered.
const CANDIDATES: usize = 4096;

/// The first port that may be bound: by convention, daemons use lower ones.
const FIRST_FREE_PORT: u16 = 1024;

/// Sockets in the process, of all destinations. They may use half of its descriptors.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// One of the descriptors counted by [`OPEN`].
#[derive(Debug)]
struct Slot;

impl Slot {
    fn take() -> Option<Slot> {
        let most = getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize / 2);
        let taken = OPEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |open| (open < most).then_some(open + 1));
        taken.is_ok().then_some(Slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Entry {
    socket: Socket,
    used_at: Instant,
    _slot: Slot,
}

#[derive(Debug)]
pub(super) struct SocketCache {
    destination: SocketAddr,
    most: usize,
    entries: HashMap<SocketAddr, Entry>,
    /// By hash, a tag of the last source with a long run; 0: none.
    candidates: Box<[u32; CANDIDATES]>,
    hasher: RandomState,
    /// Until then no socket has been idle for long enough, or the process has no descriptor left.
    full_until: Option<Instant>,
    /// Ports that could not be bound; they are retried after [`IDLE`].
    blocked_ports: HashSet<u16>,
    blocked_until: Option<Instant>,
    #[cfg(test)]
    opened: u64,
}

impl SocketCache {
    pub(super) fn new(destination: SocketAddr) -> SocketCache {
        SocketCache {
            destination,
            most: MAX_SOCKETS,
            entries: HashMap::new(),
            candidates: Box::new([0; CANDIDATES]),
            hasher: RandomState::new(),
            full_until: None,
            blocked_ports: HashSet::new(),
            blocked_until: None,
            #[cfg(test)]
            opened: 0,
        }
    }

    /// The socket of `source`, for a long run; `None` if the run must be sent through the raw
    /// socket. `local` is the address that this host itself sends from.
    pub(super) fn socket(&mut self, source: SocketAddr, now: Instant, local: IpAddr) -> Option<&Socket> {
        if source.port() < FIRST_FREE_PORT || source.port() == self.destination.port() {
            return None;
        }
        if !self.entries.contains_key(&source) {
            if !self.was_seen(source) || self.is_blocked(source.port(), now) || !self.has_room(now) {
                return None;
            }
            let Some(slot) = Slot::take() else {
                self.full_until = Some(now + IDLE);
                return None;
            };
            let Ok(entry) = self.open(source, now, slot, local) else {
                self.blocked_ports.insert(source.port());
                self.blocked_until.get_or_insert(now + IDLE);
                return None;
            };
            self.entries.insert(source, entry);
            #[cfg(test)]
            {
                self.opened += 1;
            }
        }
        let entry = self.entries.get_mut(&source)?;
        entry.used_at = now;
        Some(&entry.socket)
    }

    /// The socket of `source`, if it has one.
    pub(super) fn existing(&self, source: SocketAddr) -> Option<&Socket> {
        self.entries.get(&source).map(|entry| &entry.socket)
    }

    /// Closes all sockets.
    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.full_until = None;
    }

    /// How many sockets are open.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many have ever been opened.
    #[cfg(test)]
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    /// Whether `source` is remembered from an earlier long run. Remembers it.
    fn was_seen(&mut self, source: SocketAddr) -> bool {
        let hash = self.hasher.hash_one(source);
        let tag = (hash >> 32) as u32 | 1;
        let candidate = &mut self.candidates[hash as usize % CANDIDATES];
        std::mem::replace(candidate, tag) == tag
    }

    fn is_blocked(&mut self, port: u16, now: Instant) -> bool {
        if self.blocked_until.is_some_and(|until| until <= now) {
            self.blocked_ports.clear();
            self.blocked_until = None;
        }
        self.blocked_ports.contains(&port)
    }

    /// Whether there is room for another socket. Closes an idle one if necessary.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.full_until.is_some_and(|until| now < until) {
            return false;
        }
        if self.entries.len() < self.most {
            return true;
        }
        let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used_at);
        let Some((source, used_at)) = oldest.map(|(&source, entry)| (source, entry.used_at)) else { return false };
        if now < used_at + IDLE {
            self.full_until = Some(used_at + IDLE);
            return false;
        }
        self.entries.remove(&source);
        true
    }

    fn open(&self, source: SocketAddr, now: Instant, slot: Slot, local: IpAddr) -> io::Result<Entry> {
        // For an address of this host, a socket could get datagrams of a daemon with the same port
        // between bind and connect.
        if UdpSocket::bind((source.ip(), 0)).is_ok() {
            return Err(Errno::ADDRINUSE.into());
        }
        let domain = Domain::for_address(self.destination);
        let socket = Socket::new(domain, Type::DGRAM.cloexec(), None)?;
        set_transparent(&socket, domain)?;
        prepare(&socket, self.destination, local)?;
        // Each destination has its own socket for the same source, and daemons with this option can
        // share the port.
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
        socket.connect(&self.destination.into())?;
        Ok(Entry { socket, used_at: now, _slot: slot })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use sekiwake_testkit::{
        netns::{Namespace, namespaces_or_skipped},
        wait::wait_for,
    };

    use super::*;

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn source(number: u8, port: u16) -> SocketAddr {
        SocketAddrV4::new(Ipv4Addr::new(198, 19, 0, number), port).into()
    }

    /// Runs `body` in a namespace of its own, with room for two sockets.
    fn with_cache(body: impl FnOnce(SocketCache, Instant) + Send) {
        if namespaces_or_skipped() {
            let run = || {
                let mut cache = SocketCache::new((LOCAL, 5514).into());
                cache.most = 2;
                body(cache, Instant::now());
            };
            Namespace::new("skw-cache").unwrap().enter(run).unwrap();
        }
    }

    /// Whether a long run of this source gets a socket of its own.
    fn gets_one(cache: &mut SocketCache, source: SocketAddr, now: Instant) -> bool {
        cache.socket(source, now, LOCAL).is_some()
    }

    #[test]
    fn source_gets_a_socket_with_its_second_long_run() {
        with_cache(|mut cache, now| {
            let gets: Vec<bool> = (0..3).map(|_| gets_one(&mut cache, source(1, 40_000), now)).collect();
            assert_eq!(gets, [false, true, true]);
            assert_eq!((cache.len(), cache.opened()), (1, 1));
        });
    }

    #[test]
    fn ports_of_daemons_are_left_alone() {
        with_cache(|mut cache, now| {
            for port in [0, 162, 514, 1023, 5514] {
                assert!((0..3).all(|_| !gets_one(&mut cache, source(1, port), now)), "{port}");
            }
        });
    }

    #[test]
    fn least_recently_used_idle_socket_makes_room() {
        with_cache(|mut cache, start| {
            let sources = [1, 2, 3].map(|number| source(number, 40_000));
            let second = Duration::from_secs(1);
            for (number, &source) in (0..).zip(&sources[..2]) {
                assert!(!gets_one(&mut cache, source, start));
                assert!(gets_one(&mut cache, source, start + number * second));
            }
            // The first is used again, so the second is the least recently used from here on.
            assert!(gets_one(&mut cache, sources[0], start + 2 * second));
            for at in [start + 2 * second, start + second + IDLE - Duration::from_millis(1)] {
                assert!((0..3).all(|_| !gets_one(&mut cache, sources[2], at)), "no socket is idle");
            }
            assert!(gets_one(&mut cache, sources[2], start + second + IDLE));
            assert_eq!((cache.len(), cache.opened()), (2, 3));
            assert!(cache.existing(sources[0]).is_some() && cache.existing(sources[1]).is_none());
        });
    }

    #[test]
    fn blocked_port_is_retried_later() {
        with_cache(|mut cache, now| {
            let daemon = UdpSocket::bind(("0.0.0.0", 40_000)).unwrap();
            assert!((0..3).all(|_| !gets_one(&mut cache, source(1, 40_000), now)));
            assert!(!gets_one(&mut cache, source(1, 40_001), now));
            assert!(gets_one(&mut cache, source(1, 40_001), now));
            drop(daemon);
            // A child that another test is just starting has all sockets of this process until it
            // executes.
            wait_for("a free port", IDLE, || UdpSocket::bind(("0.0.0.0", 40_000)).is_ok()).unwrap();
            assert!(!gets_one(&mut cache, source(1, 40_000), now));
            assert!(gets_one(&mut cache, source(1, 40_000), now + IDLE));
        });
    }
}
