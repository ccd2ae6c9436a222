//! Records: one datagram each, an array of msgpack elements in the body of a batch.
//!
//! ```text
//! captured_at_ns    uint
//! source_ip         bin 4 or 16
//! source_port       uint16
//! destination_ip    bin 4 or 16
//! destination_port  uint16
//! format            uint    see [`Format`]
//! flags             uint32  see [`Flags`]
//! payload           bin
//! vlans             array of uint16
//! dscp_ttl          uint16  dscp << 8 | ttl
//! ip_id             uint32 or nil, see [`Origin`]
//! interface         uint8
//! ```
//!
//! The last two are appended together, or not at all: earlier versions do not know them.

use std::net::IpAddr;

use arrayvec::ArrayVec;
use rmp::encode::{ValueWriteError, write_array_len, write_bin, write_nil, write_uint};

use crate::{
    DecodeError, Format,
    header::malformed,
    msgpack::{Unexpected, read_array, read_bytes, read_number, read_optional_number, skip},
};

/// The longest payload, bytes: the maximum of the UDP length field without the UDP header.
pub const MAX_PAYLOAD: usize = 65_527;

/// VLAN tags per record. Deeper stacks are decoded, but their innermost tags are not listed.
pub const MAX_VLANS: usize = 8;

/// VLAN identifiers (12 bits) from the outermost tag to the innermost.
pub type Vlans = ArrayVec<u16, MAX_VLANS>;

/// How a datagram was processed before it was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// It was reassembled from IP fragments.
    pub const REASSEMBLED: Flags = Flags(1);
    /// It was decapsulated from a tunnel (GRE, ERSPAN, VXLAN, Geneve, IP in IP).
    pub const DECAPSULATED: Flags = Flags(2);

    /// The number on the wire. Bits of later versions are kept.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Flags from the number on the wire.
    pub const fn from_bits(bits: u32) -> Flags {
        Flags(bits)
    }

    /// Whether all flags of `other` are set.
    pub const fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }

    /// These flags and those of `other`, if `condition` holds.
    pub const fn with(self, other: Flags, condition: bool) -> Flags {
        if condition { Flags(self.0 | other.0) } else { self }
    }
}

/// Packs DSCP (6 bits) and TTL or hop limit (8 bits) into the number on the wire:
/// `dscp << 8 | ttl`.
pub const fn dscp_ttl(dscp: u8, ttl: u8) -> u16 {
    ((dscp as u16 & 0x3f) << 8) | ttl as u16
}

/// Where a capture has seen a datagram, and how its IP header identifies it: what tells a second
/// copy of a datagram from a repetition by the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The identification in the IPv4 header, or in the IPv6 fragment header; `None` where the
    /// datagram has none.
    pub ip_id: Option<u32>,
    /// The capture's number of the interface.
    pub interface: u8,
}

/// One datagram. The payload borrows from the captured frame or the received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Capture time of the frame that completed the datagram, nanoseconds since
    /// 1970-01-01T00:00:00Z.
    pub captured_at_ns: u64,
    /// The device's address, from the IP header.
    pub source: IpAddr,
    /// The device's UDP port.
    pub source_port: u16,
    /// The destination address.
    pub destination: IpAddr,
    /// The destination UDP port.
    pub destination_port: u16,
    /// The format of the payload.
    pub format: Format,
    /// How it was processed before it was published.
    pub flags: Flags,
    /// The UDP payload, verbatim: at most [`MAX_PAYLOAD`] bytes.
    pub payload: &'a [u8],
    /// VLAN identifiers, outermost first.
    pub vlans: Vlans,
    /// DSCP and TTL or hop limit, as [`dscp_ttl`] packs them.
    pub dscp_ttl: u16,
    /// Where it was seen; `None` in records of an earlier version.
    pub origin: Option<Origin>,
}

/// Elements of every version.
const FIELDS: u32 = 10;

/// Appended elements of an [`Origin`].
const ORIGIN_FIELDS: u32 = 2;

/// The most bytes of a record in addition to its payload: markers, two IPv6 addresses, eight VLAN
/// tags, and the numbers.
pub(crate) const RECORD_OVERHEAD: usize = 128;

impl Record<'_> {
    /// Appends the record's msgpack form to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        self.write(out).expect("writing to a Vec cannot fail");
    }

    /// Decodes what [`Record::encode`] has written.
    ///
    /// # Errors
    /// When the bytes are not exactly one well-formed record.
    pub fn decode(bytes: &[u8]) -> Result<Record<'_>, DecodeError> {
        let mut rest = bytes;
        let record = Record::read(&mut rest).map_err(|error| malformed("record", &error))?;
        if rest.is_empty() { Ok(record) } else { Err(DecodeError::Trailing("record")) }
    }

    /// Appends the record's msgpack form to `out`, without serde, because this is the hot path of
    /// every publisher.
    pub(crate) fn write(&self, out: &mut Vec<u8>) -> Result<(), ValueWriteError> {
        out.reserve(self.payload.len() + RECORD_OVERHEAD);
        write_array_len(out, FIELDS + if self.origin.is_some() { ORIGIN_FIELDS } else { 0 })?;
        write_uint(out, self.captured_at_ns)?;
        write_address(out, self.source)?;
        write_uint(out, self.source_port.into())?;
        write_address(out, self.destination)?;
        write_uint(out, self.destination_port.into())?;
        write_uint(out, self.format.code().into())?;
        write_uint(out, self.flags.bits().into())?;
        write_bin(out, self.payload)?;
        write_array_len(out, self.vlans.len() as u32)?;
        for &vlan in &self.vlans {
            write_uint(out, vlan.into())?;
        }
        write_uint(out, self.dscp_ttl.into())?;
        if let Some(Origin { ip_id, interface }) = self.origin {
            match ip_id {
                Some(ip_id) => write_uint(out, ip_id.into()).map(drop)?,
                None => write_nil(out).map_err(ValueWriteError::InvalidMarkerWrite)?,
            }
            write_uint(out, interface.into())?;
        }
        Ok(())
    }

    /// Reads the next record from `rest`, and advances `rest` past it. Elements that a later
    /// version appended are skipped.
    pub(crate) fn read<'a>(rest: &mut &'a [u8]) -> Result<Record<'a>, Unexpected> {
        let elements = read_array(rest, "record")?;
        let appended = elements.checked_sub(FIELDS).ok_or(Unexpected::new("record of at least 10 elements"))?;
        let mut record = Record {
            captured_at_ns: read_number(rest, "capture time")?,
            source: read_address(rest, "source address of 4 or 16 bytes")?,
            source_port: read_number(rest, "source port")?,
            destination: read_address(rest, "destination address of 4 or 16 bytes")?,
            destination_port: read_number(rest, "destination port")?,
            format: Format::from_code(read_number(rest, "format")?),
            flags: Flags::from_bits(read_number(rest, "flags")?),
            payload: read_payload(rest)?,
            vlans: read_vlans(rest)?,
            dscp_ttl: read_number(rest, "DSCP and TTL")?,
            origin: None,
        };
        let mut unknown = appended;
        if let Some(after) = appended.checked_sub(ORIGIN_FIELDS) {
            let ip_id = read_optional_number(rest, "IP identification or nil")?;
            record.origin = Some(Origin { ip_id, interface: read_number(rest, "number of an interface")? });
            unknown = after;
        }
        skip(rest, unknown)?;
        Ok(record)
    }
}

/// Writes an address as bin of 4 or 16 bytes.
fn write_address(out: &mut Vec<u8>, address: IpAddr) -> Result<(), ValueWriteError> {
    match address {
        IpAddr::V4(v4) => write_bin(out, &v4.octets()),
        IpAddr::V6(v6) => write_bin(out, &v6.octets()),
    }
}

fn read_address(rest: &mut &[u8], element: &'static str) -> Result<IpAddr, Unexpected> {
    let bytes = read_bytes(rest, element)?;
    if let Ok(octets) = <[u8; 4]>::try_from(bytes) {
        Ok(IpAddr::from(octets))
    } else if let Ok(octets) = <[u8; 16]>::try_from(bytes) {
        Ok(IpAddr::from(octets))
    } else {
        Err(Unexpected::new(element))
    }
}

fn read_payload<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], Unexpected> {
    let payload = read_bytes(rest, "payload")?;
    if payload.len() <= MAX_PAYLOAD { Ok(payload) } else { Err(Unexpected::new("payload of at most 65527 bytes")) }
}

/// Reads VLAN identifiers; those past [`MAX_VLANS`], which a later version might write, are
/// skipped.
fn read_vlans(rest: &mut &[u8]) -> Result<Vlans, Unexpected> {
    let length = read_array(rest, "list of VLAN identifiers")?;
    let kept = length.min(MAX_VLANS as u32);
    let vlans = (0..kept).map(|_| read_number(rest, "VLAN identifier")).collect::<Result<Vlans, _>>()?;
    skip(rest, length - kept)?;
    Ok(vlans)
}
