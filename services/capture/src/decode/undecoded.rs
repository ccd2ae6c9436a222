//! Unsupported protocols: the header field at which decoding stopped, and counts of packets by it.

use std::{collections::HashMap, fmt};

/// The header field at which decoding stopped, because it announces an unsupported protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Undecoded {
    /// An EtherType, or a protocol type of GRE or Geneve.
    EtherType(u16),
    /// The destination service access point of an IEEE 802.2 header.
    Llc(u8),
    /// IPv4's protocol field, or IPv6's next header.
    IpProtocol(u8),
}

impl Undecoded {
    /// The name of the protocol, if it is a usual one on a mirror port.
    fn name(self) -> Option<&'static str> {
        Some(match self {
            Undecoded::EtherType(0x0806) => "ARP",
            Undecoded::EtherType(0x880b) => "PPP",
            Undecoded::EtherType(0x8809) => "LACP",
            Undecoded::EtherType(0x8863) => "PPPoE discovery",
            Undecoded::EtherType(0x8864) => "PPPoE session",
            Undecoded::EtherType(0x888e) => "802.1X",
            Undecoded::EtherType(0x88cc) => "LLDP",
            Undecoded::EtherType(0x88e5) => "MACsec",
            Undecoded::EtherType(0x88e7) => "802.1ah",
            Undecoded::EtherType(0x88f7) => "PTP",
            Undecoded::EtherType(0x8902) => "CFM",
            Undecoded::EtherType(0x894f) => "NSH",
            Undecoded::EtherType(0x9000) => "loopback test",
            Undecoded::Llc(0x42) => "spanning tree",
            Undecoded::Llc(0xaa) => "SNAP",
            Undecoded::Llc(0xfe) => "OSI",
            Undecoded::IpProtocol(1) => "ICMP",
            Undecoded::IpProtocol(2) => "IGMP",
            Undecoded::IpProtocol(6) => "TCP",
            Undecoded::IpProtocol(47) => "GRE",
            Undecoded::IpProtocol(50) => "ESP",
            Undecoded::IpProtocol(58) => "ICMPv6",
            Undecoded::IpProtocol(88) => "EIGRP",
            Undecoded::IpProtocol(89) => "OSPF",
            Undecoded::IpProtocol(97) => "EtherIP",
            Undecoded::IpProtocol(103) => "PIM",
            Undecoded::IpProtocol(112) => "VRRP",
            Undecoded::IpProtocol(115) => "L2TP",
            Undecoded::IpProtocol(132) => "SCTP",
            _ => return None,
        })
    }
}

impl fmt::Display for Undecoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undecoded::EtherType(number) => write!(f, "EtherType {number:#06x}")?,
            Undecoded::Llc(number) => write!(f, "802.3 LLC {number:#04x}")?,
            Undecoded::IpProtocol(number) => write!(f, "IP protocol {number}")?,
        }
        self.name().map_or(Ok(()), |name| write!(f, " ({name})"))
    }
}

/// Packets that were not decoded, by the field at which decoding stopped. At most one entry per
/// possible value.
#[derive(Clone, Debug, Default)]
pub struct UndecodedCounts(HashMap<Undecoded, u64>);

impl UndecodedCounts {
    /// Counts one packet.
    pub fn add(&mut self, at: Undecoded) {
        *self.0.entry(at).or_default() += 1;
    }

    /// The values with their packets, the most frequent first.
    pub fn ranked(&self) -> Vec<(Undecoded, u64)> {
        let mut ranked: Vec<_> = self.0.iter().map(|(at, packets)| (*at, *packets)).collect();
        ranked.sort_by_key(|(at, packets)| (u64::MAX - packets, *at));
        ranked
    }
}
