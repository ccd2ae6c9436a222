//! The captures of others, used in place when `../shared/corpus` stands beside the workspace.
//!
//! What a datagram is was told by programs that share no code with this crate (the tables' `heuristic` column, which looks at a version
//! number and little else) or by the suites that the raw datagrams come from. The floors below are what was reached; where the two
//! disagree, the test says why.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use sekiwake_identify::identify;
use sekiwake_record::{Format, Kind};
use sha2::{Digest, Sha256};
use snmp_parser::{PduType, SnmpGenericMessage, parse_snmp_generic_message};

/// How often a class of the corpus was told as which format.
type Tally = BTreeMap<(String, &'static str), usize>;

fn corpus() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/corpus");
    if folder.join("MANIFEST.tsv").exists() {
        return Some(folder);
    }
    eprintln!("SKIPPED: no corpus at {}", folder.display());
    None
}

/// The manifest's rows, split at tabs.
fn manifest(folder: &Path) -> Vec<Vec<String>> {
    table(&folder.join("MANIFEST.tsv"))
}

fn table(path: &Path) -> Vec<Vec<String>> {
    let text = fs::read(path).unwrap();
    let text = String::from_utf8_lossy(&text);
    text.lines().skip(1).map(|line| line.split('\t').map(str::to_owned).collect()).collect()
}

fn add(tally: &mut Tally, class: &str, format: Format) {
    *tally.entry((class.to_owned(), format.as_str())).or_default() += 1;
}

/// Holds a tally against rows of class, format and the number reached. A class that is not listed must be unknown throughout.
fn check(title: &str, tally: &Tally, expected: &[(&str, Format, usize)]) {
    eprintln!("{title}");
    for ((class, format), count) in tally {
        eprintln!("  {class:12} {format:14} {count}");
        let listed = expected.iter().any(|(known, as_format, _)| known == class && as_format.as_str() == *format);
        assert!(listed || *format == "unknown", "{title}: {count} of class {class} were told as {format}");
    }
    for &(class, format, floor) in expected {
        let reached = tally.get(&(class.to_owned(), format.as_str())).copied().unwrap_or(0);
        assert!(reached >= floor, "{title}: {reached} of class {class} were told as {format}, once it was {floor}");
    }
}

/// What snmp-parser makes of a message when it parses the whole of it; `None` if it does not.
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

/// The IPFIX messages of a file (RFC 5655) as far as their length fields lead from one to the next.
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

/// The records of a capture file, in order; enough of pcap and pcapng to find a datagram in them.
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

/// The payload that a row of an expected table speaks of: what follows its UDP header in the frame and has its hash.
fn payload<'a>(frame: &'a [u8], row: &[String]) -> Option<&'a [u8]> {
    let ports = [row[8].parse::<u16>().ok()?.to_be_bytes(), row[9].parse::<u16>().ok()?.to_be_bytes()].concat();
    let length = row[11].parse::<usize>().ok()?;
    let starts = frame.windows(4).enumerate().filter(|(_, window)| *window == ports).map(|(start, _)| start + 8);
    let mut candidates = starts.filter_map(|start| frame.get(start..start + length));
    candidates
        .find(|bytes| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>() == row[12])
}

#[test]
fn raw_datagrams_of_other_projects_are_told_apart() {
    let Some(folder) = corpus() else { return };
    let (mut on_its_port, mut anywhere) = (Tally::new(), Tally::new());
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
    // Not told: one sFlow datagram that ends within its header, a v1 Trap-PDU in a v2c message, and a v2c trap that is cut off.
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
    // Told on a flow port only: sets that are longer than the packet, have an identifier that is reserved, or are zeros.
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
fn datagrams_in_captures_are_told_apart() {
    let Some(folder) = corpus() else { return };
    let (mut on_its_port, mut anywhere) = (Tally::new(), Tally::new());
    let mut snmp_messages = 0;
    for row in manifest(&folder).iter().filter(|row| row[6].starts_with("pcap") && row[15].starts_with("expected/")) {
        let file = fs::read(folder.join(&row[0])).unwrap();
        let frames = frames(&file);
        for datagram in table(&folder.join(&row[15])).iter().filter(|row| row.get(19).is_some_and(|it| it == "yes")) {
            let frame = datagram[0].parse::<usize>().ok().and_then(|number| frames.get(number - 1));
            // A datagram that came in fragments, or with options between its ports and its payload, is in no frame as a whole.
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
    // Not told: one syslog datagram that begins with <999>. NetFlow v1 and v7, and SNMP requests and responses, are unknown by intent.
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
    check("captures, on the port that they came to", &on_its_port, &expected);
    check("captures, on any port", &anywhere, &expected);
    assert!(snmp_messages >= 738, "snmp-parser read {snmp_messages}");
}

#[test]
fn syslog_lines_of_devices_are_told_apart() {
    let Some(folder) = corpus() else { return };
    let mut tally = Tally::new();
    for row in manifest(&folder).iter().filter(|row| row[0].ends_with(".jsonl")) {
        for line in fs::read_to_string(folder.join(&row[0])).unwrap().lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            let message = value["msg"].as_str().unwrap();
            add(&mut tally, "syslog", identify(Some(Kind::Syslog), message.as_bytes()));
        }
    }
    // Unknown: lines of log files without PRI, and the parser suites' invalid PRIs. RFC 3164 although they say "1 ": templates of a test
    // suite in which the timestamp is the letter X, and devices that put seconds since 1970 there.
    check("lines", &tally, &[("syslog", Format::Rfc3164, 782), ("syslog", Format::Rfc5424, 61)]);
}
