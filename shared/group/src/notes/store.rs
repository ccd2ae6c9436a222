//! The coordinator's end of notes: what owners have left, by group and shard, in the order in which it came.
//!
//! ```text
//! Notes      ─▶ newer than what is there? ─▶ version + 1, to the end of its shard ─▶ over a budget: the oldest at_ns goes
//! WantNotes  ─▶ one a member, waits ── turn: 256 KiB of answers ─▶ HeldNotes: what has a higher version, 64 KiB at most
//! ```

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sekiwake_record::{Kind, Name, Shard};

use crate::{
    Coordinator, Peer, SECOND,
    wire::{
        HeldNotes, MAX_NOTES, MAX_NOTES_BYTES, Message, Note, NoteKey, NoteValue, Notes, NotesKept, ShardReached,
        WantNotes,
    },
};

/// The most bytes of answers in one turn of the coordinator: grants wait no longer than for these.
const TURN_BYTES: usize = 256 << 10;
/// Messages that a member may send in a second, and at once. An honest one sends 150 at most.
const MESSAGES_PER_SECOND: u64 = 200;
/// The most groups. A coordinator has no more, so one of them has gone where there is no room.
const MAX_GROUPS: usize = 64;
/// The most members that are remembered: all that a coordinator can have.
const MAX_ASKERS: usize = 64 * 128;
/// How often it is looked who has gone.
const SWEEP_EVERY: u64 = SECOND;
/// What a note costs in memory beside its key and value: its places in three trees.
const OVERHEAD: usize = 256;
/// What an answer takes before the first note: a group's name of 63 bytes, numbers, and 64 shards.
const ENVELOPE: usize = 128 + 64 * 13;

/// Settings of a [`NoteStore`].
#[derive(Clone, Debug)]
pub struct NoteStoreSettings {
    /// The most bytes of notes in all.
    pub bytes: usize,
    /// The most of one group.
    pub bytes_per_group: usize,
    /// How long the notes of a group are kept after its last member left, ns: as long as its positions.
    pub keep: u64,
}

impl Default for NoteStoreSettings {
    fn default() -> NoteStoreSettings {
        NoteStoreSettings { bytes: 64 << 20, bytes_per_group: 16 << 20, keep: 24 * 3600 * SECOND }
    }
}

/// Messages that were refused, by reason. A refusal changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoteRefusals {
    /// Messages that are none, or too large, or not for a coordinator.
    pub malformed: u64,
    /// Messages in the name of nobody who is a member and has a lease, or of another peer.
    pub foreign: u64,
    /// Messages over the member's rate.
    pub notes: u64,
}

impl NoteRefusals {
    /// The sums with their names, as metrics have them.
    pub fn by_reason(&self) -> [(&'static str, u64); 3] {
        [("malformed", self.malformed), ("foreign", self.foreign), ("notes", self.notes)]
    }
}

/// What is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NotesView {
    /// By group.
    pub groups: Vec<GroupNotes>,
    /// Bytes in all, with what each note costs beside its own.
    pub bytes: usize,
    /// Notes that had to make room, since the coordinator began.
    pub evicted: u64,
    /// What was refused.
    pub refusals: NoteRefusals,
}

/// What is held of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupNotes {
    /// The group.
    pub name: Name,
    /// Notes, those that say that there is nothing any more among them.
    pub notes: usize,
    /// Their bytes, with what each costs beside its own.
    pub bytes: usize,
    /// How many had to make room.
    pub evicted: u64,
}

#[derive(Debug)]
struct Kept {
    key: NoteKey,
    value: NoteValue,
    at_ns: u64,
}

impl Kept {
    fn cost(&self) -> usize {
        self.key.as_bytes().len() + self.value.as_bytes().len() + OVERHEAD
    }
}

#[derive(Debug)]
struct OfGroup {
    kind: Kind,
    /// By shard and version.
    notes: BTreeMap<(Shard, u64), Kept>,
    versions: BTreeMap<(Shard, NoteKey), u64>,
    /// By time, to find the oldest.
    ages: BTreeSet<(u64, u64, Shard)>,
    bytes: usize,
    evicted: u64,
    empty_since: Option<u64>,
}

impl OfGroup {
    fn new(kind: Kind) -> OfGroup {
        OfGroup {
            kind,
            notes: BTreeMap::new(),
            versions: BTreeMap::new(),
            ages: BTreeSet::new(),
            bytes: 0,
            evicted: 0,
            empty_since: None,
        }
    }

    /// Takes a note under this version, if it is newer than what there is.
    fn take(&mut self, note: Note, version: u64) {
        let Note { shard, key, value, at_ns } = note;
        if let Some(&before) = self.versions.get(&(shard, key.clone())) {
            if self.notes.get(&(shard, before)).is_some_and(|kept| at_ns <= kept.at_ns) {
                return;
            }
            self.remove(shard, before);
        }
        let kept = Kept { key: key.clone(), value, at_ns };
        self.bytes += kept.cost();
        self.ages.insert((at_ns, version, shard));
        self.versions.insert((shard, key), version);
        self.notes.insert((shard, version), kept);
    }

    fn remove(&mut self, shard: Shard, version: u64) {
        if let Some(kept) = self.notes.remove(&(shard, version)) {
            self.bytes -= kept.cost();
            self.ages.remove(&(kept.at_ns, version, shard));
            self.versions.remove(&(shard, kept.key));
        }
    }

    fn evict_oldest(&mut self) {
        if let Some(&(_, version, shard)) = self.ages.first() {
            self.remove(shard, version);
            self.evicted += 1;
        }
    }

    /// The notes of a shard above a version, in order.
    fn after(&self, shard: Shard, version: u64) -> impl Iterator<Item = (u64, &Kept)> {
        let above = version.saturating_add(1);
        self.notes.range((shard, above)..=(shard, u64::MAX)).map(|(&(_, version), kept)| (version, kept))
    }
}

#[derive(Debug)]
struct Asker {
    peer: Peer,
    messages: u64,
    refilled_at: u64,
    /// What it asked for last, while that waits for its turn.
    want: Option<WantNotes>,
}

impl Asker {
    fn may_say(&mut self, now: u64) -> bool {
        let due = now.saturating_sub(self.refilled_at) / (SECOND / MESSAGES_PER_SECOND);
        if due > 0 {
            self.refilled_at = now;
            self.messages = self.messages.saturating_add(due).min(MESSAGES_PER_SECOND);
        }
        let may = self.messages > 0;
        self.messages -= u64::from(may);
        may
    }
}

/// The machine of the coordinator's notes. Who is a member is the coordinator's word.
#[derive(Debug)]
pub struct NoteStore {
    settings: NoteStoreSettings,
    epoch: u64,
    /// Of the note that was taken last.
    version: u64,
    groups: BTreeMap<Name, OfGroup>,
    bytes: usize,
    askers: BTreeMap<(Name, u64), Asker>,
    /// Those who wait for an answer.
    turns: VecDeque<(Name, u64)>,
    sweep_at: u64,
    outputs: VecDeque<(Peer, Vec<u8>)>,
    evicted: u64,
    refusals: NoteRefusals,
}

impl NoteStore {
    /// A store that holds nothing. `epoch` is the coordinator's.
    pub fn new(settings: NoteStoreSettings, epoch: u64, now: u64) -> NoteStore {
        NoteStore {
            settings,
            epoch,
            version: 0,
            groups: BTreeMap::new(),
            bytes: 0,
            askers: BTreeMap::new(),
            turns: VecDeque::new(),
            sweep_at: now + SWEEP_EVERY,
            outputs: VecDeque::new(),
            evicted: 0,
            refusals: NoteRefusals::default(),
        }
    }

    /// Takes a message from a peer.
    pub fn on_message(&mut self, now: u64, peer: &Peer, frame: &[u8], coordinator: &Coordinator) {
        if frame.len() > MAX_NOTES_BYTES {
            self.refusals.malformed += 1;
            return;
        }
        match Message::decode(frame) {
            Ok(Message::Notes(notes)) => self.on_notes(now, peer, notes, coordinator),
            Ok(Message::WantNotes(want)) => self.on_want(now, peer, want, coordinator),
            _ => self.refusals.malformed += 1,
        }
    }

    /// Does what is due.
    pub fn on_tick(&mut self, now: u64, coordinator: &Coordinator) {
        if now >= self.sweep_at {
            self.sweep(now, coordinator);
        }
        let mut bytes = 0;
        while bytes + MAX_NOTES_BYTES <= TURN_BYTES
            && let Some((group, incarnation)) = self.turns.pop_front()
        {
            let Some(asker) = self.askers.get_mut(&(group, incarnation)) else { continue };
            let Some(want) = asker.want.take() else { continue };
            let peer = asker.peer.clone();
            if coordinator.leased_kind(now, &peer, &want.group, want.incarnation).is_some() {
                bytes += self.answer(&peer, &want);
            }
        }
    }

    /// When [`NoteStore::on_tick`] has something to do.
    pub fn next_deadline(&self) -> u64 {
        if self.turns.is_empty() { self.sweep_at } else { 0 }
    }

    /// The next message, and whom it is for.
    pub fn poll_output(&mut self) -> Option<(Peer, Vec<u8>)> {
        self.outputs.pop_front()
    }

    /// What was refused.
    pub fn refusals(&self) -> NoteRefusals {
        self.refusals
    }

    /// What is held.
    pub fn view(&self) -> NotesView {
        let groups = self.groups.iter().map(|(name, group)| GroupNotes {
            name: name.clone(),
            notes: group.notes.len(),
            bytes: group.bytes,
            evicted: group.evicted,
        });
        NotesView { groups: groups.collect(), bytes: self.bytes, evicted: self.evicted, refusals: self.refusals }
    }

    /// Checks that its tables agree with each other and with its budgets: for tests and fuzz targets.
    ///
    /// # Panics
    /// When they do not.
    pub fn check(&self) {
        for group in self.groups.values() {
            let counts = [group.notes.len(), group.versions.len(), group.ages.len()];
            assert!(counts.iter().all(|&count| count == group.notes.len()), "one place of each kind: {counts:?}");
            assert_eq!(group.bytes, group.notes.values().map(Kept::cost).sum(), "the bytes of a group");
            assert!(group.bytes <= self.settings.bytes_per_group, "a group's budget");
            assert!(group.notes.keys().all(|&(_, version)| version <= self.version), "versions are counted");
        }
        assert_eq!(self.bytes, self.groups.values().map(|group| group.bytes).sum(), "the bytes in all");
        assert!(self.bytes <= self.settings.bytes, "the budget");
        assert!(self.groups.len() <= MAX_GROUPS && self.askers.len() <= MAX_ASKERS, "bounded tables");
        assert!(self.turns.len() <= self.askers.len(), "one turn a member");
    }

    /// The asker that a message is of; `None`, counted, when it may not speak.
    fn admit(
        &mut self,
        now: u64,
        peer: &Peer,
        (group, incarnation): (&Name, u64),
        coordinator: &Coordinator,
    ) -> Option<(Kind, &mut Asker)> {
        let Some(kind) = coordinator.leased_kind(now, peer, group, incarnation) else {
            self.refusals.foreign += 1;
            return None;
        };
        if let Some(of_group) = self.groups.get_mut(group) {
            of_group.empty_since = None;
        }
        let id = (group.clone(), incarnation);
        if self.askers.len() >= MAX_ASKERS && !self.askers.contains_key(&id) {
            self.sweep(now, coordinator);
        }
        let asker = self.askers.entry(id).or_insert_with(|| Asker {
            peer: peer.clone(),
            messages: MESSAGES_PER_SECOND,
            refilled_at: now,
            want: None,
        });
        // An incarnation that was forgotten and came again may have come from elsewhere.
        if asker.peer != *peer {
            asker.peer = peer.clone();
        }
        if !asker.may_say(now) {
            self.refusals.notes += 1;
            return None;
        }
        Some((kind, asker))
    }

    fn on_notes(&mut self, now: u64, peer: &Peer, notes: Notes, coordinator: &Coordinator) {
        let Some((kind, _)) = self.admit(now, peer, (&notes.group, notes.incarnation), coordinator) else { return };
        let Notes { group: name, incarnation, number, notes } = notes;
        if !self.groups.contains_key(&name) && self.groups.len() >= MAX_GROUPS {
            self.make_room_for_group(coordinator);
        }
        let group = self.groups.entry(name.clone()).or_insert_with(|| OfGroup::new(kind));
        let before = group.bytes;
        if group.kind != kind {
            // Another group, which the name has passed to.
            *group = OfGroup::new(kind);
        }
        for note in notes {
            self.version += 1;
            group.take(note, self.version);
            while group.bytes > self.settings.bytes_per_group {
                group.evict_oldest();
                self.evicted += 1;
            }
        }
        self.bytes = self.bytes - before + group.bytes;
        while self.bytes > self.settings.bytes {
            self.evict_from_largest();
        }
        self.send(peer, NotesKept { group: name, incarnation, coordinator: self.epoch, number });
    }

    fn on_want(&mut self, now: u64, peer: &Peer, want: WantNotes, coordinator: &Coordinator) {
        let id = (want.group.clone(), want.incarnation);
        let Some((_, asker)) = self.admit(now, peer, (&id.0, id.1), coordinator) else { return };
        // Whoever asks again has not got the answer, or does not want it any more.
        if asker.want.replace(want).is_none() {
            self.turns.push_back(id);
        }
    }

    /// Answers as far as there is room in one message; gives its bytes.
    fn answer(&mut self, peer: &Peer, want: &WantNotes) -> usize {
        let (mut notes, mut reached, mut bytes) = (Vec::new(), Vec::new(), ENVELOPE);
        let group = self.groups.get(&want.group);
        for cursor in &want.shards {
            let shard = cursor.shard;
            let after = if want.coordinator == self.epoch { cursor.after } else { 0 };
            let (mut up_to, mut is_whole) = (after, true);
            for (version, kept) in group.into_iter().flat_map(|group| group.after(shard, after)) {
                let note = Note { shard, key: kept.key.clone(), value: kept.value.clone(), at_ns: kept.at_ns };
                if bytes + note.wire_bytes() > MAX_NOTES_BYTES || notes.len() >= MAX_NOTES {
                    is_whole = false;
                    break;
                }
                bytes += note.wire_bytes();
                notes.push(note);
                up_to = version;
            }
            if is_whole {
                // All up to here is had, whatever has been removed since.
                up_to = self.version;
            }
            reached.push(ShardReached { shard, up_to, is_whole });
            if !is_whole {
                break;
            }
        }
        let (group, incarnation, request) = (want.group.clone(), want.incarnation, want.request);
        self.send(peer, HeldNotes { group, incarnation, coordinator: self.epoch, request, reached, notes });
        bytes
    }

    /// Of the group that has most. So one that has less than its even share loses nothing to others.
    fn evict_from_largest(&mut self) {
        if let Some(group) = self.groups.values_mut().max_by_key(|group| group.bytes) {
            let before = group.bytes;
            group.evict_oldest();
            self.bytes -= before - group.bytes;
            self.evicted += 1;
        }
    }

    /// One of the groups that the coordinator knows no members of goes, the longest empty first.
    fn make_room_for_group(&mut self, coordinator: &Coordinator) {
        let empty = self.groups.iter().filter(|(name, _)| !coordinator.has_members(name));
        let longest =
            empty.min_by_key(|(_, group)| group.empty_since.unwrap_or(u64::MAX)).map(|(name, _)| name.clone());
        if let Some(name) = longest {
            self.forget(&name);
        }
    }

    fn forget(&mut self, name: &Name) {
        if let Some(group) = self.groups.remove(name) {
            self.bytes -= group.bytes;
        }
    }

    /// Forgets members that have gone, and groups that have been without any for long.
    fn sweep(&mut self, now: u64, coordinator: &Coordinator) {
        self.sweep_at = now + SWEEP_EVERY;
        self.askers.retain(|(group, incarnation), asker| {
            coordinator.leased_kind(now, &asker.peer, group, *incarnation).is_some()
        });
        let askers = &self.askers;
        self.turns.retain(|id| askers.contains_key(id));
        for (name, group) in &mut self.groups {
            let is_empty = !coordinator.has_members(name);
            group.empty_since = is_empty.then(|| group.empty_since.unwrap_or(now));
        }
        let keep = self.settings.keep;
        let is_over = |group: &OfGroup| group.empty_since.is_some_and(|since| now >= since + keep);
        let over: Vec<Name> =
            self.groups.iter().filter(|(_, group)| is_over(group)).map(|(name, _)| name.clone()).collect();
        over.iter().for_each(|name| self.forget(name));
    }

    fn send(&mut self, peer: &Peer, message: impl Into<Message>) {
        let frame = message.into().encode();
        debug_assert!(frame.len() <= MAX_NOTES_BYTES, "an answer is within the bound: {}", frame.len());
        self.outputs.push_back((peer.clone(), frame));
    }
}
