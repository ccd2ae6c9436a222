//! UDP datagrams and the IP packets that carry them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const IPV4_HEADER_BYTES: usize = 20;

/// A UDP datagram and its IP header fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Source.
    pub source: SocketAddr,
    /// Destination.
    pub destination: SocketAddr,
    /// Payload.
    pub payload: Vec<u8>,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Differentiated services code point, 6 bits.
    pub dscp: u8,
    /// Identification of its fragments; IPv4 uses the lower half.
    pub identification: u32,
    /// Options of the IPv4 header, a multiple of 4 bytes, at most 40.
    pub options: Vec<u8>,
    /// Extension headers of IPv6 before the fragment header or UDP.
    pub extensions: Vec<Extension>,
}

/// An IPv6 extension header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extension {
    /// Its protocol number: 0 hop-by-hop options, 43 routing, 51 authentication, 60 destination
    /// options, 135 mobility.
    pub protocol: u8,
    /// The header without its first byte, which is the number of the next header.
    pub rest: Vec<u8>,
}

impl Extension {
    /// A header of `8 * units` bytes of any number; its options are padding.
    pub fn new(protocol: u8, units: u8) -> Extension {
        let bytes = usize::from(units) * 8;
        let mut rest = vec![0; bytes - 1];
        // The authentication header has its length in units of 4 bytes minus 2 (RFC 4302 §2.2).
        rest[0] = if protocol == 51 { units * 2 - 2 } else { units - 1 };
        if matches!(protocol, 0 | 60) {
            // One PadN option fills the header (RFC 8200 §4.2).
            rest[1] = 1;
            rest[2] = bytes as u8 - 4;
        }
        Extension { protocol, rest }
    }

    /// A fragment header: `offset` in bytes, a multiple of 8.
    pub fn fragment(offset: usize, more: bool, identification: u32) -> Extension {
        let mut rest = vec![0];
        rest.extend((offset as u16 | u16::from(more)).to_be_bytes());
        rest.extend(identification.to_be_bytes());
        Extension { protocol: FRAGMENT, rest }
    }
}

impl Datagram {
    /// A datagram with TTL 64.
    pub fn new(source: &str, destination: &str, payload: impl Into<Vec<u8>>) -> Datagram {
        let source: SocketAddr = source.parse().expect("source is address:port");
        let destination: SocketAddr = destination.parse().expect("destination is address:port");
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "{source} and {destination}: expected the same IP version");
        Datagram {
            source,
            destination,
            payload: payload.into(),
            ttl: 64,
            dscp: 0,
            identification: 0,
            options: Vec::new(),
            extensions: Vec::new(),
        }
    }

    /// With another identification.
    pub fn identified(self, identification: u32) -> Datagram {
        Datagram { identification, ..self }
    }

    /// UDP header and payload, with a checksum.
    pub fn segment(&self) -> Vec<u8> {
        let length = 8 + self.payload.len();
        let mut segment = Vec::with_capacity(length);
        segment.extend(self.source.port().to_be_bytes());
        segment.extend(self.destination.port().to_be_bytes());
        segment.extend((length as u16).to_be_bytes());
        segment.extend([0, 0]);
        segment.extend(&self.payload);
        let mut pseudo_header = octets(self.source.ip());
        pseudo_header.extend(octets(self.destination.ip()));
        pseudo_header.extend((length as u32).to_be_bytes());
        pseudo_header.extend([0, 0, 0, UDP]);
        pseudo_header.extend(&segment);
        let checksum = match internet_checksum(&pseudo_header) {
            0 => 0xffff,
            checksum => checksum,
        };
        segment[6..8].copy_from_slice(&checksum.to_be_bytes());
        segment
    }

    /// The unfragmented IP packet.
    pub fn packet(&self) -> Vec<u8> {
        self.wrap(UDP, &self.segment(), 0, false, &[])
    }

    /// The fragments with `step` bytes of IP payload each, rounded down to a multiple of 8. A
    /// datagram that fits becomes a single fragment.
    pub fn fragments(&self, step: usize) -> Vec<Vec<u8>> {
        let segment = self.segment();
        let step = (step / 8).max(1) * 8;
        (0..segment.len())
            .step_by(step)
            .map(|offset| {
                let end = (offset + step).min(segment.len());
                self.fragment(offset, end < segment.len(), &segment[offset..end])
            })
            .collect()
    }

    /// A fragment with any bytes at any offset, also one that no router would send.
    pub fn fragment(&self, offset: usize, more: bool, bytes: &[u8]) -> Vec<u8> {
        let fragment = Extension::fragment(offset, more, self.identification);
        self.wrap(UDP, bytes, offset, more, std::slice::from_ref(&fragment))
    }

    /// An IP packet with these addresses and any payload. `last` are extension headers, for IPv6
    /// only.
    fn wrap(&self, protocol: u8, payload: &[u8], offset: usize, more: bool, last: &[Extension]) -> Vec<u8> {
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extensions: Vec<Extension> = self.extensions.iter().chain(last).cloned().collect();
                let mut packet = ipv6_packet(source, destination, &extensions, protocol, payload);
                packet[0] |= self.dscp >> 2;
                packet[1] |= self.dscp << 6;
                packet[7] = self.ttl;
                packet
            }
            (source, destination) => {
                let header_bytes = IPV4_HEADER_BYTES + self.options.len();
                let mut packet = vec![0; header_bytes];
                packet[0] = 0x40 | (header_bytes / 4) as u8;
                packet[1] = self.dscp << 2;
                packet[2..4].copy_from_slice(&((header_bytes + payload.len()) as u16).to_be_bytes());
                packet[4..6].copy_from_slice(&(self.identification as u16).to_be_bytes());
                packet[6..8].copy_from_slice(&((offset / 8) as u16 | u16::from(more) << 13).to_be_bytes());
                packet[8] = self.ttl;
                packet[9] = protocol;
                packet[12..16].copy_from_slice(&octets(source));
                packet[16..20].copy_from_slice(&octets(destination));
                packet[20..].copy_from_slice(&self.options);
                let checksum = internet_checksum(&packet);
                packet[10..12].copy_from_slice(&checksum.to_be_bytes());
                packet.extend(payload);
                packet
            }
        }
    }
}

/// An IPv4 or IPv6 packet with any payload, such as another packet.
pub fn ip_packet(source: &str, destination: &str, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let address = |text: &str| SocketAddr::new(text.parse().expect("an IP address"), 0).to_string();
    Datagram::new(&address(source), &address(destination), "").wrap(protocol, payload, 0, false, &[])
}

/// An IPv6 packet with extension headers and any payload.
pub fn ipv6_packet(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    extensions: &[Extension],
    protocol: u8,
    payload: &[u8],
) -> Vec<u8> {
    let numbers: Vec<u8> = extensions.iter().map(|extension| extension.protocol).chain([protocol]).collect();
    let mut rest = Vec::new();
    for (extension, next) in extensions.iter().zip(&numbers[1..]) {
        rest.push(*next);
        rest.extend(&extension.rest);
    }
    rest.extend(payload);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend((rest.len() as u16).to_be_bytes());
    packet.extend([numbers[0], 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(rest);
    packet
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let sum: u64 = bytes
        .chunks(2)
        .map(|pair| u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()])))
        .sum();
    let mut folded = sum;
    while folded > 0xffff {
        folded = (folded & 0xffff) + (folded >> 16);
    }
    !(folded as u16)
}
