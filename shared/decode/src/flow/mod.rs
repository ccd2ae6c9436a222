//! Flows, and what else their exporters say: options, counters, templates.
//!
//! Fields are named after IANA's registry of IPFIX information elements. An element that is not in
//! it is named `enterprise/number`; enterprise 0 is IANA itself, and all of NetFlow v9.

mod elements;
mod line;
mod lists;
mod netflow5;
mod packet;
mod sets;
mod sflow;
mod sflow_records;
mod value;

use std::fmt;

use sekiwake_record::Format;
use serde::{Serialize, Serializer};

pub use self::value::{Time, Value};
pub(crate) use self::{netflow5::decode as netflow5, sets::SetDecoder, sflow::decode as sflow};

/// The rows, and the fields in them, that one datagram can have. A datagram of ordinary exporters
/// has at most 64 KiB of records of at least 20 bytes.
pub(crate) const MAX_ROWS: usize = 4096;
pub(crate) const MAX_FIELDS: usize = 65_536;

/// The private enterprise number of elements in the reverse direction (RFC 5103 §6.1).
const REVERSE_ENTERPRISE: u32 = 29_305;

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowType {
    /// A flow, or a sampled packet.
    Flow,
    /// Data of an options template, such as sampling rates and names of interfaces.
    Options,
    /// Counters of sFlow.
    Counters,
    /// A packet that was discarded, as sFlow reports it.
    Discard,
    /// A template was defined.
    Template,
    /// An options template was defined.
    OptionsTemplate,
    /// One template, or all, were withdrawn.
    Withdrawal,
}

impl FlowType {
    /// The name in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            FlowType::Flow => "flow",
            FlowType::Options => "options",
            FlowType::Counters => "counters",
            FlowType::Discard => "discard",
            FlowType::Template => "template",
            FlowType::OptionsTemplate => "options-template",
            FlowType::Withdrawal => "withdrawal",
        }
    }
}

/// The header of the datagram that a row is from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// When the exporter sent it, by its clock. sFlow does not say.
    pub exported_at: Option<Time>,
    /// The sequence number.
    pub sequence: u32,
    /// The source id of NetFlow v9, the observation domain of IPFIX, the sub-agent of sFlow.
    pub domain: Option<u32>,
    /// How long the exporter has been running, milliseconds.
    pub uptime_ms: Option<u32>,
}

/// A row of an exporter of flows.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow<'a> {
    /// The format of the datagram.
    pub format: Format,
    /// What the row is about.
    pub kind: FlowType,
    /// The header of the datagram.
    pub header: Header,
    /// The template that the data has, or that was defined or withdrawn.
    pub template: Option<u16>,
    /// The fields, in order. Names differ.
    pub fields: Vec<Field<'a>>,
}

/// A field of a flow.
#[derive(Clone, Debug, PartialEq)]
pub struct Field<'a> {
    /// Its name.
    pub name: Name,
    /// 0, or the number of fields of this name before it.
    pub repetition: u16,
    /// Its value.
    pub value: Value<'a>,
}

/// The name of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// In the registry, or one of sFlow's.
    Known(&'static str),
    /// In the registry, for the reverse direction (RFC 5103): `reverseOctetDeltaCount`.
    Reverse(&'static str),
    /// An element that is not in the registry: `9/12235`.
    Number {
        /// The private enterprise number, 0 if it has none.
        enterprise: u32,
        /// The element.
        element: u16,
    },
    /// A record of sFlow without a known structure: `sflow/0/1033`.
    Sflow {
        /// The private enterprise number, 0 for the standard.
        enterprise: u32,
        /// The format of the record.
        format: u32,
    },
}

impl<'a> Field<'a> {
    pub(crate) fn new(name: &'static str, value: Value<'a>) -> Field<'a> {
        Field { name: Name::Known(name), repetition: 0, value }
    }

    /// The name, which differs from that of all other fields of the row: `mplsLabel`,
    /// `mplsLabel.2`.
    pub fn key(&self) -> Key {
        Key { name: self.name, repetition: self.repetition }
    }
}

/// The name of a field among those of its row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    name: Name,
    repetition: u16,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if self.repetition > 0 { write!(f, ".{}", u32::from(self.repetition) + 1) } else { Ok(()) }
    }
}

impl Serialize for Key {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Key { name: Name::Known(name), repetition: 0 } => serializer.serialize_str(name),
            _ => serializer.collect_str(self),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Known(name) => f.write_str(name),
            Name::Reverse(name) => {
                let (first, rest) = name.split_at_checked(1).unwrap_or((name, ""));
                write!(f, "reverse{}{rest}", first.to_ascii_uppercase())
            }
            Name::Number { enterprise, element } => write!(f, "{enterprise}/{element}"),
            Name::Sflow { enterprise, format } => write!(f, "sflow/{enterprise}/{format}"),
        }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'a> Flow<'a> {
    pub(crate) fn new(format: Format, kind: FlowType, header: Header) -> Flow<'a> {
        Flow { format, kind, header, template: None, fields: Vec::new() }
    }

    /// The value of the first field of this name.
    pub fn get(&self, name: &str) -> Option<&Value<'a>> {
        let is_it = |field: &&Field<'_>| matches!(field.name, Name::Known(known) if known == name);
        self.fields.iter().find(is_it).map(|field| &field.value)
    }

    /// Adds a field. If there is one of its name, this is a repetition.
    pub(crate) fn push(&mut self, name: Name, value: Value<'a>) {
        let repetition = self.fields.iter().filter(|field| field.name == name).count();
        self.fields.push(Field { name, repetition: u16::try_from(repetition).unwrap_or(u16::MAX), value });
    }
}
