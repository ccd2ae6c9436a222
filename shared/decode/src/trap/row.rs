//! A trap as a flat JSON object. Its names are part of the interface, and docs/decoding.md lists
//! them.

use std::fmt::{self, Write as _};

use serde::{Serialize, Serializer, ser::SerializeMap};

use sekiwake_record::Format;

use super::{Pdu, Trap, Value, Varbind, Version};
use crate::text::Plain;

/// Bytes in hexadecimal, without separators.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hex<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Trap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("format", self.format().as_str())?;
        map.serialize_entry("type", "trap")?;
        map.serialize_entry("version", &self.version)?;
        entry(&mut map, "pdu", self.pdu)?;
        entry(&mut map, "request_id", self.request_id)?;
        entry(&mut map, "trap_oid", self.trap_oid.as_ref())?;
        entry(&mut map, "trap_name", self.name.map(|[name, _]| name))?;
        entry(&mut map, "trap_module", self.name.map(|[_, module]| module))?;
        entry(&mut map, "uptime_ticks", self.uptime_ticks)?;
        entry(&mut map, "agent_address", self.agent_address)?;
        if let Some(v1) = &self.v1 {
            map.serialize_entry("enterprise", &v1.enterprise)?;
            map.serialize_entry("generic_trap", &v1.generic)?;
            map.serialize_entry("specific_trap", &v1.specific)?;
        }
        if let Some(security) = &self.security {
            let level = match (security.is_authenticated, security.is_encrypted) {
                (_, true) => "authPriv",
                (true, false) => "authNoPriv",
                (false, false) => "noAuthNoPriv",
            };
            map.serialize_entry("security_level", level)?;
            map.serialize_entry("security_model", &security.model)?;
            map.serialize_entry("engine_id", &Hex(security.engine))?;
            entry(&mut map, "engine_boots", security.boots_and_time.map(|[boots, _]| boots))?;
            entry(&mut map, "engine_time_seconds", security.boots_and_time.map(|[_, time]| time))?;
            if let Some([engine, name]) = security.context {
                map.serialize_entry("context_engine_id", &Hex(engine))?;
                map.serialize_entry("context_name", &String::from_utf8_lossy(name))?;
            }
            map.serialize_entry("encrypted", &security.is_encrypted)?;
        }
        map.serialize_entry("varbinds", &self.varbinds)?;
        entry(&mut map, "omitted_bytes", Some(self.omitted_bytes).filter(|&bytes| bytes > 0))?;
        entry(&mut map, "trailing_bytes", Some(self.trailing_bytes).filter(|&bytes| bytes > 0))?;
        entry(&mut map, "error", self.error.map(|error| error.to_string()))?;
        map.end()
    }
}

impl Serialize for Varbind<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("oid", &self.oid)?;
        entry(&mut map, "name", self.label())?;
        entry(&mut map, "module", self.object.map(|object| object.module))?;
        map.serialize_entry("type", self.syntax)?;
        match &self.value {
            Value::Integer(number) => map.serialize_entry("value", number)?,
            Value::Unsigned(number) => map.serialize_entry("value", number)?,
            // JSON has neither infinities nor NaN.
            Value::Float(number) if !number.is_finite() => map.serialize_entry("value", &number.to_string())?,
            Value::Float(number) => map.serialize_entry("value", number)?,
            Value::Text(text) => map.serialize_entry("value", text)?,
            Value::Bytes(bytes) => map.serialize_entry("value_hex", &Hex(bytes))?,
            Value::Oid(oid) => map.serialize_entry("value", oid)?,
            Value::Address(address) => map.serialize_entry("value", address)?,
            Value::Null => map.serialize_entry("value", &())?,
            Value::Hidden => map.serialize_entry("hidden", &true)?,
        }
        entry(&mut map, "text", self.text.as_ref())?;
        entry(&mut map, "error", self.error)?;
        map.end()
    }
}

fn entry<M: SerializeMap>(map: &mut M, name: &'static str, value: Option<impl Serialize>) -> Result<(), M::Error> {
    match value {
        Some(value) => map.serialize_entry(name, &value),
        None => Ok(()),
    }
}

/// The value as a person reads it: as the MIB shows it, or else as it is on the wire.
impl fmt::Display for Varbind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.label() {
            Some(label) => write!(f, "{label}=")?,
            None => write!(f, "{}=", self.oid)?,
        }
        match (&self.text, &self.value) {
            (Some(text), _) => Plain(text).fmt(f),
            (None, Value::Integer(number)) => write!(f, "{number}"),
            (None, Value::Unsigned(number)) => write!(f, "{number}"),
            (None, Value::Float(number)) => write!(f, "{number}"),
            (None, Value::Text(text)) => Plain(text).fmt(f),
            (None, Value::Bytes(bytes)) => write!(f, "0x{}", Hex(bytes)),
            (None, Value::Oid(oid)) => write!(f, "{oid}"),
            (None, Value::Address(address)) => write!(f, "{address}"),
            (None, Value::Null) => f.write_str(self.syntax),
            (None, Value::Hidden) => f.write_str("(hidden)"),
        }
    }
}

/// One line for a person: `snmp2c-trap linkDown uptime 1234.56 s ifIndex.3=3 ifOperStatus.3=down`.
impl fmt::Display for Trap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.format())?;
        match (self.name, &self.trap_oid) {
            (Some([name, _]), _) => f.write_str(name)?,
            (None, Some(oid)) => write!(f, "{oid}")?,
            (None, None) if self.is_encrypted() => f.write_str("encrypted")?,
            (None, None) => f.write_str("no trap")?,
        }
        if let Some(agent) = self.agent_address {
            write!(f, " agent {agent}")?;
        }
        if let Some(ticks) = self.uptime_ticks {
            write!(f, " uptime {}.{:02} s", ticks / 100, ticks % 100)?;
        }
        for varbind in &self.varbinds {
            f.write_char(' ')?;
            varbind.fmt(f)?;
        }
        if let Some(error) = self.error {
            write!(f, " ({error})")?;
        }
        Ok(())
    }
}

impl Trap<'_> {
    /// The format that identification gives; `Unknown` for requests and responses of v1 and v2c.
    fn format(&self) -> Format {
        match (self.version, self.pdu) {
            (Version::V1, Some(Pdu::Trap)) => Format::Snmp1Trap,
            (Version::V2c, Some(Pdu::Trap)) => Format::Snmp2cTrap,
            (Version::V2c, Some(Pdu::Inform)) => Format::Snmp2cInform,
            (Version::V3, _) => Format::Snmp3,
            _ => Format::Unknown,
        }
    }

    /// Whether the PDU is encrypted, so that nothing of it is known.
    pub fn is_encrypted(&self) -> bool {
        self.security.as_ref().is_some_and(|security| security.is_encrypted)
    }
}
