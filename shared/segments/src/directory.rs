//! The directory of a log: its lock, and the names of its segments.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::{
    error::{LogError, cannot},
    format::MAX_SEQUENCE,
};

const EXTENSION: &str = ".segment";

/// A directory, locked as long as this value lives, also against other opens in the same process.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    handle: File,
    lock: File,
}

impl Directory {
    /// Creates the directory if it is missing, and locks it.
    pub(crate) fn open(path: &Path) -> Result<Directory, LogError> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(cannot("create", path))?;
        let lock_path = path.join("lock");
        let mut options = OpenOptions::new();
        let lock = options.write(true).create(true).truncate(false).mode(0o600).open(&lock_path);
        let lock = lock.map_err(cannot("open", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(LogError::Locked(path.to_owned())),
            Err(TryLockError::Error(error)) => return Err(cannot("lock", &lock_path)(error)),
        }
        let handle = File::open(path).map_err(cannot("open", path))?;
        Ok(Directory { path: path.to_owned(), handle, lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The file of the segment whose first entry is `first`. Twenty digits are enough for every
    /// number, so names sort like numbers.
    pub(crate) fn segment(&self, first: u64) -> PathBuf {
        self.path.join(format!("{first:020}{EXTENSION}"))
    }

    /// The first sequence numbers of all segments, ascending. Files with other names are ignored.
    pub(crate) fn segments(&self) -> Result<Vec<u64>, LogError> {
        let mut segments = Vec::new();
        for file in fs::read_dir(&self.path).map_err(cannot("list", &self.path))? {
            let file = file.map_err(cannot("list", &self.path))?;
            segments.extend(file.file_name().to_str().and_then(first_sequence));
        }
        segments.sort_unstable();
        Ok(segments)
    }

    /// Syncs the names of new files to disk.
    pub(crate) fn sync(&self) -> Result<(), LogError> {
        self.handle.sync_all().map_err(cannot("sync", &self.path))
    }
}

impl Drop for Directory {
    /// Closing the file is not enough, because a forked child also has it open until it executes
    /// its program.
    fn drop(&mut self) {
        let _ = self.lock.unlock();
    }
}

fn first_sequence(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(EXTENSION)?;
    let plain = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|&first| plain && first <= MAX_SEQUENCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_in_the_own_format_are_segments() {
        assert_eq!(first_sequence("00000000000000000017.segment"), Some(17));
        for other in ["17.segment", "+0000000000000000017.segment", "00000000000000000017.segment~", "position"] {
            assert_eq!(first_sequence(other), None, "{other}");
        }
        assert_eq!(first_sequence("18446744073709551615.segment"), None);
    }
}
