//! The occurrences: a ring in order of delivery, an index by key, and a chain per key.
//!
//! ```text
//! index: key ─▶ first ─next─▶ … ─next─▶ last          a chain has the occurrences of one key
//! ring:  [oldest, …………………………………………, newest]          numbered; the oldest leaves first
//! ```
//! A device may repeat one datagram thousands of times within the duration. A long chain therefore
//! knows its last occurrence, and per view the first that the view may not have shown: the views
//! show it in order, so each search begins where the last one of its view has ended.

use std::collections::{HashMap, VecDeque};

use hashbrown::HashTable;

use crate::{Key, Sighting, View};

/// The end of a chain.
const NONE: u32 = u32::MAX;
/// A chain of more occurrences is long.
const LONG: usize = 16;
/// The most occurrences that are looked at behind the first that the view has not shown.
const MAX_LOOKED_AT: usize = 64;
/// The memory of an occurrence: its place in the ring, and in the index.
const OCCURRENCE_BYTES: usize = size_of::<Occurrence>() + 16;
/// The memory of a delivery, which the caller keeps while it has an occurrence.
const DELIVERY_BYTES: usize = 96;
/// The least that is allocated, occurrences.
const MIN_CAPACITY: usize = 1024;

/// A delivered datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occurrence {
    key: Key,
    captured_at_ns: u64,
    /// The views that have shown it, one bit each; 0 if it is forgotten.
    views: u64,
    delivery: u32,
    /// The number of the next occurrence of the key, or [`NONE`].
    next: u32,
    shard: u8,
    /// It was delivered by a former owner.
    is_past: bool,
    /// The chain that begins with it is long.
    is_long: bool,
}

impl Occurrence {
    pub(crate) fn new(sighting: Sighting) -> Occurrence {
        Occurrence {
            key: Key { high: 0, low: 0 },
            captured_at_ns: sighting.captured_at_ns,
            views: sighting.view.bit(),
            delivery: sighting.delivery,
            next: NONE,
            shard: sighting.shard.index() as u8,
            is_past: sighting.is_past,
            is_long: false,
        }
    }

    pub(crate) fn shard_index(&self) -> usize {
        usize::from(self.shard)
    }

    pub(crate) fn captured_at_ns(&self) -> u64 {
        self.captured_at_ns
    }

    pub(crate) fn delivery(&self) -> u32 {
        self.delivery
    }

    pub(crate) fn is_forgotten(&self) -> bool {
        self.views == 0
    }

    /// The only view that has shown it, if there is just one.
    pub(crate) fn only_view(&self) -> Option<View> {
        (self.views.count_ones() == 1 && !self.is_past).then(|| View::of_bit(self.views))
    }
}

/// What a search has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// An occurrence, marked now, with the number of its delivery.
    Occurrence(u32),
    /// No occurrence. `apart_ns`: one that the view has not shown was captured so far apart.
    Nothing { apart_ns: Option<u64> },
}

/// What a long chain knows.
#[derive(Debug)]
struct Long {
    last: u32,
    /// By view: the first occurrence that it may not have shown. One that has left the ring stands
    /// for the beginning.
    firsts: Vec<(View, u32)>,
}

#[derive(Debug)]
pub(crate) struct Occurrences {
    ring: VecDeque<Occurrence>,
    /// The number of the oldest in the ring.
    base: u32,
    /// The numbers of the first occurrences of all keys.
    index: HashTable<u32>,
    long: HashMap<[u64; 2], Long>,
    /// Deliveries with occurrences in the ring.
    deliveries: usize,
    max_bytes: usize,
}

impl Occurrences {
    pub(crate) fn new(max_bytes: usize) -> Occurrences {
        Occurrences {
            ring: VecDeque::new(),
            base: 0,
            index: HashTable::new(),
            long: HashMap::new(),
            deliveries: 0,
            max_bytes: max_bytes.max(MIN_CAPACITY * (OCCURRENCE_BYTES + DELIVERY_BYTES)),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.ring.len()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.memory_bytes() + OCCURRENCE_BYTES + DELIVERY_BYTES > self.max_bytes
            || self.ring.len() >= (NONE / 2) as usize
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.ring.len() * OCCURRENCE_BYTES + self.deliveries * DELIVERY_BYTES
    }

    pub(crate) fn oldest(&self) -> Option<&Occurrence> {
        self.ring.front()
    }

    /// Marks the first occurrence of the key that fits. `is_behind`: the view has shown a later
    /// capture time before.
    pub(crate) fn find(
        &mut self,
        key: Key,
        view: View,
        captured_at_ns: u64,
        duration_ns: u64,
        is_behind: bool,
    ) -> Found {
        let Some(head) = self.first(key) else { return Found::Nothing { apart_ns: None } };
        let long = if self.at(head).is_long { self.long.get_mut(&[key.high, key.low]) } else { None };
        let mut first = long.and_then(|long| long.first(view, self.base, self.ring.len(), head));
        let mut number = match &first {
            Some(first) if !is_behind => **first,
            _ => head,
        };
        let (base, ring) = (self.base, &mut self.ring);
        let mut apart_ns: Option<u64> = None;
        let mut looked_at = 0;
        while number != NONE && looked_at < MAX_LOOKED_AT {
            let occurrence = &mut ring[number.wrapping_sub(base) as usize];
            let is_shown = occurrence.views & view.bit() != 0 || occurrence.views == 0;
            let difference_ns = occurrence.captured_at_ns.abs_diff(captured_at_ns);
            let fits = !is_shown && difference_ns <= duration_ns;
            // The view will not show it any more.
            let is_passed = is_shown
                || fits
                || !is_behind && occurrence.captured_at_ns.saturating_add(duration_ns) < captured_at_ns;
            match &mut first {
                Some(first) if is_passed && **first == number && occurrence.next != NONE => **first = occurrence.next,
                _ => looked_at += 1,
            }
            if fits {
                occurrence.views |= view.bit();
                return Found::Occurrence(occurrence.delivery);
            }
            if !is_shown {
                apart_ns = Some(apart_ns.map_or(difference_ns, |least| least.min(difference_ns)));
            }
            number = occurrence.next;
        }
        Found::Nothing { apart_ns }
    }

    /// Adds the newest occurrence. The ring must not be full.
    pub(crate) fn push(&mut self, key: Key, mut occurrence: Occurrence) {
        occurrence.key = key;
        if self.ring.len() == self.ring.capacity() {
            let limit = self.max_bytes / OCCURRENCE_BYTES;
            let capacity = (self.ring.len() * 2).clamp(MIN_CAPACITY, limit.max(MIN_CAPACITY));
            self.ring.reserve_exact(capacity.saturating_sub(self.ring.len()).max(1));
        }
        let number = self.base.wrapping_add(self.ring.len() as u32);
        let is_new = self.ring.back().is_none_or(|newest| newest.delivery != occurrence.delivery);
        self.deliveries += usize::from(is_new);
        self.ring.push_back(occurrence);
        let (base, ring) = (self.base, &mut self.ring);
        let Some(head) = self.index.find(hash(key), |&number| same(ring, base, number, key)).copied() else {
            self.index.insert_unique(hash(key), number, |&number| hash(ring[number.wrapping_sub(base) as usize].key));
            return;
        };
        let at = |number: u32| number.wrapping_sub(base) as usize;
        if ring[at(head)].is_long {
            if let Some(long) = self.long.get_mut(&[key.high, key.low]) {
                ring[at(long.last)].next = number;
                long.last = number;
            }
            return;
        }
        let (mut last, mut length) = (head, 1);
        while ring[at(last)].next != NONE {
            last = ring[at(last)].next;
            length += 1;
        }
        ring[at(last)].next = number;
        if length >= LONG {
            ring[at(head)].is_long = true;
            self.long.insert([key.high, key.low], Long { last: number, firsts: Vec::new() });
        }
    }

    /// Removes the oldest.
    pub(crate) fn pop(&mut self) {
        let (base, ring) = (self.base, &self.ring);
        let Some(oldest) = ring.front().copied() else { return };
        // It is the first of its chain, because chains are in order of delivery.
        if let Ok(mut entry) = self.index.find_entry(hash(oldest.key), |&number| number == base) {
            if oldest.next == NONE {
                entry.remove();
            } else {
                *entry.get_mut() = oldest.next;
            }
        }
        if oldest.is_long {
            if oldest.next == NONE {
                self.long.remove(&[oldest.key.high, oldest.key.low]);
            } else {
                self.ring[oldest.next.wrapping_sub(base) as usize].is_long = true;
            }
        }
        self.ring.pop_front();
        let is_last = self.ring.front().is_none_or(|next| next.delivery != oldest.delivery);
        self.deliveries -= usize::from(is_last);
        self.base = base.wrapping_add(1);
        self.shrink();
    }

    pub(crate) fn forget_shards(&mut self, shards: u64) {
        for occurrence in self.ring.iter_mut().filter(|occurrence| shards >> occurrence.shard & 1 == 1) {
            occurrence.views = 0;
        }
    }

    /// Another view takes the place of this one.
    pub(crate) fn forget_view(&mut self, view: View) {
        for occurrence in self.ring.iter_mut() {
            occurrence.views &= !view.bit();
        }
        for long in self.long.values_mut() {
            long.firsts.retain(|(of, _)| *of != view);
        }
    }

    /// Gives back memory after a peak.
    fn shrink(&mut self) {
        if self.ring.is_empty() && self.ring.capacity() > 16 * MIN_CAPACITY {
            self.ring = VecDeque::new();
            self.index = HashTable::new();
            self.long = HashMap::new();
        }
    }

    fn first(&self, key: Key) -> Option<u32> {
        self.index.find(hash(key), |&number| same(&self.ring, self.base, number, key)).copied()
    }

    fn at(&self, number: u32) -> &Occurrence {
        &self.ring[number.wrapping_sub(self.base) as usize]
    }
}

impl Long {
    /// The first occurrence that the view may not have shown.
    fn first(&mut self, view: View, base: u32, length: usize, head: u32) -> Option<&mut u32> {
        let index = match self.firsts.iter().position(|(of, _)| *of == view) {
            Some(index) => index,
            None => {
                self.firsts.push((view, head));
                self.firsts.len() - 1
            }
        };
        let first = &mut self.firsts[index].1;
        if first.wrapping_sub(base) as usize >= length {
            *first = head;
        }
        Some(first)
    }
}

fn hash(key: Key) -> u64 {
    key.high
}

fn same(ring: &VecDeque<Occurrence>, base: u32, number: u32, key: Key) -> bool {
    ring[number.wrapping_sub(base) as usize].key == key
}
