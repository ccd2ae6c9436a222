//! The messages about notes, drawn with the others in [`wire`](super).

use std::{fmt, sync::Arc};

use super::{Element, Name, SHARDS, Shard, Unexpected, VEC, msgpack, read_array, read_bytes, skip};

/// The longest key of a note, bytes.
pub const MAX_NOTE_KEY: usize = 64;
/// The longest value of a note, bytes.
pub const MAX_NOTE_VALUE: usize = 8 << 10;
/// The most notes in one message.
pub const MAX_NOTES: usize = 512;
/// The largest message about notes. Renewals wait behind it, so it is small.
pub const MAX_NOTES_BYTES: usize = 64 << 10;

/// What a note is called within its shard: 1 to 64 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NoteKey(Arc<[u8]>);

impl NoteKey {
    /// The key of these bytes; `None` when there are none, or too many.
    pub fn new(bytes: &[u8]) -> Option<NoteKey> {
        (1..=MAX_NOTE_KEY).contains(&bytes.len()).then(|| NoteKey(Arc::from(bytes)))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for NoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteKey({})", self.0.escape_ascii())
    }
}

impl Element for NoteKey {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, &self.0).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<NoteKey, Unexpected> {
        NoteKey::new(read_bytes(rest, "key")?).ok_or(Unexpected::new("key of an allowed length"))
    }
}

/// What a note says: 0 to 8 KiB that mean nothing here. An empty one says that there is nothing any more.
#[derive(Clone, PartialEq, Eq)]
pub struct NoteValue(Arc<[u8]>);

impl NoteValue {
    /// The value of these bytes; `None` when there are too many.
    pub fn new(bytes: &[u8]) -> Option<NoteValue> {
        (bytes.len() <= MAX_NOTE_VALUE).then(|| NoteValue(Arc::from(bytes)))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for NoteValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NoteValue({} bytes)", self.0.len())
    }
}

impl Element for NoteValue {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, &self.0).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<NoteValue, Unexpected> {
        NoteValue::new(read_bytes(rest, "value")?).ok_or(Unexpected::new("value of an allowed length"))
    }
}

array! {
    /// What the owner of a shard leaves for whoever owns it next.
    Note (list MAX_NOTES) {
        /// The shard.
        shard: Shard,
        /// What it is called.
        key: NoteKey,
        /// What it says.
        value: NoteValue,
        /// When that was so, by whatever clock the group's members share: of two notes with one key the newer one holds.
        at_ns: u64,
    }
}

impl Note {
    /// The most bytes that it takes in a message.
    pub(crate) fn wire_bytes(&self) -> usize {
        // An array's length, a shard, two lengths of up to three bytes, nine bytes of time.
        self.key.0.len() + self.value.0.len() + 18
    }
}

array! {
    /// A shard whose notes are asked for.
    ShardCursor (list SHARDS) {
        /// The shard.
        shard: Shard,
        /// What is had already: all up to this version of the coordinator's; 0 for nothing.
        after: u64,
    }
}

array! {
    /// How far an answer goes in a shard.
    ShardReached (list SHARDS) {
        /// The shard.
        shard: Shard,
        /// What to ask on from.
        up_to: u64,
        /// Whether that is all that there is.
        is_whole: bool,
    }
}

array! {
    /// Notes to be kept.
    Notes (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// Counts a member's messages of notes.
        number: u64,
        /// The notes.
        notes: Vec<Note>,
    }
}

array! {
    /// Asks for notes.
    WantNotes (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// The coordinator whose versions are meant: to another one they are 0.
        coordinator: u64,
        /// Counts a member's requests for notes.
        request: u64,
        /// Of these shards. One answer goes as far as there is room in a message.
        shards: Vec<ShardCursor>,
    }
}

array! {
    /// The notes of a message are kept, or newer ones are.
    NotesKept (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// The coordinator's random number.
        coordinator: u64,
        /// Which message.
        number: u64,
    }
}

array! {
    /// Notes that were asked for.
    HeldNotes (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// The coordinator's random number.
        coordinator: u64,
        /// Which request.
        request: u64,
        /// How far it goes. Shards that are not listed are to be asked for again.
        reached: Vec<ShardReached>,
        /// The notes.
        notes: Vec<Note>,
    }
}
