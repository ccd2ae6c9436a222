//! What a crash left: files that were open are cut behind their last whole line, and closed.

use std::io::{self, BufRead, BufReader};

use sekiwake_record::Name;
use sekiwake_store::{LineFormat, MAX_LINE_BYTES, Message};

use crate::{
    disk::{Disk, Found, named_by_temporary},
    writer::{StoreError, cannot},
};

/// What was found at a start, and made whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Files that had been open.
    pub files: u64,
    /// Bytes behind the last whole line, which were cut off: nobody had been told that they are stored.
    pub cut_bytes: u64,
    /// Leftovers of packing that were removed.
    pub leftovers: u64,
}

/// Makes whole what belongs to a member, whose lock is held.
///
/// # Errors
/// The disk refuses. What is done is done, and the rest is for the next call.
pub(crate) fn recover_all<D: Disk>(disk: &D, member: &Name) -> Result<Recovered, StoreError> {
    let (found, leftovers) = disk.list().map_err(cannot("list", ""))?;
    let mut recovered = Recovered::default();
    for path in leftovers {
        if named_by_temporary(&path).is_some_and(|name| name.member == *member) {
            disk.remove(&path).map_err(cannot("remove", &path))?;
            recovered.leftovers += 1;
        }
    }
    for found in found.iter().filter(|found| found.name.member == *member && !found.name.packed && !found.is_closed) {
        recovered.files += 1;
        recovered.cut_bytes += recover(disk, found)?;
    }
    Ok(recovered)
}

/// Makes one file whole and closes it; says how many bytes were cut off.
fn recover<D: Disk>(disk: &D, found: &Found) -> Result<u64, StoreError> {
    let path = found.name.to_string();
    let reader = disk.read(&path).map_err(cannot("read", &path))?;
    let whole =
        whole_bytes(found.name.format, BufReader::with_capacity(1 << 18, reader)).map_err(cannot("read", &path))?;
    if whole == 0 {
        disk.remove(&path).map_err(cannot("remove", &path))?;
        return Ok(found.bytes);
    }
    let file = disk.open(&path).map_err(cannot("open", &path))?;
    if whole < found.bytes {
        disk.set_len(&file, whole).map_err(cannot("cut", &path))?;
    }
    disk.sync(&file).map_err(cannot("sync", &path))?;
    // When something last came into it is not now.
    disk.set_modified(&file, found.modified_ns).map_err(cannot("date", &path))?;
    disk.close(&file).map_err(cannot("close", &path))?;
    Ok(found.bytes.saturating_sub(whole))
}

/// How many bytes of a file are whole lines, from the front to the first that is none.
pub(crate) fn whole_bytes(format: LineFormat, mut reader: impl BufRead) -> io::Result<u64> {
    let (mut whole, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        io::Read::take(&mut reader, limit).read_until(b'\n', &mut line)?;
        let is_whole = line.strip_suffix(b"\n").is_some_and(|line| Message::parse_exactly(format, line).is_some());
        if !is_whole {
            return Ok(whole);
        }
        whole += line.len() as u64;
    }
}
