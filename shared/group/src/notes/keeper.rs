//! A member's end of notes.
//!
//! ```text
//! of a note:    put ─▶ unsent ─▶ sent ── NotesKept ──▶ forgotten
//!                        ▲        │ 1 s without an answer, another coordinator, a newer value
//!                        └────────┘
//! of a shard:   nothing ── prepares, owns ──▶ asked for ── HeldNotes up to v ──▶ asked for from v ── all there is ──▶ complete
//!                  ▲                              ▲ prepares no longer, owns: what the last owner has put since             │
//!                  └── neither ───────────────────┴───────── 1, 4 and 16 s after it began to own: what came late ◀──────────┘
//! ```

use std::collections::{BTreeMap, VecDeque};

use sekiwake_record::{Name, SHARDS, Shard};

use crate::{
    HoldState, MILLISECOND, SECOND, ShardStatus,
    wire::{
        HeldNotes, MAX_NOTES, MAX_NOTES_BYTES, Message, Note, NoteKey, NoteValue, Notes, NotesKept, ShardCursor,
        WantNotes,
    },
};

/// What is not answered for so long is said again.
const AGAIN_AFTER: u64 = SECOND;
/// A coordinator that has never answered is tried again ever more rarely, up to this.
const HELLO_AT_MOST: u64 = 60 * SECOND;
/// The least time between two messages of notes: 3.2 MB/s, which a renewal finds its way between.
const NOTES_EVERY: u64 = 20 * MILLISECOND;
/// The most messages of notes that are not acknowledged.
const WINDOW: usize = 4;
/// The least time between two requests: 6.4 MB/s.
const WANT_EVERY: u64 = 10 * MILLISECOND;
/// When an owner asks again, counted from when it had everything: for what the last owner put, and what was late.
const LATE_WORDS: [u64; 3] = [SECOND, 3 * SECOND, 12 * SECOND];
/// Received notes that nobody has taken, bytes, beyond which no more are asked for.
const RECEIVED_BYTES: usize = 256 << 10;
/// Waiting notes, bytes, beyond which nobody is asked to present more.
const PRESENT_BELOW: usize = 1 << 20;
/// What a note costs in memory beside its key and value.
const OVERHEAD: usize = 128;
/// What a message of notes takes before the first of them: a group's name of 63 bytes, and numbers.
const ENVELOPE: usize = 128;

/// Settings of a [`NoteKeeper`].
#[derive(Clone, Debug)]
pub struct NoteKeeperSettings {
    /// The group.
    pub group: Name,
    /// The most bytes of notes that wait to be kept: as many as a group may have at the coordinator.
    pub waiting_bytes: usize,
    /// A fault, to show that the simulation finds it.
    #[cfg(test)]
    pub(crate) fault: Option<super::simulation::Fault>,
}

impl NoteKeeperSettings {
    /// The defaults for a member of this group.
    pub fn new(group: Name) -> NoteKeeperSettings {
        NoteKeeperSettings {
            group,
            waiting_bytes: 16 << 20,
            #[cfg(test)]
            fault: None,
        }
    }
}

/// Sums since the keeper began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoteCounters {
    /// Notes that the coordinator has acknowledged.
    pub kept: u64,
    /// Notes that were put and found no room, or are too large.
    pub no_room: u64,
    /// Notes that came.
    pub received: u64,
    /// Messages that were sent.
    pub sent: u64,
    /// Messages that are none, or answer nothing that was asked.
    pub refused: u64,
}

/// What a member does with a shard, as far as notes go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Hold {
    #[default]
    Nothing,
    Prepares,
    Owns(u64),
    /// It has been asked to stop, or has stopped.
    Stops,
}

#[derive(Clone, Copy, Debug, Default)]
struct OfShard {
    hold: Hold,
    /// All up to this version of the coordinator's has come.
    cursor: u64,
    is_whole: bool,
    /// When to ask for it, if it is to be asked for.
    ask_at: Option<u64>,
    late_words: usize,
    /// Notes that have come and were not taken.
    received: usize,
}

impl OfShard {
    /// Gives whether the shard is to be asked for from now on, or no longer.
    fn turn(&mut self, now: u64, hold: Hold) {
        if !(self.hold == Hold::Prepares && matches!(hold, Hold::Owns(_))) {
            self.cursor = 0;
        }
        let asks = matches!(hold, Hold::Prepares | Hold::Owns(_));
        (self.hold, self.is_whole, self.late_words) = (hold, false, 0);
        self.ask_at = asks.then_some(now);
    }
}

#[derive(Debug)]
struct Waiting {
    value: NoteValue,
    at_ns: u64,
    /// The message that it was last sent in; 0 while it is in the queue of those to be sent.
    sent: u64,
}

type Id = (Shard, NoteKey);

#[derive(Debug)]
struct Sent {
    number: u64,
    sent_at: u64,
    ids: Vec<Id>,
}

#[derive(Debug)]
struct Asked {
    asked_at: u64,
    /// One bit for each shard.
    shards: u64,
}

/// The machine of one member's notes.
#[derive(Debug)]
pub struct NoteKeeper {
    settings: NoteKeeperSettings,
    incarnation: u64,
    coordinator: u64,
    is_leased: bool,
    /// Whether this coordinator has ever answered.
    is_answered: bool,
    /// How often it was tried before.
    hellos: u32,
    hello_at: u64,
    shards: [OfShard; SHARDS],
    waiting: BTreeMap<Id, Waiting>,
    waiting_bytes: usize,
    unsent: VecDeque<Id>,
    sent: VecDeque<Sent>,
    number: u64,
    notes_at: u64,
    request: u64,
    asked: Option<Asked>,
    want_at: u64,
    received: VecDeque<Note>,
    received_bytes: usize,
    /// One bit for each shard whose notes are to be put again.
    present: u64,
    outputs: VecDeque<Vec<u8>>,
    counters: NoteCounters,
}

impl NoteKeeper {
    /// A keeper of nothing. `incarnation` is the member's.
    pub fn new(settings: NoteKeeperSettings, incarnation: u64) -> NoteKeeper {
        NoteKeeper {
            settings,
            incarnation,
            coordinator: 0,
            is_leased: false,
            is_answered: false,
            hellos: 0,
            hello_at: 0,
            shards: [OfShard::default(); SHARDS],
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            unsent: VecDeque::new(),
            sent: VecDeque::new(),
            number: 0,
            notes_at: 0,
            request: 0,
            asked: None,
            want_at: 0,
            received: VecDeque::new(),
            received_bytes: 0,
            present: 0,
            outputs: VecDeque::new(),
            counters: NoteCounters::default(),
        }
    }

    /// Takes what the member has become: to be called whenever that may have changed, before anything is delivered.
    pub fn follow(
        &mut self,
        now: u64,
        coordinator: u64,
        is_leased: bool,
        shards: impl IntoIterator<Item = ShardStatus>,
    ) {
        self.is_leased = is_leased;
        if coordinator != self.coordinator {
            self.meet(now, coordinator);
        }
        let mut holds = [Hold::Nothing; SHARDS];
        for status in shards {
            holds[usize::from(status.shard)] = match status.state {
                HoldState::Preparing => Hold::Prepares,
                HoldState::Owned => Hold::Owns(status.generation),
                HoldState::Releasing | HoldState::Released => Hold::Stops,
            };
        }
        let asks = |hold: Hold| matches!(hold, Hold::Prepares | Hold::Owns(_));
        for (of_shard, hold) in self.shards.iter_mut().zip(holds) {
            if of_shard.hold != hold {
                // An answer that is on its way was made before.
                if asks(of_shard.hold) || asks(hold) {
                    self.asked = None;
                }
                #[cfg(test)]
                if self.settings.fault == Some(super::simulation::Fault::AsksOnce)
                    && of_shard.hold == Hold::Prepares
                    && of_shard.is_whole
                {
                    of_shard.hold = hold;
                    continue;
                }
                of_shard.turn(now, hold);
            }
        }
    }

    /// Another coordinator knows nothing.
    fn meet(&mut self, now: u64, coordinator: u64) {
        (self.coordinator, self.is_answered, self.hellos, self.hello_at) = (coordinator, false, 0, now);
        (self.asked, self.want_at, self.notes_at) = (None, now, now);
        for (index, of_shard) in self.shards.iter_mut().enumerate() {
            of_shard.cursor = 0;
            if matches!(of_shard.hold, Hold::Owns(_) | Hold::Stops) {
                self.present |= 1 << index;
            }
        }
        while let Some(sent) = self.sent.pop_front() {
            self.queue_again(sent);
        }
    }

    /// Leaves a note. An older one of the same key is forgotten. Gives `false`, counted, when it is too large or there is no room.
    pub fn put(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) -> bool {
        let (Some(key), Some(value)) = (NoteKey::new(key), NoteValue::new(value)) else {
            self.counters.no_room += 1;
            return false;
        };
        let id = (shard, key);
        let before = self.waiting.get(&id);
        if before.is_some_and(|before| at_ns <= before.at_ns) {
            return true;
        }
        let freed = before.map_or(0, |before| cost(&id.1, &before.value));
        let bytes = self.waiting_bytes - freed + cost(&id.1, &value);
        if bytes > self.settings.waiting_bytes {
            self.counters.no_room += 1;
            return false;
        }
        if before.is_none_or(|before| before.sent != 0) {
            self.unsent.push_back(id.clone());
        }
        self.waiting_bytes = bytes;
        self.waiting.insert(id, Waiting { value, at_ns, sent: 0 });
        true
    }

    /// Notes that the coordinator has not acknowledged. A member that leaves before there are none leaves without them.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    #[cfg(test)]
    pub(super) fn is_waiting(&self, shard: Shard, key: &NoteKey) -> bool {
        self.waiting.contains_key(&(shard, key.clone()))
    }

    /// The next shard whose notes are to be put again, all of them: the coordinator is another one, and the member owned the shard
    /// when it came. Where there are many, it waits until what was put before has found its way.
    pub fn next_to_present(&mut self) -> Option<Shard> {
        if self.waiting_bytes > PRESENT_BELOW || self.present == 0 {
            return None;
        }
        let index = self.present.trailing_zeros();
        self.present &= self.present - 1;
        Shard::new(index as u8)
    }

    /// Whether all that the coordinator has for this shard has come since the member began to own it, or to prepare, and has been taken.
    pub fn is_complete(&self, shard: Shard) -> bool {
        let of_shard = &self.shards[shard.index()];
        of_shard.is_whole && of_shard.received == 0
    }

    /// Shards that are asked for and not complete.
    pub fn incomplete(&self) -> usize {
        let asks = |of_shard: &&OfShard| matches!(of_shard.hold, Hold::Prepares | Hold::Owns(_));
        self.shards.iter().filter(asks).filter(|of_shard| !of_shard.is_whole).count()
    }

    /// Whether the coordinator has ever answered: one of a version that does not know of notes does not.
    pub fn is_answered(&self) -> bool {
        self.is_answered
    }

    /// The next note that has come. The same may come again, and one of one's own.
    pub fn take(&mut self) -> Option<Note> {
        let note = self.received.pop_front()?;
        self.received_bytes -= cost(&note.key, &note.value);
        self.shards[note.shard.index()].received -= 1;
        Some(note)
    }

    /// Sums since it began.
    pub fn counters(&self) -> NoteCounters {
        self.counters
    }

    /// Takes a message of the coordinator.
    pub fn on_message(&mut self, now: u64, frame: &[u8]) {
        let is_taken = match Message::decode(frame) {
            Ok(Message::NotesKept(kept)) => self.on_kept(&kept),
            Ok(Message::HeldNotes(held)) if frame.len() <= MAX_NOTES_BYTES => self.on_held(now, held),
            _ => false,
        };
        self.counters.refused += u64::from(!is_taken);
    }

    /// Does what is due.
    pub fn on_tick(&mut self, now: u64) {
        if !self.is_leased {
            return;
        }
        self.asked.take_if(|asked| now >= asked.asked_at + AGAIN_AFTER);
        while let Some(late) = self.sent.pop_front_if(|sent| now >= sent.sent_at + AGAIN_AFTER) {
            self.queue_again(late);
        }
        if self.is_answered {
            self.want(now);
            self.send_notes(now);
        } else if now >= self.hello_at && (self.want(now) || self.send_notes(now)) {
            self.hello_at = now + HELLO_AT_MOST.min(AGAIN_AFTER << self.hellos.min(6));
            self.hellos += 1;
        }
    }

    /// When [`NoteKeeper::on_tick`] has something to do.
    pub fn next_deadline(&self) -> u64 {
        if !self.is_leased {
            return u64::MAX;
        }
        let again = self.asked.as_ref().map(|asked| asked.asked_at);
        let again = again.into_iter().chain(self.sent.front().map(|sent| sent.sent_at)).map(|at| at + AGAIN_AFTER);
        let (may_want, may_send) = (self.may_want(), self.may_send());
        let want = self.shards.iter().filter_map(|of_shard| of_shard.ask_at).min().filter(|_| may_want);
        let want = want.map(|at| at.max(self.want_at));
        let notes = may_send.then_some(self.notes_at);
        let hello = if self.is_answered { 0 } else { self.hello_at };
        again.chain(want.into_iter().chain(notes).map(|at| at.max(hello))).min().unwrap_or(u64::MAX)
    }

    /// The next message for the coordinator.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.outputs.pop_front()
    }

    fn may_want(&self) -> bool {
        self.asked.is_none() && self.received_bytes < RECEIVED_BYTES
    }

    fn may_send(&self) -> bool {
        !self.unsent.is_empty() && self.sent.len() < WINDOW
    }

    /// Asks for what is due, if it may; gives whether it has.
    fn want(&mut self, now: u64) -> bool {
        if !self.may_want() || now < self.want_at {
            return false;
        }
        let due = self.shards.iter().enumerate().filter(|(_, of_shard)| of_shard.ask_at.is_some_and(|at| now >= at));
        let cursors = due.filter_map(|(index, of_shard)| {
            Some(ShardCursor { shard: Shard::new(index as u8)?, after: of_shard.cursor })
        });
        let cursors: Vec<ShardCursor> = cursors.collect();
        if cursors.is_empty() {
            return false;
        }
        self.request += 1;
        self.want_at = now + WANT_EVERY;
        let shards = cursors.iter().fold(0, |shards, cursor| shards | 1 << cursor.shard.index());
        self.asked = Some(Asked { asked_at: now, shards });
        let (group, incarnation) = (self.settings.group.clone(), self.incarnation);
        let (coordinator, request) = (self.coordinator, self.request);
        self.send(WantNotes { group, incarnation, coordinator, request, shards: cursors });
        true
    }

    /// Sends a message of what waits, if it may; gives whether it has.
    fn send_notes(&mut self, now: u64) -> bool {
        if !self.may_send() || now < self.notes_at {
            return false;
        }
        self.number += 1;
        let (mut notes, mut ids, mut bytes) = (Vec::new(), Vec::new(), ENVELOPE);
        while notes.len() < MAX_NOTES
            && let Some(id) = self.unsent.pop_front()
        {
            let Some(waiting) = self.waiting.get_mut(&id) else { continue };
            let (shard, key) = id.clone();
            let note = Note { shard, key, value: waiting.value.clone(), at_ns: waiting.at_ns };
            bytes += note.wire_bytes();
            if bytes > MAX_NOTES_BYTES {
                self.unsent.push_front(id);
                break;
            }
            waiting.sent = self.number;
            notes.push(note);
            ids.push(id);
        }
        self.notes_at = now + NOTES_EVERY;
        self.sent.push_back(Sent { number: self.number, sent_at: now, ids });
        let (group, incarnation, number) = (self.settings.group.clone(), self.incarnation, self.number);
        self.send(Notes { group, incarnation, number, notes });
        #[cfg(test)]
        if self.settings.fault == Some(super::simulation::Fault::TakesSentForKept) {
            let (group, coordinator) = (self.settings.group.clone(), self.coordinator);
            self.on_kept(&NotesKept { group, incarnation, coordinator, number });
        }
        true
    }

    fn queue_again(&mut self, sent: Sent) {
        for id in sent.ids {
            if let Some(waiting) = self.waiting.get_mut(&id).filter(|waiting| waiting.sent == sent.number) {
                waiting.sent = 0;
                self.unsent.push_back(id);
            }
        }
    }

    fn is_ours(&self, group: &Name, incarnation: u64, coordinator: u64) -> bool {
        *group == self.settings.group && incarnation == self.incarnation && coordinator == self.coordinator
    }

    fn on_kept(&mut self, kept: &NotesKept) -> bool {
        if !self.is_ours(&kept.group, kept.incarnation, kept.coordinator) {
            return false;
        }
        self.is_answered = true;
        // What was sent again has another number; this one came late.
        let Some(index) = self.sent.iter().position(|sent| sent.number == kept.number) else { return true };
        for id in self.sent.remove(index).map(|sent| sent.ids).unwrap_or_default() {
            // A newer value may have taken its place meanwhile.
            if let Some(waiting) = self.waiting.get(&id).filter(|waiting| waiting.sent == kept.number) {
                self.waiting_bytes -= cost(&id.1, &waiting.value);
                self.waiting.remove(&id);
                self.counters.kept += 1;
            }
        }
        true
    }

    fn on_held(&mut self, now: u64, held: HeldNotes) -> bool {
        if !self.is_ours(&held.group, held.incarnation, held.coordinator) {
            return false;
        }
        self.is_answered = true;
        let Some(asked) = self.asked.as_ref().filter(|_| held.request == self.request) else {
            // The answer to an earlier request, or the same once more.
            return held.request <= self.request;
        };
        let was_asked = |shard: Shard| asked.shards & (1 << shard.index()) != 0;
        let is_asked = held.reached.iter().all(|reached| was_asked(reached.shard))
            && held.notes.iter().all(|note| was_asked(note.shard));
        // One that leads nowhere is as good as none: the request is made again in its time.
        if !is_asked || held.reached.is_empty() {
            return false;
        }
        self.asked = None;
        for reached in &held.reached {
            let of_shard = &mut self.shards[reached.shard.index()];
            of_shard.cursor = reached.up_to;
            if reached.is_whole {
                of_shard.is_whole = true;
                let late_word = LATE_WORDS.get(of_shard.late_words).filter(|_| of_shard.hold != Hold::Prepares);
                of_shard.ask_at = late_word.map(|after| now + after);
                of_shard.late_words += 1;
            }
        }
        for note in held.notes {
            self.received_bytes += cost(&note.key, &note.value);
            self.shards[note.shard.index()].received += 1;
            self.counters.received += 1;
            self.received.push_back(note);
        }
        true
    }

    fn send(&mut self, message: impl Into<Message>) {
        let frame = message.into().encode();
        debug_assert!(frame.len() <= MAX_NOTES_BYTES, "an honest message is within the bound: {}", frame.len());
        self.counters.sent += 1;
        self.outputs.push_back(frame);
    }
}

fn cost(key: &NoteKey, value: &NoteValue) -> usize {
    key.as_bytes().len() + value.as_bytes().len() + OVERHEAD
}
