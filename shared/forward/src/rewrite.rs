//! Changes to payloads, where a destination is configured so or a protocol needs them.
//!
//! - `add_source` of syslog: the device's address is added to a message as RFC 5424 structured
//!   data, `[origin ip="198.51.100.9"]` (§7.2). A message that was not identified as RFC 5424, or
//!   whose structured data is not well-formed, becomes, whole, the text of an RFC 5424 message with
//!   the same priority, its capture time, and the device's address as host name.
//! - `add_source` of traps: the device's address is appended to SNMPv2c traps and informs as
//!   snmpTrapAddress.0 ([`trap_address`]).
//! - SNMPv2c informs are sent as traps: the collector that the agent addressed answers the inform,
//!   and no other receiver should. The two PDUs differ in their tag only (RFC 3416 §4.2.6, §4.2.7).
//!   SNMPv3 messages are never changed, because they are signed.
//!
//! All other payloads are sent unmodified, from the memory they were received in.

mod trap_address;

use std::{io::Write, net::IpAddr, ops::Range};

use jiff::Timestamp;
use sekiwake_identify::{
    snmp,
    syslog::{Priority, element_length, structured_data},
};
use sekiwake_record::{Format, Kind, Record};

/// The capacity that the memory for changed payloads is shrunk to after each use.
const KEPT_BYTES: usize = 1 << 20;

/// The changes to the payloads of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rewriting {
    /// Syslog: the device's address is added as structured data.
    StructuredData,
    /// Traps: v2c informs become traps.
    Traps {
        /// The device's address is appended as snmpTrapAddress.0.
        add_address: bool,
    },
}

impl Rewriting {
    /// The changes that datagrams of this kind need. `add_source`: as the destination is
    /// configured. `None`: payloads are sent unmodified.
    pub(crate) fn of(kind: Kind, add_source: bool) -> Option<Rewriting> {
        match kind {
            Kind::Syslog => add_source.then_some(Rewriting::StructuredData),
            Kind::SnmpTrap => Some(Rewriting::Traps { add_address: add_source }),
            Kind::Xflow => None,
        }
    }
}

/// Changed payloads, in the order of their records. The memory is reused.
#[derive(Debug, Default)]
pub(crate) struct Rewritten {
    bytes: Vec<u8>,
    ranges: Vec<Option<Range<usize>>>,
}

impl Rewritten {
    /// Removes all payloads.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.ranges.clear();
    }

    /// Adds the next record.
    pub(crate) fn push(&mut self, rewriting: Rewriting, record: &Record<'_>) {
        let start = self.bytes.len();
        let out = &mut self.bytes;
        let changed = match (rewriting, record.format) {
            (Rewriting::Traps { add_address: true }, Format::Snmp2cTrap) => {
                trap_address::append(record.payload, record.source, out)
            }
            (Rewriting::Traps { add_address }, Format::Snmp2cInform) => {
                add_address && trap_address::append(record.payload, record.source, out)
                    || inform_as_trap(record.payload, out)
            }
            (Rewriting::StructuredData, Format::Rfc3164 | Format::Rfc5424 | Format::Unknown) => {
                add_source(record, out);
                true
            }
            _ => false,
        };
        self.ranges.push(changed.then_some(start..self.bytes.len()));
    }

    /// The payload to send for the record that was pushed as number `index`. `payload` is its
    /// original one.
    pub(crate) fn payload<'a>(&'a self, index: usize, payload: &'a [u8]) -> &'a [u8] {
        match self.ranges.get(index) {
            Some(Some(range)) => &self.bytes[range.clone()],
            _ => payload,
        }
    }
}

/// Whether an answer to this datagram must not reach the device: an SNMPv3 message that its
/// receiver answers. Only the collector that the agent addressed may do that. Of an encrypted
/// message that may be a trap or an inform, the destination's option says which it is.
pub(crate) fn must_not_be_spoofed(record: &Record<'_>, encrypted_are_traps: bool) -> bool {
    record.format == Format::Snmp3
        && match snmp::answer(record.payload) {
            snmp::Answer::None => false,
            snmp::Answer::Expected => true,
            snmp::Answer::Unknown => !encrypted_are_traps,
        }
}

fn inform_as_trap(payload: &[u8], out: &mut Vec<u8>) -> bool {
    let Some(tag) = snmp::inform_tag(payload) else { return false };
    let start = out.len();
    out.extend_from_slice(payload);
    out[start + tag] = snmp::SNMPV2_TRAP;
    true
}

fn add_source(record: &Record<'_>, out: &mut Vec<u8>) {
    let payload = record.payload;
    let source = record.source.to_canonical();
    let Some(range) = structured_data(payload) else { return wrap(record, source, out) };
    let data = &payload[range.clone()];
    out.extend_from_slice(&payload[..range.start]);
    match origin(data) {
        // An element may occur once, a parameter of `origin` once per address (RFC 5424 §6.3.2,
        // §7.2.1).
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

/// Makes another message the text of an RFC 5424 message.
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
    // Writing to a vector never fails.
    let _ = out.write_fmt(text);
}

/// The position of the closing bracket of the element `origin` in well-formed structured data.
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
            origin: None,
        };
        let mut rewritten = Rewritten::default();
        rewritten.push(Rewriting::StructuredData, &record);
        String::from_utf8_lossy(rewritten.payload(0, payload)).into_owned()
    }

    const HEADER: &str = "<34>1 2003-10-11T22:14:15.003Z host app 1 ID47";

    #[test]
    fn address_is_added_as_structured_data() {
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
    fn other_messages_are_wrapped_whole() {
        for (message, priority) in [
            (&b"<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: x"[..], 189),
            (b"no PRI", 13),
            (b"<999>not one either", 13),
            (b"", 13),
            (b"<34>1 2003-10-11T22:14:15.003Z host app 1 ID47 no structured data", 34),
            (b"<134>1 2025-02-03 04:05:06 gw-1 CheckPoint 4711 - [action:\"Accept\"; ]", 134),
            (b"<134>1 2025-02-03 04:05:06 gw-1 CheckPoint 4711 - - message", 134),
            (b"<134>1 1650972789.42 MX events a b - dst", 134),
            (b"<134>1 1650972789.42 MX events a b [c] dst", 134),
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
    fn text_on_a_trap_port_is_not_wrapped() {
        let record = sekiwake_testkit::fixtures::record(b"<13>text");
        for format in [Format::Rfc3164, Format::Unknown, Format::Snmp1Trap, Format::Snmp3] {
            let mut rewritten = Rewritten::default();
            rewritten.push(Rewriting::Traps { add_address: true }, &Record { format, ..record.clone() });
            assert_eq!(rewritten.payload(0, b"original"), b"original", "{format}");
        }
    }

    #[test]
    fn binary_payload_stays_unchanged() {
        let record = [0xff, 0, 0x80];
        assert!(rewritten("198.51.100.9", &record).ends_with(&*String::from_utf8_lossy(&record)));
    }
}
