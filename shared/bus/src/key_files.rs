//! Files with keys: read at the start, the list of allowed keys read again when it changes.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::process::geteuid;

use crate::keys::{KeyError, KeyPair, PublicKey, parse_allowed_keys};

/// The largest file that is read, bytes: some ten thousand allowed keys with names.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What is wrong with a file of keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It does not exist, or may not be read.
    #[error("it cannot be read")]
    Unreadable(#[source] io::Error),
    /// It exists already, or its folder does not.
    #[error("cannot create {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It holds something else.
    #[error(transparent)]
    Content(#[from] KeyError),
    /// A secret that is none.
    #[error(
        "others may read or write it (mode {mode:04o}): a file of one's own is to be 0600, one of root's 0640 at most"
    )]
    NotSecret {
        /// The mode's last four octal digits.
        mode: u32,
    },
}

impl KeyFileError {
    /// With the source, in one line.
    pub(crate) fn told(&self) -> String {
        let source = std::error::Error::source(self);
        source.map_or_else(|| self.to_string(), |source| format!("{self}: {source}"))
    }
}

/// The public keys of those who may connect, and the file that they come from.
#[derive(Clone, Debug)]
pub struct AllowedKeys {
    path: PathBuf,
    keys: HashMap<PublicKey, String>,
    /// The file as it was when it was last looked at.
    seen: Option<Stamp>,
}

/// What tells one version of a file from another. A file that is put in place of another (as Kubernetes does it) has another
/// inode; one that may be read at last has another change time.
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
    /// A file that cannot be read, or holds anything but keys, or none.
    pub fn read(path: &Path) -> Result<AllowedKeys, KeyFileError> {
        let (text, metadata) = read(path)?;
        Ok(AllowedKeys { path: path.to_owned(), keys: parse_allowed_keys(&text)?, seen: Some(Stamp::of(&metadata)) })
    }

    /// The name that the list gives to this key, if it may connect.
    pub fn name_of(&self, key: &PublicKey) -> Option<&str> {
        self.keys.get(key).map(String::as_str)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nobody may connect.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Where it comes from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the list again if the file has changed, and says whether it had.
    ///
    /// # Errors
    /// As [`AllowedKeys::read`], once for each change of the file; the old list stays.
    pub fn refresh(&mut self) -> Result<bool, KeyFileError> {
        let now = fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        if now == self.seen {
            return Ok(false);
        }
        self.seen = now;
        let (text, metadata) = read(&self.path)?;
        self.seen = Some(Stamp::of(&metadata));
        self.keys = parse_allowed_keys(&text)?;
        Ok(true)
    }
}

/// Reads a secret key file.
///
/// # Errors
/// A file that cannot be read, that others can read, or that holds something else.
pub fn read_key_pair(path: &Path) -> Result<KeyPair, KeyFileError> {
    let (text, metadata) = read(path)?;
    let pair = KeyPair::parse_file(&text)?;
    let mode = metadata.mode() & 0o7777;
    if is_secret(mode, metadata.uid(), geteuid().as_raw()) { Ok(pair) } else { Err(KeyFileError::NotSecret { mode }) }
}

/// Whether a file of this mode and owner is kept from others by what a process of this user can see. A group may read what belongs to
/// root, unless the process is root: so Kubernetes hands a Secret to a process that is not, mode 0440 with the pod's own group (fsGroup).
fn is_secret(mode: u32, owner: u32, user: u32) -> bool {
    let not_for = if owner == 0 && user != 0 { 0o037 } else { 0o077 };
    mode & not_for == 0
}

/// Reads a file with one public key.
///
/// # Errors
/// A file that cannot be read or holds something else.
pub fn read_public_key(path: &Path) -> Result<PublicKey, KeyFileError> {
    Ok(PublicKey::parse_file(&read(path)?.0)?)
}

/// Writes `path` with the pair, which its owner alone can read, and `path`.pub with the line for a list of allowed keys: the
/// public key, and the name of the file as the name of the client. Gives this line.
///
/// # Errors
/// One of the files exists or cannot be written: then neither is left behind.
pub fn write_key_pair(path: &Path, pair: &KeyPair) -> Result<String, KeyFileError> {
    let mut public_path = path.as_os_str().to_owned();
    public_path.push(".pub");
    let public_path = PathBuf::from(public_path);
    let line = format!("{} {}", pair.public(), name_of(path));
    create(path, 0o600, &pair.file_text())?;
    if let Err(error) = create(&public_path, 0o644, &format!("{line}\n")) {
        // It was made a moment ago, and nobody knows it yet.
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

/// The text of a file, and what the file was when it was read.
fn read(path: &Path) -> Result<(String, fs::Metadata), KeyFileError> {
    let contents = || {
        // To open a pipe would wait for whoever writes to it.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.len() > MAX_FILE_BYTES {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 1 MiB"));
        }
        let mut text = String::new();
        file.take(MAX_FILE_BYTES).read_to_string(&mut text)?;
        Ok((text, metadata))
    };
    contents().map_err(KeyFileError::Unreadable)
}

#[cfg(test)]
mod tests {
    use super::is_secret;

    #[test]
    fn a_group_may_read_what_belongs_to_root_and_nothing_else() {
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
