//! What is changed in a payload on its way to a destination, where that is asked for or has to be.
//!
//! - `add_source`: the device's address goes into a syslog message as RFC 5424 structured data, `[origin ip="198.51.100.9"]` (§7.2).
//!   A message that is no RFC 5424 is put into one, whole: its priority in front, the time of its capture, the device's address as
//!   host name.
//! - SNMPv2c informs leave as traps: the collector that the agent addressed answers the inform, and nobody else should. The two
//!   PDUs differ in their tag only (RFC 3416 §4.2.6, §4.2.7). SNMPv3 messages are never touched: they are signed.
//!
//! Whatever else there is leaves as it came, from the memory that it was received in.

use std::{io::Write, net::IpAddr, ops::Range};

use jiff::Timestamp;
use sekiwake_identify::{
    snmp,
    syslog::{Priority, element_length, structured_data},
};
use sekiwake_record::{Format, Record};

/// Where the capacity of the memory for changed payloads goes back to.
const KEPT_BYTES: usize = 1 << 20;

/// What a destination changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rewriting {
    pub(crate) add_source: bool,
}

/// Changed payloads, in the order of the records that they stand for. The memory is used again and again.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    bytes: Vec<u8>,
    places: Vec<Option<Range<usize>>>,
}

impl Rewritten {
    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.places.clear();
    }

    /// Takes in the next record.
    pub(crate) fn push(&mut self, rewriting: Rewriting, record: &Record<'_>) {
        let start = self.bytes.len();
        let changed = match record.format {
            Format::Snmp2cInform => inform_as_trap(record.payload, &mut self.bytes),
            Format::Rfc3164 | Format::Rfc5424 | Format::Unknown if rewriting.add_source => {
                add_source(record, &mut self.bytes);
                true
            }
            _ => false,
        };
        self.places.push(changed.then_some(start..self.bytes.len()));
    }

    /// What to send for the record that was the `index`th to be pushed: `payload` is what it came with.
    pub(crate) fn payload<'a>(&'a self, index: usize, payload: &'a [u8]) -> &'a [u8] {
        match self.places.get(index) {
            Some(Some(range)) => &self.bytes[range.clone()],
            _ => payload,
        }
    }
}

/// Whether the answer to this datagram must not reach the device: an SNMPv3 message that is answered, by the collector that it was
/// sent to and by nobody else.
pub(crate) fn must_not_be_spoofed(record: &Record<'_>) -> bool {
    record.format == Format::Snmp3 && snmp::expects_answer(record.payload)
}

fn inform_as_trap(payload: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(tag) = snmp::inform_tag(payload) else { return false };
    let start = out.len();
    out.extend_from_slice(payload);
    out[start + tag] = snmp::SNMPV2_TRAP;
    true
}

fn add_source(record: &Record<'_>, out: &mut Vec<u8>) {
    let (payload, source) = (record.payload, record.source.to_canonical());
    let Some(range) = structured_data(payload) else { return wrap(record, source, out) };
    let data = &payload[range.clone()];
    out.extend_from_slice(&payload[..range.start]);
    match origin(data) {
        // An identifier stands once, a parameter of `origin` as often as there are addresses (RFC 5424 §6.3.2, §7.2.1).
        Some(end) => {
            out.extend_from_slice(&data[..end]);
            append(out, format_args!(" ip=\"{source}\""));
            out.extend_from_slice(&data[end..]);
        }
        None => {
            if data != b"-" {
                out.extend_from_slice(data);
            }
            append(out, format_args!("[origin ip=\"{source}\"]"));
        }
    }
    out.extend_from_slice(&payload[range.end..]);
}

/// Puts a message that is no RFC 5424 into one.
fn wrap(record: &Record<'_>, source: IpAddr, out: &mut Vec<u8>) {
    let priority = Priority::of(record.payload).unwrap_or(Priority::ABSENT).value();
    append(out, format_args!("<{priority}>1 "));
    match Timestamp::from_nanosecond(record.captured_at_ns.into()) {
        Ok(time) => append(out, format_args!("{time:.6}")),
        Err(_) => out.push(b'-'),
    }
    append(out, format_args!(" {source} - - - [origin ip=\"{source}\"] "));
    out.extend_from_slice(record.payload);
}

fn append(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // A Vec takes whatever is written to it.
    let _ = out.write_fmt(text);
}

/// Where the element `origin` of well-formed structured data ends: at its closing bracket.
fn origin(data: &[u8]) -> Option<usize> {
    let mut start = 0;
    while data.get(start) == Some(&b'[') {
        let end = start + element_length(&data[start..])? - 1;
        let name = data[start + 1..end].split(|&byte| byte == b' ').next();
        if name == Some(b"origin") {
            return Some(end);
        }
        start = end + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use sekiwake_record::{Flags, Vlans};

    use super::*;

    fn rewritten(source: &str, payload: &[u8]) -> String {
        let record = Record {
            captured_at_ns: 1_064_607_255_003_000_000,
            source: source.parse().unwrap(),
            source_port: 514,
            destination: "203.0.113.1".parse().unwrap(),
            destination_port: 514,
            format: sekiwake_identify::identify(None, payload),
            flags: Flags::default(),
            payload,
            vlans: Vlans::new(),
            dscp_ttl: 0,
        };
        let mut rewritten = Rewritten::default();
        rewritten.push(Rewriting { add_source: true }, &record);
        String::from_utf8_lossy(rewritten.payload(0, payload)).into_owned()
    }

    const HEADER: &str = "<34>1 2003-10-11T22:14:15.003Z host app 1 ID47";

    #[test]
    fn the_address_becomes_structured_data() {
        for (before, after) in [
            ("- message", r#"[origin ip="198.51.100.9"] message"#),
            ("-", r#"[origin ip="198.51.100.9"]"#),
            (r#"[a x="1"] m"#, r#"[a x="1"][origin ip="198.51.100.9"] m"#),
            (r#"[a x="]"][origin ip="10.0.0.1"][b] m"#, r#"[a x="]"][origin ip="10.0.0.1" ip="198.51.100.9"][b] m"#),
            (r#"[original x="1"] - [origin]"#, r#"[original x="1"][origin ip="198.51.100.9"] - [origin]"#),
        ] {
            let message = format!("{HEADER} {before}");
            assert_eq!(rewritten("198.51.100.9", message.as_bytes()), format!("{HEADER} {after}"));
        }
        let mapped = rewritten("::ffff:198.51.100.9", format!("{HEADER} -").as_bytes());
        assert_eq!(mapped, format!("{HEADER} [origin ip=\"198.51.100.9\"]"));
    }

    #[test]
    fn other_lines_are_wrapped_whole() {
        for (message, priority) in [
            (&b"<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: x"[..], 189),
            (b"no PRI", 13),
            (b"<999>not one either", 13),
            (b"", 13),
            (b"<34>1 2003-10-11T22:14:15.003Z host app 1 ID47 no structured data", 34),
        ] {
            let text = String::from_utf8_lossy(message);
            let expected = format!(
                "<{priority}>1 2003-09-26T20:14:15.003000Z 2001:db8::9 - - - [origin ip=\"2001:db8::9\"] {text}"
            );
            let wrapped = rewritten("2001:db8::9", message);
            assert_eq!(wrapped, expected);
            assert_eq!(
                structured_data(wrapped.as_bytes()).map(|range| &wrapped[range]),
                Some("[origin ip=\"2001:db8::9\"]")
            );
        }
    }

    #[test]
    fn bytes_that_are_no_text_stay() {
        let record = [0xff, 0, 0x80];
        assert!(rewritten("198.51.100.9", &record).ends_with(&*String::from_utf8_lossy(&record)));
    }
}
