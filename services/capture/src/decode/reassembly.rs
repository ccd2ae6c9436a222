//! IP fragments wait here until their datagram is complete.
//!
//! Everything is bounded: bytes, datagrams, and time. What does not fit pushes out the oldest. Fragments that contradict each
//! other cost the whole datagram, as RFC 5722 asks for IPv6 and as Linux does for IPv4: a guess could be the attacker's.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{Counters, DropReason};

/// How much may wait in reassembly, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReassemblyLimits {
    /// Memory for waiting fragments and what keeps track of them, bytes. Beside it a few buffers (1 MiB in all) are kept for
    /// reuse, and one datagram more may be held for a moment.
    pub bytes: usize,
    /// How many unfinished datagrams may wait.
    pub datagrams: usize,
    /// How long a datagram may take from its first fragment to its last, nanoseconds of packet time.
    pub timeout_ns: u64,
}

impl Default for ReassemblyLimits {
    /// 16 MiB, 8,192 datagrams, and the 30 s of a Linux receiver.
    fn default() -> ReassemblyLimits {
        ReassemblyLimits { bytes: 16 << 20, datagrams: 8192, timeout_ns: 30_000_000_000 }
    }
}

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) identification: u32,
    /// The protocol of IPv4. Zero for IPv6, whose fragments need not agree on the next header (RFC 8200 §4.5).
    pub(super) protocol: u8,
    /// A hash of the VLANs and tunnels around the packet: the same private addresses may be in use in many of them.
    pub(super) context: u64,
}

/// One fragment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Fragment<'a> {
    /// Where its bytes belong, from the start of the datagram's IP payload.
    pub(super) offset: u32,
    /// Whether others follow it in the datagram.
    pub(super) more: bool,
    pub(super) bytes: &'a [u8],
    /// Its own IP header's word on the following; the first fragment's counts.
    pub(super) head: Head,
}

/// What the first fragment says about the whole datagram.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Head {
    /// What the reassembled bytes begin with.
    pub(super) protocol: u8,
    pub(super) dscp: u8,
    pub(super) ttl: u8,
}

/// A datagram put together. Its buffer goes back with [`Reassembly::recycle`].
pub(super) struct Reassembled {
    pub(super) bytes: Vec<u8>,
    pub(super) head: Head,
}

/// The longest IP payload that fragments may make up, bytes.
const MAX_LENGTH: u32 = 65_535;

/// What an unfinished datagram costs beside its bytes: its places in the map and in the order of age.
const DATAGRAM_OVERHEAD: usize = 256;

/// How many buffers are kept for the next datagrams, so that steady fragment traffic allocates nothing.
const SPARE_BUFFERS: usize = 16;

pub(super) struct Reassembly {
    limits: ReassemblyLimits,
    unfinished: HashMap<Key, Unfinished>,
    /// The keys of `unfinished` in the order in which their first fragments came.
    by_age: BTreeMap<u64, Key>,
    next_serial: u64,
    memory: usize,
    spare: Vec<Vec<u8>>,
}

#[derive(Default)]
struct Unfinished {
    serial: u64,
    started_ns: u64,
    /// Its fragments contradicted each other. It stays to swallow the rest of them.
    discarded: bool,
    /// Packets held in it.
    packets: u64,
    head: Head,
    /// The bytes of all pieces in the order of their arrival.
    bytes: Vec<u8>,
    /// In the order of their offsets, without overlap.
    pieces: Vec<Piece>,
    /// The datagram's length, once its last fragment has come.
    length: Option<u32>,
}

#[derive(Clone, Copy)]
struct Piece {
    offset: u32,
    length: u32,
    /// Where in `bytes` it begins.
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
            unfinished: HashMap::new(),
            by_age: BTreeMap::new(),
            next_serial: 0,
            memory: 0,
            spare: Vec::new(),
        }
    }

    /// Takes a fragment. Gives the datagram when it is the one that was missing, `None` when it waits for others.
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
        // Packet time may step back, and then the oldest is not the first to expire.
        if self.unfinished.get(&key).is_some_and(|datagram| self.is_stale(datagram, now_ns)) {
            self.give_up(&key, DropReason::FragmentTimeout, counters);
        }
        if !self.unfinished.contains_key(&key) {
            self.start(key, now_ns, counters);
        }
        let Some(datagram) = self.unfinished.get_mut(&key) else {
            return Err(DropReason::FragmentMemory);
        };

        let memory_before = datagram.memory();
        let placed = datagram.place(fragment);
        self.memory = self.memory + datagram.memory() - memory_before;
        if let Err(reason) = placed {
            if datagram.discarded {
                let packets = std::mem::take(&mut datagram.packets);
                counters.fragments_held -= packets;
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
        if let Some(datagram) = self.unfinished.get_mut(&key) {
            datagram.packets += 1;
            counters.fragments_held += 1;
        }
        Ok(None)
    }

    /// Gives up what has waited too long at `now_ns`.
    pub(super) fn expire(&mut self, now_ns: u64, counters: &mut Counters) {
        while let Some((_, &key)) = self.by_age.first_key_value() {
            if !self.unfinished.get(&key).is_none_or(|datagram| self.is_stale(datagram, now_ns)) {
                return;
            }
            self.give_up(&key, DropReason::FragmentTimeout, counters);
        }
    }

    /// Gives up everything: no more fragments will come.
    pub(super) fn finish(&mut self, counters: &mut Counters) {
        while let Some((_, &key)) = self.by_age.first_key_value() {
            self.give_up(&key, DropReason::FragmentTimeout, counters);
        }
    }

    /// Takes the buffer of a datagram back for the next one.
    pub(super) fn recycle(&mut self, reassembled: Reassembled) {
        self.keep_buffer(reassembled.bytes);
    }

    /// Bytes in use, as [`ReassemblyLimits::bytes`] counts them.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// A datagram is stale when too much time has passed, in either direction: clocks are set back, and savefiles joined.
    fn is_stale(&self, datagram: &Unfinished, now_ns: u64) -> bool {
        now_ns.abs_diff(datagram.started_ns) > self.limits.timeout_ns
    }

    fn start(&mut self, key: Key, now_ns: u64, counters: &mut Counters) {
        while self.unfinished.len() >= self.limits.datagrams {
            if self.give_up_oldest(counters).is_none() {
                return;
            }
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        let bytes = self.spare.pop().unwrap_or_default();
        let datagram = Unfinished { serial, started_ns: now_ns, bytes, ..Unfinished::default() };
        self.memory += datagram.memory();
        self.unfinished.insert(key, datagram);
        self.by_age.insert(serial, key);
    }

    fn give_up_oldest(&mut self, counters: &mut Counters) -> Option<Key> {
        let (_, &key) = self.by_age.first_key_value()?;
        self.give_up(&key, DropReason::FragmentMemory, counters);
        Some(key)
    }

    fn give_up(&mut self, key: &Key, reason: DropReason, counters: &mut Counters) {
        if let Some(datagram) = self.remove(key) {
            counters.fragments_held -= datagram.packets;
            counters.dropped.add(reason, datagram.packets);
            self.keep_buffer(datagram.bytes);
        }
    }

    fn take(&mut self, key: &Key, counters: &mut Counters) -> Option<Reassembled> {
        let datagram = self.remove(key)?;
        counters.fragments_held -= datagram.packets;
        counters.fragments_joined += datagram.packets;
        if datagram.came_in_order() {
            return Some(Reassembled { bytes: datagram.bytes, head: datagram.head });
        }
        let mut ordered = self.spare.pop().unwrap_or_default();
        for piece in &datagram.pieces {
            ordered.extend_from_slice(datagram.bytes_of(*piece));
        }
        self.keep_buffer(datagram.bytes);
        Some(Reassembled { bytes: ordered, head: datagram.head })
    }

    fn remove(&mut self, key: &Key) -> Option<Unfinished> {
        let datagram = self.unfinished.remove(key)?;
        self.by_age.remove(&datagram.serial);
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

impl Unfinished {
    fn place(&mut self, fragment: Fragment<'_>) -> Result<(), DropReason> {
        if self.discarded {
            return Err(DropReason::FragmentOverlap);
        }
        let length = fragment.bytes.len() as u32;
        let piece = Piece { offset: fragment.offset, length, start: self.bytes.len() as u32 };
        let index = self.pieces.partition_point(|earlier| earlier.offset < piece.offset);
        if let Some(twin) = self.pieces.get(index)
            && (twin.offset, twin.length) == (piece.offset, piece.length)
            && self.bytes_of(*twin) == fragment.bytes
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
            self.head = fragment.head;
        }
        self.bytes.extend_from_slice(fragment.bytes);
        self.pieces.insert(index, piece);
        Ok(())
    }

    /// Whether a piece, to be inserted at `index`, overlaps others or disagrees with them on where the datagram ends.
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

    /// Pieces do not overlap, so the datagram is whole when as many bytes have come as it is long.
    fn is_complete(&self) -> bool {
        self.length.is_some_and(|length| length as usize == self.bytes.len())
    }

    fn came_in_order(&self) -> bool {
        self.pieces.iter().all(|piece| piece.offset == piece.start)
    }

    fn bytes_of(&self, piece: Piece) -> &[u8] {
        &self.bytes[piece.start as usize..piece.start as usize + piece.length as usize]
    }

    fn memory(&self) -> usize {
        DATAGRAM_OVERHEAD + self.bytes.capacity() + self.pieces.capacity() * size_of::<Piece>()
    }
}
