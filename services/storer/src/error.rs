//! Errors of the file system below the store's directory.

use std::io;

use sekiwake_record::Name;

/// Why something cannot be stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An operation on a file or directory failed.
    #[error("cannot {what} {path}")]
    Disk {
        /// The operation.
        what: &'static str,
        /// The path below the store's directory.
        path: String,
        /// The cause.
        source: io::Error,
    },
    /// The directory has been moved, deleted or mounted over. A new writer must be opened.
    #[error("the store directory has been replaced by another one")]
    Replaced,
    /// Another storer of this name is running.
    #[error("another storer named {0} writes to this directory, expected a unique SEKIWAKE_MEMBER for each")]
    NameInUse(Name),
    /// The file system has no locks, so that it is unknown whether a member still runs.
    #[error(
        "cannot tell whether the storer {0} still runs, because the file system has no locks (flock), \
         so that its files are neither compressed nor deleted"
    )]
    NoLocks(Name),
}

impl StoreError {
    /// The error and its cause, in one line.
    pub fn with_cause(&self) -> String {
        match self {
            StoreError::Disk { source, .. } => format!("{self}: {source}"),
            StoreError::Replaced | StoreError::NameInUse(_) | StoreError::NoLocks(_) => self.to_string(),
        }
    }
}

pub(crate) fn cannot(what: &'static str, path: &str) -> impl FnOnce(io::Error) -> StoreError {
    let path = if path.is_empty() { "the directory".to_owned() } else { path.to_owned() };
    move |source| StoreError::Disk { what, path, source }
}
