//! The OpenTelemetry log record of a datagram, or of a decoded row.
//!
//! | | |
//! |---|---|
//! | body | the payload, bytes if it is not UTF-8; the envelope as text; or the row as a map |
//! | both times | that of the capture: a device's clock may be years off, which receivers reject |
//! | severity | syslog: the number that the log data model assigns |
//! | attributes | `source`, `destination`, `network` by the conventions; `syslog.*`, `sekiwake.*` |

use std::{net::IpAddr, str};

use sekiwake_identify::syslog::{Priority, severity_keyword};
use sekiwake_json::{Payload, write_line};
use sekiwake_record::{Format, Kind, Record};

use crate::delivery::{Value, entries::Entry};

/// The resource attribute `service.name`.
pub(super) const SERVICE_NAME: &str = "sekiwake";

/// The numbers of severities 0 to 7 in the log data model (appendix B, syslog).
const SEVERITY_NUMBERS: [u8; 8] = [21, 19, 18, 17, 13, 10, 9, 5];

/// One log record.
pub(super) struct LogRecord<'a> {
    pub(super) time_ns: u64,
    pub(super) severity: Option<Severity>,
    pub(super) body: Body<'a>,
    pub(super) attributes: Attributes<'a>,
}

pub(super) struct Severity {
    pub(super) number: u8,
    pub(super) text: &'static str,
}

/// The body.
pub(super) enum Body<'a> {
    Text(&'a str),
    Bytes(&'a [u8]),
    Map(serde_json::Value),
}

/// The attributes of a record.
pub(super) struct Attributes<'a> {
    record: &'a Record<'a>,
    kind: Kind,
    priority: Option<Priority>,
}

/// The value of an attribute.
pub(super) enum Attribute<'a> {
    Text(&'a str),
    Number(u64),
    Address(IpAddr),
}

impl Attributes<'_> {
    /// Calls `visit` with each name and value.
    pub(super) fn each(&self, mut visit: impl FnMut(&'static str, Attribute<'_>)) {
        let record = self.record;
        visit("source.address", Attribute::Address(record.source));
        visit("source.port", Attribute::Number(record.source_port.into()));
        visit("destination.address", Attribute::Address(record.destination));
        visit("destination.port", Attribute::Number(record.destination_port.into()));
        visit("network.transport", Attribute::Text("udp"));
        visit("network.type", Attribute::Text(if record.source.is_ipv4() { "ipv4" } else { "ipv6" }));
        let (protocol, version) = protocol(self.kind, record.format);
        visit("network.protocol.name", Attribute::Text(protocol));
        if let Some(version) = version {
            visit("network.protocol.version", Attribute::Text(version));
        }
        if let Some(priority) = self.priority {
            visit("syslog.facility", Attribute::Number(priority.facility().into()));
        }
        visit("sekiwake.kind", Attribute::Text(self.kind.as_str()));
        visit("sekiwake.format", Attribute::Text(record.format.as_str()));
        if let Some(&vlan) = record.vlans.first() {
            visit("sekiwake.vlan", Attribute::Number(vlan.into()));
        }
    }
}

/// Calls `visit` with each log record of a datagram.
pub(super) fn each(
    kind: Kind,
    value: Value,
    entry: &Entry<'_>,
    scratch: &mut Vec<u8>,
    mut visit: impl FnMut(LogRecord<'_>),
) {
    let record = &entry.record;
    let priority = (kind == Kind::Syslog).then(|| Priority::of(record.payload).unwrap_or(Priority::ABSENT));
    let mut one = |body| {
        visit(LogRecord {
            time_ns: record.captured_at_ns,
            severity: priority.map(severity),
            body,
            attributes: Attributes { record, kind, priority },
        });
    };
    match value {
        Value::Raw => one(body_of(record.payload)),
        Value::Json => {
            scratch.clear();
            // Writing to memory does not fail.
            let _ = write_line(scratch, Some(kind), record, Payload::Included);
            one(body_of(scratch.trim_ascii_end()));
        }
        Value::Decoded => {
            for row in entry.rows() {
                match serde_json::from_slice(row) {
                    Ok(map) => one(Body::Map(map)),
                    // Rows are valid JSON; those of a damaged spool are not read.
                    Err(_) => one(body_of(row)),
                }
            }
        }
    }
}

fn body_of(bytes: &[u8]) -> Body<'_> {
    str::from_utf8(bytes).map_or(Body::Bytes(bytes), Body::Text)
}

fn severity(priority: Priority) -> Severity {
    let severity = priority.severity();
    Severity {
        number: SEVERITY_NUMBERS[usize::from(severity) % SEVERITY_NUMBERS.len()],
        text: severity_keyword(severity).unwrap_or_default(),
    }
}

/// The name and the version of the protocol.
fn protocol(kind: Kind, format: Format) -> (&'static str, Option<&'static str>) {
    match format {
        Format::NetFlow5 => ("netflow", Some("5")),
        Format::NetFlow9 => ("netflow", Some("9")),
        Format::Ipfix => ("ipfix", Some("10")),
        Format::Sflow5 => ("sflow", Some("5")),
        Format::Snmp1Trap => ("snmp", Some("1")),
        Format::Snmp2cTrap | Format::Snmp2cInform => ("snmp", Some("2c")),
        Format::Snmp3 => ("snmp", Some("3")),
        _ => match kind {
            Kind::Syslog => ("syslog", None),
            Kind::Xflow => ("flow", None),
            Kind::SnmpTrap => ("snmp", None),
        },
    }
}
