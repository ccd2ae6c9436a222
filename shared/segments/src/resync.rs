//! Finding the next whole entry behind damage, so that damage costs what is damaged.
//!
//! The checksum of an entry depends on its sequence number, so that an entry found is the right one
//! and says how many are missing before it.

use std::io;

use crate::{
    error::is_lost,
    format::{ENTRY_OVERHEAD, MAX_ENTRY_BYTES, Parsed, parse_entry},
};

/// The bytes that are read around damage at first. Most often the next entry is in them.
const NEARBY_BYTES: u64 = 256 << 10;

/// The unit in which the readable part around a bad sector is read.
const BLOCK_BYTES: usize = 4 << 10;

/// The limit of bytes that are checksummed in one search, so that no content makes it endless.
const MAX_CHECKED_BYTES: usize = 256 << 20;

/// What one checksum costs besides its bytes.
const CHECK_COST: usize = 64;

/// An entry behind damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its offset in the segment.
    pub(crate) offset: u64,
    pub(crate) sequence: u64,
}

/// The result of searching a part of a segment.
enum Outcome {
    Found {
        at: usize,
        sequence: u64,
    },
    /// Perhaps, behind the part.
    Unknown,
    Nothing,
}

/// Finds the first whole entry behind `offset`, where the entry `sequence` is damaged, in a segment
/// of `length` bytes whose entries are all below `end`.
pub(crate) fn find_next(
    offset: u64,
    sequence: u64,
    end: u64,
    length: u64,
    mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<Option<Found>> {
    let available = length.saturating_sub(offset);
    for wanted in [NEARBY_BYTES.min(available), available] {
        let bytes = read_around_bad_sectors(offset, wanted, &mut read_at)?;
        match search(&bytes, sequence, end, wanted < available) {
            Outcome::Found { at, sequence } => return Ok(Some(Found { offset: offset + at as u64, sequence })),
            Outcome::Nothing => return Ok(None),
            Outcome::Unknown => {}
        }
    }
    Ok(None)
}

/// Searches `bytes`, which begin with the damaged entry `sequence`. `is_part`: the segment goes on
/// behind them.
fn search(bytes: &[u8], sequence: u64, end: u64, is_part: bool) -> Outcome {
    let is_whole = |at: usize, sequence: u64| {
        bytes.get(at..).is_some_and(|rest| matches!(parse_entry(rest, sequence), Parsed::Whole(_)))
    };
    // Most often the length is intact, because it is the least of an entry.
    if let Some(length) = length_at(bytes, 0)
        && sequence + 1 < end
        && is_whole(ENTRY_OVERHEAD + length, sequence + 1)
    {
        return Outcome::Found { at: ENTRY_OVERHEAD + length, sequence: sequence + 1 };
    }
    let mut checked = 0;
    for at in ENTRY_OVERHEAD..bytes.len() {
        let Some(length) = length_at(bytes, at) else { continue };
        if bytes[at..].iter().take(ENTRY_OVERHEAD).all(|&byte| byte == 0) {
            continue;
        }
        if at + ENTRY_OVERHEAD + length > bytes.len() {
            match is_part {
                true => return Outcome::Unknown,
                false => continue,
            }
        }
        // Between here and the damage there is room for this number of entries at most.
        let most = ((at / ENTRY_OVERHEAD) as u64).min(end.saturating_sub(sequence + 1));
        for ahead in 1..=most {
            if is_whole(at, sequence + ahead) {
                return Outcome::Found { at, sequence: sequence + ahead };
            }
            checked += length + CHECK_COST;
            if checked > MAX_CHECKED_BYTES {
                return Outcome::Nothing;
            }
        }
    }
    if is_part { Outcome::Unknown } else { Outcome::Nothing }
}

/// The length of a payload, if one may be at `at`.
fn length_at(bytes: &[u8], at: usize) -> Option<usize> {
    let length = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?) as usize;
    (length <= MAX_ENTRY_BYTES).then_some(length)
}

/// Reads `wanted` bytes. Those that are lost are zeros.
fn read_around_bad_sectors(
    offset: u64,
    wanted: u64,
    read_at: &mut impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(wanted).unwrap_or(usize::MAX)];
    let mut filled = 0;
    let mut most = bytes.len();
    while filled < bytes.len() {
        let piece = bytes.len().min(filled + most);
        match read_at(&mut bytes[filled..piece], offset + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // The file was deleted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) if is_lost(&error) && most > BLOCK_BYTES => most = BLOCK_BYTES,
            Err(error) if is_lost(&error) => filled = piece,
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::format::push_entry;

    /// Twenty entries from number 7 on, without a header, and the offset of each.
    fn entries() -> (Vec<u8>, Vec<usize>) {
        let mut bytes = Vec::new();
        let offsets = (7..27_u64).map(|sequence| {
            let offset = bytes.len();
            push_entry(&mut bytes, sequence, &vec![sequence as u8; sequence as usize * 400]);
            offset
        });
        let offsets = offsets.collect();
        (bytes, offsets)
    }

    fn read_from(bytes: &[u8]) -> impl FnMut(&mut [u8], u64) -> io::Result<usize> {
        |buffer, offset| {
            let rest = &bytes[usize::try_from(offset).unwrap().min(bytes.len())..];
            let read = rest.len().min(buffer.len());
            buffer[..read].copy_from_slice(&rest[..read]);
            Ok(read)
        }
    }

    #[test]
    fn next_entry_is_found_behind_damage_of_any_length() {
        let (original, offsets) = entries();
        for (first, last) in [(0, 0), (0, 1), (2, 9), (0, 18)] {
            for fill in [0, 1, 0xff] {
                let mut bytes = original.clone();
                bytes[offsets[first]..offsets[last] + 6].fill(fill);
                let expected = Found { offset: offsets[last + 1] as u64, sequence: 7 + last as u64 + 1 };
                let found =
                    find_next(offsets[first] as u64, 7 + first as u64, 27, bytes.len() as u64, read_from(&bytes));
                assert_eq!(found.unwrap(), Some(expected), "{first} to {last}, {fill}");
            }
        }
        let last = offsets[19] as u64;
        assert_eq!(find_next(last, 26, 27, original.len() as u64, read_from(&original)).unwrap(), None);
    }

    #[test]
    fn bad_sector_costs_the_entries_in_it() {
        let (bytes, offsets) = entries();
        let bad = 4096..8192_u64;
        let mut intact = read_from(&bytes);
        let errors = Cell::new(0);
        let found = find_next(offsets[1] as u64, 8, 27, bytes.len() as u64, |buffer, offset| {
            let end = offset + buffer.len() as u64;
            if offset < bad.end && end > bad.start {
                errors.set(errors.get() + 1);
                return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
            }
            intact(buffer, offset)
        });
        let whole = |offset: u64| offset >= bad.end;
        let first_whole = offsets.iter().position(|&offset| whole(offset as u64)).unwrap();
        let found = found.unwrap().unwrap();
        assert!(errors.get() > 0 && found.sequence - 7 <= first_whole as u64 + 2, "{found:?}");
        assert_eq!(found.offset, offsets[usize::try_from(found.sequence - 7).unwrap()] as u64);
    }

    #[test]
    fn search_of_hostile_content_ends() {
        // Each offset could be a large entry.
        let bytes: Vec<u8> = [0, 0, 16, 0].repeat(1 << 20);
        assert_eq!(find_next(0, 0, u64::MAX >> 2, bytes.len() as u64, read_from(&bytes)).unwrap(), None);
    }
}
