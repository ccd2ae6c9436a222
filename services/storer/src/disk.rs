//! What the storer does to a file system, so that tests can put one under it that tears writes.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::fs::{Advice, fadvise, statvfs, syncfs};
use sekiwake_record::Name;
use sekiwake_store::{PartName, walk};

/// The mode of a file that is written to, and of one that is closed for good.
const OPEN: u32 = 0o640;
const CLOSED: u32 = 0o440;

/// A stored file, as a listing has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub name: PartName,
    /// Its length, bytes.
    pub bytes: u64,
    /// When something last came into it, nanoseconds since 1970-01-01T00:00:00Z.
    pub modified_ns: u64,
    /// Whether it has been closed for good.
    pub is_closed: bool,
}

/// A directory of stored files. Paths are relative to it, with slashes. Every function may fail at any time, and what it was to do may be
/// done in part.
pub trait Disk {
    /// A file that is open for writing.
    type File;
    /// What is held while a member lives.
    type Lock;

    /// All stored files, in no order, and leftovers of packing.
    ///
    /// # Errors
    /// The directory cannot be read, or has too many files.
    fn list(&self) -> io::Result<(Vec<Found>, Vec<String>)>;

    /// Makes a file that is not there yet, and the directories that it takes. Gives the directories whose entries are new.
    ///
    /// # Errors
    /// It is there, or the disk refuses.
    fn create(&self, path: &str) -> io::Result<(Self::File, BTreeSet<String>)>;

    /// Opens a file that is there.
    ///
    /// # Errors
    /// It is not, or the disk refuses.
    fn open(&self, path: &str) -> io::Result<Self::File>;

    /// Writes all of these bytes at an offset.
    ///
    /// # Errors
    /// A part may have been written.
    fn write_at(&self, file: &Self::File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Cuts a file, or lets it grow with zeros.
    ///
    /// # Errors
    /// The disk refuses.
    fn set_len(&self, file: &Self::File, bytes: u64) -> io::Result<()>;

    /// Waits until the disk has the file's bytes.
    ///
    /// # Errors
    /// It has them not, and nobody knows which of those that were written since the last success. Also when the file has no name any more.
    fn sync(&self, file: &Self::File) -> io::Result<()>;

    /// Waits until the disk has everything that was written anywhere on this file system.
    ///
    /// # Errors
    /// As [`Disk::sync`], of any file.
    fn sync_all(&self) -> io::Result<()>;

    /// Waits until the disk has the entries of a directory.
    ///
    /// # Errors
    /// It may have them or not.
    fn sync_directory(&self, path: &str) -> io::Result<()>;

    /// Marks a file as closed for good.
    ///
    /// # Errors
    /// The disk refuses.
    fn close(&self, file: &Self::File) -> io::Result<()>;

    /// Reads a file from its beginning.
    ///
    /// # Errors
    /// It is not there, or the disk refuses.
    fn read(&self, path: &str) -> io::Result<Box<dyn Read + '_>>;

    /// Writes a file from its beginning that [`Disk::create`] has made.
    fn writer<'a>(&'a self, file: &'a Self::File) -> Box<dyn Write + 'a>;

    /// Says when something last came into a file.
    ///
    /// # Errors
    /// The disk refuses.
    fn set_modified(&self, file: &Self::File, modified_ns: u64) -> io::Result<()>;

    /// Gives a file another name; one that has that name goes.
    ///
    /// # Errors
    /// The disk refuses.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file, and directories that are empty then.
    ///
    /// # Errors
    /// The disk refuses.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// The lock of a member: `None` while somebody else holds it.
    ///
    /// # Errors
    /// The disk refuses.
    fn lock(&self, member: &Name) -> io::Result<Option<Self::Lock>>;

    /// Counts the runs of the member that holds this lock: gives the next number, which the disk has then.
    ///
    /// # Errors
    /// The disk refuses.
    fn next_run(&self, lock: &Self::Lock) -> io::Result<u32>;

    /// Members that have a lock here, held or not.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn members(&self) -> io::Result<Vec<Name>>;

    /// What is left on the file system for us, bytes.
    ///
    /// # Errors
    /// Nobody knows.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// A real one.
#[derive(Debug)]
pub struct RealDisk {
    root: PathBuf,
    /// Open from the start, so that an error of writing is told to [`Disk::sync_all`].
    directory: File,
}

/// What the lock of a member is called.
const LOCK: (&str, &str) = (".sekiwake-storer.", ".lock");

/// How the name of a file ends that is being packed.
pub(crate) const TEMPORARY: &str = ".tmp";

impl RealDisk {
    /// The store in this directory, which is made if it is not there.
    ///
    /// # Errors
    /// It cannot be made or opened.
    pub fn open(root: &Path) -> io::Result<RealDisk> {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(root)?;
        Ok(RealDisk { root: root.to_owned(), directory: File::open(root)? })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

impl Disk for RealDisk {
    type File = File;
    type Lock = File;

    fn list(&self) -> io::Result<(Vec<Found>, Vec<String>)> {
        let (mut found, mut leftovers) = (Vec::new(), Vec::new());
        walk(&self.root, &mut |path, entry| {
            if is_temporary(path) {
                leftovers.push(path.to_owned());
                return;
            }
            // What has gone meanwhile is not there.
            let (Some(name), Ok(metadata)) = (PartName::parse(path), entry.metadata()) else { return };
            let modified_ns = metadata.modified().ok().and_then(since_1970).unwrap_or_default();
            let is_closed = metadata.mode() & 0o200 == 0;
            found.push(Found { name, bytes: metadata.len(), modified_ns, is_closed });
        })?;
        Ok((found, leftovers))
    }

    fn create(&self, path: &str) -> io::Result<(File, BTreeSet<String>)> {
        let mut changed = BTreeSet::new();
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true).mode(OPEN);
        let file = match options.open(self.path(path)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                // Which of them are new is not asked: to sync one more costs little.
                for (index, _) in path.match_indices('/') {
                    let folder = &path[..index];
                    match fs::DirBuilder::new().mode(0o750).create(self.path(folder)) {
                        Ok(()) => changed.insert(parent(folder).to_owned()),
                        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                            changed.insert(parent(folder).to_owned())
                        }
                        Err(error) => return Err(error),
                    };
                }
                options.open(self.path(path))?
            }
            file => file?,
        };
        // The umask has no say: the mode is how we know what is open.
        file.set_permissions(Permissions::from_mode(OPEN))?;
        changed.insert(parent(path).to_owned());
        Ok((file, changed))
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
        // What is on the disk needs no memory: it would fill that of everybody else, and fresh pages cost more than used ones.
        let _ = fadvise(file, 0, None, Advice::DontNeed);
        match file.metadata()?.nlink() {
            0 => Err(io::Error::new(ErrorKind::NotFound, "the file was deleted")),
            _ => Ok(()),
        }
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(syncfs(&self.directory)?)
    }

    fn sync_directory(&self, path: &str) -> io::Result<()> {
        File::open(self.path(path))?.sync_all()
    }

    fn close(&self, file: &File) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(CLOSED))
    }

    fn read(&self, path: &str) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(File::open(self.path(path))?))
    }

    fn writer<'a>(&'a self, file: &'a File) -> Box<dyn Write + 'a> {
        Box::new(file)
    }

    fn set_modified(&self, file: &File, modified_ns: u64) -> io::Result<()> {
        file.set_modified(UNIX_EPOCH + Duration::from_nanos(modified_ns))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.path(path))?;
        let mut folder = parent(path);
        while !folder.is_empty() && fs::remove_dir(self.path(folder)).is_ok() {
            folder = parent(folder);
        }
        Ok(())
    }

    fn lock(&self, member: &Name) -> io::Result<Option<File>> {
        let path = self.root.join(format!("{}{member}{}", LOCK.0, LOCK.1));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o640).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn next_run(&self, lock: &File) -> io::Result<u32> {
        // Digits in a place of one width: it is written over, which takes no room on a full disk.
        let mut text = [b' '; 11];
        let count = lock.read_at(&mut text, 0)?;
        let last: u32 = std::str::from_utf8(&text[..count]).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let run = last.saturating_add(1);
        lock.write_all_at(format!("{run:010}\n").as_bytes(), 0)?;
        lock.sync_all()?;
        self.sync_directory("")?;
        Ok(run)
    }

    fn members(&self) -> io::Result<Vec<Name>> {
        let mut members = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let Ok(name) = entry?.file_name().into_string() else { continue };
            let member = name.strip_prefix(LOCK.0).and_then(|rest| rest.strip_suffix(LOCK.1));
            members.extend(member.and_then(|member| Name::new(member).ok()));
        }
        Ok(members)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let found = statvfs(&self.root)?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// The directory of a path; empty for the store's own.
pub(crate) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// The name under which a file is packed: hidden, beside where it will be.
pub(crate) fn temporary(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((folder, name)) => format!("{folder}/.{name}{TEMPORARY}"),
        None => format!(".{path}{TEMPORARY}"),
    }
}

/// Whether a path is one that [`temporary`] makes.
pub(crate) fn is_temporary(path: &str) -> bool {
    named_by_temporary(path).is_some()
}

/// The file that a temporary one is to become.
pub(crate) fn named_by_temporary(path: &str) -> Option<PartName> {
    let (folder, name) = path.rsplit_once('/').map_or(("", path), |(folder, name)| (folder, name));
    let name = name.strip_prefix('.')?.strip_suffix(TEMPORARY)?;
    PartName::parse(&if folder.is_empty() { name.to_owned() } else { format!("{folder}/{name}") })
}

fn since_1970(time: SystemTime) -> Option<u64> {
    time.duration_since(UNIX_EPOCH).ok().and_then(|since| u64::try_from(since.as_nanos()).ok())
}
