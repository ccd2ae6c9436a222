//! Variable bindings.

use std::net::Ipv4Addr;

use super::{
    Error, INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, Oid, SEQUENCE,
    ber::{self, Element},
};
use crate::mib::{Kind, Mib, Syntax};

/// What holds communities and user names, in values or in indices: what is below these is not
/// shown. All are below snmpModules (RFC 3584 §5, RFC 3414 §5, RFC 3413 §4, RFC 3415 §4).
const SECRETS: [&[u32]; 6] = [
    // snmpCommunityTable, snmpTrapCommunity
    &[1, 3, 6, 1, 6, 3, 18, 1, 1],
    &[1, 3, 6, 1, 6, 3, 18, 1, 4],
    // usmUserTable
    &[1, 3, 6, 1, 6, 3, 15, 1, 2, 2],
    // snmpTargetParamsTable
    &[1, 3, 6, 1, 6, 3, 12, 1, 3],
    // vacmSecurityToGroupTable
    &[1, 3, 6, 1, 6, 3, 16, 1, 2],
    // snmpNotifyFilterProfileTable, whose index is that of snmpTargetParamsTable
    &[1, 3, 6, 1, 6, 3, 13, 1, 2],
];

/// The most bytes that a display hint is applied to. Hints of long values are those of text.
const MAX_HINTED: usize = 512;

/// Opaque contents that hold a number (net-snmp's NET-SNMP-TC): `9f 78 04`, `9f 79 08`, and the
/// integers.
const OPAQUE_FLOAT: [u8; 3] = [0x9f, 0x78, 4];
const OPAQUE_DOUBLE: [u8; 3] = [0x9f, 0x79, 8];
const OPAQUE_COUNTER64: [u8; 2] = [0x9f, 0x76];
const OPAQUE_INTEGER64: [u8; 2] = [0x9f, 0x7a];
const OPAQUE_UNSIGNED64: [u8; 2] = [0x9f, 0x7b];

/// A value of any type.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// INTEGER.
    Integer(i64),
    /// Counter32, Gauge32, TimeTicks (hundredths of a second), Counter64 and their like.
    Unsigned(u64),
    /// A floating-point number inside Opaque.
    Float(f64),
    /// An OCTET STRING that is text: UTF-8 without control characters other than white space.
    Text(&'a str),
    /// Any other string, and types that SNMP has not.
    Bytes(&'a [u8]),
    /// OBJECT IDENTIFIER.
    Oid(Oid<'a>),
    /// IpAddress.
    Address(Ipv4Addr),
    /// NULL, and the exceptions of responses.
    Null,
    /// Not shown: a community or a user name.
    Hidden,
}

/// A variable binding.
#[derive(Clone, Debug, PartialEq)]
pub struct Varbind<'a> {
    /// The name on the wire; without its instance if that may hold a user name.
    pub oid: Oid<'a>,
    /// The object and its module if the MIB has it, and the number of arcs of it. The other arcs of
    /// `oid` are the instance.
    pub object: Option<Object<'a>>,
    /// The type on the wire, as the SMI names it.
    pub syntax: &'static str,
    /// The value.
    pub value: Value<'a>,
    /// The value as the MIB shows it: the name of an enumeration, bits, or an object, or the text
    /// that a display hint gives.
    pub text: Option<String>,
    /// Why the value is shown as bytes although its type says otherwise.
    pub error: Option<&'static str>,
}

/// An object of a MIB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object<'a> {
    /// The descriptor, such as `ifOperStatus`.
    pub name: &'a str,
    /// The module, such as `IF-MIB`.
    pub module: &'a str,
    /// Arcs of its object identifier.
    pub arcs: usize,
}

impl<'a> Varbind<'a> {
    /// Reads a binding.
    ///
    /// # Errors
    ///
    /// If name or value are missing or the name is malformed.
    pub(super) fn read(binding: Element<'a>, mib: &'a Mib) -> Result<Varbind<'a>, Error> {
        let mut parts = binding.reader();
        let name = parts.expect(OBJECT_IDENTIFIER, "the name of a variable binding is missing")?;
        let malformed = Error { at: name.at, reason: "the name of a variable binding is malformed" };
        let mut oid = Oid::from_ber(name.contents).ok_or(malformed)?;
        let element = parts.next()?;

        let found = mib.find(oid.arcs());
        let (mut syntax, value) = typed(element);
        let error = value.is_none().then_some("the value does not fit its type");
        let mut value = value.unwrap_or(Value::Bytes(element.contents));
        let declared = found.as_ref().map(|found| found.syntax);
        let mut text = match &value {
            Value::Oid(oid) => object(oid, mib).map(|object| object.label(oid)),
            _ => declared.as_ref().and_then(|declared| declared.show(&value, element.contents)),
        };
        if declared.as_ref().is_some_and(Syntax::is_bits) && element.tag == OCTET_STRING {
            syntax = "BITS";
        }
        let mut object = found
            .filter(|found| found.is_exact || matches!(found.kind, Kind::Object | Kind::Container))
            .map(|found| Object { name: found.name, module: found.module, arcs: found.arcs });
        if let Some(shown) = secret(&oid) {
            (value, text) = (Value::Hidden, None);
            object = object.filter(|object| object.arcs <= shown);
            oid = oid.truncated(shown);
        } else if let Value::Oid(secret_oid) = &value
            && let Some(shown) = secret(secret_oid)
        {
            (value, text) = (Value::Oid(secret_oid.truncated(shown)), None);
        }
        // What says the same as the value is left out.
        let same = matches!((&value, &text), (Value::Text(value), Some(text)) if value == text);
        Ok(Varbind { oid, object, syntax, value, text: text.filter(|_| !same), error })
    }

    /// The name of the object and its instance, such as `ifOperStatus.3`.
    pub fn label(&self) -> Option<String> {
        self.object.map(|object| object.label(&self.oid))
    }
}

impl Object<'_> {
    fn label(&self, oid: &Oid<'_>) -> String {
        use std::fmt::Write as _;
        let mut label = self.name.to_owned();
        for arc in oid.tail(self.arcs) {
            write!(label, ".{arc}").expect("writing to a String cannot fail");
        }
        label
    }
}

/// What an object identifier names.
fn object<'a>(oid: &Oid<'_>, mib: &'a Mib) -> Option<Object<'a>> {
    let found = mib.find(oid.arcs())?;
    let is_known = found.is_exact || matches!(found.kind, Kind::Object);
    is_known.then_some(Object { name: found.name, module: found.module, arcs: found.arcs })
}

/// The number of arcs that may be shown of an object identifier: all if `None`.
fn secret(oid: &Oid<'_>) -> Option<usize> {
    if !oid.may_be_snmp_module() {
        return None;
    }
    let prefix = SECRETS.iter().find(|prefix| oid.starts_with(prefix))?;
    // Table, entry and column are no secret.
    Some(prefix.len() + 2)
}

/// The name and the value of a type; `None` instead of a value that does not fit its type.
fn typed<'a>(element: Element<'a>) -> (&'static str, Option<Value<'a>>) {
    let contents = element.contents;
    let unsigned = || ber::unsigned(contents).map(Value::Unsigned);
    let unsigned32 = || ber::unsigned(contents).filter(|&number| number <= u64::from(u32::MAX)).map(Value::Unsigned);
    match element.tag {
        INTEGER => ("INTEGER", ber::signed(contents).map(Value::Integer)),
        OCTET_STRING => ("OCTET STRING", Some(string(contents))),
        OBJECT_IDENTIFIER => ("OBJECT IDENTIFIER", Oid::from_ber(contents).map(Value::Oid)),
        0x03 => ("BIT STRING", Some(Value::Bytes(contents))),
        0x05 => ("NULL", contents.is_empty().then_some(Value::Null)),
        0x40 => ("IpAddress", <[u8; 4]>::try_from(contents).ok().map(|octets| Value::Address(octets.into()))),
        0x41 => ("Counter32", unsigned32()),
        0x42 => ("Gauge32", unsigned32()),
        0x43 => ("TimeTicks", unsigned32()),
        0x44 => opaque(contents),
        // NsapAddress and UInteger32 are of RFC 1442, which RFC 1902 withdrew.
        0x45 => ("NsapAddress", Some(Value::Bytes(contents))),
        0x46 => ("Counter64", unsigned()),
        0x47 => ("UInteger32", unsigned32()),
        0x80 => ("noSuchObject", Some(Value::Null)),
        0x81 => ("noSuchInstance", Some(Value::Null)),
        0x82 => ("endOfMibView", Some(Value::Null)),
        SEQUENCE => ("SEQUENCE", Some(Value::Bytes(contents))),
        _ => ("unknown", Some(Value::Bytes(contents))),
    }
}

fn opaque(contents: &[u8]) -> (&'static str, Option<Value<'_>>) {
    if let Some(octets) = contents.strip_prefix(&OPAQUE_FLOAT)
        && let Ok(octets) = octets.try_into()
    {
        return ("Float", Some(Value::Float(f32::from_be_bytes(octets).into())));
    }
    if let Some(octets) = contents.strip_prefix(&OPAQUE_DOUBLE)
        && let Ok(octets) = octets.try_into()
    {
        return ("Double", Some(Value::Float(f64::from_be_bytes(octets))));
    }
    // Tag, length, and octets to the end.
    if let [0x9f, tag, length, octets @ ..] = contents
        && usize::from(*length) == octets.len()
    {
        let number = match [0x9f, *tag] {
            OPAQUE_COUNTER64 => ber::unsigned(octets).map(|number| ("Counter64", Value::Unsigned(number))),
            OPAQUE_UNSIGNED64 => ber::unsigned(octets).map(|number| ("Unsigned64", Value::Unsigned(number))),
            OPAQUE_INTEGER64 => ber::signed(octets).map(|number| ("Integer64", Value::Integer(number))),
            _ => None,
        };
        if let Some((syntax, value)) = number {
            return (syntax, Some(value));
        }
    }
    ("Opaque", Some(Value::Bytes(contents)))
}

/// An OCTET STRING: text if it looks like text.
fn string(octets: &[u8]) -> Value<'_> {
    let is_odd = |octet: &u8| (*octet < 0x20 && !matches!(octet, b'\t' | b'\n' | b'\r')) || *octet == 0x7f;
    if octets.iter().any(is_odd) {
        return Value::Bytes(octets);
    }
    std::str::from_utf8(octets).map_or(Value::Bytes(octets), Value::Text)
}

impl Syntax<'_> {
    /// A value as the MIB shows it. `octets` are its contents on the wire.
    fn show(&self, value: &Value<'_>, octets: &[u8]) -> Option<String> {
        match value {
            Value::Integer(number) => self.integer(*number),
            Value::Unsigned(number) => self.integer(i64::try_from(*number).ok()?),
            Value::Text(_) | Value::Bytes(_) if octets.len() <= MAX_HINTED => self.octets(octets),
            _ => None,
        }
    }
}
