//! Templates as replicas share them.
//!
//! ```text
//! key    version u8 (9 or 10) │ source 16 │ domain u32 │ template id u16
//! value  options template u8 (0 or 1) │ template record as it stood in its set; nothing at all: withdrawn
//! ```

use std::net::IpAddr;

use crate::{
    bytes::u16_at,
    header::{Key, TEMPLATE_KEY},
    template::{MIN_TEMPLATE_ID, SetKind, is_template},
};

/// The bytes that stand for a template of an exporter.
pub type ChangeKey = [u8; TEMPLATE_KEY + 2];

/// A template that was learned, replaced, withdrawn, or seen again after a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which template of which exporter.
    pub key: ChangeKey,
    /// Its contents, at most 4 KiB and a byte. Empty: withdrawn.
    pub value: Vec<u8>,
    /// When it was captured, nanoseconds since 1970. The newest of two holds.
    pub at_ns: u64,
}

impl Change {
    /// The exporter, as [`canonical_octets`](sekiwake_record::canonical_octets) has it: an IPv4 address is mapped.
    pub fn source(&self) -> IpAddr {
        let octets = self.key[1..].first_chunk::<16>().copied().unwrap_or_default();
        IpAddr::from(octets)
    }
}

pub(crate) fn change_key(key: &Key, template_id: u16) -> ChangeKey {
    let mut bytes = [0; TEMPLATE_KEY + 2];
    bytes[..TEMPLATE_KEY].copy_from_slice(key.template_key());
    bytes[TEMPLATE_KEY..].copy_from_slice(&template_id.to_be_bytes());
    bytes
}

/// Reads a change's key. `None`: it is none.
pub(crate) fn read_key(bytes: &[u8]) -> Option<(Key, u16)> {
    let id = u16_at(bytes, TEMPLATE_KEY)?;
    let key = Key::from_template_key(bytes.first_chunk()?)?;
    (bytes.len() == TEMPLATE_KEY + 2 && id >= MIN_TEMPLATE_ID).then_some((key, id))
}

/// A value: whether it is an options template, and its record. An empty record is a withdrawal.
pub(crate) fn write_value(options: bool, record: &[u8]) -> Vec<u8> {
    if record.is_empty() {
        return Vec::new();
    }
    let mut value = Vec::with_capacity(1 + record.len());
    value.push(u8::from(options));
    value.extend_from_slice(record);
    value
}

/// Reads a value that is no withdrawal. `None`: it is not exactly one template record of this identifier.
pub(crate) fn read_value<'a>(key: &Key, id: u16, value: &'a [u8]) -> Option<(bool, &'a [u8])> {
    let (options, record) = value.split_first()?;
    let kind = SetKind { version: key.version()?, options: *options == 1 };
    (*options <= 1 && is_template(kind, id, record)).then_some((kind.options, record))
}
