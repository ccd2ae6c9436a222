//! Reassembly of IP fragments.
//!
//! Bytes, datagrams and time are bounded; at a limit the oldest datagram is evicted. Fragments that
//! overlap or contradict each other discard the whole datagram, as RFC 5722 requires for IPv6 and
//! as Linux does for IPv4, because an attacker could exploit any rule for choosing between them.
//!
//! The kernel can reassemble on the capture socket (`PACKET_FANOUT_FLAG_DEFRAG`), but only IPv4,
//! not inside tunnels and not for savefiles.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{Counters, DropReason};

/// Bounds of reassembly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReassemblyLimits {
    /// Memory for pending fragments and their bookkeeping, bytes. In addition up to 1 MiB of
    /// buffers is kept for reuse, and one more datagram may exist while its fragments are
    /// assembled.
    pub bytes: usize,
    /// Incomplete datagrams.
    pub datagrams: usize,
    /// Time from the first fragment of an IPv4 datagram to its last, nanoseconds of packet time.
    pub ipv4_timeout_ns: u64,
    /// The same for IPv6.
    pub ipv6_timeout_ns: u64,
}

impl Default for ReassemblyLimits {
    /// 16 MiB, 8,192 datagrams, the 30 s of a Linux receiver for IPv4, and the 60 s of RFC 8200
    /// §4.5 for IPv6.
    fn default() -> ReassemblyLimits {
        ReassemblyLimits {
            bytes: 16 << 20,
            datagrams: 8192,
            ipv4_timeout_ns: 30_000_000_000,
            ipv6_timeout_ns: 60_000_000_000,
        }
    }
}

/// The fields that all fragments of one datagram share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) identification: u32,
    /// The protocol field of IPv4. Zero for IPv6, whose fragments may have different next headers
    /// (RFC 8200 §4.5).
    pub(super) protocol: u8,
    /// A hash of the VLANs and tunnels around the packet, because several of them may use the same
    /// private addresses.
    pub(super) context: u64,
}

impl Key {
    fn is_ipv6(&self) -> bool {
        self.source.is_ipv6()
    }
}

/// One fragment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment<'a> {
    /// Position of its bytes in the datagram's IP payload, bytes.
    pub(super) offset: u32,
    /// The "more fragments" flag: it is not the last one.
    pub(super) more: bool,
    pub(super) bytes: &'a [u8],
    /// Fields of its own headers. The datagram gets those of the fragment at offset 0.
    pub(super) fields: HeaderFields,
}

/// Header fields that a datagram takes from its first fragment.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeaderFields {
    /// The protocol of the reassembled bytes' first header.
    pub(super) protocol: u8,
    pub(super) dscp: u8,
    pub(super) ttl: u8,
}

/// The IP payload of a complete datagram. [`Reassembly::recycle`] takes its buffer back.
pub(super) struct Reassembled {
    pub(super) bytes: Vec<u8>,
    pub(super) fields: HeaderFields,
}

/// The longest IP payload that can be reassembled, bytes.
const MAX_LENGTH: u32 = 65_535;

/// Memory of an incomplete datagram in addition to its bytes: its entries in the map and in the
/// order of age.
const DATAGRAM_OVERHEAD: usize = 256;

/// Buffers kept for the next datagrams, so that steady fragment traffic does not allocate.
const SPARE_BUFFERS: usize = 16;

pub(super) struct Reassembly {
    limits: ReassemblyLimits,
    incomplete: HashMap<Key, Incomplete>,
    /// The keys of `incomplete` in the order in which their first fragments arrived: those of IPv4,
    /// those of IPv6. They time out at different ages, so the oldest of each is the next to do so.
    by_age: [BTreeMap<u64, Key>; 2],
    next_serial: u64,
    memory: usize,
    spare: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Incomplete {
    serial: u64,
    started_ns: u64,
    /// Its fragments contradicted each other. The entry stays, so that the remaining fragments are
    /// dropped too.
    discarded: bool,
    /// Packets received for it.
    packets: u64,
    fields: HeaderFields,
    /// The bytes of all pieces in order of arrival.
    bytes: Vec<u8>,
    /// Ordered by offset, without overlap.
    pieces: Vec<Piece>,
    /// The datagram's length, bytes, once its last fragment has arrived.
    length: Option<u32>,
}

#[derive(Clone, Copy)]
struct Piece {
    offset: u32,
    length: u32,
    /// Where it begins in [`Incomplete::bytes`].
    start: u32,
}

impl Piece {
    fn end(self) -> u32 {
        self.offset + self.length
    }
}

impl Reassembly {
    pub(super) fn new(limits: ReassemblyLimits) -> Reassembly {
        Reassembly {
            limits,
            incomplete: HashMap::new(),
            by_age: Default::default(),
            next_serial: 0,
            memory: 0,
            spare: Vec::new(),
        }
    }

    /// Adds a fragment. Returns the datagram if it is complete now, `None` if fragments are
    /// missing.
    pub(super) fn push(
        &mut self,
        key: Key,
        fragment: Fragment<'_>,
        now_ns: u64,
        counters: &mut Counters,
    ) -> Result<Option<Reassembled>, DropReason> {
        self.expire(now_ns, counters);
        let length = fragment.bytes.len() as u32;
        let end = fragment.offset + length;
        if length == 0 || end > MAX_LENGTH || (fragment.more && !length.is_multiple_of(8)) {
            return Err(DropReason::FragmentInvalid);
        }
        // `expire` stops at the first entry that has not timed out. Where packet time steps back,
        // that may be an older one than this.
        if self.incomplete.get(&key).is_some_and(|datagram| self.is_stale(&key, datagram, now_ns)) {
            self.give_up(&key, DropReason::FragmentTimeout, counters);
        }
        if !self.incomplete.contains_key(&key) {
            self.start(key, now_ns, counters);
        }
        let Some(datagram) = self.incomplete.get_mut(&key) else {
            return Err(DropReason::FragmentMemory);
        };

        let memory_before = datagram.memory();
        let placed = datagram.place(fragment);
        self.memory = self.memory + datagram.memory() - memory_before;
        if let Err(reason) = placed {
            if datagram.discarded {
                let packets = std::mem::take(&mut datagram.packets);
                counters.fragments_pending -= packets;
                counters.dropped.add(reason, packets);
            }
            return Err(reason);
        }
        if datagram.is_complete() {
            return Ok(self.take(&key, counters));
        }

        while self.memory > self.limits.bytes {
            match self.give_up_oldest(counters) {
                Some(oldest) if oldest == key => return Err(DropReason::FragmentMemory),
                Some(_) => {}
                None => break,
            }
        }
        if let Some(datagram) = self.incomplete.get_mut(&key) {
            datagram.packets += 1;
            counters.fragments_pending += 1;
        }
        Ok(None)
    }

    /// Discards the datagrams that have timed out at `now_ns`.
    pub(super) fn expire(&mut self, now_ns: u64, counters: &mut Counters) {
        for version in 0..self.by_age.len() {
            while let Some((_, &key)) = self.by_age[version].first_key_value() {
                if !self.incomplete.get(&key).is_none_or(|datagram| self.is_stale(&key, datagram, now_ns)) {
                    break;
                }
                self.give_up(&key, DropReason::FragmentTimeout, counters);
            }
        }
    }

    /// Discards all incomplete datagrams at the end of a capture.
    pub(super) fn finish(&mut self, counters: &mut Counters) {
        while let Some(key) = self.oldest() {
            self.give_up(&key, DropReason::FragmentTimeout, counters);
        }
    }

    /// Takes back the buffer of a datagram for the next one.
    pub(super) fn recycle(&mut self, reassembled: Reassembled) {
        self.keep_buffer(reassembled.bytes);
    }

    /// Bytes in use, which [`ReassemblyLimits::bytes`] bounds.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// Whether a datagram has timed out. A difference in either direction counts, because clocks
    /// are set back and savefiles are concatenated.
    fn is_stale(&self, key: &Key, datagram: &Incomplete, now_ns: u64) -> bool {
        let timeout_ns = if key.is_ipv6() { self.limits.ipv6_timeout_ns } else { self.limits.ipv4_timeout_ns };
        now_ns.abs_diff(datagram.started_ns) > timeout_ns
    }

    /// The datagram whose first fragment arrived first, of either IP version.
    fn oldest(&self) -> Option<Key> {
        let oldest = self.by_age.iter().filter_map(BTreeMap::first_key_value);
        oldest.min_by_key(|(serial, _)| **serial).map(|(_, key)| *key)
    }

    fn start(&mut self, key: Key, now_ns: u64, counters: &mut Counters) {
        while self.incomplete.len() >= self.limits.datagrams {
            if self.give_up_oldest(counters).is_none() {
                return;
            }
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        let bytes = self.spare.pop().unwrap_or_default();
        let datagram = Incomplete { serial, started_ns: now_ns, bytes, ..Incomplete::default() };
        self.memory += datagram.memory();
        self.incomplete.insert(key, datagram);
        self.by_age[usize::from(key.is_ipv6())].insert(serial, key);
    }

    fn give_up_oldest(&mut self, counters: &mut Counters) -> Option<Key> {
        let key = self.oldest()?;
        self.give_up(&key, DropReason::FragmentMemory, counters);
        Some(key)
    }

    fn give_up(&mut self, key: &Key, reason: DropReason, counters: &mut Counters) {
        if let Some(datagram) = self.remove(key) {
            counters.fragments_pending -= datagram.packets;
            counters.dropped.add(reason, datagram.packets);
            self.keep_buffer(datagram.bytes);
        }
    }

    fn take(&mut self, key: &Key, counters: &mut Counters) -> Option<Reassembled> {
        let datagram = self.remove(key)?;
        counters.fragments_pending -= datagram.packets;
        counters.fragments_reassembled += datagram.packets;
        if datagram.arrived_in_order() {
            return Some(Reassembled { bytes: datagram.bytes, fields: datagram.fields });
        }
        let mut ordered = self.spare.pop().unwrap_or_default();
        for piece in &datagram.pieces {
            ordered.extend_from_slice(datagram.bytes_of(*piece));
        }
        self.keep_buffer(datagram.bytes);
        Some(Reassembled { bytes: ordered, fields: datagram.fields })
    }

    fn remove(&mut self, key: &Key) -> Option<Incomplete> {
        let datagram = self.incomplete.remove(key)?;
        self.by_age[usize::from(key.is_ipv6())].remove(&datagram.serial);
        self.memory -= datagram.memory();
        Some(datagram)
    }

    fn keep_buffer(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_BUFFERS {
            buffer.clear();
            self.spare.push(buffer);
        }
    }
}

impl Incomplete {
    fn place(&mut self, fragment: Fragment<'_>) -> Result<(), DropReason> {
        if self.discarded {
            return Err(DropReason::FragmentOverlap);
        }
        let length = fragment.bytes.len() as u32;
        let piece = Piece { offset: fragment.offset, length, start: self.bytes.len() as u32 };
        let index = self.pieces.partition_point(|earlier| earlier.offset < piece.offset);
        if let Some(same) = self.pieces.get(index)
            && (same.offset, same.length) == (piece.offset, piece.length)
            && self.bytes_of(*same) == fragment.bytes
            && fragment.more == (self.length != Some(piece.end()))
        {
            return Err(DropReason::FragmentDuplicate);
        }
        if self.contradicts(piece, index, fragment.more) {
            self.discarded = true;
            self.bytes = Vec::new();
            self.pieces = Vec::new();
            return Err(DropReason::FragmentOverlap);
        }
        if !fragment.more {
            self.length = Some(piece.end());
        }
        if piece.offset == 0 {
            self.fields = fragment.fields;
        }
        self.bytes.extend_from_slice(fragment.bytes);
        self.pieces.insert(index, piece);
        Ok(())
    }

    /// Whether a piece to be inserted at `index` overlaps others, or disagrees with them about the
    /// end of the datagram.
    fn contradicts(&self, piece: Piece, index: usize, more: bool) -> bool {
        let overlaps_previous = index > 0 && self.pieces[index - 1].end() > piece.offset;
        let overlaps_next = self.pieces.get(index).is_some_and(|next| piece.end() > next.offset);
        let farthest = self.pieces.last().map_or(0, |last| last.end());
        let end_disagrees = match (self.length, more) {
            (Some(length), true) => piece.end() >= length,
            (Some(length), false) => piece.end() != length,
            (None, true) => false,
            (None, false) => farthest > piece.end(),
        };
        overlaps_previous || overlaps_next || end_disagrees
    }

    /// Pieces do not overlap, so the datagram is complete once as many bytes have arrived as it is
    /// long.
    fn is_complete(&self) -> bool {
        self.length.is_some_and(|length| length as usize == self.bytes.len())
    }

    fn arrived_in_order(&self) -> bool {
        self.pieces.iter().all(|piece| piece.offset == piece.start)
    }

    fn bytes_of(&self, piece: Piece) -> &[u8] {
        &self.bytes[piece.start as usize..piece.start as usize + piece.length as usize]
    }

    fn memory(&self) -> usize {
        DATAGRAM_OVERHEAD + self.bytes.capacity() + self.pieces.capacity() * size_of::<Piece>()
    }
}
