//! The detector's state as hand-off entries: small values under keys, each consistent by itself.
//!
//! ```text
//! key                   shard          value (msgpack)
//! "I"                   0              [version, length of an interval in nanoseconds]
//! "N"                   0              [version, [next interval, interval in which counting started]]
//! "C"                   each           [version, tally: positions, counts of open intervals]
//! "T", "V" severity     0              [version, series: window, alarms, undelivered events]
//! "S" address (16)      of the source  [version, source: series, last message, pauses]; empty if deleted
//! ```
//! The state file has all of them as JSON, with key and value in base64. Each entry is a line, and
//! so is the checksum of that line, so that damage costs only the entries that are damaged:
//!
//! ```text
//! {"version":2,"checksum":"...","sums":[
//! "checksum of the first entry's line",
//! ...],"notes":[
//! [shard, key, value],
//! ...]}
//! ```

use std::collections::HashSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use sekiwake_record::Shard;
use serde::{Serialize, de::DeserializeOwned};
use xxhash_rust::xxh3::xxh3_64;

const VERSION: u8 = 2;

/// The largest value that the bus accepts, bytes.
pub const MAX_HANDOFF_ENTRY_BYTES: usize = 8 << 10;

/// The largest state file, bytes.
const MAX_FILE: usize = 64 << 20;

/// One entry of the state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// The shard that it belongs to.
    pub shard: Shard,
    /// Its key, 1 to 64 bytes.
    pub key: Vec<u8>,
    /// Its value, at most 8 KiB; empty to delete the entry.
    pub value: Vec<u8>,
}

pub(super) fn encode(value: &impl Serialize) -> Vec<u8> {
    // Writing to a Vec cannot fail, and all types here can be encoded.
    rmp_serde::to_vec(&(VERSION, value)).unwrap_or_default()
}

pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let (version, value): (u8, T) = rmp_serde::from_slice(bytes).ok()?;
    (version == VERSION).then_some(value)
}

/// A state entry in the file: shard, key and value.
type Row = (usize, String, String);

/// The contents of a state file.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StateFile {
    /// The entries that are intact.
    pub entries: Vec<StateEntry>,
    /// Entries that are damaged.
    pub damaged: usize,
}

/// Encodes entries as a state file.
pub fn write_file(entries: &[StateEntry]) -> Vec<u8> {
    let rows: Vec<Row> = entries.iter().map(to_row).collect();
    let lines: Vec<String> = rows.iter().map(|row| serde_json::to_string(row).unwrap_or_default()).collect();
    let sums: Vec<String> = lines.iter().map(|line| format!("\"{}\"", checksum(line.as_bytes()))).collect();
    let whole = checksum(&serde_json::to_vec(&rows).unwrap_or_default());
    let sums = sums.join(",\n");
    let lines = lines.join(",\n");
    format!("{{\"version\":{VERSION},\"checksum\":\"{whole}\",\"sums\":[\n{sums}\n],\"notes\":[\n{lines}\n]}}\n")
        .into_bytes()
}

/// Decodes a state file.
///
/// # Errors
/// Why the file is invalid, in a few words.
pub fn read_file(bytes: &[u8]) -> Result<StateFile, &'static str> {
    if bytes.len() > MAX_FILE {
        return Err("larger than 64 MiB");
    }
    read_whole(bytes).map(|entries| StateFile { entries, damaged: 0 }).or_else(|reason| {
        let file = read_lines(bytes);
        if file.entries.is_empty() { Err(reason) } else { Ok(file) }
    })
}

fn read_whole(bytes: &[u8]) -> Result<Vec<StateEntry>, &'static str> {
    #[derive(serde::Deserialize)]
    struct File {
        version: u8,
        checksum: String,
        #[serde(rename = "notes")]
        rows: Vec<Row>,
    }
    let file: File = serde_json::from_slice(bytes).map_err(|_| "not a state file of the detector")?;
    if file.version != VERSION {
        return Err("written by another version");
    }
    if checksum(&serde_json::to_vec(&file.rows).unwrap_or_default()) != file.checksum {
        return Err("checksum mismatch");
    }
    file.rows.iter().map(from_row).collect::<Option<_>>().ok_or("invalid entry")
}

/// The lines of a damaged file that have their checksum in it.
fn read_lines(bytes: &[u8]) -> StateFile {
    let lines = || bytes.split(|&byte| byte == b'\n').map(|line| line.strip_suffix(b",").unwrap_or(line));
    let sums: HashSet<&[u8]> = lines().filter(|line| line.len() == 18 && line.starts_with(b"\"")).collect();
    let is_intact = |line: &&[u8]| sums.contains(format!("\"{}\"", checksum(line)).as_bytes());
    let rows = lines().filter(|line| line.starts_with(b"[")).filter(is_intact);
    let entries: Vec<StateEntry> =
        rows.filter_map(|line| from_row(&serde_json::from_slice::<Row>(line).ok()?)).collect();
    let damaged = sums.len().saturating_sub(entries.len());
    StateFile { entries, damaged }
}

fn checksum(bytes: &[u8]) -> String {
    format!("{:016x}", xxh3_64(bytes))
}

fn to_row(entry: &StateEntry) -> Row {
    (entry.shard.index(), BASE64_STANDARD.encode(&entry.key), BASE64_STANDARD.encode(&entry.value))
}

fn from_row((shard, key, value): &Row) -> Option<StateEntry> {
    Some(StateEntry {
        shard: Shard::new(u8::try_from(*shard).ok()?)?,
        key: BASE64_STANDARD.decode(key).ok()?,
        value: BASE64_STANDARD.decode(value).ok()?,
    })
}
