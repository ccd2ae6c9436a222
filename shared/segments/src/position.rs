//! The file `position`: up to where the log is committed, and from where it counts on. Numbers are little endian.
//!
//! ```text
//! file    slot | … 4096 | slot
//! slot    magic 8 "SKWPOSI\n" | format version 4 | zero 4 | generation 8 | committed 8 | next sequence 8 | checksum 8
//! ```
//!
//! The two slots are written in turn, and the one with the higher generation counts: a write that is torn leaves the one
//! before it. The checksum is the XXH3-64 of the 40 bytes before it. A position that is lost only means that entries are
//! repeated, so it is not synced, except before a segment is deleted whose numbers nothing else would remember.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::xxh3_64;

use crate::{
    error::{LogError, cannot},
    format::{MAX_SEQUENCE, VERSION},
};

const MAGIC: [u8; 8] = *b"SKWPOSI\n";
const SLOT_BYTES: usize = 48;
const SLOT_DISTANCE: u64 = 4096;

/// The file, and what it says.
#[derive(Debug)]
pub(crate) struct Position {
    path: PathBuf,
    file: File,
    slot: Slot,
    synced: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    generation: u64,
    committed: u64,
    next: u64,
}

impl Position {
    /// Opens or makes the file. Also says whether a position was there and is lost.
    pub(crate) fn open(directory: &Path) -> Result<(Position, bool), LogError> {
        let path = directory.join("position");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(cannot("open", &path))?;
        let mut newest: Option<Slot> = None;
        let mut written = false;
        for place in 0..2 {
            let mut bytes = [0; SLOT_BYTES];
            let read = read_full_at(&file, &mut bytes, place * SLOT_DISTANCE).map_err(cannot("read", &path))?;
            let bytes = &bytes[..read];
            if let Some(version) = unknown_version(bytes) {
                return Err(LogError::UnknownVersion { path, version, known: VERSION });
            }
            written |= bytes.iter().any(|&byte| byte != 0);
            newest = newest.into_iter().chain(Slot::decode(bytes)).max_by_key(|slot| slot.generation);
        }
        let lost = written && newest.is_none();
        let position = Position { path, file, slot: newest.unwrap_or_default(), synced: true };
        position.reserve()?;
        Ok((position, lost))
    }

    /// Takes the room for both slots: on a full disk, it is the commit that makes room, so it must need none.
    fn reserve(&self) -> Result<(), LogError> {
        let length = self.file.metadata().map_err(cannot("look at", &self.path))?.len();
        if length < SLOT_DISTANCE + SLOT_BYTES as u64 {
            let bytes = self.slot.encode();
            let both = self.file.write_all_at(&bytes, 0).and_then(|()| self.file.write_all_at(&bytes, SLOT_DISTANCE));
            both.map_err(cannot("write to", &self.path))?;
        }
        Ok(())
    }

    /// Everything below was done with.
    pub(crate) fn committed(&self) -> u64 {
        self.slot.committed
    }

    /// No entry that was written has this number or a higher one, as far as was known then.
    pub(crate) fn next(&self) -> u64 {
        self.slot.next
    }

    /// Writes a position, without waiting for the disk. The next sequence number never goes back.
    pub(crate) fn write(&mut self, committed: u64, next: u64) -> Result<(), LogError> {
        let next = next.max(self.slot.next);
        let slot = Slot { generation: self.slot.generation + 1, committed, next };
        if (self.slot.committed, self.slot.next) == (committed, next) {
            return Ok(());
        }
        let place = slot.generation % 2 * SLOT_DISTANCE;
        self.file.write_all_at(&slot.encode(), place).map_err(cannot("write to", &self.path))?;
        self.slot = slot;
        self.synced = false;
        Ok(())
    }

    /// Waits until the disk has it.
    pub(crate) fn sync(&mut self) -> Result<(), LogError> {
        if !self.synced {
            self.file.sync_data().map_err(cannot("sync", &self.path))?;
            self.synced = true;
        }
        Ok(())
    }
}

impl Slot {
    fn encode(self) -> [u8; SLOT_BYTES] {
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.committed.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.next.to_le_bytes());
        let checksum = xxh3_64(&bytes[..40]);
        bytes[40..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Slot> {
        let number = |at: usize| bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk));
        let slot = Slot { generation: number(16)?, committed: number(24)?, next: number(32)? };
        let sane = slot.generation < u64::MAX && slot.committed <= MAX_SEQUENCE && slot.next <= MAX_SEQUENCE;
        (sane && *bytes == slot.encode()).then_some(slot)
    }
}

fn unknown_version(bytes: &[u8]) -> Option<u32> {
    let version = u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
    (bytes.get(..8)? == MAGIC && version != VERSION && version != 0).then_some(version)
}

/// Reads until `buffer` is full or the file ends; gives how much that was.
pub(crate) fn read_full_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_write_leaves_the_position_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let (mut position, lost) = Position::open(directory.path()).unwrap();
        assert_eq!((position.committed(), position.next(), lost), (0, 0, false));
        position.write(5, 9).unwrap();
        position.write(7, 9).unwrap();
        // The last write went to the first slot: whatever part of it is damaged, the one before counts.
        for at in 0..SLOT_BYTES as u64 {
            if (8..12).contains(&at) {
                continue;
            }
            let mut byte = [0];
            position.file.read_exact_at(&mut byte, at).unwrap();
            position.file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            let (reread, lost) = Position::open(directory.path()).unwrap();
            assert_eq!((reread.committed(), reread.next(), lost), (5, 9, false), "byte {at}");
            position.file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(Position::open(directory.path()).unwrap().0.committed(), 7);
    }

    #[test]
    fn two_damaged_slots_are_a_lost_position() {
        let directory = tempfile::tempdir().unwrap();
        let (mut position, _) = Position::open(directory.path()).unwrap();
        position.write(5, 9).unwrap();
        position.file.write_all_at(b"?", SLOT_DISTANCE + 20).unwrap();
        let (reread, lost) = Position::open(directory.path()).unwrap();
        assert_eq!((reread.committed(), lost), (0, false), "the one before it counts");
        position.file.write_all_at(b"?", 20).unwrap();
        let (reread, lost) = Position::open(directory.path()).unwrap();
        assert_eq!((reread.committed(), lost), (0, true));
    }

    #[test]
    fn another_version_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let (mut position, _) = Position::open(directory.path()).unwrap();
        position.write(5, 9).unwrap();
        position.file.write_all_at(&[3], SLOT_DISTANCE + 8).unwrap();
        let refused = Position::open(directory.path()).unwrap_err();
        assert!(matches!(refused, LogError::UnknownVersion { version: 3, .. }), "{refused}");
    }
}
