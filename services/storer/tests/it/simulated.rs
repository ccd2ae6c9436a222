//! A simulated disk that tears writes, loses unsynced data and fails on demand.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io::{self, Cursor, ErrorKind, Read, Write},
    rc::Rc,
};

use sekiwake_archive::{FileState, PartName};
use sekiwake_record::WallTime;
use sekiwake_storer::{Created, Disk, Found, Listing, Locked, Owner};
use sekiwake_testkit::random::Random;

const SECTOR: usize = 512;

/// Clones share one disk.
#[derive(Clone, Debug)]
pub(crate) struct SimulatedDisk(Rc<RefCell<State>>);

#[derive(Debug, Default)]
struct State {
    random: Random,
    inodes: Vec<Inode>,
    /// The names that a process sees: files with their inode, directories without one.
    names: BTreeMap<String, Option<usize>>,
    durable: BTreeMap<String, Option<usize>>,
    /// Directory changes that a crash may undo, in order.
    pending: Vec<(String, Change)>,
    /// Names that have been used.
    used: BTreeSet<String>,
    locked: BTreeSet<Owner>,
    known: BTreeSet<Owner>,
    runs: BTreeMap<Owner, u32>,
    /// Operations until a fault, and the fault.
    fault: Option<(u32, Fault)>,
    /// Whether the power is off: every operation then fails.
    is_dead: bool,
    has_modes: bool,
    /// Contents of stored files that another program has deleted.
    wiped: Vec<Vec<u8>>,
    now: WallTime,
    pub(crate) open_files: i64,
    pub(crate) most_open: i64,
    /// The most open files, if they are limited.
    max_files: Option<i64>,
    /// A bug in the code under test, which the tests must catch.
    mutant: Mutant,
}

/// An operation that is skipped on purpose, to check that a test notices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Mutant {
    #[default]
    None,
    /// Directories are not synced.
    NoDirectorySync,
    /// Files are not synced.
    NoSync,
    /// Files are not truncated.
    NoTruncation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A full disk: part of the data is written.
    Full,
    /// A device error: unsynced data is lost, which is reported once.
    Device,
    /// A power failure.
    Power,
    /// Another program deletes a directory or a file. The operation itself succeeds.
    Wipe,
}

#[derive(Clone, Debug, Default)]
struct Inode {
    current: Vec<u8>,
    synced: Vec<u8>,
    /// From this offset on, data was lost by a failed sync, and is not written by later syncs.
    lost_from: Option<usize>,
    is_protected: bool,
    is_durably_protected: bool,
    modified: WallTime,
}

#[derive(Clone, Debug)]
enum Change {
    Add(String, Option<usize>),
    Remove(String),
    /// One journal entry: both or neither.
    Rename(String, String, usize),
}

impl Inode {
    /// Loses everything that differs from the synced data, unless it is written again.
    fn lose(&mut self) {
        let same = self.synced.iter().zip(&self.current).take_while(|(one, other)| one == other).count();
        self.lost_from = Some(self.lost_from.unwrap_or(same).min(same));
    }
}

/// An open file.
#[derive(Debug)]
pub(crate) struct SimulatedFile {
    disk: SimulatedDisk,
    inode: usize,
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        self.disk.0.borrow_mut().open_files -= 1;
    }
}

/// Locked while a member is running.
#[derive(Debug)]
pub(crate) struct SimulatedLock {
    disk: SimulatedDisk,
    owner: Owner,
}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        self.disk.0.borrow_mut().locked.remove(&self.owner);
    }
}

impl SimulatedDisk {
    pub(crate) fn new(seed: u64) -> SimulatedDisk {
        SimulatedDisk(Rc::new(RefCell::new(State {
            random: Random::new(seed),
            has_modes: seed & 2 == 0,
            ..State::default()
        })))
    }

    pub(crate) fn set_mutant(&self, mutant: Mutant) {
        self.0.borrow_mut().mutant = mutant;
    }

    /// The operation after this many fails.
    pub(crate) fn fail_after(&self, operations: u32, fault: Fault) {
        self.0.borrow_mut().fault = Some((operations, fault));
    }

    pub(crate) fn mend(&self) {
        self.0.borrow_mut().fault = None;
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.borrow().is_dead
    }

    /// Sets the modification time of later writes.
    pub(crate) fn set_clock(&self, now: WallTime) {
        self.0.borrow_mut().now = now;
    }

    /// Deletes a directory recursively, or a file in the top directory.
    pub(crate) fn wipe(&self) {
        self.0.borrow_mut().wipe();
    }

    /// The contents of files deleted by [`SimulatedDisk::wipe`] since the last call.
    pub(crate) fn take_wiped(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.0.borrow_mut().wiped)
    }

    /// All stored files, as in [`Disk::list`], with their contents.
    pub(crate) fn listing(&self) -> Vec<(Found, Vec<u8>)> {
        let state = self.0.borrow();
        state.found().map(|(found, inode)| (found, inode.current.clone())).collect()
    }

    pub(crate) fn most_open(&self) -> i64 {
        self.0.borrow().most_open
    }

    /// The state after a power failure: any part of the unsynced data may exist.
    pub(crate) fn crash(&self) {
        let mut state = self.0.borrow_mut();
        let mut names = std::mem::take(&mut state.durable);
        for (_, change) in std::mem::take(&mut state.pending) {
            if state.next(2) == 0 {
                continue;
            }
            match change {
                Change::Add(path, inode) => drop(names.insert(path, inode)),
                Change::Remove(path) => drop(names.remove(&path)),
                Change::Rename(from, to, inode) => {
                    names.remove(&from);
                    names.insert(to, Some(inode));
                }
            }
        }
        // Entries of a missing directory are unreachable.
        let all = names.clone();
        names.retain(|path, _| path.match_indices('/').all(|(index, _)| all.contains_key(&path[..index])));
        for index in 0..state.inodes.len() {
            let mut inode = std::mem::take(&mut state.inodes[index]);
            let torn = state.tear(&inode);
            inode.current = torn.clone();
            inode.synced = torn;
            inode.lost_from = None;
            if state.next(2) == 0 {
                inode.is_protected = inode.is_durably_protected;
            }
            inode.is_durably_protected = inode.is_protected;
            state.inodes[index] = inode;
        }
        state.durable = names.clone();
        state.names = names;
        state.locked.clear();
        state.is_dead = false;
        state.fault = None;
    }

    /// Counts an operation, and fails if its fault is due.
    fn step(&self) -> io::Result<()> {
        let mut state = self.0.borrow_mut();
        if state.is_dead {
            return Err(io::Error::other("the power is off"));
        }
        let Some((left, fault)) = &mut state.fault else { return Ok(()) };
        if *left > 0 {
            *left -= 1;
            return Ok(());
        }
        let fault = *fault;
        state.fault = None;
        match fault {
            Fault::Full => Err(ErrorKind::StorageFull.into()),
            Fault::Device => Err(io::Error::other("device error")),
            Fault::Power => {
                state.is_dead = true;
                Err(io::Error::other("the power is off"))
            }
            Fault::Wipe => {
                state.wipe();
                Ok(())
            }
        }
    }

    fn inode(&self, path: &str) -> io::Result<usize> {
        self.0.borrow().names.get(path).copied().flatten().ok_or_else(|| ErrorKind::NotFound.into())
    }

    pub(crate) fn set_max_files(&self, limit: i64) {
        self.0.borrow_mut().max_files = Some(limit);
    }

    /// Fails if no more files may be open.
    fn check_descriptors(&self) -> io::Result<()> {
        let state = self.0.borrow();
        match state.max_files.is_some_and(|limit| state.open_files >= limit) {
            true => Err(io::Error::from_raw_os_error(24)),
            false => Ok(()),
        }
    }

    fn file(&self, inode: usize) -> SimulatedFile {
        let mut state = self.0.borrow_mut();
        state.open_files += 1;
        state.most_open = state.most_open.max(state.open_files);
        SimulatedFile { disk: self.clone(), inode }
    }

    fn write(&self, inode: usize, bytes: &[u8], offset: usize) -> io::Result<()> {
        let result = self.step();
        let mut state = self.0.borrow_mut();
        let length = if result.is_ok() { bytes.len() } else { state.next(bytes.len() as u64 + 1) as usize };
        let current = &mut state.inodes[inode].current;
        if current.len() < offset + length {
            current.resize(offset + length, 0);
        }
        current[offset..offset + length].copy_from_slice(&bytes[..length]);
        state.inodes[inode].modified = state.now;
        result
    }

    fn sync_inode(&self, inode: usize) {
        let mut state = self.0.borrow_mut();
        let inode = &mut state.inodes[inode];
        let mut synced = inode.current.clone();
        if let Some(from) = inode.lost_from {
            // The kernel assumes that this has been written.
            let end = synced.len();
            synced[from.min(end)..].fill(0);
        }
        inode.synced = synced;
        inode.is_durably_protected = inode.is_protected;
    }
}

impl State {
    fn next(&mut self, below: u64) -> u64 {
        self.random.below(below)
    }

    /// A possible state of a file after a crash: each sector that differs from the synced data may
    /// be old or new, and the length is between the old and the new one.
    fn tear(&mut self, inode: &Inode) -> Vec<u8> {
        let (short, long) = match inode.synced.len() <= inode.current.len() {
            true => (inode.synced.len(), inode.current.len()),
            false => (inode.current.len(), inode.synced.len()),
        };
        let length = short + self.next((long - short) as u64 + 1) as usize;
        let mut torn = vec![0; length];
        for start in (0..length).step_by(SECTOR) {
            let range = start..(start + SECTOR).min(length);
            let from = if self.next(2) == 0 { &inode.synced } else { &inode.current };
            let lost = inode.lost_from.filter(|_| !std::ptr::eq(from, &raw const inode.synced)).unwrap_or(usize::MAX);
            for at in range {
                let is_synced =
                    at < inode.synced.len() && at < inode.current.len() && inode.synced[at] == inode.current[at];
                let byte = if is_synced {
                    inode.synced[at]
                } else if at >= lost {
                    0
                } else {
                    from.get(at).copied().unwrap_or(0)
                };
                torn[at] = byte;
            }
        }
        torn
    }

    fn found(&self) -> impl Iterator<Item = (Found, &Inode)> {
        self.names.iter().filter_map(|(path, inode)| {
            let inode = &self.inodes[(*inode)?];
            let bytes = inode.current.len() as u64;
            let modified = inode.modified;
            let is_writable = !inode.is_protected;
            Some((Found { name: PartName::parse(path)?, bytes, modified, is_writable }, inode))
        })
    }

    fn wipe(&mut self) {
        let roots: Vec<&String> = self.names.keys().filter(|path| !path.contains('/')).collect();
        if roots.is_empty() {
            return;
        }
        let count = roots.len() as u64;
        let index = self.next(count) as usize;
        let Some(root) = self.names.keys().filter(|path| !path.contains('/')).nth(index).cloned() else { return };
        let below = format!("{root}/");
        let mut paths: Vec<String> =
            self.names.keys().filter(|path| **path == root || path.starts_with(&below)).cloned().collect();
        // Entries before their directory.
        paths.reverse();
        for path in paths {
            if let (Some(Some(inode)), true) = (self.names.get(&path).copied(), PartName::parse(&path).is_some()) {
                self.wiped.push(self.inodes[inode].current.clone());
            }
            self.change(Change::Remove(path));
        }
    }

    fn change(&mut self, change: Change) {
        let path = match &change {
            Change::Add(path, inode) => {
                self.names.insert(path.clone(), *inode);
                path
            }
            Change::Remove(path) => {
                self.names.remove(path);
                path
            }
            Change::Rename(from, to, inode) => {
                self.names.remove(from);
                self.names.insert(to.clone(), Some(*inode));
                to
            }
        };
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
        self.pending.push((folder, change));
    }
}

impl Disk for SimulatedDisk {
    type File = SimulatedFile;
    type Lock = SimulatedLock;

    fn list(&self) -> io::Result<Listing> {
        self.step()?;
        let state = self.0.borrow();
        let files = state.found().map(|(found, _)| found).collect();
        let is_leftover =
            |(path, inode): &(&String, &Option<usize>)| inode.is_some() && PartName::parse(path).is_none();
        let leftovers = state.names.iter().filter(is_leftover).map(|(path, _)| path.clone()).collect();
        Ok(Listing { files, leftovers })
    }

    fn is_in_place(&self) -> io::Result<bool> {
        self.step()?;
        Ok(true)
    }

    fn can_sync_all(&self) -> bool {
        true
    }

    fn named_bytes(&self, file: &SimulatedFile, _path: &str) -> io::Result<Option<u64>> {
        self.step()?;
        let state = self.0.borrow();
        let is_named = state.names.values().any(|inode| *inode == Some(file.inode));
        Ok(is_named.then_some(state.inodes[file.inode].current.len() as u64))
    }

    fn create(&self, path: &str) -> io::Result<Created<SimulatedFile>> {
        self.step()?;
        self.check_descriptors()?;
        let mut directories = BTreeSet::new();
        let mut state = self.0.borrow_mut();
        if state.names.contains_key(path) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let is_stored = PartName::parse(path).is_some();
        assert!(!is_stored || state.used.insert(path.to_owned()), "{path} has been used before");
        for (index, _) in path.match_indices('/') {
            let folder = path[..index].to_owned();
            directories.insert(folder.rsplit_once('/').map_or("", |(above, _)| above).to_owned());
            if !state.names.contains_key(&folder) {
                state.change(Change::Add(folder, None));
            }
        }
        directories.insert(path.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned());
        state.inodes.push(Inode::default());
        let inode = state.inodes.len() - 1;
        state.change(Change::Add(path.to_owned(), Some(inode)));
        drop(state);
        Ok(Created { file: self.file(inode), directories })
    }

    fn open(&self, path: &str) -> io::Result<SimulatedFile> {
        self.step()?;
        self.check_descriptors()?;
        let inode = self.inode(path)?;
        Ok(self.file(inode))
    }

    fn write_at(&self, file: &SimulatedFile, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write(file.inode, bytes, offset as usize)
    }

    fn set_len(&self, file: &SimulatedFile, bytes: u64) -> io::Result<()> {
        self.step()?;
        let mut state = self.0.borrow_mut();
        if state.mutant == Mutant::NoTruncation {
            return Ok(());
        }
        let inode = &mut state.inodes[file.inode];
        inode.current.resize(bytes as usize, 0);
        inode.lost_from = inode.lost_from.filter(|&from| from < bytes as usize);
        Ok(())
    }

    fn sync(&self, file: &SimulatedFile) -> io::Result<()> {
        if let Err(error) = self.step() {
            self.0.borrow_mut().inodes[file.inode].lose();
            return Err(error);
        }
        if self.0.borrow().mutant != Mutant::NoSync {
            self.sync_inode(file.inode);
        }
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        // Any unsynced data of any file is lost.
        if let Err(error) = self.step() {
            let mut state = self.0.borrow_mut();
            let is_dirty = |inode: &&mut Inode| inode.synced != inode.current;
            state.inodes.iter_mut().filter(is_dirty).for_each(Inode::lose);
            return Err(error);
        }
        if self.0.borrow().mutant == Mutant::NoSync {
            return Ok(());
        }
        let count = self.0.borrow().inodes.len();
        (0..count).for_each(|inode| self.sync_inode(inode));
        Ok(())
    }

    fn sync_directory(&self, path: &str) -> io::Result<()> {
        self.step()?;
        self.check_descriptors()?;
        let mut state = self.0.borrow_mut();
        if !path.is_empty() && !state.names.contains_key(path) {
            return Err(ErrorKind::NotFound.into());
        }
        if state.mutant == Mutant::NoDirectorySync {
            return Ok(());
        }
        let (synced, left) = std::mem::take(&mut state.pending).into_iter().partition(|(folder, _)| folder == path);
        state.pending = left;
        for (_, change) in synced {
            match change {
                Change::Add(path, inode) => drop(state.durable.insert(path, inode)),
                Change::Remove(path) => drop(state.durable.remove(&path)),
                Change::Rename(from, to, inode) => {
                    state.durable.remove(&from);
                    state.durable.insert(to, Some(inode));
                }
            }
        }
        Ok(())
    }

    fn protect(&self, file: &SimulatedFile) {
        if self.step().is_ok() {
            self.0.borrow_mut().inodes[file.inode].is_protected = self.has_modes();
        }
    }

    fn has_modes(&self) -> bool {
        self.0.borrow().has_modes
    }

    fn read(&self, path: &str) -> io::Result<Box<dyn Read + '_>> {
        self.step()?;
        let inode = self.inode(path)?;
        Ok(Box::new(Cursor::new(self.0.borrow().inodes[inode].current.clone())))
    }

    fn writer<'a>(&'a self, file: &'a SimulatedFile) -> Box<dyn Write + 'a> {
        Box::new(Sequential { file, at: 0 })
    }

    fn set_modified(&self, file: &SimulatedFile, modified: WallTime) -> io::Result<()> {
        self.step()?;
        self.0.borrow_mut().inodes[file.inode].modified = modified;
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.step()?;
        let inode = self.inode(from)?;
        let mut state = self.0.borrow_mut();
        let is_closed = PartName::parse(to).is_some_and(|name| name.state == FileState::Closed);
        assert!(!is_closed || !state.names.contains_key(to), "{to} exists already");
        state.change(Change::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.step()?;
        self.inode(path)?;
        self.0.borrow_mut().change(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn lock(&self, owner: &Owner) -> io::Result<Locked<SimulatedLock>> {
        self.step()?;
        let mut state = self.0.borrow_mut();
        state.known.insert(owner.clone());
        if !state.locked.insert(owner.clone()) {
            return Ok(Locked::InUse);
        }
        Ok(Locked::Taken(SimulatedLock { disk: self.clone(), owner: owner.clone() }))
    }

    fn next_run(&self, lock: &SimulatedLock, seen: u32) -> io::Result<u32> {
        self.step()?;
        let mut state = self.0.borrow_mut();
        let run = state.runs.entry(lock.owner.clone()).or_default();
        *run = seen.max(*run) + 1;
        Ok(*run)
    }

    fn owners(&self) -> io::Result<Vec<Owner>> {
        self.step()?;
        Ok(self.0.borrow().known.iter().cloned().collect())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }
}

struct Sequential<'a> {
    file: &'a SimulatedFile,
    at: usize,
}

impl Write for Sequential<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.disk.write(self.file.inode, bytes, self.at)?;
        self.at += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
