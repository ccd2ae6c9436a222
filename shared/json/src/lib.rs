//! A datagram as one line of JSON, as `sekiwake-capture explain` and `sekiwake-tap` print it.
//!
//! ```text
//! {"kind":"syslog","format":"rfc3164","source":"198.51.100.7","source_port":514,"destination":"203.0.113.1",
//!  "destination_port":514,"payload_length":42,"payload_sha256":"…","captured_at":"2026-01-02T03:04:05.678901234Z",
//!  "vlans":[],"reassembled":false,"payload":"<13>…"}
//! ```
//! `payload` is present if requested and valid UTF-8; other payloads are in `payload_base64`.

use std::{
    fmt::Write as _,
    io::{self, Write},
    net::IpAddr,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use sekiwake_record::{Flags, Kind, Record};
use serde::Serialize;
use serde_json::{Serializer, ser::Formatter};
use sha2::{Digest, Sha256};

/// Whether the payload itself is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Only its length and hash.
    Omitted,
    /// Also the bytes.
    Included,
}

/// One line of output. The names and their order are part of the interface.
#[derive(Serialize)]
struct Line<'a> {
    kind: Option<&'static str>,
    format: &'static str,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
    payload_length: usize,
    payload_sha256: &'a str,
    captured_at: String,
    vlans: &'a [u16],
    reassembled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
}

/// Writes a datagram as one line. `kind` is `None` if no port setting claims it.
pub fn write_line(out: &mut impl Write, kind: Option<Kind>, record: &Record<'_>, payload: Payload) -> io::Result<()> {
    let text = (payload == Payload::Included).then(|| std::str::from_utf8(record.payload));
    let line = Line {
        kind: kind.map(Kind::as_str),
        format: record.format.as_str(),
        source: record.source,
        source_port: record.source_port,
        destination: record.destination,
        destination_port: record.destination_port,
        payload_length: record.payload.len(),
        payload_sha256: &hexadecimal(&Sha256::digest(record.payload)),
        captured_at: timestamp(record.captured_at_ns),
        vlans: &record.vlans,
        reassembled: record.flags.contains(Flags::REASSEMBLED),
        payload: text.and_then(Result::ok),
        payload_base64: text.filter(Result::is_err).map(|_| BASE64_STANDARD.encode(record.payload)),
    };
    line.serialize(&mut Serializer::with_formatter(&mut *out, Escaping))?;
    out.write_all(b"\n")
}

/// The envelope of what was decoded from a datagram. The names and their order are part of the
/// interface.
#[derive(Serialize)]
struct DecodedLine<'a, T> {
    kind: Option<&'static str>,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
    captured_at: String,
    row: usize,
    #[serde(flatten)]
    decoded: &'a T,
}

/// Writes something that was decoded from a datagram as one line, `row` counting from 0. `decoded`
/// serializes to a map with other names than `kind`, `source`, `source_port`, `destination`,
/// `destination_port`, `captured_at` and `row`.
pub fn write_decoded(
    out: &mut impl Write,
    kind: Option<Kind>,
    record: &Record<'_>,
    row: usize,
    decoded: &impl Serialize,
) -> io::Result<()> {
    let line = DecodedLine {
        kind: kind.map(Kind::as_str),
        source: record.source,
        source_port: record.source_port,
        destination: record.destination,
        destination_port: record.destination_port,
        captured_at: timestamp(record.captured_at_ns),
        row,
        decoded,
    };
    line.serialize(&mut Serializer::with_formatter(&mut *out, Escaping))?;
    out.write_all(b"\n")
}

/// Nanoseconds since 1970-01-01T00:00:00Z in the format of RFC 3339, with nine digits, UTC.
pub fn timestamp(nanoseconds: u64) -> String {
    // 64 bits of nanoseconds end in the year 2554, jiff's timestamps in 9999.
    let timestamp = Timestamp::from_nanosecond(i128::from(nanoseconds)).unwrap_or(Timestamp::MAX);
    format!("{timestamp:.9}")
}

/// Escapes, in addition to what JSON requires, what a terminal or a reader of lines could obey:
/// DEL, C1, and Unicode's line and paragraph separators.
struct Escaping;

impl Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(is_unsafe) {
            let (before, from) = rest.split_at(at);
            let mut characters = from.chars();
            let Some(character) = characters.next() else { break };
            write!(out, "{before}\\u{:04x}", u32::from(character))?;
            rest = characters.as_str();
        }
        out.write_all(rest.as_bytes())
    }
}

fn is_unsafe(character: char) -> bool {
    matches!(character, '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}')
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use sekiwake_record::{Format, Vlans};

    use super::*;

    fn line(payload: &[u8], shown: Payload) -> String {
        let record = Record {
            captured_at_ns: 1_767_323_045_678_901_234,
            source: Ipv4Addr::new(198, 51, 100, 7).into(),
            source_port: 50_000,
            destination: Ipv4Addr::new(203, 0, 113, 1).into(),
            destination_port: 514,
            format: Format::Rfc3164,
            flags: Flags::REASSEMBLED,
            payload,
            vlans: Vlans::from_iter([7, 8]),
            dscp_ttl: 64,
            origin: None,
        };
        let mut out = Vec::new();
        write_line(&mut out, Some(Kind::Syslog), &record, shown).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn names_in_a_line_are_fixed() {
        assert_eq!(
            line(b"<13>hi", Payload::Included),
            "{\"kind\":\"syslog\",\"format\":\"rfc3164\",\"source\":\"198.51.100.7\",\"source_port\":50000,\
             \"destination\":\"203.0.113.1\",\"destination_port\":514,\"payload_length\":6,\
             \"payload_sha256\":\"01992b09c66b519c9a866cc0d25dfd088ede9c0581e3db5fd2ea71fd31f8c9b7\",\
             \"captured_at\":\"2026-01-02T03:04:05.678901234Z\",\"vlans\":[7,8],\"reassembled\":true,\"payload\":\"<13>hi\"}\n"
        );
    }

    #[test]
    fn characters_that_a_terminal_obeys_are_escaped() {
        let line = line("a\u{1b}b\u{7f}c\u{9b}d\u{2028}ü\u{a0}".as_bytes(), Payload::Included);
        assert!(line.contains("\"a\\u001bb\\u007fc\\u009bd\\u2028ü\u{a0}\""), "{line}");
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["payload"], "a\u{1b}b\u{7f}c\u{9b}d\u{2028}ü\u{a0}");
    }

    #[test]
    fn binary_payloads_are_base64_and_line_feeds_are_escaped() {
        assert!(line(&[0xff, 0x00], Payload::Included).contains("\"payload_base64\":\"/wA=\""));
        let forged = line(b"a\nb", Payload::Included);
        assert_eq!(forged.matches('\n').count(), 1);
        assert!(!line(b"x", Payload::Omitted).contains("\"payload\""));
    }
}
