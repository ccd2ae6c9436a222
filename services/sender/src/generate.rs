//! Payloads as a pure function of seed, protocol, source, sequence and moment.
//!
//! Everything that costs (text, records, BER) is prepared once; for each datagram a prepared part is copied and numbers and times are
//! patched in place, at fixed offsets.

mod flow;
mod netflow5;
mod sflow;
mod snmp;
mod syslog;
mod template_flow;

use std::{net::IpAddr, time::Duration};

use jiff::{Timestamp, tz::TimeZone};

use crate::{Protocol, mix::mix_all};

pub(crate) use snmp::{SEQUENCE_BASE, SEQUENCE_OID, SOURCE_OID};
pub(crate) use syslog::{SEQUENCE_DIGITS, SOURCE_DIGITS};
pub(crate) use template_flow::{DATA_SET_ID, Dialect};

/// What a device's uptime is when its first datagram leaves: three days.
const UPTIME_AT_START: Duration = Duration::from_secs(3 * 86_400);

/// When a datagram leaves, in the forms that protocols want.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Since 1970, UTC.
    unix: Duration,
    /// Since the device was started.
    uptime: Duration,
    /// `Nov 23 03:38:00` (RFC 3164 §4.1.2), UTC.
    bsd: [u8; 15],
    /// `2026-11-23T03:38:00.123456Z` (RFC 5424 §6.2.3).
    rfc5424: [u8; 27],
}

impl Moment {
    /// The moment `unix` after 1970 (before the year 10000), `running` after the first datagram.
    #[must_use]
    pub fn new(unix: Duration, running: Duration) -> Moment {
        let timestamp = Timestamp::UNIX_EPOCH.checked_add(unix).unwrap_or(Timestamp::UNIX_EPOCH);
        let time = timestamp.to_zoned(TimeZone::UTC);
        let (mut bsd, mut rfc5424) = ([b' '; 15], [b'0'; 27]);
        fill(&mut bsd, time.strftime("%b %e %H:%M:%S").to_string().as_bytes());
        fill(&mut rfc5424, time.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string().as_bytes());
        Moment { unix, uptime: UPTIME_AT_START + running, bsd, rfc5424 }
    }

    fn uptime_milliseconds(&self) -> u32 {
        self.uptime.as_millis() as u32
    }

    /// TimeTicks (RFC 2578 §7.1.8).
    fn uptime_ticks(&self) -> u32 {
        (self.uptime.as_millis() / 10) as u32
    }
}

fn fill(field: &mut [u8], text: &[u8]) {
    let length = field.len().min(text.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Who a datagram is from.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Counts addresses and ports: the number that the payload carries.
    pub index: u32,
    /// Its address, for protocols that repeat it.
    pub address: IpAddr,
}

/// How far a source has come in one protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Datagrams so far.
    pub datagrams: u64,
    /// What the protocol counts so far: flows, data records, samples; else datagrams.
    pub units: u64,
}

impl Cursor {
    /// Behind a datagram of `units`.
    pub fn advance(&mut self, units: u64) {
        self.datagrams += 1;
        self.units += units;
    }
}

/// What a datagram is to be.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// From whom.
    pub source: Source,
    /// Where the source stands.
    pub cursor: Cursor,
    /// The payload's size in bytes. What a protocol needs at least is taken anyway; record formats come near from below.
    pub size: usize,
    /// Whether the template goes with it, where the protocol has one.
    pub template: bool,
    /// When it leaves.
    pub moment: &'a Moment,
}

/// Makes the payloads of one protocol.
#[derive(Debug)]
pub struct Generator {
    protocol: Protocol,
    seed: u64,
    maker: Maker,
}

#[derive(Debug)]
enum Maker {
    Syslog(syslog::Maker),
    Netflow5(netflow5::Maker),
    TemplateFlow(template_flow::Maker),
    Sflow(sflow::Maker),
    Snmp(snmp::Maker),
}

impl Generator {
    /// A generator whose content depends on `seed`. `total` is what syslog messages say the whole run sends; 0 is unknown.
    #[must_use]
    pub fn new(protocol: Protocol, seed: u64, total: u64) -> Generator {
        let maker = match protocol {
            Protocol::Rfc3164 => Maker::Syslog(syslog::Maker::rfc3164(seed, total)),
            Protocol::Rfc5424 => Maker::Syslog(syslog::Maker::rfc5424(seed, total)),
            Protocol::Netflow5 => Maker::Netflow5(netflow5::Maker::new(seed)),
            Protocol::Netflow9 => Maker::TemplateFlow(template_flow::Maker::new(Dialect::Netflow9, seed)),
            Protocol::Ipfix => Maker::TemplateFlow(template_flow::Maker::new(Dialect::Ipfix, seed)),
            Protocol::Sflow => Maker::Sflow(sflow::Maker::new(seed)),
            Protocol::Snmp1Trap => Maker::Snmp(snmp::Maker::new(snmp::Version::V1Trap, seed)),
            Protocol::Snmp2cTrap => Maker::Snmp(snmp::Maker::new(snmp::Version::V2cTrap, seed)),
            Protocol::Snmp2cInform => Maker::Snmp(snmp::Maker::new(snmp::Version::V2cInform, seed)),
            Protocol::Snmp3Trap => Maker::Snmp(snmp::Maker::new(snmp::Version::V3Trap, seed)),
        };
        Generator { protocol, seed, maker }
    }

    /// What is made.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether collectors need a template to read it.
    #[must_use]
    pub fn has_template(&self) -> bool {
        matches!(self.maker, Maker::TemplateFlow(_))
    }

    /// A value for one datagram of one source: sizes are picked by it.
    #[must_use]
    pub fn variety(&self, source: u32, cursor: Cursor) -> u64 {
        mix_all(&[self.seed, self.protocol as u64, u64::from(source), cursor.datagrams])
    }

    /// Appends the payload to `out` and gives the units that it counts.
    pub fn write(&self, request: &Request<'_>, out: &mut Vec<u8>) -> u64 {
        let variety = self.variety(request.source.index, request.cursor);
        match &self.maker {
            Maker::Syslog(maker) => maker.write(request, variety, out),
            Maker::Netflow5(maker) => maker.write(request, variety, out),
            Maker::TemplateFlow(maker) => maker.write(request, variety, out),
            Maker::Sflow(maker) => maker.write(request, variety, out),
            Maker::Snmp(maker) => maker.write(request, variety, out),
        }
    }
}

/// Overwrites `bytes` with `value` at `offset`, big endian.
fn put_u16(bytes: &mut [u8], offset: usize, value: u16) {
    bytes[offset..offset + 2].copy_from_slice(&value.to_be_bytes());
}

fn put_u32(bytes: &mut [u8], offset: usize, value: u32) {
    bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
}

fn put_u64(bytes: &mut [u8], offset: usize, value: u64) {
    bytes[offset..offset + 8].copy_from_slice(&value.to_be_bytes());
}
