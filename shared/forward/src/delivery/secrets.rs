//! Files with secrets: HTTP headers, passwords.

use std::{io, os::unix::fs::MetadataExt, path::Path};

use sekiwake_runtime::FileContents;

/// A larger file is not one of secrets.
const MAX_BYTES: u64 = 1 << 20;

/// Permission bits of others.
const OTHERS: u32 = 0o007;

/// Reads a file that others may not read.
///
/// # Errors
/// It cannot be read, everybody may read it, or it is not text.
pub(crate) fn read(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let contents = FileContents::read(path, MAX_BYTES).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("{shown}: no such file"),
        _ => format!("{shown}: {error}"),
    })?;
    let mode = contents.metadata.mode();
    if mode & OTHERS != 0 {
        return Err(format!(
            "{shown} has mode {:04o}, expected no permissions for others, such as 0640",
            mode & 0o7777
        ));
    }
    contents.into_text().map_err(|error| format!("{shown}: {error}"))
}
