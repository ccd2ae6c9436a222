//! Datagrams with templates, as the exporter would send them right before a datagram of data.

use sekiwake_record::bytes::u32_at;

use crate::{
    header::{IPFIX_HEADER, NETFLOW9_HEADER, Version},
    template::{SET_HEADER, SetKind},
};

/// The longest payload of a UDP datagram over IPv4, bytes.
const MAX_PAYLOAD: usize = 65_507;

/// Packs records into datagrams of at most `max_bytes`, unless one record is longer.
pub(crate) struct Packer<'a> {
    version: Version,
    /// The datagram that follows them.
    follower: &'a [u8],
    max_bytes: usize,
    out: &'a mut Vec<Vec<u8>>,
    first: usize,
    open: Option<OpenSet>,
    /// Records in the last datagram.
    records: u16,
    /// Data records in each datagram.
    data_records: Vec<u32>,
}

/// The unfinished set at the end of the last datagram.
struct OpenSet {
    start: usize,
    id: u16,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(version: Version, follower: &'a [u8], max_bytes: usize, out: &'a mut Vec<Vec<u8>>) -> Packer<'a> {
        let first = out.len();
        let max_bytes = max_bytes.min(MAX_PAYLOAD);
        Packer { version, follower, max_bytes, out, first, open: None, records: 0, data_records: Vec::new() }
    }

    pub(crate) fn add_template(&mut self, options: bool, record: &[u8]) {
        self.add(SetKind { version: self.version, options }.set_id(), record);
    }

    /// Adds a data record of this template.
    pub(crate) fn add_data(&mut self, template: u16, record: &[u8]) {
        self.add(template, record);
        if let Some(count) = self.data_records.last_mut() {
            *count += 1;
        }
    }

    fn add(&mut self, set_id: u16, record: &[u8]) {
        // The record is appended to the open set, or starts a new set after the padding of the
        // last.
        let is_new_set = self.open.as_ref().is_none_or(|open| open.id != set_id);
        let used = self.out[self.first..].last().map_or(0, Vec::len);
        let needed = if is_new_set { self.padded(used) + SET_HEADER + record.len() } else { used + record.len() };
        if self.open.is_none() || self.padded(needed) > self.max_bytes {
            self.close_datagram();
            self.open_datagram();
        } else if is_new_set {
            self.close_set();
        }
        let Some(datagram) = self.out.last_mut() else { return };
        if self.open.is_none() {
            self.open = Some(OpenSet { start: datagram.len(), id: set_id });
            datagram.extend_from_slice(&set_id.to_be_bytes());
            datagram.extend_from_slice(&[0; 2]);
        }
        datagram.extend_from_slice(record);
        self.records += 1;
    }

    /// Finishes the last datagram, and numbers all of them so that the datagram that follows is
    /// next in sequence.
    pub(crate) fn finish(mut self) {
        self.close_datagram();
        // NetFlow v9 counts datagrams, in the header's fourth word. IPFIX counts data records, in
        // the third.
        let (at, mut next) = match self.version {
            Version::NetFlow9 => (12, u32_at(self.follower, 12)),
            Version::Ipfix => (8, u32_at(self.follower, 8)),
        };
        for (datagram, data_records) in self.out[self.first..].iter_mut().zip(&self.data_records).rev() {
            let units = if self.version == Version::NetFlow9 { 1 } else { *data_records };
            let number = next.unwrap_or(0).wrapping_sub(units);
            datagram[at..at + 4].copy_from_slice(&number.to_be_bytes());
            next = Some(number);
        }
    }

    /// Flowsets end at a multiple of four bytes (RFC 3954 §5.2). In IPFIX padding is optional (RFC
    /// 7011 §3.3.1).
    fn padded(&self, length: usize) -> usize {
        if self.version == Version::NetFlow9 { length.next_multiple_of(4) } else { length }
    }

    fn open_datagram(&mut self) {
        let header = match self.version {
            Version::NetFlow9 => NETFLOW9_HEADER,
            Version::Ipfix => IPFIX_HEADER,
        };
        self.out.push(self.follower[..header].to_vec());
        self.records = 0;
        self.data_records.push(0);
    }

    fn close_set(&mut self) {
        let Some(OpenSet { start, .. }) = self.open.take() else { return };
        let Some(length) = self.out.last().map(Vec::len) else { return };
        let padded = self.padded(length);
        if let Some(datagram) = self.out.last_mut() {
            datagram.resize(padded, 0);
            datagram[start + 2..start + 4].copy_from_slice(&((padded - start) as u16).to_be_bytes());
        }
    }

    fn close_datagram(&mut self) {
        if self.open.is_none() {
            return;
        }
        self.close_set();
        if let Some(datagram) = self.out.last_mut() {
            // NetFlow v9 counts the records (RFC 3954 §5.1), IPFIX the bytes (RFC 7011 §3.1).
            let number = match self.version {
                Version::NetFlow9 => self.records,
                Version::Ipfix => datagram.len() as u16,
            };
            datagram[2..4].copy_from_slice(&number.to_be_bytes());
        }
    }
}
