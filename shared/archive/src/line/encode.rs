//! Encodes lines. This is the storer's hot path: it allocates nothing but the line's own bytes, and
//! formats numbers and IPv4 addresses by hand to avoid the overhead of `write!`.

use std::{io::Write, net::IpAddr};

use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;
use sekiwake_identify::syslog::{Priority, facility_keyword, severity_keyword};
use sekiwake_record::{Kind, Record};

use super::{Message, escape};
use crate::LineFormat;

/// `2026-01-02T03:04:05.`
const SECOND_BYTES: usize = 20;

/// Bytes of an ordinary line besides its payload.
const ORDINARY_BYTES: usize = 320;

/// Writes records as lines of one format.
#[derive(Clone, Debug)]
pub struct LineEncoder {
    format: LineFormat,
    /// The last second written, since 1970, and its text up to the decimal point.
    second: Option<u64>,
    text: [u8; SECOND_BYTES],
    source: AddressText,
    destination: AddressText,
}

/// An address and its text. Cached, because consecutive records often share their addresses.
#[derive(Clone, Debug, Default)]
struct AddressText {
    address: Option<IpAddr>,
    text: Vec<u8>,
}

impl LineEncoder {
    /// An encoder of this format.
    pub fn new(format: LineFormat) -> LineEncoder {
        LineEncoder {
            format,
            second: None,
            text: [0; SECOND_BYTES],
            source: AddressText::default(),
            destination: AddressText::default(),
        }
    }

    /// Appends the record as a line, with its line feed.
    pub fn encode(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        out.reserve(ORDINARY_BYTES + record.payload.len());
        match self.format {
            LineFormat::Json => self.json(record, out),
            LineFormat::Text => self.text(record, out),
        }
        out.push(b'\n');
    }

    /// The same, and what is stored of datagrams of other kinds than syslog: in JSON also the kind,
    /// the publisher and VLANs, and no facility and severity.
    pub fn encode_message(&mut self, message: &Message<'_>, out: &mut Vec<u8>) {
        if message.kind == Kind::Syslog || self.format == LineFormat::Text {
            return self.encode(&message.record(), out);
        }
        out.extend_from_slice(b"{\"captured_at\":\"");
        self.time(message.captured_at_ns, out);
        out.extend_from_slice(b"\",\"kind\":\"");
        out.extend_from_slice(message.kind.as_str().as_bytes());
        out.push(b'"');
        self.endpoints(&message.record(), out);
        out.extend_from_slice(b",\"format\":\"");
        out.extend_from_slice(message.format.as_str().as_bytes());
        out.extend_from_slice(b"\",\"publisher\":");
        match message.publisher {
            Some(publisher) => {
                out.push(b'"');
                escape::json(publisher, out);
                out.push(b'"');
            }
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"vlans\":[");
        for (index, vlan) in message.vlans.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            number(u32::from(*vlan), out);
        }
        out.extend_from_slice(b"]");
        payload(&message.payload, out);
        out.extend_from_slice(b"}\n");
    }

    fn endpoints(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b",\"source\":\"");
        self.source.write(record.source, out);
        out.extend_from_slice(b"\",\"source_port\":");
        number(u32::from(record.source_port), out);
        out.extend_from_slice(b",\"destination\":\"");
        self.destination.write(record.destination, out);
        out.extend_from_slice(b"\",\"destination_port\":");
        number(u32::from(record.destination_port), out);
    }

    fn json(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"captured_at\":\"");
        self.time(record.captured_at_ns, out);
        out.push(b'"');
        self.endpoints(record, out);
        match keywords(record.payload) {
            Some((facility, severity)) => {
                out.extend_from_slice(b",\"facility\":\"");
                out.extend_from_slice(facility.as_bytes());
                out.extend_from_slice(b"\",\"severity\":\"");
                out.extend_from_slice(severity.as_bytes());
                out.push(b'"');
            }
            None => out.extend_from_slice(b",\"facility\":null,\"severity\":null"),
        }
        out.extend_from_slice(b",\"format\":\"");
        out.extend_from_slice(record.format.as_str().as_bytes());
        out.push(b'"');
        payload(record.payload, out);
        out.push(b'}');
    }

    fn text(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        self.time(record.captured_at_ns, out);
        out.push(b' ');
        self.source.write_endpoint(record.source, record.source_port, out);
        out.push(b' ');
        self.destination.write_endpoint(record.destination, record.destination_port, out);
        out.push(b' ');
        match keywords(record.payload) {
            Some((facility, severity)) => {
                out.extend_from_slice(facility.as_bytes());
                out.push(b'.');
                out.extend_from_slice(severity.as_bytes());
            }
            None => out.push(b'-'),
        }
        out.push(b' ');
        out.extend_from_slice(record.format.as_str().as_bytes());
        out.push(b' ');
        escape::text(record.payload, out);
    }

    /// RFC 3339 with nine digits, UTC. The text of a second is formatted once.
    fn time(&mut self, captured_at_ns: u64, out: &mut Vec<u8>) {
        let second = captured_at_ns / 1_000_000_000;
        let nanoseconds = captured_at_ns % 1_000_000_000;
        if self.second != Some(second) {
            // 64 bits of nanoseconds end in the year 2554, jiff's timestamps in 9999.
            let at = Timestamp::from_second(i64::try_from(second).unwrap_or(i64::MAX)).unwrap_or(Timestamp::MAX);
            // The buffer has exactly this length.
            let _ = write!(&mut self.text[..], "{}.", at.strftime("%Y-%m-%dT%H:%M:%S"));
            self.second = Some(second);
        }
        out.extend_from_slice(&self.text);
        let mut digits = *b"000000000Z";
        let mut rest = nanoseconds;
        for digit in digits[..9].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        out.extend_from_slice(&digits);
    }
}

impl AddressText {
    fn write(&mut self, address: IpAddr, out: &mut Vec<u8>) {
        if self.address != Some(address) {
            self.address = Some(address);
            self.text.clear();
            write_address(address, &mut self.text);
        }
        out.extend_from_slice(&self.text);
    }

    fn write_endpoint(&mut self, address: IpAddr, port: u16, out: &mut Vec<u8>) {
        let (open, close): (&[u8], &[u8]) = if address.is_ipv6() { (b"[", b"]:") } else { (b"", b":") };
        out.extend_from_slice(open);
        self.write(address, out);
        out.extend_from_slice(close);
        number(u32::from(port), out);
    }
}

fn keywords(payload: &[u8]) -> Option<(&'static str, &'static str)> {
    let priority = Priority::of(payload)?;
    facility_keyword(priority.facility()).zip(severity_keyword(priority.severity()))
}

fn write_address(address: IpAddr, out: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => {
            for (index, octet) in address.octets().into_iter().enumerate() {
                if index > 0 {
                    out.push(b'.');
                }
                number(u32::from(octet), out);
            }
        }
        // Writing to a Vec cannot fail.
        IpAddr::V6(address) => drop(write!(out, "{address}")),
    }
}

fn number(number: u32, out: &mut Vec<u8>) {
    let mut digits = [0; 10];
    let mut at = digits.len();
    let mut rest = number;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return out.extend_from_slice(&digits[at..]);
        }
    }
}

fn payload(payload: &[u8], out: &mut Vec<u8>) {
    match std::str::from_utf8(payload) {
        Ok(text) => {
            out.extend_from_slice(b",\"payload\":\"");
            escape::json(text, out);
        }
        Err(_) => {
            out.extend_from_slice(b",\"payload_base64\":\"");
            base64(payload, out);
        }
    }
    out.push(b'"');
}

fn base64(payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + payload.len().div_ceil(3) * 4, 0);
    // The buffer has exactly the encoded length.
    let written = BASE64_STANDARD.encode_slice(payload, &mut out[start..]).unwrap_or_default();
    out.truncate(start + written);
}
