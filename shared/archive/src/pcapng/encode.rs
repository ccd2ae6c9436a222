//! Writes packets. This is the storer's hot path: it allocates nothing but the packet's own bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sekiwake_record::{Kind, Origin, Record, WallTime};

use super::{
    APPLICATION, COMMENT, CUSTOM_BINARY, END, ENTERPRISE, GROUP_BYTES, IDENTIFIED_BIT, INTERFACE, INTERFACE_NAME,
    LINKTYPE_RAW, MAPPED_DESTINATION_BIT, MAPPED_SOURCE_BIT, ORIGIN_BIT, PACKET, RESOLUTION, SECTION_HEADER,
    TEMPLATE_BIT, VERSION, seal::Seal,
};

/// The comment of a template at the start of a file.
const TEMPLATE_COMMENT: &[u8] = b"template known at the start of this file, no data";

/// Bytes of an ordinary packet besides its payload.
const ORDINARY_BYTES: usize = 192;

/// The number of UDP in an IP header.
const UDP: u8 = 17;

const UDP_HEADER: usize = 8;

/// Writes records as packets, in groups that are sealed with one key.
#[derive(Clone, Debug)]
pub struct PacketEncoder {
    key: u64,
}

/// The group that is written to a buffer, and has no seal yet.
#[derive(Clone, Copy, Debug)]
pub struct OpenGroup {
    /// Where it begins in the buffer.
    start: usize,
    packets: u32,
    earliest: WallTime,
    latest: WallTime,
}

impl Default for OpenGroup {
    fn default() -> OpenGroup {
        OpenGroup { start: 0, packets: 0, earliest: WallTime::MAX, latest: WallTime::EPOCH }
    }
}

/// The addresses of a packet, of one family.
pub(super) enum Addresses {
    V4(Ipv4Addr, Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

impl PacketEncoder {
    /// An encoder with this key, which has to be random, and to be known to nobody else.
    pub fn new(key: u64) -> PacketEncoder {
        PacketEncoder { key }
    }

    /// The start of a file of this kind, up to its first seal.
    pub fn head(&self, kind: Kind) -> Vec<u8> {
        let mut out = Vec::new();
        block(&mut out, SECTION_HEADER, |out| {
            out.extend_from_slice(&0x1a2b_3c4d_u32.to_le_bytes());
            out.extend_from_slice(&1_u16.to_le_bytes());
            out.extend_from_slice(&0_u16.to_le_bytes());
            // The length of the section is unknown.
            out.extend_from_slice(&u64::MAX.to_le_bytes());
            option(out, APPLICATION, b"sekiwake-storer");
            option(out, END, b"");
        });
        block(&mut out, INTERFACE, |out| {
            out.extend_from_slice(&LINKTYPE_RAW.to_le_bytes());
            out.extend_from_slice(&0_u16.to_le_bytes());
            out.extend_from_slice(&0_u32.to_le_bytes());
            option(out, INTERFACE_NAME, kind.as_str().as_bytes());
            option(out, RESOLUTION, &[9]);
            option(out, END, b"");
        });
        Seal::append(&mut out, 0, 0, [WallTime::MAX, WallTime::EPOCH], self.key);
        out
    }

    /// Appends a record to a buffer, whose last bytes are this group.
    pub fn encode(&self, record: &Record<'_>, publisher: &str, out: &mut Vec<u8>, group: &mut OpenGroup) {
        self.append(record, publisher, false, out, group);
    }

    /// The same for a template that is known at the start of a file.
    pub fn encode_template(&self, record: &Record<'_>, out: &mut Vec<u8>, group: &mut OpenGroup) {
        self.append(record, "", true, out, group);
    }

    /// Seals the group, if it is not empty. The buffer can be written then.
    pub fn seal(&self, out: &mut Vec<u8>, group: &mut OpenGroup) {
        if group.packets > 0 {
            Seal::append(out, group.start, group.packets, [group.earliest, group.latest], self.key);
        }
        *group = OpenGroup { start: out.len(), ..OpenGroup::default() };
    }

    fn append(
        &self,
        record: &Record<'_>,
        publisher: &str,
        is_template: bool,
        out: &mut Vec<u8>,
        group: &mut OpenGroup,
    ) {
        out.reserve(ORDINARY_BYTES + record.payload.len());
        let addresses = addresses_of(record);
        let is_mapped = |address: IpAddr| matches!((&addresses, address), (Addresses::V6(..), IpAddr::V4(_)));
        let bits = if is_template { TEMPLATE_BIT } else { 0 }
            | if is_mapped(record.source) { MAPPED_SOURCE_BIT } else { 0 }
            | if is_mapped(record.destination) { MAPPED_DESTINATION_BIT } else { 0 }
            | match record.origin {
                None => 0,
                Some(Origin { ip_id: None, .. }) => ORIGIN_BIT,
                Some(Origin { ip_id: Some(_), .. }) => ORIGIN_BIT | IDENTIFIED_BIT,
            };
        block(out, PACKET, |out| {
            let length = ip_bytes(&addresses, record);
            let at = record.captured_at_ns;
            for number in [0, (at >> 32) as u32, at as u32, length as u32, length as u32] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            append_ip(record, &addresses, out);
            pad(out, length);
            metadata(record, publisher, bits, out);
            if is_template {
                option(out, COMMENT, TEMPLATE_COMMENT);
            }
            option(out, END, b"");
        });
        let captured_at = WallTime::from_nanos(record.captured_at_ns);
        group.packets += 1;
        group.earliest = group.earliest.min(captured_at);
        group.latest = group.latest.max(captured_at);
        if out.len() - group.start >= GROUP_BYTES {
            self.seal(out, group);
        }
    }
}

/// The addresses of a record's packet.
pub(super) fn addresses_of(record: &Record<'_>) -> Addresses {
    match (record.source, record.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Addresses::V4(source, destination),
        (source, destination) => Addresses::V6(v6(source), v6(destination)),
    }
}

/// The bytes of a packet, headers and payload.
pub(super) fn ip_bytes(addresses: &Addresses, record: &Record<'_>) -> usize {
    let header = UDP_HEADER + if matches!(addresses, Addresses::V4(..)) { 20 } else { 40 };
    header + record.payload.len()
}

/// Appends a packet.
pub(super) fn append_ip(record: &Record<'_>, addresses: &Addresses, out: &mut Vec<u8>) {
    match *addresses {
        Addresses::V4(source, destination) => ipv4(record, source, destination, out),
        Addresses::V6(source, destination) => ipv6(record, source, destination, out),
    }
    out.extend_from_slice(record.payload);
}

fn metadata(record: &Record<'_>, publisher: &str, bits: u8, out: &mut Vec<u8>) {
    let name = &publisher.as_bytes()[..publisher.len().min(usize::from(u8::MAX))];
    let origin_bytes = if record.origin.is_some() { 5 } else { 0 };
    let length = 4 + 4 + 4 + 2 * record.vlans.len() + 1 + name.len() + origin_bytes;
    out.extend_from_slice(&CUSTOM_BINARY.to_le_bytes());
    out.extend_from_slice(&(length as u16).to_le_bytes());
    out.extend_from_slice(&ENTERPRISE.to_le_bytes());
    out.extend_from_slice(&[VERSION, bits, record.format.code(), record.vlans.len() as u8]);
    out.extend_from_slice(&record.flags.bits().to_le_bytes());
    for vlan in &record.vlans {
        out.extend_from_slice(&vlan.to_le_bytes());
    }
    out.push(name.len() as u8);
    out.extend_from_slice(name);
    if let Some(Origin { ip_id, interface }) = record.origin {
        out.push(interface);
        out.extend_from_slice(&ip_id.unwrap_or(0).to_le_bytes());
    }
    pad(out, length);
}

/// RFC 791 §3.1, without options. The identification is 0 if it is not known.
fn ipv4(record: &Record<'_>, source: Ipv4Addr, destination: Ipv4Addr, out: &mut Vec<u8>) {
    let start = out.len();
    // A longer one cannot have been sent as IPv4. 0: to the end of the packet.
    let total = u16::try_from(20 + UDP_HEADER + record.payload.len()).unwrap_or(0);
    out.extend_from_slice(&[0x45, (record.dscp_ttl >> 8 << 2) as u8]);
    out.extend_from_slice(&total.to_be_bytes());
    let identification = record.origin.and_then(|origin| origin.ip_id).unwrap_or(0) as u16;
    out.extend_from_slice(&identification.to_be_bytes());
    out.extend_from_slice(&[0, 0, record.dscp_ttl as u8, UDP, 0, 0]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());
    let checksum = !folded(sum(&out[start..]));
    out[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
    // 0: the sender has computed no checksum (RFC 768).
    udp(record, 0, out);
}

/// RFC 8200 §3.
fn ipv6(record: &Record<'_>, source: Ipv6Addr, destination: Ipv6Addr, out: &mut Vec<u8>) {
    let start = out.len();
    let length = UDP_HEADER + record.payload.len();
    let class = (record.dscp_ttl >> 8 << 2) as u8;
    out.extend_from_slice(&[0x60 | class >> 4, class << 4, 0, 0]);
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.extend_from_slice(&[UDP, record.dscp_ttl as u8]);
    out.extend_from_slice(&source.octets());
    out.extend_from_slice(&destination.octets());
    // The checksum is not optional here (RFC 8200 §8.1): of the addresses, the length, the number
    // of UDP, the header and the payload.
    let ports = u64::from(record.source_port) + u64::from(record.destination_port);
    let fields = sum(&out[start + 8..]) + 2 * length as u64 + u64::from(UDP) + ports;
    let checksum = match !folded(fields + sum(record.payload)) {
        0 => 0xffff,
        checksum => checksum,
    };
    udp(record, checksum, out);
}

fn udp(record: &Record<'_>, checksum: u16, out: &mut Vec<u8>) {
    let length = (UDP_HEADER + record.payload.len()) as u16;
    for number in [record.source_port, record.destination_port, length, checksum] {
        out.extend_from_slice(&number.to_be_bytes());
    }
}

/// The sum of 16-bit words (RFC 1071).
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    sum + rest.first().map_or(0, |&last| u64::from(last) << 8)
}

fn folded(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

/// A block: its type, its length, its body, and its length again.
pub(super) fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = (out.len() - start + 4) as u32;
    out.extend_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
}

pub(super) fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Fills up to a multiple of four bytes.
pub(super) fn pad(out: &mut Vec<u8>, length: usize) {
    const ZEROS: [u8; 3] = [0; 3];
    out.extend_from_slice(&ZEROS[..length.next_multiple_of(4) - length]);
}
