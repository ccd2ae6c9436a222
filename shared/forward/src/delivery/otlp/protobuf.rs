//! OTLP as protobuf: the messages of `opentelemetry.proto.collector.logs.v1` that a sender of logs
//! needs, and the two that it gets back.
//!
//! ```text
//! ExportLogsServiceRequest  resource_logs 1
//! ResourceLogs              resource 1, scope_logs 2
//! ScopeLogs                 scope 1, log_records 2
//! LogRecord                 time_unix_nano 1, severity_number 2, severity_text 3, body 5,
//!                           attributes 6, observed_time_unix_nano 11
//! AnyValue                  string 1, bool 2, int 3, double 4, array 5, kvlist 6, bytes 7
//! KeyValue                  key 1, value 2
//! ```
//! Written by hand, because the generated types of `opentelemetry-proto` want a `String` for each
//! name and each value, some twenty allocations per record, and bring fifteen crates, among them an
//! SDK.

use super::record::{Attribute, Body, LogRecord, SERVICE_NAME};

/// Wire types.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const LENGTH: u8 = 2;
const FIXED32: u8 = 5;

/// How deep values are nested at most.
const MAX_DEPTH: usize = 32;

/// A request under construction.
pub(super) struct RequestBuilder<'a> {
    out: &'a mut Vec<u8>,
    records: Vec<u8>,
}

impl<'a> RequestBuilder<'a> {
    pub(super) fn new(out: &'a mut Vec<u8>) -> RequestBuilder<'a> {
        out.clear();
        RequestBuilder { out, records: Vec::new() }
    }

    pub(super) fn push(&mut self, record: &LogRecord<'_>) {
        message(&mut self.records, 2, |out| write_record(out, record));
    }

    pub(super) fn finish(self) {
        let records = &self.records;
        message(self.out, 1, |out| {
            message(out, 1, |out| key_value(out, 1, "service.name", |out| bytes(out, 1, SERVICE_NAME.as_bytes())));
            message(out, 2, |out| {
                message(out, 1, |out| {
                    bytes(out, 1, b"sekiwake");
                    bytes(out, 2, env!("CARGO_PKG_VERSION").as_bytes());
                });
                out.extend_from_slice(records);
            });
        });
    }
}

fn write_record(out: &mut Vec<u8>, record: &LogRecord<'_>) {
    fixed64(out, 1, record.time_ns);
    if let Some(severity) = &record.severity {
        number(out, 2, severity.number.into());
        bytes(out, 3, severity.text.as_bytes());
    }
    message(out, 5, |out| match &record.body {
        Body::Text(text) => bytes(out, 1, text.as_bytes()),
        Body::Bytes(body) => bytes(out, 7, body),
        Body::Map(map) => any_value(out, map, 0),
    });
    record.attributes.each(|name, value| {
        key_value(out, 6, name, |out| match value {
            Attribute::Text(text) => bytes(out, 1, text.as_bytes()),
            Attribute::Number(value) => number(out, 3, value),
            Attribute::Address(address) => {
                use std::io::Write;
                // An address has at most 39 characters.
                let mut text = arrayvec::ArrayVec::<u8, 64>::new();
                let _ = write!(text, "{address}");
                bytes(out, 1, &text);
            }
        });
    });
    fixed64(out, 11, record.time_ns);
}

/// Writes JSON as AnyValue.
fn any_value(out: &mut Vec<u8>, value: &serde_json::Value, depth: usize) {
    use serde_json::Value;
    match value {
        Value::Null => {}
        Value::Bool(truth) => number(out, 2, u64::from(*truth)),
        Value::Number(written) => match (written.as_i64(), written.as_f64()) {
            (Some(integer), _) => number(out, 3, integer.cast_unsigned()),
            // Above 2^63 as text, because AnyValue has no unsigned numbers.
            (None, _) if written.is_u64() => bytes(out, 1, written.to_string().as_bytes()),
            (None, float) => {
                tag(out, 4, FIXED64);
                out.extend_from_slice(&float.unwrap_or_default().to_le_bytes());
            }
        },
        Value::String(text) => bytes(out, 1, text.as_bytes()),
        _ if depth >= MAX_DEPTH => bytes(out, 1, value.to_string().as_bytes()),
        Value::Array(values) => message(out, 5, |out| {
            values.iter().for_each(|value| message(out, 1, |out| any_value(out, value, depth + 1)));
        }),
        Value::Object(map) => message(out, 6, |out| {
            map.iter().for_each(|(name, value)| key_value(out, 1, name, |out| any_value(out, value, depth + 1)));
        }),
    }
}

fn key_value(out: &mut Vec<u8>, field: u8, name: &str, value: impl FnOnce(&mut Vec<u8>)) {
    message(out, field, |out| {
        bytes(out, 1, name.as_bytes());
        message(out, 2, value);
    });
}

fn message(out: &mut Vec<u8>, field: u8, write: impl FnOnce(&mut Vec<u8>)) {
    tag(out, field, LENGTH);
    let start = out.len();
    write(out);
    let length = out.len() - start;
    // The length stands before the message, and takes one byte to five.
    varint(out, length as u64);
    out[start..].rotate_right(varint_bytes(length as u64));
}

fn bytes(out: &mut Vec<u8>, field: u8, value: &[u8]) {
    tag(out, field, LENGTH);
    varint(out, value.len() as u64);
    out.extend_from_slice(value);
}

fn number(out: &mut Vec<u8>, field: u8, value: u64) {
    tag(out, field, VARINT);
    varint(out, value);
}

fn fixed64(out: &mut Vec<u8>, field: u8, value: u64) {
    tag(out, field, FIXED64);
    out.extend_from_slice(&value.to_le_bytes());
}

/// Fields up to 15 have a tag of one byte.
fn tag(out: &mut Vec<u8>, field: u8, wire_type: u8) {
    out.push(field << 3 | wire_type);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// The partial success in a response (ExportLogsServiceResponse: partial_success 1 with
/// rejected_log_records 1 and error_message 2). `None`: it is malformed.
pub(super) fn partial_success(response: &[u8]) -> Option<(u64, Option<String>)> {
    let mut rest = response;
    while !rest.is_empty() {
        next_field(&mut rest)?;
    }
    let Some(partial) = field(response, 1).and_then(Field::bytes) else { return Some((0, None)) };
    let rejected = field(partial, 1).and_then(Field::number).unwrap_or(0);
    let why = field(partial, 2).and_then(Field::bytes).map(|why| String::from_utf8_lossy(why).into_owned());
    Some((if rejected.cast_signed() < 0 { 0 } else { rejected }, why))
}

/// The message of an error (google.rpc.Status: message 2), if it is one.
pub(super) fn status_message(response: &[u8]) -> Option<&str> {
    std::str::from_utf8(field(response, 2)?.bytes()?).ok()
}

/// The value of a field.
#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Field<'a> {
    fn number(self) -> Option<u64> {
        if let Field::Number(number) = self { Some(number) } else { None }
    }

    fn bytes(self) -> Option<&'a [u8]> {
        if let Field::Bytes(bytes) = self { Some(bytes) } else { None }
    }
}

/// The first occurrence of a field in a message. `None` if there is none, or the message is
/// malformed before it.
fn field(mut message: &[u8], wanted: u64) -> Option<Field<'_>> {
    while !message.is_empty() {
        match next_field(&mut message)? {
            (number, Some(value)) if number == wanted => return Some(value),
            _ => {}
        }
    }
    None
}

/// The number of the next field, and its value if it is one that is read here. `None` if it is
/// malformed.
fn next_field<'a>(message: &mut &'a [u8]) -> Option<(u64, Option<Field<'a>>)> {
    let tag = read_varint(message)?;
    let value = match (tag & 7) as u8 {
        VARINT => Some(Field::Number(read_varint(message)?)),
        LENGTH => {
            let length = usize::try_from(read_varint(message)?).ok()?;
            let (value, rest) = message.split_at_checked(length)?;
            *message = rest;
            Some(Field::Bytes(value))
        }
        FIXED64 => {
            *message = message.get(8..)?;
            None
        }
        FIXED32 => {
            *message = message.get(4..)?;
            None
        }
        _ => return None,
    };
    (tag >> 3 > 0).then_some((tag >> 3, value))
}

fn read_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lengths_are_written_before_messages() {
        for length in [0, 1, 127, 128, 300, 20_000] {
            let mut out = vec![9];
            message(&mut out, 1, |out| out.resize(out.len() + length, 7));
            let read = field(&out[1..], 1).and_then(Field::bytes).unwrap();
            assert!(read.len() == length && read.iter().all(|&byte| byte == 7), "{length}");
        }
    }

    #[test]
    fn partial_success_is_read() {
        let mut response = Vec::new();
        message(&mut response, 1, |out| {
            number(out, 1, 3);
            bytes(out, 2, b"too old");
        });
        assert_eq!(partial_success(&response), Some((3, Some("too old".to_owned()))));
        assert_eq!(partial_success(&[]), Some((0, None)));
        assert_eq!(partial_success(b"<html>sign in</html>"), None);
        response.push(8);
        assert_eq!(partial_success(&response), None, "it is truncated");
        let mut status = Vec::new();
        number(&mut status, 1, 3);
        bytes(&mut status, 2, b"no tenant");
        assert_eq!(status_message(&status), Some("no tenant"));
    }

    proptest! {
        #[test]
        fn any_response_is_read_without_a_panic(response: Vec<u8>) {
            let _ = partial_success(&response);
            let _ = status_message(&response);
        }
    }
}
