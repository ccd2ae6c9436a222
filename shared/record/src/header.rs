//! The header frame of a batch: enough to count what is in it without reading the body.

use std::{fmt, io::ErrorKind};

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{IgnoredAny, SeqAccess, Visitor},
    ser::SerializeTuple,
};

use crate::{DecodeError, Name};

/// The version of the wire format that this crate writes. Appending fields to an array does not change it.
pub const PROTOCOL_VERSION: u64 = 1;

/// What a batch is: which stream it belongs to, which sequence numbers it carries, when its records were captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// The publisher's name.
    pub stream_name: &'a str,
    /// The random number of this run of the publisher. Compared for equality only.
    pub stream_epoch: u64,
    /// The sequence number of the first record in this stream and topic.
    pub first_sequence: u64,
    /// How many records the body holds.
    pub count: u32,
    /// Capture time of the earliest record, nanoseconds since 1970-01-01T00:00:00Z.
    pub first_captured_at_ns: u64,
    /// Capture time of the latest record, nanoseconds since 1970-01-01T00:00:00Z.
    pub last_captured_at_ns: u64,
}

impl<'a> Header<'a> {
    const FIELDS: usize = 7;

    /// Writes the header frame into `out`, replacing what it held.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        // A Vec takes whatever is written to it, and every type here has a msgpack form.
        rmp_serde::encode::write(out, self).expect("a header always has a msgpack form");
    }

    /// Reads a header frame. Fields that a later version appended are skipped; bytes after the array are an error, and so is a stream
    /// name that is no [`Name`](crate::Name).
    pub fn decode(frame: &'a [u8]) -> Result<Header<'a>, DecodeError> {
        let mut reader = rmp_serde::Deserializer::from_read_ref(frame);
        let versioned = Versioned::deserialize(&mut reader).map_err(|error| malformed("header", &error))?;
        match versioned {
            Versioned::Other(version) => Err(DecodeError::Version(version)),
            Versioned::Known(header) => at_end(&mut reader, "header").map(|()| header),
        }
    }

    /// The sequence number after the last record of this batch.
    pub fn next_sequence(&self) -> u64 {
        self.first_sequence.saturating_add(u64::from(self.count))
    }
}

pub(crate) fn malformed(part: &'static str, error: &dyn fmt::Display) -> DecodeError {
    DecodeError::Malformed { part, reason: error.to_string() }
}

/// Checks that a reader has consumed its whole slice.
///
/// rmp-serde does not say how far it has read, so this tries to read a `bool`: only where no byte is left does that fail on
/// the very marker (an array or a map is refused by type before anything inside it is read).
pub(crate) fn at_end(reader: &mut SliceReader<'_>, part: &'static str) -> Result<(), DecodeError> {
    match bool::deserialize(reader) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(error)) if error.kind() == ErrorKind::UnexpectedEof => Ok(()),
        _ => Err(DecodeError::Trailing(part)),
    }
}

pub(crate) type SliceReader<'a> = rmp_serde::Deserializer<rmp_serde::decode::ReadRefReader<'a, [u8]>>;

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut array = serializer.serialize_tuple(Self::FIELDS)?;
        array.serialize_element(&PROTOCOL_VERSION)?;
        array.serialize_element(self.stream_name)?;
        array.serialize_element(&self.stream_epoch)?;
        array.serialize_element(&self.first_sequence)?;
        array.serialize_element(&self.count)?;
        array.serialize_element(&self.first_captured_at_ns)?;
        array.serialize_element(&self.last_captured_at_ns)?;
        array.end()
    }
}

enum Versioned<'a> {
    Known(Header<'a>),
    Other(u64),
}

impl<'de: 'a, 'a> Deserialize<'de> for Versioned<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Versioned<'a>, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Versioned<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at least {} elements", Header::FIELDS)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Versioned<'de>, A::Error> {
                let version = next(&mut array, 0)?;
                if version != PROTOCOL_VERSION {
                    while array.next_element::<IgnoredAny>()?.is_some() {}
                    return Ok(Versioned::Other(version));
                }
                let header = Header {
                    stream_name: stream_name(&mut array, 1)?,
                    stream_epoch: next(&mut array, 2)?,
                    first_sequence: next(&mut array, 3)?,
                    count: next(&mut array, 4)?,
                    first_captured_at_ns: next(&mut array, 5)?,
                    last_captured_at_ns: next(&mut array, 6)?,
                };
                while array.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Versioned::Known(header))
            }
        }
        deserializer.deserialize_seq(Fields)
    }
}

/// The next element of an array, or the error that says how many there were.
pub(crate) fn next<'de, A: SeqAccess<'de>, T: Deserialize<'de>>(array: &mut A, index: usize) -> Result<T, A::Error> {
    array.next_element()?.ok_or_else(|| serde::de::Error::invalid_length(index, &"more elements"))
}

/// The next element of an array as the name of a stream. It ends up in logs, metrics and topics, so it has to be a name.
pub(crate) fn stream_name<'de, A: SeqAccess<'de>>(array: &mut A, index: usize) -> Result<&'de str, A::Error> {
    let text = next(array, index)?;
    if Name::allows(text) { Ok(text) } else { Err(serde::de::Error::custom("the stream's name is not allowed")) }
}
