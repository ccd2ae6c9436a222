//! The values of fields.

use std::{
    borrow::Cow,
    fmt::{self, Write as _},
    net::{Ipv4Addr, Ipv6Addr},
};

use jiff::Timestamp;
use serde::{Serialize, Serializer, ser::SerializeMap};

use super::{Field, Name};
use crate::text::{Hexadecimal, Plain};

/// The abstract data type of an information element (RFC 7012 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Unsigned,
    Signed,
    Float,
    Boolean,
    Mac,
    Octets,
    Text,
    Seconds,
    Milliseconds,
    Microseconds,
    Nanoseconds,
    Ipv4,
    Ipv6,
    BasicList,
    SubTemplateList,
    SubTemplateMultiList,
}

/// The value of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// A number without a sign, also of reduced size.
    Unsigned(u64),
    /// A number with a sign.
    Signed(i64),
    /// A floating-point number.
    Float(f64),
    /// True or false.
    Boolean(bool),
    /// An IPv4 address.
    Ipv4(Ipv4Addr),
    /// An IPv6 address.
    Ipv6(Ipv6Addr),
    /// An Ethernet address.
    Mac([u8; 6]),
    /// A time.
    Time(Time),
    /// Text. Bytes that are not UTF-8 are replaced by U+FFFD.
    Text(Cow<'a, str>),
    /// Bytes without a known type, or whose number does not fit the type.
    Bytes(&'a [u8]),
    /// Names of the fields of a template.
    Names(Vec<Name>),
    /// Values of one element (RFC 6313 §4.5.1).
    List(Vec<Value<'a>>),
    /// Records of templates (RFC 6313 §4.5.2, §4.5.3).
    Records(Vec<Vec<Field<'a>>>),
    /// Bytes that cannot be decoded, and why.
    Undecoded(Cow<'static, str>, &'a [u8]),
}

/// A time since 1970, with the number of digits that its type has after the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    seconds: u64,
    nanoseconds: u32,
    digits: u8,
}

impl Time {
    /// 9999-12-30T22:00:00Z, the last time that jiff can print, without its fraction.
    const LAST: u64 = 253_402_207_200;

    /// `None` after the year 9999.
    pub(crate) fn new(seconds: u64, nanoseconds: u32, digits: u8) -> Option<Time> {
        (seconds < Time::LAST).then_some(Time { seconds, nanoseconds, digits })
    }

    pub(crate) fn of_milliseconds(milliseconds: u64) -> Option<Time> {
        Time::new(milliseconds / 1000, (milliseconds % 1000) as u32 * 1_000_000, 3)
    }

    /// Milliseconds since 1970.
    pub(crate) fn milliseconds(self) -> u64 {
        self.seconds * 1000 + u64::from(self.nanoseconds / 1_000_000)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = Timestamp::new(self.seconds.cast_signed(), self.nanoseconds.cast_signed());
        write!(f, "{:.*}", usize::from(self.digits), time.unwrap_or(Timestamp::MAX))
    }
}

impl<'a> Value<'a> {
    /// Decodes the bytes of a field that is not a list. Bytes that do not fit the type are shown as
    /// they are.
    pub(crate) fn decode(kind: Type, bytes: &'a [u8]) -> Value<'a> {
        Value::of_type(kind, bytes).unwrap_or(Value::Bytes(bytes))
    }

    fn of_type(kind: Type, bytes: &'a [u8]) -> Option<Value<'a>> {
        Some(match kind {
            Type::Unsigned => Value::Unsigned(unsigned(bytes)?),
            Type::Signed => {
                let unused = 64 - 8 * u32::try_from(bytes.len()).ok()?.clamp(1, 8);
                Value::Signed((unsigned(bytes)? << unused).cast_signed() >> unused)
            }
            Type::Float if bytes.len() == 4 => Value::Float(f32::from_be_bytes(bytes.try_into().ok()?).into()),
            Type::Float => Value::Float(f64::from_be_bytes(bytes.try_into().ok()?)),
            // RFC 7011 §6.1.5.
            Type::Boolean => match bytes {
                [1] => Value::Boolean(true),
                [2] => Value::Boolean(false),
                _ => Value::Unsigned(unsigned(bytes)?),
            },
            Type::Mac => Value::Mac(bytes.try_into().ok()?),
            Type::Ipv4 => Value::Ipv4(<[u8; 4]>::try_from(bytes).ok()?.into()),
            Type::Ipv6 => Value::Ipv6(<[u8; 16]>::try_from(bytes).ok()?.into()),
            Type::Text => text(bytes),
            Type::Seconds => Value::Time(Time::new(unsigned(bytes)?, 0, 0)?),
            Type::Milliseconds => Value::Time(Time::of_milliseconds(unsigned(bytes)?)?),
            Type::Microseconds => ntp(bytes, 6)?,
            Type::Nanoseconds => ntp(bytes, 9)?,
            Type::Octets | Type::BasicList | Type::SubTemplateList | Type::SubTemplateMultiList => return None,
        })
    }
}

/// Text, without the zeros with which exporters fill a field of fixed length.
pub(crate) fn text(bytes: &[u8]) -> Value<'_> {
    let length = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    Value::Text(String::from_utf8_lossy(&bytes[..length]))
}

/// A number of one to eight bytes (RFC 7011 §6.2).
pub(crate) fn unsigned(bytes: &[u8]) -> Option<u64> {
    // The usual lengths first: this is most of the work on a record.
    if let Ok(bytes) = bytes.try_into() {
        return Some(u32::from_be_bytes(bytes).into());
    }
    match *bytes {
        [byte] => Some(byte.into()),
        [high, low] => Some(u16::from_be_bytes([high, low]).into()),
        _ if (1..=8).contains(&bytes.len()) => {
            let mut number = [0; 8];
            number[8 - bytes.len()..].copy_from_slice(bytes);
            Some(u64::from_be_bytes(number))
        }
        _ => None,
    }
}

/// A time in NTP's format: seconds since 1900, and a binary fraction (RFC 7011 §6.1.9). Times
/// before 1968 are those after 2036, as RFC 4330 §3 says.
fn ntp(bytes: &[u8], digits: u8) -> Option<Value<'_>> {
    const FROM_1900_TO_1970: u64 = 2_208_988_800;
    let number = unsigned(bytes).filter(|_| bytes.len() == 8)?;
    let (seconds, fraction) = (number >> 32, number & 0xffff_ffff);
    if number == 0 {
        return Some(Value::Unsigned(0));
    }
    let era = if seconds & 1 << 31 == 0 { 1 << 32 } else { 0 };
    let nanoseconds = (fraction * 1_000_000_000) >> 32;
    Time::new((seconds + era).checked_sub(FROM_1900_TO_1970)?, nanoseconds as u32, digits).map(Value::Time)
}

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Value::Unsigned(number) => serializer.serialize_u64(*number),
            Value::Signed(number) => serializer.serialize_i64(*number),
            Value::Float(number) if number.is_finite() => serializer.serialize_f64(*number),
            Value::Boolean(value) => serializer.serialize_bool(*value),
            Value::Text(text) => serializer.serialize_str(text),
            Value::Names(names) => serializer.collect_seq(names),
            Value::List(values) => serializer.collect_seq(values),
            Value::Records(records) => serializer.collect_seq(records.iter().map(|fields| Fields(fields))),
            Value::Undecoded(reason, bytes) => {
                let mut map = serializer.serialize_map(Some(2))?;
                map.serialize_entry("undecoded", reason)?;
                map.serialize_entry("bytes", &Hexadecimal(bytes))?;
                map.end()
            }
            _ => serializer.collect_str(self),
        }
    }
}

/// Fields as a map.
struct Fields<'s, 'a>(&'s [Field<'a>]);

impl Serialize for Fields<'_, '_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|field| (field.key(), &field.value)))
    }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Unsigned(number) => write!(f, "{number}"),
            Value::Signed(number) => write!(f, "{number}"),
            Value::Float(number) => write!(f, "{number}"),
            Value::Boolean(value) => write!(f, "{value}"),
            Value::Ipv4(address) => write!(f, "{address}"),
            Value::Ipv6(address) => write!(f, "{address}"),
            Value::Mac([a, b, c, d, e, g]) => write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}"),
            Value::Time(time) => write!(f, "{time}"),
            Value::Text(text) => write!(f, "{}", Plain(text)),
            Value::Bytes(bytes) => write!(f, "{}", Hexadecimal(bytes)),
            Value::Names(names) => list(f, names),
            Value::List(values) => list(f, values),
            Value::Records(records) => {
                f.write_char('[')?;
                for (position, fields) in records.iter().enumerate() {
                    f.write_str(if position == 0 { "{" } else { " {" })?;
                    for (position, field) in fields.iter().enumerate() {
                        write!(f, "{}{}={}", if position == 0 { "" } else { " " }, field.key(), field.value)?;
                    }
                    f.write_char('}')?;
                }
                f.write_char(']')
            }
            Value::Undecoded(reason, bytes) => write!(f, "({reason}: {})", Hexadecimal(bytes)),
        }
    }
}

fn list(f: &mut fmt::Formatter<'_>, items: &[impl fmt::Display]) -> fmt::Result {
    f.write_char('[')?;
    for (position, item) in items.iter().enumerate() {
        write!(f, "{}{item}", if position == 0 { "" } else { " " })?;
    }
    f.write_char(']')
}
