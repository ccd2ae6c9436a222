//! Recognises the second copy of what one interface shows twice, such as a mirror of both
//! directions.
//!
//! What is equal and captured within the window after its like is its copy. Each occurrence has
//! one copy at most: a third like is a new occurrence, a fourth its copy. So of a device that
//! repeats a datagram under the same identification, as many arrive as it sent.
//!
//! ```text
//! first ─▶ occurrence (remembered) ─▶ like within the window: copy (forgotten)
//!                 ▲          └──────▶ like after the window: occurrence
//!                 └── evicted, when more are live than the table holds: its copy is an occurrence
//! ```
//! No clock and no I/O: fingerprints and capture times go in. Memory is allocated once.

use std::{net::IpAddr, time::Duration};

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::decode::Datagram;

/// The window of what has no identification: IPv4 with identification 0, IPv6 without a fragment
/// header. A repetition by the device cannot be told from a copy.
pub const UNIDENTIFIED_WINDOW: Duration = Duration::from_millis(1);

/// Occurrences that are remembered, at most. Of 16 bytes each: 1 MiB.
pub const CAPACITY: usize = 1 << 16;

/// Slots of one bucket; a fingerprint selects the bucket.
const WAYS: usize = 8;

/// How copies are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeduplicateSettings {
    /// The longest time between the capture times of two copies.
    pub window: Duration,
    /// Random, so that no sender can choose a payload with another one's fingerprint.
    pub seed: u64,
}

/// What two copies have in common, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// The lowest bit says whether there is an identification. 0 stands for an empty slot.
    fn new(hash: u64, is_identified: bool) -> Fingerprint {
        Fingerprint((hash & !1 | u64::from(is_identified)).max(2))
    }

    fn is_identified(self) -> bool {
        self.0 & 1 == 1
    }
}

/// A fragment, for its fingerprint.
pub(crate) struct FragmentParts<'a> {
    /// A hash of the VLANs and tunnels around it. Copies with different ones are reassembled
    /// separately, and compared as datagrams.
    pub(crate) context: u64,
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) identification: u32,
    /// The protocol of the first header in the fragmented payload.
    pub(crate) protocol: u8,
    pub(crate) offset: u32,
    pub(crate) more: bool,
    pub(crate) bytes: &'a [u8],
}

#[derive(Clone, Copy, Default)]
struct Slot {
    /// The fingerprint, or 0 if the slot is empty.
    key: u64,
    captured_at_ns: u64,
}

/// The occurrences whose copies have not been captured yet.
pub struct Deduplicator {
    window_ns: u64,
    seed: u64,
    slots: Box<[Slot]>,
    evicted: u64,
}

impl Deduplicator {
    /// Without any occurrence.
    pub fn new(settings: DeduplicateSettings) -> Deduplicator {
        Deduplicator {
            window_ns: u64::try_from(settings.window.as_nanos()).unwrap_or(u64::MAX),
            seed: settings.seed,
            slots: vec![Slot::default(); CAPACITY].into_boxed_slice(),
            evicted: 0,
        }
    }

    /// The fingerprint of a datagram: addresses, ports, identification and payload, but not the
    /// link layer, VLANs, tunnels, TTL, traffic class and checksums.
    pub fn fingerprint(&self, datagram: &Datagram<'_>) -> Fingerprint {
        let mut header = [0; 40];
        header[..16].copy_from_slice(&octets(datagram.source));
        header[16..32].copy_from_slice(&octets(datagram.destination));
        header[32..34].copy_from_slice(&datagram.source_port.to_be_bytes());
        header[34..36].copy_from_slice(&datagram.destination_port.to_be_bytes());
        header[36..].copy_from_slice(&datagram.identification.to_be_bytes());
        let hash = xxh3_64_with_seed(&header, xxh3_64_with_seed(datagram.payload, self.seed));
        Fingerprint::new(hash, datagram.identification != 0)
    }

    pub(crate) fn fragment_fingerprint(&self, fragment: &FragmentParts<'_>) -> Fingerprint {
        const UDP: u8 = 17;
        let mut header = [0; 50];
        header[..8].copy_from_slice(&fragment.context.to_be_bytes());
        header[8..24].copy_from_slice(&octets(fragment.source));
        header[24..40].copy_from_slice(&octets(fragment.destination));
        header[40..44].copy_from_slice(&fragment.identification.to_be_bytes());
        header[44..48].copy_from_slice(&fragment.offset.to_be_bytes());
        header[48] = fragment.protocol;
        header[49] = u8::from(fragment.more);
        // Without the checksum in the UDP header.
        let (before, after) = match fragment.bytes.split_at_checked(8) {
            Some((udp, rest)) if fragment.offset == 0 && fragment.protocol == UDP => (&udp[..6], rest),
            _ => (fragment.bytes, &[][..]),
        };
        let hash = [before, after].iter().fold(self.seed, |hash, bytes| xxh3_64_with_seed(bytes, hash));
        Fingerprint::new(xxh3_64_with_seed(&header, hash), fragment.identification != 0)
    }

    /// Whether this is the copy of a remembered occurrence. If not, it is remembered. The capture
    /// time is in nanoseconds since 1970-01-01T00:00:00Z; it may go back.
    pub fn is_copy(&mut self, fingerprint: Fingerprint, captured_at_ns: u64) -> bool {
        let key = fingerprint.0;
        let first = (key >> 1) as usize % (CAPACITY / WAYS) * WAYS;
        let window_ns = self.window_ns;
        let bucket = &mut self.slots[first..first + WAYS];
        if let Some(like) = bucket.iter_mut().find(|slot| slot.key == key) {
            let is_copy = like.is_live(captured_at_ns, window_ns);
            *like = if is_copy { Slot::default() } else { Slot { key, captured_at_ns } };
            return is_copy;
        }
        // An empty slot, or else the one whose time is furthest away.
        let age = |slot: &&mut Slot| match slot.key {
            0 => u64::MAX,
            _ => slot.captured_at_ns.abs_diff(captured_at_ns),
        };
        if let Some(slot) = bucket.iter_mut().max_by_key(age) {
            self.evicted += u64::from(slot.is_live(captured_at_ns, window_ns));
            *slot = Slot { key, captured_at_ns };
        }
        false
    }

    /// Occurrences forgotten within their window, because too many were live.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }
}

impl Slot {
    /// Whether a like captured at this time is its copy.
    fn is_live(&self, now_ns: u64, window_ns: u64) -> bool {
        const UNIDENTIFIED_NS: u64 = UNIDENTIFIED_WINDOW.as_nanos() as u64;
        let is_identified = Fingerprint(self.key).is_identified();
        let window_ns = if is_identified { window_ns } else { window_ns.min(UNIDENTIFIED_NS) };
        self.key != 0 && self.captured_at_ns.abs_diff(now_ns) <= window_ns
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}
