//! The writer: which file a message goes to, and when it is on the disk.
//!
//! ```text
//! of a file:    (none) ── create ──▶ open, 0640 ── too large, its period is over, the end ──▶ closed, 0440
//!                                       │ ▲
//!                          a load: write, sync; directories where files were made: sync
//!                                       │
//!                                       └── vanished, or its sync failed ──▶ given up: what is not known to be on the disk goes into a new file
//! ```
//! A load is done when the disk has all of it. Until then it stays with the caller, who tries again: what is done is not written twice.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, ErrorKind},
    time::Duration,
};

use sekiwake_record::Name;
use sekiwake_store::{LineFormat, Part, PartName, Period};

use crate::{
    disk::Disk,
    load::{Entry, Load, State},
    recovery::{Recovered, recover_all},
};

/// With more files than this to sync, or more than half of those that may be open, the whole file system is synced at once.
const SINGLE_SYNCS: usize = 64;

/// How the writer goes about it.
#[derive(Clone, Debug)]
pub struct WriterSettings {
    /// Who writes.
    pub member: Name,
    /// How messages stand in a file.
    pub format: LineFormat,
    /// The size at which a file is followed by another, bytes. What comes in one load is not divided.
    pub rotate_bytes: u64,
    /// A file is closed when its period has been over, and nothing has come, for so long.
    pub late: Duration,
    /// The most descriptors that are open.
    pub max_open: usize,
    /// The most files that are kept open for more.
    pub max_parts: usize,
}

impl WriterSettings {
    /// The defaults for this member.
    pub fn new(member: Name, format: LineFormat) -> WriterSettings {
        let late = Duration::from_secs(60);
        WriterSettings { member, format, rotate_bytes: 1 << 30, late, max_open: 256, max_parts: 65_536 }
    }
}

/// What the disk refused.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory.
    #[error("cannot {what} {path}")]
    Disk {
        /// What was attempted.
        what: &'static str,
        /// The path below the store's directory.
        path: String,
        /// What came of it.
        source: io::Error,
    },
    /// The directory has been moved or deleted, or something is mounted over it. The writer can only be opened anew.
    #[error("another directory stands in the place of the one that was written to")]
    Replaced,
    /// Another storer of this name lives.
    #[error("another storer named {0} writes here: each needs a name of its own (SEKIWAKE_MEMBER)")]
    Twin(Name),
}

impl StoreError {
    /// The error with what is behind it, in one line.
    pub fn told(&self) -> String {
        match self {
            StoreError::Disk { source, .. } => format!("{self}: {source}"),
            StoreError::Replaced | StoreError::Twin(_) => self.to_string(),
        }
    }
}

pub(crate) fn cannot(what: &'static str, path: &str) -> impl FnOnce(io::Error) -> StoreError {
    let path = if path.is_empty() { "the directory".to_owned() } else { path.to_owned() };
    move |source| StoreError::Disk { what, path, source }
}

/// A file that is written to.
#[derive(Debug)]
struct Open<F> {
    path: String,
    /// `None` while its descriptor is needed elsewhere.
    file: Option<F>,
    /// What the disk has of it, bytes.
    synced: u64,
    /// There is something behind that, which the disk need not have.
    is_dirty: bool,
    /// When something last came, nanoseconds since 1970-01-01T00:00:00Z.
    written_ns: u64,
}

/// Writes loads. Belongs to one thread.
#[derive(Debug)]
pub struct Writer<D: Disk> {
    disk: D,
    settings: WriterSettings,
    /// Held while this lives.
    _lock: D::Lock,
    run: u32,
    numbered: u32,
    parts: HashMap<(Period, String), Open<D::File>>,
    open_files: usize,
    /// Directories with entries that the disk need not have.
    unsynced: BTreeSet<String>,
    closed: u64,
}

impl<D: Disk> Writer<D> {
    /// Takes the member's place in the directory, and makes whole what a crash of it left.
    ///
    /// # Errors
    /// Another one lives, or the disk refuses. Not: single files that cannot be made whole, which are told of in [`Recovered`].
    pub fn open(disk: D, settings: WriterSettings) -> Result<(Writer<D>, Recovered), StoreError> {
        let member = &settings.member;
        let lock = disk.lock(member).map_err(cannot("lock", ""))?.ok_or_else(|| StoreError::Twin(member.clone()))?;
        let listing = disk.list().map_err(cannot("list", ""))?;
        // The count may be lost, where files were moved without what is hidden. A name that is used again would cost one of the two files.
        let own = listing.0.iter().filter(|found| found.name.member == *member);
        let seen = own.map(|found| found.name.part.run).max().unwrap_or(0);
        let run = disk.next_run(&lock, seen).map_err(cannot("count the runs in", ""))?;
        let recovered = recover_all(&disk, member, &listing);
        let writer = Writer {
            disk,
            settings,
            _lock: lock,
            run,
            numbered: 0,
            parts: HashMap::new(),
            open_files: 0,
            unsynced: BTreeSet::new(),
            closed: 0,
        };
        Ok((writer, recovered))
    }

    /// Writes what is not done of a load, and waits until the disk has it.
    ///
    /// # Errors
    /// The disk refuses. What is done stays done; to be called again with the same load, and with no other one before. After
    /// [`StoreError::Replaced`] a new writer is to be opened, and the load to [begin again](Load::begin_again).
    pub fn store(&mut self, now_ns: u64, load: &mut Load) -> Result<(), StoreError> {
        if !self.disk.is_in_place().map_err(cannot("find", ""))? {
            return Err(StoreError::Replaced);
        }
        let undone = load.entries().iter().filter(|entry| entry.state != State::Done).count();
        let is_many = undone > SINGLE_SYNCS.min(self.settings.max_open / 2);
        for entry in load.entries().iter_mut().filter(|entry| entry.state == State::Fresh) {
            self.write(now_ns, entry, is_many)?;
        }
        let written = load.entries().iter_mut().filter(|entry| entry.state == State::Written);
        match is_many {
            true => self.sync_all(written)?,
            false => self.sync_each(written)?,
        }
        while let Some(directory) = self.unsynced.first().cloned() {
            self.disk.sync_directory(&directory).map_err(cannot("sync", &directory))?;
            self.unsynced.remove(&directory);
        }
        for entry in load.entries().iter_mut().filter(|entry| entry.state == State::Written) {
            entry.state = State::Done;
            if let Some(part) = self.parts.get_mut(&key(entry)) {
                part.synced += entry.lines.len() as u64;
                part.is_dirty = false;
            }
        }
        Ok(())
    }

    /// Closes files whose period is over, or far from having begun: a clock was wrong. To be called now and then, between two loads.
    pub fn tend(&mut self, now_ns: u64) {
        let late = u64::try_from(self.settings.late.as_nanos()).unwrap_or(u64::MAX);
        // What came in the future came at the latest now.
        self.parts.values_mut().for_each(|part| part.written_ns = part.written_ns.min(now_ns));
        let is_over = |(period, _): &(Period, String), part: &Open<D::File>| {
            let is_now = (period.start_ns()..period.end_ns().saturating_add(late)).contains(&now_ns);
            !part.is_dirty && !is_now && part.written_ns.saturating_add(late) <= now_ns
        };
        let over: Vec<_> =
            self.parts.iter().filter(|(key, part)| is_over(key, part)).map(|(key, _)| key.clone()).collect();
        for key in over {
            self.close(&key);
        }
    }

    /// Closes all files, at the end. What the disk has not goes.
    pub fn close_all(&mut self) {
        let all: Vec<_> = self.parts.keys().cloned().collect();
        for key in all {
            self.close(&key);
        }
    }

    /// Files that are open for more.
    pub fn open_parts(&self) -> usize {
        self.parts.len()
    }

    /// Descriptors that are open.
    pub fn open_files(&self) -> usize {
        self.open_files
    }

    /// Files that were closed for good since the start: when this has grown there may be something to compress.
    pub fn closed(&self) -> u64 {
        self.closed
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    fn write(&mut self, now_ns: u64, entry: &mut Entry, is_many: bool) -> Result<(), StoreError> {
        let key = key(entry);
        let bytes = entry.lines.len() as u64;
        let is_full = |part: &Open<D::File>| part.synced > 0 && part.synced + bytes > self.settings.rotate_bytes;
        if self.parts.get(&key).is_some_and(is_full) {
            self.close(&key);
        }
        self.make_room(is_many);
        let has_file = match self.parts.get_mut(&key) {
            Some(part) if part.file.is_some() => true,
            Some(part) => match self.disk.open(&part.path) {
                Ok(file) => {
                    part.file = Some(file);
                    self.open_files += 1;
                    true
                }
                // Somebody has deleted it.
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    self.give_up(&key);
                    false
                }
                Err(error) => return Err(cannot("open", &part.path)(error)),
            },
            None => false,
        };
        if !has_file {
            self.begin(now_ns, entry)?;
        }
        let Some(part) = self.parts.get_mut(&key) else { return Ok(()) };
        let Some(file) = &part.file else { return Ok(()) };
        if let Err(error) = self.disk.write_at(file, &entry.lines, part.synced) {
            let path = part.path.clone();
            // What was written of it takes room that is missed, and would be in the way of a reader.
            if self.disk.set_len(file, part.synced).is_err() {
                self.give_up(&key);
            }
            return Err(cannot("write to", &path)(error));
        }
        part.written_ns = now_ns;
        part.is_dirty = true;
        entry.state = State::Written;
        Ok(())
    }

    fn begin(&mut self, now_ns: u64, entry: &Entry) -> Result<(), StoreError> {
        self.numbered += 1;
        let name = PartName {
            period: entry.period,
            path: entry.path.clone(),
            member: self.settings.member.clone(),
            part: Part { run: self.run, number: self.numbered },
            format: self.settings.format,
            packed: false,
        };
        let path = name.to_string();
        let (file, changed) = self.disk.create(&path).map_err(cannot("create", &path))?;
        self.unsynced.extend(changed);
        self.open_files += 1;
        self.parts.insert(key(entry), Open { path, file: Some(file), synced: 0, is_dirty: false, written_ns: now_ns });
        Ok(())
    }

    fn sync_each<'a>(&mut self, written: impl Iterator<Item = &'a mut Entry>) -> Result<(), StoreError> {
        let mut failed = None;
        for entry in written {
            let key = key(entry);
            let Some(part) = self.parts.get(&key) else {
                entry.state = State::Fresh;
                let gone = io::Error::new(ErrorKind::NotFound, "its file has been given up");
                failed = Some(cannot("sync", &entry.path)(gone));
                continue;
            };
            let synced = match &part.file {
                Some(file) => self.disk.sync(file),
                None => self.disk.open(&part.path).and_then(|file| self.disk.sync(&file)),
            };
            if let Err(error) = synced {
                failed = Some(cannot("sync", &part.path)(error));
                // The kernel forgets what it could not write, and a second call would claim success.
                self.give_up(&key);
                entry.state = State::Fresh;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn sync_all<'a>(&mut self, written: impl Iterator<Item = &'a mut Entry>) -> Result<(), StoreError> {
        let synced = self.disk.sync_all();
        let mut failed = None;
        for entry in written {
            let key = key(entry);
            let has_name = || match self.parts.get(&key) {
                Some(Open { file: Some(file), .. }) => self.disk.check_named(file),
                Some(part) => self.disk.open(&part.path).map(drop),
                None => Err(io::Error::new(ErrorKind::NotFound, "its file has been given up")),
            };
            let Err(error) = (if synced.is_ok() { has_name() } else { Err(ErrorKind::Other.into()) }) else { continue };
            failed = failed
                .or_else(|| Some(cannot("sync", self.parts.get(&key).map_or(&entry.path, |part| &part.path))(error)));
            self.give_up(&key);
            entry.state = State::Fresh;
        }
        synced.map_err(cannot("sync", ""))?;
        failed.map_or(Ok(()), Err)
    }

    /// What is not known to be on the disk is cut off, and the file is closed for good.
    fn give_up(&mut self, key: &(Period, String)) {
        let Some(part) = self.parts.remove(key) else { return };
        self.open_files -= usize::from(part.file.is_some());
        let file = part.file.map_or_else(|| self.disk.open(&part.path), Ok);
        // Where this fails the next start does it: the file is still marked as open.
        if let Ok(file) = file
            && self.disk.set_len(&file, part.synced).is_ok()
            && self.disk.sync(&file).is_ok()
        {
            match part.synced {
                0 => drop(self.disk.remove(&part.path)),
                _ => self.mark_closed(&file),
            }
        }
    }

    fn close(&mut self, key: &(Period, String)) {
        let Some(part) = self.parts.remove(key) else { return };
        self.open_files -= usize::from(part.file.is_some());
        if part.synced == 0 {
            let _ = self.disk.remove(&part.path);
            return;
        }
        if let Ok(file) = part.file.map_or_else(|| self.disk.open(&part.path), Ok) {
            self.mark_closed(&file);
        }
    }

    /// Where this fails the file is looked at once more at the next start.
    fn mark_closed(&mut self, file: &D::File) {
        if self.disk.close(file).is_ok() {
            self.closed += 1;
        }
    }

    /// Sees to it that one more file can be opened, and kept.
    fn make_room(&mut self, is_many: bool) {
        if self.open_files >= self.settings.max_open {
            // All at once, not the one that was used least: to find that would cost more than to open some again. What is synced by
            // itself stays open until it is.
            for part in self.parts.values_mut().filter(|part| is_many || !part.is_dirty) {
                self.open_files -= usize::from(part.file.take().is_some());
            }
        }
        if self.parts.len() >= self.settings.max_parts {
            let clean = self.parts.iter().filter(|(_, part)| !part.is_dirty);
            let mut by_age: Vec<_> = clean.map(|(key, part)| (part.written_ns, key.clone())).collect();
            by_age.sort();
            for (_, key) in by_age.into_iter().take(self.settings.max_parts / 16 + 1) {
                self.close(&key);
            }
        }
    }
}

fn key(entry: &Entry) -> (Period, String) {
    (entry.period, entry.path.clone())
}
