//! The directory of a process's spools. Replicas may share one: each uses a part of its own.

use std::{
    cell::OnceCell,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tracing::info;

/// Maximum number of replicas that can share a directory.
const MAX_PROCESSES: u32 = 256;

/// A directory for spools: the configured one or, if another process has locked that, its first
/// free folder `2`, `3`, ... It is locked when it is first needed, until this is dropped. A later
/// process takes over the folder of one that has ended, with its contents.
#[derive(Debug)]
pub(crate) struct Spools {
    base: PathBuf,
    taken: OnceCell<SpoolDir>,
}

#[derive(Debug)]
struct SpoolDir {
    dir: PathBuf,
    lock: File,
}

impl Spools {
    pub(crate) fn new(base: &Path) -> Spools {
        Spools { base: base.to_owned(), taken: OnceCell::new() }
    }

    /// The directory.
    ///
    /// # Errors
    /// When no directory can be created or locked, or all are taken.
    pub(crate) fn dir(&self) -> io::Result<&Path> {
        if let Some(spool_dir) = self.taken.get() {
            return Ok(&spool_dir.dir);
        }
        let spool_dir = SpoolDir::take_first(&self.base)?;
        Ok(&self.taken.get_or_init(|| spool_dir).dir)
    }

    /// The directory, if it has been needed.
    pub(crate) fn dir_if_taken(&self) -> Option<&Path> {
        self.taken.get().map(|spool_dir| &*spool_dir.dir)
    }

    /// The configured directory.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }
}

impl SpoolDir {
    fn take_first(base: &Path) -> io::Result<SpoolDir> {
        for number in 1..=MAX_PROCESSES {
            let dir = if number == 1 { base.to_owned() } else { base.join(number.to_string()) };
            if let Some(spool_dir) = SpoolDir::take(dir).map_err(|error| cannot_use(base, &error))? {
                if number > 1 {
                    info!(directory = %spool_dir.dir.display(), "spool directory in use by another process, using a folder of it");
                }
                return Ok(spool_dir);
            }
        }
        Err(cannot_use(base, &io::Error::other("all its folders are in use by other processes")))
    }

    /// `None` if another process has locked it.
    fn take(dir: PathBuf) -> io::Result<Option<SpoolDir>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(SpoolDir { dir, lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for SpoolDir {
    /// Closing the file is not enough, because a child that was just forked has it open until it
    /// executes its program.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

fn cannot_use(dir: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot use the spool directory {}: {error}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_process_takes_the_first_free_folder() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("spool");
        let spools: Vec<Spools> = (0..3).map(|_| Spools::new(&base)).collect();
        assert_eq!(spools[0].dir_if_taken(), None);
        assert!(!base.exists(), "nothing is created before it is needed");
        let dirs: Vec<&Path> = spools.iter().map(|spools| spools.dir().unwrap()).collect();
        assert_eq!(dirs, [base.clone(), base.join("2"), base.join("3")]);
        assert_eq!(spools[1].dir().unwrap(), base.join("2"));
        let mut spools = spools;
        drop(spools.remove(1));
        assert_eq!(Spools::new(&base).dir().unwrap(), base.join("2"));
    }

    #[test]
    fn unusable_directory_is_an_error_with_its_path() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Spools::new(&file.join("spool")).dir().unwrap_err().to_string();
        assert!(error.starts_with("cannot use the spool directory") && error.contains("file/spool"), "{error}");
    }
}
