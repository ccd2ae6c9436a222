//! Reads packets of groups whose seals are right.

use std::{
    borrow::Cow,
    net::{IpAddr, Ipv6Addr},
};

use sekiwake_record::{Flags, Format, Kind, MAX_PAYLOAD, Origin, Vlans, WallTime};

use super::{
    CUSTOM_BINARY, END, ENTERPRISE, IDENTIFIED_BIT, MAPPED_DESTINATION_BIT, MAPPED_SOURCE_BIT, ORIGIN_BIT, PACKET,
    TEMPLATE_BIT, VERSION, u16_of, u32_of,
};
use crate::Message;

/// Where the data of a packet begins in its block.
const DATA_AT: usize = 28;

const UDP_HEADER: usize = 8;

/// The packets of a group: where each begins in it, and its block.
pub(crate) fn packets(group: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let mut at = 0;
    let blocks = std::iter::from_fn(move || {
        let length = u32_of(group, at + 4)? as usize;
        let block = group.get(at..at.checked_add(length)?).filter(|_| length >= 12)?;
        at += length;
        Some((at - length, block))
    });
    blocks.filter(|(_, block)| u32_of(block, 0) == Some(PACKET))
}

/// The datagrams in groups, without the templates of the start of a file.
pub fn messages(kind: Kind, groups: &[u8]) -> impl Iterator<Item = Message<'_>> {
    packets(groups).filter_map(move |(_, block)| parse(kind, block).filter(|_| !is_template(block)))
}

/// The templates in groups of the start of a file.
pub fn templates(kind: Kind, groups: &[u8]) -> impl Iterator<Item = Message<'_>> {
    packets(groups).filter_map(move |(_, block)| parse(kind, block).filter(|_| is_template(block)))
}

/// Whether a group holds more than the templates of the start of a file.
pub fn holds_data(group: &[u8]) -> bool {
    packets(group).any(|(_, block)| !is_template(block))
}

/// When a packet was captured.
pub(crate) fn captured_at_of(block: &[u8]) -> Option<WallTime> {
    let (high, low) = (u32_of(block, 12)?, u32_of(block, 16)?);
    Some(WallTime::from_nanos(u64::from(high) << 32 | u64::from(low)))
}

/// Whether a packet is a template that was known at the start of the file.
pub(crate) fn is_template(block: &[u8]) -> bool {
    Metadata::of(block).is_some_and(|metadata| metadata.bits & TEMPLATE_BIT != 0)
}

/// The datagram in a packet; `None` if it is not one that the encoder has written.
pub(crate) fn parse(kind: Kind, block: &[u8]) -> Option<Message<'_>> {
    let captured_at_ns = captured_at_of(block)?.as_nanos();
    let data = data(block)?;
    let metadata = Metadata::of(block)?;
    let octets = |at: usize| -> Option<[u8; 16]> { Some(*data.get(at..)?.first_chunk()?) };
    let octets4 = |at: usize| -> Option<[u8; 4]> { Some(*data.get(at..)?.first_chunk()?) };
    let header = match data.first()? >> 4 {
        4 => Header {
            source: octets4(12)?.into(),
            destination: octets4(16)?.into(),
            class: data[1],
            ttl: *data.get(8)?,
            length: 20,
        },
        6 => Header {
            source: address(octets(8)?, metadata.bits & MAPPED_SOURCE_BIT != 0),
            destination: address(octets(24)?, metadata.bits & MAPPED_DESTINATION_BIT != 0),
            class: data[0] << 4 | data.get(1)? >> 4,
            ttl: *data.get(7)?,
            length: 40,
        },
        _ => return None,
    };
    let udp = data.get(header.length..)?;
    let payload = udp.get(UDP_HEADER..).filter(|payload| payload.len() <= MAX_PAYLOAD)?;
    Some(Message {
        kind,
        captured_at_ns,
        source: header.source,
        source_port: u16::from_be_bytes(*udp.first_chunk()?),
        destination: header.destination,
        destination_port: u16::from_be_bytes(*udp[2..].first_chunk()?),
        format: Format::from_code(metadata.format.into()),
        payload: Cow::Borrowed(payload),
        flags: metadata.flags,
        vlans: metadata.vlans,
        dscp_ttl: sekiwake_record::dscp_ttl(header.class >> 2, header.ttl),
        publisher: Some(metadata.publisher).filter(|name| !name.is_empty()),
        origin: metadata.origin,
    })
}

struct Header {
    source: IpAddr,
    destination: IpAddr,
    class: u8,
    ttl: u8,
    length: usize,
}

fn address(octets: [u8; 16], is_mapped: bool) -> IpAddr {
    let address = Ipv6Addr::from(octets);
    match address.to_ipv4_mapped().filter(|_| is_mapped) {
        Some(address) => address.into(),
        None => address.into(),
    }
}

fn data(block: &[u8]) -> Option<&[u8]> {
    let length = u32_of(block, 20)? as usize;
    block.get(DATA_AT..DATA_AT.checked_add(length)?)
}

/// The option of a packet.
struct Metadata<'a> {
    bits: u8,
    format: u8,
    flags: Flags,
    vlans: Vlans,
    publisher: &'a str,
    origin: Option<Origin>,
}

impl<'a> Metadata<'a> {
    fn of(block: &'a [u8]) -> Option<Metadata<'a>> {
        let mut at = DATA_AT + data(block)?.len().next_multiple_of(4);
        loop {
            let (code, length) = (u16_of(block, at)?, usize::from(u16_of(block, at + 2)?));
            let value = block.get(at + 4..at + 4 + length)?;
            if code == CUSTOM_BINARY && u32_of(value, 0) == Some(ENTERPRISE) {
                return Metadata::read(value);
            }
            if code == END {
                return None;
            }
            at += 4 + length.next_multiple_of(4);
        }
    }

    fn read(value: &'a [u8]) -> Option<Metadata<'a>> {
        let &[version, bits, format, vlans] = value.get(4..)?.first_chunk()?;
        if version != VERSION {
            return None;
        }
        let mut at = 12;
        let mut list = Vlans::new();
        for _ in 0..vlans {
            list.try_push(u16_of(value, at)?).ok()?;
            at += 2;
        }
        let length = usize::from(*value.get(at)?);
        let publisher = std::str::from_utf8(value.get(at + 1..at + 1 + length)?).ok()?;
        at += 1 + length;
        let flags = Flags::from_bits(u32_of(value, 8)?);
        let origin = match bits & ORIGIN_BIT {
            0 => None,
            _ => {
                let ip_id = Some(u32_of(value, at + 1)?).filter(|_| bits & IDENTIFIED_BIT != 0);
                Some(Origin { ip_id, interface: *value.get(at)? })
            }
        };
        Some(Metadata { bits, format, flags, vlans: list, publisher, origin })
    }
}
