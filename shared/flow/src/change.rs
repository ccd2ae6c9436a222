//! Templates as replicas share them.
//!
//! ```text
//! key    version u8 (9 or 10) │ source 16 │ domain u32 │ template id u16 │ port u16
//! value  options template u8 (0 or 1) │ length u16 │ template record as in its set │ records of data
//!
//! Of the address, whatever the port; replicas of earlier builds know this form only, so it is
//! written and read as well:
//! key    version u8 (9 or 10) │ source 16 │ domain u32 │ template id u16
//! value  options template u8 (0 or 1) │ template record as in its set
//! ```
//! An empty value: withdrawn, or in the second form: ports disagree about it.

use std::net::IpAddr;

use sekiwake_record::bytes::u16_at;

use crate::{
    exporter::Template,
    header::{ADDRESS_KEY, Key},
    options_data::MAX_BYTES,
    template::{MIN_TEMPLATE_ID, SetKind, is_template},
};

/// The length of a key of the second form, bytes.
const OF_ADDRESS: usize = ADDRESS_KEY + 2;

/// A template that was learned, replaced, withdrawn, or seen again after ten minutes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The template and its exporter, at most 25 bytes.
    pub key: Vec<u8>,
    /// Its contents, at most 8 KiB. Empty: withdrawn.
    pub value: Vec<u8>,
    /// The capture time, nanoseconds since 1970. The newer of two changes wins.
    pub at_ns: u64,
}

impl Change {
    /// The exporter, as [`canonical_octets`](sekiwake_record::canonical_octets) encodes it: an IPv4
    /// address is mapped.
    pub fn source(&self) -> IpAddr {
        let octets = self.key.get(1..).and_then(|bytes| bytes.first_chunk::<16>());
        IpAddr::from(octets.copied().unwrap_or_default())
    }

    /// A template of the exporter with this key.
    pub(crate) fn of_exporter(key: &Key, template: &Template) -> Change {
        let mut value = Vec::new();
        if template.is_live() {
            let record = &template.record;
            value.push(u8::from(template.options));
            value.extend_from_slice(&u16::try_from(record.len()).unwrap_or(0).to_be_bytes());
            value.extend_from_slice(record);
            template.data.records().for_each(|record| value.extend_from_slice(record));
        }
        Change { key: key_bytes(key, template.id, Some(key.port())), value, at_ns: template.at_ns }
    }

    /// A template of an address. `None`: withdrawn, or disputed.
    pub(crate) fn of_address(key: &Key, id: u16, template: Option<&Template>, at_ns: u64) -> Change {
        let mut value = Vec::new();
        if let Some(template) = template {
            value.push(u8::from(template.options));
            value.extend_from_slice(&template.record);
        }
        Change { key: key_bytes(key, id, None), value, at_ns }
    }
}

fn key_bytes(key: &Key, id: u16, port: Option<u16>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(OF_ADDRESS + 2);
    bytes.extend_from_slice(key.address_key());
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend(port.into_iter().flat_map(u16::to_be_bytes));
    bytes
}

/// The template that a key stands for.
pub(crate) struct Place {
    pub(crate) key: Key,
    pub(crate) id: u16,
    /// The form of the value.
    is_of_address: bool,
}

impl Place {
    /// Reads the key of a change. `None` if it is invalid.
    pub(crate) fn read(bytes: &[u8]) -> Option<Place> {
        let id = u16_at(bytes, ADDRESS_KEY)?;
        let is_of_address = bytes.len() == OF_ADDRESS;
        let port = if is_of_address { 0 } else { u16_at(bytes, OF_ADDRESS)? };
        let key = Key::from_address_key(bytes.first_chunk()?, port)?;
        (bytes.len() <= OF_ADDRESS + 2 && id >= MIN_TEMPLATE_ID).then_some(Place { key, id, is_of_address })
    }
}

/// A template as a change contains it.
pub(crate) struct Content<'a> {
    pub(crate) kind: SetKind,
    pub(crate) record: &'a [u8],
    /// Records of an options template's data.
    pub(crate) data: &'a [u8],
}

impl<'a> Content<'a> {
    /// Reads a value other than a withdrawal. `None` if it is not exactly one template record with
    /// this identifier, and data.
    pub(crate) fn read(place: &Place, value: &'a [u8]) -> Option<Content<'a>> {
        let (options, rest) = value.split_first()?;
        let kind = SetKind { version: place.key.version()?, options: *options == 1 };
        let (record, data) = match place.is_of_address {
            true => (rest, &[][..]),
            false => rest.get(2..)?.split_at_checked(u16_at(rest, 0)?.into())?,
        };
        let is_valid = *options <= 1 && is_template(kind, place.id, record);
        (is_valid && data.len() <= MAX_BYTES && (kind.options || data.is_empty())).then_some(Content {
            kind,
            record,
            data,
        })
    }
}
