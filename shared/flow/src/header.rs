//! The headers of flow datagrams: the exporter that counts, and its sequence number.
//!
//! ```text
//! NetFlow v5 │ 5 u16  │ count u16  │ uptime u32 │ secs u32 │ nsecs u32 │ flow sequence u32 │ engine type u8, id u8 │ sampling u16
//! NetFlow v9 │ 9 u16  │ count u16  │ uptime u32 │ secs u32 │ sequence u32 │ source id u32                       RFC 3954 §5.1
//! IPFIX      │ 10 u16 │ length u16 │ export time u32 │ sequence u32 │ observation domain u32                     RFC 7011 §3.1
//! sFlow v5   │ 5 u32  │ address type u32 │ agent address 0, 4 or 16 │ sub-agent u32 │ sequence u32 │ uptime u32 │ samples u32
//! ```

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use sekiwake_record::{
    Format, Shard,
    bytes::{u16_at, u32_at},
};

/// NetFlow v5: header and record lengths, bytes, and the maximum of records per packet (Cisco's
/// table of the export format).
const NETFLOW5_HEADER: usize = 24;
const NETFLOW5_RECORD: usize = 48;
const NETFLOW5_MAX_RECORDS: u16 = 30;

/// NetFlow v9 header length, bytes (RFC 3954 §5.1).
pub(crate) const NETFLOW9_HEADER: usize = 20;

/// IPFIX message header length, bytes (RFC 7011 §3.1).
pub(crate) const IPFIX_HEADER: usize = 16;

/// The bytes of a key that identify an exporter with templates by its address: version, source,
/// domain.
pub(crate) const ADDRESS_KEY: usize = 21;

/// An exporter with a sequence of its own:
/// `version u8 │ source 16 │ domain u32 │ port u16 │ agent 16`.
///
/// The domain is the source id of NetFlow v9, the observation domain of IPFIX, engine type and id
/// of NetFlow v5, the sub-agent of sFlow. The agent is the address in an sFlow datagram, zero for
/// the others. Port 0 stands for the address alone: what is known without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key([u8; 39]);

impl Key {
    fn new(version: u8, source: SocketAddr, domain: u32, agent: [u8; 16]) -> Key {
        let mut key = [0; 39];
        key[0] = version;
        key[1..17].copy_from_slice(&canonical(source.ip()));
        key[17..21].copy_from_slice(&domain.to_be_bytes());
        key[21..23].copy_from_slice(&source.port().to_be_bytes());
        key[23..].copy_from_slice(&agent);
        Key(key)
    }

    /// The key of an exporter with templates. `None` if its version has no templates.
    pub(crate) fn from_address_key(bytes: &[u8; ADDRESS_KEY], port: u16) -> Option<Key> {
        let mut key = [0; 39];
        key[..ADDRESS_KEY].copy_from_slice(bytes);
        key[21..23].copy_from_slice(&port.to_be_bytes());
        Version::from_number(bytes[0]).map(|_| Key(key))
    }

    pub(crate) fn address_key(&self) -> &[u8; ADDRESS_KEY] {
        self.0.first_chunk().unwrap_or(&[0; ADDRESS_KEY])
    }

    /// The key of its address alone.
    pub(crate) fn without_port(&self) -> Key {
        let mut key = *self;
        key.0[21..23].fill(0);
        key
    }

    pub(crate) fn port(&self) -> u16 {
        u16::from_be_bytes([self.0[21], self.0[22]])
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn version(&self) -> Option<Version> {
        Version::from_number(self.0[0])
    }

    /// The shard of the source.
    pub(crate) fn shard(&self) -> Shard {
        let mut source = [0; 16];
        source.copy_from_slice(&self.0[1..17]);
        Shard::of(IpAddr::V6(Ipv6Addr::from(source)))
    }
}

/// The 16 bytes of an address: IPv4 as `::ffff:a.b.c.d`.
fn canonical(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A protocol with templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    NetFlow9,
    Ipfix,
}

impl Version {
    fn from_number(number: u8) -> Option<Version> {
        match number {
            9 => Some(Version::NetFlow9),
            10 => Some(Version::Ipfix),
            _ => None,
        }
    }
}

/// The unit of a sequence number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Flows of NetFlow v5, data records of IPFIX.
    Records,
    /// Datagrams of NetFlow v9 and sFlow v5.
    Datagrams,
}

/// The fields of a header.
pub(crate) struct Header<'a> {
    pub(crate) key: Key,
    pub(crate) sequence: u32,
    pub(crate) unit: Unit,
    /// The units in this datagram. `None`: they have to be counted in its sets (IPFIX).
    pub(crate) units: Option<u32>,
    /// What some exporters count instead: records where it should be datagrams, and the reverse.
    pub(crate) other_units: u32,
    /// The sets after the header, for protocols with templates.
    pub(crate) sets: Option<(Version, &'a [u8])>,
}

impl Header<'_> {
    /// Reads a header. `None` if it is invalid for this format.
    pub(crate) fn read(source: SocketAddr, format: Format, payload: &[u8]) -> Option<Header<'_>> {
        match format {
            Format::NetFlow5 => netflow5(source, payload),
            Format::NetFlow9 => netflow9(source, payload),
            Format::Ipfix => ipfix(source, payload),
            Format::Sflow5 => sflow5(source, payload),
            _ => None,
        }
    }
}

fn netflow5(source: SocketAddr, payload: &[u8]) -> Option<Header<'_>> {
    let count = u16_at(payload, 2)?;
    let announced = NETFLOW5_HEADER + usize::from(count) * NETFLOW5_RECORD;
    if u16_at(payload, 0)? != 5 || !(1..=NETFLOW5_MAX_RECORDS).contains(&count) || announced > payload.len() {
        return None;
    }
    let engine = u32::from(u16_at(payload, 20)?);
    Some(Header {
        key: Key::new(5, source, engine, [0; 16]),
        sequence: u32_at(payload, 16)?,
        unit: Unit::Records,
        units: Some(u32::from(count)),
        other_units: 1,
        sets: None,
    })
}

fn netflow9(source: SocketAddr, payload: &[u8]) -> Option<Header<'_>> {
    if u16_at(payload, 0)? != 9 {
        return None;
    }
    Some(Header {
        key: Key::new(9, source, u32_at(payload, 16)?, [0; 16]),
        sequence: u32_at(payload, 12)?,
        unit: Unit::Datagrams,
        units: Some(1),
        other_units: u32::from(u16_at(payload, 2)?),
        sets: Some((Version::NetFlow9, payload.get(NETFLOW9_HEADER..)?)),
    })
}

fn ipfix(source: SocketAddr, payload: &[u8]) -> Option<Header<'_>> {
    if u16_at(payload, 0)? != 10 {
        return None;
    }
    // Bytes after the message, which its length delimits, are ignored.
    let message = payload.get(..usize::from(u16_at(payload, 2)?))?;
    Some(Header {
        key: Key::new(10, source, u32_at(message, 12)?, [0; 16]),
        sequence: u32_at(message, 8)?,
        unit: Unit::Records,
        units: None,
        other_units: 1,
        sets: Some((Version::Ipfix, message.get(IPFIX_HEADER..)?)),
    })
}

fn sflow5(source: SocketAddr, payload: &[u8]) -> Option<Header<'_>> {
    if u32_at(payload, 0)? != 5 {
        return None;
    }
    let mut agent = [0; 16];
    let length = match u32_at(payload, 4)? {
        0 => 0,
        1 => 4,
        2 => 16,
        _ => return None,
    };
    agent[..length].copy_from_slice(payload.get(8..8 + length)?);
    let rest = payload.get(8 + length..)?;
    let samples = u32_at(rest, 12)?;
    Some(Header {
        // The version of sFlow is also 5: 6 distinguishes its keys from those of NetFlow v5.
        key: Key::new(6, source, u32_at(rest, 0)?, agent),
        sequence: u32_at(rest, 4)?,
        unit: Unit::Datagrams,
        units: Some(1),
        other_units: samples,
        sets: None,
    })
}
