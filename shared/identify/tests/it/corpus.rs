//! Third-party captures, if `../shared/corpus` is next to the workspace.
//!
//! The expected class of a datagram comes from programs that share no code with this crate (the
//! tables' `heuristic` column, which is based on little more than a version number) or from the
//! test suites that the raw datagrams belong to. The expected counts are minimums that were reached
//! once; where class and format differ, the test says why.

use std::{collections::BTreeMap, fs};

use sekiwake_identify::identify;
use sekiwake_record::{Format, Kind};
use sekiwake_testkit::corpus::{corpus_or_skipped, manifest, table};
use sha2::{Digest, Sha256};
use snmp_parser::{PduType, SnmpGenericMessage, parse_snmp_generic_message};

/// How many datagrams of a class were identified as a format.
type Tally = BTreeMap<(String, &'static str), usize>;

fn add(tally: &mut Tally, class: &str, format: Format) {
    *tally.entry((class.to_owned(), format.as_str())).or_default() += 1;
}

/// Compares a tally with rows of class, format and minimum. All datagrams of a class that is not
/// listed have to be unknown.
fn check(title: &str, tally: &Tally, expected: &[(&str, Format, usize)]) {
    eprintln!("{title}");
    for ((class, format), count) in tally {
        eprintln!("  {class:12} {format:14} {count}");
        let listed = expected.iter().any(|(known, as_format, _)| known == class && as_format.as_str() == *format);
        assert!(listed || *format == "unknown", "{title}: {count} of class {class} identified as {format}");
    }
    for &(class, format, floor) in expected {
        let reached = tally.get(&(class.to_owned(), format.as_str())).copied().unwrap_or(0);
        assert!(reached >= floor, "{title}: {reached} of class {class} identified as {format}, expected {floor}");
    }
}

/// The format according to snmp-parser, if it can parse the whole message.
fn snmp_reference(payload: &[u8]) -> Option<Format> {
    let (_, message) = parse_snmp_generic_message(payload).ok()?;
    Some(match message {
        SnmpGenericMessage::V1(message) if message.pdu_type() == PduType::TrapV1 => Format::Snmp1Trap,
        SnmpGenericMessage::V2(message) if message.pdu_type() == PduType::TrapV2 => Format::Snmp2cTrap,
        SnmpGenericMessage::V2(message) if message.pdu_type() == PduType::InformRequest => Format::Snmp2cInform,
        SnmpGenericMessage::V3(_) => Format::Snmp3,
        SnmpGenericMessage::V1(_) | SnmpGenericMessage::V2(_) => Format::Unknown,
    })
}

/// The IPFIX messages of a file (RFC 5655), up to the first invalid length.
fn ipfix_messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let &[0, 10, high, low, ..] = bytes {
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length < 16 || length > bytes.len() {
            break;
        }
        messages.push(&bytes[..length]);
        bytes = &bytes[length..];
    }
    messages
}

/// The frames of a capture file, in order: a minimal reader of pcap and pcapng.
fn frames(file: &[u8]) -> Vec<&[u8]> {
    let big_endian = matches!(file, [0xa1, ..] | [0x0a, 0x0d, 0x0d, 0x0a, _, _, _, _, 0x1a, ..]);
    let word = |offset: usize| {
        let bytes = *file.get(offset..)?.first_chunk::<4>()?;
        Some(if big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) } as usize)
    };
    let mut frames = Vec::new();
    if file.starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]) {
        let mut offset = 0;
        while let (Some(block), Some(length)) = (word(offset), word(offset + 4)) {
            let frame = match block {
                6 => word(offset + 20).and_then(|captured| file.get(offset + 28..offset + 28 + captured)),
                3 => word(offset + 8).and_then(|length| file.get(offset + 12..offset + 12 + length)),
                _ => None,
            };
            frames.extend(frame);
            if length < 12 {
                break;
            }
            offset += length;
        }
    } else {
        let mut offset = 24;
        while let Some(frame) = word(offset + 8).and_then(|captured| file.get(offset + 16..offset + 16 + captured)) {
            frames.push(frame);
            offset += 16 + frame.len();
        }
    }
    frames
}

/// The payload of a row of an expected table: the bytes after its UDP ports in the frame that have
/// its hash.
fn payload<'a>(frame: &'a [u8], row: &[String]) -> Option<&'a [u8]> {
    let ports = [row[8].parse::<u16>().ok()?.to_be_bytes(), row[9].parse::<u16>().ok()?.to_be_bytes()].concat();
    let length = row[11].parse::<usize>().ok()?;
    let starts = frame.windows(4).enumerate().filter(|(_, window)| *window == ports).map(|(start, _)| start + 8);
    let mut candidates = starts.filter_map(|start| frame.get(start..start + length));
    candidates
        .find(|bytes| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>() == row[12])
}

#[test]
fn third_party_datagrams_are_identified() {
    let Some(folder) = corpus_or_skipped() else { return };
    let mut on_its_port = Tally::new();
    let mut anywhere = Tally::new();
    let mut snmp_messages = 0;
    for row in manifest(&folder).iter().filter(|row| row[6] == "raw UDP payload") {
        let bytes = fs::read(folder.join(&row[0])).unwrap();
        let class = row[11].split(' ').next().unwrap();
        let kind = if row[1] == "9-datagrams-snmp" { Kind::SnmpTrap } else { Kind::Xflow };
        let datagrams = if class == "IPFIX" { ipfix_messages(&bytes) } else { vec![&bytes[..]] };
        for datagram in datagrams {
            add(&mut on_its_port, class, identify(Some(kind), datagram));
            add(&mut anywhere, class, identify(None, datagram));
            if let Some(reference) = snmp_reference(datagram) {
                snmp_messages += 1;
                assert_eq!(identify(None, datagram), reference, "{}", row[0]);
            }
        }
    }
    // Not identified: an sFlow datagram that ends inside its header, a v1 Trap-PDU in a v2c
    // message, and a truncated v2c trap.
    let expected = [
        ("IPFIX", Format::Ipfix, 135),
        ("ipfix", Format::Ipfix, 102),
        ("nf5", Format::NetFlow5, 8),
        ("nf9", Format::NetFlow9, 101),
        ("sflow5", Format::Sflow5, 24),
        ("trap1", Format::Snmp1Trap, 5),
        ("inform", Format::Snmp2cInform, 1),
        ("snmp3", Format::Snmp3, 28),
    ];
    check("raw datagrams, on a port of their kind", &on_its_port, &expected);
    // Identified on a flow port only: sets that are longer than the packet, have a reserved
    // identifier, or are all zeros.
    let expected = expected.map(|(class, format, reached)| match class {
        "IPFIX" => (class, format, 134),
        "ipfix" => (class, format, 101),
        "nf9" => (class, format, 96),
        "sflow5" => (class, format, 22),
        _ => (class, format, reached),
    });
    check("raw datagrams, on any port", &anywhere, &expected);
    assert!(snmp_messages >= 41, "snmp-parser read {snmp_messages}");
}

#[test]
fn datagrams_in_third_party_captures_are_identified() {
    let Some(folder) = corpus_or_skipped() else { return };
    let mut on_its_port = Tally::new();
    let mut anywhere = Tally::new();
    let mut snmp_messages = 0;
    for row in manifest(&folder).iter().filter(|row| row[6].starts_with("pcap") && row[15].starts_with("expected/")) {
        let file = fs::read(folder.join(&row[0])).unwrap();
        let frames = frames(&file);
        for datagram in table(&folder.join(&row[15])).iter().filter(|row| row.get(19).is_some_and(|udp| udp == "yes")) {
            let frame = datagram[0].parse::<usize>().ok().and_then(|number| frames.get(number - 1));
            // A fragmented datagram is in no frame as a whole.
            let Some(payload) = frame.and_then(|frame| payload(frame, datagram)) else { continue };
            let kind = match datagram[17].as_str() {
                "syslog" => Some(Kind::Syslog),
                "flow" | "sflow" | "ipfix" => Some(Kind::Xflow),
                "snmptrap" => Some(Kind::SnmpTrap),
                _ => None,
            };
            add(&mut on_its_port, &datagram[18], identify(kind, payload));
            add(&mut anywhere, &datagram[18], identify(None, payload));
            if let Some(reference) = snmp_reference(payload) {
                snmp_messages += 1;
                assert_eq!(identify(None, payload), reference, "{} frame {}", row[0], datagram[0]);
            }
        }
    }
    // Not identified: one syslog datagram that begins with <999>. NetFlow v1 and v7, and SNMP
    // requests and responses, are not supported.
    let expected = [
        ("ipfix", Format::Ipfix, 796),
        ("nf5", Format::NetFlow5, 23),
        ("nf9", Format::NetFlow9, 214),
        ("sflow5", Format::Sflow5, 63),
        ("syslog", Format::Rfc3164, 137),
        ("syslog", Format::Rfc5424, 6),
        ("trap1", Format::Snmp1Trap, 16),
        ("trap2", Format::Snmp2cTrap, 8),
        ("inform", Format::Snmp2cInform, 16),
        ("snmp3", Format::Snmp3, 126),
    ];
    check("captures, on their port", &on_its_port, &expected);
    check("captures, on any port", &anywhere, &expected);
    assert!(snmp_messages >= 738, "snmp-parser read {snmp_messages}");
}

#[test]
fn third_party_syslog_lines_are_identified() {
    let Some(folder) = corpus_or_skipped() else { return };
    let mut tally = Tally::new();
    for row in manifest(&folder).iter().filter(|row| row[0].ends_with(".jsonl")) {
        for line in fs::read_to_string(folder.join(&row[0])).unwrap().lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let message = value["msg"].as_str().unwrap();
            add(&mut tally, "syslog", identify(Some(Kind::Syslog), message.as_bytes()));
        }
    }
    // Unknown: lines of log files without PRI, and invalid PRIs of parser test suites. RFC 3164
    // despite VERSION 1: templates of a test suite with the letter X as timestamp, and devices that
    // write seconds since 1970.
    check("lines", &tally, &[("syslog", Format::Rfc3164, 782), ("syslog", Format::Rfc5424, 61)]);
}
