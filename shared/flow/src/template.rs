//! Template records in their sets.
//!
//! ```text
//! NetFlow v9, flowset 0 │ id u16 │ fields u16 │ fields × (type u16, length u16)                                        RFC 3954 §5.2
//! NetFlow v9, flowset 1 │ id u16 │ scope bytes u16 │ option bytes u16 │ (type u16, length u16) …                       RFC 3954 §6.1
//! IPFIX, set 2          │ id u16 │ fields u16 │ fields × (enterprise bit and element u16, length u16 [, enterprise u32])  RFC 7011 §3.4.1
//! IPFIX, set 3          │ id u16 │ fields u16 │ scope fields u16 │ fields as in set 2                                  RFC 7011 §3.4.2
//! IPFIX withdrawal      │ id u16, or the set's own id for all │ 0 u16                                                  RFC 7011 §8.1
//! ```

use sekiwake_record::bytes::{u16_at, u32_at};

use crate::header::Version;

/// The header of a set or flowset, bytes: identifier and length, which counts the header (RFC 3954
/// §5.2, RFC 7011 §3.3.2).
pub(crate) const SET_HEADER: usize = 4;

/// The lowest identifier of a template, and of a set of data.
pub(crate) const MIN_TEMPLATE_ID: u16 = 256;

/// The length of a field whose length is in each record (RFC 7011 §7).
pub(crate) const VARIABLE: u16 = u16::MAX;

/// The kind of templates in a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SetKind {
    pub(crate) version: Version,
    pub(crate) options: bool,
}

impl SetKind {
    /// The kind of the set with this identifier, if it has templates.
    pub(crate) fn from_set_id(version: Version, set_id: u16) -> Option<SetKind> {
        let options = match (version, set_id) {
            (Version::NetFlow9, 0) | (Version::Ipfix, 2) => false,
            (Version::NetFlow9, 1) | (Version::Ipfix, 3) => true,
            _ => return None,
        };
        Some(SetKind { version, options })
    }

    /// The identifier of such sets.
    pub(crate) fn set_id(self) -> u16 {
        match self.version {
            Version::NetFlow9 => u16::from(self.options),
            Version::Ipfix => 2 + u16::from(self.options),
        }
    }

    /// The bytes of a record before its fields.
    pub(crate) fn record_header(self) -> usize {
        if self.options { 6 } else { 4 }
    }
}

/// An entry of a template set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry<'a> {
    /// This template is defined by these bytes, which begin with its identifier.
    Template(u16, &'a [u8]),
    /// This template is withdrawn.
    Withdrawn(u16),
    /// All templates of the set's kind are withdrawn.
    AllWithdrawn,
}

/// The contents of a set are not template records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The entries of a template set, without its header. Zeros, or fewer bytes than a record, at the
/// end are padding.
#[derive(Clone)]
pub(crate) struct Entries<'a> {
    kind: SetKind,
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    pub(crate) fn new(kind: SetKind, contents: &'a [u8]) -> Entries<'a> {
        Entries { kind, rest: contents }
    }

    fn read(&self, id: u16) -> Result<(Entry<'a>, usize), Malformed> {
        let kind = self.kind;
        let second = u16_at(self.rest, 2).ok_or(Malformed)?;
        if kind.version == Version::Ipfix && second == 0 {
            let entry = if id == kind.set_id() { Entry::AllWithdrawn } else { Entry::Withdrawn(id) };
            return match entry {
                Entry::Withdrawn(id) if id < MIN_TEMPLATE_ID => Err(Malformed),
                _ => Ok((entry, 4)),
            };
        }
        let length = match (kind.version, kind.options) {
            (Version::NetFlow9, false) => kind.record_header() + usize::from(second) * 4,
            (Version::NetFlow9, true) => {
                let option_bytes = u16_at(self.rest, 4).ok_or(Malformed)?;
                if second % 4 != 0 || option_bytes % 4 != 0 {
                    return Err(Malformed);
                }
                kind.record_header() + usize::from(second) + usize::from(option_bytes)
            }
            (Version::Ipfix, options) => {
                if options && u16_at(self.rest, 4).ok_or(Malformed)? > second {
                    return Err(Malformed);
                }
                let mut length = kind.record_header();
                for _ in 0..second {
                    length += field_bytes(kind.version, u16_at(self.rest, length).ok_or(Malformed)?);
                }
                length
            }
        };
        let record = self.rest.get(..length).ok_or(Malformed)?;
        if id < MIN_TEMPLATE_ID || length == kind.record_header() {
            return Err(Malformed);
        }
        Ok((Entry::Template(id, record), length))
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<Entry<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        let id = u16_at(self.rest, 0)?;
        if self.rest.len() < 4 || (id == 0 && self.rest.iter().all(|byte| *byte == 0)) {
            return None;
        }
        let outcome = self.read(id);
        self.rest = match outcome {
            Ok((_, length)) => &self.rest[length..],
            Err(Malformed) => &[],
        };
        Some(outcome.map(|(entry, _)| entry))
    }
}

/// The length of a field specifier by its first 16 bits: the enterprise bit adds four bytes (RFC
/// 7011 §3.2).
pub(crate) fn field_bytes(version: Version, element: u16) -> usize {
    if version == Version::Ipfix && element & 0x8000 != 0 { 8 } else { 4 }
}

/// The lengths of a template's data records, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// The length of all records. 0: they cannot be counted.
    Fixed(u32),
    /// The bytes before each field of variable length, and after the last of them.
    Variable { before: Box<[u32]>, after: u32 },
}

impl Layout {
    /// The layout that a valid template record describes.
    pub(crate) fn new(kind: SetKind, record: &[u8]) -> Layout {
        Layout::of_fields(kind, record, usize::MAX)
    }

    /// The layout of the scope fields, which begin each record of a valid options template.
    pub(crate) fn of_scope(kind: SetKind, record: &[u8]) -> Layout {
        let fields = match kind.version {
            Version::NetFlow9 => u16_at(record, 2).unwrap_or(0) / 4,
            Version::Ipfix => u16_at(record, 4).unwrap_or(0),
        };
        Layout::of_fields(kind, record, fields.into())
    }

    fn of_fields(kind: SetKind, record: &[u8], fields: usize) -> Layout {
        let mut before = Vec::new();
        let mut fixed = 0;
        let mut offset = kind.record_header();
        for _ in 0..fields {
            let (Some(element), Some(length)) = (u16_at(record, offset), u16_at(record, offset + 2)) else { break };
            if kind.version == Version::Ipfix && length == VARIABLE {
                before.push(fixed);
                fixed = 0;
            } else {
                fixed += u32::from(length);
            }
            offset += field_bytes(kind.version, element);
        }
        if before.is_empty() { Layout::Fixed(fixed) } else { Layout::Variable { before: before.into(), after: fixed } }
    }

    /// Its size on the heap, bytes.
    pub(crate) fn heap_bytes(&self) -> usize {
        match self {
            Layout::Fixed(_) => 0,
            Layout::Variable { before, .. } => size_of_val(&**before),
        }
    }

    /// The number of records in the contents of a data set. A remainder that is too short for a
    /// record is padding. Each step consumes at least one byte, so the length bounds the work.
    pub(crate) fn count_records(&self, mut contents: &[u8]) -> Option<u32> {
        if let Layout::Fixed(length @ 1..) = self {
            return u32::try_from(contents.len()).ok().map(|bytes| bytes / length);
        }
        let mut records = 0;
        while contents.len() >= self.least() {
            contents = contents.get(self.length_of_first(contents)?..)?;
            records += 1;
        }
        Some(records)
    }

    /// The shortest record, bytes.
    fn least(&self) -> usize {
        match self {
            Layout::Fixed(length) => *length as usize,
            Layout::Variable { before, after } => {
                before.iter().map(|fixed| *fixed as usize + 1).sum::<usize>() + *after as usize
            }
        }
    }

    /// The length of the fields at the start of `bytes`, bytes. `None` if they are incomplete, or
    /// have no length.
    pub(crate) fn length_of_first(&self, bytes: &[u8]) -> Option<usize> {
        let length = match self {
            Layout::Fixed(length) => *length as usize,
            Layout::Variable { before, after } => {
                let mut rest = bytes;
                for fixed in before {
                    rest = skip_variable(rest.get(*fixed as usize..)?)?;
                }
                bytes.len() - rest.len() + *after as usize
            }
        };
        (1..=bytes.len()).contains(&length).then_some(length)
    }
}

/// The bytes after a field of variable length, whose length is one byte, or 255 and two bytes (RFC
/// 7011 §7).
fn skip_variable(bytes: &[u8]) -> Option<&[u8]> {
    match *bytes.first()? {
        255 => bytes.get(3 + usize::from(u16_at(bytes, 1)?)..),
        length => bytes.get(1 + usize::from(length)..),
    }
}

/// Whether these bytes are exactly one template record of this identifier.
pub(crate) fn is_template(kind: SetKind, id: u16, record: &[u8]) -> bool {
    let mut entries = Entries::new(kind, record);
    entries.next() == Some(Ok(Entry::Template(id, record)))
}

/// Whether the rest of a datagram is zeros, which is padding.
pub(crate) fn is_padding(bytes: &[u8]) -> bool {
    u32_at(bytes, 0).is_none_or(|first| first == 0) && bytes.iter().all(|byte| *byte == 0)
}
