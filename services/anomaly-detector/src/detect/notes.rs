//! The detector's state as notes: small values under keys, of which each is right by itself.
//!
//! ```text
//! key                   shard          value (msgpack)
//! "N"                   0              [version, [next interval, the one in which counting began]]
//! "C"                   each           [version, tally: positions, counts of open intervals]
//! "T", "V" severity     0              [version, series: window, alarms, changes that have not been told]
//! "S" address (16)      of the source  [version, source: series, when it spoke last, pauses]; nothing where it is gone
//! ```
//! A file has all of them as JSON: `{"version":1,"notes":[[shard, key, value], ...],"checksum":...}`, key and value in base64.

use base64::{Engine, prelude::BASE64_STANDARD};
use sekiwake_record::Shard;
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_64;

const VERSION: u8 = 1;

/// The largest value that the bus takes, bytes.
pub const MAX_NOTE_BYTES: usize = 8 << 10;

/// The largest file that is read, bytes.
const MAX_FILE: usize = 64 << 20;

/// One piece of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateNote {
    /// The shard that it belongs to.
    pub shard: Shard,
    /// What it is about, 1 to 64 bytes.
    pub key: Vec<u8>,
    /// What is so, at most 8 KiB; nothing: there is none any more.
    pub value: Vec<u8>,
}

pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    // What is written to a Vec succeeds, and every type here has a form.
    rmp_serde::to_vec(&(VERSION, value)).unwrap_or_default()
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (version, value): (u8, T) = rmp_serde::from_slice(bytes).ok()?;
    (version == VERSION).then_some(value)
}

/// The notes as one file.
pub fn write_file(notes: &[StateNote]) -> Vec<u8> {
    let rows: Vec<(usize, String, String)> = notes.iter().map(row).collect();
    let checksum = format!("{:016x}", xxh3_64(&serde_json::to_vec(&rows).unwrap_or_default()));
    let file = serde_json::json!({ "version": VERSION, "checksum": checksum, "notes": rows });
    let mut bytes = serde_json::to_vec(&file).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Reads such a file.
///
/// # Errors
/// What it is that is no state, in a few words.
pub fn read_file(bytes: &[u8]) -> Result<Vec<StateNote>, &'static str> {
    #[derive(serde::Deserialize)]
    struct File {
        version: u8,
        checksum: String,
        notes: Vec<(usize, String, String)>,
    }
    if bytes.len() > MAX_FILE {
        return Err("it is larger than any state");
    }
    let file: File = serde_json::from_slice(bytes).map_err(|_| "it is no state of a detector")?;
    if file.version != VERSION {
        return Err("it was written by another version");
    }
    if format!("{:016x}", xxh3_64(&serde_json::to_vec(&file.notes).unwrap_or_default())) != file.checksum {
        return Err("its checksum is wrong");
    }
    file.notes.iter().map(note).collect::<Option<_>>().ok_or("a note in it is none")
}

fn row(note: &StateNote) -> (usize, String, String) {
    (note.shard.index(), BASE64_STANDARD.encode(&note.key), BASE64_STANDARD.encode(&note.value))
}

fn note((shard, key, value): &(usize, String, String)) -> Option<StateNote> {
    Some(StateNote {
        shard: Shard::new(u8::try_from(*shard).ok()?)?,
        key: BASE64_STANDARD.decode(key).ok()?,
        value: BASE64_STANDARD.decode(value).ok()?,
    })
}
