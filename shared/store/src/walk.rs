//! Finding files below a directory.

use std::{
    fs::{self, DirEntry},
    io::{self, ErrorKind},
    path::Path,
};

use crate::is_path;

/// How deep below the directory files are looked for: deeper than any template goes.
const MAX_DEPTH: usize = 64;

/// Folders that cannot be read, of which no more are told.
const MAX_FAILED: usize = 100;

/// The most files that are looked at.
pub const MAX_FILES: usize = 1_000_000;

/// A folder that could not be read, and why.
pub type Unread = (String, io::Error);

/// Shows `each` every file below `root` that may be a stored one, in no order, with its path below `root`, and gives the folders that could
/// not be read. Links are not followed; names that no template makes, and what has gone meanwhile, are passed over: of a file system's own folders
/// (`lost+found`) nobody need be able to read.
///
/// # Errors
/// `root` cannot be read, or there are more than [`MAX_FILES`] files.
pub fn walk(root: &Path, each: &mut dyn FnMut(&str, &DirEntry)) -> io::Result<Vec<Unread>> {
    let mut folders = vec![(String::new(), 0)];
    let (mut files, mut failed) = (0, Vec::new());
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(root.join(&folder)) {
            Err(error) if depth == 0 => return Err(error),
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => {
                if failed.len() < MAX_FAILED {
                    failed.push((folder, error));
                }
                continue;
            }
            Ok(entries) => entries,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            let is_named_so = is_path(&name);
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if kind.is_dir() && is_named_so && depth < MAX_DEPTH {
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
