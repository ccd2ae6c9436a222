//! sFlow version 5 (sflow.org): one counters sample, then as many flow samples as fit, each with
//! the head of a sampled frame.
//!
//! ```text
//! datagram                       flow sample, 144 bytes          counters sample, 116 bytes
//!  0 version = 5                  0 type = 1 | 4 length           0 type = 2 | 4 length
//!  4 address type | agent         8 sequence                      8 sequence
//!  . sub-agent id                12 source id (ifIndex)          12 source id (ifIndex)
//!  . sequence                    16 rate | 20 pool | 24 drops    16 records = 1
//!  . uptime_ms                   28 input | 32 output            20 type = 1 | 24 length = 88
//!  . samples                     36 records = 1                  28 generic interface counters
//!                                40 type = 1 | 44 length
//!                                48 protocol = 1 (Ethernet) | 52 frame length | 56 stripped | 60 header length = 80
//!                                64 header
//! ```

use std::net::IpAddr;

use super::{
    Request,
    flow::{Flow, WINDOW_RECORDS},
    put_u32, put_u64,
};
use crate::{MAX_PAYLOAD_BYTES, mix::below};

const FRAME_HEAD_BYTES: usize = 80;
const FLOW_SAMPLE_BYTES: usize = 64 + FRAME_HEAD_BYTES;
const COUNTERS_SAMPLE_BYTES: usize = 28 + 88;
const SAMPLING_RATE: u32 = 1000;

#[derive(Debug)]
pub(super) struct Maker {
    counters: Vec<u8>,
    samples: Vec<u8>,
}

impl Maker {
    pub(super) fn new(seed: u64) -> Maker {
        let count = WINDOW_RECORDS + MAX_PAYLOAD_BYTES / FLOW_SAMPLE_BYTES;
        let samples = (0..count as u64).flat_map(|number| flow_sample(&Flow::new(seed, number))).collect();
        Maker { counters: counters_sample(), samples }
    }

    pub(super) fn write(&self, request: &Request<'_>, variety: u64, out: &mut Vec<u8>) -> u64 {
        let start = out.len();
        out.extend_from_slice(&5_u32.to_be_bytes());
        match request.source.address {
            IpAddr::V4(address) => {
                out.extend_from_slice(&1_u32.to_be_bytes());
                out.extend_from_slice(&address.octets());
            }
            IpAddr::V6(address) => {
                out.extend_from_slice(&2_u32.to_be_bytes());
                out.extend_from_slice(&address.octets());
            }
        }
        out.extend_from_slice(&request.source.index.to_be_bytes());
        out.extend_from_slice(&(request.cursor.datagrams as u32).to_be_bytes());
        out.extend_from_slice(&request.moment.uptime_milliseconds().to_be_bytes());
        let overhead = out.len() - start + 4 + COUNTERS_SAMPLE_BYTES;
        let count = (request.size.min(MAX_PAYLOAD_BYTES).saturating_sub(overhead) / FLOW_SAMPLE_BYTES).max(1);
        out.extend_from_slice(&(count as u32 + 1).to_be_bytes());

        let counters = out.len();
        out.extend_from_slice(&self.counters);
        put_u32(&mut out[counters..], 8, request.cursor.datagrams as u32);
        self.advance_counters(&mut out[counters + 28..], request.cursor.units);

        let samples = out.len();
        let first = below(variety, WINDOW_RECORDS as u64) as usize * FLOW_SAMPLE_BYTES;
        out.extend_from_slice(&self.samples[first..first + count * FLOW_SAMPLE_BYTES]);
        for (position, sample) in out[samples..].chunks_exact_mut(FLOW_SAMPLE_BYTES).enumerate() {
            let sequence = request.cursor.units.wrapping_add(position as u64) as u32;
            put_u32(sample, 8, sequence);
            put_u32(sample, 20, sequence.wrapping_add(1).wrapping_mul(SAMPLING_RATE));
        }
        count as u64
    }

    /// Counts the packets and bytes that the samples represent.
    fn advance_counters(&self, interface: &mut [u8], samples: u64) {
        let packets = samples.wrapping_mul(u64::from(SAMPLING_RATE));
        put_u64(interface, 24, packets.wrapping_mul(700));
        put_u32(interface, 32, packets as u32);
        put_u64(interface, 56, packets.wrapping_mul(700));
        put_u32(interface, 64, packets as u32);
    }
}

fn flow_sample(flow: &Flow) -> Vec<u8> {
    let frame_bytes = 64 + flow.bytes % 1400;
    let words = [
        1,
        FLOW_SAMPLE_BYTES as u32 - 8,
        0,
        1,
        SAMPLING_RATE,
        0,
        0,
        u32::from(flow.interfaces.0),
        u32::from(flow.interfaces.1),
        1,
        1,
        FLOW_SAMPLE_BYTES as u32 - 48,
        1,
        frame_bytes + 40,
        4,
        FRAME_HEAD_BYTES as u32,
    ];
    let mut sample: Vec<u8> = words.into_iter().flat_map(u32::to_be_bytes).collect();
    sample.extend_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0]);
    let ip_bytes = (frame_bytes + 40 - 18) as u16;
    sample.extend_from_slice(&ipv4_header(flow, ip_bytes));
    sample.extend_from_slice(&flow.source_port.to_be_bytes());
    sample.extend_from_slice(&flow.destination_port.to_be_bytes());
    if flow.protocol == 6 {
        // Sequence, acknowledgement, header of 20 bytes, ACK, window. The checksum is arbitrary: it
        // covers bytes that were not sampled.
        sample.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0x20, 0, 0x12, 0x34, 0, 0]);
    } else {
        sample.extend_from_slice(&(ip_bytes - 20).to_be_bytes());
        sample.extend_from_slice(&[0, 0]);
    }
    sample.resize(FLOW_SAMPLE_BYTES, 0);
    sample
}

fn ipv4_header(flow: &Flow, length: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    header[8] = 64;
    header[9] = flow.protocol;
    header[12..16].copy_from_slice(&flow.source.octets());
    header[16..20].copy_from_slice(&flow.destination.octets());
    // RFC 1071.
    let sum: u32 = header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !(((folded & 0xffff) + (folded >> 16)) as u16);
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// Interface 1: Ethernet, 1 Gbit/s, full duplex, up.
fn counters_sample() -> Vec<u8> {
    let head = [2, COUNTERS_SAMPLE_BYTES as u32 - 8, 0, 1, 1, 1, 88, 1, 6, 0, 1_000_000_000, 1, 3];
    let mut sample: Vec<u8> = head.into_iter().flat_map(u32::to_be_bytes).collect();
    sample.resize(COUNTERS_SAMPLE_BYTES, 0);
    sample
}
