//! The header frame of a batch: stream, sequence numbers and times, readable without the body.
//!
//! ```text
//! [version, stream_name, stream_epoch, first_sequence, count,
//!  first_captured_at_ns, last_captured_at_ns]
//! ```

use std::fmt;

use rmp::encode::{ValueWriteError, write_array_len, write_str, write_uint};

use crate::{
    DecodeError, Name,
    msgpack::{Unexpected, read_array, read_number, read_text, skip},
};

/// The version of the wire format. Elements appended to an array do not change it.
pub const PROTOCOL_VERSION: u64 = 1;

/// The stream of a batch, its sequence numbers, and the capture times of its records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    /// The publisher's name.
    pub stream_name: &'a str,
    /// The random number of this run of the publisher. Compared for equality only.
    pub stream_epoch: u64,
    /// The sequence number of the first record in this stream and topic.
    pub first_sequence: u64,
    /// The number of records in the body.
    pub count: u32,
    /// Capture time of the earliest record, nanoseconds since 1970-01-01T00:00:00Z.
    pub first_captured_at_ns: u64,
    /// Capture time of the latest record, nanoseconds since 1970-01-01T00:00:00Z.
    pub last_captured_at_ns: u64,
}

const FIELDS: u32 = 7;

impl<'a> Header<'a> {
    /// Writes the frame to `out`, replacing its contents.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        self.write(out).expect("writing to a Vec cannot fail");
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), ValueWriteError> {
        write_array_len(out, FIELDS)?;
        write_uint(out, PROTOCOL_VERSION)?;
        write_str(out, self.stream_name)?;
        write_uint(out, self.stream_epoch)?;
        write_uint(out, self.first_sequence)?;
        write_uint(out, self.count.into())?;
        write_uint(out, self.first_captured_at_ns)?;
        write_uint(out, self.last_captured_at_ns)?;
        Ok(())
    }

    /// Reads the frame. Elements that a later version appended are skipped.
    ///
    /// # Errors
    /// Another structure, a stream name that is not a [`Name`], another protocol version, or bytes
    /// after the array.
    pub fn decode(frame: &'a [u8]) -> Result<Header<'a>, DecodeError> {
        decode("header", FIELDS, frame, |rest, appended| {
            let header = Header {
                stream_name: read_stream_name(rest)?,
                stream_epoch: read_number(rest, "stream epoch")?,
                first_sequence: read_number(rest, "first sequence number")?,
                count: read_number(rest, "count")?,
                first_captured_at_ns: read_number(rest, "first capture time")?,
                last_captured_at_ns: read_number(rest, "last capture time")?,
            };
            Ok((header, appended))
        })
    }

    /// Divides a message that begins with the frame: the frame, and what follows it. `None` if
    /// there is no array at the beginning.
    pub fn split(message: &[u8]) -> Option<(&[u8], &[u8])> {
        let mut rest = message;
        let elements = read_array(&mut rest, "array").ok()?;
        skip(&mut rest, elements).ok()?;
        message.split_at_checked(message.len() - rest.len())
    }

    /// The sequence number after the last record of this batch.
    pub fn next_sequence(&self) -> u64 {
        self.first_sequence.saturating_add(u64::from(self.count))
    }
}

pub(crate) fn malformed(part: &'static str, error: &dyn fmt::Display) -> DecodeError {
    DecodeError::Malformed { part, reason: error.to_string() }
}

/// Decodes a frame: an array of at least `fields` elements, the first of which is the protocol
/// version. `read` reads the others, gets the number of those that are appended, and returns how
/// many of them it does not know: they are skipped.
pub(crate) fn decode<'a, T>(
    part: &'static str,
    fields: u32,
    frame: &'a [u8],
    read: impl FnOnce(&mut &'a [u8], u32) -> Result<(T, u32), Unexpected>,
) -> Result<T, DecodeError> {
    let malformed = |error: Unexpected| malformed(part, &error);
    let mut rest = frame;
    let elements = read_array(&mut rest, "array").map_err(malformed)?;
    let version = read_number(&mut rest, "protocol version").map_err(malformed)?;
    if version != PROTOCOL_VERSION {
        return Err(DecodeError::Version(version));
    }
    let appended = elements.checked_sub(fields).ok_or(Unexpected::new("more elements")).map_err(malformed)?;
    let (decoded, unknown) = read(&mut rest, appended).map_err(malformed)?;
    skip(&mut rest, unknown).map_err(malformed)?;
    if rest.is_empty() { Ok(decoded) } else { Err(DecodeError::Trailing(part)) }
}

/// Reads the name of a stream. Logs, metrics and topics contain it, so it must be a valid [`Name`].
pub(crate) fn read_stream_name<'a>(rest: &mut &'a [u8]) -> Result<&'a str, Unexpected> {
    let text = read_text(rest, "stream name")?;
    if Name::allows(text) { Ok(text) } else { Err(Unexpected::new("valid stream name")) }
}
