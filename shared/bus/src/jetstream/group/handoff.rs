//! Hand-off state of a member: entries on their way to the group's stream, which keeps the newest
//! of each key, and from it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use sekiwake_group::HandoffCounters;
use sekiwake_record::{Name, SHARDS, Shard};
use sekiwake_runtime::Metrics;
use serde_json::{Value, json};

use super::super::{
    connection::Nats,
    handoff::{decode_handoff, encode_handoff, handoff_subject},
    keys::{Put, ReadFailed},
    reader::{Reader, Start},
    streams::handoff_stream,
};
use crate::{HandoffEntry, HandoffKey, HandoffValue, metrics::HandoffMetrics};

/// Bytes of entries that are not known to be stored.
const MAX_PENDING_BYTES: usize = 16 << 20;
/// What an entry counts beside its key and value, bytes.
const ENTRY_OVERHEAD: usize = 256;
/// Entries that are written at a time.
const MAX_WRITES: usize = 32;
/// The pause after a write that failed.
const RETRY: Duration = Duration::from_millis(100);
/// How long after a shard is owned its entries are read again: a server that is behind may not have
/// had the last ones.
const READ_AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];
/// How long a reader waits for the next of many entries.
const NEXT_WITHIN: Duration = Duration::from_millis(500);
/// The most entries of a shard that are read.
const MAX_ENTRIES: usize = 65_536;

/// Where the entries of a group are.
#[derive(Clone, Debug)]
pub(super) struct Target {
    group: Name,
    stream: String,
}

/// Entries on their way to the servers, and from them.
pub(super) struct Handoff {
    target: Target,
    /// Entries to write, by shard and key: the newest only.
    waiting: BTreeMap<(Shard, HandoffKey), Entry>,
    /// Keys in the order in which they are to be written.
    order: VecDeque<(Shard, HandoffKey)>,
    writes: BTreeMap<u64, (Shard, HandoffKey, Entry)>,
    next_number: u64,
    pending_bytes: usize,
    not_before: Option<Instant>,
    is_complete: [bool; SHARDS],
    /// Shards to read, and from when on.
    to_read: BTreeMap<Shard, VecDeque<Instant>>,
    is_reading: bool,
    received: VecDeque<HandoffEntry>,
    counters: HandoffCounters,
    metrics: HandoffMetrics,
}

#[derive(Clone, Debug)]
struct Entry {
    value: HandoffValue,
    at_ns: u64,
}

impl Handoff {
    pub(super) fn new(group: &Name, metrics: &Metrics) -> Handoff {
        Handoff {
            target: Target { stream: handoff_stream(group), group: group.clone() },
            waiting: BTreeMap::new(),
            order: VecDeque::new(),
            writes: BTreeMap::new(),
            next_number: 0,
            pending_bytes: 0,
            not_before: None,
            is_complete: [false; SHARDS],
            to_read: BTreeMap::new(),
            is_reading: false,
            received: VecDeque::new(),
            counters: HandoffCounters::default(),
            metrics: HandoffMetrics::new(metrics),
        }
    }

    pub(super) fn target(&self) -> Target {
        self.target.clone()
    }

    /// A shard is owned: its entries are to be read.
    pub(super) fn owned(&mut self, shard: Shard) {
        let now = Instant::now();
        self.is_complete[shard.index()] = false;
        let again = READ_AGAIN.iter().map(|after| now + *after);
        self.to_read.insert(shard, std::iter::once(now).chain(again).collect());
    }

    /// Leaves an entry for the next owner.
    pub(super) fn put(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        let bytes = key.len() + value.len() + ENTRY_OVERHEAD;
        let (Some(key), Some(value)) = (HandoffKey::new(key), HandoffValue::new(value)) else {
            self.counters.no_room += 1;
            return false;
        };
        if self.pending_bytes + bytes > MAX_PENDING_BYTES {
            self.counters.no_room += 1;
            return false;
        }
        let place = (shard, key);
        if let Some(known) = self.waiting.get_mut(&place) {
            if known.at_ns <= at_ns {
                self.pending_bytes = self.pending_bytes + value.as_bytes().len() - known.value.as_bytes().len();
                *known = Entry { value, at_ns };
            }
            return true;
        }
        self.pending_bytes += bytes;
        self.waiting.insert(place.clone(), Entry { value, at_ns });
        self.order.push_back(place);
        true
    }

    /// The next entry to write: its number, subject and message.
    pub(super) fn next_put(&mut self, now: Instant) -> Option<(u64, String, Vec<u8>)> {
        if self.writes.len() >= MAX_WRITES || self.not_before.is_some_and(|at| now < at) {
            return None;
        }
        // Two writes of one key could overtake each other.
        let is_free = |place: &(Shard, HandoffKey)| {
            !self.writes.values().any(|(shard, key, _)| *shard == place.0 && *key == place.1)
        };
        let index = self.order.iter().take(2 * MAX_WRITES).position(is_free)?;
        let place = self.order.remove(index)?;
        let entry = self.waiting.remove(&place)?;
        let number = self.next_number;
        self.next_number += 1;
        let (shard, key) = place;
        let subject = handoff_subject(&self.target.group, shard, key.as_bytes());
        let message = encode_handoff(entry.value.as_bytes(), entry.at_ns);
        self.writes.insert(number, (shard, key, entry));
        Some((number, subject, message))
    }

    pub(super) fn put_answered(&mut self, number: u64, put: Put, now: Instant) {
        let Some((shard, key, entry)) = self.writes.remove(&number) else { return };
        let bytes = key.as_bytes().len() + entry.value.as_bytes().len() + ENTRY_OVERHEAD;
        self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
        match put {
            Put::Stored(_) => self.counters.stored += 1,
            Put::Refused => self.counters.no_room += 1,
            Put::Conflict | Put::Unknown => {
                self.not_before = Some(now + RETRY);
                let place = (shard, key);
                // A newer value replaces it.
                if !self.waiting.contains_key(&place) {
                    self.pending_bytes += bytes;
                    self.waiting.insert(place.clone(), entry);
                    self.order.push_front(place);
                }
            }
        }
    }

    /// The shards to read now.
    pub(super) fn next_read(&mut self, now: Instant) -> Option<Vec<Shard>> {
        if self.is_reading {
            return None;
        }
        let due = self.to_read.iter().filter(|(_, times)| times.front().is_some_and(|at| *at <= now));
        let shards: Vec<Shard> = due.map(|(shard, _)| *shard).collect();
        if shards.is_empty() {
            return None;
        }
        self.is_reading = true;
        Some(shards)
    }

    pub(super) fn read_answered(&mut self, shards: &[Shard], entries: Option<Vec<HandoffEntry>>, now: Instant) {
        self.is_reading = false;
        for shard in shards {
            let Some(times) = self.to_read.get_mut(shard) else { continue };
            if entries.is_none() {
                times[0] = now + RETRY;
                continue;
            }
            times.pop_front();
            if times.is_empty() {
                self.to_read.remove(shard);
            }
            self.is_complete[shard.index()] = true;
        }
        let entries = entries.unwrap_or_default();
        self.counters.received += entries.len() as u64;
        self.received.extend(entries);
    }

    /// Whether entries of a shard are not known to be stored.
    pub(super) fn is_pending(&self, shard: Shard) -> bool {
        self.waiting.keys().any(|(waiting, _)| *waiting == shard)
            || self.writes.values().any(|(written, _, _)| *written == shard)
    }

    pub(super) fn pending(&self) -> usize {
        self.waiting.len() + self.writes.len()
    }

    /// Whether the entries of a shard have been read and taken.
    pub(super) fn is_complete(&self, shard: Shard) -> bool {
        self.is_complete[shard.index()] && self.received.is_empty()
    }

    pub(super) fn take(&mut self) -> Option<HandoffEntry> {
        self.received.pop_front()
    }

    pub(super) fn meter(&mut self) {
        let pending = self.pending();
        self.metrics.set(self.counters, pending);
    }

    pub(super) fn status(&self) -> Value {
        let unread: BTreeSet<String> = self
            .to_read
            .keys()
            .filter(|shard| !self.is_complete[shard.index()])
            .map(|shard| format!("{:02x}", shard.index()))
            .collect();
        json!({
            "coordinator_keeps_handoff": true,
            "pending": self.pending(),
            "acknowledged": self.counters.stored,
            "rejected": self.counters.no_room,
            "received": self.counters.received,
            "incomplete_shards": unread.len(),
        })
    }
}

/// Reads all entries of a shard; `None` if that fails.
pub(super) async fn read(nats: &Nats, target: &Target, shard: Shard) -> Option<Vec<HandoffEntry>> {
    let filter = format!("{}>", handoff_subject(&target.group, shard, b""));
    let entry = |subject: &str, value: &[u8]| decode_handoff(subject, value).filter(|entry| entry.shard == shard);
    match nats.multi_last(&target.stream, std::slice::from_ref(&filter)).await {
        Ok(stored) => return Some(stored.iter().filter_map(|stored| entry(&stored.subject, &stored.value)).collect()),
        Err(ReadFailed::TooMany) => {}
        Err(_) => return None,
    }
    // Too many for one answer.
    let mut reader = Reader::open(nats, &target.stream, &[filter], Start::LastPerSubject).await.ok()?;
    let mut entries = Vec::new();
    while let Some(message) = reader.next(NEXT_WITHIN).await.ok()? {
        entries.extend(entry(&message.subject, &message.payload));
        if message.pending == 0 || entries.len() >= MAX_ENTRIES {
            break;
        }
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handoff() -> Handoff {
        Handoff::new(&Name::new("xflow-forwarder.default").unwrap(), &Metrics::new("toy"))
    }

    #[test]
    fn newer_value_replaces_one_that_waits_and_follows_one_that_is_written() {
        let (mut handoff, now) = (handoff(), Instant::now());
        handoff.put(Shard::FIRST, b"k", b"one", 1);
        let (first, _, _) = handoff.next_put(now).unwrap();
        handoff.put(Shard::FIRST, b"k", b"two", 2);
        handoff.put(Shard::FIRST, b"k", b"three", 3);
        assert!(handoff.next_put(now).is_none(), "the first write is under way");
        handoff.put_answered(first, Put::Unknown, now);
        let later = now + RETRY;
        let (second, subject, message) = handoff.next_put(later).unwrap();
        assert_eq!(decode_handoff(&subject, &message).unwrap().at_ns, 3);
        handoff.put_answered(second, Put::Stored(1), later);
        assert_eq!((handoff.pending(), handoff.pending_bytes, handoff.is_pending(Shard::FIRST)), (0, 0, false));
    }

    #[test]
    fn entries_without_room_are_rejected() {
        let mut handoff = handoff();
        assert!(!handoff.put(Shard::FIRST, b"", b"", 1) && !handoff.put(Shard::FIRST, b"k", &[0; 8193], 1));
        let is_full = (0..10_000_u32).any(|key| !handoff.put(Shard::FIRST, &key.to_be_bytes(), &[0; 8192], 1));
        assert!(is_full && handoff.pending_bytes <= MAX_PENDING_BYTES && handoff.counters.no_room == 3);
    }
}
