//! Bytes that cannot be decoded.

use std::{borrow::Cow, fmt};

use sekiwake_record::Format;
use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::text::Hexadecimal;

/// Bytes of a datagram that cannot be decoded, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undecoded<'a> {
    /// The format of the datagram.
    pub format: Format,
    /// Why, as a phrase.
    pub reason: Cow<'static, str>,
    /// The source id of NetFlow v9, the observation domain of IPFIX.
    pub domain: Option<u32>,
    /// The template that the bytes belong to.
    pub template: Option<u16>,
    /// Where the bytes begin in the payload.
    pub offset: usize,
    /// The bytes. Of more than 1,024, the first are shown.
    pub bytes: &'a [u8],
}

impl<'a> Undecoded<'a> {
    /// A part of a payload.
    pub(crate) fn new(
        format: Format,
        payload: &'a [u8],
        bytes: &'a [u8],
        reason: impl Into<Cow<'static, str>>,
    ) -> Undecoded<'a> {
        let offset = (bytes.as_ptr() as usize).saturating_sub(payload.as_ptr() as usize).min(payload.len());
        Undecoded { format, reason: reason.into(), domain: None, template: None, offset, bytes }
    }
}

impl Serialize for Undecoded<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("format", self.format.as_str())?;
        map.serialize_entry("type", "undecoded")?;
        if let Some(domain) = self.domain {
            map.serialize_entry("domain", &domain)?;
        }
        if let Some(template) = self.template {
            map.serialize_entry("template", &template)?;
        }
        map.serialize_entry("reason", &self.reason)?;
        map.serialize_entry("offset", &self.offset)?;
        map.serialize_entry("length", &self.bytes.len())?;
        map.serialize_entry("bytes", &Hexadecimal(self.bytes))?;
        map.end()
    }
}

impl fmt::Display for Undecoded<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Undecoded { format, reason, domain, template, offset, bytes } = self;
        write!(f, "{format} undecoded: {reason}")?;
        if let Some(template) = template {
            write!(f, ", template {template}")?;
        }
        if let Some(domain) = domain {
            write!(f, ", domain {domain}")?;
        }
        write!(f, ", {} bytes at {offset}", bytes.len())
    }
}
