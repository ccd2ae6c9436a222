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
use tracing::warn;

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

    /// Whether the directory that was opened is still the one that has its path: not deleted, moved or mounted over.
    ///
    /// # Errors
    /// Nobody knows.
    fn is_in_place(&self) -> io::Result<bool>;

    /// Makes a file that is not there yet, and the directories that it takes. Gives all directories above it: an entry in each may be new,
    /// whoever made it.
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

    /// Waits until the disk has everything that was written anywhere on this file system. Says nothing of files without a name.
    ///
    /// # Errors
    /// As [`Disk::sync`], of any file.
    fn sync_all(&self) -> io::Result<()>;

    /// Sees to it that a file still has a name.
    ///
    /// # Errors
    /// It has none, or nobody knows.
    fn check_named(&self, file: &Self::File) -> io::Result<()>;

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

    /// Counts the runs of the member that holds this lock: gives a number that is higher than the last one and than `seen`, and that the disk
    /// has then.
    ///
    /// # Errors
    /// The disk refuses, or there are no more numbers.
    fn next_run(&self, lock: &Self::Lock, seen: u32) -> io::Result<u32>;

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
        let absolute = std::path::absolute(root)?;
        let missing = absolute.ancestors().take_while(|folder| !folder.is_dir()).count();
        fs::DirBuilder::new().recursive(true).mode(0o750).create(root)?;
        for above in absolute.ancestors().skip(1).take(missing) {
            File::open(above)?.sync_all()?;
        }
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
        let unread = walk(&self.root, &mut |path, entry| {
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
        for (folder, error) in unread {
            warn!(folder, %error, "a folder of the store cannot be read: what is in it is not kept");
        }
        Ok((found, leftovers))
    }

    fn is_in_place(&self) -> io::Result<bool> {
        let opened = self.directory.metadata()?;
        match fs::metadata(&self.root) {
            Ok(found) => Ok((found.dev(), found.ino()) == (opened.dev(), opened.ino())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn create(&self, path: &str) -> io::Result<(File, BTreeSet<String>)> {
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
        // The umask has no say: the mode is how we know what is open.
        file.set_permissions(Permissions::from_mode(OPEN))?;
        // All of them: one that is there may have been made a moment ago by another member, or by a try of ours that failed then.
        Ok((file, path.match_indices('/').map(|(index, _)| path[..index].to_owned()).chain([String::new()]).collect()))
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
        self.check_named(file)
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(syncfs(&self.directory)?)
    }

    fn check_named(&self, file: &File) -> io::Result<()> {
        match file.metadata()?.nlink() {
            0 => Err(io::Error::new(ErrorKind::NotFound, "the file was deleted")),
            _ => Ok(()),
        }
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

    fn next_run(&self, lock: &File, seen: u32) -> io::Result<u32> {
        // Digits in a place of one width: it is written over, which takes no room on a full disk.
        let mut text = [b' '; 11];
        let count = lock.read_at(&mut text, 0)?;
        let last: u32 = std::str::from_utf8(&text[..count]).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let run = last.max(seen).checked_add(1).ok_or_else(|| io::Error::other("the numbers of runs are used up"))?;
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
