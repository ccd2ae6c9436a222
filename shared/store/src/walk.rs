//! Finding files below a directory.

use std::{
    fs::{self, DirEntry},
    io::{self, ErrorKind},
    path::Path,
};

/// How deep below the directory files are looked for: deeper than any template goes.
const MAX_DEPTH: usize = 64;

/// The most files that are looked at.
pub const MAX_FILES: usize = 1_000_000;

/// Shows `each` every file below `root`, in no order, with its path below `root`. Links are not followed; names that are no UTF-8 and what
/// has gone meanwhile are passed over.
///
/// # Errors
/// `root` cannot be read, or there are more than [`MAX_FILES`] files.
pub fn walk(root: &Path, each: &mut dyn FnMut(&str, &DirEntry)) -> io::Result<()> {
    let mut folders = vec![(String::new(), 0)];
    let mut files = 0;
    while let Some((folder, depth)) = folders.pop() {
        let entries = match fs::read_dir(root.join(&folder)) {
            Err(error) if error.kind() == ErrorKind::NotFound && depth > 0 => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() && depth < MAX_DEPTH {
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
    Ok(())
}
