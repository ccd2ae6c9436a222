//! What can go wrong.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a log could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The settings contradict themselves.
    #[error("{0}")]
    Settings(String),
    /// Another log has this directory.
    #[error("{} is in use by another process, or by another log of this one", .0.display())]
    Locked(PathBuf),
    /// Written by another version of Sekiwake. The file is left as it is.
    #[error("{} has format version {version}, this program knows version {known}", path.display())]
    UnknownVersion {
        /// The file.
        path: PathBuf,
        /// What it says its version is.
        version: u32,
        /// What is understood here.
        known: u32,
    },
    /// The entry is larger than an entry, or a segment, may be.
    #[error("an entry of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// The longest that is taken.
        limit: usize,
    },
    /// A commit of entries that do not exist yet.
    #[error("cannot commit up to {sequence}: the next entry is {next}")]
    BeyondEnd {
        /// What was to be committed.
        sequence: u64,
        /// The sequence number of the next entry.
        next: u64,
    },
    /// The operating system refused; `StorageFull` when the disk is full.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// With which file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl LogError {
    /// Whether the disk, or the quota on it, is full: room may come, and the same call then succeeds.
    #[must_use]
    pub fn is_storage_full(&self) -> bool {
        matches!(self, LogError::Io { source, .. }
            if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }
}

/// Turns an error of the system into one that says what was attempted.
pub(crate) fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    let path = path.to_owned();
    move |source| LogError::Io { action, path, source }
}

/// Whether what was to be read is gone for good: a bad sector, or a file that somebody deleted.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}
