//! The payloads of test messages: harmless, and easy to find in a collector.
//!
//! ```text
//! syslog  RFC 5424, user.notice, APP-NAME sekiwake, MSGID test, text with the name of the test
//! traps   SNMPv2c, notification 1.3.6.1.4.1.32473.0.100, text as 1.3.6.1.4.1.32473.1.100.0
//! flows   one flow of one packet between documentation addresses; observation domain and template
//!         number are its own, so that it replaces no template of an exporter
//! ```
//! 32473 is the enterprise number for examples (RFC 5612).

use jiff::Timestamp;
use sekiwake_identify::snmp::SNMPV2_TRAP;
use sekiwake_record::{Format, Kind};

use crate::{
    ber::{INTEGER, OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE, TIME_TICKS, constructed, element},
    config::destination::Options,
};

/// The observation domain, or source id, of test flows: "Skwt".
const DOMAIN: u32 = 0x536b_7774;

/// The number of their template, the highest one.
const TEMPLATE: u16 = 65_535;

/// Their addresses and ports: documentation (RFC 5737), and the discard service.
const FLOW_SOURCE: [u8; 4] = [203, 0, 113, 1];
const FLOW_DESTINATION: [u8; 4] = [203, 0, 113, 2];
const DISCARD: u16 = 9;
const UDP: u8 = 17;
const FLOW_BYTES: u32 = 64;

/// Information elements and their lengths in bytes (RFC 3954 §8, RFC 7012): addresses, ports,
/// protocol, bytes, packets, and the times of the first and the last packet.
const FLOW_FIELDS: [(u16, u16); 7] = [(8, 4), (12, 4), (7, 2), (11, 2), (4, 1), (1, 4), (2, 4)];
/// FIRST_SWITCHED and LAST_SWITCHED: milliseconds of uptime.
const NETFLOW9_TIMES: [(u16, u16); 2] = [(22, 4), (21, 4)];
/// flowStartMilliseconds and flowEndMilliseconds: since 1970.
const IPFIX_TIMES: [(u16, u16); 2] = [(152, 8), (153, 8)];

/// The uptime that flows and traps claim: one minute.
const UPTIME_MS: u32 = 60_000;
/// In hundredths of a second, in the shortest form.
const UPTIME_TICKS: [u8; 2] = (UPTIME_MS as u16 / 10).to_be_bytes();

/// 1.3.6.1.2.1.1.3.0, 1.3.6.1.6.3.1.1.4.1.0 and 1.3.6.1.2.1.1.5.0 (RFC 3418).
const SYS_UP_TIME: [u8; 8] = [0x2b, 6, 1, 2, 1, 1, 3, 0];
const SNMP_TRAP_OID: [u8; 10] = [0x2b, 6, 1, 6, 3, 1, 1, 4, 1, 0];
const SYS_NAME: [u8; 8] = [0x2b, 6, 1, 2, 1, 1, 5, 0];
/// 1.3.6.1.4.1.32473.0.100 and 1.3.6.1.4.1.32473.1.100.0.
const TEST_TRAP: [u8; 10] = [0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 0, 100];
const TEST_TEXT: [u8; 11] = [0x2b, 6, 1, 4, 1, 0x81, 0xfd, 0x59, 1, 100, 0];

/// The community of traps unless another is given.
pub(super) const DEFAULT_COMMUNITY: &str = "public";

/// What test messages have in common.
pub(super) struct Test {
    /// The name of this host.
    pub(super) host: String,
    /// Nanoseconds since 1970.
    pub(super) at_ns: u64,
    /// The community of traps.
    pub(super) community: String,
}

impl Test {
    /// The name by which messages of this run are found.
    pub(super) fn name(&self) -> String {
        format!("sekiwake-test-{:08x}", self.number())
    }

    fn number(&self) -> u32 {
        // Runs differ by at least a millisecond.
        (self.at_ns / 1_000_000) as u32
    }

    /// The port by which the flow of this run is found.
    fn source_port(&self) -> u16 {
        10_000 + (self.number() % 50_000) as u16
    }

    /// The payload for one endpoint of a destination.
    pub(super) fn payload(&self, kind: Kind, options: &Options, label: &str) -> Vec<u8> {
        match kind {
            Kind::Syslog => self.syslog(label),
            Kind::SnmpTrap => self.trap(label),
            Kind::Xflow => match flow_format(options) {
                Format::Ipfix => self.ipfix(),
                Format::NetFlow5 => self.netflow5(),
                Format::Sflow5 => Test::sflow5(),
                _ => self.netflow9(),
            },
        }
    }

    /// How to recognise the message.
    pub(super) fn description(&self, kind: Kind) -> String {
        let name = self.name();
        let host = &self.host;
        match kind {
            Kind::Syslog => {
                format!("{name}, a syslog message (RFC 5424) of {host}: user.notice, APP-NAME sekiwake, MSGID test")
            }
            Kind::SnmpTrap => {
                // Another one may be a secret.
                let community = if self.community == DEFAULT_COMMUNITY { "\"public\"" } else { "as given" };
                format!(
                    "{name}, an SNMPv2c trap of {host}: notification 1.3.6.1.4.1.32473.0.100, community {community}"
                )
            }
            Kind::Xflow => format!(
                "{name}, one flow: UDP, 203.0.113.1:{} to 203.0.113.2:{DISCARD}, 1 packet, {FLOW_BYTES} bytes, \
                 source id (observation domain) {DOMAIN}, template {TEMPLATE}",
                self.source_port()
            ),
        }
    }

    fn text(&self, label: &str) -> String {
        format!("{}: test message to {label}", self.name())
    }

    fn syslog(&self, label: &str) -> Vec<u8> {
        let time = match Timestamp::from_nanosecond(self.at_ns.into()) {
            Ok(time) => format!("{time:.6}"),
            Err(_) => "-".to_owned(),
        };
        let process = std::process::id();
        format!("<13>1 {time} {} sekiwake {process} test - {}", self.host, self.text(label)).into_bytes()
    }

    fn trap(&self, label: &str) -> Vec<u8> {
        let binding = |name: &[u8], value: Vec<u8>| constructed(SEQUENCE, &[element(OBJECT_IDENTIFIER, name), value]);
        let bindings = [
            binding(&SYS_UP_TIME, element(TIME_TICKS, &UPTIME_TICKS)),
            binding(&SNMP_TRAP_OID, element(OBJECT_IDENTIFIER, &TEST_TRAP)),
            binding(&SYS_NAME, element(OCTET_STRING, self.host.as_bytes())),
            binding(&TEST_TEXT, element(OCTET_STRING, self.text(label).as_bytes())),
        ];
        // Positive, and four octets are its shortest form.
        let request_id = (self.number() >> 2 | 1 << 30).to_be_bytes();
        let numbers = [element(INTEGER, &request_id), element(INTEGER, &[0]), element(INTEGER, &[0])].concat();
        let pdu = constructed(SNMPV2_TRAP, &[numbers, constructed(SEQUENCE, &bindings)]);
        constructed(SEQUENCE, &[element(INTEGER, &[1]), element(OCTET_STRING, self.community.as_bytes()), pdu])
    }

    fn unix_seconds(&self) -> u32 {
        (self.at_ns / 1_000_000_000) as u32
    }

    /// The record up to its times.
    fn flow(&self) -> Vec<u8> {
        let ports = [self.source_port(), DISCARD].map(u16::to_be_bytes).concat();
        let counts = [FLOW_BYTES, 1].map(u32::to_be_bytes).concat();
        [&FLOW_SOURCE[..], &FLOW_DESTINATION, &ports, &[UDP], &counts].concat()
    }

    /// RFC 3954 §5: a template FlowSet and one of data, which ends at a multiple of four bytes.
    fn netflow9(&self) -> Vec<u8> {
        let times = [UPTIME_MS; 2].map(u32::to_be_bytes).concat();
        let mut record = [self.flow(), times].concat();
        record.resize(record.len().next_multiple_of(4), 0);
        let header = [[9, 2].map(u16::to_be_bytes).concat(), words(&[UPTIME_MS, self.unix_seconds(), 0, DOMAIN])];
        [header.concat(), template(0, &NETFLOW9_TIMES), set(TEMPLATE, &record)].concat()
    }

    /// RFC 7011 §3: a template set and a data set.
    fn ipfix(&self) -> Vec<u8> {
        let times = [self.at_ns / 1_000_000; 2].map(u64::to_be_bytes).concat();
        let sets = [template(2, &IPFIX_TIMES), set(TEMPLATE, &[self.flow(), times].concat())].concat();
        let length = (16 + sets.len()) as u16;
        [[10, length].map(u16::to_be_bytes).concat(), words(&[self.unix_seconds(), 0, DOMAIN]), sets].concat()
    }

    /// Header and record of Cisco's export format, version 5.
    fn netflow5(&self) -> Vec<u8> {
        let header = [[5, 1].map(u16::to_be_bytes).concat(), words(&[UPTIME_MS, self.unix_seconds(), 0, 0, 0])];
        let mut record = [&FLOW_SOURCE[..], &FLOW_DESTINATION, &[0; 8]].concat();
        record.extend(words(&[1, FLOW_BYTES, UPTIME_MS, UPTIME_MS]));
        record.extend([self.source_port(), DISCARD].map(u16::to_be_bytes).concat());
        record.extend([0, 0, UDP, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        [header.concat(), record].concat()
    }

    /// sFlow version 5 without samples: agent 203.0.113.1, our domain as its sub-agent.
    fn sflow5() -> Vec<u8> {
        words(&[5, 1, u32::from_be_bytes(FLOW_SOURCE), DOMAIN, 0, UPTIME_MS, 0])
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// The format that a destination takes: NetFlow v9 unless its filter says otherwise.
fn flow_format(options: &Options) -> Format {
    let is_taken = |format: &Format| options.filter.formats.as_ref().is_none_or(|formats| formats.contains(format));
    let formats = [Format::NetFlow9, Format::Ipfix, Format::NetFlow5, Format::Sflow5];
    formats.into_iter().find(is_taken).unwrap_or(Format::NetFlow9)
}

/// The template set with the fields of a flow.
fn template(set_id: u16, times: &[(u16, u16)]) -> Vec<u8> {
    let fields = FLOW_FIELDS.iter().chain(times);
    let mut words = vec![TEMPLATE, (FLOW_FIELDS.len() + times.len()) as u16];
    words.extend(fields.flat_map(|(element, length)| [*element, *length]));
    set(set_id, &words.into_iter().flat_map(u16::to_be_bytes).collect::<Vec<u8>>())
}

fn set(id: u16, contents: &[u8]) -> Vec<u8> {
    [&[id, 4 + contents.len() as u16].map(u16::to_be_bytes).concat()[..], contents].concat()
}

#[cfg(test)]
mod tests {
    use sekiwake_flow::{Exporters, Limits};
    use sekiwake_identify::{identify, snmp::Notification, syslog::structured_data};

    use super::*;
    use crate::config::destination::Destinations;

    fn test() -> Test {
        Test { host: "fw-1".to_owned(), at_ns: 1_700_000_000_123_000_000, community: "public".to_owned() }
    }

    fn payload(kind: Kind, uri: &str) -> Vec<u8> {
        let destinations = Destinations::parse(kind, uri).unwrap();
        test().payload(kind, &destinations.iter().next().unwrap().options, uri)
    }

    #[test]
    fn messages_are_what_they_say() {
        for (kind, uri, format) in [
            (Kind::Syslog, "udp://a", Format::Rfc5424),
            (Kind::SnmpTrap, "udp://a", Format::Snmp2cTrap),
            (Kind::Xflow, "udp://a:1", Format::NetFlow9),
            (Kind::Xflow, "udp://a:1?format=ipfix,netflow5", Format::Ipfix),
            (Kind::Xflow, "udp://a:1?format=netflow5,sflow5", Format::NetFlow5),
            (Kind::Xflow, "udp://a:1?format=sflow5", Format::Sflow5),
        ] {
            assert_eq!(identify(None, &payload(kind, uri)), format, "{uri}");
        }
    }

    #[test]
    fn syslog_message_says_where_it_was_sent() {
        let payload = payload(Kind::Syslog, "udp://a");
        let text = String::from_utf8(payload.clone()).unwrap();
        assert!(text.starts_with("<13>1 2023-11-14T22:13:20.123000Z fw-1 sekiwake "), "{text}");
        assert!(text.ends_with(" test - sekiwake-test-cfe5687b: test message to udp://a"), "{text}");
        assert!(structured_data(&payload).is_some());
    }

    #[test]
    fn community_that_was_given_is_not_shown() {
        assert!(test().description(Kind::SnmpTrap).ends_with("community \"public\""));
        let secret = Test { community: "s3cret".to_owned(), ..test() };
        assert!(secret.description(Kind::SnmpTrap).ends_with("community as given"));
    }

    #[test]
    fn trap_has_well_formed_bindings() {
        let payload = payload(Kind::SnmpTrap, "udp://a");
        let notification = Notification::read(&payload).unwrap();
        assert_eq!(notification.has_binding(&TEST_TEXT), Some(true));
        assert_eq!(notification.has_binding(&SNMP_TRAP_OID), Some(true));
    }

    #[test]
    fn flows_have_a_valid_template_and_one_record() {
        for (uri, format) in [("udp://a:1", Format::NetFlow9), ("udp://a:1?format=ipfix", Format::Ipfix)] {
            let payload = payload(Kind::Xflow, uri);
            let mut exporters = Exporters::new(Limits::default());
            let source = "203.0.113.9:50000".parse().unwrap();
            let observed = exporters.observe(source, format, &payload, 1, 0);
            assert!(observed.templates_changed && !observed.malformed, "{uri}");
        }
    }
}
