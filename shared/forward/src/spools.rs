//! The directory of a process's spools. Replicas may be given the same one: each takes a place in it that no other has.

use std::{
    cell::OnceCell,
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use tracing::info;

/// Replicas that can share a directory.
const MAX_PLACES: u32 = 256;

/// A directory for spools: the one that was given, or, where another process has that, its first folder `2`, `3`, ... that nobody has.
/// It is taken when it is first asked for, and held until this is dropped. Whoever comes after a process that is gone takes its place, and what
/// it has left.
#[derive(Debug)]
pub(crate) struct Spools {
    base: PathBuf,
    taken: OnceCell<Place>,
}

#[derive(Debug)]
struct Place {
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
    /// When no directory can be made or locked, or every one is taken.
    pub(crate) fn dir(&self) -> io::Result<&Path> {
        if let Some(place) = self.taken.get() {
            return Ok(&place.dir);
        }
        let place = Place::take_first(&self.base)?;
        Ok(&self.taken.get_or_init(|| place).dir)
    }

    /// The directory, if it was needed so far.
    pub(crate) fn dir_if_taken(&self) -> Option<&Path> {
        self.taken.get().map(|place| &*place.dir)
    }

    /// The directory that was given.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }
}

impl Place {
    fn take_first(base: &Path) -> io::Result<Place> {
        for number in 1..=MAX_PLACES {
            let dir = if number == 1 { base.to_owned() } else { base.join(number.to_string()) };
            if let Some(place) = Place::take(dir).map_err(|error| cannot_use(base, &error))? {
                if number > 1 {
                    info!(directory = %place.dir.display(), "another process has the directory of spools: a folder of it is used");
                }
                return Ok(place);
            }
        }
        Err(cannot_use(base, &io::Error::other("other processes have all places in it")))
    }

    /// `None` where another process has it.
    fn take(dir: PathBuf) -> io::Result<Option<Place>> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(dir.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Place { dir, lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for Place {
    /// Closing the file is not enough while a child that was just forked has it too, until it executes its program.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

fn cannot_use(dir: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot use the directory of spools {}: {error}", dir.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_process_has_a_place_of_its_own_and_the_next_takes_the_first_that_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("spool");
        let spools: Vec<Spools> = (0..3).map(|_| Spools::new(&base)).collect();
        assert_eq!(spools[0].dir_if_taken(), None);
        assert!(!base.exists(), "nothing is made before it is needed");
        let dirs: Vec<&Path> = spools.iter().map(|spools| spools.dir().unwrap()).collect();
        assert_eq!(dirs, [base.clone(), base.join("2"), base.join("3")]);
        assert_eq!(spools[1].dir().unwrap(), base.join("2"));
        let mut spools = spools;
        drop(spools.remove(1));
        assert_eq!(Spools::new(&base).dir().unwrap(), base.join("2"));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Spools::new(&file.join("spool")).dir().unwrap_err().to_string();
        assert!(error.starts_with("cannot use the directory of spools") && error.contains("file/spool"), "{error}");
    }
}
