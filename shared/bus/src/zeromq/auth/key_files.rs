//! Key files: read at startup; the list of allowed keys is read again when it changes.

use std::{
    collections::HashMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use sekiwake_runtime::FileContents;

use super::keys::{KeyError, KeyPair, PublicKey, parse_allowed_keys};

/// The largest file to read, bytes: some ten thousand allowed keys with names.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A problem with a key file.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It does not exist, or permission is denied.
    #[error("cannot be read")]
    Unreadable(#[source] io::Error),
    /// It exists already, or its directory does not.
    #[error("cannot create {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// It is not a valid key file.
    #[error(transparent)]
    Content(#[from] KeyError),
    /// Other users may access the secret key.
    #[error("accessible by others (mode {mode:04o}): expected at most 0600, or 0640 if root owns it")]
    NotSecret {
        /// The last four octal digits of the mode.
        mode: u32,
    },
}

impl KeyFileError {
    /// The message with its source, on one line.
    pub(crate) fn with_source(&self) -> String {
        let source = std::error::Error::source(self);
        source.map_or_else(|| self.to_string(), |source| format!("{self}: {source}"))
    }
}

/// The public keys of the clients that may connect, and their file.
#[derive(Clone, Debug)]
pub struct AllowedKeys {
    path: PathBuf,
    keys: HashMap<PublicKey, String>,
    /// The version of the file that was last checked.
    checked: Option<Stamp>,
}

/// What has changed in a list of allowed keys. Keys are named as in the list; those without a name
/// are shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyChanges {
    /// Keys that are allowed now, and were not.
    pub added: Vec<String>,
    /// Keys that were allowed, and are not now.
    pub removed: Vec<String>,
}

impl KeyChanges {
    fn between(old: &HashMap<PublicKey, String>, new: &HashMap<PublicKey, String>) -> KeyChanges {
        let only_in = |one: &HashMap<PublicKey, String>, other: &HashMap<PublicKey, String>| {
            let keys = one.iter().filter(|(key, _)| !other.contains_key(key));
            let mut names: Vec<String> =
                keys.map(|(key, name)| if name.is_empty() { key.to_string() } else { name.clone() }).collect();
            names.sort();
            names
        };
        KeyChanges { added: only_in(new, old), removed: only_in(old, new) }
    }
}

/// Identifies a version of a file. A file that replaces another (as Kubernetes does) has a new
/// inode; a change of its permissions sets a new change time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Stamp {
        Stamp {
            inode: (metadata.dev(), metadata.ino()),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

impl AllowedKeys {
    /// Reads the list.
    ///
    /// # Errors
    /// A file that cannot be read, contains anything but keys, or no keys.
    pub fn read(path: &Path) -> Result<AllowedKeys, KeyFileError> {
        let (text, metadata) = read(path)?;
        Ok(AllowedKeys { path: path.to_owned(), keys: parse_allowed_keys(&text)?, checked: Some(Stamp::of(&metadata)) })
    }

    /// The name of this key in the list, if the key is allowed.
    pub fn name_of(&self, key: &PublicKey) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is allowed.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the list again if the file has changed, and returns what has changed in it.
    ///
    /// # Errors
    /// As [`AllowedKeys::read`], once per change of the file; the old list stays in use.
    pub fn refresh(&mut self) -> Result<Option<KeyChanges>, KeyFileError> {
        let now = fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        if now == self.checked {
            return Ok(None);
        }
        self.checked = now;
        let (text, metadata) = read(&self.path)?;
        self.checked = Some(Stamp::of(&metadata));
        let keys = parse_allowed_keys(&text)?;
        let changes = KeyChanges::between(&self.keys, &keys);
        self.keys = keys;
        Ok(Some(changes))
    }
}

/// Reads a secret key file.
///
/// # Errors
/// A file that cannot be read, that is accessible by others, or that is not a secret key file.
pub fn read_key_pair(path: &Path) -> Result<KeyPair, KeyFileError> {
    let (text, metadata) = read(path)?;
    let pair = KeyPair::parse_file(&text)?;
    let mode = metadata.mode() & 0o7777;
    if is_secret(mode, metadata.uid(), geteuid().as_raw()) { Ok(pair) } else { Err(KeyFileError::NotSecret { mode }) }
}

/// Whether a file of this mode and owner is private, as far as a process of this user can tell. The
/// group may read a file of root, unless the process is root itself: this is how Kubernetes passes
/// a Secret to a process that is not root, with mode 0440 and the pod's group (fsGroup).
fn is_secret(mode: u32, owner: u32, user: u32) -> bool {
    let forbidden = if owner == 0 && user != 0 { 0o037 } else { 0o077 };
    mode & forbidden == 0
}

/// Reads a file with one public key.
///
/// # Errors
/// A file that cannot be read or is not a public key file.
pub fn read_public_key(path: &Path) -> Result<PublicKey, KeyFileError> {
    Ok(PublicKey::parse_file(&read(path)?.0)?)
}

/// Writes the pair to `path`, readable by its owner only, and to `path`.pub the line for a list of
/// allowed keys: the public key, and the file's name as the client's name. Returns this line.
///
/// # Errors
/// One of the files exists or cannot be written; neither is left behind then.
pub fn write_key_pair(path: &Path, pair: &KeyPair) -> Result<String, KeyFileError> {
    let mut public_path = path.as_os_str().to_owned();
    public_path.push(".pub");
    let public_path = PathBuf::from(public_path);
    let line = format!("{} {}", pair.public(), name_of(path));
    create(path, 0o600, &pair.file_text())?;
    if let Err(error) = create(&public_path, 0o644, &format!("{line}\n")) {
        // The pair is not in use yet.
        let _ = fs::remove_file(path);
        return Err(error);
    }
    Ok(line)
}

/// The file's name without its last extension, as one word.
fn name_of(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    stem.replace(|c: char| c.is_whitespace() || c.is_control(), "-")
}

fn create(path: &Path, mode: u32, text: &str) -> Result<(), KeyFileError> {
    let failed = |source| KeyFileError::Create { path: path.to_owned(), source };
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(failed)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    written.map_err(|source| {
        let _ = fs::remove_file(path);
        failed(source)
    })
}

/// The text of a file, and its metadata when it was read.
fn read(path: &Path) -> Result<(String, fs::Metadata), KeyFileError> {
    let contents = || {
        let contents = FileContents::read(path, MAX_FILE_BYTES)?;
        let metadata = contents.metadata.clone();
        Ok((contents.into_text()?, metadata))
    };
    contents().map_err(KeyFileError::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::is_secret;

    #[test]
    fn only_files_of_root_may_be_readable_by_a_group() {
        for (owner, user) in [(1000, 1000), (0, 0), (1000, 0), (1000, 1001)] {
            assert!(is_secret(0o400, owner, user) && is_secret(0o600, owner, user));
            for mode in [0o440, 0o640, 0o604, 0o444, 0o620] {
                assert!(!is_secret(mode, owner, user), "{mode:o} of {owner} for {user}");
            }
        }
        assert!([0o400, 0o440, 0o600, 0o640].iter().all(|mode| is_secret(*mode, 0, 65532)));
        assert!(![0o444, 0o441, 0o460, 0o450, 0o644, 0o660].iter().any(|mode| is_secret(*mode, 0, 65532)));
    }
}
