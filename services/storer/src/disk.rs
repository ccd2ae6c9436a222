//! The storer's file system operations as a trait, so that tests can simulate torn writes.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{Advice, fadvise, fstatfs, statvfs, syncfs},
    io::Errno,
};
use sekiwake_archive::{PartName, Unread, walk};
use sekiwake_record::{Kind, Name, WallTime};
use tracing::warn;

/// Modes of files that are open for writing and of closed ones. Older releases judge by them
/// whether a file is open, where this one goes by the name: some file systems have no modes.
const OPEN: u32 = 0o640;
const CLOSED: u32 = 0o440;

/// statfs's type of FUSE file systems.
const FUSE_MAGIC: i64 = 0x6573_5546;

/// A stored file in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its name.
    pub name: PartName,
    /// Its length, bytes.
    pub bytes: u64,
    /// When it was last written to.
    pub modified: WallTime,
    /// Whether its mode allows writing.
    pub is_writable: bool,
}

/// The outcome of taking a lock.
#[derive(Debug)]
pub enum Locked<L> {
    /// It was taken.
    Taken(L),
    /// Another process holds it.
    InUse,
    /// The file system has no locks, so that it is unknown whether another process uses this name.
    Unsupported(L),
}

/// The files below the store's directory, in no order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Stored files.
    pub files: Vec<Found>,
    /// Paths of temporary files that an interrupted compression left.
    pub leftovers: Vec<String>,
}

/// A file that was created.
#[derive(Debug)]
pub struct Created<F> {
    /// The file, open for writing.
    pub file: F,
    /// All directories above it. An entry in each may be new, even in those that existed before.
    pub directories: BTreeSet<String>,
}

/// The owner of files: a member, and one of the kinds that it stores. Each kind has a lock of its
/// own, so that several processes of one name can store different kinds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// The member.
    pub member: Name,
    /// The kind.
    pub kind: Kind,
}

impl Owner {
    /// The owner of a file.
    pub fn of(name: &PartName) -> Owner {
        Owner { member: name.member.clone(), kind: name.format.kind() }
    }

    /// The name of its lock file. Names of members have no `@`, so that earlier releases do not
    /// take those of other kinds than syslog for locks.
    fn lock_file(&self) -> String {
        match self.kind {
            Kind::Syslog => format!("{LOCK_PREFIX}{}{LOCK_SUFFIX}", self.member),
            kind => format!("{LOCK_PREFIX}{}@{kind}{LOCK_SUFFIX}", self.member),
        }
    }

    fn of_lock_file(name: &str) -> Option<Owner> {
        let name = name.strip_prefix(LOCK_PREFIX)?.strip_suffix(LOCK_SUFFIX)?;
        let (member, kind) = match name.split_once('@') {
            None => (name, Kind::Syslog),
            Some((member, kind)) => (member, Kind::from_name(kind).filter(|kind| *kind != Kind::Syslog)?),
        };
        Some(Owner { member: Name::new(member).ok()?, kind })
    }
}

/// A directory of stored files. Paths are relative to it, with slashes. Every function that returns
/// a result may fail with an I/O error at any time, and may then have done part of its work.
pub trait Disk {
    /// A file that is open for writing.
    type File;
    /// The lock that a running storer holds.
    type Lock;

    /// Lists all stored files and leftovers.
    fn list(&self) -> io::Result<Listing>;

    /// Whether the directory that was opened is still at its path: not deleted, moved or mounted
    /// over.
    fn is_in_place(&self) -> io::Result<bool>;

    /// Creates a file that must not exist yet, and the directories above it.
    ///
    /// # Errors
    /// It exists, or an I/O error.
    fn create(&self, path: &str) -> io::Result<Created<Self::File>>;

    /// Opens an existing file.
    fn open(&self, path: &str) -> io::Result<Self::File>;

    /// Writes all of these bytes at an offset.
    ///
    /// # Errors
    /// Part of them may have been written.
    fn write_at(&self, file: &Self::File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Truncates a file, or extends it with zeros.
    fn set_len(&self, file: &Self::File, bytes: u64) -> io::Result<()>;

    /// Fsyncs a file.
    ///
    /// # Errors
    /// It is unknown which writes since the last success are durable.
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// Fsyncs everything that was written anywhere on this file system.
    ///
    /// # Errors
    /// As [`Disk::sync`], for any file.
    fn sync_all(&self) -> io::Result<()>;

    /// Whether [`Disk::sync_all`] makes files durable. Where it does not, each has to be synced.
    fn can_sync_all(&self) -> bool;

    /// The length of a file, bytes; `None` if it has been deleted.
    fn named_bytes(&self, file: &Self::File, path: &str) -> io::Result<Option<u64>>;

    /// Fsyncs the entries of a directory.
    ///
    /// # Errors
    /// It is unknown whether they are durable.
    fn sync_directory(&self, path: &str) -> io::Result<()>;

    /// Gives a file the mode of a closed one, if the file system has modes.
    fn protect(&self, file: &Self::File);

    /// Whether the file system keeps modes.
    fn has_modes(&self) -> bool;

    /// Reads a file from the start.
    fn read(&self, path: &str) -> io::Result<Box<dyn Read + '_>>;

    /// Writes a file that [`Disk::create`] has created, from the start.
    fn writer<'a>(&'a self, file: &'a Self::File) -> Box<dyn Write + 'a>;

    /// Sets a file's modification time, if the file system allows that.
    fn set_modified(&self, file: &Self::File, modified: WallTime) -> io::Result<()>;

    /// Renames a file, replacing any other file of the new name.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file, and the directories above it that become empty.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Takes the lock of an owner.
    fn lock(&self, owner: &Owner) -> io::Result<Locked<Self::Lock>>;

    /// Counts a run of the owner that holds this lock: returns a number greater than the last one
    /// and than `seen`, once it is durable.
    ///
    /// # Errors
    /// An I/O error, or the numbers are exhausted.
    fn next_run(&self, lock: &Self::Lock, seen: u32) -> io::Result<u32>;

    /// Owners that have a lock file here, locked or not.
    fn owners(&self) -> io::Result<Vec<Owner>>;

    /// Bytes available on the file system.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// A directory of a real file system.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
    /// Open from the start, because `syncfs` reports only write-back errors since the open.
    directory: File,
    has_modes: OnceLock<bool>,
}

/// The name of a lock file, before and after the owner's name.
const LOCK_PREFIX: &str = ".sekiwake-storer.";
const LOCK_SUFFIX: &str = ".lock";

/// The name of a file whose mode is changed on trial, before the process's id.
const PROBE_PREFIX: &str = ".sekiwake-storer.modes.";

/// The suffix of a compressed file until it is complete.
pub(crate) const TEMPORARY: &str = ".tmp";

impl RealDisk {
    /// Opens this directory, and creates it if it does not exist.
    pub fn open(root: &Path) -> io::Result<RealDisk> {
        let absolute = std::path::absolute(root)?;
        let missing = absolute.ancestors().take_while(|folder| !folder.is_dir()).count();
        fs::DirBuilder::new().recursive(true).mode(0o750).create(root)?;
        for above in absolute.ancestors().skip(1).take(missing) {
            sync_folder(above)?;
        }
        Ok(RealDisk { root: root.to_owned(), directory: File::open(root)?, has_modes: OnceLock::new() })
    }

    /// Whether a mode that is set can be read back.
    fn probe_modes(&self) -> io::Result<bool> {
        let path = self.root.join(format!("{PROBE_PREFIX}{}", std::process::id()));
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(OPEN).open(&path)?;
        let mode = file.set_permissions(Permissions::from_mode(CLOSED)).and_then(|()| file.metadata());
        fs::remove_file(&path)?;
        Ok(mode.is_ok_and(|metadata| metadata.mode() & 0o777 == CLOSED))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

impl Disk for RealDisk {
    type File = File;
    type Lock = File;

    fn list(&self) -> io::Result<Listing> {
        let mut listing = Listing::default();
        let unread = walk(&self.root, &mut |path, entry| {
            if is_temporary(path) {
                listing.leftovers.push(path.to_owned());
                return;
            }
            // Files that have been deleted in the meantime are skipped.
            let (Some(name), Ok(metadata)) = (PartName::parse(path), entry.metadata()) else { return };
            let modified = metadata.modified().ok().and_then(wall_time).unwrap_or_default();
            let is_writable = metadata.mode() & 0o200 != 0;
            listing.files.push(Found { name, bytes: metadata.len(), modified, is_writable });
        })?;
        for Unread { folder, error } in unread {
            warn!(folder, %error, "cannot read a directory of the store, its files are not maintained");
        }
        Ok(listing)
    }

    fn is_in_place(&self) -> io::Result<bool> {
        let opened = self.directory.metadata()?;
        match fs::metadata(&self.root) {
            Ok(found) => Ok((found.dev(), found.ino()) == (opened.dev(), opened.ino())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn create(&self, path: &str) -> io::Result<Created<File>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(OPEN);
        let file = match options.open(self.path(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                if let Some(folder) = self.path(path).parent() {
                    fs::DirBuilder::new().recursive(true).mode(0o750).create(folder)?;
                }
                options.open(self.path(path))?
            }
            file => file?,
        };
        // Regardless of the umask. The file system may refuse it.
        let _ = file.set_permissions(Permissions::from_mode(OPEN));
        // All of them, because an existing one may just have been created by another member, or by
        // an attempt of ours that failed before it was synced.
        let directories =
            path.match_indices('/').map(|(index, _)| path[..index].to_owned()).chain([String::new()]).collect();
        Ok(Created { file, directories })
    }

    fn open(&self, path: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(path))
    }

    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn set_len(&self, file: &File, bytes: u64) -> io::Result<()> {
        file.set_len(bytes)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()?;
        // Drop the pages from the page cache, because nobody is likely to read them soon and they
        // would evict those of other processes.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(syncfs(&self.directory)?)
    }

    fn can_sync_all(&self) -> bool {
        // The kernel passes it on to few FUSE servers, and reports success for the others.
        fstatfs(&self.directory).is_ok_and(|found| found.f_type != FUSE_MAGIC)
    }

    fn named_bytes(&self, file: &File, path: &str) -> io::Result<Option<u64>> {
        let opened = file.metadata()?;
        if opened.nlink() > 0 {
            return Ok(Some(opened.len()));
        }
        // Some file systems do not count links.
        match fs::metadata(self.path(path)) {
            Ok(found) if (found.dev(), found.ino()) == (opened.dev(), opened.ino()) => Ok(Some(found.len())),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn sync_directory(&self, path: &str) -> io::Result<()> {
        sync_folder(&self.path(path))
    }

    fn protect(&self, file: &File) {
        let _ = file.set_permissions(Permissions::from_mode(CLOSED));
    }

    fn has_modes(&self) -> bool {
        // Without a probe, a file that an older release has left open would not be recovered.
        *self.has_modes.get_or_init(|| self.probe_modes().unwrap_or(true))
    }

    fn read(&self, path: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(File::open(self.path(path))?))
    }

    fn writer<'a>(&'a self, file: &'a File) -> Box<dyn Write + 'a> {
        Box::new(file)
    }

    fn set_modified(&self, file: &File, modified: WallTime) -> io::Result<()> {
        match file.set_modified(UNIX_EPOCH + (modified - WallTime::EPOCH)) {
            // The file is kept for longer, which is better than not being compressed at all.
            Err(error) if error.kind() == ErrorKind::PermissionDenied || is_unsupported(&error) => Ok(()),
            set => set,
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match fs::rename(self.path(from), self.path(to)) {
            // Some file systems replace no file.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                fs::remove_file(self.path(to))?;
                fs::rename(self.path(from), self.path(to))
            }
            renamed => renamed,
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path))?;
        let mut folder = parent(path);
        while !folder.is_empty() && fs::remove_dir(self.path(folder)).is_ok() {
            folder = parent(folder);
        }
        Ok(())
    }

    fn lock(&self, owner: &Owner) -> io::Result<Locked<File>> {
        let path = self.root.join(owner.lock_file());
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Locked::Taken(file)),
            Err(TryLockError::WouldBlock) => Ok(Locked::InUse),
            Err(TryLockError::Error(error)) if is_unsupported(&error) => Ok(Locked::Unsupported(file)),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn next_run(&self, lock: &File, seen: u32) -> io::Result<u32> {
        // Of fixed width, because overwriting in place needs no space on a full disk.
        let mut text = [b' '; 11];
        let count = lock.read_at(&mut text, 0)?;
        let last: u32 = std::str::from_utf8(&text[..count]).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let run = last.max(seen).checked_add(1).ok_or_else(|| io::Error::other("run numbers exhausted"))?;
        let counted = lock
            .write_all_at(format!("{run:010}\n").as_bytes(), 0)
            .and_then(|()| lock.sync_all())
            .and_then(|()| self.sync_directory(""));
        // So that attempts use up no numbers.
        counted.inspect_err(|_| drop(lock.write_all_at(format!("{last:010}\n").as_bytes(), 0)))?;
        Ok(run)
    }

    fn owners(&self) -> io::Result<Vec<Owner>> {
        let mut owners = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            owners.extend(Owner::of_lock_file(&name));
        }
        Ok(owners)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = statvfs(&self.root)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// Fsyncs the entries of a folder, if the file system can do that.
fn sync_folder(path: &Path) -> io::Result<()> {
    match File::open(path)?.sync_all() {
        Err(error) if is_unsupported(&error) => Ok(()),
        synced => synced,
    }
}

/// Whether this is how a file system says that it does not have an operation.
fn is_unsupported(error: &io::Error) -> bool {
    const UNSUPPORTED: [Errno; 5] = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP, Errno::NOLCK, Errno::BADF];
    Errno::from_io_error(error).is_some_and(|errno| UNSUPPORTED.contains(&errno))
}

/// Whether the process or the system has no more file descriptors.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| matches!(errno, Errno::MFILE | Errno::NFILE))
}

/// The directory of a path; empty for the store's directory itself.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The hidden name of a file while it is being compressed, in the same directory.
pub(crate) fn temporary(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/.{name}{TEMPORARY}"),
        None => format!(".{path}{TEMPORARY}"),
    }
}

/// Whether a path is one that [`temporary`] produces.
pub(crate) fn is_temporary(path: &str) -> bool {
    named_by_temporary(path).is_some()
}

/// The file that a temporary file becomes once complete.
pub(crate) fn named_by_temporary(path: &str) -> Option<PartName> {
    let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
    let name = name.strip_prefix('.')?.strip_suffix(TEMPORARY)?;
    PartName::parse(&if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") })
}

fn wall_time(time: SystemTime) -> Option<WallTime> {
    time.duration_since(UNIX_EPOCH).ok().map(|since| WallTime::EPOCH + since)
}
