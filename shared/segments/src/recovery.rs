//! Opening the segments of a log, and repairing the last one.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt,
};

use crate::{
    directory::Directory,
    error::{LogError, cannot, is_lost},
    format::{HEADER_BYTES, Header, MAX_SEQUENCE, VERSION, check_header},
    log::Segment,
    position::read_full_at,
    resync::find_next,
    window::{Step, Window},
};

/// The result of opening a log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Entries that are not committed.
    pub entries: u64,
    /// Bytes of all segments.
    pub bytes: u64,
    /// The number of segments.
    pub segments: usize,
    /// Bytes after the last complete entry, which were truncated. After a kill these are at most
    /// the bytes of one flush, and were not synced.
    pub torn_bytes: u64,
    /// Segments with a damaged header. Their valid entries are read nevertheless.
    pub corrupt_segments: usize,
    /// Uncommitted entries that were deleted because the bound was lowered.
    pub evicted: u64,
    /// Uncommitted entries of segments that are gone, all of them, so that no reader counts them.
    pub vanished: u64,
    /// Whether the committed position was damaged: all entries are read again.
    pub position_lost: bool,
}

/// The segments of a log.
pub(crate) struct Found {
    pub(crate) segments: VecDeque<Segment>,
    /// The last of them, if it can be appended to.
    pub(crate) active: Option<File>,
    /// The last of them has no entries and can be deleted.
    pub(crate) last_is_empty: bool,
}

/// Opens all segments, and truncates the torn end of the last. It fails before it changes anything
/// if one has an unknown version.
pub(crate) fn recover(directory: &Directory, recovered: &mut Recovered) -> Result<Found, LogError> {
    let firsts = directory.segments()?;
    let mut segments = VecDeque::with_capacity(firsts.len());
    let mut last_header = Header::Torn;
    for (index, &first) in firsts.iter().enumerate() {
        let path = directory.segment(first);
        let file = File::open(&path).map_err(cannot("open", &path))?;
        let bytes = file.metadata().map_err(cannot("get the size of", &path))?.len();
        let mut start = [0; HEADER_BYTES];
        let read = read_full_at(&file, &mut start, 0).map_err(cannot("read", &path))?;
        last_header = check_header(&start[..read], first);
        let is_last = index + 1 == firsts.len();
        match last_header {
            Header::UnknownVersion(version) => {
                return Err(LogError::UnknownVersion { path, version, known: VERSION });
            }
            Header::Torn if is_last => {}
            Header::Torn | Header::Damaged => recovered.corrupt_segments += 1,
            Header::Good => {}
        }
        // It had all entries up to the next segment.
        let end = firsts.get(index + 1).copied().unwrap_or(first);
        segments.push_back(Segment { first, end, bytes });
    }
    let Some(last) = segments.back_mut() else {
        return Ok(Found { segments, active: None, last_is_empty: false });
    };
    let path = directory.segment(last.first);
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(cannot("open", &path))?;
    let read_at = |buffer: &mut [u8], offset: u64| file.read_at(buffer, offset);
    let entries = entries_of(last.first, last.bytes, read_at).map_err(cannot("read", &path))?;
    if entries.next == last.first && last_header == Header::Damaged {
        // The damaged file is kept until it is the oldest. It had at least one entry.
        last.end = last.first + 1;
        return Ok(Found { segments, active: None, last_is_empty: false });
    }
    last.end = entries.next;
    if last.bytes > entries.good_bytes {
        recovered.torn_bytes += last.bytes - entries.good_bytes;
        // Synced, so that the old end cannot reappear after a later crash.
        file.set_len(entries.good_bytes).and_then(|()| file.sync_all()).map_err(cannot("truncate", &path))?;
        last.bytes = entries.good_bytes;
    }
    let last_is_empty = entries.next == last.first;
    let active = (last_header == Header::Good && !last_is_empty).then_some(file);
    Ok(Found { segments, active, last_is_empty })
}

/// The entries of the last segment.
struct LastEntries {
    /// The sequence number after the last whole entry.
    next: u64,
    /// The offset of the end of that entry.
    good_bytes: u64,
}

/// Reads a segment of `length` bytes up to its last whole entry. Damaged ones before that stay,
/// numbered: a reader skips and counts them.
fn entries_of(
    first: u64,
    length: u64,
    mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<LastEntries> {
    let mut window = Window::new();
    let mut next = first;
    let mut good_bytes = window.offset();
    loop {
        let step = match window.step(next, length, &mut read_at) {
            Err(error) if is_lost(&error) => Step::Bad,
            step => step?,
        };
        match step {
            Step::Entry(_) => {
                next += 1;
                good_bytes = window.offset();
            }
            Step::End => break,
            Step::Bad => match find_next(window.offset(), next, MAX_SEQUENCE, length, &mut read_at)? {
                Some(found) => {
                    next = found.sequence;
                    window.jump(found.offset);
                }
                None => break,
            },
        }
    }
    Ok(LastEntries { next, good_bytes: good_bytes.min(length.max(HEADER_BYTES as u64)) })
}
