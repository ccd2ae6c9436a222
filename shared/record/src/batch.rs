//! Batches: many records of one topic in one message.

use std::net::IpAddr;

use crate::{DecodeError, Flags, Format, Header, Record, Vlans, header::malformed, record::RECORD_OVERHEAD};

/// A batch is closed when its body would grow over this many bytes. One larger record travels alone.
pub const MAX_BATCH_BYTES: usize = 16 * 1024;

/// The most records that one body may hold: an array16.
pub const MAX_BATCH_RECORDS: usize = u16::MAX as usize;

/// msgpack array16: the marker and room for a 16-bit count, patched when the batch is closed.
const ARRAY16: [u8; 3] = [0xdc, 0, 0];

/// The open body of one batch. Records go in one after the other; nothing is allocated for each.
#[derive(Debug)]
pub struct BatchBuilder {
    body: Vec<u8>,
    count: u32,
    first_captured_at_ns: u64,
    last_captured_at_ns: u64,
}

/// The body of a batch that takes no more records. It has no sequence numbers yet: the stream's one writer gives them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedBatch {
    /// The body frame.
    pub body: Vec<u8>,
    /// How many records it holds.
    pub count: u32,
    /// Capture time of the earliest record, nanoseconds since 1970-01-01T00:00:00Z.
    pub first_captured_at_ns: u64,
    /// Capture time of the latest record, nanoseconds since 1970-01-01T00:00:00Z.
    pub last_captured_at_ns: u64,
}

impl BatchBuilder {
    /// An empty batch that writes into `buffer`, whose contents are discarded and whose capacity is kept.
    pub fn new(mut buffer: Vec<u8>) -> BatchBuilder {
        buffer.clear();
        buffer.extend_from_slice(&ARRAY16);
        BatchBuilder { body: buffer, count: 0, first_captured_at_ns: u64::MAX, last_captured_at_ns: 0 }
    }

    /// Whether `record` can join this batch. An empty batch takes any record.
    pub fn has_room_for(&self, record: &Record<'_>) -> bool {
        self.count == 0
            || (self.body.len() + record.payload.len() + RECORD_OVERHEAD <= MAX_BATCH_BYTES
                && (self.count as usize) < MAX_BATCH_RECORDS)
    }

    /// Appends a record. The caller asks [`BatchBuilder::has_room_for`] first.
    pub fn push(&mut self, record: &Record<'_>) {
        record.write(&mut self.body).expect("a Vec takes whatever is written to it");
        self.count += 1;
        self.first_captured_at_ns = self.first_captured_at_ns.min(record.captured_at_ns);
        self.last_captured_at_ns = self.last_captured_at_ns.max(record.captured_at_ns);
    }

    /// How many records it holds.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Closes the batch, or gives `None` if nothing is in it.
    pub fn close(mut self) -> Option<ClosedBatch> {
        let count = u16::try_from(self.count).ok().filter(|&count| count > 0)?;
        self.body[1..3].copy_from_slice(&count.to_be_bytes());
        Some(ClosedBatch {
            body: self.body,
            count: self.count,
            first_captured_at_ns: self.first_captured_at_ns,
            last_captured_at_ns: self.last_captured_at_ns,
        })
    }
}

/// A received body, checked as a whole before any of its records is used. The records borrow from the body.
#[derive(Debug)]
pub struct Batch<B> {
    body: B,
    entries: Vec<Entry>,
}

/// A record whose payload is a place in the body.
#[derive(Debug)]
struct Entry {
    captured_at_ns: u64,
    source: IpAddr,
    destination: IpAddr,
    source_port: u16,
    destination_port: u16,
    dscp_ttl: u16,
    format: Format,
    flags: Flags,
    payload_start: u32,
    payload_length: u32,
    vlans: Vlans,
}

impl<B> Batch<B> {
    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<B: AsRef<[u8]>> Batch<B> {
    /// Reads and checks a body against its header.
    ///
    /// # Errors
    /// Anything that is not exactly `header.count` well-formed records and nothing after them.
    pub fn decode(header: &Header<'_>, body: B) -> Result<Batch<B>, DecodeError> {
        let bytes = body.as_ref();
        let mut rest = bytes;
        let count = rmp::decode::read_array_len(&mut rest).map_err(|error| malformed("body", &error))?;
        if count != header.count {
            return Err(DecodeError::CountDisagrees { header: header.count, body: count });
        }
        // A record takes more than FIELDS bytes, so a count that lies cannot make this allocation large.
        let mut entries = Vec::with_capacity((count as usize).min(rest.len() / 16));
        for _ in 0..count {
            let record = Record::read(&mut rest).map_err(|error| malformed("body", &error))?;
            let payload_start = (record.payload.as_ptr() as usize).wrapping_sub(bytes.as_ptr() as usize);
            entries.push(Entry {
                captured_at_ns: record.captured_at_ns,
                source: record.source,
                destination: record.destination,
                source_port: record.source_port,
                destination_port: record.destination_port,
                dscp_ttl: record.dscp_ttl,
                format: record.format,
                flags: record.flags,
                payload_start: u32::try_from(payload_start).map_err(|error| malformed("body", &error))?,
                payload_length: record.payload.len() as u32,
                vlans: record.vlans,
            });
        }
        if rest.is_empty() { Ok(Batch { body, entries }) } else { Err(DecodeError::Trailing("body")) }
    }

    /// Leaves out the first `count` records: they have come before.
    pub fn drop_first(&mut self, count: usize) {
        self.entries.drain(..count.min(self.entries.len()));
    }

    /// Bytes of the body.
    pub fn body_len(&self) -> usize {
        self.body.as_ref().len()
    }

    /// The record at `index`, borrowed from the body; `None` past the end.
    pub fn get(&self, index: usize) -> Option<Record<'_>> {
        self.entries.get(index).map(|entry| entry.record(self.body.as_ref()))
    }

    /// The records in the order in which they were captured.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let body = self.body.as_ref();
        self.entries.iter().map(move |entry| entry.record(body))
    }
}

impl Entry {
    fn record<'a>(&self, body: &'a [u8]) -> Record<'a> {
        let start = self.payload_start as usize;
        Record {
            captured_at_ns: self.captured_at_ns,
            source: self.source,
            source_port: self.source_port,
            destination: self.destination,
            destination_port: self.destination_port,
            format: self.format,
            flags: self.flags,
            payload: &body[start..start + self.payload_length as usize],
            vlans: self.vlans.clone(),
            dscp_ttl: self.dscp_ttl,
        }
    }
}
