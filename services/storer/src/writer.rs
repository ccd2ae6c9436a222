//! The writer decides which file a message goes to, and makes it durable.
//!
//! ```text
//! a file:    (none) ── create ──▶ x.open@... ── too large, its period is over, or stop ── rename ──▶ x@...
//!                                    │ ▲
//!                       a load: write, fsync; fsync the directories of new files
//!                                    │
//!                                    └── deleted or truncated, or its fsync failed ──▶ abandoned: data not known
//!                                                                                      to be durable goes into a new file
//! ```
//! A load is stored when all of it is durable. Until then it stays with the caller, which retries;
//! entries that are durable are not written twice.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, ErrorKind},
    time::Duration,
};

use sekiwake_archive::{FileFormat, FileState, Part, PartName, Period};
use sekiwake_record::{Name, WallTime};

use crate::{
    disk::{Created, Disk, Locked, Owner, is_out_of_descriptors},
    error::{StoreError, cannot},
    heads::SharedHeads,
    load::{Entry, Load, State},
    recovery::{Recovered, recover_all},
};

/// With more files than this to fsync, or more than half of those that may be open, one `syncfs`
/// replaces the individual calls.
const SINGLE_SYNCS: usize = 64;

/// Settings of the writer.
#[derive(Clone, Debug)]
pub struct WriterSettings {
    /// The name of this storer.
    pub member: Name,
    /// The format of the files.
    pub format: FileFormat,
    /// The size at which a file is rotated, bytes. The lines of one load are not split.
    pub rotate_bytes: u64,
    /// A file is closed when its period has been over, and nothing has been written, for this long.
    pub late: Duration,
    /// The most file descriptors.
    pub max_open: usize,
    /// The most files that are open for writing, with or without a descriptor.
    pub max_parts: usize,
    /// The starts of new files, if these are of packets.
    pub heads: Option<SharedHeads>,
}

impl WriterSettings {
    /// The defaults for this member.
    pub fn new(member: Name, format: impl Into<FileFormat>) -> WriterSettings {
        let late = Duration::from_secs(60);
        let format = format.into();
        WriterSettings { member, format, rotate_bytes: 1 << 30, late, max_open: 256, max_parts: 65_536, heads: None }
    }
}

/// A file that is open for writing.
#[derive(Debug)]
struct OpenPart<F> {
    name: PartName,
    /// `None` while its descriptor is used for another file.
    file: Option<F>,
    /// Bytes that are durable.
    synced: u64,
    /// Bytes after those, which may not be durable.
    dirty: u64,
    /// When it was last written to.
    written: WallTime,
}

/// What an open file is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct PartKey {
    period: Period,
    path: String,
}

impl PartKey {
    fn of(entry: &Entry) -> PartKey {
        PartKey { period: entry.period, path: entry.path.clone() }
    }
}

/// Writes loads. Belongs to one thread.
#[derive(Debug)]
pub struct Writer<D: Disk> {
    disk: D,
    settings: WriterSettings,
    /// Locked while the writer exists.
    _lock: D::Lock,
    run: u32,
    /// Number of the last file of this run.
    last_part: u32,
    parts: HashMap<PartKey, OpenPart<D::File>>,
    open_files: usize,
    /// Directories with entries that may not be durable.
    unsynced_directories: BTreeSet<String>,
    closed: u64,
    /// Complete files that could not be marked as closed yet.
    unclosed: Vec<PartName>,
    /// Why the last of them could not be.
    close_error: Option<StoreError>,
    /// Whether the lock excludes another storer of this name.
    is_locked: bool,
}

/// The most names that are tried for a new file, if others of these names exist.
const MAX_NAMES: u32 = 1000;

impl<D: Disk> Writer<D> {
    /// Takes the member's lock, and recovers the files that a crash of this member left open.
    ///
    /// # Errors
    /// Another storer of this name is running, or an I/O error. Single files that cannot be
    /// recovered are no error, but counted in [`Recovered`].
    pub fn open(disk: D, settings: WriterSettings) -> Result<(Writer<D>, Recovered), StoreError> {
        let owner = Owner { member: settings.member.clone(), kind: settings.format.kind() };
        let (lock, is_locked) = match disk.lock(&owner).map_err(cannot("lock", ""))? {
            Locked::Taken(lock) => (lock, true),
            Locked::Unsupported(lock) => (lock, false),
            Locked::InUse => return Err(StoreError::NameInUse(owner.member)),
        };
        let listing = disk.list().map_err(cannot("list", ""))?;
        // Also above every run seen in file names, because the lock file, which has the count, is
        // lost when files are moved without hidden ones. A reused name would overwrite a file.
        let own = listing.files.iter().filter(|found| Owner::of(&found.name) == owner);
        let seen = own.map(|found| found.name.part.run).max().unwrap_or(0);
        let run = disk.next_run(&lock, seen).map_err(cannot("write the run number to", ""))?;
        let recovered = recover_all(&disk, &owner, &listing);
        let writer = Writer {
            disk,
            settings,
            _lock: lock,
            run,
            last_part: 0,
            parts: HashMap::new(),
            open_files: 0,
            unsynced_directories: BTreeSet::new(),
            closed: 0,
            unclosed: Vec::new(),
            close_error: None,
            is_locked,
        };
        Ok((writer, recovered))
    }

    /// Writes the entries of a load that are not durable yet, and waits until they are.
    ///
    /// # Errors
    /// An I/O error. Durable entries stay durable; call this again with the same load before any
    /// other one. After [`StoreError::Replaced`] open a new writer and
    /// [mark the load unwritten](Load::mark_unwritten).
    pub fn store(&mut self, now: WallTime, load: &mut Load) -> Result<(), StoreError> {
        if !self.disk.is_in_place().map_err(cannot("find", ""))? {
            return Err(StoreError::Replaced);
        }
        let pending = load.entries().iter().filter(|entry| entry.state != State::Durable).count();
        let is_many = pending > SINGLE_SYNCS.min(self.settings.max_open / 2);
        for entry in load.entries().iter_mut().filter(|entry| entry.state == State::Unwritten) {
            self.write(now, entry, is_many)?;
        }
        let written = load.entries().iter_mut().filter(|entry| entry.state == State::Written);
        match is_many && self.disk.can_sync_all() {
            true => self.sync_all(written)?,
            false => self.sync_each(written)?,
        }
        while let Some(directory) = self.unsynced_directories.first().cloned() {
            self.with_descriptor(|disk| disk.sync_directory(&directory)).map_err(cannot("sync", &directory))?;
            self.unsynced_directories.remove(&directory);
        }
        for entry in load.entries().iter_mut().filter(|entry| entry.state == State::Written) {
            entry.state = State::Durable;
            if let Some(heads) = &self.settings.heads {
                heads.learn(&entry.lines);
            }
            if let Some(part) = self.parts.get_mut(&PartKey::of(entry)) {
                part.synced += part.dirty;
                part.dirty = 0;
            }
        }
        Ok(())
    }

    /// Closes files whose period is over or, because a clock was wrong, far in the future. Call it
    /// periodically, between two loads.
    pub fn close_due(&mut self, now: WallTime) {
        let late = self.settings.late;
        // After a clock was set back: no file was written to later than now.
        self.parts.values_mut().for_each(|part| part.written = part.written.min(now));
        let is_over = |key: &PartKey, part: &OpenPart<D::File>| {
            let period = key.period;
            let is_now = (period.start_time()..period.end_time() + late).contains(&now);
            part.dirty == 0 && !is_now && part.written + late <= now
        };
        let over: Vec<_> =
            self.parts.iter().filter(|(key, part)| is_over(key, part)).map(|(key, _)| key.clone()).collect();
        for key in over {
            self.close(&key);
        }
        self.close_error = None;
        for name in std::mem::take(&mut self.unclosed) {
            self.mark_closed(name, None);
        }
    }

    /// Closes all files, at the stop. Bytes that are not durable are not acknowledged.
    pub fn close_all(&mut self) {
        let all: Vec<_> = self.parts.keys().cloned().collect();
        for key in all {
            self.close(&key);
        }
    }

    /// Files that are open for writing.
    pub fn open_parts(&self) -> usize {
        self.parts.len()
    }

    /// Open file descriptors.
    pub fn open_files(&self) -> usize {
        self.open_files
    }

    /// Why complete files could not be closed, so that they are neither compressed nor deleted.
    /// They are tried again with every [`Writer::close_due`].
    pub fn close_error(&self) -> Option<&StoreError> {
        self.close_error.as_ref()
    }

    /// Whether the file system has locks, so that no other storer of this name can start.
    pub fn is_locked(&self) -> bool {
        self.is_locked
    }

    /// Files closed since the start. When this grows there may be something to compress.
    pub fn closed(&self) -> u64 {
        self.closed
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    fn write(&mut self, now: WallTime, entry: &mut Entry, is_many: bool) -> Result<(), StoreError> {
        let key = PartKey::of(entry);
        let bytes = entry.lines.len() as u64;
        let is_full = |part: &OpenPart<D::File>| part.synced > 0 && part.synced + bytes > self.settings.rotate_bytes;
        if self.parts.get(&key).is_some_and(is_full) {
            self.close(&key);
        }
        self.make_room(is_many);
        self.reopen(&key)?;
        if !self.parts.contains_key(&key) {
            self.create_part(now, entry)?;
        }
        let Some(part) = self.parts.get_mut(&key) else { return Ok(()) };
        let Some(file) = &part.file else { return Ok(()) };
        let head = match &self.settings.heads {
            Some(heads) if part.synced == 0 => heads.head(entry.source),
            _ => Vec::new(),
        };
        let written = match head.is_empty() {
            true => Ok(()),
            false => self.disk.write_at(file, &head, part.synced),
        };
        let head_bytes = head.len() as u64;
        if let Err(error) = written.and_then(|()| self.disk.write_at(file, &entry.lines, part.synced + head_bytes)) {
            let path = part.name.to_string();
            // Truncate the incomplete write, because it takes up space on a disk that may be full
            // and readers would see a torn line.
            if self.disk.set_len(file, part.synced).is_err() {
                self.abandon(&key);
            }
            return Err(cannot("write to", &path)(error));
        }
        part.written = now;
        part.dirty = head_bytes + bytes;
        entry.state = State::Written;
        Ok(())
    }

    /// Makes sure that a file that exists has a descriptor. Abandons it if it is no longer as it
    /// was written: a write behind its end would leave a hole.
    fn reopen(&mut self, key: &PartKey) -> Result<(), StoreError> {
        let Some(part) = self.parts.get(key) else { return Ok(()) };
        let synced = part.synced;
        let path = part.name.to_string();
        if part.file.is_none() {
            match self.with_descriptor(|disk| disk.open(&path)) {
                Ok(file) => {
                    let Some(part) = self.parts.get_mut(key) else { return Ok(()) };
                    part.file = Some(file);
                    self.open_files += 1;
                }
                // It has been deleted.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.abandon(key);
                    return Ok(());
                }
                Err(error) => return Err(cannot("open", &path)(error)),
            }
        }
        let Some(OpenPart { file: Some(file), .. }) = self.parts.get(key) else { return Ok(()) };
        if self.disk.named_bytes(file, &path).map_err(cannot("open", &path))? != Some(synced) {
            self.abandon(key);
        }
        Ok(())
    }

    fn create_part(&mut self, now: WallTime, entry: &Entry) -> Result<(), StoreError> {
        for number in self.last_part + 1..=self.last_part.saturating_add(MAX_NAMES) {
            let name = PartName {
                period: entry.period,
                path: entry.path.clone(),
                member: self.settings.member.clone(),
                part: Part { run: self.run, number },
                format: self.settings.format,
                state: FileState::Open,
            };
            let path = name.to_string();
            let Created { file, directories } = match self.with_descriptor(|disk| disk.create(&path)) {
                // Of another storer of this name, where the file system has no locks.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                created => created.map_err(cannot("create", &path))?,
            };
            self.last_part = number;
            self.unsynced_directories.extend(directories);
            self.open_files += 1;
            let part = OpenPart { name, file: Some(file), synced: 0, dirty: 0, written: now };
            self.parts.insert(PartKey::of(entry), part);
            return Ok(());
        }
        Err(cannot("create", &entry.path)(ErrorKind::AlreadyExists.into()))
    }

    /// Opens something. If there are no more descriptors, uses fewer for the files, and tries
    /// again.
    fn with_descriptor<T>(&mut self, open: impl Fn(&D) -> io::Result<T>) -> io::Result<T> {
        loop {
            match open(&self.disk) {
                Err(error) if is_out_of_descriptors(&error) && self.open_files > 0 => {
                    self.settings.max_open = (self.open_files / 2).max(1);
                    self.release_all();
                }
                result => return result,
            }
        }
    }

    /// Closes the descriptors of all files. Files that cannot be synced first are abandoned.
    fn release_all(&mut self) {
        let keys: Vec<PartKey> =
            self.parts.iter().filter(|(_, part)| part.file.is_some()).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(part) = self.parts.get_mut(&key) else { continue };
            let Some(file) = part.file.take() else { continue };
            self.open_files -= 1;
            // While it is open, because a failure of writing back is reported to its descriptors.
            if part.dirty > 0 && self.disk.sync(&file).is_err() {
                drop(file);
                self.abandon(&key);
            }
        }
    }

    fn sync_each<'a>(&mut self, written: impl Iterator<Item = &'a mut Entry>) -> Result<(), StoreError> {
        let mut failed = None;
        for entry in written {
            if let Err(error) = self.sync_one(entry) {
                failed = Some(error);
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn sync_one(&mut self, entry: &mut Entry) -> Result<(), StoreError> {
        let key = PartKey::of(entry);
        let Some(part) = self.parts.get(&key) else {
            entry.state = State::Unwritten;
            return Err(abandoned(entry));
        };
        let path = part.name.to_string();
        if part.file.is_none() {
            match self.with_descriptor(|disk| disk.open(&path)) {
                Ok(file) => {
                    let Some(part) = self.parts.get_mut(&key) else { return Err(abandoned(entry)) };
                    part.file = Some(file);
                    self.open_files += 1;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.abandon(&key);
                    entry.state = State::Unwritten;
                    return Err(cannot("sync", &path)(error));
                }
                // Its data may be written: the next attempt syncs it.
                Err(error) => return Err(cannot("open", &path)(error)),
            }
        }
        let Some(OpenPart { file: Some(file), synced, dirty, .. }) = self.parts.get(&key) else {
            return Err(abandoned(entry));
        };
        let synced = self.disk.sync(file).and_then(|()| self.check(file, &path, synced + dirty));
        if let Err(error) = synced {
            // Not tried again, because the kernel drops pages it could not write and a second
            // fsync would report success.
            self.abandon(&key);
            entry.state = State::Unwritten;
            return Err(cannot("sync", &path)(error));
        }
        // A descriptor that was opened only for this.
        if self.open_files > self.settings.max_open
            && let Some(part) = self.parts.get_mut(&key)
        {
            self.open_files -= usize::from(part.file.take().is_some());
        }
        Ok(())
    }

    /// Checks that a file is as it was written: not deleted, and not truncated.
    fn check(&self, file: &D::File, path: &str, expected: u64) -> io::Result<()> {
        match self.disk.named_bytes(file, path)? {
            Some(bytes) if bytes == expected => Ok(()),
            Some(_) => Err(io::Error::other("the file was changed by another program")),
            None => Err(io::Error::new(ErrorKind::NotFound, "the file was deleted")),
        }
    }

    fn sync_all<'a>(&mut self, written: impl Iterator<Item = &'a mut Entry>) -> Result<(), StoreError> {
        let synced = self.disk.sync_all();
        let mut failed = None;
        for entry in written {
            let key = PartKey::of(entry);
            let Some(part) = self.parts.get(&key) else {
                entry.state = State::Unwritten;
                failed = failed.or_else(|| Some(abandoned(entry)));
                continue;
            };
            let path = part.name.to_string();
            let expected = part.synced + part.dirty;
            let checked = match (&synced, &part.file) {
                (Err(_), _) => Err(ErrorKind::Other.into()),
                (Ok(()), Some(file)) => self.check(file, &path, expected),
                (Ok(()), None) => match self.with_descriptor(|disk| disk.open(&path)) {
                    Ok(file) => self.check(&file, &path, expected),
                    Err(error) => Err(error),
                },
            };
            if let Err(error) = checked {
                failed = failed.or_else(|| Some(cannot("sync", &path)(error)));
                self.abandon(&key);
                entry.state = State::Unwritten;
            }
        }
        synced.map_err(cannot("sync", ""))?;
        failed.map_or(Ok(()), Err)
    }

    /// Truncates a file to its durable bytes and closes it.
    fn abandon(&mut self, key: &PartKey) {
        let Some(part) = self.parts.remove(key) else { return };
        self.open_files -= usize::from(part.file.is_some());
        let path = part.name.to_string();
        let file = part.file.map_or_else(|| self.disk.open(&path), Ok);
        // If this fails the next start recovers the file, which is still marked as open.
        let Ok(file) = file else { return };
        let Ok(bytes) = self.disk.named_bytes(&file, &path) else { return };
        // Another program may have deleted or truncated it.
        let Some(bytes) = bytes else { return };
        if bytes > part.synced && self.disk.set_len(&file, part.synced).is_err() || self.disk.sync(&file).is_err() {
            return;
        }
        match bytes.min(part.synced) {
            0 => drop(self.disk.remove(&path)),
            _ => self.mark_closed(part.name, Some(file)),
        }
    }

    fn close(&mut self, key: &PartKey) {
        let Some(part) = self.parts.remove(key) else { return };
        self.open_files -= usize::from(part.file.is_some());
        if part.synced == 0 {
            let _ = self.disk.remove(&part.name.to_string());
            return;
        }
        self.mark_closed(part.name, part.file);
    }

    /// Renames a complete file. If that fails it is tried again later, and at the next start.
    fn mark_closed(&mut self, name: PartName, file: Option<D::File>) {
        let path = name.to_string();
        if let Ok(file) = file.map_or_else(|| self.disk.open(&path), Ok) {
            self.disk.protect(&file);
        }
        match self.disk.rename(&path, &name.in_state(FileState::Closed).to_string()) {
            Ok(()) => self.closed += 1,
            // It has been deleted.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                self.close_error = Some(cannot("rename", &path)(error));
                if self.unclosed.len() < self.settings.max_parts {
                    self.unclosed.push(name);
                }
            }
        }
    }

    /// Makes sure that one more file can be opened.
    fn make_room(&mut self, is_many: bool) {
        if self.open_files >= self.settings.max_open {
            // All at once rather than the least recently used one, because finding that would cost
            // more than reopening some. Without `syncfs`, dirty files stay open until they are
            // synced.
            for part in self.parts.values_mut().filter(|part| is_many || part.dirty == 0) {
                self.open_files -= usize::from(part.file.take().is_some());
            }
        }
        if self.parts.len() >= self.settings.max_parts {
            let clean = self.parts.iter().filter(|(_, part)| part.dirty == 0);
            let mut by_age: Vec<_> = clean.map(|(key, part)| (part.written, key.clone())).collect();
            by_age.sort();
            for (_, key) in by_age.into_iter().take(self.settings.max_parts / 16 + 1) {
                self.close(&key);
            }
        }
    }
}

fn abandoned(entry: &Entry) -> StoreError {
    let gone = io::Error::new(ErrorKind::NotFound, "the file was abandoned after an error");
    cannot("sync", &entry.path)(gone)
}
