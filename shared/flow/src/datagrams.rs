//! Datagrams that carry templates, as the exporter would send them right before a datagram of data.

use crate::{
    bytes::u32_at,
    header::{IPFIX_HEADER, NETFLOW9_HEADER, Version},
    template::{SET_HEADER, SetKind},
};

/// The longest payload of a UDP datagram over IPv4, bytes.
const MAX_PAYLOAD: usize = 65_507;

/// Puts template records into as many datagrams as they need, each at most `max_bytes` unless one record is longer.
pub(crate) struct Packer<'a> {
    version: Version,
    /// The datagram that will follow.
    follower: &'a [u8],
    max_bytes: usize,
    out: &'a mut Vec<Vec<u8>>,
    first: usize,
    /// The set that is open in the last datagram: where it begins and what it holds.
    open: Option<(usize, SetKind)>,
    records: u16,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(version: Version, follower: &'a [u8], max_bytes: usize, out: &'a mut Vec<Vec<u8>>) -> Packer<'a> {
        let first = out.len();
        Packer { version, follower, max_bytes: max_bytes.min(MAX_PAYLOAD), out, first, open: None, records: 0 }
    }

    pub(crate) fn add(&mut self, options: bool, record: &[u8]) {
        let kind = SetKind { version: self.version, options };
        // A set that stays open grows; a new one begins where the one before it ends with its padding.
        let begins = self.open.is_none_or(|(_, open)| open != kind);
        let used = self.out[self.first..].last().map_or(0, Vec::len);
        let needed = if begins { self.padded(used) + SET_HEADER + record.len() } else { used + record.len() };
        if self.open.is_none() || self.padded(needed) > self.max_bytes {
            self.close_datagram();
            self.open_datagram();
        } else if begins {
            self.close_set();
        }
        let Some(datagram) = self.out.last_mut() else { return };
        if self.open.is_none() {
            self.open = Some((datagram.len(), kind));
            datagram.extend_from_slice(&kind.set_id().to_be_bytes());
            datagram.extend_from_slice(&[0; 2]);
        }
        datagram.extend_from_slice(record);
        self.records += 1;
    }

    /// Ends the last datagram, and numbers them all so that the follower comes next.
    pub(crate) fn finish(mut self) {
        self.close_datagram();
        if self.version == Version::NetFlow9 {
            // Datagrams are counted, so these are the ones before the follower. IPFIX counts data records, of which there are none.
            let datagrams = &mut self.out[self.first..];
            let before = u32_at(self.follower, 12).unwrap_or(0).wrapping_sub(datagrams.len() as u32);
            for (number, datagram) in (0..).zip(datagrams) {
                datagram[12..16].copy_from_slice(&before.wrapping_add(number).to_be_bytes());
            }
        }
    }

    /// Flowsets end at a multiple of four bytes (RFC 3954 §5.2). IPFIX leaves that to the exporter (RFC 7011 §3.3.1).
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
    }

    fn close_set(&mut self) {
        let (Some((begin, _)), Some(length)) = (self.open.take(), self.out.last().map(Vec::len)) else { return };
        let padded = self.padded(length);
        if let Some(datagram) = self.out.last_mut() {
            datagram.resize(padded, 0);
            datagram[begin + 2..begin + 4].copy_from_slice(&((padded - begin) as u16).to_be_bytes());
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
