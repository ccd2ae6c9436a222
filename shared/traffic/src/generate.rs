//! Payloads as a pure function of seed, protocol, source, sequence and time.
//!
//! Everything expensive (text, records, BER) is prepared once. For each datagram a prepared part is
//! copied, and numbers and times are patched in place, at fixed offsets.

mod flow;
mod netflow5;
mod sflow;
mod snmp;
mod syslog;
mod template_flow;

use std::{net::IpAddr, time::Duration};

use jiff::{Timestamp, tz::TimeZone};

use crate::{Protocol, mix::mix_all};

pub(crate) use snmp::{INFORM_OID, SEQUENCE_BASE, SEQUENCE_OID, SOURCE_OID};
pub(crate) use syslog::{SEQUENCE_DIGITS, SOURCE_DIGITS};
pub(crate) use template_flow::{DATA_SET_ID, Dialect};

/// A device's uptime when it sends its first datagram: three days.
const UPTIME_AT_START: Duration = Duration::from_secs(3 * 86_400);

/// When a datagram is sent, in the formats of the protocols.
#[derive(Clone, Debug)]
pub struct Moment {
    /// Time since 1970, UTC.
    unix: Duration,
    /// Time since the device started.
    uptime: Duration,
    /// `Nov 23 03:38:00` (RFC 3164 §4.1.2), UTC.
    bsd: [u8; 15],
    /// `2026-11-23T03:38:00.123456Z` (RFC 5424 §6.2.3).
    rfc5424: [u8; 27],
}

impl Moment {
    /// `unix` is the time since 1970 (before the year 10000), `running` the time since the first
    /// datagram.
    pub fn new(unix: Duration, running: Duration) -> Moment {
        let timestamp = Timestamp::UNIX_EPOCH.checked_add(unix).unwrap_or(Timestamp::UNIX_EPOCH);
        let time = timestamp.to_zoned_datetime(TimeZone::UTC);
        let mut bsd = [b' '; 15];
        let mut rfc5424 = [b'0'; 27];
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

/// The source of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// Number of the address and port, which the payload carries.
    pub index: u32,
    /// Its address, for protocols that repeat it in the payload.
    pub address: IpAddr,
}

/// Progress of a source in one protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Datagrams so far.
    pub datagrams: u64,
    /// Units so far that the protocol counts: flows, data records, samples; else datagrams.
    pub units: u64,
}

impl Cursor {
    /// Moves past a datagram of `units`.
    pub fn advance(&mut self, units: u64) {
        self.datagrams += 1;
        self.units += units;
    }
}

/// A datagram to be generated.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its source.
    pub source: Source,
    /// Progress of the source.
    pub cursor: Cursor,
    /// The payload's size in bytes. A protocol's minimum applies; formats of records stay below by
    /// less than a record.
    pub size: usize,
    /// Whether the template is included, where the protocol has one.
    pub template: bool,
    /// When it is sent.
    pub moment: &'a Moment,
}

/// Generates the payloads of one protocol.
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
    /// A generator whose content depends on `seed`. `total` is the number of datagrams of the run,
    /// which syslog messages carry; 0 is unknown.
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

    /// Its protocol.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Whether collectors need a template to decode it.
    pub fn has_template(&self) -> bool {
        matches!(self.maker, Maker::TemplateFlow(_))
    }

    /// A pseudo-random value for one datagram of one source: it selects the size.
    pub fn variety(&self, source: u32, cursor: Cursor) -> u64 {
        mix_all(&[self.seed, self.protocol as u64, u64::from(source), cursor.datagrams])
    }

    /// Appends the payload to `out` and returns its number of units.
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::{Sequenced, sequence_of};

    fn moment() -> Moment {
        Moment::new(Duration::from_millis(1_700_000_000_123), Duration::from_secs(5))
    }

    fn written(
        protocol: Protocol,
        seed: u64,
        index: u32,
        cursor: Cursor,
        size: usize,
        template: bool,
    ) -> (Vec<u8>, u64) {
        let source = Source { index, address: Ipv4Addr::new(198, 18, 0, 1).into() };
        let mut out = b"before".to_vec();
        let request = Request { source, cursor, size, template, moment: &moment() };
        let units = Generator::new(protocol, seed, 1000).write(&request, &mut out);
        (out.split_off(6), units)
    }

    #[test]
    fn timestamps_have_their_standard_formats() {
        let moment = Moment::new(Duration::from_nanos(1_699_053_505_000_042_999), Duration::ZERO);
        assert_eq!(&moment.bsd, b"Nov  3 23:18:25");
        assert_eq!(&moment.rfc5424, b"2023-11-03T23:18:25.000042Z");
    }

    #[test]
    fn syslog_messages_are_readable() {
        let cursor = Cursor { datagrams: 7, units: 7 };
        let text = String::from_utf8(written(Protocol::Rfc5424, 1, 42, cursor, 200, false).0).unwrap();
        let expected = "1 2023-11-14T22:13:20.123000Z skw-0000002a sender - - \
                        [sender@32473 source=\"0000002a\" sequence=\"000000000007\" total=\"000000001000\"] ";
        assert_eq!(text.len(), 200);
        assert!(text[5..].starts_with(expected), "{text}");
        let text = String::from_utf8(written(Protocol::Rfc3164, 1, 42, cursor, 200, false).0).unwrap();
        assert!(
            text[5..].starts_with("Nov 14 22:13:20 skw-0000002a sender: source=0000002a sequence=000000000007 "),
            "{text}"
        );
    }

    #[test]
    fn inform_that_became_a_trap_keeps_its_stream() {
        let cursor = Cursor { datagrams: 7, units: 7 };
        let [trap, inform] = [Protocol::Snmp2cTrap, Protocol::Snmp2cInform].map(|protocol| {
            let (mut payload, _) = written(protocol, 1, 42, cursor, 400, false);
            let tag = payload.iter().position(|byte| matches!(byte, 0xa6 | 0xa7)).unwrap();
            payload[tag] = 0xa7;
            sequence_of(&payload).unwrap()
        });
        assert_eq!((trap.protocol, inform.protocol), (Protocol::Snmp2cTrap, Protocol::Snmp2cInform));
        assert_ne!(trap.stream(), inform.stream());
    }

    fn any_protocol() -> impl Strategy<Value = Protocol> {
        proptest::sample::select(Protocol::ALL.to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn numbers_are_read_back(
            protocol in any_protocol(), seed: u64, index in 0..65_536_u32, datagrams in 0..1_u64 << 30, units in 0..1_u64 << 31,
            size in 0..66_000_usize, template: bool,
        ) {
            let cursor = Cursor { datagrams, units };
            let (payload, taken) = written(protocol, seed, index, cursor, size, template);
            let counts_units = matches!(protocol, Protocol::Netflow5 | Protocol::Ipfix);
            let (sequence, step) = if counts_units { (units, taken) } else { (datagrams, 1) };
            prop_assert_eq!(sequence_of(&payload), Some(Sequenced { protocol, source_id: index, sequence, step }));
        }

        #[test]
        fn sizes_are_met_to_within_a_record(protocol in any_protocol(), seed: u64, datagrams in 0..100_000_u64, size in 400..65_508_usize) {
            let (payload, units) = written(protocol, seed, 3, Cursor { datagrams, units: datagrams }, size, false);
            let record_bytes = match protocol {
                Protocol::Netflow5 => 48,
                Protocol::Netflow9 => 40,
                Protocol::Ipfix => 56,
                Protocol::Sflow => 144,
                _ => 1,
            };
            prop_assert!(units > 0);
            prop_assert!(payload.len() <= size);
            // Version 5 has at most 30 records (24 + 30 × 48 bytes).
            let wanted = if protocol == Protocol::Netflow5 { size.min(1464) } else { size };
            prop_assert!(payload.len() + record_bytes > wanted, "{} of {wanted}", payload.len());
        }

        #[test]
        fn content_depends_on_seed_source_and_sequence_only(protocol in any_protocol(), seed: u64, index in 0..60_000_u32, datagrams in 0..1000_u64) {
            let cursor = Cursor { datagrams, units: datagrams };
            let payload_of = |seed, index, cursor| written(protocol, seed, index, cursor, 600, true).0;
            let payload = payload_of(seed, index, cursor);
            let next = Cursor { datagrams: datagrams + 1, units: datagrams + 1 };
            prop_assert_eq!(&payload, &payload_of(seed, index, cursor));
            prop_assert_ne!(&payload, &payload_of(seed ^ 1, index, cursor));
            prop_assert_ne!(&payload, &payload_of(seed, index + 1, cursor));
            prop_assert_ne!(&payload, &payload_of(seed, index, next));
        }

        #[test]
        fn foreign_payloads_are_parsed_without_panic(start in proptest::sample::select(vec![
            vec![b'<'], vec![0x30, 0x82, 0, 0, 2, 1], vec![0, 5], vec![0, 9], vec![0, 10, 0, 60], vec![0, 0, 0, 5, 0, 0, 0, 1], vec![],
        ]), rest: Vec<u8>) {
            let _ = sequence_of(&[start, rest].concat());
        }
    }
}
