//! Reads big-endian numbers from slices that may be too short: `None` if the number does not fit.

/// The 16 bits at `offset`, in bytes.
#[inline]
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_be_bytes(*chunk))
}

/// The 32 bits at `offset`, in bytes.
#[inline]
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_be_bytes(*chunk))
}
