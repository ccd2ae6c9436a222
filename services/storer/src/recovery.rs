//! What a crash left: files that were open are cut behind their last whole line, and closed.

use std::io::{self, BufRead, BufReader};

use sekiwake_record::Name;
use sekiwake_store::{LineFormat, MAX_LINE_BYTES, Message};

use crate::{
    disk::{Disk, Found, named_by_temporary},
    writer::{StoreError, cannot},
};

/// What was found at a start, and made whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Files that had been open and are whole now.
    pub files: u64,
    /// Bytes behind the last whole line, which were cut off: nobody had been told that they are stored.
    pub cut_bytes: u64,
    /// Leftovers of packing that were removed.
    pub leftovers: u64,
    /// Files and leftovers that the disk would not let be made whole, or removed. They are left as they are until the next start.
    pub failed: u64,
    /// The first of these failures.
    pub error: Option<String>,
}

impl Recovered {
    /// Adds what was found elsewhere.
    pub(crate) fn add(&mut self, other: Recovered) {
        self.files += other.files;
        self.cut_bytes += other.cut_bytes;
        self.leftovers += other.leftovers;
        self.failed += other.failed;
        self.error = self.error.take().or(other.error);
    }

    fn failed(&mut self, error: &StoreError) {
        self.failed += 1;
        self.error.get_or_insert_with(|| error.told());
    }
}

/// Makes whole what belongs to a member, out of a listing that was made while its lock was held. A file that is refused is left as it is: one
/// bad sector must not keep what comes from being stored.
pub(crate) fn recover_all<D: Disk>(
    disk: &D,
    member: &Name,
    (found, leftovers): &(Vec<Found>, Vec<String>),
) -> Recovered {
    let mut recovered = Recovered::default();
    let is_its_own = |path: &&String| named_by_temporary(path).is_some_and(|name| name.member == *member);
    for path in leftovers.iter().filter(is_its_own) {
        match disk.remove(path) {
            Ok(()) => recovered.leftovers += 1,
            Err(error) => recovered.failed(&cannot("remove", path)(error)),
        }
    }
    for found in found.iter().filter(|found| found.name.member == *member && !found.name.packed && !found.is_closed) {
        match recover(disk, found) {
            Ok(cut_bytes) => {
                recovered.files += 1;
                recovered.cut_bytes += cut_bytes;
            }
            Err(error) => recovered.failed(&error),
        }
    }
    recovered
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
