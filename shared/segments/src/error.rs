//! The errors of a log.

use std::{
    io,
    path::{Path, PathBuf},
};

/// An error of a log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// Contradictory settings.
    #[error("{0}")]
    Settings(String),
    /// The directory is locked by another log.
    #[error("{} is in use by another log, in this process or another", .0.display())]
    Locked(PathBuf),
    /// A file of another version of Sekiwake, which is not changed.
    #[error("{} has format version {version}, expected version {known}", path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
        /// The supported version.
        known: u32,
    },
    /// The entry exceeds the limit of an entry or of a segment.
    #[error("an entry of {bytes} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A commit beyond the last entry.
    #[error("cannot commit up to {sequence}: the next entry is {next}")]
    BeyondEnd {
        /// The sequence number to be committed.
        sequence: u64,
        /// The sequence number of the next entry.
        next: u64,
    },
    /// An error of the operating system; `StorageFull` when the disk is full.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// The attempted operation.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl LogError {
    /// Whether the disk or its quota is full: the same call succeeds when there is room again.
    pub fn is_storage_full(&self) -> bool {
        matches!(self, LogError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Adds the attempted operation to an error of the system.
pub(crate) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io { action, path, source }
}

/// Whether the data is lost permanently: a bad sector, or a deleted file.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
