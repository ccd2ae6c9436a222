//! Exporters that send templates only on request.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::{SystemTime, UNIX_EPOCH},
};

use sekiwake_tests::FIRST_DEVICE;

use super::*;

/// Flow number `n` has source port `BASE_PORT + n` and `BASE_BYTES + n` bytes; a wrong template
/// does not decode to these.
pub(super) const BASE_PORT: u64 = 10_000;
pub(super) const BASE_BYTES: u64 = 5_000_000;
pub(super) const PACKETS: u64 = 4_000;

/// Information elements and their lengths in bytes. The numbers are the same in both protocols (RFC
/// 3954 §8, RFC 7012).
type Layout = [(u16, u16)];

const BYTES: u16 = 1;
const PACKET_COUNT: u16 = 2;
const PROTOCOL: u16 = 4;
const SOURCE_PORT: u16 = 7;
const SOURCE: u16 = 8;
const DESTINATION_PORT: u16 = 11;
const DESTINATION: u16 = 12;

/// 21 bytes per flow.
pub(super) const LAYOUT: [(u16, u16); 7] = [
    (SOURCE, 4),
    (DESTINATION, 4),
    (SOURCE_PORT, 2),
    (DESTINATION_PORT, 2),
    (PROTOCOL, 1),
    (BYTES, 4),
    (PACKET_COUNT, 4),
];
/// 29 bytes, in another order and other lengths.
pub(super) const OTHER_LAYOUT: [(u16, u16); 7] = [
    (PACKET_COUNT, 8),
    (DESTINATION_PORT, 2),
    (SOURCE_PORT, 2),
    (BYTES, 8),
    (DESTINATION, 4),
    (PROTOCOL, 1),
    (SOURCE, 4),
];
/// 21 bytes again, in another order.
pub(super) const THIRD_LAYOUT: [(u16, u16); 7] = [
    (PACKET_COUNT, 4),
    (BYTES, 4),
    (PROTOCOL, 1),
    (DESTINATION_PORT, 2),
    (SOURCE_PORT, 2),
    (DESTINATION, 4),
    (SOURCE, 4),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    NetFlow9,
    Ipfix,
}

/// A device that exports flows.
pub(super) struct Exporter {
    pub(super) address: IpAddr,
    version: Version,
    socket: UdpSocket,
    to: SocketAddr,
    /// The source id or observation domain.
    pub(super) domain: u32,
    /// The next datagram's sequence: datagrams so far in NetFlow v9, data records so far in IPFIX.
    sequence: u32,
    /// Datagrams so far.
    pub(super) sent: u64,
}

impl Exporter {
    /// Device `number`, which sends to this address.
    pub(super) fn new(site: &TestSite, number: u32, version: Version, to: SocketAddr) -> Exporter {
        let address = IpAddr::V4(Ipv4Addr::from(u32::from(FIRST_DEVICE) + number));
        let socket = site.devices.udp_socket(at(address, 0)).unwrap();
        Exporter { address, version, socket, to, domain: 7, sequence: 1_000 * number, sent: 0 }
    }

    pub(super) fn name(&self) -> String {
        self.address.to_string()
    }

    /// Sends a template with these fields.
    pub(super) fn template(&mut self, id: u16, layout: &Layout) {
        let fields = layout.iter().flat_map(|(element, length)| [*element, *length]);
        let words: Vec<u16> = [id, layout.len() as u16].into_iter().chain(fields).collect();
        let set = if self.version == Version::Ipfix { 2 } else { 0 };
        self.send(set, &words.into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>(), 0);
    }

    /// Sends an options template, and data by it: one flow out of `interval` is sampled (RFC 3954
    /// §8, elements 34 and 35).
    pub(super) fn sampling(&mut self, id: u16, interval: u32) {
        assert_eq!(self.version, Version::NetFlow9);
        let words = [id, 4, 8, 1, 4, 34, 4, 35, 1];
        self.send(1, &words.map(u16::to_be_bytes).concat(), 0);
        self.send(id, &[&[0; 4][..], &interval.to_be_bytes(), &[1]].concat(), 1);
    }

    /// Withdraws a template (RFC 7011 §8.1).
    pub(super) fn withdraw(&mut self, id: u16) {
        assert_eq!(self.version, Version::Ipfix);
        self.send(2, &[id, 0].map(u16::to_be_bytes).concat(), 0);
    }

    /// Sends the flow with this number in the layout of this template.
    pub(super) fn flow(&mut self, id: u16, layout: &Layout, number: u64) {
        let value = |element: u16| -> u64 {
            match element {
                BYTES => BASE_BYTES + number,
                PACKET_COUNT => PACKETS,
                PROTOCOL => 17,
                SOURCE_PORT => BASE_PORT + number,
                DESTINATION_PORT => 443,
                SOURCE => u32::from(Ipv4Addr::new(203, 0, 113, 7)).into(),
                DESTINATION => u32::from(Ipv4Addr::new(203, 0, 113, 9)).into(),
                _ => unreachable!("no such element"),
            }
        };
        let contents: Vec<u8> = layout
            .iter()
            .flat_map(|(element, length)| value(*element).to_be_bytes()[8 - usize::from(*length)..].to_vec())
            .collect();
        self.send(id, &contents, 1);
    }

    /// Skips sequence numbers, as a loss before capture does.
    pub(super) fn skip(&mut self, units: u32) {
        self.sequence += units;
    }

    fn send(&mut self, set: u16, contents: &[u8], records: u32) {
        // FlowSets of NetFlow v9 end at multiples of four bytes (RFC 3954 §5.3).
        let padding = if self.version == Version::Ipfix { 0 } else { contents.len().wrapping_neg() % 4 };
        let length = 4 + contents.len() + padding;
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as u32;
        let domain = self.domain;
        let mut datagram = match self.version {
            Version::NetFlow9 => {
                [&[0, 9, 0, 1][..], &[1_000_000, unix, self.sequence, domain].map(u32::to_be_bytes).concat()].concat()
            }
            Version::Ipfix => {
                let head = [10, 16 + length as u16].map(u16::to_be_bytes).concat();
                [head, [unix, self.sequence, domain].map(u32::to_be_bytes).concat()].concat()
            }
        };
        datagram.extend([set, length as u16].map(u16::to_be_bytes).concat());
        datagram.extend(contents);
        datagram.resize(datagram.len() + padding, 0);
        self.sequence += if self.version == Version::Ipfix { records } else { 1 };
        self.sent += 1;
        assert_eq!(self.socket.send_to(&datagram, self.to).unwrap(), datagram.len());
    }
}
