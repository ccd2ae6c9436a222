//! One row per rule: a payload and its format.

use sekiwake_identify::identify;
use sekiwake_record::{Format, Kind};

#[track_caller]
fn check(payload: impl AsRef<[u8]>, expected: Format) {
    let payload = payload.as_ref();
    for kind in [None, Some(Kind::Syslog), Some(Kind::Xflow), Some(Kind::SnmpTrap)] {
        let found = identify(kind, payload);
        assert_eq!(found, expected, "{kind:?}: {:?}", String::from_utf8_lossy(payload));
    }
}

/// Checks that a payload is `expected` on a flow port and unknown on other ports.
#[track_caller]
fn check_only_on_a_flow_port(payload: &[u8], expected: Format) {
    assert_eq!(identify(Some(Kind::Xflow), payload), expected);
    for kind in [None, Some(Kind::Syslog), Some(Kind::SnmpTrap)] {
        assert_eq!(identify(kind, payload), Format::Unknown, "{kind:?}");
    }
}

fn words(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn long_words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// A BER element with the shortest length below 256.
fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let length = u8::try_from(contents.len()).unwrap();
    let header = if length < 0x80 { vec![tag, length] } else { vec![tag, 0x81, length] };
    [header, contents.to_vec()].concat()
}

fn community_message(version: u8, pdu_tag: u8) -> Vec<u8> {
    let parts =
        [element(2, &[version]), element(4, b"public"), element(pdu_tag, &[2, 1, 0, 2, 1, 0, 2, 1, 0, 0x30, 0])];
    element(0x30, &parts.concat())
}

fn v3_message(flags: &[u8], scoped_pdu: Vec<u8>) -> Vec<u8> {
    let global_data = [element(2, &[0, 0x80]), element(2, &[0xff, 0xe3]), element(4, flags), element(2, &[3])].concat();
    let parts = [element(2, &[3]), element(0x30, &global_data), element(4, &[]), scoped_pdu];
    element(0x30, &parts.concat())
}

#[test]
fn any_text_after_a_valid_pri_is_rfc3164() {
    for line in [
        "<0>",
        "<13>",
        "<191>x",
        "<34>Oct 11 22:14:15 mymachine su: 'su root' failed",
        "<189>1234: *Mar  1 18:46:11.123: %SYS-5-CONFIG_I: Configured from console",
        "<166>2018-06-27T12:17:46Z asa : %ASA-6-302013: Built",
        "<007>leading zeros",
        "<13>\0\u{fffd}",
        "<34>10 2003-10-11T22:14:15.003Z host app - - - version ten does not exist",
    ] {
        check(line, Format::Rfc3164);
    }
}

#[test]
fn text_without_a_valid_pri_is_unknown() {
    for line in [
        "",
        "<",
        "<>",
        "<1",
        "<13",
        "<192>x",
        "<999>x",
        "<1234>x",
        "<0191>x",
        "<-1>x",
        "< 13>x",
        "<1a>x",
        "<13 >x",
        " <13>x",
        "\n<13>x",
        "Oct 11 22:14:15 mymachine su: no PRI",
        "83 <34>1 2003-10-11T22:14:15.003Z octet counted",
        "\u{feff}<13>x",
        "{\"a\":1}",
    ] {
        check(line, Format::Unknown);
    }
}

#[test]
fn version_one_and_a_timestamp_are_rfc5424() {
    for line in [
        "<34>1 2003-10-11T22:14:15.003Z mymachine.example.com su - ID47 - \u{feff}'su root' failed",
        "<165>1 2003-08-24T05:14:15.000003-07:00 192.0.2.1 myproc 8710 - - %% It's time",
        "<14>1 2020-01-01T00:00:00 host without offset - - -",
        "<14>1 2020-01-01T00:00:00Z host app - - structured data is missing",
        "<165>1 - - - - - -",
        "<165>1 - host app 1 ID47 [exampleSDID@32473 iut=\"3\"] text",
        "<165>1 - host app 1 ID47 - text",
    ] {
        check(line, Format::Rfc5424);
    }
}

#[test]
fn version_one_without_a_timestamp_is_rfc3164() {
    let long_hostname = format!("<165>1 - {} app 1 ID47 - text", "h".repeat(256));
    for line in [
        "<34>1",
        "<34>1 ",
        "<34>1 fish",
        "<34>1 -",
        "<34>1 - a b c",
        "<34>1 - a  c d - x",
        "<34>1 - a b c d x",
        "<34>1 - a b c d -x",
        "<34>1 2003-10-11 22:14:15 host",
        "<34>1 2003-10-11t22:14:15Z host",
        "<134>1 1704449472.123 host urls src=192.0.2.1",
        "<34>1: 2003-10-11T22:14:15.003Z",
        "<34>1  2003-10-11T22:14:15.003Z",
        long_hostname.as_str(),
    ] {
        check(line, Format::Rfc3164);
    }
}

#[test]
fn netflow5_has_1_to_30_whole_records() {
    let packet = |count: u16, length: usize| {
        let mut packet = words(&[5, count]);
        packet.resize(length, 0xab);
        packet
    };
    check(packet(1, 24 + 48), Format::NetFlow5);
    check(packet(30, 24 + 30 * 48), Format::NetFlow5);
    check(packet(1, 24 + 48 + 7), Format::NetFlow5);
    check(packet(1, 24 + 47), Format::Unknown);
    check(packet(0, 24), Format::Unknown);
    check(packet(31, 24 + 31 * 48), Format::Unknown);
    check(packet(1, 3), Format::Unknown);
}

#[test]
fn netflow9_has_a_header_and_flowsets() {
    let packet = |flowsets: &[u16]| [words(&[9, 1, 0, 0, 0, 0, 0, 0, 0, 0]), words(flowsets)].concat();
    check(packet(&[0, 12, 256, 1, 8, 4]), Format::NetFlow9);
    check(packet(&[1, 4, 256, 8, 0, 0]), Format::NetFlow9);
    check([packet(&[256, 8, 0, 0]), vec![0, 0, 0]].concat(), Format::NetFlow9);
    for zeros in [4, 5, 100, 1380] {
        let padded = [packet(&[0, 12, 256, 1, 8, 4, 256, 8, 7, 7]), vec![0; zeros]].concat();
        check(&padded, Format::NetFlow9);
        check_only_on_a_flow_port(&[padded, vec![1, 0, 0, 0]].concat(), Format::NetFlow9);
    }
    check_only_on_a_flow_port(&packet(&[0; 50]), Format::NetFlow9);
    check_only_on_a_flow_port(&packet(&[]), Format::NetFlow9);
    check_only_on_a_flow_port(&packet(&[256, 9, 0, 0]), Format::NetFlow9);
    check_only_on_a_flow_port(&packet(&[256, 3, 0, 0]), Format::NetFlow9);
    check_only_on_a_flow_port(&packet(&[2, 8, 0, 0]), Format::NetFlow9);
    check_only_on_a_flow_port(&packet(&[256, 8, 0, 0, 255, 4]), Format::NetFlow9);
    check(&packet(&[])[..19], Format::Unknown);
}

#[test]
fn ipfix_message_has_the_length_of_its_header() {
    let message = |length: u16, sets: &[u16]| [words(&[10, length, 0, 0, 0, 0, 0, 0]), words(sets)].concat();
    check(message(16, &[]), Format::Ipfix);
    check(message(24, &[2, 8, 0, 0]), Format::Ipfix);
    check(message(24, &[256, 8, 0, 0, 0xdead]), Format::Ipfix);
    check_only_on_a_flow_port(&message(24, &[1, 8, 0, 0]), Format::Ipfix);
    check_only_on_a_flow_port(&message(24, &[256, 10, 0, 0, 0]), Format::Ipfix);
    check(message(25, &[256, 8, 0, 0]), Format::Unknown);
    check(message(15, &[256, 8, 0, 0]), Format::Unknown);
}

#[test]
fn sflow5_has_an_agent_address_and_samples() {
    let v4 = |samples: &[u32]| [long_words(&[5, 1, 0xc633_6401, 0, 1, 1000]), long_words(samples)].concat();
    let v6 = |samples: &[u32]| [long_words(&[5, 2, 0x2001_0db8, 0, 0, 1, 0, 1, 1000]), long_words(samples)].concat();
    check(v4(&[0]), Format::Sflow5);
    check(v4(&[1, 2, 4, 0]), Format::Sflow5);
    check(v6(&[2, 1, 0, 2, 4, 0]), Format::Sflow5);
    check(v4(&[1, 1, 0, 0xdead_beef]), Format::Sflow5);
    check_only_on_a_flow_port(&v4(&[1]), Format::Sflow5);
    check_only_on_a_flow_port(&v4(&[1, 2, 8, 0]), Format::Sflow5);
    check_only_on_a_flow_port(&v4(&[1, 2, 3, 0]), Format::Sflow5);
    check_only_on_a_flow_port(&v4(&[u32::MAX, 2, 4, 0]), Format::Sflow5);
    let no_address = |samples: &[u32]| [long_words(&[5, 0, 0, 1, 1000]), long_words(samples)].concat();
    check(no_address(&[0]), Format::Sflow5);
    check(no_address(&[2, 1, 0, 2, 4, 0]), Format::Sflow5);
    check_only_on_a_flow_port(&no_address(&[1, 2, 8, 0]), Format::Sflow5);
    check(no_address(&[]), Format::Unknown);
    check(v4(&[]), Format::Unknown);
    check(&v6(&[0])[..36], Format::Unknown);
    check(long_words(&[5, 3, 0, 0, 1, 1000, 0, 0, 0, 0]), Format::Unknown);
    check(long_words(&[4, 1, 0, 0, 1, 1000, 0]), Format::Unknown);
}

#[test]
fn other_versions_of_flow_export_are_unknown() {
    for version in [1, 6, 7, 8, 11] {
        check(words(&[version, 1, 0, 0, 0, 0, 0, 0, 0, 0, 256, 8, 0, 0]), Format::Unknown);
    }
}

#[test]
fn traps_are_identified_by_version_and_pdu() {
    check(community_message(0, 0xa4), Format::Snmp1Trap);
    check(community_message(1, 0xa7), Format::Snmp2cTrap);
    check(community_message(1, 0xa6), Format::Snmp2cInform);
    check([community_message(1, 0xa7), vec![0; 3]].concat(), Format::Snmp2cTrap);
}

#[test]
fn other_pdus_and_pdus_of_another_version_are_unknown() {
    for (version, pdu) in
        [(0, 0xa0), (0, 0xa2), (1, 0xa0), (1, 0xa2), (1, 0xa5), (1, 0xa8), (0, 0xa6), (0, 0xa7), (1, 0xa4), (2, 0xa7)]
    {
        check(community_message(version, pdu), Format::Unknown);
    }
}

#[test]
fn snmp3_message_is_identified_encrypted_or_plain() {
    check(v3_message(&[0], element(0x30, &[])), Format::Snmp3);
    check(v3_message(&[3], element(4, &[0xaa; 40])), Format::Snmp3);
    check(v3_message(&[], element(0x30, &[])), Format::Unknown);
    check(v3_message(&[3], element(5, &[])), Format::Unknown);
    check(v3_message(&[3], vec![]), Format::Unknown);
}

#[test]
fn ber_lengths_need_not_be_the_shortest() {
    let trap = community_message(1, 0xa7);
    let length = trap[1];
    check([&[0x30, 0x81, length], &trap[2..]].concat(), Format::Snmp2cTrap);
    check([&[0x30, 0x84, 0, 0, 0, length], &trap[2..]].concat(), Format::Snmp2cTrap);
    check([&[0x30, 0x80], &trap[2..]].concat(), Format::Unknown);
    check([&[0x30, 0x85, 0, 0, 0, 0, length], &trap[2..]].concat(), Format::Unknown);
    check([&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff], &trap[2..]].concat(), Format::Unknown);
    for end in 0..trap.len() {
        check(&trap[..end], Format::Unknown);
    }
}
