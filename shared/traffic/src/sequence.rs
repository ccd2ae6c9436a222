//! Reads back the numbers that the generator wrote.

use crate::{
    Protocol,
    generate::{
        DATA_SET_ID, Dialect, INFORM_OID, SEQUENCE_BASE, SEQUENCE_DIGITS, SEQUENCE_OID, SOURCE_DIGITS, SOURCE_OID,
    },
};

/// The number of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequenced {
    /// Its protocol.
    pub protocol: Protocol,
    /// Number of the source. NetFlow v5 has 16 bits for it.
    pub source_id: u32,
    /// From 0 for each protocol and source: flows in NetFlow v5, data records in IPFIX, else
    /// datagrams. Flow protocols count modulo 2^32, SNMP modulo 2^31.
    pub sequence: u64,
    /// Count of numbers that the datagram uses: the source's next sequence is greater by this.
    pub step: u64,
}

impl Sequenced {
    /// Protocol and source in one number.
    pub fn stream(&self) -> u64 {
        (self.protocol as u64) << 32 | u64::from(self.source_id)
    }
}

/// The number of a payload from a [`Generator`](crate::generate::Generator); `None` for
/// others.
pub fn sequence_of(payload: &[u8]) -> Option<Sequenced> {
    match payload.get(..4)? {
        [b'<', ..] => syslog(payload),
        [0x30, ..] => snmp(payload),
        [0, 5, count @ ..] => {
            let step = u64::from(u16::from_be_bytes([count[0], count[1]]));
            let source_id = u32::from(u16_at(payload, 20)?);
            let sequence = u32_at(payload, 16)?;
            Some(Sequenced { protocol: Protocol::Netflow5, source_id, sequence: sequence.into(), step })
        }
        [0, 9, ..] => {
            let source_id = u32_at(payload, 16)?;
            let sequence = u32_at(payload, 12)?;
            Some(Sequenced { protocol: Protocol::Netflow9, source_id, sequence: sequence.into(), step: 1 })
        }
        [0, 10, ..] => {
            let source_id = u32_at(payload, 12)?;
            let sequence = u32_at(payload, 8)?;
            let step = ipfix_records(payload);
            Some(Sequenced { protocol: Protocol::Ipfix, source_id, sequence: sequence.into(), step })
        }
        [0, 0, 0, 5] => {
            let after_address = match u32_at(payload, 4)? {
                1 => 12,
                2 => 24,
                _ => return None,
            };
            let source_id = u32_at(payload, after_address)?;
            let sequence = u32_at(payload, after_address + 4)?;
            Some(Sequenced { protocol: Protocol::Sflow, source_id, sequence: sequence.into(), step: 1 })
        }
        _ => None,
    }
}

fn syslog(payload: &[u8]) -> Option<Sequenced> {
    let rfc5424 = payload.get(5..7)? == b"1 ";
    let (protocol, quote) = if rfc5424 { (Protocol::Rfc5424, 1) } else { (Protocol::Rfc3164, 0) };
    let header = &payload[..payload.len().min(160)];
    let source = after(header, b" source=")? + quote;
    let source_id = std::str::from_utf8(header.get(source..source + SOURCE_DIGITS)?).ok()?;
    let source_id = u32::from_str_radix(source_id, 16).ok()?;
    let sequence = source + SOURCE_DIGITS + quote + b" sequence=".len() + quote;
    let sequence = std::str::from_utf8(header.get(sequence..sequence + SEQUENCE_DIGITS)?).ok()?.parse().ok()?;
    Some(Sequenced { protocol, source_id, sequence, step: 1 })
}

/// An inform may have been forwarded as a trap, with other encodings of lengths, so only the
/// bindings count, not the tag.
fn snmp(payload: &[u8]) -> Option<Sequenced> {
    let header = &payload[..payload.len().min(320)];
    let version = *header.get(header_length(header)? + 2)?;
    let protocol = match version {
        0 => Protocol::Snmp1Trap,
        1 if after(header, &INFORM_OID).is_some() => Protocol::Snmp2cInform,
        1 => Protocol::Snmp2cTrap,
        3 => Protocol::Snmp3Trap,
        _ => return None,
    };
    // After the name: tag, length, and a leading zero octet.
    let sequence = u32_at(header, after(header, &SEQUENCE_OID)? + 3)? & !SEQUENCE_BASE;
    let source_id = u32_at(header, after(header, &SOURCE_OID)? + 3)? & !SEQUENCE_BASE;
    Some(Sequenced { protocol, source_id, sequence: sequence.into(), step: 1 })
}

/// Number of octets of tag and length.
fn header_length(value: &[u8]) -> Option<usize> {
    let length = *value.get(1)?;
    Some(if length < 0x80 { 2 } else { 2 + usize::from(length & 0x7f) })
}

fn ipfix_records(payload: &[u8]) -> u64 {
    let mut sets = payload.get(Dialect::Ipfix.header_bytes()..).unwrap_or_default();
    let mut records = 0;
    while let (Some(id), Some(length)) = (u16_at(sets, 0), u16_at(sets, 2)) {
        if id == DATA_SET_ID {
            records += usize::from(length).saturating_sub(4) / Dialect::Ipfix.record_bytes();
        }
        sets = sets.get(usize::from(length).max(4)..).unwrap_or_default();
    }
    records as u64
}

/// The offset after the first occurrence of `wanted`.
fn after(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted).map(|start| start + wanted.len())
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes.get(offset..offset + 2)?.try_into().ok().map(u16::from_be_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..offset + 4)?.try_into().ok().map(u32::from_be_bytes)
}
