//! Crash recovery: files that were open are truncated after their last complete line or group of
//! packets, and closed. Damaged places before it are counted and left, where readers skip them.

use std::io::{self, BufRead, BufReader};

use sekiwake_archive::{FileFormat, FileState, GroupReader, Item, LineFormat, MAX_LINE_BYTES, Message, holds_data};

use crate::{
    disk::{Disk, Found, Listing, Owner, named_by_temporary},
    error::{StoreError, cannot},
};

/// The outcome of a recovery.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Files that had been open and were recovered.
    pub files: u64,
    /// Bytes after the last complete line or group, which were truncated. They had not been
    /// acknowledged.
    pub truncated_bytes: u64,
    /// Damaged lines before the last complete one, which were left in place. Of packets: damaged
    /// places.
    pub damaged_lines: u64,
    /// Leftovers of interrupted compression that were removed.
    pub leftovers: u64,
    /// Files that could not be recovered and leftovers that could not be removed. They are left as
    /// they are until the next start.
    pub failed: u64,
    /// The first of these failures.
    pub error: Option<String>,
}

impl Recovered {
    /// Adds the outcome of another recovery.
    pub(crate) fn add(&mut self, other: Recovered) {
        self.files += other.files;
        self.truncated_bytes += other.truncated_bytes;
        self.damaged_lines += other.damaged_lines;
        self.leftovers += other.leftovers;
        self.failed += other.failed;
        self.error = self.error.take().or(other.error);
    }

    fn failed(&mut self, error: &StoreError) {
        self.failed += 1;
        self.error.get_or_insert_with(|| error.with_cause());
    }
}

/// Recovers the files of an owner, from a listing that was made while its lock was held. A file
/// that fails is left as it is, because one bad sector must not stop the storing of new messages.
pub(crate) fn recover_all<D: Disk>(disk: &D, owner: &Owner, listing: &Listing) -> Recovered {
    let mut recovered = Recovered::default();
    let is_its_own = |path: &&String| named_by_temporary(path).is_some_and(|name| Owner::of(&name) == *owner);
    for path in listing.leftovers.iter().filter(is_its_own) {
        match disk.remove(path) {
            Ok(()) => recovered.leftovers += 1,
            Err(error) => recovered.failed(&cannot("remove", path)(error)),
        }
    }
    // Older releases marked open files only by their mode.
    let is_open = |found: &&Found| match found.name.state {
        FileState::Open => true,
        FileState::Closed => found.is_writable && disk.has_modes(),
        FileState::Compressed => false,
    };
    for found in listing.files.iter().filter(|found| Owner::of(&found.name) == *owner).filter(is_open) {
        match recover(disk, found) {
            Ok(whole) => {
                recovered.files += 1;
                recovered.truncated_bytes += found.bytes.saturating_sub(whole.bytes);
                recovered.damaged_lines += whole.damaged_lines;
            }
            Err(error) => recovered.failed(&error),
        }
    }
    recovered
}

/// Truncates one file after its last complete line or group, and closes it.
fn recover<D: Disk>(disk: &D, found: &Found) -> Result<Whole, StoreError> {
    let path = found.name.to_string();
    let reader = disk.read(&path).map_err(cannot("read", &path))?;
    let whole = match found.name.format {
        FileFormat::Lines(format) => scan(format, BufReader::with_capacity(1 << 18, reader)),
        FileFormat::Pcapng(_) => scan_groups(reader, found.name.state),
    };
    let whole = whole.map_err(cannot("read", &path))?;
    if whole.bytes == 0 {
        disk.remove(&path).map_err(cannot("remove", &path))?;
        return Ok(whole);
    }
    let file = disk.open(&path).map_err(cannot("open", &path))?;
    if whole.bytes < found.bytes {
        disk.set_len(&file, whole.bytes).map_err(cannot("truncate", &path))?;
    }
    disk.sync(&file).map_err(cannot("sync", &path))?;
    // The recovery must not change the file's age.
    disk.set_modified(&file, found.modified).map_err(cannot("set the modification time of", &path))?;
    disk.protect(&file);
    if found.name.state == FileState::Open {
        let closed = found.name.in_state(FileState::Closed).to_string();
        disk.rename(&path, &closed).map_err(cannot("rename", &path))?;
    }
    Ok(whole)
}

/// The part of a file up to its last complete line or group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) bytes: u64,
    /// Lines in it that are no messages, or places that are in no group.
    pub(crate) damaged_lines: u64,
}

/// Looks for the last complete line of a file, with bounded memory.
pub(crate) fn scan(format: LineFormat, mut reader: impl BufRead) -> io::Result<Whole> {
    let mut whole = Whole::default();
    let mut offset = 0;
    let mut damaged_lines = 0;
    let mut line = Vec::new();
    // Whether this is the rest of a line that is longer than any valid one.
    let mut is_rest = false;
    loop {
        line.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let taken = io::Read::take(&mut reader, limit).read_until(b'\n', &mut line)?;
        if taken == 0 {
            return Ok(whole);
        }
        offset += taken as u64;
        let Some(complete) = line.strip_suffix(b"\n") else {
            is_rest = true;
            continue;
        };
        if !std::mem::take(&mut is_rest) && Message::parse_exactly(format, complete).is_some() {
            whole = Whole { bytes: offset, damaged_lines };
        } else {
            damaged_lines += 1;
        }
    }
}

/// Looks for the last intact group of packets. Without packets there is nothing to keep.
fn scan_groups(reader: impl io::Read, state: FileState) -> io::Result<Whole> {
    let mut groups = GroupReader::in_state(reader, state)?;
    let mut whole = Whole::default();
    let mut damaged_places = 0;
    let mut is_damaged = false;
    while let Some(item) = groups.next_item()? {
        match item {
            Item::Group { offset, bytes } => {
                is_damaged = false;
                if holds_data(bytes) {
                    whole = Whole { bytes: offset + bytes.len() as u64, damaged_lines: damaged_places };
                }
            }
            Item::Damaged { .. } => damaged_places += u64::from(!std::mem::replace(&mut is_damaged, true)),
        }
    }
    Ok(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "2026-11-25T14:00:00.000000000Z 198.51.100.7:514 203.0.113.1:514 user.notice rfc3164 <13>x\n";

    fn scanned(bytes: &[u8]) -> Whole {
        scan(LineFormat::Text, bytes).unwrap()
    }

    #[test]
    fn damaged_lines_before_the_last_complete_one_are_kept_and_counted() {
        let long = vec![b'x'; 3 * MAX_LINE_BYTES];
        for (damage, damaged_lines) in [
            (&b""[..], 0),
            (b"nonsense\n", 1),
            (b"\0\0\0\0\n\n", 2),
            (&[&long[..], b"\n"].concat(), 1),
            (GOOD.replace("user", "usfr").as_bytes(), 1),
        ] {
            let bytes = [GOOD.as_bytes(), damage, GOOD.as_bytes()].concat();
            let whole = Whole { bytes: bytes.len() as u64, damaged_lines };
            assert_eq!(scanned(&bytes), whole);
            let kept = Whole { bytes: GOOD.len() as u64, damaged_lines: 0 };
            assert_eq!(scanned(&[GOOD.as_bytes(), damage].concat()), kept, "behind the last complete line");
            let first = Whole { bytes: (damage.len() + GOOD.len()) as u64, damaged_lines };
            assert_eq!(scanned(&[damage, GOOD.as_bytes(), b"torn"].concat()), first);
            assert_eq!(scanned(damage).bytes, 0);
        }
        // A complete line behind one that is too long is no part of it, but its own rest is.
        let rest = [&long[..], GOOD.as_bytes()].concat();
        assert_eq!(scanned(&rest).bytes, 0);
    }
}
