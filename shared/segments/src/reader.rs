//! A place in a log, from which entries are read in order.

use crate::window::Window;

/// An entry, as it was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its sequence number.
    pub sequence: u64,
    /// What was appended.
    pub payload: &'a [u8],
}

/// A cursor in one open log, for [`Log::read`](crate::Log::read), with a buffer of 128 KiB, or of one entry where that is larger. It keeps
/// no file open, so it holds up no deletion.
#[derive(Debug)]
pub struct Reader {
    /// What is to be given next.
    pub(crate) next: u64,
    /// The segment that the window is on, by its first sequence number.
    pub(crate) segment: Option<u64>,
    /// The sequence number of the entry at the window's offset. Below `next` until the wanted one is found.
    pub(crate) at: u64,
    pub(crate) window: Window,
    pub(crate) gone: u64,
    pub(crate) corrupt: u64,
}

impl Reader {
    /// A reader that begins with the entry `sequence`, or with the oldest there is if that one is gone.
    #[must_use]
    pub fn new(sequence: u64) -> Reader {
        Reader { next: sequence, segment: None, at: sequence, window: Window::new(), gone: 0, corrupt: 0 }
    }

    /// The sequence number from which it reads on.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Entries that this reader wanted, that were not committed, and whose segments were gone when it came to them; since
    /// the last call.
    pub fn take_gone(&mut self) -> u64 {
        std::mem::take(&mut self.gone)
    }

    /// Entries that this reader passed over because they, or others before them in the segment, were damaged or missing;
    /// since the last call.
    pub fn take_corrupt(&mut self) -> u64 {
        std::mem::take(&mut self.corrupt)
    }
}
