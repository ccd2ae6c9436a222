//! A member's side of the hand-off state.
//!
//! ```text
//! entry:  put ─▶ unsent ─▶ sent ── HandoffStored ──▶ forgotten
//!                  ▲        │ 1 s without an answer, another coordinator, a newer value
//!                  └────────┘
//! shard:  none ── prepares, owns ──▶ requested ── HandoffEntries up to v ──▶ requested from v ── all there is ──▶ complete
//!          ▲                            ▲ owns after preparing: entries put by the last owner since                 │
//!          └── neither ─────────────────┴───────── 1, 4 and 16 s after it was complete: late entries ◀──────────────┘
//! ```
//!
//! Methods: [`HandoffKeeper::follow`] takes the state of the member, [`HandoffKeeper::put`] and
//! [`HandoffKeeper::on_message`] are the inputs, [`HandoffKeeper::on_tick`] does what is due at
//! [`HandoffKeeper::next_deadline`]. [`HandoffKeeper::poll_output`] returns messages to send,
//! [`HandoffKeeper::take`] received entries, [`HandoffKeeper::next_shard_to_replay`] shards whose
//! entries a new coordinator needs.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use sekiwake_record::{Name, SHARDS, Shard};

use crate::{
    BootTime, ShardPhase, ShardStatus,
    mutants::Mutants,
    wire::{
        GetHandoff, HandoffEntries, HandoffEntry, HandoffKey, HandoffStored, HandoffValue, MAX_HANDOFF_BYTES,
        MAX_HANDOFF_ENTRIES, Message, PutHandoff, ShardCursor, ShardReached,
    },
};

/// How long to wait for an answer before a message is sent again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The longest pause between messages to a coordinator that has never answered.
const MAX_PROBE_PAUSE: Duration = Duration::from_secs(60);
/// The shortest pause between two messages of entries: at 3.2 MB/s a renewal still gets through.
const PUT_EVERY: Duration = Duration::from_millis(20);
/// Maximum number of messages of entries without an acknowledgement.
const WINDOW: usize = 4;
/// The shortest pause between two requests: 6.4 MB/s.
const GET_EVERY: Duration = Duration::from_millis(10);
/// When an owner requests again after a shard was complete: entries of the last owner may be late.
const LATE_CHECKS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(3), Duration::from_secs(12)];
/// Bytes of received entries that are not taken, above which no more are requested.
const MAX_RECEIVED_BYTES: usize = 256 << 10;
/// Bytes of pending entries above which no replay is requested.
const REPLAY_BELOW: usize = 1 << 20;
/// Memory of an entry beside its key and value.
const OVERHEAD: usize = 128;
/// Bytes of a message before the first entry: a group's name of 63 bytes, and numbers.
const ENVELOPE: usize = 128;

/// Settings of a [`HandoffKeeper`].
#[derive(Clone, Debug)]
pub struct HandoffKeeperSettings {
    /// The group.
    pub group: Name,
    /// Maximum bytes of entries that are not stored yet: as many as the coordinator stores for a
    /// group.
    pub pending_bytes: usize,
    pub(crate) mutants: Mutants,
}

impl HandoffKeeperSettings {
    /// The defaults for a member of this group.
    pub fn new(group: Name) -> HandoffKeeperSettings {
        HandoffKeeperSettings { group, pending_bytes: 16 << 20, mutants: Mutants::default() }
    }
}

/// Counters since the keeper started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandoffCounters {
    /// Entries that the coordinator has stored.
    pub stored: u64,
    /// Entries rejected because they are too large, or too many are pending.
    pub no_room: u64,
    /// Entries received.
    pub received: u64,
    /// Messages sent.
    pub sent: u64,
    /// Malformed messages, and answers that were not requested.
    pub rejected: u64,
}

/// What a member does with a shard, as far as hand-off state is concerned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ShardRole {
    #[default]
    None,
    Prepares,
    Owns(u64),
    /// Ordered to release the shard, or has released it.
    Stops,
}

impl ShardRole {
    /// Whether the entries of the shard are requested.
    fn requests(self) -> bool {
        matches!(self, ShardRole::Prepares | ShardRole::Owns(_))
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct KeeperShard {
    role: ShardRole,
    /// Everything up to this version of the coordinator is received.
    cursor: u64,
    /// The coordinator had no entries beyond it.
    is_whole: bool,
    /// When to request it next, if at all.
    request_at: Option<BootTime>,
    /// How many requests for late entries were scheduled.
    late_checks: usize,
    /// How many received entries are not taken.
    untaken: usize,
}

impl KeeperShard {
    /// The member changes what it does with the shard.
    fn set_role(&mut self, now: BootTime, role: ShardRole) {
        // A member that has prepared continues from where it is. Otherwise its entries may be out
        // of date.
        if !(self.role == ShardRole::Prepares && matches!(role, ShardRole::Owns(_))) {
            self.cursor = 0;
        }
        self.role = role;
        self.is_whole = false;
        self.late_checks = 0;
        self.request_at = role.requests().then_some(now);
    }

    fn on_reached(&mut self, now: BootTime, reached: &ShardReached) {
        self.cursor = reached.up_to;
        if reached.is_whole {
            self.is_whole = true;
            let late_check = LATE_CHECKS.get(self.late_checks).filter(|_| self.role != ShardRole::Prepares);
            self.request_at = late_check.map(|&after| now + after);
            self.late_checks += 1;
        }
    }
}

#[derive(Debug)]
struct PendingEntry {
    value: HandoffValue,
    at_ns: u64,
    /// The message that it was last sent in; 0 while it is queued.
    sent: u64,
}

type Id = (Shard, HandoffKey);

#[derive(Debug)]
struct Sent {
    number: u64,
    sent_at: BootTime,
    ids: Vec<Id>,
}

#[derive(Debug)]
struct OpenRequest {
    sent_at: BootTime,
    /// One bit per shard.
    shards: u64,
}

/// The machine of one member's hand-off state.
#[derive(Debug)]
pub struct HandoffKeeper {
    settings: HandoffKeeperSettings,
    incarnation: u64,
    coordinator: u64,
    is_leased: bool,
    /// Whether this coordinator has ever answered.
    is_answered: bool,
    /// How many messages it was sent before that.
    probes: u32,
    probe_at: BootTime,
    shards: [KeeperShard; SHARDS],
    pending: BTreeMap<Id, PendingEntry>,
    pending_bytes: usize,
    unsent: VecDeque<Id>,
    sent: VecDeque<Sent>,
    number: u64,
    put_at: BootTime,
    request: u64,
    open_request: Option<OpenRequest>,
    get_at: BootTime,
    received: VecDeque<HandoffEntry>,
    received_bytes: usize,
    /// The shards whose entries have to be put again, one bit per shard.
    to_replay: u64,
    outputs: VecDeque<Vec<u8>>,
    counters: HandoffCounters,
}

impl HandoffKeeper {
    /// An empty keeper. `incarnation` is the member's.
    pub fn new(settings: HandoffKeeperSettings, incarnation: u64) -> HandoffKeeper {
        HandoffKeeper {
            settings,
            incarnation,
            coordinator: 0,
            is_leased: false,
            is_answered: false,
            probes: 0,
            probe_at: BootTime::ZERO,
            shards: [KeeperShard::default(); SHARDS],
            pending: BTreeMap::new(),
            pending_bytes: 0,
            unsent: VecDeque::new(),
            sent: VecDeque::new(),
            number: 0,
            put_at: BootTime::ZERO,
            request: 0,
            open_request: None,
            get_at: BootTime::ZERO,
            received: VecDeque::new(),
            received_bytes: 0,
            to_replay: 0,
            outputs: VecDeque::new(),
            counters: HandoffCounters::default(),
        }
    }

    /// Takes the state of the member. Call it whenever that may have changed, before anything is
    /// delivered.
    pub fn follow(
        &mut self,
        now: BootTime,
        coordinator: u64,
        is_leased: bool,
        shards: impl IntoIterator<Item = ShardStatus>,
    ) {
        self.is_leased = is_leased;
        if coordinator != self.coordinator {
            self.on_new_coordinator(now, coordinator);
        }
        let mut roles = [ShardRole::None; SHARDS];
        for status in shards {
            roles[usize::from(status.shard)] = match status.state {
                ShardPhase::Preparing => ShardRole::Prepares,
                ShardPhase::Owned => ShardRole::Owns(status.generation),
                ShardPhase::Releasing | ShardPhase::Released => ShardRole::Stops,
            };
        }
        for (shard, role) in self.shards.iter_mut().zip(roles) {
            if shard.role == role {
                continue;
            }
            // The answer to an open request reflects the state before the change.
            if shard.role.requests() || role.requests() {
                self.open_request = None;
            }
            if self.settings.mutants.requests_once() && shard.role == ShardRole::Prepares && shard.is_whole {
                shard.role = role;
                continue;
            }
            shard.set_role(now, role);
        }
    }

    /// Another coordinator has no entries yet.
    fn on_new_coordinator(&mut self, now: BootTime, coordinator: u64) {
        self.coordinator = coordinator;
        self.is_answered = false;
        self.probes = 0;
        self.probe_at = now;
        self.open_request = None;
        self.get_at = now;
        self.put_at = now;
        for (index, shard) in self.shards.iter_mut().enumerate() {
            shard.cursor = 0;
            if matches!(shard.role, ShardRole::Owns(_) | ShardRole::Stops) {
                self.to_replay |= 1 << index;
            }
        }
        while let Some(sent) = self.sent.pop_front() {
            self.requeue(sent);
        }
    }

    /// Leaves an entry with the coordinator, in place of an older one with the same key. Returns
    /// `false`, counted, when it is too large or too many are pending.
    pub fn put(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        let (Some(key), Some(value)) = (HandoffKey::new(key), HandoffValue::new(value)) else {
            self.counters.no_room += 1;
            return false;
        };
        let id = (shard, key);
        let before = self.pending.get(&id);
        if before.is_some_and(|before| at_ns <= before.at_ns) {
            return true;
        }
        let freed = before.map_or(0, |before| cost(&id.1, &before.value));
        let bytes = self.pending_bytes - freed + cost(&id.1, &value);
        if bytes > self.settings.pending_bytes {
            self.counters.no_room += 1;
            return false;
        }
        // An entry that is still queued is sent with its new value.
        if before.is_none_or(|before| before.sent != 0) {
            self.unsent.push_back(id.clone());
        }
        self.pending_bytes = bytes;
        self.pending.insert(id, PendingEntry { value, at_ns, sent: 0 });
        true
    }

    /// Entries that the coordinator has not stored yet. They are lost if the member leaves
    /// before they are.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    #[cfg(test)]
    pub(super) fn is_pending(&self, shard: Shard, key: &HandoffKey) -> bool {
        self.pending.contains_key(&(shard, key.clone()))
    }

    /// The next shard whose entries all have to be put again, because the coordinator is new and
    /// the member owned the shard when it came. When many are pending, it waits for those.
    pub fn next_shard_to_replay(&mut self) -> Option<Shard> {
        if self.pending_bytes > REPLAY_BELOW || self.to_replay == 0 {
            return None;
        }
        let index = self.to_replay.trailing_zeros();
        // Clears the lowest bit.
        self.to_replay &= self.to_replay - 1;
        Shard::new(index as u8)
    }

    /// Whether everything that the coordinator has of this shard has been received, since the
    /// member began to own it or to prepare for it, and has been taken.
    pub fn is_complete(&self, shard: Shard) -> bool {
        let shard = &self.shards[shard.index()];
        shard.is_whole && shard.untaken == 0
    }

    /// How many requested shards are not complete.
    pub fn incomplete(&self) -> usize {
        self.shards.iter().filter(|shard| shard.role.requests() && !shard.is_whole).count()
    }

    /// Whether the coordinator has ever answered. An older version that does not know hand-off
    /// state does not.
    pub fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// The next received entry. The same entry may come again, and so may the member's own.
    pub fn take(&mut self) -> Option<HandoffEntry> {
        let entry = self.received.pop_front()?;
        self.received_bytes -= cost(&entry.key, &entry.value);
        self.shards[entry.shard.index()].untaken -= 1;
        Some(entry)
    }

    /// Counters since the keeper started.
    pub fn counters(&self) -> HandoffCounters {
        self.counters
    }

    /// Takes a message of the coordinator.
    pub fn on_message(&mut self, now: BootTime, frame: &[u8]) {
        let is_accepted = match Message::decode(frame) {
            Ok(Message::HandoffStored(stored)) => self.on_stored(&stored),
            Ok(Message::HandoffEntries(entries)) if frame.len() <= MAX_HANDOFF_BYTES => self.on_entries(now, entries),
            _ => false,
        };
        self.counters.rejected += u64::from(!is_accepted);
    }

    /// Performs the actions that are due.
    pub fn on_tick(&mut self, now: BootTime) {
        if !self.is_leased {
            return;
        }
        self.open_request.take_if(|request| now >= request.sent_at + RETRY_AFTER);
        while let Some(late) = self.sent.pop_front_if(|sent| now >= sent.sent_at + RETRY_AFTER) {
            self.requeue(late);
        }
        if self.is_answered {
            self.send_get(now);
            self.send_put(now);
        } else if now >= self.probe_at && (self.send_get(now) || self.send_put(now)) {
            // 1, 2, 4 … 60 s: a coordinator that does not know these messages counts each as
            // rejected.
            self.probe_at = now + MAX_PROBE_PAUSE.min(RETRY_AFTER * (1 << self.probes.min(6)));
            self.probes += 1;
        }
    }

    /// When [`HandoffKeeper::on_tick`] has something to do.
    pub fn next_deadline(&self) -> BootTime {
        if !self.is_leased {
            return BootTime::NEVER;
        }
        let retry_get = self.open_request.as_ref().map(|request| request.sent_at + RETRY_AFTER);
        let retry_put = self.sent.front().map(|sent| sent.sent_at + RETRY_AFTER);
        let probe_at = if self.is_answered { BootTime::ZERO } else { self.probe_at };
        let next_get = self.shards.iter().filter_map(|shard| shard.request_at).min().filter(|_| self.may_get());
        let next_get = next_get.map(|at| at.max(self.get_at).max(probe_at));
        let next_put = self.may_put().then(|| self.put_at.max(probe_at));
        [retry_get, retry_put, next_get, next_put].into_iter().flatten().min().unwrap_or(BootTime::NEVER)
    }

    /// The next message for the coordinator.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.outputs.pop_front()
    }

    fn may_get(&self) -> bool {
        self.open_request.is_none() && self.received_bytes < MAX_RECEIVED_BYTES
    }

    fn may_put(&self) -> bool {
        !self.unsent.is_empty() && self.sent.len() < WINDOW
    }

    /// Requests the shards that are due, if it may. Returns whether it has.
    fn send_get(&mut self, now: BootTime) -> bool {
        if !self.may_get() || now < self.get_at {
            return false;
        }
        let mut cursors = Vec::new();
        let mut shards = 0;
        for (index, state) in self.shards.iter().enumerate() {
            let Some(shard) = Shard::new(index as u8) else { continue };
            if state.request_at.is_some_and(|at| now >= at) {
                cursors.push(ShardCursor { shard, after: state.cursor });
                shards |= 1 << index;
            }
        }
        if cursors.is_empty() {
            return false;
        }
        self.request += 1;
        self.get_at = now + GET_EVERY;
        self.open_request = Some(OpenRequest { sent_at: now, shards });
        self.send(GetHandoff {
            group: self.settings.group.clone(),
            incarnation: self.incarnation,
            coordinator: self.coordinator,
            request: self.request,
            shards: cursors,
        });
        true
    }

    /// Sends a message of unsent entries, if it may. Returns whether it has.
    fn send_put(&mut self, now: BootTime) -> bool {
        if !self.may_put() || now < self.put_at {
            return false;
        }
        self.number += 1;
        let mut entries = Vec::new();
        let mut ids = Vec::new();
        let mut bytes = ENVELOPE;
        while entries.len() < MAX_HANDOFF_ENTRIES
            && let Some(id) = self.unsent.pop_front()
        {
            let Some(pending) = self.pending.get_mut(&id) else { continue };
            let (shard, key) = id.clone();
            let entry = HandoffEntry { shard, key, value: pending.value.clone(), at_ns: pending.at_ns };
            bytes += entry.wire_bytes();
            if bytes > MAX_HANDOFF_BYTES {
                self.unsent.push_front(id);
                break;
            }
            pending.sent = self.number;
            entries.push(entry);
            ids.push(id);
        }
        self.put_at = now + PUT_EVERY;
        self.sent.push_back(Sent { number: self.number, sent_at: now, ids });
        let group = self.settings.group.clone();
        self.send(PutHandoff { group, incarnation: self.incarnation, number: self.number, entries });
        if self.settings.mutants.takes_sent_for_stored() {
            self.on_stored(&HandoffStored {
                group: self.settings.group.clone(),
                incarnation: self.incarnation,
                coordinator: self.coordinator,
                number: self.number,
            });
        }
        true
    }

    /// Queues the entries of a message again that have not been sent in another one since.
    fn requeue(&mut self, sent: Sent) {
        for id in sent.ids {
            if let Some(pending) = self.pending.get_mut(&id).filter(|pending| pending.sent == sent.number) {
                pending.sent = 0;
                self.unsent.push_back(id);
            }
        }
    }

    fn is_ours(&self, group: &Name, incarnation: u64, coordinator: u64) -> bool {
        *group == self.settings.group && incarnation == self.incarnation && coordinator == self.coordinator
    }

    fn on_stored(&mut self, stored: &HandoffStored) -> bool {
        if !self.is_ours(&stored.group, stored.incarnation, stored.coordinator) {
            return false;
        }
        self.is_answered = true;
        // An unknown number is a late acknowledgement: the entries were sent again with another
        // number.
        let Some(index) = self.sent.iter().position(|sent| sent.number == stored.number) else { return true };
        for id in self.sent.remove(index).map(|sent| sent.ids).unwrap_or_default() {
            // A newer value may have been put since.
            if let Some(pending) = self.pending.get(&id).filter(|pending| pending.sent == stored.number) {
                self.pending_bytes -= cost(&id.1, &pending.value);
                self.pending.remove(&id);
                self.counters.stored += 1;
            }
        }
        true
    }

    fn on_entries(&mut self, now: BootTime, answer: HandoffEntries) -> bool {
        if !self.is_ours(&answer.group, answer.incarnation, answer.coordinator) {
            return false;
        }
        self.is_answered = true;
        let Some(open) = self.open_request.as_ref().filter(|_| answer.request == self.request) else {
            // The answer to an earlier request, or a duplicate.
            return answer.request <= self.request;
        };
        let was_requested = |shard: Shard| open.shards & (1 << shard.index()) != 0;
        let is_requested = answer.reached.iter().all(|reached| was_requested(reached.shard))
            && answer.entries.iter().all(|entry| was_requested(entry.shard));
        // An answer without progress is ignored. The request is repeated when it is overdue.
        if !is_requested || answer.reached.is_empty() {
            return false;
        }
        self.open_request = None;
        for reached in &answer.reached {
            self.shards[reached.shard.index()].on_reached(now, reached);
        }
        for entry in answer.entries {
            self.received_bytes += cost(&entry.key, &entry.value);
            self.shards[entry.shard.index()].untaken += 1;
            self.counters.received += 1;
            self.received.push_back(entry);
        }
        true
    }

    fn send(&mut self, message: impl Into<Message>) {
        let frame = message.into().encode();
        debug_assert!(frame.len() <= MAX_HANDOFF_BYTES, "a correct message is within the bound: {}", frame.len());
        self.counters.sent += 1;
        self.outputs.push_back(frame);
    }
}

fn cost(key: &HandoffKey, value: &HandoffValue) -> usize {
    key.as_bytes().len() + value.as_bytes().len() + OVERHEAD
}
