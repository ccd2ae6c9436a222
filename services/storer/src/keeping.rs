//! What becomes of closed files: compressed, and deleted by age and by total size.
//!
//! ```text
//! x.jsonl, 0440 ─▶ .x.jsonl.zst.tmp ─ sync ─▶ x.jsonl.zst, 0440 ─ sync the directory ─▶ x.jsonl is removed
//! ```
//! Where both are there after a crash, the compressed one is whole: it had been synced before it got its name.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufReader, BufWriter, Write},
    time::Duration,
};

use sekiwake_record::Name;
use sekiwake_store::{PartName, pack};

use crate::{
    disk::{Disk, Found, parent, temporary},
    recovery::{Recovered, recover_all},
    writer::{StoreError, cannot},
};

/// How closed files are kept.
#[derive(Clone, Debug)]
pub struct KeepingSettings {
    /// Whose files, beside those of members that are no more.
    pub member: Name,
    /// The level of compression; `None` for none.
    pub compress: Option<i32>,
    /// Files are deleted when nothing has come into them for this time; `None`: never.
    pub keep: Option<Duration>,
    /// The oldest closed files are deleted when all together take more, bytes.
    pub max_bytes: Option<u64>,
}

/// What one round did, and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Files of members that are no more, made whole.
    pub recovered: Recovered,
    /// Files that were compressed.
    pub packed: u64,
    /// Files that were deleted for their age, and their bytes.
    pub deleted_by_age: (u64, u64),
    /// Files that were deleted for want of room, and their bytes.
    pub deleted_by_size: (u64, u64),
    /// Files that are there at the end, and their bytes.
    pub files: (u64, u64),
}

/// Keeps closed files. Belongs to one thread.
#[derive(Debug)]
pub struct Keeping<D: Disk> {
    disk: D,
    settings: KeepingSettings,
}

impl<D: Disk> Keeping<D> {
    /// Keeps the files on this disk.
    pub fn new(disk: D, settings: KeepingSettings) -> Keeping<D> {
        Keeping { disk, settings }
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Deletes what is to go, then compresses what is closed. `is_over` is asked again and again; once it says so, the round ends
    /// early, with an error where it was in the middle of a file. What went wrong with one file does not keep the others from theirs: the first error is
    /// given beside what was done.
    pub fn round(&self, now_ns: u64, is_over: &dyn Fn() -> bool) -> (Round, Option<StoreError>) {
        let mut round = Round::default();
        let result = self.go_round(now_ns, is_over, &mut round);
        (round, result.err())
    }

    fn go_round(&self, now_ns: u64, is_over: &dyn Fn() -> bool, round: &mut Round) -> Result<(), StoreError> {
        // Held to the end of the round: nobody begins to write in their names meanwhile.
        let mut gone = BTreeMap::new();
        for member in self.disk.members().map_err(cannot("list", ""))? {
            if member != self.settings.member
                && let Some(lock) = self.disk.lock(&member).map_err(cannot("lock", ""))?
            {
                gone.insert(member, lock);
            }
        }
        let mut listing = self.disk.list().map_err(cannot("list", ""))?;
        gone.keys().for_each(|member| round.recovered.add(recover_all(&self.disk, member, &listing)));
        if round.recovered.files > 0 {
            listing = self.disk.list().map_err(cannot("list", ""))?;
        }
        let (mut found, _) = listing;
        found.retain(|found| found.name.member == self.settings.member || gone.contains_key(&found.name.member));
        found.sort_by(|one, other| (one.modified_ns, &one.name).cmp(&(other.modified_ns, &other.name)));
        let mut failed = self.remove_doubles(&mut found).err();
        let deleted = self.delete(now_ns, &mut found, round);
        failed = failed.or(deleted.err());
        let sum = |found: &[Found]| (found.len() as u64, found.iter().map(|found| found.bytes).sum());
        if let Some(level) = self.settings.compress {
            for found in found.iter_mut().filter(|found| found.is_closed && !found.name.packed) {
                if is_over() {
                    break;
                }
                match self.pack(found, level, is_over) {
                    Ok(bytes) => {
                        round.packed += 1;
                        (found.name.packed, found.bytes) = (true, bytes);
                    }
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        round.files = sum(&found);
        failed.map_or(Ok(()), Err)
    }

    /// Removes what has been compressed already.
    fn remove_doubles(&self, found: &mut Vec<Found>) -> Result<(), StoreError> {
        // One that is not closed is somebody's attempt, and ours will replace it.
        let packed: BTreeSet<PartName> =
            found.iter().filter(|found| found.name.packed && found.is_closed).map(|found| plain(&found.name)).collect();
        let is_double = |found: &Found| !found.name.packed && found.is_closed && packed.contains(&found.name);
        let paths: Vec<String> =
            found.iter().filter(|found| is_double(found)).map(|found| found.name.to_string()).collect();
        // What has been compressed has its name, but the disk need not know of it.
        for folder in paths.iter().map(|path| parent(path)).collect::<BTreeSet<_>>() {
            self.disk.sync_directory(folder).map_err(cannot("sync", folder))?;
        }
        let mut result = Ok(());
        found.retain(|found| {
            if !is_double(found) {
                return true;
            }
            let path = found.name.to_string();
            if let Err(error) = self.disk.remove(&path) {
                result = Err(cannot("remove", &path)(error));
            }
            false
        });
        result
    }

    /// Deletes by age, then by size, the oldest first.
    fn delete(&self, now_ns: u64, found: &mut Vec<Found>, round: &mut Round) -> Result<(), StoreError> {
        let mut total: u64 = found.iter().map(|found| found.bytes).sum();
        let keep = self.settings.keep.map(|keep| u64::try_from(keep.as_nanos()).unwrap_or(u64::MAX));
        let mut result = Ok(());
        found.retain(|found| {
            let is_old = keep.is_some_and(|keep| found.modified_ns.saturating_add(keep) < now_ns);
            let is_much = self.settings.max_bytes.is_some_and(|max_bytes| total > max_bytes);
            let is_open = !found.is_closed && !found.name.packed;
            if is_open || !is_old && !is_much {
                return true;
            }
            let path = found.name.to_string();
            if let Err(error) = self.disk.remove(&path) {
                result = Err(cannot("delete", &path)(error));
                return true;
            }
            total -= found.bytes;
            let (files, bytes) = if is_old { &mut round.deleted_by_age } else { &mut round.deleted_by_size };
            *files += 1;
            *bytes += found.bytes;
            false
        });
        result
    }

    /// Compresses a file and removes the plain one. Gives the length of what it became, bytes.
    fn pack(&self, found: &Found, level: i32, is_over: &dyn Fn() -> bool) -> Result<u64, StoreError> {
        let plain = found.name.to_string();
        let packed = PartName { packed: true, ..found.name.clone() }.to_string();
        let temporary = temporary(&packed);
        let written = self.write_packed(found, &plain, &temporary, level, is_over);
        let bytes = written.inspect_err(|_| {
            // It is in the way of the next try, and takes room that may be what is missing.
            let _ = self.disk.remove(&temporary);
        })?;
        self.disk.rename(&temporary, &packed).map_err(cannot("rename", &temporary))?;
        self.disk.sync_directory(parent(&packed)).map_err(cannot("sync", parent(&packed)))?;
        self.disk.remove(&plain).map_err(cannot("remove", &plain))?;
        Ok(bytes)
    }

    fn write_packed(
        &self,
        found: &Found,
        plain: &str,
        temporary: &str,
        level: i32,
        is_over: &dyn Fn() -> bool,
    ) -> Result<u64, StoreError> {
        // Of a try that the disk did not let us clean up.
        if let Err(error) = self.disk.remove(temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(cannot("remove", temporary)(error));
        }
        let reader = self.disk.read(plain).map_err(cannot("read", plain))?;
        let (file, _) = self.disk.create(temporary).map_err(cannot("create", temporary))?;
        let counted = Counted { out: self.disk.writer(&file), bytes: 0, is_over };
        let mut out = BufWriter::with_capacity(1 << 18, counted);
        pack(BufReader::with_capacity(1 << 18, reader), found.name.format, level, &mut out)
            .map_err(cannot("compress", plain))?;
        let counted = out.into_inner().map_err(|error| cannot("write to", temporary)(error.into_error()))?;
        let bytes = counted.bytes;
        drop(counted);
        self.disk.set_modified(&file, found.modified_ns).map_err(cannot("date", temporary))?;
        self.disk.close(&file).map_err(cannot("close", temporary))?;
        // With its date and its mode.
        self.disk.sync(&file).map_err(cannot("sync", temporary))?;
        Ok(bytes)
    }
}

fn plain(name: &PartName) -> PartName {
    PartName { packed: false, ..name.clone() }
}

/// Counts what is written, and ends it when there is no time any more.
struct Counted<'a> {
    out: Box<dyn Write + 'a>,
    bytes: u64,
    is_over: &'a dyn Fn() -> bool,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.is_over)() {
            return Err(io::Error::other("it is time to stop"));
        }
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
