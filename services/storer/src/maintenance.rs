//! Maintenance of closed files: compression, and deletion by age and by total size.
//!
//! ```text
//! x.jsonl ─▶ .x.jsonl.zst.tmp ─ sync ─▶ x.jsonl.zst ─ sync the directory ─▶ x.jsonl is removed
//! ```
//! Where both exist after a crash, the compressed one is complete, because it was synced before it
//! was renamed.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, BufReader, BufWriter, Write},
    time::Duration,
};

use sekiwake_archive::{FileState, PartName, compress};
use sekiwake_record::{Kind, Name, WallTime};

use crate::{
    disk::{Created, Disk, Found, Locked, Owner, parent, temporary},
    error::{StoreError, cannot},
    recovery::{Recovered, recover_all},
};

/// How closed files of one kind are maintained.
#[derive(Clone, Debug)]
pub struct MaintenanceSettings {
    /// The member.
    pub member: Name,
    /// The kind whose files are maintained.
    pub kind: Kind,
    /// Whether the member stores this kind: its own files are maintained, besides those of members
    /// that no longer store it.
    pub is_stored: bool,
    /// The compression level; `None` for no compression.
    pub compress: Option<i32>,
    /// Files that were last written to longer ago than this are deleted; `None`: never.
    pub keep: Option<Duration>,
    /// The oldest closed files are deleted while all files together are larger than this, bytes.
    pub max_bytes: Option<u64>,
}

/// A number of files, and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileTotals {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl FileTotals {
    fn of(found: &[Found]) -> FileTotals {
        FileTotals { files: found.len() as u64, bytes: found.iter().map(|found| found.bytes).sum() }
    }

    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// How many deleted files are named.
const MAX_NAMED: usize = 10;

/// Files that one rule has deleted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeletedFiles {
    /// Their number and size.
    pub totals: FileTotals,
    /// The paths of the first ones, oldest first.
    pub paths: Vec<String>,
}

impl DeletedFiles {
    fn add(&mut self, path: String, bytes: u64) {
        self.totals.add(bytes);
        if self.paths.len() < MAX_NAMED {
            self.paths.push(path);
        }
    }
}

/// The outcome of one round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Recovered files of members that no longer run.
    pub recovered: Recovered,
    /// Files compressed.
    pub compressed: u64,
    /// Files deleted because of their age.
    pub deleted_by_age: DeletedFiles,
    /// Files deleted because of the limit on the total size.
    pub deleted_by_size: DeletedFiles,
    /// Files that exist at the end.
    pub remaining: FileTotals,
    /// The start of the earliest period of which there are files.
    pub oldest: Option<WallTime>,
    /// Whether files could not be considered for deletion, or not be deleted.
    pub retention_failed: bool,
}

/// Compresses and deletes closed files. Belongs to one thread.
#[derive(Debug)]
pub struct Maintenance<D: Disk> {
    disk: D,
    settings: MaintenanceSettings,
}

impl<D: Disk> Maintenance<D> {
    /// Maintains the files on this disk.
    pub fn new(disk: D, settings: MaintenanceSettings) -> Maintenance<D> {
        Maintenance { disk, settings }
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Deletes files that are too old or too many, then compresses closed ones. Once `is_over`
    /// returns true the round ends early, with an error if it was in the middle of a file. A
    /// failure of one file does not stop the others; the first error is returned beside the
    /// outcome.
    pub fn round(&self, now: WallTime, is_over: &dyn Fn() -> bool) -> (Round, Option<StoreError>) {
        let mut round = Round::default();
        let result = self.run(now, is_over, &mut round);
        (round, result.err())
    }

    fn run(&self, now: WallTime, is_over: &dyn Fn() -> bool, round: &mut Round) -> Result<(), StoreError> {
        round.retention_failed = true;
        // Locked until the end of the round, so that no storer starts under these names meanwhile.
        let mut stopped = BTreeMap::new();
        let mut failed = None;
        let mut unlockable = BTreeSet::new();
        let own = Owner { member: self.settings.member.clone(), kind: self.settings.kind };
        for owner in self.disk.owners().map_err(cannot("list", ""))? {
            if owner.kind != own.kind || owner == own && self.settings.is_stored {
                continue;
            }
            match self.disk.lock(&owner) {
                Ok(Locked::Taken(lock)) => drop(stopped.insert(owner, lock)),
                Ok(Locked::InUse) => {}
                Ok(Locked::Unsupported(_)) => drop(unlockable.insert(owner)),
                Err(error) => failed = Some(cannot("lock", "")(error)),
            }
        }
        let mut listing = self.disk.list().map_err(cannot("list", ""))?;
        stopped.keys().for_each(|owner| round.recovered.add(recover_all(&self.disk, owner, &listing)));
        if round.recovered.files > 0 {
            listing = self.disk.list().map_err(cannot("list", ""))?;
        }
        let mut found = listing.files;
        let unlocked = found.iter().find(|found| unlockable.contains(&Owner::of(&found.name)));
        failed = failed.or(unlocked.map(|found| StoreError::NoLocks(found.name.member.clone())));
        found.retain(|found| {
            let owner = Owner::of(&found.name);
            owner == own && self.settings.is_stored || stopped.contains_key(&owner)
        });
        found.sort_by(|one, other| (one.modified, &one.name).cmp(&(other.modified, &other.name)));
        let uncopied = self.remove_compressed(&mut found).err();
        failed = failed.or(self.delete(now, &mut found, round).err());
        round.retention_failed = failed.is_some();
        failed = failed.or(uncopied);

        if let Some(level) = self.settings.compress {
            for found in found.iter_mut().filter(|found| found.name.state == FileState::Closed) {
                if is_over() {
                    break;
                }
                match self.compress(found, level, is_over) {
                    Ok(bytes) => {
                        round.compressed += 1;
                        found.name.state = FileState::Compressed;
                        found.bytes = bytes;
                    }
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
        }
        round.remaining = FileTotals::of(&found);
        round.oldest = found.iter().map(|found| found.name.period.start_time()).min();
        failed.map_or(Ok(()), Err)
    }

    /// Removes plain files of which a complete compressed copy exists.
    fn remove_compressed(&self, found: &mut Vec<Found>) -> Result<(), StoreError> {
        let compressed: BTreeSet<PartName> = found
            .iter()
            .filter(|found| found.name.state == FileState::Compressed)
            .map(|found| found.name.in_state(FileState::Closed))
            .collect();
        let is_copied = |found: &Found| found.name.state == FileState::Closed && compressed.contains(&found.name);
        let paths: Vec<String> =
            found.iter().filter(|found| is_copied(found)).map(|found| found.name.to_string()).collect();
        // Sync first, because the rename of the compressed file may not be durable yet.
        for folder in paths.iter().map(|path| parent(path)).collect::<BTreeSet<_>>() {
            self.disk.sync_directory(folder).map_err(cannot("sync", folder))?;
        }
        let mut result = Ok(());
        found.retain(|found| {
            if !is_copied(found) {
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

    /// Deletes files by age, then by total size, oldest first.
    fn delete(&self, now: WallTime, found: &mut Vec<Found>, round: &mut Round) -> Result<(), StoreError> {
        let mut total: u64 = found.iter().map(|found| found.bytes).sum();
        let mut result = Ok(());
        found.retain(|found| {
            let is_old = self.settings.keep.is_some_and(|keep| found.modified + keep < now);
            let is_over_limit = self.settings.max_bytes.is_some_and(|max_bytes| total > max_bytes);
            if found.name.state == FileState::Open || !is_old && !is_over_limit {
                return true;
            }
            let path = found.name.to_string();
            if let Err(error) = self.disk.remove(&path) {
                result = Err(cannot("delete", &path)(error));
                return true;
            }
            total -= found.bytes;
            let deleted = if is_old { &mut round.deleted_by_age } else { &mut round.deleted_by_size };
            deleted.add(path, found.bytes);
            false
        });
        result
    }

    /// Compresses a file and removes the plain one. Returns the compressed size, bytes.
    fn compress(&self, found: &Found, level: i32, is_over: &dyn Fn() -> bool) -> Result<u64, StoreError> {
        let plain = found.name.to_string();
        let compressed = found.name.in_state(FileState::Compressed).to_string();
        let temporary = temporary(&compressed);
        let written = self.write_compressed(found, &plain, &temporary, level, is_over);
        let bytes = written.inspect_err(|_| {
            // It would block the next attempt, and its space may be needed.
            let _ = self.disk.remove(&temporary);
        })?;
        self.disk.rename(&temporary, &compressed).map_err(cannot("rename", &temporary))?;
        self.disk.sync_directory(parent(&compressed)).map_err(cannot("sync", parent(&compressed)))?;
        self.disk.remove(&plain).map_err(cannot("remove", &plain))?;
        Ok(bytes)
    }

    fn write_compressed(
        &self,
        found: &Found,
        plain: &str,
        temporary: &str,
        level: i32,
        is_over: &dyn Fn() -> bool,
    ) -> Result<u64, StoreError> {
        // Left by an attempt that could not be cleaned up.
        if let Err(error) = self.disk.remove(temporary)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(cannot("remove", temporary)(error));
        }
        let reader = self.disk.read(plain).map_err(cannot("read", plain))?;
        let Created { file, .. } = self.disk.create(temporary).map_err(cannot("create", temporary))?;
        let counted = Counted { out: self.disk.writer(&file), bytes: 0, is_over };
        let mut out = BufWriter::with_capacity(1 << 18, counted);
        compress(BufReader::with_capacity(1 << 18, reader), found.name.format, level, &mut out)
            .map_err(cannot("compress", plain))?;
        let counted = out.into_inner().map_err(|error| cannot("write to", temporary)(error.into_error()))?;
        let bytes = counted.bytes;
        drop(counted);
        self.disk.set_modified(&file, found.modified).map_err(cannot("set the modification time of", temporary))?;
        self.disk.protect(&file);
        // After the date and the mode, so that these are durable too.
        self.disk.sync(&file).map_err(cannot("sync", temporary))?;
        Ok(bytes)
    }
}

/// Counts bytes written, and fails once it is time to stop.
struct Counted<'a> {
    out: Box<dyn Write + 'a>,
    bytes: u64,
    is_over: &'a dyn Fn() -> bool,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if (self.is_over)() {
            return Err(io::Error::other("interrupted by the stop"));
        }
        let written = self.out.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
