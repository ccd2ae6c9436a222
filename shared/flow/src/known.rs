//! Templates in the hand-off state of a group, as a reader that is in no group gets them, and
//! datagrams made of them.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use sekiwake_record::{
    Format,
    bytes::{u16_at, u32_at},
};

use crate::{
    change::{Content, Place},
    datagrams::Packer,
    header::{IPFIX_HEADER, Key, NETFLOW9_HEADER, Version},
    template::{SetKind, VARIABLE, field_bytes},
};

/// The bit of a field's number that says that an enterprise follows (RFC 7011 §3.2).
const ENTERPRISE_BIT: u16 = 0x8000;

/// A template and its exporter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownTemplate {
    /// The exporter's address.
    pub exporter: IpAddr,
    /// The exporter's port, if templates of the address are told apart by it.
    pub port: Option<u16>,
    /// The source id of NetFlow v9, the observation domain of IPFIX.
    pub domain: u32,
    /// [`Format::NetFlow9`] or [`Format::Ipfix`].
    pub format: Format,
    /// The template's identifier, from 256.
    pub id: u16,
    /// Whether it is an options template.
    pub is_options: bool,
    /// Its fields, in order.
    pub fields: Vec<TemplateField>,
    /// When it was last reported, nanoseconds since 1970: when it changed, or within ten minutes of
    /// when its exporter last sent it.
    pub at_ns: u64,
}

/// A field of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TemplateField {
    /// The field type of NetFlow v9, the information element of IPFIX without the enterprise bit.
    pub element: u16,
    /// The private enterprise number that the element belongs to, if any.
    pub enterprise: Option<u32>,
    /// Bytes; `None` if each record says the length.
    pub length: Option<u16>,
    /// Whether it is a scope field of an options template.
    pub is_scope: bool,
}

/// Reads the templates in hand-off entries: keys, values and times as in
/// [`Change`](crate::Change). Withdrawn templates, and entries that are not templates, are left
/// out, and so is what is said of an address and of one of its ports at the same time.
pub fn known_templates<'a>(entries: impl IntoIterator<Item = (&'a [u8], &'a [u8], u64)>) -> Vec<KnownTemplate> {
    let mut known: BTreeMap<(Key, u16), KnownTemplate> = BTreeMap::new();
    for (key, value, at_ns) in entries {
        let Some(place) = Place::read(key) else { continue };
        let Some(template) = KnownTemplate::read(&place, value, at_ns) else { continue };
        // Both forms of a key without a port stand for the address.
        let entry = known.entry((place.key, place.id)).or_insert_with(|| template.clone());
        if entry.at_ns < at_ns {
            *entry = template;
        }
    }
    let of_ports: Vec<(Key, u16)> = known.keys().filter(|(key, _)| key.port() != 0).copied().collect();
    for (key, id) in of_ports {
        known.remove(&(key.without_port(), id));
    }
    known.into_values().collect()
}

/// Datagrams with all templates of an exporter, and the newest data of its options templates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TemplateDatagrams {
    /// The exporter's address.
    pub exporter: IpAddr,
    /// The exporter's port, if templates of the address are told apart by it.
    pub port: Option<u16>,
    /// [`Format::NetFlow9`] or [`Format::Ipfix`].
    pub format: Format,
    /// When the newest of the templates was reported, nanoseconds since 1970. It is the export time
    /// in the headers.
    pub at_ns: u64,
    /// The datagrams.
    pub payloads: Vec<Vec<u8>>,
}

/// The templates in hand-off entries, as in [`known_templates`], as datagrams of at most
/// `max_bytes` unless one record is longer.
pub fn template_datagrams<'a>(
    entries: impl IntoIterator<Item = (&'a [u8], &'a [u8], u64)>,
    max_bytes: usize,
) -> Vec<TemplateDatagrams> {
    let mut known: BTreeMap<Key, BTreeMap<u16, (Content<'a>, u64)>> = BTreeMap::new();
    for (key, value, at_ns) in entries {
        let Some(place) = Place::read(key) else { continue };
        let Some(content) = Content::read(&place, value) else { continue };
        known.entry(place.key).or_default().insert(place.id, (content, at_ns));
    }
    // What is said of a port is not said of its address again.
    let of_ports: Vec<Key> = known.keys().filter(|key| key.port() != 0).copied().collect();
    for key in of_ports {
        let ids: Vec<u16> = known.get(&key).into_iter().flatten().map(|(id, _)| *id).collect();
        if let Some(of_address) = known.get_mut(&key.without_port()) {
            of_address.retain(|id, _| !ids.contains(id));
        }
    }
    known.retain(|_, templates| !templates.is_empty());
    let datagrams = |(key, templates): (Key, BTreeMap<u16, (Content<'_>, u64)>)| {
        let octets: [u8; 16] = *key.address_key().get(1..)?.first_chunk()?;
        let version = key.version()?;
        let at_ns = templates.values().map(|(_, at_ns)| *at_ns).max()?;
        let mut payloads = Vec::new();
        let header = header(version, at_ns, u32_at(key.address_key(), 17)?);
        let mut packer = Packer::new(version, &header, max_bytes, &mut payloads);
        for options in [false, true] {
            for (content, _) in templates.values().filter(|(content, _)| content.kind.options == options) {
                packer.add_template(options, content.record);
            }
        }
        for (id, (content, _)) in templates.iter().filter(|(_, (content, _))| !content.data.is_empty()) {
            packer.add_data(*id, content.data);
        }
        packer.finish();
        Some(TemplateDatagrams {
            exporter: Ipv6Addr::from(octets).to_canonical(),
            port: Some(key.port()).filter(|port| *port != 0),
            format: match version {
                Version::NetFlow9 => Format::NetFlow9,
                Version::Ipfix => Format::Ipfix,
            },
            at_ns,
            payloads,
        })
    };
    known.into_iter().filter_map(datagrams).collect()
}

/// The header of a datagram, for the packer to complete.
fn header(version: Version, at_ns: u64, domain: u32) -> Vec<u8> {
    let seconds = u32::try_from(at_ns / 1_000_000_000).unwrap_or(u32::MAX);
    let (number, length) = match version {
        Version::NetFlow9 => (9_u16, NETFLOW9_HEADER),
        Version::Ipfix => (10, IPFIX_HEADER),
    };
    let mut header = vec![0; length];
    header[..2].copy_from_slice(&number.to_be_bytes());
    let time_at = length - 12;
    header[time_at..time_at + 4].copy_from_slice(&seconds.to_be_bytes());
    // The packer counts back from here.
    header[time_at + 4..time_at + 8].copy_from_slice(&1_u32.to_be_bytes());
    header[length - 4..].copy_from_slice(&domain.to_be_bytes());
    header
}

impl KnownTemplate {
    fn read(place: &Place, value: &[u8], at_ns: u64) -> Option<KnownTemplate> {
        let Content { kind, record, .. } = Content::read(place, value)?;
        let address = place.key.address_key();
        let octets: [u8; 16] = *address.get(1..)?.first_chunk()?;
        Some(KnownTemplate {
            exporter: Ipv6Addr::from(octets).to_canonical(),
            port: Some(place.key.port()).filter(|port| *port != 0),
            domain: u32_at(address, 17)?,
            format: match kind.version {
                Version::NetFlow9 => Format::NetFlow9,
                Version::Ipfix => Format::Ipfix,
            },
            id: place.id,
            is_options: kind.options,
            fields: fields(kind, record).collect(),
            at_ns,
        })
    }
}

/// The fields of a valid template record.
pub(crate) fn fields(kind: SetKind, record: &[u8]) -> impl Iterator<Item = TemplateField> {
    let scopes = match (kind.options, kind.version) {
        (false, _) => 0,
        (true, Version::NetFlow9) => u16_at(record, 2).unwrap_or(0) / 4,
        (true, Version::Ipfix) => u16_at(record, 4).unwrap_or(0),
    };
    let mut position = 0;
    let mut offset = kind.record_header();
    std::iter::from_fn(move || {
        let (element, length) = (u16_at(record, offset)?, u16_at(record, offset + 2)?);
        let is_ipfix = kind.version == Version::Ipfix;
        let has_enterprise = is_ipfix && element & ENTERPRISE_BIT != 0;
        let field = TemplateField {
            element: if has_enterprise { element & !ENTERPRISE_BIT } else { element },
            enterprise: u32_at(record, offset + 4).filter(|_| has_enterprise),
            length: Some(length).filter(|_| !is_ipfix || length != VARIABLE),
            is_scope: position < scopes,
        };
        position += 1;
        offset += field_bytes(kind.version, element);
        Some(field)
    })
}
