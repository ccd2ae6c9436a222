//! Datagrams, records and rows.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sekiwake_decode::Decoder;
use sekiwake_record::{Flags, Format, Record, Vlans};
use serde_json::Value;

pub(crate) const EXPORTER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)), 50_000);

/// When the exporters of these tests send, seconds since 1970: 2026-01-02T03:04:05Z.
pub(crate) const EXPORTED_AT: u32 = 1_767_323_045;

pub(crate) fn record(source: SocketAddr, format: Format, payload: &[u8]) -> Record<'_> {
    Record {
        captured_at_ns: u64::from(EXPORTED_AT) * 1_000_000_000,
        source: source.ip(),
        source_port: source.port(),
        destination: Ipv4Addr::new(203, 0, 113, 1).into(),
        destination_port: 2055,
        format,
        flags: Flags::default(),
        payload,
        vlans: Vlans::new(),
        dscp_ttl: 64,
        origin: None,
    }
}

/// The rows of a datagram of flows, as JSON.
pub(crate) fn rows_from(decoder: &mut Decoder, source: SocketAddr, payload: &[u8]) -> Vec<Value> {
    let format = match payload {
        [0, 5, ..] => Format::NetFlow5,
        [0, 9, ..] => Format::NetFlow9,
        [0, 10, ..] => Format::Ipfix,
        _ => Format::Sflow5,
    };
    let mut rows = Vec::new();
    decoder.decode(None, &record(source, format, payload), |row| {
        let text = serde_json::to_string(row).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        // A name that is there twice is lost in the value.
        let again = serde_json::to_string(&value).unwrap();
        assert_eq!(again.len(), text.len(), "names differ: {text}");
        assert!(!row.to_string().contains(char::is_control), "{row}");
        rows.push(value);
    });
    rows
}

pub(crate) fn rows(decoder: &mut Decoder, payload: &[u8]) -> Vec<Value> {
    rows_from(decoder, EXPORTER, payload)
}

/// The rows that are not about templates.
pub(crate) fn data(decoder: &mut Decoder, payload: &[u8]) -> Vec<Value> {
    let mut rows = rows(decoder, payload);
    rows.retain(|row| !matches!(row["type"].as_str(), Some("template" | "options-template")));
    rows
}

pub(crate) fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A set of NetFlow v9 or IPFIX.
pub(crate) fn set(id: u16, contents: &[u8]) -> Vec<u8> {
    let length = u16::try_from(contents.len() + 4).unwrap();
    [&words(&[id, length]), contents].concat()
}

/// Domain 7, uptime 10 s.
pub(crate) fn netflow9(sets: &[Vec<u8>]) -> Vec<u8> {
    let count = u16::try_from(sets.len()).unwrap();
    let mut bytes = words(&[9, count]);
    for word in [10_000, EXPORTED_AT, 21, 7] {
        bytes.extend(u32::to_be_bytes(word));
    }
    bytes.extend(sets.concat());
    bytes
}

/// Domain 7.
pub(crate) fn ipfix(sets: &[Vec<u8>]) -> Vec<u8> {
    let contents = sets.concat();
    let mut bytes = words(&[10, u16::try_from(contents.len() + 16).unwrap()]);
    for word in [EXPORTED_AT, 21, 7] {
        bytes.extend(u32::to_be_bytes(word));
    }
    bytes.extend(contents);
    bytes
}

/// A number as XDR has it.
pub(crate) fn xdr(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}

/// A sample or record of sFlow: its format, and its body with the length.
pub(crate) fn numbered(format: u32, body: &[u8]) -> Vec<u8> {
    [xdr(&[format, u32::try_from(body.len()).unwrap()]), body.to_vec()].concat()
}

/// Agent 198.51.100.9, sub-agent 3.
pub(crate) fn sflow(samples: &[Vec<u8>]) -> Vec<u8> {
    let header = xdr(&[5, 1, 0xc633_6409, 3, 21, 10_000, u32::try_from(samples.len()).unwrap()]);
    [header, samples.concat()].concat()
}
