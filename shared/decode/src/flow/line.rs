//! A flow as JSON, and as a line for a person.

use std::fmt;

use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{Flow, FlowType, Value};

impl Serialize for Flow<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("format", self.format.as_str())?;
        map.serialize_entry("type", self.kind.as_str())?;
        if let Some(domain) = self.header.domain {
            map.serialize_entry("domain", &domain)?;
        }
        map.serialize_entry("sequence", &self.header.sequence)?;
        if let Some(time) = self.header.exported_at {
            map.serialize_entry("exported_at", &Value::Time(time))?;
        }
        if let Some(uptime_ms) = self.header.uptime_ms {
            map.serialize_entry("uptime_ms", &uptime_ms)?;
        }
        if let Some(template) = self.template {
            map.serialize_entry("template", &template)?;
        }
        for field in &self.fields {
            map.serialize_entry(&field.key(), &field.value)?;
        }
        map.end()
    }
}

/// The names of what comes first in a line.
const SOURCES: [&str; 2] = ["sourceIPv4Address", "sourceIPv6Address"];
const DESTINATIONS: [&str; 2] = ["destinationIPv4Address", "destinationIPv6Address"];
const SOURCE_PORT: &str = "sourceTransportPort";
const DESTINATION_PORT: &str = "destinationTransportPort";
const PROTOCOL: &str = "protocolIdentifier";

impl Flow<'_> {
    fn first_of(&self, names: &[&'static str]) -> Option<(&'static str, &Value<'_>)> {
        let mut found = names.iter().filter_map(|name| Some((*name, self.get(name)?)));
        let first = found.next()?;
        // Some exporters have fields for both families in a template.
        if is_unspecified(first.1) { found.next().or(Some(first)) } else { Some(first) }
    }
}

fn is_unspecified(address: &Value<'_>) -> bool {
    matches!(address, Value::Ipv4(address) if address.is_unspecified())
}

/// `netflow9 flow 198.51.100.7:53 > 203.0.113.9:4242 udp octetDeltaCount=412 …`. The header is
/// left out, apart from the template of what is not a flow.
impl fmt::Display for Flow<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.format, self.kind.as_str())?;
        if let (Some(template), true) = (self.template, self.kind != FlowType::Flow) {
            write!(f, " {template}")?;
        }
        let mut shown = Vec::new();
        if let (Some((source_name, source)), Some((destination_name, destination))) =
            (self.first_of(&SOURCES), self.first_of(&DESTINATIONS))
        {
            f.write_str(" ")?;
            endpoint(f, source, self.get(SOURCE_PORT))?;
            f.write_str(" > ")?;
            endpoint(f, destination, self.get(DESTINATION_PORT))?;
            shown.extend([source_name, destination_name, SOURCE_PORT, DESTINATION_PORT]);
            if let Some(Value::Unsigned(number)) = self.get(PROTOCOL) {
                match protocol(*number) {
                    Some(name) => write!(f, " {name}")?,
                    None => write!(f, " protocol {number}")?,
                }
                shown.push(PROTOCOL);
            }
        }
        for field in &self.fields {
            let is_shown =
                field.repetition == 0 && matches!(field.name, super::Name::Known(name) if shown.contains(&name));
            if !is_shown {
                write!(f, " {}={}", field.key(), field.value)?;
            }
        }
        Ok(())
    }
}

fn endpoint(f: &mut fmt::Formatter<'_>, address: &Value<'_>, port: Option<&Value<'_>>) -> fmt::Result {
    match (address, port) {
        (Value::Ipv6(address), Some(port)) => write!(f, "[{address}]:{port}"),
        (address, Some(port)) => write!(f, "{address}:{port}"),
        (address, None) => write!(f, "{address}"),
    }
}

/// The protocols of nearly all flows (IANA, "Assigned Internet Protocol Numbers").
fn protocol(number: u64) -> Option<&'static str> {
    Some(match number {
        1 => "icmp",
        2 => "igmp",
        6 => "tcp",
        17 => "udp",
        47 => "gre",
        50 => "esp",
        58 => "icmpv6",
        89 => "ospf",
        132 => "sctp",
        _ => return None,
    })
}
