//! Reads the groups of a file from start to end, with bounded memory.

use std::io::{self, BufRead, Read};

use super::{
    MAX_GROUP_BYTES, MAX_PACKET_BYTES, MAX_SEALED, SEAL,
    seal::{MAX_HEAD_BYTES, SEAL_BYTES, SEAL_START, Seal, VOTING_BYTES, head_key, key_of},
    u32_of,
};

use crate::{
    FileState,
    compress::{is_compressed, read_all},
};

/// How much is read at a time, bytes.
const CHUNK: usize = 256 << 10;

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// An intact group with its seal.
    Group {
        /// Where it begins.
        offset: u64,
        /// All of its blocks.
        bytes: &'a [u8],
    },
    /// Bytes that are in no intact group.
    Damaged {
        /// Where they begin.
        offset: u64,
        /// The bytes: all, or as many as memory is for. More may follow.
        bytes: &'a [u8],
    },
}

/// Reads groups from any reader.
#[derive(Debug)]
pub struct GroupReader<R> {
    reader: R,
    key: Option<u64>,
    buffer: Vec<u8>,
    /// The bytes of the buffer that have been returned.
    done: usize,
    /// The offset of the buffer's first byte.
    base: u64,
    is_end: bool,
    /// The bytes of an intact group that is next, if that is known.
    next: Option<usize>,
}

impl<'a> GroupReader<Box<dyn Read + 'a>> {
    /// The groups of a file, plain or compressed.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn of_file(reader: impl BufRead + 'a) -> io::Result<GroupReader<Box<dyn Read + 'a>>> {
        let mut reader = reader;
        let is_compressed = is_compressed(reader.fill_buf()?);
        GroupReader::new(if is_compressed {
            Box::new(read_all(reader)?) as Box<dyn Read + 'a>
        } else {
            Box::new(reader)
        })
    }
}

impl<R: Read> GroupReader<R> {
    /// The groups of a whole file that was closed. Its key is in it.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn new(reader: R) -> io::Result<GroupReader<R>> {
        GroupReader::in_state(reader, FileState::Closed)
    }

    /// The groups of a whole file. Of one that is open, a part that was not synced may be missing.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn in_state(reader: R, state: FileState) -> io::Result<GroupReader<R>> {
        let mut groups = GroupReader::with_key(reader, None, 0);
        groups.fill(MAX_HEAD_BYTES)?;
        groups.key = head_key(&groups.buffer);
        if groups.key.is_none() {
            groups.fill(VOTING_BYTES)?;
            groups.key = key_of(&groups.buffer, state);
        }
        Ok(groups)
    }

    /// The groups of a part of a file, which begins at this offset. Without a key all is damaged.
    pub(crate) fn with_key(reader: R, key: Option<u64>, offset: u64) -> GroupReader<R> {
        GroupReader { reader, key, buffer: Vec::new(), done: 0, base: offset, is_end: false, next: None }
    }

    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn next_item(&mut self) -> io::Result<Option<Item<'_>>> {
        self.fill(4 * MAX_SEALED)?;
        let rest = &self.buffer[self.done..];
        if rest.is_empty() {
            return Ok(None);
        }
        let offset = self.base + self.done as u64;
        let start = self.done;
        if let Some(length) = self.next.take().or_else(|| group_at_start(rest, self.key)) {
            self.done += length;
            return Ok(Some(Item::Group { offset, bytes: &self.buffer[start..start + length] }));
        }
        let length = match next_group(rest, self.key) {
            Some(found) => {
                self.next = Some(found.length);
                found.start
            }
            None if self.is_end => rest.len(),
            // A group that has begun may end behind what was read.
            None => rest.len() - MAX_SEALED,
        };
        self.done += length;
        Ok(Some(Item::Damaged { offset, bytes: &self.buffer[start..start + length] }))
    }

    /// Reads until this many bytes have not been returned yet, or to the end.
    fn fill(&mut self, wanted: usize) -> io::Result<()> {
        if self.is_end || self.buffer.len() - self.done >= wanted {
            return Ok(());
        }
        self.buffer.drain(..self.done);
        self.base += self.done as u64;
        self.done = 0;
        while self.buffer.len() < wanted {
            let length = self.buffer.len();
            let missing = (wanted - length).max(CHUNK);
            let read = self.reader.by_ref().take(missing as u64).read_to_end(&mut self.buffer)?;
            if read < missing {
                self.is_end = true;
                break;
            }
        }
        Ok(())
    }
}

/// The length of the group that begins here, with its seal, if it is intact: the blocks lead to a
/// right seal.
fn group_at_start(bytes: &[u8], key: Option<u64>) -> Option<usize> {
    let key = key?;
    let mut at = 0;
    while at <= MAX_GROUP_BYTES {
        let length = u32_of(bytes, at + 4)? as usize;
        if u32_of(bytes, at)? == SEAL && length == SEAL_BYTES && bytes[at..].starts_with(&SEAL_START) {
            let seal = Seal::verify(bytes, at, Some(key))?;
            return (seal.covered == at).then_some(at + SEAL_BYTES);
        }
        if !(12..=MAX_PACKET_BYTES).contains(&length) {
            return None;
        }
        at += length;
    }
    None
}

struct FoundGroup {
    start: usize,
    length: usize,
}

/// The first intact group that is anywhere in these bytes.
fn next_group(bytes: &[u8], key: Option<u64>) -> Option<FoundGroup> {
    let key = key?;
    memchr::memmem::find_iter(bytes, &SEAL_START).find_map(|at| {
        let seal = Seal::verify(bytes, at, Some(key))?;
        Some(FoundGroup { start: at - seal.covered, length: seal.covered + SEAL_BYTES })
    })
}
