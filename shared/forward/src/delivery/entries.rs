//! What is delivered: datagrams with what was decoded from them, in memory and in the spool.
//!
//! ```text
//! entry in the spool = version 2 (1) | length of the record 4, little endian | record, as on the bus | rows
//!                    | version 3 (1) | length of the record 4 | length of the id 2 | record | id | rows
//! rows               = JSON, one line per row; none unless value=decoded
//! id                 = `<publisher>.<epoch>.<topic>.<sequence>`, where the other side recognises it
//! ```
//! What is decoded is decoded before it is spooled, because the templates may have changed when it
//! is sent.

use std::ops::Range;

use sekiwake_decode::{Decoder, Undecoded};
use sekiwake_json::write_decoded;
use sekiwake_record::{Kind, Record};

/// The versions of entries that have metadata. Version 1 is that of stream destinations.
const VERSION: u8 = 2;
const VERSION_WITH_ID: u8 = 3;
const HEAD_BYTES: usize = 1 + 4;
const ID_HEAD_BYTES: usize = 2;

/// What an entry costs in a request and in memory in addition to its payload, roughly.
const OVERHEAD_BYTES: usize = 256;

/// Rows of a datagram beyond this many bytes are left out, and the last row says so. A row alone
/// has at most about 400 KiB, so that an entry fits a segment of the spool.
const MAX_ROW_BYTES: usize = 1 << 20;

/// Datagrams in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries {
    bytes: Vec<u8>,
    items: Vec<Item>,
}

/// One datagram: its record, whose payload is a range of the bytes, and the ranges of id and rows.
#[derive(Clone, Debug)]
struct Item {
    record: Record<'static>,
    payload: Range<usize>,
    id: Range<usize>,
    rows: Range<usize>,
    sequence: u64,
}

/// A borrowed datagram.
#[derive(Clone, Debug)]
pub(crate) struct Entry<'a> {
    pub(crate) record: Record<'a>,
    /// The id of the record, or nothing.
    pub(crate) id: &'a str,
    rows: &'a [u8],
    /// Its number in the spool, 0 if it was not read from there.
    pub(crate) sequence: u64,
}

impl Entry<'_> {
    /// The rows that were decoded, as JSON.
    pub(crate) fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.rows.split(|&byte| byte == b'\n').filter(|row| !row.is_empty())
    }

    /// Appends the form that the spool keeps.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        let has_id = !self.id.is_empty();
        out.push(if has_id { VERSION_WITH_ID } else { VERSION });
        out.extend_from_slice(&[0; 4]);
        if has_id {
            out.extend_from_slice(&(self.id.len() as u16).to_le_bytes());
        }
        let record_at = out.len();
        self.record.encode(out);
        let length = (out.len() - record_at) as u32;
        out[start + 1..start + HEAD_BYTES].copy_from_slice(&length.to_le_bytes());
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(self.rows);
    }
}

impl Entries {
    /// Adds a datagram. With a decoder, also what it decodes. An `id` is at most 64 KiB.
    pub(crate) fn push(&mut self, kind: Kind, record: &Record<'_>, id: &str, decoder: Option<&mut Decoder>) {
        let payload = self.append(record.payload);
        let id = self.append(id.as_bytes());
        let start = self.bytes.len();
        if let Some(decoder) = decoder {
            let bytes = &mut self.bytes;
            let mut number = 0;
            let mut left_out = 0;
            decoder.decode(Some(kind), record, |row| {
                if bytes.len() - start < MAX_ROW_BYTES {
                    // Writing to memory does not fail.
                    let _ = write_decoded(bytes, Some(kind), record, number, row);
                    number += 1;
                } else {
                    left_out += 1;
                }
            });
            if left_out > 0 {
                let reason = format!("{left_out} more rows left out, because the others have {MAX_ROW_BYTES} bytes");
                let (format, reason) = (record.format, reason.into());
                let row = Undecoded { format, reason, domain: None, template: None, offset: 0, bytes: &[] };
                let _ = write_decoded(bytes, Some(kind), record, number, &row);
            }
        }
        let rows = start..self.bytes.len();
        self.items.push(Item { record: without_payload(record), payload, id, rows, sequence: 0 });
    }

    /// Adds an entry of the spool. `false`: it is of another version, or malformed.
    pub(crate) fn push_spooled(&mut self, entry: &[u8], sequence: u64) -> bool {
        let Some((head, rest)) = entry.split_first_chunk::<HEAD_BYTES>() else { return false };
        let [version, length @ ..] = head;
        let (id_length, rest) = match *version {
            VERSION => (0, rest),
            VERSION_WITH_ID => match rest.split_first_chunk::<ID_HEAD_BYTES>() {
                Some((length, rest)) => (u16::from_le_bytes(*length), rest),
                None => return false,
            },
            _ => return false,
        };
        let Some((record, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize) else { return false };
        let Some((id, rows)) = rest.split_at_checked(id_length.into()) else { return false };
        let (Ok(record), Ok(_)) = (Record::decode(record), std::str::from_utf8(id)) else { return false };
        let payload = self.append(record.payload);
        let id = self.append(id);
        let rows = self.append(rows);
        self.items.push(Item { record: without_payload(&record), payload, id, rows, sequence });
        true
    }

    /// The number of datagrams.
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// What they count for in the size of a request, and in memory.
    pub(crate) fn weight(&self) -> usize {
        self.bytes.len() + self.items.len() * OVERHEAD_BYTES
    }

    /// What one of them counts for.
    pub(crate) fn weight_of(&self, index: usize) -> usize {
        self.items.get(index).map_or(0, |item| item.payload.len() + item.id.len() + item.rows.len() + OVERHEAD_BYTES)
    }

    pub(crate) fn get(&self, index: usize) -> Option<Entry<'_>> {
        self.items.get(index).map(|item| self.entry(item))
    }

    pub(crate) fn range(&self, range: Range<usize>) -> impl Iterator<Item = Entry<'_>> {
        self.items.get(range).unwrap_or_default().iter().map(|item| self.entry(item))
    }

    fn entry<'a>(&'a self, item: &Item) -> Entry<'a> {
        let record = Record { payload: &self.bytes[item.payload.clone()], ..item.record.clone() };
        // What was checked when it was added.
        let id = std::str::from_utf8(&self.bytes[item.id.clone()]).unwrap_or_default();
        Entry { record, id, rows: &self.bytes[item.rows.clone()], sequence: item.sequence }
    }

    fn append(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }
}

fn without_payload(record: &Record<'_>) -> Record<'static> {
    Record {
        captured_at_ns: record.captured_at_ns,
        source: record.source,
        source_port: record.source_port,
        destination: record.destination,
        destination_port: record.destination_port,
        format: record.format,
        flags: record.flags,
        payload: &[],
        vlans: record.vlans.clone(),
        dscp_ttl: record.dscp_ttl,
        origin: record.origin,
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_testkit::fixtures::record;

    use super::*;

    #[test]
    fn spooled_entry_is_read_as_it_was_written() {
        let mut entries = Entries::default();
        let mut decoder = Decoder::new();
        let samples = [(&b"<13>hi"[..], "", true), (b"\xff\x00\n", "tap.7.syslog/05.9", true), (b"", "", false)];
        for (payload, id, is_decoded) in samples {
            entries.push(Kind::Syslog, &record(payload), id, is_decoded.then_some(&mut decoder));
        }
        let mut reread = Entries::default();
        for entry in entries.range(0..3) {
            let mut spooled = Vec::new();
            entry.encode(&mut spooled);
            assert!(reread.push_spooled(&spooled, 7));
            assert!(!reread.push_spooled(&spooled[..spooled.len().min(20)], 7), "it is truncated");
            spooled[0] = 1;
            assert!(!reread.push_spooled(&spooled, 7), "it is of a stream destination");
        }
        assert_eq!(reread.len(), 3);
        for (index, entry) in entries.range(0..3).enumerate() {
            let other = reread.get(index).unwrap();
            assert_eq!((&entry.record, entry.rows, other.sequence), (&other.record, other.rows, 7));
            assert_eq!(entry.id, other.id);
        }
        assert_eq!(entries.range(0..3).map(|entry| entry.rows().count()).collect::<Vec<_>>(), [1, 1, 0]);
    }
}
