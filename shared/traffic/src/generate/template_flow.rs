//! NetFlow version 9 (RFC 3954) and IPFIX (RFC 7011): a template set when one is due, then one set
//! of data records.
//!
//! ```text
//! NetFlow v9, 20 bytes                          IPFIX, 16 bytes
//!  0 version = 9 | count (records of all sets)   0 version = 10 | length
//!  4 sys_uptime_ms                               4 export time (s)
//!  8 unix_secs                                   8 sequence (data records before this message)
//! 12 sequence (datagrams)                       12 observation domain id
//! 16 source id
//!
//! set:  id | length      template: 0 (v9) or 2 (IPFIX), then  template id | field count | (element | length)…
//! ```

use super::{
    Request,
    flow::{Flow, WINDOW_RECORDS, ages},
    put_u16, put_u32, put_u64,
};
use crate::{MAX_PAYLOAD_BYTES, mix::below};

/// The id of our one template, and so of the data sets.
pub(crate) const DATA_SET_ID: u16 = 256;
const SET_HEADER_BYTES: usize = 4;

/// NetFlow version 9 or IPFIX.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialect {
    Netflow9,
    Ipfix,
}

/// Information elements (IANA; the first 127 are the same in both) and their lengths in bytes.
const NETFLOW9_FIELDS: [(u16, u16); 15] = [
    (8, 4),  // IPV4_SRC_ADDR
    (12, 4), // IPV4_DST_ADDR
    (7, 2),  // L4_SRC_PORT
    (11, 2), // L4_DST_PORT
    (4, 1),  // PROTOCOL
    (5, 1),  // SRC_TOS
    (6, 1),  // TCP_FLAGS
    (9, 1),  // SRC_MASK
    (2, 4),  // IN_PKTS
    (1, 4),  // IN_BYTES
    (22, 4), // FIRST_SWITCHED
    (21, 4), // LAST_SWITCHED
    (10, 2), // INPUT_SNMP
    (14, 2), // OUTPUT_SNMP
    (15, 4), // IPV4_NEXT_HOP
];
const IPFIX_FIELDS: [(u16, u16); 13] = [
    (8, 4),   // sourceIPv4Address
    (12, 4),  // destinationIPv4Address
    (7, 2),   // sourceTransportPort
    (11, 2),  // destinationTransportPort
    (4, 1),   // protocolIdentifier
    (5, 1),   // ipClassOfService
    (6, 2),   // tcpControlBits
    (2, 8),   // packetDeltaCount
    (1, 8),   // octetDeltaCount
    (152, 8), // flowStartMilliseconds
    (153, 8), // flowEndMilliseconds
    (10, 4),  // ingressInterface
    (14, 4),  // egressInterface
];
/// Offset of the two times in a record.
const TIMES_OFFSET: usize = 24;
const IPFIX_TIMES_OFFSET: usize = 32;

impl Dialect {
    pub(crate) fn header_bytes(self) -> usize {
        match self {
            Dialect::Netflow9 => 20,
            Dialect::Ipfix => 16,
        }
    }

    fn fields(self) -> &'static [(u16, u16)] {
        match self {
            Dialect::Netflow9 => &NETFLOW9_FIELDS,
            Dialect::Ipfix => &IPFIX_FIELDS,
        }
    }

    pub(crate) fn record_bytes(self) -> usize {
        self.fields().iter().map(|&(_, length)| usize::from(length)).sum()
    }

    /// The whole template set.
    fn template(self) -> Vec<u8> {
        let set_id = match self {
            Dialect::Netflow9 => 0_u16,
            Dialect::Ipfix => 2,
        };
        let fields = self.fields();
        let length = (SET_HEADER_BYTES + 4 + fields.len() * 4) as u16;
        let mut words = vec![set_id, length, DATA_SET_ID, fields.len() as u16];
        words.extend(fields.iter().flat_map(|&(element, length)| [element, length]));
        words.into_iter().flat_map(u16::to_be_bytes).collect()
    }

    fn append_record(self, flow: &Flow, records: &mut Vec<u8>) {
        records.extend_from_slice(&flow.source.octets());
        records.extend_from_slice(&flow.destination.octets());
        records.extend_from_slice(&flow.source_port.to_be_bytes());
        records.extend_from_slice(&flow.destination_port.to_be_bytes());
        match self {
            Dialect::Netflow9 => {
                records.extend_from_slice(&[flow.protocol, 0, flow.tcp_flags, 15]);
                records.extend_from_slice(&flow.packets.to_be_bytes());
                records.extend_from_slice(&flow.bytes.to_be_bytes());
                records.extend_from_slice(&[0; 8]);
                records.extend_from_slice(&flow.interfaces.0.to_be_bytes());
                records.extend_from_slice(&flow.interfaces.1.to_be_bytes());
                records.extend_from_slice(&[198, 51, 100, 1]);
            }
            Dialect::Ipfix => {
                records.extend_from_slice(&[flow.protocol, 0, 0, flow.tcp_flags]);
                records.extend_from_slice(&u64::from(flow.packets).to_be_bytes());
                records.extend_from_slice(&u64::from(flow.bytes).to_be_bytes());
                records.extend_from_slice(&[0; 16]);
                records.extend_from_slice(&u32::from(flow.interfaces.0).to_be_bytes());
                records.extend_from_slice(&u32::from(flow.interfaces.1).to_be_bytes());
            }
        }
    }
}

#[derive(Debug)]
pub(super) struct Maker {
    dialect: Dialect,
    template: Vec<u8>,
    records: Vec<u8>,
}

impl Maker {
    pub(super) fn new(dialect: Dialect, seed: u64) -> Maker {
        let count = WINDOW_RECORDS + MAX_PAYLOAD_BYTES / dialect.record_bytes();
        let mut records = Vec::with_capacity(count * dialect.record_bytes());
        for number in 0..count as u64 {
            dialect.append_record(&Flow::new(seed, number), &mut records);
        }
        Maker { dialect, template: dialect.template(), records }
    }

    pub(super) fn write(&self, request: &Request<'_>, variety: u64, out: &mut Vec<u8>) -> u64 {
        let header_bytes = self.dialect.header_bytes();
        let record_bytes = self.dialect.record_bytes();
        let template = if request.template { &self.template[..] } else { &[] };
        let overhead = header_bytes + template.len() + SET_HEADER_BYTES;
        let count = (request.size.min(MAX_PAYLOAD_BYTES).saturating_sub(overhead) / record_bytes).max(1);
        let length = overhead + count * record_bytes;
        let start = out.len();
        out.resize(start + header_bytes, 0);
        out.extend_from_slice(template);
        out.extend_from_slice(&DATA_SET_ID.to_be_bytes());
        out.extend_from_slice(&((SET_HEADER_BYTES + count * record_bytes) as u16).to_be_bytes());
        let first = below(variety, WINDOW_RECORDS as u64) as usize * record_bytes;
        out.extend_from_slice(&self.records[first..first + count * record_bytes]);

        let (header, body) = out[start..].split_at_mut(header_bytes);
        let records = &mut body[overhead - header_bytes..];
        match self.dialect {
            Dialect::Netflow9 => self.finish_netflow9(request, variety, header, records, count),
            Dialect::Ipfix => self.finish_ipfix(request, variety, header, records, length),
        }
        count as u64
    }

    fn finish_netflow9(
        &self,
        request: &Request<'_>,
        variety: u64,
        header: &mut [u8],
        records: &mut [u8],
        count: usize,
    ) {
        let uptime = request.moment.uptime_milliseconds();
        put_u16(header, 0, 9);
        put_u16(header, 2, count as u16 + u16::from(request.template));
        put_u32(header, 4, uptime);
        put_u32(header, 8, request.moment.unix.as_secs() as u32);
        put_u32(header, 12, request.cursor.datagrams as u32);
        put_u32(header, 16, request.source.index);
        for (position, record) in records.chunks_exact_mut(self.dialect.record_bytes()).enumerate() {
            let (began, ended) = ages(variety, position);
            put_u32(record, TIMES_OFFSET, uptime - began);
            put_u32(record, TIMES_OFFSET + 4, uptime - ended);
        }
    }

    fn finish_ipfix(&self, request: &Request<'_>, variety: u64, header: &mut [u8], records: &mut [u8], length: usize) {
        put_u16(header, 0, 10);
        put_u16(header, 2, length as u16);
        put_u32(header, 4, request.moment.unix.as_secs() as u32);
        put_u32(header, 8, request.cursor.units as u32);
        put_u32(header, 12, request.source.index);
        let now = request.moment.unix.as_millis() as u64;
        for (position, record) in records.chunks_exact_mut(self.dialect.record_bytes()).enumerate() {
            let (began, ended) = ages(variety, position);
            put_u64(record, IPFIX_TIMES_OFFSET, now.saturating_sub(u64::from(began)));
            put_u64(record, IPFIX_TIMES_OFFSET + 8, now.saturating_sub(u64::from(ended)));
        }
    }
}
