//! One datagram as it travels in the body of a batch.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use arrayvec::ArrayVec;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, IgnoredAny, SeqAccess, Visitor},
    ser::SerializeTuple,
};

use crate::{Format, header::next};

/// The longest payload that a record may carry, bytes: what a UDP length field can say, less the UDP header.
pub const MAX_PAYLOAD: usize = 65_527;

/// How many VLAN tags of a frame are kept. Deeper stacks are decoded, their innermost tags not listed.
pub const MAX_VLANS: usize = 8;

/// VLAN identifiers (12 bits) from the outermost tag to the innermost.
pub type Vlans = ArrayVec<u16, MAX_VLANS>;

/// What happened to a datagram before it was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// It came in IP fragments and was put together again.
    pub const REASSEMBLED: Flags = Flags(1);
    /// It was taken out of a tunnel (GRE, ERSPAN, VXLAN, Geneve, IP in IP).
    pub const DECAPSULATED: Flags = Flags(2);

    /// The flags as they travel. Bits of later versions are kept.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Flags from the number that travels.
    pub const fn from_bits(bits: u32) -> Flags {
        Flags(bits)
    }

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and those of `other`, if `condition` holds.
    #[must_use]
    pub const fn with(self, other: Flags, condition: bool) -> Flags {
        if condition { Flags(self.0 | other.0) } else { self }
    }
}

/// Packs DSCP (6 bits) and TTL or hop limit (8 bits) into the number that travels: `dscp << 8 | ttl`.
pub const fn dscp_ttl(dscp: u8, ttl: u8) -> u16 {
    ((dscp as u16 & 0x3f) << 8) | ttl as u16
}

/// One datagram. The payload borrows from the frame that it was captured or received in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// When the kernel stamped the frame that completed the datagram, nanoseconds since 1970-01-01T00:00:00Z.
    pub captured_at_ns: u64,
    /// The device's address, as it stands in the IP header.
    pub source: IpAddr,
    /// The device's UDP port.
    pub source_port: u16,
    /// The address it sent to.
    pub destination: IpAddr,
    /// The UDP port it sent to.
    pub destination_port: u16,
    /// What the payload looks like.
    pub format: Format,
    /// What happened to it on the way.
    pub flags: Flags,
    /// The UDP payload, verbatim: at most [`MAX_PAYLOAD`] bytes.
    pub payload: &'a [u8],
    /// VLAN identifiers, outermost first.
    pub vlans: Vlans,
    /// DSCP and TTL or hop limit, as [`dscp_ttl`] packs them.
    pub dscp_ttl: u16,
}

const FIELDS: usize = 10;

/// An address as bin of 4 or 16 bytes.
struct Address(IpAddr);

impl Serialize for Address {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            IpAddr::V4(v4) => serializer.serialize_bytes(&v4.octets()),
            IpAddr::V6(v6) => serializer.serialize_bytes(&v6.octets()),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Address, D::Error> {
        let bytes: &[u8] = serde_bytes::deserialize(deserializer)?;
        if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
            Ok(Address(IpAddr::V4(Ipv4Addr::from(octets))))
        } else if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
            Ok(Address(IpAddr::V6(Ipv6Addr::from(octets))))
        } else {
            Err(D::Error::invalid_length(bytes.len(), &"an address of 4 or 16 bytes"))
        }
    }
}

/// VLAN identifiers as an array; what a later version might put beyond [`MAX_VLANS`] is skipped.
struct VlanList(Vlans);

impl<'de> Deserialize<'de> for VlanList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<VlanList, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = VlanList;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of VLAN identifiers")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<VlanList, A::Error> {
                let mut vlans = Vlans::new();
                while !vlans.is_full() {
                    match array.next_element()? {
                        Some(vlan) => vlans.push(vlan),
                        None => return Ok(VlanList(vlans)),
                    }
                }
                while array.next_element::<IgnoredAny>()?.is_some() {}
                Ok(VlanList(vlans))
            }
        }
        deserializer.deserialize_seq(Items)
    }
}

impl Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut array = serializer.serialize_tuple(FIELDS)?;
        array.serialize_element(&self.captured_at_ns)?;
        array.serialize_element(&Address(self.source))?;
        array.serialize_element(&self.source_port)?;
        array.serialize_element(&Address(self.destination))?;
        array.serialize_element(&self.destination_port)?;
        array.serialize_element(&self.format.code())?;
        array.serialize_element(&self.flags.bits())?;
        array.serialize_element(serde_bytes::Bytes::new(self.payload))?;
        array.serialize_element(self.vlans.as_slice())?;
        array.serialize_element(&self.dscp_ttl)?;
        array.end()
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Record<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Record<'a>, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Record<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "an array of at least {FIELDS} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Record<'de>, A::Error> {
                let record = Record {
                    captured_at_ns: next(&mut array, 0)?,
                    source: next::<_, Address>(&mut array, 1)?.0,
                    source_port: next(&mut array, 2)?,
                    destination: next::<_, Address>(&mut array, 3)?.0,
                    destination_port: next(&mut array, 4)?,
                    format: Format::from_code(next(&mut array, 5)?),
                    flags: Flags::from_bits(next(&mut array, 6)?),
                    payload: next::<_, &'de serde_bytes::Bytes>(&mut array, 7)?,
                    vlans: next::<_, VlanList>(&mut array, 8)?.0,
                    dscp_ttl: next(&mut array, 9)?,
                };
                if record.payload.len() > MAX_PAYLOAD {
                    return Err(A::Error::invalid_length(record.payload.len(), &"a payload that fits a datagram"));
                }
                while array.next_element::<IgnoredAny>()?.is_some() {}
                Ok(record)
            }
        }
        deserializer.deserialize_seq(Fields)
    }
}
