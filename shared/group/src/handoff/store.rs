//! The coordinator's side of the hand-off state: the entries of all groups.
//!
//! ```text
//! PutHandoff ─▶ newer than the stored value? ─▶ version + 1, at the end of its shard ─▶ over a budget: the oldest at_ns is evicted
//! GetHandoff ─▶ one per member waits ─ turn: 256 KiB of answers ─▶ HandoffEntries: higher versions, 64 KiB at most
//! GetTemplates ─▶ one per reader waits ─ a page per 10 ms, of all readers ─▶ Templates: 64 KiB at most
//! ```
//!
//! Methods: [`HandoffStore::on_message`] takes a message, [`HandoffStore::on_tick`] performs
//! actions due at [`HandoffStore::next_deadline`], [`HandoffStore::poll_output`] returns messages
//! to send. The coordinator decides who is a member.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use sekiwake_record::{Kind, Name, Shard};

use crate::{
    BootTime, Coordinator, Peer,
    handoff::templates::Readers,
    time::nanos,
    wire::{
        GetHandoff, HandoffEntries, HandoffEntry, HandoffKey, HandoffStored, HandoffValue, MAX_HANDOFF_BYTES,
        MAX_HANDOFF_ENTRIES, Message, PutHandoff, ShardReached,
    },
};

/// Maximum bytes of answers per tick: grants never queue behind more.
const TURN_BYTES: usize = 256 << 10;
/// Messages that a member may send per second, and in one burst. A correct member sends at most
/// 150.
const MESSAGES_PER_SECOND: u64 = 200;
/// Maximum number of groups. A coordinator has no more, so there is always one without members to
/// replace.
const MAX_GROUPS: usize = 64;
/// Maximum number of members that are remembered: as many as a coordinator can have.
const MAX_REQUESTERS: usize = 64 * 128;
/// How often the store checks for members and groups that have left.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Memory of an entry beside its key and value: its places in three trees.
const OVERHEAD: usize = 256;
/// Bytes of an answer before the first entry: a group's name of 63 bytes, numbers, and 64 shards.
pub(super) const ENVELOPE: usize = 128 + 64 * 13;

/// Settings of a [`HandoffStore`].
#[derive(Clone, Debug)]
pub struct HandoffStoreSettings {
    /// Maximum bytes of entries of all groups.
    pub bytes: usize,
    /// Maximum bytes of entries of one group.
    pub bytes_per_group: usize,
    /// How long the entries of a group are kept after its last member has left: as long as its
    /// positions.
    pub keep: Duration,
}

impl Default for HandoffStoreSettings {
    fn default() -> HandoffStoreSettings {
        HandoffStoreSettings { bytes: 64 << 20, bytes_per_group: 16 << 20, keep: Duration::from_secs(24 * 3600) }
    }
}

/// Rejected messages, by reason. A rejection changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandoffRejections {
    /// Malformed or too large messages, and messages that are not for a coordinator.
    pub malformed: u64,
    /// Messages not from a member with a lease, or in another peer's name.
    pub foreign: u64,
    /// Messages over the member's rate.
    pub over_rate: u64,
    /// Requests of readers that a newer request of the same reader has replaced, or for which there
    /// was no room.
    pub reader_requests: u64,
}

impl HandoffRejections {
    /// The counts with their label values in metrics.
    pub fn by_reason(&self) -> [(&'static str, u64); 4] {
        [
            ("malformed", self.malformed),
            ("foreign", self.foreign),
            ("handoff_rate", self.over_rate),
            ("reader_requests", self.reader_requests),
        ]
    }
}

/// The state of a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandoffView {
    /// By group.
    pub groups: Vec<GroupHandoff>,
    /// Bytes of all entries, with their overhead.
    pub bytes: usize,
    /// Entries evicted since the coordinator started.
    pub evicted: u64,
    /// Rejected messages.
    pub rejections: HandoffRejections,
}

/// The entries of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupHandoff {
    /// The group.
    pub name: Name,
    /// How many entries, including those whose empty value marks a key without state.
    pub entries: usize,
    /// Their bytes, with overhead.
    pub bytes: usize,
    /// How many were evicted.
    pub evicted: u64,
}

#[derive(Debug)]
pub(super) struct StoredEntry {
    key: HandoffKey,
    value: HandoffValue,
    at_ns: u64,
}

impl StoredEntry {
    fn cost(&self) -> usize {
        self.key.as_bytes().len() + self.value.as_bytes().len() + OVERHEAD
    }

    pub(super) fn in_shard(&self, shard: Shard) -> HandoffEntry {
        HandoffEntry { shard, key: self.key.clone(), value: self.value.clone(), at_ns: self.at_ns }
    }
}

#[derive(Debug)]
pub(super) struct GroupEntries {
    pub(super) kind: Kind,
    /// By shard and version, which is the order of transfer.
    pub(super) entries: BTreeMap<(Shard, u64), StoredEntry>,
    versions: BTreeMap<(Shard, HandoffKey), u64>,
    /// By time and version, to find the oldest.
    ages: BTreeSet<(u64, u64, Shard)>,
    bytes: usize,
    evicted: u64,
    empty_since: Option<BootTime>,
}

impl GroupEntries {
    fn new(kind: Kind) -> GroupEntries {
        GroupEntries {
            kind,
            entries: BTreeMap::new(),
            versions: BTreeMap::new(),
            ages: BTreeSet::new(),
            bytes: 0,
            evicted: 0,
            empty_since: None,
        }
    }

    /// Stores an entry under this version, if it is newer than the stored one.
    fn store(&mut self, entry: HandoffEntry, version: u64) {
        let HandoffEntry { shard, key, value, at_ns } = entry;
        if let Some(&before) = self.versions.get(&(shard, key.clone())) {
            if self.entries.get(&(shard, before)).is_some_and(|stored| at_ns <= stored.at_ns) {
                return;
            }
            self.remove(shard, before);
        }
        let stored = StoredEntry { key: key.clone(), value, at_ns };
        self.bytes += stored.cost();
        self.ages.insert((at_ns, version, shard));
        self.versions.insert((shard, key), version);
        self.entries.insert((shard, version), stored);
    }

    fn remove(&mut self, shard: Shard, version: u64) {
        if let Some(stored) = self.entries.remove(&(shard, version)) {
            self.bytes -= stored.cost();
            self.ages.remove(&(stored.at_ns, version, shard));
            self.versions.remove(&(shard, stored.key));
        }
    }

    fn evict_oldest(&mut self) {
        if let Some(&(_, version, shard)) = self.ages.first() {
            self.remove(shard, version);
            self.evicted += 1;
        }
    }

    /// The entries of a shard above a version, in order.
    fn after(&self, shard: Shard, version: u64) -> impl Iterator<Item = (u64, &StoredEntry)> {
        let above = version.saturating_add(1);
        self.entries.range((shard, above)..=(shard, u64::MAX)).map(|(&(_, version), stored)| (version, stored))
    }
}

#[derive(Debug)]
struct Requester {
    peer: Peer,
    /// Messages that it may still send.
    tokens: u64,
    refilled_at: BootTime,
    /// Its newest request, while that waits for its turn.
    request: Option<GetHandoff>,
}

impl Requester {
    fn take_token(&mut self, now: BootTime) -> bool {
        let due = nanos(now - self.refilled_at) / (1_000_000_000 / MESSAGES_PER_SECOND);
        if due > 0 {
            self.refilled_at = now;
            self.tokens = self.tokens.saturating_add(due).min(MESSAGES_PER_SECOND);
        }
        let may = self.tokens > 0;
        self.tokens -= u64::from(may);
        may
    }
}

/// The machine that stores hand-off state beside the coordinator.
#[derive(Debug)]
pub struct HandoffStore {
    settings: HandoffStoreSettings,
    pub(super) epoch: u64,
    /// The version of the newest entry.
    version: u64,
    pub(super) groups: BTreeMap<Name, GroupEntries>,
    bytes: usize,
    requesters: BTreeMap<(Name, u64), Requester>,
    /// Members that wait for an answer, in order.
    turns: VecDeque<(Name, u64)>,
    pub(super) readers: Readers,
    sweep_at: BootTime,
    outputs: VecDeque<(Peer, Vec<u8>)>,
    evicted: u64,
    pub(super) rejections: HandoffRejections,
}

impl HandoffStore {
    /// An empty store. `epoch` is the coordinator's.
    pub fn new(settings: HandoffStoreSettings, epoch: u64, now: BootTime) -> HandoffStore {
        HandoffStore {
            settings,
            epoch,
            version: 0,
            groups: BTreeMap::new(),
            bytes: 0,
            requesters: BTreeMap::new(),
            turns: VecDeque::new(),
            readers: Readers::default(),
            sweep_at: now + SWEEP_EVERY,
            outputs: VecDeque::new(),
            evicted: 0,
            rejections: HandoffRejections::default(),
        }
    }

    /// Takes a message from a peer.
    pub fn on_message(&mut self, now: BootTime, peer: &Peer, frame: &[u8], coordinator: &Coordinator) {
        if frame.len() > MAX_HANDOFF_BYTES {
            self.rejections.malformed += 1;
            return;
        }
        match Message::decode(frame) {
            Ok(Message::PutHandoff(put)) => self.on_put(now, peer, put, coordinator),
            Ok(Message::GetHandoff(get)) => self.on_get(now, peer, get, coordinator),
            Ok(Message::GetTemplates(get)) => self.on_get_templates(peer, get),
            _ => self.rejections.malformed += 1,
        }
    }

    /// Performs the actions that are due.
    pub fn on_tick(&mut self, now: BootTime, coordinator: &Coordinator) {
        if now >= self.sweep_at {
            self.sweep(now, coordinator);
        }
        let mut bytes = 0;
        while bytes + MAX_HANDOFF_BYTES <= TURN_BYTES
            && let Some((group, incarnation)) = self.turns.pop_front()
        {
            let Some(requester) = self.requesters.get_mut(&(group, incarnation)) else { continue };
            let Some(get) = requester.request.take() else { continue };
            let peer = requester.peer.clone();
            if coordinator.leased_kind(now, &peer, &get.group, get.incarnation).is_some() {
                bytes += self.answer(&peer, &get);
            }
        }
        self.answer_reader(now, coordinator);
    }

    /// When [`HandoffStore::on_tick`] has something to do.
    pub fn next_deadline(&self) -> BootTime {
        if self.turns.is_empty() { self.sweep_at.min(self.readers.next_turn()) } else { BootTime::ZERO }
    }

    /// The next message, and its receiver.
    pub fn poll_output(&mut self) -> Option<(Peer, Vec<u8>)> {
        self.outputs.pop_front()
    }

    /// Rejected messages.
    pub fn rejections(&self) -> HandoffRejections {
        self.rejections
    }

    /// The whole state.
    pub fn view(&self) -> HandoffView {
        let groups = self.groups.iter().map(|(name, group)| GroupHandoff {
            name: name.clone(),
            entries: group.entries.len(),
            bytes: group.bytes,
            evicted: group.evicted,
        });
        HandoffView { groups: groups.collect(), bytes: self.bytes, evicted: self.evicted, rejections: self.rejections }
    }

    /// Checks that the tables agree with each other and with the budgets, for tests and fuzz
    /// targets.
    ///
    /// # Panics
    /// When they do not.
    pub fn check(&self) {
        for group in self.groups.values() {
            let counts = [group.entries.len(), group.versions.len(), group.ages.len()];
            assert!(counts.iter().all(|&count| count == group.entries.len()), "one entry in each index: {counts:?}");
            assert_eq!(group.bytes, group.entries.values().map(StoredEntry::cost).sum(), "bytes of a group");
            assert!(group.bytes <= self.settings.bytes_per_group, "budget of a group");
            assert!(group.entries.keys().all(|&(_, version)| version <= self.version), "versions are counted");
        }
        assert_eq!(self.bytes, self.groups.values().map(|group| group.bytes).sum(), "bytes of all groups");
        assert!(self.bytes <= self.settings.bytes, "budget of all groups");
        assert!(self.groups.len() <= MAX_GROUPS && self.requesters.len() <= MAX_REQUESTERS, "bounded tables");
        assert!(self.turns.len() <= self.requesters.len(), "one turn per member");
        self.readers.check();
    }

    /// The sender of a message; `None`, counted, if it may not send.
    fn admit(
        &mut self,
        now: BootTime,
        peer: &Peer,
        group: &Name,
        incarnation: u64,
        coordinator: &Coordinator,
    ) -> Option<(Kind, &mut Requester)> {
        let Some(kind) = coordinator.leased_kind(now, peer, group, incarnation) else {
            self.rejections.foreign += 1;
            return None;
        };
        if let Some(group) = self.groups.get_mut(group) {
            group.empty_since = None;
        }
        let id = (group.clone(), incarnation);
        if self.requesters.len() >= MAX_REQUESTERS && !self.requesters.contains_key(&id) {
            self.sweep(now, coordinator);
        }
        let requester = self.requesters.entry(id).or_insert_with(|| Requester {
            peer: peer.clone(),
            tokens: MESSAGES_PER_SECOND,
            refilled_at: now,
            request: None,
        });
        // The member was forgotten meanwhile and has come back from another peer.
        if requester.peer != *peer {
            requester.peer = peer.clone();
        }
        if !requester.take_token(now) {
            self.rejections.over_rate += 1;
            return None;
        }
        Some((kind, requester))
    }

    fn on_put(&mut self, now: BootTime, peer: &Peer, put: PutHandoff, coordinator: &Coordinator) {
        let Some((kind, _)) = self.admit(now, peer, &put.group, put.incarnation, coordinator) else { return };
        let PutHandoff { group: name, incarnation, number, entries } = put;
        if !self.groups.contains_key(&name) && self.groups.len() >= MAX_GROUPS {
            self.make_room_for_group(coordinator);
        }
        let group = self.groups.entry(name.clone()).or_insert_with(|| GroupEntries::new(kind));
        let before = group.bytes;
        if group.kind != kind {
            // The entry now belongs to another group.
            *group = GroupEntries::new(kind);
        }
        for entry in entries {
            self.version += 1;
            group.store(entry, self.version);
            while group.bytes > self.settings.bytes_per_group {
                group.evict_oldest();
                self.evicted += 1;
            }
        }
        self.bytes = self.bytes - before + group.bytes;
        while self.bytes > self.settings.bytes {
            self.evict_from_largest();
        }
        self.send(peer, HandoffStored { group: name, incarnation, coordinator: self.epoch, number });
    }

    fn on_get(&mut self, now: BootTime, peer: &Peer, get: GetHandoff, coordinator: &Coordinator) {
        let id = (get.group.clone(), get.incarnation);
        let Some((_, requester)) = self.admit(now, peer, &id.0, id.1, coordinator) else { return };
        // A newer request replaces one that waits.
        if requester.request.replace(get).is_none() {
            self.turns.push_back(id);
        }
    }

    /// Answers with as much as fits into one message. Returns its bytes.
    fn answer(&mut self, peer: &Peer, get: &GetHandoff) -> usize {
        let mut entries = Vec::new();
        let mut reached = Vec::new();
        let mut bytes = ENVELOPE;
        let group = self.groups.get(&get.group);
        for cursor in &get.shards {
            let shard = cursor.shard;
            let after = if get.coordinator == self.epoch { cursor.after } else { 0 };
            let mut up_to = after;
            let mut is_whole = true;
            for (version, stored) in group.into_iter().flat_map(|group| group.after(shard, after)) {
                let entry = stored.in_shard(shard);
                if bytes + entry.wire_bytes() > MAX_HANDOFF_BYTES || entries.len() >= MAX_HANDOFF_ENTRIES {
                    is_whole = false;
                    break;
                }
                bytes += entry.wire_bytes();
                entries.push(entry);
                up_to = version;
            }
            if is_whole {
                // The member has everything up to here, also where entries were removed since.
                up_to = self.version;
            }
            reached.push(ShardReached { shard, up_to, is_whole });
            if !is_whole {
                break;
            }
        }
        let answer = HandoffEntries {
            group: get.group.clone(),
            incarnation: get.incarnation,
            coordinator: self.epoch,
            request: get.request,
            reached,
            entries,
        };
        self.send(peer, answer);
        bytes
    }

    /// Evicts from the largest group, so that a group below its even share loses nothing to
    /// others.
    fn evict_from_largest(&mut self) {
        if let Some(group) = self.groups.values_mut().max_by_key(|group| group.bytes) {
            let before = group.bytes;
            group.evict_oldest();
            self.bytes -= before - group.bytes;
            self.evicted += 1;
        }
    }

    /// Removes the group that has been without members for longest.
    fn make_room_for_group(&mut self, coordinator: &Coordinator) {
        let empty = self.groups.iter().filter(|(name, _)| !coordinator.has_members(name));
        let longest =
            empty.min_by_key(|(_, group)| group.empty_since.unwrap_or(BootTime::NEVER)).map(|(name, _)| name.clone());
        if let Some(name) = longest {
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &Name) {
        if let Some(group) = self.groups.remove(name) {
            self.bytes -= group.bytes;
        }
    }

    /// Forgets members without a lease, and groups that have been without members for too long.
    fn sweep(&mut self, now: BootTime, coordinator: &Coordinator) {
        self.sweep_at = now + SWEEP_EVERY;
        self.requesters.retain(|(group, incarnation), requester| {
            coordinator.leased_kind(now, &requester.peer, group, *incarnation).is_some()
        });
        let requesters = &self.requesters;
        self.turns.retain(|id| requesters.contains_key(id));
        for (name, group) in &mut self.groups {
            let is_empty = !coordinator.has_members(name);
            group.empty_since = is_empty.then(|| group.empty_since.unwrap_or(now));
        }
        let keep = self.settings.keep;
        let is_expired = |group: &GroupEntries| group.empty_since.is_some_and(|since| now >= since + keep);
        let expired: Vec<Name> =
            self.groups.iter().filter(|(_, group)| is_expired(group)).map(|(name, _)| name.clone()).collect();
        expired.iter().for_each(|name| self.forget(name));
    }

    pub(super) fn send(&mut self, peer: &Peer, message: impl Into<Message>) {
        let frame = message.into().encode();
        debug_assert!(frame.len() <= MAX_HANDOFF_BYTES, "an answer is within the bound: {}", frame.len());
        self.outputs.push_back((peer.clone(), frame));
    }
}
