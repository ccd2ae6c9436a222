//! Syslog: RFC 5424, and RFC 3164 with what devices make of it.
//!
//! ```text
//! RFC 5424  <PRI>1 TIMESTAMP HOSTNAME APP-NAME PROCID MSGID [id name="value" …]… MESSAGE
//! RFC 3164  <PRI>[SEQUENCE: ][TIMESTAMP[:] ][HOSTNAME ][TAG[PID]: ]MESSAGE
//! ```
//! The decoder is our own because syslog_loose 0.23 gives no PRI when it does not like what
//! follows, as with Cisco's sequence numbers, and takes text only: bytes that are not UTF-8 would
//! have to be replaced before. It also needs chrono and a second version of nom. Ours is about 450
//! lines.

mod device;
mod structured;
mod timestamp;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, fmt};

use sekiwake_identify::syslog::{Priority, facility_keyword, severity_keyword};
use sekiwake_record::Format;
use serde::{Serialize, Serializer, ser::SerializeMap};

pub use self::structured::{Element, Parameter};
use crate::text::Plain;

/// A syslog message. Texts are as the device wrote them; bytes that are not UTF-8 are replaced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message<'a> {
    /// PRI; `None` without a valid one.
    pub priority: Option<Priority>,
    /// Whether the header is the one of RFC 5424.
    pub is_rfc5424: bool,
    /// The sequence number that Cisco devices write first.
    pub sequence: Option<u64>,
    /// The device's time. With RFC 3164 it usually has neither year nor zone.
    pub timestamp: Option<Cow<'a, str>>,
    /// HOSTNAME.
    pub hostname: Option<Cow<'a, str>>,
    /// The node of a Cisco IOS XR device, such as `RP/0/RSP1/CPU0`.
    pub node: Option<Cow<'a, str>>,
    /// APP-NAME, or the TAG of RFC 3164.
    pub app_name: Option<Cow<'a, str>>,
    /// PROCID, or what is in brackets behind the TAG.
    pub procid: Option<Cow<'a, str>>,
    /// MSGID.
    pub msgid: Option<Cow<'a, str>>,
    /// STRUCTURED-DATA.
    pub structured_data: Vec<Element<'a>>,
    /// The rest, without the byte order mark of RFC 5424 and the line feeds and zeros at its end.
    pub message: Cow<'a, str>,
    /// Whether bytes were replaced because they are not UTF-8.
    pub is_lossy: bool,
    /// What is missing or malformed: the PRI, or a part of the header of RFC 5424. What cannot be
    /// read is part of the message.
    pub error: Option<&'static str>,
}

/// Decodes a datagram. Anything is a message: what has no header is all message. Many devices leave
/// the PRI out; the rest of the header is read all the same.
pub fn decode(datagram: &[u8]) -> Message<'_> {
    let mut message = Message { priority: Priority::of(datagram), ..Message::default() };
    let text = without_end(datagram);
    let after_pri = match message.priority {
        Some(_) => text.iter().position(|&byte| byte == b'>').map_or(text, |pri| &text[pri + 1..]),
        None => text,
    };
    let without_pri = message.priority.is_none();
    message.is_rfc5424 = match without_pri {
        true => is_rfc5424_without_pri(text),
        false => sekiwake_identify::identify(None, datagram) == Format::Rfc5424,
    };
    let rest = match message.is_rfc5424 {
        true => rfc5424(after_pri, &mut message),
        false => device::header(after_pri, &mut message),
    };
    if without_pri && message.error.is_none() {
        message.error = Some(if begins_like_a_pri(text) { "the PRI is malformed" } else { "the PRI is missing" });
    }
    message.message = String::from_utf8_lossy(rest);
    let cows =
        [&message.timestamp, &message.hostname, &message.node, &message.app_name, &message.procid, &message.msgid];
    message.is_lossy = matches!(message.message, Cow::Owned(_))
        || cows.into_iter().any(|text| matches!(text, Some(Cow::Owned(_))))
        || message.structured_data.iter().any(Element::is_lossy);
    message
}

/// Why a datagram without a PRI is no text, or `None` if it is. Text may be in any charset that has
/// ASCII, and have a few control characters; more of them, or zeros, are binary data or UTF-16.
pub fn why_no_text(datagram: &[u8]) -> Option<&'static str> {
    let text = without_end(datagram);
    let is_control = |byte: &u8| byte.is_ascii_control() && !matches!(byte, b'\t'..=b'\r' | 0x1b);
    match text {
        [] => Some("datagram has no text"),
        text if text.contains(&0) || text.iter().copied().filter(is_control).count() * 16 > text.len() => {
            Some("no PRI, and the bytes are not text")
        }
        _ => None,
    }
}

/// A datagram without the line feeds and zeros at its end.
fn without_end(datagram: &[u8]) -> &[u8] {
    let end = datagram.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r' | 0)).map_or(0, |last| last + 1);
    &datagram[..end]
}

/// Whether a text begins with VERSION 1 and the date of a TIMESTAMP (RFC 5424 §6).
fn is_rfc5424_without_pri(text: &[u8]) -> bool {
    let Some(date) = text.strip_prefix(b"1 ").and_then(<[u8]>::first_chunk::<11>) else { return false };
    b"0000-00-00T"
        .iter()
        .zip(date)
        .all(|(&shape, &byte)| if shape == b'0' { byte.is_ascii_digit() } else { byte == shape })
}

/// Whether a text begins with digits in angle brackets, or with none: `<192>`, `<>`.
fn begins_like_a_pri(text: &[u8]) -> bool {
    let Some(after) = text.strip_prefix(b"<") else { return false };
    after.iter().find(|byte| !byte.is_ascii_digit()) == Some(&b'>')
}

/// Reads the header of RFC 5424 §6: what is left is the message.
fn rfc5424<'a>(after_pri: &'a [u8], message: &mut Message<'a>) -> &'a [u8] {
    let mut rest = after_pri.split_at_checked(2).map_or(after_pri, |(_version, rest)| rest);
    let mut fields = [None, None, None, None, None];
    for field in &mut fields {
        let length = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let (text, after) = rest.split_at(length);
        *field = (text != b"-" && !text.is_empty()).then(|| String::from_utf8_lossy(text));
        rest = after.get(1..).unwrap_or_default();
        if after.is_empty() {
            message.error = Some("the header is not complete");
            break;
        }
    }
    let [timestamp, hostname, app_name, procid, msgid] = fields;
    (message.timestamp, message.hostname, message.app_name) = (timestamp, hostname, app_name);
    (message.procid, message.msgid) = (procid, msgid);
    if message.error.is_some() {
        return rest;
    }
    match structured::split(rest) {
        Ok((elements, rest)) => {
            message.structured_data = elements;
            // RFC 5424 §6.4
            rest.strip_prefix(b"\xef\xbb\xbf").unwrap_or(rest)
        }
        Err(error) => {
            message.error = Some(error);
            rest
        }
    }
}

impl Serialize for Message<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("format", self.format().as_str())?;
        map.serialize_entry("type", "message")?;
        if let Some(priority) = self.priority {
            map.serialize_entry("priority", &priority.value())?;
            map.serialize_entry("facility", &facility_keyword(priority.facility()))?;
            map.serialize_entry("severity", &severity_keyword(priority.severity()))?;
        }
        if let Some(sequence) = self.sequence {
            map.serialize_entry("sequence", &sequence)?;
        }
        let texts = [
            ("timestamp", &self.timestamp),
            ("hostname", &self.hostname),
            ("node", &self.node),
            ("app_name", &self.app_name),
            ("procid", &self.procid),
            ("msgid", &self.msgid),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                map.serialize_entry(name, text)?;
            }
        }
        if !self.structured_data.is_empty() {
            map.serialize_entry("structured_data", &structured::Elements(&self.structured_data))?;
        }
        map.serialize_entry("message", &self.message)?;
        if self.is_lossy {
            map.serialize_entry("lossy", &true)?;
        }
        if let Some(error) = self.error {
            map.serialize_entry("error", error)?;
        }
        map.end()
    }
}

/// One line for a person: `rfc3164 local7.notice host sshd[42]: "message"`.
impl fmt::Display for Message<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.format())?;
        if let Some(priority) = self.priority {
            let facility = facility_keyword(priority.facility()).unwrap_or_default();
            write!(f, "{facility}.{} ", severity_keyword(priority.severity()).unwrap_or_default())?;
        }
        if let Some(hostname) = &self.hostname {
            write!(f, "{} ", Plain(hostname))?;
        }
        if let Some(app_name) = &self.app_name {
            write!(f, "{}", Plain(app_name))?;
            if let Some(procid) = &self.procid {
                write!(f, "[{}]", Plain(procid))?;
            }
            f.write_str(": ")?;
        }
        for element in &self.structured_data {
            for parameter in &element.parameters {
                write!(f, "{}={} ", Plain(&parameter.name), Plain(&parameter.value))?;
            }
        }
        Plain(&self.message).fmt(f)?;
        match self.error {
            Some(error) => write!(f, " ({error})"),
            None => Ok(()),
        }
    }
}

impl Message<'_> {
    /// The format that identification gives; `Unknown` without a PRI.
    fn format(&self) -> Format {
        match (self.priority, self.is_rfc5424) {
            (Some(_), true) => Format::Rfc5424,
            (Some(_), false) => Format::Rfc3164,
            (None, _) => Format::Unknown,
        }
    }
}
