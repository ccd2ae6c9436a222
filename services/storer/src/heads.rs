//! The starts of files of packets: the header of the file, and in a file of flows the templates
//! that are known when it is begun, so that it can be decoded without any other file.

use std::{
    collections::HashMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sekiwake_archive::{OpenGroup, PacketEncoder, messages};
use sekiwake_flow::{Change, Exporters, Limits, template_datagrams};
use sekiwake_record::{Flags, Format, Kind, Record, Shard, Vlans};

/// The longest template datagram, bytes: as exporters send them.
const MAX_DATAGRAM_BYTES: usize = 1400;

/// The limit on the templates at the start of a file, bytes.
const MAX_HEAD_BYTES: usize = 16 << 20;

/// The most exporters whose collector is remembered.
const MAX_DESTINATIONS: usize = 65_536;

/// The starts of files of one kind. Clones share their state. The writing thread learns what it has
/// stored, and reads it when it begins a file.
#[derive(Clone)]
pub struct SharedHeads(Arc<Mutex<Heads>>);

struct Heads {
    kind: Kind,
    encoder: PacketEncoder,
    exporters: Exporters,
    /// Reused memory.
    changes: Vec<Change>,
    /// Of each exporter, where its last datagram of a format was sent from and to. An address may
    /// send several formats to collectors of their own.
    last: HashMap<(IpAddr, Format), Last>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Last {
    source_port: u16,
    destination: SocketAddr,
}

impl fmt::Debug for SharedHeads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedHeads")
    }
}

impl SharedHeads {
    /// Files of this kind, sealed with this key, which has to be random.
    pub fn new(kind: Kind, key: u64) -> SharedHeads {
        SharedHeads(Arc::new(Mutex::new(Heads {
            kind,
            encoder: PacketEncoder::new(key),
            exporters: Exporters::new(Limits::default()),
            changes: Vec::new(),
            last: HashMap::new(),
        })))
    }

    /// The encoder of the packets of such files.
    pub fn encoder(&self) -> PacketEncoder {
        self.lock().encoder.clone()
    }

    /// Learns a template that another group keeps as its hand-off state.
    pub(crate) fn learn_entry(&self, key: &[u8], value: &[u8], at_ns: u64) {
        self.lock().exporters.learn(key, value, at_ns);
    }

    /// Learns from packets that have been stored.
    pub(crate) fn learn(&self, packets: &[u8]) {
        let mut heads = self.lock();
        if heads.kind == Kind::Xflow {
            heads.learn(packets);
        }
    }

    /// The start of a file, or of the file of one exporter.
    pub(crate) fn head(&self, source: Option<IpAddr>) -> Vec<u8> {
        self.lock().head(source)
    }

    fn lock(&self) -> MutexGuard<'_, Heads> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heads {
    fn learn(&mut self, packets: &[u8]) {
        for message in messages(self.kind, packets) {
            if !matches!(message.format, Format::NetFlow9 | Format::Ipfix) {
                continue;
            }
            let source = SocketAddr::new(message.source, message.source_port);
            self.exporters.observe(source, message.format, &message.payload, message.captured_at_ns, 0);
            let last = Last {
                source_port: message.source_port,
                destination: SocketAddr::new(message.destination, message.destination_port),
            };
            let key = (message.source, message.format);
            if self.last.get(&key) != Some(&last) {
                if self.last.len() >= MAX_DESTINATIONS {
                    self.last.clear();
                }
                self.last.insert(key, last);
            }
        }
        // Nobody shares them.
        self.exporters.take_changes(&mut self.changes);
        self.changes.clear();
    }

    fn head(&self, source: Option<IpAddr>) -> Vec<u8> {
        let mut out = self.encoder.head(self.kind);
        if self.kind != Kind::Xflow {
            return out;
        }
        let mut changes = Vec::new();
        match source {
            Some(source) => self.exporters.shard_changes(Shard::of(source), &mut changes),
            None => Shard::all().for_each(|shard| self.exporters.shard_changes(shard, &mut changes)),
        }
        let entries = changes.iter().map(|change| (&change.key[..], &change.value[..], change.at_ns));
        let mut templates = Vec::new();
        let mut group = OpenGroup::default();
        for known in template_datagrams(entries, MAX_DATAGRAM_BYTES) {
            if source.is_some_and(|source| source.to_canonical() != known.exporter) || templates.len() > MAX_HEAD_BYTES
            {
                continue;
            }
            let last = self.last.get(&(known.exporter, known.format)).copied();
            let destination =
                last.map_or_else(|| SocketAddr::new(unspecified(known.exporter), 0), |last| last.destination);
            for payload in &known.payloads {
                let record = Record {
                    captured_at_ns: known.at_ns,
                    source: known.exporter,
                    source_port: known.port.or(last.map(|last| last.source_port)).unwrap_or(0),
                    destination: destination.ip(),
                    destination_port: destination.port(),
                    format: known.format,
                    flags: Flags::default(),
                    payload,
                    vlans: Vlans::new(),
                    dscp_ttl: 64,
                    origin: None,
                };
                self.encoder.encode_template(&record, &mut templates, &mut group);
            }
        }
        self.encoder.seal(&mut templates, &mut group);
        out.extend_from_slice(&templates);
        out
    }
}

fn unspecified(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

#[cfg(test)]
mod tests {
    use sekiwake_archive::{GroupReader, Item, holds_data, templates};
    use sekiwake_testkit::fixtures;

    use super::*;

    /// IPFIX with one template, 256, of one field of four bytes.
    const TEMPLATE: &[u8] = b"\0\x0a\0\x1c\0\0\0\x01\0\0\0\x01\0\0\0\x07\0\x02\0\x0c\x01\0\0\x01\0\x08\0\x04";

    fn flow<'a>(source: [u8; 4], payload: &'a [u8]) -> Record<'a> {
        Record { source: source.into(), format: Format::Ipfix, destination_port: 4739, ..fixtures::record(payload) }
    }

    #[test]
    fn head_holds_the_templates_stored_before() {
        let heads = SharedHeads::new(Kind::Xflow, 5);
        let encoder = heads.encoder();
        assert_eq!(heads.head(None), encoder.head(Kind::Xflow));
        let (mut packets, mut group) = (Vec::new(), OpenGroup::default());
        for source in [[198, 51, 100, 1], [198, 51, 100, 2]] {
            encoder.encode(&flow(source, TEMPLATE), "capture", &mut packets, &mut group);
        }
        encoder.seal(&mut packets, &mut group);
        heads.learn(&packets);
        let count = |head: &[u8]| {
            let mut groups = GroupReader::new(head).unwrap();
            let mut found = Vec::new();
            while let Some(Item::Group { bytes, .. }) = groups.next_item().unwrap() {
                assert!(!holds_data(bytes));
                for message in templates(Kind::Xflow, bytes) {
                    assert_eq!((message.destination_port, message.format), (4739, Format::Ipfix));
                    assert!(memchr_like(&message.payload, &TEMPLATE[16..]));
                    found.push(message.source);
                }
            }
            found.len()
        };
        assert_eq!(count(&heads.head(None)), 2);
        assert_eq!(count(&heads.head(Some([198, 51, 100, 2].into()))), 1);
        assert_eq!(count(&heads.head(Some([198, 51, 100, 3].into()))), 0);
    }

    fn memchr_like(payload: &[u8], part: &[u8]) -> bool {
        payload.windows(part.len()).any(|window| window == part)
    }
}
