//! Reading big-endian numbers out of a slice that may be too short.

#[inline]
pub(super) fn u8_at(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

#[inline]
pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u16::from_be_bytes(*chunk))
}

#[inline]
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..)?.first_chunk().map(|chunk| u32::from_be_bytes(*chunk))
}

/// What comes after the first `count` bytes.
#[inline]
pub(super) fn skip(bytes: &[u8], count: usize) -> Option<&[u8]> {
    bytes.get(count..)
}
