//! Record batches (magic 2).
//!
//! ```text
//! batch   offset 8 | length 4 | leader epoch 4 | magic 1 | CRC-32C 4 | attributes 2 | last offset 4 |
//!         first time 8 | last time 8 | producer 8 | epoch 2 | first sequence 4 | count 4 | records, compressed
//! record  length | attributes 1 | time | offset | key | value | count of headers | headers
//!         header = name | value; lengths, counts, times and offsets are zigzag varints
//! ```

use std::io::Write;

use flate2::write::GzEncoder;

use super::wire::ProducerId;

/// How batches are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Its number in the attributes of a batch.
    const fn number(self) -> i16 {
        match self {
            Compression::None => 0,
            Compression::Gzip => 1,
            Compression::Zstd => 4,
        }
    }
}

/// Bytes before the records.
const HEAD_BYTES: usize = 61;

/// Bytes before those that the checksum covers, and before those that the length counts.
const UNCHECKED_BYTES: usize = 21;
const UNCOUNTED_BYTES: usize = 12;

/// Level 1 is the quickest one that compresses.
const ZSTD_LEVEL: i32 = 1;

/// The records of a batch.
#[derive(Debug, Default)]
pub(super) struct Records {
    bytes: Vec<u8>,
    count: i32,
    first_ms: i64,
    last_ms: i64,
    scratch: Vec<u8>,
}

/// What a record consists of.
pub(super) struct NewRecord<'a> {
    pub(super) at_ms: i64,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) headers: [(&'static str, &'a [u8]); 3],
}

/// Records that do not change any more.
#[derive(Debug)]
pub(super) struct Packed {
    bytes: Vec<u8>,
    compression: Compression,
    pub(super) count: i32,
    /// Bytes before compression.
    pub(super) uncompressed: usize,
    first_ms: i64,
    last_ms: i64,
}

impl Records {
    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes before compression.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn push(&mut self, record: &NewRecord<'_>) {
        if self.count == 0 {
            self.first_ms = record.at_ms;
            self.last_ms = record.at_ms;
        }
        self.last_ms = self.last_ms.max(record.at_ms);
        let body = &mut self.scratch;
        body.clear();
        body.push(0);
        varint(body, record.at_ms - self.first_ms);
        varint(body, self.count.into());
        bytes(body, record.key);
        bytes(body, record.value);
        varint(body, record.headers.len() as i64);
        for (name, value) in record.headers {
            bytes(body, name.as_bytes());
            bytes(body, value);
        }
        bytes(&mut self.bytes, &self.scratch);
        self.count += 1;
    }

    pub(super) fn pack(self, compression: Compression) -> Packed {
        let Records { bytes, count, first_ms, last_ms, scratch: _ } = self;
        let packed = match compression {
            Compression::None => None,
            Compression::Gzip => {
                // Writing to memory does not fail.
                let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&bytes).and_then(|()| encoder.finish()).ok()
            }
            Compression::Zstd => zstd::bulk::compress(&bytes, ZSTD_LEVEL).ok(),
        };
        let uncompressed = bytes.len();
        match packed {
            Some(bytes) => Packed { bytes, compression, count, uncompressed, first_ms, last_ms },
            None => Packed { bytes, compression: Compression::None, count, uncompressed, first_ms, last_ms },
        }
    }
}

impl Packed {
    pub(super) fn records(&self) -> &[u8] {
        &self.bytes
    }

    /// The head of the batch with these numbers.
    pub(super) fn head(&self, producer: ProducerId, sequence: i32) -> [u8; HEAD_BYTES] {
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(&0_i64.to_be_bytes());
        let length = (HEAD_BYTES - UNCOUNTED_BYTES + self.bytes.len()) as i32;
        head.extend_from_slice(&length.to_be_bytes());
        head.extend_from_slice(&(-1_i32).to_be_bytes());
        head.push(2);
        head.extend_from_slice(&[0; 4]);
        head.extend_from_slice(&self.compression.number().to_be_bytes());
        head.extend_from_slice(&(self.count - 1).to_be_bytes());
        head.extend_from_slice(&self.first_ms.to_be_bytes());
        head.extend_from_slice(&self.last_ms.to_be_bytes());
        head.extend_from_slice(&producer.id.to_be_bytes());
        head.extend_from_slice(&producer.epoch.to_be_bytes());
        head.extend_from_slice(&sequence.to_be_bytes());
        head.extend_from_slice(&self.count.to_be_bytes());
        let checksum = crc32c::crc32c_append(crc32c::crc32c(&head[UNCHECKED_BYTES..]), &self.bytes);
        head[UNCHECKED_BYTES - 4..UNCHECKED_BYTES].copy_from_slice(&checksum.to_be_bytes());
        let mut array = [0; HEAD_BYTES];
        array.copy_from_slice(&head);
        array
    }
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    varint(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = ((value << 1) ^ (value >> 63)) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// The partition of a key, as the Java client's default has it, so that other producers of the same
/// key write to the same one.
pub(super) fn partition_of(key: &[u8], partitions: usize) -> usize {
    (murmur2(key) & 0x7fff_ffff) as usize % partitions.max(1)
}

/// MurmurHash2 with the seed of Kafka.
fn murmur2(key: &[u8]) -> u32 {
    const MULTIPLIER: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut mixed = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(MULTIPLIER);
        mixed ^= mixed >> 24;
        hash = hash.wrapping_mul(MULTIPLIER) ^ mixed.wrapping_mul(MULTIPLIER);
    }
    let rest = words.remainder();
    for (index, &byte) in rest.iter().enumerate() {
        hash ^= u32::from(byte) << (8 * index);
    }
    if !rest.is_empty() {
        hash = hash.wrapping_mul(MULTIPLIER);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(MULTIPLIER);
    hash ^ hash >> 15
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_partitions_of_the_java_client() {
        // From the tests of Apache Kafka's Utils.murmur2.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(key.as_bytes()) as i32, hash, "{key}");
        }
        assert_eq!(partition_of(b"abc", 0), 0);
    }

    #[test]
    fn varints_are_zigzag() {
        let mut out = Vec::new();
        for value in [0, -1, 1, 63, -64, 64, 300] {
            varint(&mut out, value);
        }
        assert_eq!(out, [0, 1, 2, 126, 127, 128, 1, 216, 4]);
        out.clear();
        varint(&mut out, i64::MIN);
        assert_eq!(out.len(), 10);
    }

    #[test]
    fn head_counts_what_follows_and_checks_it() {
        let mut records = Records::default();
        let headers = [("kind", &b"syslog"[..]), ("format", b"rfc3164"), ("captured_at", b"now")];
        for at_ms in [1_000, 999, 2_000] {
            records.push(&NewRecord { at_ms, key: b"198.51.100.1", value: b"<13>hi", headers });
        }
        let packed = records.pack(Compression::None);
        let head = packed.head(ProducerId { id: 7, epoch: 1 }, 9);
        assert_eq!(i32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize, 49 + packed.records().len());
        assert_eq!(&head[27..43], [1_000_i64.to_be_bytes(), 2_000_i64.to_be_bytes()].concat());
        let checked = [&head[21..], packed.records()].concat();
        assert_eq!(&head[17..21], crc32c::crc32c(&checked).to_be_bytes());
        // Another sequence has another checksum.
        assert_ne!(packed.head(ProducerId { id: 7, epoch: 1 }, 10)[17..21], head[17..21]);
    }
}
