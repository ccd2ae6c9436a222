//! A cursor in a log.

use crate::window::Window;

/// An entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its sequence number.
    pub sequence: u64,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// A cursor in one open log, for [`Log::read`](crate::Log::read), with a buffer of 128 KiB, or of
/// one entry if that is larger. It keeps no file open, so that deletions free disk space.
#[derive(Debug)]
pub struct Reader {
    /// The sequence number of the next entry to return.
    pub(crate) next: u64,
    /// The segment that the window is on, by its first sequence number.
    pub(crate) segment: Option<u64>,
    /// The sequence number of the entry at the window's offset. Below `next` until the wanted entry
    /// is reached.
    pub(crate) at: u64,
    pub(crate) window: Window,
    pub(crate) missed: u64,
    pub(crate) corrupt: u64,
}

impl Reader {
    /// A reader that starts at the entry `sequence`, or at the oldest entry if that one was
    /// deleted.
    pub fn new(sequence: u64) -> Reader {
        Reader { next: sequence, segment: None, at: sequence, window: Window::new(), missed: 0, corrupt: 0 }
    }

    /// The sequence number of the next entry.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// The uncommitted entries that were deleted before this reader reached them, since the last
    /// call.
    pub fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// The entries that this reader skipped because they were damaged or missing, since the last
    /// call.
    pub fn take_corrupt(&mut self) -> u64 {
        std::mem::take(&mut self.corrupt)
    }
}
