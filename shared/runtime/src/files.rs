//! Small files: lists, keys, certificates, state.

use std::{
    fs::{self, Metadata, OpenOptions},
    io::{self, ErrorKind, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;
use sekiwake_settings::without_byte_order_mark;

/// A file as it was read.
#[derive(Debug)]
pub struct FileContents {
    /// All of it.
    pub bytes: Vec<u8>,
    /// As of the time when it was read.
    pub metadata: Metadata,
}

impl FileContents {
    /// Reads a regular file of at most `max_bytes`, which are whole mebibytes.
    ///
    /// # Errors
    /// A file that cannot be read, is larger, or is not a regular file: a pipe may block, and a
    /// device may have no end.
    pub fn read(path: &Path, max_bytes: u64) -> io::Result<FileContents> {
        let not_regular = || io::Error::new(ErrorKind::InvalidInput, "not a regular file");
        // Before it is opened, because opening a device may have an effect.
        if !fs::metadata(path)?.is_file() {
            return Err(not_regular());
        }
        // Opening a pipe would block until it has a writer.
        let file = OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(not_regular());
        }
        let mut bytes = Vec::new();
        if file.take(max_bytes + 1).read_to_end(&mut bytes)? as u64 > max_bytes {
            return Err(io::Error::new(ErrorKind::FileTooLarge, format!("larger than {} MiB", max_bytes >> 20)));
        }
        Ok(FileContents { bytes, metadata })
    }

    /// Its text, without a byte order mark.
    ///
    /// # Errors
    /// It is not UTF-8.
    pub fn into_text(self) -> io::Result<String> {
        let invalid = |_| io::Error::new(ErrorKind::InvalidData, "not valid UTF-8");
        let text = String::from_utf8(self.bytes).map_err(invalid)?;
        Ok(without_byte_order_mark(&text).to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_an_end_or_a_writer_are_rejected() {
        let folder = std::env::temp_dir().join(format!("sekiwake-files-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let pipe = folder.join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR).unwrap();
        for path in [&pipe, &folder, Path::new("/dev/zero")] {
            assert_eq!(FileContents::read(path, 1 << 20).unwrap_err().to_string(), "not a regular file");
        }
        let file = folder.join("file");
        fs::write(&file, vec![b'x'; (1 << 20) + 1]).unwrap();
        assert_eq!(FileContents::read(&file, 2 << 20).unwrap().into_text().unwrap().len(), (1 << 20) + 1);
        assert_eq!(FileContents::read(&file, 1 << 20).unwrap_err().to_string(), "larger than 1 MiB");
        fs::write(&file, [0xff]).unwrap();
        assert_eq!(FileContents::read(&file, 1 << 20).unwrap().into_text().unwrap_err().to_string(), "not valid UTF-8");
        fs::remove_dir_all(&folder).unwrap();
    }
}
