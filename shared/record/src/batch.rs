//! Batches: the records of one topic that travel as one message.
//!
//! ```text
//! body    array16 of records, at most 65,535; as a rule at most 16 KiB
//! record  see [`Record`], 10 or 12 elements
//! ```

use std::net::IpAddr;

use crate::{DecodeError, Flags, Format, Origin, Record, Vlans, header::malformed, record::RECORD_OVERHEAD};

/// A batch is closed before its body exceeds this size, bytes. A larger record travels alone.
pub const MAX_BATCH_BYTES: usize = 16 * 1024;

/// The most records per body: the maximum of an array16.
pub const MAX_BATCH_RECORDS: usize = u16::MAX as usize;

/// msgpack array16: the marker and a 16-bit count, which is filled in when the batch is closed.
const ARRAY16: [u8; 3] = [0xdc, 0, 0];

/// The open body of one batch. Records are appended without an allocation per record.
#[derive(Debug)]
pub struct BatchBuilder {
    body: Vec<u8>,
    count: u32,
    first_captured_at_ns: u64,
    last_captured_at_ns: u64,
}

/// The body of a complete batch. It has no sequence numbers yet: the publisher thread, the only
/// writer of the stream, assigns them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedBatch {
    /// The body frame.
    pub body: Vec<u8>,
    /// The number of records.
    pub count: u32,
    /// Capture time of the earliest record, nanoseconds since 1970-01-01T00:00:00Z.
    pub first_captured_at_ns: u64,
    /// Capture time of the latest record, nanoseconds since 1970-01-01T00:00:00Z.
    pub last_captured_at_ns: u64,
}

impl BatchBuilder {
    /// An empty batch that reuses the capacity of `buffer`; its contents are discarded.
    pub fn new(mut buffer: Vec<u8>) -> BatchBuilder {
        buffer.clear();
        buffer.extend_from_slice(&ARRAY16);
        BatchBuilder { body: buffer, count: 0, first_captured_at_ns: u64::MAX, last_captured_at_ns: 0 }
    }

    /// Whether `record` fits in this batch. An empty batch has room for any record.
    pub fn has_room_for(&self, record: &Record<'_>) -> bool {
        self.count == 0
            || (self.body.len() + record.payload.len() + RECORD_OVERHEAD <= MAX_BATCH_BYTES
                && (self.count as usize) < MAX_BATCH_RECORDS)
    }

    /// Appends a record. The caller checks [`BatchBuilder::has_room_for`] first.
    pub fn push(&mut self, record: &Record<'_>) {
        record.write(&mut self.body).expect("writing to a Vec cannot fail");
        self.count += 1;
        self.first_captured_at_ns = self.first_captured_at_ns.min(record.captured_at_ns);
        self.last_captured_at_ns = self.last_captured_at_ns.max(record.captured_at_ns);
    }

    /// The number of records.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Closes the batch. `None` if it is empty.
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

    /// Closes the batch and makes it readable in this process, without a stream and a header.
    /// `None` if it is empty.
    pub fn into_batch<B: AsRef<[u8]> + From<Vec<u8>>>(self) -> Option<Batch<B>> {
        let closed = self.close()?;
        Batch::decode(B::from(closed.body), closed.count).ok()
    }
}

/// A received body. All of it is checked before any record is used; the records borrow from it.
#[derive(Debug)]
pub struct Batch<B> {
    body: B,
    entries: Vec<Entry>,
}

/// A record whose payload is a position in the body.
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
    origin: Option<Origin>,
    /// Its place in the body.
    offset: u16,
}

/// The memory that an entry counts for, bytes.
const ENTRY_BYTES: usize = 96;
const _: () = assert!(size_of::<Entry>() <= ENTRY_BYTES);

impl<B> Batch<B> {
    /// The number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it has no records.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

impl<B: AsRef<[u8]>> Batch<B> {
    /// Decodes a body. `count` is the number of records according to its header.
    ///
    /// # Errors
    /// When the body is not exactly `count` well-formed records.
    pub fn decode(body: B, count: u32) -> Result<Batch<B>, DecodeError> {
        let bytes = body.as_ref();
        let mut rest = bytes;
        let body_count = rmp::decode::read_array_len(&mut rest).map_err(|error| malformed("body", &error))?;
        if body_count != count {
            return Err(DecodeError::CountDisagrees { header: count, body: body_count });
        }
        // A record takes more than 16 bytes, so the allocation is bounded by the length of the body
        // even if the count is wrong.
        let mut entries = Vec::with_capacity((count as usize).min(rest.len() / 16));
        for offset in 0..count {
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
                origin: record.origin,
                offset: u16::try_from(offset).map_err(|error| malformed("body", &error))?,
            });
        }
        if rest.is_empty() { Ok(Batch { body, entries }) } else { Err(DecodeError::Trailing("body")) }
    }

    /// Removes the first `count` records, which are duplicates.
    pub fn drop_first(&mut self, count: usize) {
        self.entries.drain(..count.min(self.entries.len()));
    }

    /// How many sequence numbers the record at `index` comes after the first one that is left; 0
    /// past the end. More than `index`, if records between them were removed.
    pub fn offset(&self, index: usize) -> u64 {
        match (self.entries.first(), self.entries.get(index)) {
            (Some(first), Some(entry)) => u64::from(entry.offset - first.offset),
            _ => 0,
        }
    }

    /// Removes the records for which `keep` returns `false`. Returns how many sequence numbers the
    /// first record that is left comes after the one that was the first.
    pub fn retain(&mut self, mut keep: impl FnMut(&Record<'_>) -> bool) -> u64 {
        let body = self.body.as_ref();
        let before = self.entries.first().map(|first| first.offset);
        self.entries.retain(|entry| keep(&entry.record(body)));
        let after = self.entries.first().map(|first| first.offset);
        before.zip(after).map_or(0, |(before, after)| u64::from(after - before))
    }

    /// The length of the body, bytes.
    pub fn body_len(&self) -> usize {
        self.body.as_ref().len()
    }

    /// Bytes of memory that the batch takes: its body, and the decoded entries of its records.
    pub fn memory_bytes(&self) -> usize {
        self.body_len() + self.len() * ENTRY_BYTES
    }

    /// The record at `index`, borrowed from the body; `None` past the end.
    pub fn get(&self, index: usize) -> Option<Record<'_>> {
        self.entries.get(index).map(|entry| entry.record(self.body.as_ref()))
    }

    /// The records in order of capture.
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
            origin: self.origin,
        }
    }
}
