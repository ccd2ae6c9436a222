//! The messages of one file, in the order in which they stand there.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use crate::{LineFormat, MAX_LINE_BYTES, Message, pack};

/// zstd's magic number, as it stands in a file (RFC 8878 §3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Reads stored lines from wherever they come, plain or compressed, with bounded memory.
pub struct Lines<'a> {
    reader: Box<dyn BufRead + 'a>,
    format: LineFormat,
    line: Vec<u8>,
    number: u64,
}

impl<'a> Lines<'a> {
    /// The lines of a file. Compression and format are told from its first bytes.
    ///
    /// # Errors
    /// It cannot be opened or read.
    pub fn open(path: &Path) -> io::Result<Lines<'static>> {
        Lines::read(File::open(path)?)
    }

    /// The same of what is read.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(reader: impl Read + 'a) -> io::Result<Lines<'a>> {
        let mut reader = BufReader::with_capacity(1 << 18, reader);
        let is_packed = reader.fill_buf()?.starts_with(&ZSTD_MAGIC);
        let mut reader: Box<dyn BufRead + 'a> = match is_packed {
            true => Box::new(BufReader::with_capacity(1 << 18, pack::read_all(reader)?)),
            false => Box::new(reader),
        };
        let format = match reader.fill_buf()?.first() {
            Some(b'{') => LineFormat::Json,
            _ => LineFormat::Text,
        };
        Ok(Lines { reader, format, line: Vec::new(), number: 0 })
    }

    /// The next line with its number from 1, and the message in it; `None` in the place of a message where it is none. `None` at the end.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn next_line(&mut self) -> io::Result<Option<(u64, Option<Message<'_>>)>> {
        self.line.clear();
        let limit = MAX_LINE_BYTES as u64 + 1;
        let mut taken = Read::take(&mut self.reader, limit).read_until(b'\n', &mut self.line)?;
        if taken == 0 {
            return Ok(None);
        }
        self.number += 1;
        let is_whole = self.line.last() == Some(&b'\n');
        // The rest of what is too long is passed over, a piece at a time.
        let mut rest = Vec::new();
        while !is_whole && taken as u64 == limit {
            rest.clear();
            taken = Read::take(&mut self.reader, limit).read_until(b'\n', &mut rest)?;
            if rest.last() == Some(&b'\n') {
                break;
            }
        }
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        Ok(Some((self.number, Message::parse(self.format, line))))
    }
}
