//! Finds files below a directory.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, DirEntry},
    io::{self, ErrorKind},
    path::Path,
    time::SystemTime,
};

use crate::is_path;

/// How many levels below the directory are searched: more than any template has.
const MAX_DEPTH: usize = 64;

/// The most unreadable folders that are reported.
const MAX_FAILED: usize = 100;

/// The most files below a directory.
pub const MAX_FILES: usize = 1_000_000;

/// How often a folder is read again that has changed in the meantime.
const MAX_READS: usize = 8;

/// A folder that could not be read.
#[derive(Debug)]
pub struct Unread {
    /// Its path below the directory.
    pub folder: String,
    /// Why.
    pub error: io::Error,
}

/// Calls `each` for every file below `root` that may be a stored one, in no order, with its path
/// below `root`, and returns the folders that could not be read. Does not follow links. Skips files
/// that have been deleted in the meantime, and names that no template produces: the file system's
/// own folders (`lost+found`) need not be readable.
///
/// # Errors
/// `root` cannot be read, or there are more than [`MAX_FILES`] files.
pub fn walk(root: &Path, each: &mut dyn FnMut(&str, &DirEntry)) -> io::Result<Vec<Unread>> {
    let mut folders = vec![(String::new(), 0)];
    let mut files = 0;
    let mut failed = Vec::new();
    while let Some((folder, depth)) = folders.pop() {
        let entries = match read_folder(&root.join(&folder)) {
            Err(error) if depth == 0 => return Err(error),
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                if failed.len() < MAX_FAILED {
                    failed.push(Unread { folder, error });
                }
                continue;
            }
            Ok(entries) => entries,
        };
        for entry in entries.into_values() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            let is_valid_name = is_path(&name);
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if kind.is_dir() && is_valid_name && depth < MAX_DEPTH {
                folders.push((path, depth + 1));
            } else if kind.is_file() {
                files += 1;
                if files > MAX_FILES {
                    return Err(io::Error::other(format!("more than {MAX_FILES} files below {}", root.display())));
                }
                each(&path, &entry);
            }
        }
    }
    Ok(failed)
}

/// The entries of a folder. A file that is renamed while a folder is read may be missed under both
/// names, so that a folder that has changed is read again.
fn read_folder(folder: &Path) -> io::Result<BTreeMap<OsString, DirEntry>> {
    let modified = || -> io::Result<Option<SystemTime>> { Ok(fs::metadata(folder)?.modified().ok()) };
    let mut entries = BTreeMap::new();
    for _ in 0..MAX_READS {
        let before = modified()?;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            entries.insert(entry.file_name(), entry);
            if entries.len() > MAX_FILES {
                return Ok(entries);
            }
        }
        if modified()? == before {
            break;
        }
    }
    Ok(entries)
}
