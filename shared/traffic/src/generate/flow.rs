//! Synthetic flows, shared by the flow protocols: conversations between ports that no protocol
//! claims, with times just before the export.

use std::net::Ipv4Addr;

use crate::mix::{below, mix_all};

/// Prepared records. A datagram copies as many as fit, from an offset that depends on its number.
pub(super) const WINDOW_RECORDS: usize = 256;

/// One conversation.
pub(super) struct Flow {
    pub(super) source: Ipv4Addr,
    pub(super) destination: Ipv4Addr,
    pub(super) source_port: u16,
    pub(super) destination_port: u16,
    pub(super) protocol: u8,
    pub(super) tcp_flags: u8,
    pub(super) packets: u32,
    pub(super) bytes: u32,
    pub(super) interfaces: (u16, u16),
}

impl Flow {
    pub(super) fn new(seed: u64, number: u64) -> Flow {
        let value = |what: u64, bound: u64| below(mix_all(&[seed, number, what]), bound);
        let tcp = value(0, 4) != 0;
        let packets = 1 + value(1, 1000) as u32;
        Flow {
            source: Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 0)) + value(2, 1 << 17) as u32),
            destination: Ipv4Addr::new(203, 0, 113, value(3, 256) as u8),
            source_port: 49_152 + value(4, 8_000) as u16,
            destination_port: 58_000 + value(5, 1_000) as u16,
            protocol: if tcp { 6 } else { 17 },
            tcp_flags: if tcp { 0x1b } else { 0 },
            packets,
            bytes: packets * (64 + value(6, 1400) as u32),
            interfaces: (1 + value(7, 48) as u16, 1 + value(8, 48) as u16),
        }
    }
}

/// Start and end of a flow, in milliseconds before the export. It lasts 0.1 to 30 s.
pub(super) fn ages(variety: u64, position: usize) -> (u32, u32) {
    let spread = variety.rotate_left(position as u32 & 63) as u32;
    let ended = spread & 0xfff;
    (ended + 100 + (spread >> 12) % 29_900, ended)
}
