//! Flow export: NetFlow v5 and v9, IPFIX, sFlow v5.
//!
//! ```text
//! NetFlow v5 │ version=5 u16 │ count u16 1..=30 │ 20 bytes │ count × 48 bytes of record
//! NetFlow v9 │ version=9 u16 │ count u16        │ 16 bytes │ flowsets: id u16, length u16 with these four bytes, contents
//! IPFIX      │ version=10 u16│ length u16       │ 12 bytes │ sets, as in v9
//! sFlow v5   │ version=5 u32 │ address type u32 │ agent address 4 or 16 │ 12 bytes │ samples u32 │ samples: type u32, length u32, contents
//! ```

use sekiwake_record::Format;

use crate::bytes::{u16_at, u32_at};

/// NetFlow v5: header and record lengths, bytes, and the most records of a packet (Cisco's table of the export format).
const NETFLOW5_HEADER: usize = 24;
const NETFLOW5_RECORD: usize = 48;
const NETFLOW5_MAX_RECORDS: u16 = 30;

/// NetFlow v9 header length, bytes (RFC 3954 §5.1).
const NETFLOW9_HEADER: usize = 20;

/// IPFIX message header length, bytes (RFC 7011 §3.1).
const IPFIX_HEADER: usize = 16;

/// The header of a set or flowset, bytes: identifier and length, which counts the header (RFC 3954 §5.2, RFC 7011 §3.3.2).
const SET_HEADER: usize = 4;

/// The lowest identifier of a set that holds data. Below it are templates and what is reserved.
const MIN_DATA_SET_ID: u16 = 256;

/// The header of an sFlow sample, bytes: type and length, which does not count the header (sflow.org, version 5, §5).
const SAMPLE_HEADER: usize = 8;

/// After so many sets or samples that agree with each other the rest is believed, so that a datagram of 16,000 empty sets costs no more than others.
const MAX_STEPS: usize = 16;

/// What a payload is by its header alone: for ports where flow records are expected.
pub(crate) fn identify_header(payload: &[u8]) -> Option<Format> {
    match u16_at(payload, 0)? {
        5 => netflow5(payload),
        9 => (payload.len() >= NETFLOW9_HEADER).then_some(Format::NetFlow9),
        10 => ipfix_message(payload).map(|_| Format::Ipfix),
        0 => sflow5_samples(payload).map(|_| Format::Sflow5),
        _ => None,
    }
}

/// What a payload is if sets or samples bear out what its header says: for all other ports.
pub(crate) fn identify_structure(payload: &[u8]) -> Option<Format> {
    match u16_at(payload, 0)? {
        5 => netflow5(payload),
        9 => {
            let flowsets = payload.get(NETFLOW9_HEADER..)?;
            (!flowsets.is_empty() && are_sets(flowsets, 0..=1)).then_some(Format::NetFlow9)
        }
        10 => are_sets(ipfix_message(payload)?.get(IPFIX_HEADER..)?, 2..=3).then_some(Format::Ipfix),
        0 => sflow5_samples(payload).and_then(|(count, samples)| are_samples(count, samples).then_some(Format::Sflow5)),
        _ => None,
    }
}

/// NetFlow v5: the count is in range, and that many records are there. Bytes after them are not looked at.
fn netflow5(payload: &[u8]) -> Option<Format> {
    let count = u16_at(payload, 2)?;
    let announced = NETFLOW5_HEADER + usize::from(count) * NETFLOW5_RECORD;
    ((1..=NETFLOW5_MAX_RECORDS).contains(&count) && announced <= payload.len()).then_some(Format::NetFlow5)
}

/// The IPFIX message that its length field delimits. Bytes after it, or a second message, are not looked at.
fn ipfix_message(payload: &[u8]) -> Option<&[u8]> {
    let message = payload.get(..usize::from(u16_at(payload, 2)?))?;
    (message.len() >= IPFIX_HEADER).then_some(message)
}

/// Whether `bytes` are sets, one after the other. Less than a set header at the end is padding.
fn are_sets(mut bytes: &[u8], template_ids: std::ops::RangeInclusive<u16>) -> bool {
    for _ in 0..MAX_STEPS {
        let (Some(id), Some(length)) = (u16_at(bytes, 0), u16_at(bytes, 2)) else { return true };
        let length = usize::from(length);
        let known = id >= MIN_DATA_SET_ID || template_ids.contains(&id);
        if !known || length < SET_HEADER || length > bytes.len() {
            return false;
        }
        bytes = &bytes[length..];
    }
    true
}

/// The number of samples that an sFlow v5 header speaks of, and the bytes behind the header.
fn sflow5_samples(payload: &[u8]) -> Option<(u32, &[u8])> {
    if u32_at(payload, 0)? != 5 {
        return None;
    }
    let address_length = match u32_at(payload, 4)? {
        1 => 4,
        2 => 16,
        _ => return None,
    };
    // Behind the address: sub-agent, sequence number, uptime, and the number of samples.
    let count_offset = 8 + address_length + 12;
    Some((u32_at(payload, count_offset)?, payload.get(count_offset + 4..)?))
}

/// Whether `bytes` begin with so many samples. Each is a multiple of four bytes long, as XDR prescribes.
fn are_samples(count: u32, mut bytes: &[u8]) -> bool {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
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
