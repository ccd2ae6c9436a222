//! Datagrams, built according to the standards.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use sekiwake_flow::{Exporters, Limits, Observed};
use sekiwake_record::Format;

pub(crate) const SOURCE: SocketAddr = from_port(50_000);

/// The device of all tests, with this source port.
pub(crate) const fn from_port(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(198, 18, 0, 1)), port)
}

pub(crate) fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

pub(crate) fn set(id: u16, contents: &[u16]) -> Vec<u8> {
    let mut bytes = words(&[id, 4 + 2 * contents.len() as u16]);
    bytes.extend(words(contents));
    bytes
}

pub(crate) fn netflow9(sequence: u32, source_id: u32, sets: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = words(&[9, sets.len() as u16]);
    for word in [1000, 1_700_000_000, sequence, source_id] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(sets.concat());
    bytes
}

pub(crate) fn ipfix(sequence: u32, domain: u32, sets: &[Vec<u8>]) -> Vec<u8> {
    let sets = sets.concat();
    let mut bytes = words(&[10, 16 + sets.len() as u16]);
    for word in [1_700_000_000, sequence, domain] {
        bytes.extend(u32::to_be_bytes(word));
    }
    bytes.extend(sets);
    bytes
}

pub(crate) fn netflow5(sequence: u32, count: u16) -> Vec<u8> {
    let mut bytes = vec![0; 24 + 48 * usize::from(count)];
    bytes[..4].copy_from_slice(&words(&[5, count]));
    bytes[16..20].copy_from_slice(&sequence.to_be_bytes());
    bytes
}

pub(crate) fn sflow5(sequence: u32, sub_agent: u32) -> Vec<u8> {
    [5, 1, 0xc612_0001, sub_agent, sequence, 0, 0].into_iter().flat_map(u32::to_be_bytes).collect()
}

pub(crate) fn format_of(payload: &[u8]) -> Format {
    match payload.get(1) {
        Some(5) => Format::NetFlow5,
        Some(9) => Format::NetFlow9,
        Some(10) => Format::Ipfix,
        _ => Format::Sflow5,
    }
}

pub(crate) fn exporters() -> Exporters {
    Exporters::new(Limits::default())
}

pub(crate) fn observe(exporters: &mut Exporters, payload: &[u8], at_ns: u64, wanted: u64) -> Observed {
    observe_from(exporters, SOURCE, payload, at_ns, wanted)
}

pub(crate) fn observe_from(
    exporters: &mut Exporters,
    source: SocketAddr,
    payload: &[u8],
    at_ns: u64,
    wanted: u64,
) -> Observed {
    exporters.observe(source, format_of(payload), payload, at_ns, wanted)
}

/// The known templates of exporters with their ports, sorted: key and contents.
pub(crate) fn known(exporters: &Exporters) -> Vec<(Vec<u8>, Vec<u8>)> {
    of_length(exporters, 25)
}

/// The known templates of addresses, in the form of the version before.
pub(crate) fn known_of_addresses(exporters: &Exporters) -> Vec<(Vec<u8>, Vec<u8>)> {
    of_length(exporters, 23)
}

fn of_length(exporters: &Exporters, key: usize) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut changes = Vec::new();
    for number in 0..64 {
        exporters.shard_changes(sekiwake_record::Shard::new(number).unwrap(), &mut changes);
    }
    let live = changes.into_iter().filter(|change| !change.value.is_empty() && change.key.len() == key);
    let mut known: Vec<_> = live.map(|change| (change.key, change.value)).collect();
    known.sort();
    known
}

/// The identifiers of the known templates.
pub(crate) fn ids(exporters: &Exporters) -> Vec<u16> {
    known(exporters).iter().map(|(key, _)| u16::from_be_bytes([key[21], key[22]])).collect()
}

pub(crate) fn ahead(exporters: &Exporters, payload: &[u8], max_bytes: usize) -> Vec<Vec<u8>> {
    ahead_of(exporters, SOURCE, payload, max_bytes)
}

pub(crate) fn ahead_of(exporters: &Exporters, source: SocketAddr, payload: &[u8], max_bytes: usize) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    exporters.template_datagrams(source, format_of(payload), payload, max_bytes, &mut out);
    out
}
