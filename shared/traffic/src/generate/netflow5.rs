//! NetFlow version 5: 1 to 30 records of 48 bytes behind a header of 24.
//!
//! ```text
//!  0 version = 5 | count          24 srcaddr               48 first (ms of uptime)
//!  4 sys_uptime_ms                28 dstaddr               52 last
//!  8 unix_secs                    32 nexthop               56 srcport | dstport
//! 12 unix_nsecs                   36 input | output        60 pad | tcp_flags | prot | tos
//! 16 flow_sequence (flows)        40 dPkts                 64 src_as | dst_as
//! 20 engine_type | engine_id | …  44 dOctets               68 src_mask | dst_mask | pad
//! ```

use super::{
    Request,
    flow::{Flow, WINDOW_RECORDS, ages},
    put_u16, put_u32,
};
use crate::mix::below;

pub(crate) const HEADER_BYTES: usize = 24;
pub(crate) const RECORD_BYTES: usize = 48;
const MAX_RECORDS: usize = 30;

#[derive(Debug)]
pub(super) struct Maker {
    records: Vec<u8>,
}

impl Maker {
    pub(super) fn new(seed: u64) -> Maker {
        let mut records = Vec::with_capacity((WINDOW_RECORDS + MAX_RECORDS) * RECORD_BYTES);
        for number in 0..(WINDOW_RECORDS + MAX_RECORDS) as u64 {
            let flow = Flow::new(seed, number);
            records.extend_from_slice(&flow.source.octets());
            records.extend_from_slice(&flow.destination.octets());
            records.extend_from_slice(&[198, 51, 100, 1]);
            records.extend_from_slice(&flow.interfaces.0.to_be_bytes());
            records.extend_from_slice(&flow.interfaces.1.to_be_bytes());
            records.extend_from_slice(&flow.packets.to_be_bytes());
            records.extend_from_slice(&flow.bytes.to_be_bytes());
            records.extend_from_slice(&[0; 8]);
            records.extend_from_slice(&flow.source_port.to_be_bytes());
            records.extend_from_slice(&flow.destination_port.to_be_bytes());
            records.extend_from_slice(&[0, flow.tcp_flags, flow.protocol, 0]);
            // Autonomous systems for examples (RFC 5398).
            records.extend_from_slice(&64_496_u16.to_be_bytes());
            records.extend_from_slice(&64_497_u16.to_be_bytes());
            records.extend_from_slice(&[15, 24, 0, 0]);
        }
        Maker { records }
    }

    pub(super) fn write(&self, request: &Request<'_>, variety: u64, out: &mut Vec<u8>) -> u64 {
        let count = (request.size.saturating_sub(HEADER_BYTES) / RECORD_BYTES).clamp(1, MAX_RECORDS);
        let start = out.len();
        let uptime = request.moment.uptime_milliseconds();
        out.resize(start + HEADER_BYTES, 0);
        let header = &mut out[start..];
        put_u16(header, 0, 5);
        put_u16(header, 2, count as u16);
        put_u32(header, 4, uptime);
        put_u32(header, 8, request.moment.unix.as_secs() as u32);
        put_u32(header, 12, request.moment.unix.subsec_nanos());
        put_u32(header, 16, request.cursor.units as u32);
        put_u16(header, 20, request.source.index as u16);
        let first = below(variety, WINDOW_RECORDS as u64) as usize * RECORD_BYTES;
        out.extend_from_slice(&self.records[first..first + count * RECORD_BYTES]);
        for (position, record) in out[start + HEADER_BYTES..].chunks_exact_mut(RECORD_BYTES).enumerate() {
            let (began, ended) = ages(variety, position);
            put_u32(record, 24, uptime - began);
            put_u32(record, 28, uptime - ended);
        }
        count as u64
    }
}
