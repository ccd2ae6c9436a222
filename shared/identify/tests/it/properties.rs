//! Properties for any payload.

use proptest::{collection::vec, prelude::*};
use sekiwake_identify::identify;
use sekiwake_record::{Format, Kind};

fn kinds() -> impl Strategy<Value = Option<Kind>> {
    prop::sample::select(vec![None, Some(Kind::Syslog), Some(Kind::Xflow), Some(Kind::SnmpTrap)])
}

/// Bytes that begin like a supported format, so that the checks after the first byte are reached.
fn payloads() -> impl Strategy<Value = Vec<u8>> {
    let beginnings: Vec<&'static [u8]> = vec![
        b"",
        b"<",
        b"<13>",
        b"<13>1 ",
        b"<13>1 - ",
        b"<13>1 2003-10-11T22:14:15",
        &[0],
        &[0, 5, 0, 1],
        &[0, 9, 0, 1],
        &[0, 10, 0, 16],
        &[0, 0, 0, 5, 0, 0, 0, 1],
        &[0, 0, 0, 5, 0, 0, 0, 2],
        &[0x30],
        &[0x30, 0x20, 2, 1, 1, 4],
        &[0x30, 0x84],
        &[0x30, 0x82, 0, 60, 2, 1, 3, 0x30],
    ];
    let tail = prop_oneof![
        vec(any::<u8>(), 0..200),
        vec(prop::sample::select(vec![0, 1, 2, 3, 4, 0x30, 0xa7, b' ', b'-']), 0..200)
    ];
    (prop::sample::select(beginnings), tail).prop_map(|(beginning, tail)| [beginning, &tail].concat())
}

fn kind_of(format: Format) -> Option<Kind> {
    match format {
        Format::Unknown => None,
        Format::Rfc3164 | Format::Rfc5424 => Some(Kind::Syslog),
        Format::NetFlow5 | Format::NetFlow9 | Format::Ipfix | Format::Sflow5 => Some(Kind::Xflow),
        Format::Snmp1Trap | Format::Snmp2cTrap | Format::Snmp2cInform | Format::Snmp3 => Some(Kind::SnmpTrap),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn port_only_decides_doubtful_payloads_of_its_own_kind(payload in payloads(), kind in kinds()) {
        let hinted = identify(kind, &payload);
        let unhinted = identify(None, &payload);
        if unhinted != Format::Unknown {
            prop_assert_eq!(hinted, unhinted);
        } else if hinted != Format::Unknown {
            prop_assert_eq!(kind_of(hinted), kind);
        }
    }

    #[test]
    fn any_text_after_a_valid_pri_is_syslog(value in 0..=191_u8, kind in kinds(), message in vec(any::<u8>(), 0..100)) {
        let payload = [format!("<{value}>").as_bytes(), &message].concat();
        prop_assert_eq!(kind_of(identify(kind, &payload)), Some(Kind::Syslog));
    }

    #[test]
    fn pri_above_191_is_unknown(value in 192..=u32::MAX, kind in kinds(), message in vec(any::<u8>(), 0..100)) {
        let payload = [format!("<{value}>").as_bytes(), &message].concat();
        prop_assert_eq!(identify(kind, &payload), Format::Unknown);
    }

    #[test]
    fn format_after_other_text_is_unknown(first in b'A'..=b'z', kind in kinds(), payload in payloads()) {
        prop_assert_eq!(identify(kind, &[&[first], &payload[..]].concat()), Format::Unknown);
    }

    #[test]
    fn bytes_after_a_flow_packet_are_ignored(trailer in vec(any::<u8>(), 0..100)) {
        let mut netflow5 = vec![0, 5, 0, 2];
        netflow5.resize(24 + 2 * 48, 0);
        netflow5.extend(&trailer);
        prop_assert_eq!(identify(None, &netflow5), Format::NetFlow5);
        let ipfix = [&[0, 10, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &trailer[..]].concat();
        prop_assert_eq!(identify(None, &ipfix), Format::Ipfix);
    }
}

#[test]
fn datagram_full_of_empty_sets_is_identified() {
    let mut packet = vec![0, 9, 0xff, 0xff];
    packet.resize(20, 0);
    while packet.len() < 65_000 {
        packet.extend([1, 0, 0, 4]);
    }
    assert_eq!(identify(None, &packet), Format::NetFlow9);
}
