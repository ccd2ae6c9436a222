//! What equal datagrams have in common.

use sekiwake_record::{Record, canonical_octets};
use xxhash_rust::xxh3::xxh3_128_with_seed;

/// A hash of addresses, ports, identification, length and payload. Of 127 bits, so that two
/// different datagrams with one key are not to be expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub(crate) high: u64,
    /// The lowest bit says whether there is an identification.
    pub(crate) low: u64,
}

impl Key {
    pub(crate) fn of(record: &Record<'_>, seed: u64) -> Option<Key> {
        let ip_id = record.origin?.ip_id;
        let payload = xxh3_128_with_seed(record.payload, seed);
        let mut header = [0; 61];
        header[..16].copy_from_slice(&canonical_octets(record.source));
        header[16..32].copy_from_slice(&canonical_octets(record.destination));
        header[32..34].copy_from_slice(&record.source_port.to_be_bytes());
        header[34..36].copy_from_slice(&record.destination_port.to_be_bytes());
        header[36..40].copy_from_slice(&ip_id.unwrap_or_default().to_be_bytes());
        header[40] = u8::from(ip_id.is_some());
        header[41..45].copy_from_slice(&(record.payload.len() as u32).to_be_bytes());
        header[45..].copy_from_slice(&payload.to_be_bytes());
        let hash = xxh3_128_with_seed(&header, seed);
        let is_identified = ip_id.is_some_and(|ip_id| ip_id != 0);
        Some(Key { high: (hash >> 64) as u64, low: hash as u64 & !1 | u64::from(is_identified) })
    }

    /// Whether a device uses the identification for one datagram only, within a while.
    pub(crate) fn is_identified(self) -> bool {
        self.low & 1 == 1
    }
}
