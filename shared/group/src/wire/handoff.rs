//! The messages of the hand-off state, drawn with the others in [`wire`](super).

use std::{fmt, sync::Arc};

use rmp::encode as msgpack;
use sekiwake_record::{
    Kind, Name, SHARDS, Shard,
    msgpack::{Unexpected, read_array, read_bytes, skip},
};

use super::codec::{Element, VEC, array, code};

/// The longest key of an entry, bytes.
pub const MAX_HANDOFF_KEY: usize = 64;
/// The longest value of an entry, bytes.
pub const MAX_HANDOFF_VALUE: usize = 8 << 10;
/// Maximum number of entries in one message.
pub const MAX_HANDOFF_ENTRIES: usize = 512;
/// The largest message of hand-off state. It is small because renewals queue behind it.
pub const MAX_HANDOFF_BYTES: usize = 64 << 10;

/// The key of an entry within its shard: 1 to 64 bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HandoffKey(Arc<[u8]>);

impl HandoffKey {
    /// The key with these bytes; `None` when it would be empty or too long.
    pub fn new(bytes: &[u8]) -> Option<HandoffKey> {
        (1..=MAX_HANDOFF_KEY).contains(&bytes.len()).then(|| HandoffKey(Arc::from(bytes)))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for HandoffKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandoffKey({})", self.0.escape_ascii())
    }
}

impl Element for HandoffKey {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, &self.0).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<HandoffKey, Unexpected> {
        HandoffKey::new(read_bytes(rest, "key")?).ok_or(Unexpected::new("key of an allowed length"))
    }
}

/// The value of an entry: 0 to 8 KiB, opaque to this crate. An empty value says that the key no
/// longer has any state.
#[derive(Clone, PartialEq, Eq)]
pub struct HandoffValue(Arc<[u8]>);

impl HandoffValue {
    /// The value with these bytes; `None` when it would be too long.
    pub fn new(bytes: &[u8]) -> Option<HandoffValue> {
        (bytes.len() <= MAX_HANDOFF_VALUE).then(|| HandoffValue(Arc::from(bytes)))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for HandoffValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HandoffValue({} bytes)", self.0.len())
    }
}

impl Element for HandoffValue {
    fn write(&self, out: &mut Vec<u8>) {
        msgpack::write_bin(out, &self.0).expect(VEC);
    }
    fn read(rest: &mut &[u8]) -> Result<HandoffValue, Unexpected> {
        HandoffValue::new(read_bytes(rest, "value")?).ok_or(Unexpected::new("value of an allowed length"))
    }
}

array! {
    /// State that the owner of a shard leaves for the next owner.
    HandoffEntry (list MAX_HANDOFF_ENTRIES) {
        /// The shard.
        shard: Shard,
        /// The key.
        key: HandoffKey,
        /// The value.
        value: HandoffValue,
        /// When the value was current, by a clock that the group's members share: of two entries
        /// with one key the newer replaces the older.
        at_ns: u64,
    }
}

impl HandoffEntry {
    /// Maximum bytes that the entry takes in a message.
    pub(crate) fn wire_bytes(&self) -> usize {
        // An array's length, a shard, two lengths of up to three bytes, nine bytes of time.
        self.key.0.len() + self.value.0.len() + 18
    }
}

array! {
    /// A shard whose entries are requested.
    ShardCursor (list SHARDS) {
        /// The shard.
        shard: Shard,
        /// The requester has everything up to this version of the coordinator; 0 for nothing.
        after: u64,
    }
}

array! {
    /// How far an answer reaches in a shard.
    ShardReached (list SHARDS) {
        /// The shard.
        shard: Shard,
        /// The version from which to continue.
        up_to: u64,
        /// Whether the coordinator has nothing beyond it.
        is_whole: bool,
    }
}

array! {
    /// Entries to be stored.
    PutHandoff (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// Counts this member's messages of this type.
        number: u64,
        /// The entries.
        entries: Vec<HandoffEntry>,
    }
}

array! {
    /// Requests entries.
    GetHandoff (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// The coordinator that the versions belong to. Another coordinator reads them as 0.
        coordinator: u64,
        /// Counts this member's requests of this type.
        request: u64,
        /// The shards. An answer has as much as fits into one message.
        shards: Vec<ShardCursor>,
    }
}

array! {
    /// The entries of a message are stored, or newer ones are.
    HandoffStored (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// The coordinator's random number.
        coordinator: u64,
        /// The number of the message that is acknowledged.
        number: u64,
    }
}

array! {
    /// Entries that were requested.
    HandoffEntries (list 0) {
        /// The group.
        group: Name,
        /// The member.
        incarnation: u64,
        /// The coordinator's random number.
        coordinator: u64,
        /// The request that is answered.
        request: u64,
        /// How far the answer reaches. Shards that are not listed have to be requested again.
        reached: Vec<ShardReached>,
        /// The entries.
        entries: Vec<HandoffEntry>,
    }
}

code! {
    /// How an answer to a request for templates ends.
    PageOutcome {
        /// There are more: request the next page.
        More = 0,
        /// This was the last page.
        Complete = 1,
        /// No group works on this kind.
        NoGroup = 2,
        /// Request again after a pause: too many readers request, or the coordinator is new and
        /// does not know the groups yet.
        Wait = 3,
    }
}

array! {
    /// Requests the templates of a kind: a page of the hand-off state of a group that works on it.
    GetTemplates (list 0) {
        /// The kind.
        kind: Kind,
        /// Counts this reader's requests.
        request: u64,
        /// The coordinator that the page before came from; 0 for the first page.
        coordinator: u64,
        /// The group that the page before came from; none for the first page.
        group: Option<Name>,
        /// Where the page before ended: a shard, and a version in it.
        shard: Shard,
        /// The version.
        after: u64,
    }
}

array! {
    /// A page of templates. If its coordinator or its group is not the requested one, it is the
    /// first page.
    Templates (list 0) {
        /// The kind.
        kind: Kind,
        /// The request that is answered.
        request: u64,
        /// The coordinator's random number.
        coordinator: u64,
        /// Whether there are more.
        outcome: PageOutcome,
        /// The group; none if there is no group, or with [`PageOutcome::Wait`].
        group: Option<Name>,
        /// Where the next page begins: a shard, and a version in it.
        shard: Shard,
        /// The version.
        after: u64,
        /// The entries.
        entries: Vec<HandoffEntry>,
    }
}
