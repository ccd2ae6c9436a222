//! A window on a segment, which is read in large pieces and parsed into entries.

use std::{io, ops::Range};

use crate::format::{HEADER_BYTES, Parsed, parse_entry};

/// The bytes read at once, unless an entry is larger.
const PIECE_BYTES: usize = 128 << 10;

/// An offset in a segment, and the bytes that have been read from there.
#[derive(Debug)]
pub(crate) struct Window {
    buffer: Vec<u8>,
    /// The part of the buffer that is not parsed yet.
    unread: Range<usize>,
    /// The offset of the unread bytes in the file.
    offset: u64,
}

/// The next step in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// An entry, with the range for [`Window::payload`].
    Entry(Range<usize>),
    /// The end.
    End,
    /// Bytes that are not the expected entry.
    Bad,
}

impl Window {
    /// A window at the start of a segment.
    pub(crate) fn new() -> Window {
        Window { buffer: Vec::new(), unread: 0..0, offset: HEADER_BYTES as u64 }
    }

    /// The offset of the next entry.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Moves to `offset`, possibly in another segment.
    pub(crate) fn jump(&mut self, offset: u64) {
        self.offset = offset;
        self.unread = 0..0;
        // Release the memory of a large entry.
        self.buffer.truncate(PIECE_BYTES);
        self.buffer.shrink_to(PIECE_BYTES);
    }

    /// The payload of the last entry of [`Window::step`].
    pub(crate) fn payload(&self, range: Range<usize>) -> &[u8] {
        &self.buffer[range]
    }

    /// Steps over the entry `sequence`. The segment has `length` bytes; `read_at` reads at an
    /// offset in it.
    pub(crate) fn step(
        &mut self,
        sequence: u64,
        length: u64,
        mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    ) -> io::Result<Step> {
        let available = length.saturating_sub(self.offset);
        if available == 0 {
            return Ok(Step::End);
        }
        loop {
            let needed = match parse_entry(&self.buffer[self.unread.clone()], sequence) {
                Parsed::Bad => return Ok(Step::Bad),
                Parsed::Short(needed) => needed,
                Parsed::Whole(payload) => {
                    let start = self.unread.start;
                    self.unread.start += payload.end;
                    self.offset += payload.end as u64;
                    return Ok(Step::Entry(start + payload.start..start + payload.end));
                }
            };
            if needed as u64 > available {
                return Ok(Step::Bad);
            }
            self.make_room(needed);
            let end = self.unread.end;
            let unread = self.unread.len() as u64;
            let wanted = usize::try_from(available - unread).unwrap_or(usize::MAX).min(self.buffer.len() - end);
            match read_at(&mut self.buffer[end..end + wanted], self.offset + unread) {
                Ok(0) => return Ok(Step::Bad),
                Ok(read) => self.unread.end += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Moves the unread bytes to the front of a buffer of at least `needed` bytes.
    fn make_room(&mut self, needed: usize) {
        self.buffer.copy_within(self.unread.clone(), 0);
        self.unread = 0..self.unread.len();
        let size = needed.max(PIECE_BYTES);
        if self.buffer.len() < size {
            self.buffer.resize(size, 0);
        }
    }
}
