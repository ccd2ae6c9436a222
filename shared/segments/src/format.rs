//! The format of segments on disk. Numbers are little endian.
//!
//! ```text
//! segment   header 32 | entry | entry | …
//! header    magic 8 "SKWSEGM\n" | format version 4 | zero 4 | sequence number of the first entry 8 | checksum 8
//! entry     length of the payload 4 | checksum 8 | payload
//! ```
//!
//! The checksum of the header is the XXH3-64 of the 24 bytes before it. That of an entry is the
//! XXH3-64 of its payload, seeded with its sequence number: an old entry that reappears in another
//! position after a crash is invalid, and so is a run of zeros. A damaged length gives another
//! payload, and so another checksum. XXH3 is used rather than CRC-32C because it is a dependency
//! already, and because with 64 bits a scan never accepts a damaged length.
//!
//! Every version of the format has magic and version in these positions. The sequence number in the
//! header is also in the file name, so a damaged header costs no entries.

use std::ops::Range;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The longest payload of an entry. The size of a segment may limit it further.
pub const MAX_ENTRY_BYTES: usize = 16 << 20;

/// The version of the format that is written and read.
pub(crate) const VERSION: u32 = 1;

/// Length of a segment's header.
pub(crate) const HEADER_BYTES: usize = 32;

/// The overhead of an entry.
pub(crate) const ENTRY_OVERHEAD: usize = 12;

/// The highest sequence number on disk, from which counting cannot overflow.
pub(crate) const MAX_SEQUENCE: u64 = u64::MAX >> 2;

const MAGIC: [u8; 8] = *b"SKWSEGM\n";

/// The state of a segment's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// Valid.
    Good,
    /// Not completely written: too short, or zeros.
    Torn,
    /// Something else.
    Damaged,
    /// A header of an unsupported version.
    UnknownVersion(u32),
}

/// The result of parsing an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// A complete entry, with the range of its payload.
    Whole(Range<usize>),
    /// Incomplete: this many bytes are needed in total.
    Short(usize),
    /// Not an entry.
    Bad,
}

/// The header of the segment whose first entry is `first`.
pub(crate) fn header(first: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&first.to_le_bytes());
    let checksum = xxh3_64(&header[..24]);
    header[24..].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// Checks the first bytes of the segment whose first entry is `first`.
pub(crate) fn check_header(bytes: &[u8], first: u64) -> Header {
    let bytes = &bytes[..bytes.len().min(HEADER_BYTES)];
    if let (Some(magic), Some(version)) = (bytes.get(..8), bytes.get(8..).and_then(<[u8]>::first_chunk)) {
        let version = u32::from_le_bytes(*version);
        // The checksum is ignored, because another version may have another one.
        if magic == MAGIC && version != VERSION && version != 0 {
            return Header::UnknownVersion(version);
        }
    }
    if *bytes == header(first) {
        Header::Good
    } else if bytes.len() < HEADER_BYTES || bytes.iter().all(|&byte| byte == 0) {
        Header::Torn
    } else {
        Header::Damaged
    }
}

/// Appends the entry `sequence` to `out`. The payload has at most [`MAX_ENTRY_BYTES`].
pub(crate) fn push_entry(out: &mut Vec<u8>, sequence: u64, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&xxh3_64_with_seed(payload, sequence).to_le_bytes());
    out.extend_from_slice(payload);
}

/// Parses the entry `sequence` at the start of `bytes`.
pub(crate) fn parse_entry(bytes: &[u8], sequence: u64) -> Parsed {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Parsed::Short(ENTRY_OVERHEAD) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_ENTRY_BYTES {
        return Parsed::Bad;
    }
    let whole = ENTRY_OVERHEAD + length;
    let Some((checksum, rest)) = rest.split_first_chunk() else { return Parsed::Short(whole) };
    let Some(payload) = rest.get(..length) else { return Parsed::Short(whole) };
    if xxh3_64_with_seed(payload, sequence) == u64::from_le_bytes(*checksum) {
        Parsed::Whole(ENTRY_OVERHEAD..whole)
    } else {
        Parsed::Bad
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn format_on_disk_is_unchanged() {
        let mut segment = header(0x0102).to_vec();
        push_entry(&mut segment, 0x0102, b"<13>a");
        let hex: String = segment.iter().map(|byte| format!("{byte:02x}")).collect();
        let header = "534b575345474d0a010000000000000002010000000000006c5d0f41fb766a8d";
        assert_eq!(hex, format!("{header}05000000f219db92b564781d3c31333e61"));
    }

    #[test]
    fn any_flipped_bit_in_an_entry_is_detected() {
        let mut entry = Vec::new();
        push_entry(&mut entry, 7, b"<13>Oct 11 22:14:15 router1 link down");
        assert_eq!(parse_entry(&entry, 7), Parsed::Whole(ENTRY_OVERHEAD..entry.len()));
        assert_eq!(parse_entry(&entry, 8), Parsed::Bad);
        for bit in 0..entry.len() * 8 {
            entry[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(parse_entry(&entry, 7), Parsed::Whole(_)), "bit {bit}");
            entry[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn zeros_are_not_an_entry() {
        for sequence in (0..10_000).chain([MAX_SEQUENCE]) {
            assert_eq!(parse_entry(&[0; 64], sequence), Parsed::Bad);
        }
    }

    #[test]
    fn any_flipped_bit_in_a_header_is_detected() {
        for bit in 0..HEADER_BYTES * 8 {
            let mut bytes = header(9);
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(check_header(&bytes, 9), Header::Good, "bit {bit}");
        }
        assert_eq!(check_header(&header(9), 9), Header::Good);
        assert_eq!(check_header(&header(9), 8), Header::Damaged);
        assert_eq!(check_header(&header(9)[..31], 9), Header::Torn);
        assert_eq!(check_header(&[0; 40], 9), Header::Torn);
    }

    #[test]
    fn another_version_is_recognised_by_its_first_bytes() {
        let mut bytes = header(9);
        bytes[8] = 2;
        assert_eq!(check_header(&bytes, 9), Header::UnknownVersion(2));
        assert_eq!(check_header(&bytes[..12], 9), Header::UnknownVersion(2));
    }
}
