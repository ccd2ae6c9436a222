//! Flow export: NetFlow v5 and v9, IPFIX, sFlow v5.
//!
//! ```text
//! NetFlow v5 │ version=5 u16  │ count u16 1..=30 │ 20 bytes │ count × record of 48 bytes
//! NetFlow v9 │ version=9 u16  │ count u16        │ 16 bytes │ flowsets
//! IPFIX      │ version=10 u16 │ length u16       │ 12 bytes │ sets
//! sFlow v5   │ version=5 u32  │ address type u32 │ address 0, 4, 16 │ 12 bytes │ count u32 │ samples
//!
//! flowset, set │ id u16   │ length u16, which includes these 4 bytes     │ contents
//! sample       │ type u32 │ length u32, which does not include its header │ contents
//! ```

use sekiwake_record::{
    Format,
    bytes::{u16_at, u32_at},
};

/// NetFlow v5 header and record lengths, bytes, and the most records per packet (Cisco's
/// description of the export format).
const NETFLOW5_HEADER: usize = 24;
const NETFLOW5_RECORD: usize = 48;
const NETFLOW5_MAX_RECORDS: u16 = 30;

/// NetFlow v9 header length, bytes (RFC 3954 §5.1).
const NETFLOW9_HEADER: usize = 20;

/// IPFIX message header length, bytes (RFC 7011 §3.1).
const IPFIX_HEADER: usize = 16;

/// The header of a set or flowset, bytes: identifier and length (RFC 3954 §5.2, RFC 7011 §3.3.2).
const SET_HEADER: usize = 4;

/// The lowest identifier of a data set. Lower ones are template sets or reserved.
const MIN_DATA_SET_ID: u16 = 256;

/// The header of an sFlow sample, bytes: type and length (sflow.org, version 5, §5).
const SAMPLE_HEADER: usize = 8;

/// The agent's address types (sflow.org, version 5, §5); an unknown address has no bytes.
const ADDRESS_UNKNOWN: u32 = 0;
const ADDRESS_IPV4: u32 = 1;
const ADDRESS_IPV6: u32 = 2;

/// The number of consistent sets or samples after which the rest is not checked, so that a datagram
/// with 16,000 empty sets costs as much as any other.
const MAX_STEPS: usize = 16;

/// The samples of an sFlow v5 datagram: their number according to the header, and the bytes after
/// it.
struct Samples<'a> {
    count: u32,
    bytes: &'a [u8],
}

/// The format by the header only: for flow ports.
pub(crate) fn identify_header(payload: &[u8]) -> Option<Format> {
    match u16_at(payload, 0)? {
        5 => netflow5(payload),
        9 => (payload.len() >= NETFLOW9_HEADER).then_some(Format::NetFlow9),
        10 => ipfix_message(payload).map(|_| Format::Ipfix),
        0 => sflow5_samples(payload).map(|_| Format::Sflow5),
        _ => None,
    }
}

/// The format by the header, if the sets or samples are consistent with it: for all other ports.
pub(crate) fn identify_structure(payload: &[u8]) -> Option<Format> {
    match u16_at(payload, 0)? {
        5 => netflow5(payload),
        9 => {
            let flowsets = payload.get(NETFLOW9_HEADER..)?;
            (!flowsets.is_empty() && are_sets(flowsets, 0..=1)).then_some(Format::NetFlow9)
        }
        10 => are_sets(ipfix_message(payload)?.get(IPFIX_HEADER..)?, 2..=3).then_some(Format::Ipfix),
        0 => are_samples(&sflow5_samples(payload)?).then_some(Format::Sflow5),
        _ => None,
    }
}

/// NetFlow v5: the count is in range, and the payload has at least that many records. Bytes after
/// them are ignored.
fn netflow5(payload: &[u8]) -> Option<Format> {
    let count = u16_at(payload, 2)?;
    let announced = NETFLOW5_HEADER + usize::from(count) * NETFLOW5_RECORD;
    ((1..=NETFLOW5_MAX_RECORDS).contains(&count) && announced <= payload.len()).then_some(Format::NetFlow5)
}

/// The IPFIX message, as long as its length field says. Bytes after it, such as a second message,
/// are ignored.
fn ipfix_message(payload: &[u8]) -> Option<&[u8]> {
    let message = payload.get(..usize::from(u16_at(payload, 2)?))?;
    (message.len() >= IPFIX_HEADER).then_some(message)
}

/// Whether `bytes` are consecutive sets. A remainder shorter than a set header is padding, and so
/// are zeros behind a set: Palo Alto's PAN-OS and Cisco's ACI fill datagrams to a fixed length.
fn are_sets(mut bytes: &[u8], template_ids: std::ops::RangeInclusive<u16>) -> bool {
    for step in 0..MAX_STEPS {
        let (Some(id), Some(length)) = (u16_at(bytes, 0), u16_at(bytes, 2)) else { return true };
        if step > 0 && (id, length) == (0, 0) {
            return bytes.iter().all(|byte| *byte == 0);
        }
        let length = usize::from(length);
        let known = id >= MIN_DATA_SET_ID || template_ids.contains(&id);
        if !known || length < SET_HEADER || length > bytes.len() {
            return false;
        }
        bytes = &bytes[length..];
    }
    true
}

/// The samples of an sFlow v5 datagram.
fn sflow5_samples(payload: &[u8]) -> Option<Samples<'_>> {
    if u32_at(payload, 0)? != 5 {
        return None;
    }
    let address_length = match u32_at(payload, 4)? {
        ADDRESS_UNKNOWN => 0,
        ADDRESS_IPV4 => 4,
        ADDRESS_IPV6 => 16,
        _ => return None,
    };
    // After the address: sub-agent, sequence number, uptime, and the number of samples.
    let count_offset = 8 + address_length + 12;
    Some(Samples { count: u32_at(payload, count_offset)?, bytes: payload.get(count_offset + 4..)? })
}

/// Whether the bytes begin with as many samples as counted. The length of each is a multiple of 4,
/// as XDR requires.
fn are_samples(samples: &Samples<'_>) -> bool {
    let count = usize::try_from(samples.count).unwrap_or(usize::MAX);
    let mut bytes = samples.bytes;
    if count > bytes.len() / SAMPLE_HEADER {
        return false;
    }
    for _ in 0..count.min(MAX_STEPS) {
        let Some(length) = u32_at(bytes, 4).and_then(|length| usize::try_from(length).ok()) else { return false };
        let contents = &bytes[SAMPLE_HEADER..];
        if length % 4 != 0 || length > contents.len() {
            return false;
        }
        bytes = &contents[length..];
    }
    true
}
