//! What was found when a log was opened, and made whole.

use std::{
    collections::VecDeque,
    fs::{File, OpenOptions},
    os::unix::fs::FileExt,
};

use crate::{
    directory::Directory,
    error::{LogError, cannot, is_lost},
    format::{HEADER_BYTES, Header, VERSION, check_header},
    log::Segment,
    position::read_full_at,
    scan::scan_with,
};

/// What opening a log found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Entries that wait to be committed.
    pub entries: u64,
    /// What the segments take on disk.
    pub bytes: u64,
    /// Segments.
    pub segments: usize,
    /// Bytes behind the last whole entry, which were cut off. After a kill this is at most what one flush wrote, and none
    /// of it was synced.
    pub torn_bytes: u64,
    /// Segments whose header is damaged. What is whole in them is read all the same.
    pub corrupt_segments: usize,
    /// Entries that were deleted, not being committed, because the bound is lower than it was.
    pub evicted: u64,
    /// Whether the committed position was damaged: all that is left is read again.
    pub position_lost: bool,
}

/// The segments that were found.
pub(crate) struct Found {
    pub(crate) segments: VecDeque<Segment>,
    /// The last of them, when it may be appended to.
    pub(crate) active: Option<File>,
    /// The last of them holds nothing, and nothing is lost with it.
    pub(crate) last_is_empty: bool,
}

/// Looks at all segments, and cuts the torn end off the last. Fails before it changes anything if one has an unknown version.
pub(crate) fn recover(directory: &Directory, recovered: &mut Recovered) -> Result<Found, LogError> {
    let firsts = directory.segments()?;
    let mut segments = VecDeque::with_capacity(firsts.len());
    let mut last_header = Header::Torn;
    for (index, &first) in firsts.iter().enumerate() {
        let path = directory.segment(first);
        let file = File::open(&path).map_err(cannot("open", &path))?;
        let bytes = file.metadata().map_err(cannot("look at", &path))?.len();
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
        // All entries up to the next segment were in this one.
        let end = firsts.get(index + 1).copied().unwrap_or(first);
        segments.push_back(Segment { first, end, bytes });
    }
    let Some(last) = segments.back_mut() else {
        return Ok(Found { segments, active: None, last_is_empty: false });
    };
    let path = directory.segment(last.first);
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(cannot("open", &path))?;
    // Entries end where a bad sector begins.
    let read_at = |buffer: &mut [u8], offset: u64| match file.read_at(buffer, offset) {
        Err(error) if is_lost(&error) => Ok(0),
        result => result,
    };
    let scan = scan_with(last.first, last.bytes, read_at, |_, _| {}).map_err(cannot("read", &path))?;
    if scan.entries == 0 && last_header == Header::Damaged {
        // Whatever this is stays until it is the oldest. It held one entry at least.
        last.end = last.first + 1;
        return Ok(Found { segments, active: None, last_is_empty: false });
    }
    last.end = last.first + scan.entries;
    if last.bytes > scan.good_bytes {
        recovered.torn_bytes += last.bytes - scan.good_bytes;
        // Synced, so that no later crash brings the old end back behind a new one.
        file.set_len(scan.good_bytes).and_then(|()| file.sync_all()).map_err(cannot("truncate", &path))?;
        last.bytes = scan.good_bytes;
    }
    let last_is_empty = scan.entries == 0;
    let active = (last_header == Header::Good && !last_is_empty).then_some(file);
    Ok(Found { segments, active, last_is_empty })
}
