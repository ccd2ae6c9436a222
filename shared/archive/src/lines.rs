//! Reads the messages of one file, in file order.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read},
    path::Path,
};

use crate::{LineFormat, MAX_LINE_BYTES, Message, compress};

/// Reads stored lines from any reader, plain or compressed, with bounded memory.
pub struct Lines<'a> {
    reader: Box<dyn BufRead + 'a>,
    line: Vec<u8>,
    number: u64,
}

impl<'a> Lines<'a> {
    /// The lines of a file. Compression is detected from its first bytes, the format in each line,
    /// so that a damaged line costs no other one.
    pub fn open(path: &Path) -> io::Result<Lines<'static>> {
        Lines::read(File::open(path)?)
    }

    /// The lines of a reader.
    pub fn read(reader: impl Read + 'a) -> io::Result<Lines<'a>> {
        let mut reader = BufReader::with_capacity(1 << 18, reader);
        let is_compressed = compress::is_compressed(reader.fill_buf()?);
        let reader: Box<dyn BufRead + 'a> = match is_compressed {
            true => Box::new(BufReader::with_capacity(1 << 18, compress::read_all(reader)?)),
            false => Box::new(reader),
        };
        Ok(Lines { reader, line: Vec::new(), number: 0 })
    }

    /// The next line, with its number from 1 and the message in it, or `None` for an invalid line.
    /// `None` at the end.
    pub fn next_line(&mut self) -> io::Result<Option<(u64, Option<Message<'_>>)>> {
        self.line.clear();
        if take_line(&mut self.reader, &mut self.line)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        let format = if line.first() == Some(&b'{') { LineFormat::Json } else { LineFormat::Text };
        Ok(Some((self.number, Message::parse(format, line))))
    }
}

/// Reads up to a line feed, and returns the bytes read. Keeps one byte more than the longest valid
/// line has.
pub(crate) fn take_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<u64> {
    let limit = MAX_LINE_BYTES as u64 + 1;
    let taken = Read::take(&mut *reader, limit).read_until(b'\n', line)? as u64;
    if taken < limit || line.ends_with(b"\n") {
        return Ok(taken);
    }
    Ok(taken + reader.skip_until(b'\n')? as u64)
}
