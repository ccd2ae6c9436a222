//! The file `position`: the committed position, and the next sequence number. Numbers are little
//! endian.
//!
//! ```text
//! file    slot | … 4096 | slot
//! slot    magic 8 "SKWPOSI\n" | format version 4 | zero 4 | generation 8 | committed 8 | next sequence 8 | checksum 8
//! ```
//!
//! The two slots are written in turn, and the one with the higher generation is valid: a torn write
//! leaves the previous one. The checksum is the XXH3-64 of the 40 bytes before it. A lost position
//! only means that entries are delivered twice. Therefore it is not synced, except before a segment
//! is deleted, whose numbers are recorded nowhere else.

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

/// The file and its content.
#[derive(Debug)]
pub(crate) struct Position {
    path: PathBuf,
    file: File,
    slot: Slot,
    synced: bool,
    /// The file had a position, but it was damaged.
    lost: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    generation: u64,
    committed: u64,
    next: u64,
}

impl Position {
    /// Opens or creates the file.
    pub(crate) fn open(directory: &Path) -> Result<Position, LogError> {
        let path = directory.join("position");
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(cannot("open", &path))?;
        let mut newest: Option<Slot> = None;
        let mut written = false;
        for slot in 0..2 {
            let mut bytes = [0; SLOT_BYTES];
            let read = read_full_at(&file, &mut bytes, slot * SLOT_DISTANCE).map_err(cannot("read", &path))?;
            let bytes = &bytes[..read];
            if let Some(version) = unknown_version(bytes) {
                return Err(LogError::UnknownVersion { path, version, known: VERSION });
            }
            written |= bytes.iter().any(|&byte| byte != 0);
            newest = newest.into_iter().chain(Slot::decode(bytes)).max_by_key(|slot| slot.generation);
        }
        let lost = written && newest.is_none();
        let position = Position { path, file, slot: newest.unwrap_or_default(), synced: true, lost };
        position.reserve()?;
        Ok(position)
    }

    /// Allocates both slots, because a commit frees disk space and must not need any on a full
    /// disk.
    fn reserve(&self) -> Result<(), LogError> {
        let length = self.file.metadata().map_err(cannot("get the size of", &self.path))?.len();
        if length < SLOT_DISTANCE + SLOT_BYTES as u64 {
            let bytes = self.slot.encode();
            let both = self.file.write_all_at(&bytes, 0).and_then(|()| self.file.write_all_at(&bytes, SLOT_DISTANCE));
            both.map_err(cannot("write to", &self.path))?;
        }
        Ok(())
    }

    /// Whether the position was damaged when the file was opened.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost
    }

    /// The committed position: all entries below it were handled.
    pub(crate) fn committed(&self) -> u64 {
        self.slot.committed
    }

    /// The next sequence number at the time of writing.
    pub(crate) fn next(&self) -> u64 {
        self.slot.next
    }

    /// Writes a position without syncing it. The next sequence number never decreases.
    pub(crate) fn write(&mut self, committed: u64, next: u64) -> Result<(), LogError> {
        let next = next.max(self.slot.next);
        let slot = Slot { generation: self.slot.generation + 1, committed, next };
        if (self.slot.committed, self.slot.next) == (committed, next) {
            return Ok(());
        }
        let offset = slot.generation % 2 * SLOT_DISTANCE;
        self.file.write_all_at(&slot.encode(), offset).map_err(cannot("write to", &self.path))?;
        self.slot = slot;
        self.synced = false;
        Ok(())
    }

    /// Syncs the position to disk.
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

/// Reads until `buffer` is full or the file ends, and returns the number of bytes.
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
    fn torn_write_leaves_the_previous_position() {
        let directory = tempfile::tempdir().unwrap();
        let mut position = Position::open(directory.path()).unwrap();
        assert_eq!((position.committed(), position.next(), position.is_lost()), (0, 0, false));
        position.write(5, 9).unwrap();
        position.write(7, 9).unwrap();
        // The last write was to the first slot: whichever byte of it is damaged, the previous one
        // is used.
        for at in 0..SLOT_BYTES as u64 {
            if (8..12).contains(&at) {
                continue;
            }
            let mut byte = [0];
            position.file.read_exact_at(&mut byte, at).unwrap();
            position.file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
            let reread = Position::open(directory.path()).unwrap();
            assert_eq!((reread.committed(), reread.next(), reread.is_lost()), (5, 9, false), "byte {at}");
            position.file.write_all_at(&byte, at).unwrap();
        }
        assert_eq!(Position::open(directory.path()).unwrap().committed(), 7);
    }

    #[test]
    fn position_with_two_damaged_slots_is_lost() {
        let directory = tempfile::tempdir().unwrap();
        let mut position = Position::open(directory.path()).unwrap();
        position.write(5, 9).unwrap();
        position.file.write_all_at(b"?", SLOT_DISTANCE + 20).unwrap();
        let reread = Position::open(directory.path()).unwrap();
        assert_eq!((reread.committed(), reread.is_lost()), (0, false), "the previous position is used");
        position.file.write_all_at(b"?", 20).unwrap();
        let reread = Position::open(directory.path()).unwrap();
        assert_eq!((reread.committed(), reread.is_lost()), (0, true));
    }

    #[test]
    fn another_version_is_rejected() {
        let directory = tempfile::tempdir().unwrap();
        let mut position = Position::open(directory.path()).unwrap();
        position.write(5, 9).unwrap();
        position.file.write_all_at(&[3], SLOT_DISTANCE + 8).unwrap();
        let rejected = Position::open(directory.path()).unwrap_err();
        assert!(matches!(rejected, LogError::UnknownVersion { version: 3, .. }), "{rejected}");
    }
}
