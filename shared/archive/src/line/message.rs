//! Parses lines, also lines that other programs wrote or changed.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use sekiwake_identify::syslog::Priority;
use sekiwake_record::{Flags, Format, Kind, MAX_PAYLOAD, Origin, Record, Vlans, WallTime};
use serde::Deserialize;

use super::{LineEncoder, escape};
use crate::LineFormat;

/// The longest line: six bytes per byte of the largest payload, and the fields before it.
pub const MAX_LINE_BYTES: usize = 512 << 10;

/// `2026-01-02T03:04:05.678901234Z`
const TIME_BYTES: usize = 30;

/// A stored datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Its kind.
    pub kind: Kind,
    /// The kernel's capture time, nanoseconds since 1970-01-01T00:00:00Z.
    pub captured_at_ns: u64,
    /// The device's address.
    pub source: IpAddr,
    /// The device's UDP port.
    pub source_port: u16,
    /// The address it sent to.
    pub destination: IpAddr,
    /// The UDP port it sent to.
    pub destination_port: u16,
    /// The payload's format.
    pub format: Format,
    /// The payload, unmodified.
    pub payload: Cow<'a, [u8]>,
    /// How it was processed before it was published. Lines have none.
    pub flags: Flags,
    /// VLAN identifiers, outermost first. Lines have none.
    pub vlans: Vlans,
    /// DSCP and TTL, as [`sekiwake_record::dscp_ttl`] packs them. 0 for lines.
    pub dscp_ttl: u16,
    /// The name of the publisher. Lines have none.
    pub publisher: Option<&'a str>,
    /// Where it was captured, and its identification. Lines and files of earlier versions have
    /// none.
    pub origin: Option<Origin>,
}

/// A JSON line. Fields derived from the payload are parsed but not trusted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line<'a> {
    captured_at: Cow<'a, str>,
    source: IpAddr,
    source_port: u16,
    destination: IpAddr,
    destination_port: u16,
    #[serde(rename = "facility")]
    _facility: Option<Cow<'a, str>>,
    #[serde(rename = "severity")]
    _severity: Option<Cow<'a, str>>,
    format: Cow<'a, str>,
    #[serde(borrow)]
    payload: Option<Cow<'a, str>>,
    payload_base64: Option<Cow<'a, str>>,
}

impl<'a> Message<'a> {
    /// Parses a line without its line feed; `None` if it is invalid, longer than
    /// [`MAX_LINE_BYTES`], or has a longer payload than a datagram.
    pub fn parse(format: LineFormat, line: &'a [u8]) -> Option<Message<'a>> {
        if line.len() > MAX_LINE_BYTES {
            return None;
        }
        let message = match format {
            LineFormat::Json => Message::from_json(line),
            LineFormat::Text => Message::from_text(line),
        }?;
        (message.payload.len() <= MAX_PAYLOAD).then_some(message)
    }

    /// The same, but accepts only lines exactly as [`LineEncoder`] writes them: torn and changed
    /// lines are rejected.
    pub fn parse_exactly(format: LineFormat, line: &'a [u8]) -> Option<Message<'a>> {
        let message = Message::parse(format, line)?;
        let mut again = Vec::with_capacity(line.len() + 1);
        LineEncoder::new(format).encode(&message.record(), &mut again);
        (again.strip_suffix(b"\n") == Some(line)).then_some(message)
    }

    /// Its priority, if it starts with a PRI.
    pub fn priority(&self) -> Option<Priority> {
        Priority::of(&self.payload)
    }

    fn of_line(captured_at_ns: u64, source: SocketAddr, destination: SocketAddr, format: Format) -> Message<'a> {
        Message {
            kind: Kind::Syslog,
            captured_at_ns,
            source: source.ip(),
            source_port: source.port(),
            destination: destination.ip(),
            destination_port: destination.port(),
            format,
            payload: Cow::Borrowed(&[]),
            flags: Flags::default(),
            vlans: Vlans::new(),
            dscp_ttl: 0,
            publisher: None,
            origin: None,
        }
    }

    /// The stored part of the original record.
    pub fn record(&self) -> Record<'_> {
        Record {
            captured_at_ns: self.captured_at_ns,
            source: self.source,
            source_port: self.source_port,
            destination: self.destination,
            destination_port: self.destination_port,
            format: self.format,
            flags: self.flags,
            payload: &self.payload,
            vlans: self.vlans.clone(),
            dscp_ttl: self.dscp_ttl,
            origin: self.origin,
        }
    }

    fn from_json(line: &'a [u8]) -> Option<Message<'a>> {
        let line: Line<'a> = serde_json::from_slice(line).ok()?;
        let payload = match (line.payload, line.payload_base64) {
            (Some(Cow::Borrowed(text)), None) => Cow::Borrowed(text.as_bytes()),
            (Some(Cow::Owned(text)), None) => Cow::Owned(text.into_bytes()),
            (None, Some(text)) => Cow::Owned(BASE64_STANDARD.decode(text.as_bytes()).ok()?),
            _ => return None,
        };
        let at_ns = time(line.captured_at.as_bytes())?.as_nanos();
        let source = SocketAddr::new(line.source, line.source_port);
        let destination = SocketAddr::new(line.destination, line.destination_port);
        Some(Message { payload, ..Message::of_line(at_ns, source, destination, format_of(&line.format)?) })
    }

    fn from_text(line: &'a [u8]) -> Option<Message<'a>> {
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let [captured_at, source, destination, _priority, format, payload] = std::array::from_fn(|_| fields.next());
        let text = |field: Option<&'a [u8]>| std::str::from_utf8(field?).ok();
        let source = endpoint(text(source)?)?;
        let destination = endpoint(text(destination)?)?;
        let payload = payload?;
        // The encoder escapes bytes that are not UTF-8.
        std::str::from_utf8(payload).ok()?;
        let at_ns = time(captured_at?)?.as_nanos();
        let payload = escape::from_text(payload)?;
        Some(Message { payload, ..Message::of_line(at_ns, source, destination, format_of(text(format)?)?) })
    }
}

/// The capture time of a line, read from its fixed position; `None` if it is missing. The rest of
/// the line is not parsed.
pub fn captured_at_of(format: LineFormat, line: &[u8]) -> Option<WallTime> {
    let start = match format {
        LineFormat::Json => line.strip_prefix(b"{\"captured_at\":\"")?,
        LineFormat::Text => line,
    };
    time(start.get(..TIME_BYTES)?)
}

/// Exactly as the encoder writes it: RFC 3339, nine digits, UTC. Parsed by hand, because jiff
/// accepts other spellings, too.
fn time(text: &[u8]) -> Option<WallTime> {
    let text: &[u8; TIME_BYTES] = text.try_into().ok()?;
    let is_shaped = text.iter().enumerate().all(|(index, &byte)| match index {
        4 | 7 => byte == b'-',
        10 => byte == b'T',
        13 | 16 => byte == b':',
        19 => byte == b'.',
        29 => byte == b'Z',
        _ => byte.is_ascii_digit(),
    });
    if !is_shaped {
        return None;
    }
    let digits = |from: usize, to: usize| text[from..to].iter().fold(0, |sum, byte| sum * 10 + u32::from(byte - b'0'));
    let part = |from: usize| i8::try_from(digits(from, from + 2)).ok();
    let year = i16::try_from(digits(0, 4)).ok()?;
    let at = DateTime::new(year, part(5)?, part(8)?, part(11)?, part(14)?, part(17)?, 0).ok()?;
    let second: Timestamp = at.to_zoned_datetime(TimeZone::UTC).ok()?.timestamp();
    let second = u64::try_from(second.as_second()).ok()?;
    second.checked_mul(1_000_000_000)?.checked_add(u64::from(digits(20, 29))).map(WallTime::from_nanos)
}

fn format_of(name: &str) -> Option<Format> {
    Format::ALL.into_iter().find(|format| format.as_str() == name)
}

fn endpoint(text: &str) -> Option<SocketAddr> {
    SocketAddr::from_str(text).ok()
}
