//! The valid entries of a segment, up to the first invalid byte.

use std::io;

use crate::{
    format::HEADER_BYTES,
    window::{Step, Window},
};

/// The result of a scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The number of valid entries.
    pub entries: u64,
    /// The offset of their end in the segment.
    pub good_bytes: u64,
}

/// Scans the bytes of a segment whose first entry is `first`, and passes each valid entry to
/// `visit`. The header is ignored.
pub fn scan(segment: &[u8], first: u64, visit: impl FnMut(u64, &[u8])) -> Scan {
    let read_at = |buffer: &mut [u8], offset: u64| {
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(segment.len());
        let read = buffer.len().min(segment.len() - from);
        buffer[..read].copy_from_slice(&segment[from..from + read]);
        Ok(read)
    };
    // Reading from memory cannot fail.
    scan_with(first, segment.len() as u64, read_at, visit).unwrap_or(Scan { entries: 0, good_bytes: 0 })
}

/// The same through `read_at`, for a segment of `length` bytes.
pub(crate) fn scan_with(
    first: u64,
    length: u64,
    mut read_at: impl FnMut(&mut [u8], u64) -> io::Result<usize>,
    mut visit: impl FnMut(u64, &[u8]),
) -> io::Result<Scan> {
    let mut window = Window::new();
    let mut entries = 0;
    while let Step::Entry(payload) = window.step(first.wrapping_add(entries), length, &mut read_at)? {
        visit(first.wrapping_add(entries), window.payload(payload));
        entries += 1;
    }
    Ok(Scan { entries, good_bytes: window.offset().min(length.max(HEADER_BYTES as u64)) })
}
