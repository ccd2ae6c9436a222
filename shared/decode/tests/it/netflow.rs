//! NetFlow v5, and the values of fields.

use sekiwake_decode::Decoder;
use serde_json::{Value, json};

use crate::datagram::{EXPORTED_AT, data, ipfix, netflow9, rows, set, words};

fn netflow5(count: u16, records: usize) -> Vec<u8> {
    let mut bytes = words(&[5, count]);
    for word in [10_000, EXPORTED_AT, 678_901_234, 99] {
        bytes.extend(u32::to_be_bytes(word));
    }
    // Engine 1/2; sampling mode 1, one of 100.
    bytes.extend([1, 2, 0x40, 100]);
    for _ in 0..records {
        bytes.extend([198, 18, 0, 1, 198, 18, 0, 2, 198, 51, 100, 1]);
        bytes.extend(words(&[3, 4]));
        for word in [10_u32, 4200, 8_000, 9_500] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(words(&[53, 4242]));
        bytes.extend([0, 0x1b, 6, 0x10]);
        bytes.extend(words(&[64_500, 64_501]));
        bytes.extend([24, 16, 0, 0]);
    }
    bytes
}

#[test]
fn netflow5_record_has_all_fields_and_times() {
    let rows = rows(&mut Decoder::new(), &netflow5(1, 1));
    let expected = json!([{
        "format": "netflow5", "type": "flow", "sequence": 99, "exported_at": "2026-01-02T03:04:05.678901234Z",
        "uptime_ms": 10_000,
        "sourceIPv4Address": "198.18.0.1", "destinationIPv4Address": "198.18.0.2",
        "sourceTransportPort": 53, "destinationTransportPort": 4242, "protocolIdentifier": 6,
        "packetDeltaCount": 10, "octetDeltaCount": 4200, "tcpControlBits": 27, "ipClassOfService": 16,
        "ingressInterface": 3, "egressInterface": 4, "ipNextHopIPv4Address": "198.51.100.1",
        "bgpSourceAsNumber": 64_500, "bgpDestinationAsNumber": 64_501,
        "sourceIPv4PrefixLength": 24, "destinationIPv4PrefixLength": 16,
        "flowStartSysUpTime": 8_000, "flowEndSysUpTime": 9_500,
        "flowStartMilliseconds": "2026-01-02T03:04:03.678Z", "flowEndMilliseconds": "2026-01-02T03:04:05.178Z",
        "engineType": 1, "engineId": 2, "samplingAlgorithm": 1, "samplingInterval": 100,
    }]);
    assert_eq!(Value::from(rows), expected);
}

#[test]
fn netflow5_that_ends_early_or_late_says_so() {
    let short = rows(&mut Decoder::new(), &netflow5(3, 2));
    assert_eq!((short.len(), &short[1]["type"], &short[2]["type"]), (3, &json!("flow"), &json!("undecoded")));
    assert!(short[2]["reason"].as_str().unwrap().contains("announced"), "{}", short[2]);
    let long = rows(&mut Decoder::new(), &netflow5(1, 2));
    assert_eq!((long.len(), &long[1]["offset"], &long[1]["length"]), (2, &json!(72), &json!(48)));
    let header = rows(&mut Decoder::new(), &netflow5(1, 1)[..20]);
    assert_eq!((header.len(), &header[0]["reason"]), (1, &json!("header is incomplete")));
}

/// The row of an IPFIX record with one field.
fn field(element: u16, bytes: &[u8]) -> Value {
    let template = set(2, &words(&[256, 1, element, u16::try_from(bytes.len()).unwrap()]));
    data(&mut Decoder::new(), &ipfix(&[template, set(256, bytes)])).swap_remove(0)
}

#[test]
fn values_are_shown_as_their_type_says() {
    let seconds_since_1900 = (u64::from(EXPORTED_AT) + 2_208_988_800) << 32 | 0x8000_0000;
    let cases: &[(u16, &str, &[u8], Value)] = &[
        (1, "octetDeltaCount", &[1, 0], json!(256)),
        (1, "octetDeltaCount", &[0xff; 8], json!(u64::MAX)),
        (434, "mibObjectValueInteger", &[0xff, 0xfe], json!(-2)),
        (311, "samplingProbability", &0.25_f64.to_be_bytes(), json!(0.25)),
        (311, "samplingProbability", &0.5_f32.to_be_bytes(), json!(0.5)),
        (311, "samplingProbability", &f64::NAN.to_be_bytes(), json!("NaN")),
        (276, "dataRecordsReliability", &[1], json!(true)),
        (276, "dataRecordsReliability", &[2], json!(false)),
        (56, "sourceMacAddress", &[0, 0x1b, 0x21, 1, 2, 0xff], json!("00:1b:21:01:02:ff")),
        (27, "sourceIPv6Address", &[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], json!("2001:db8::1")),
        // Too short for an address.
        (8, "sourceIPv4Address", &[198, 18, 0], json!("c61200")),
        (82, "interfaceName", b"Gi0/1\0\0\0", json!("Gi0/1")),
        (82, "interfaceName", b"\xff\n", json!("\u{fffd}\n")),
        (90, "mplsVpnRouteDistinguisher", &[0, 1, 2, 3, 4, 5, 6, 7], json!("0001020304050607")),
        (150, "flowStartSeconds", &EXPORTED_AT.to_be_bytes(), json!("2026-01-02T03:04:05Z")),
        (152, "flowStartMilliseconds", &1_767_323_045_678_u64.to_be_bytes(), json!("2026-01-02T03:04:05.678Z")),
        (154, "flowStartMicroseconds", &seconds_since_1900.to_be_bytes(), json!("2026-01-02T03:04:05.500000Z")),
        (156, "flowStartNanoseconds", &seconds_since_1900.to_be_bytes(), json!("2026-01-02T03:04:05.500000000Z")),
        // The era of NTP that begins in 2036.
        (156, "flowStartNanoseconds", &1_u64.to_be_bytes(), json!("2036-02-07T06:28:16.000000000Z")),
        // Beyond the year 9999.
        (152, "flowStartMilliseconds", &[0xff; 8], json!("ffffffffffffffff")),
        // Not in the registry.
        (600, "0/600", &[1, 2], json!("0102")),
    ];
    for (element, name, bytes, expected) in cases {
        let row = field(*element, bytes);
        assert_eq!(&row[*name], expected, "{row}");
    }
}

#[test]
fn uptimes_become_times() {
    let times = |row: &Value| (row["flowStartMilliseconds"].clone(), row["flowEndMilliseconds"].clone());
    let template = [22, 4, 21, 4, 210, 2, 1, 4];
    let record = [8_000_u32.to_be_bytes(), 9_500_u32.to_be_bytes()].concat();
    let record = [record, vec![0xee; 2], 7_u32.to_be_bytes().to_vec()].concat();
    let sets = [set(0, &words(&[&[256, 4], &template[..]].concat())), set(256, &record)];
    let row = &data(&mut Decoder::new(), &netflow9(&sets))[0];
    assert_eq!(times(row), (json!("2026-01-02T03:04:03.000Z"), json!("2026-01-02T03:04:04.500Z")), "{row}");
    assert_eq!((&row["paddingOctets"], &row["octetDeltaCount"]), (&Value::Null, &json!(7)));
    // IPFIX has no uptime in its header.
    let sets = [set(2, &words(&[&[256, 4], &template[..]].concat())), set(256, &record)];
    assert_eq!(times(&data(&mut Decoder::new(), &ipfix(&sets))[0]), (Value::Null, Value::Null));
    let sets = [
        set(2, &words(&[256, 3, 22, 4, 21, 4, 160, 8])),
        set(256, &[&record[..8], &1_767_323_000_000_u64.to_be_bytes()].concat()),
    ];
    let row = &data(&mut Decoder::new(), &ipfix(&sets))[0];
    assert_eq!(times(row), (json!("2026-01-02T03:03:28.000Z"), json!("2026-01-02T03:03:29.500Z")), "{row}");
}

#[test]
fn line_for_a_person_begins_with_the_endpoints() {
    let mut lines = Vec::new();
    let payload = netflow5(1, 1);
    let record = crate::datagram::record(crate::datagram::EXPORTER, sekiwake_record::Format::NetFlow5, &payload);
    Decoder::new().decode(None, &record, |row| lines.push(row.to_string()));
    let start = "netflow5 flow 198.18.0.1:53 > 198.18.0.2:4242 tcp packetDeltaCount=10 octetDeltaCount=4200 ";
    assert!(lines[0].starts_with(start), "{}", lines[0]);
}

#[test]
fn netflow5_without_records_says_so() {
    for padding in [0, 48] {
        let datagram = [&[0, 5, 0, 0][..], &[0; 20], &vec![0; padding]].concat();
        let rows = rows(&mut Decoder::new(), &datagram);
        assert_eq!((rows.len(), &rows[0]["reason"]), (1, &"datagram has no records".into()));
    }
}
