use std::net::IpAddr;

use proptest::prelude::*;
use sekiwake_record::{Flags, Format, Record, Vlans, WallTime};
use sekiwake_testkit::fixtures;

use super::*;
use crate::LineFormat;

const FORMATS: [LineFormat; 2] = [LineFormat::Json, LineFormat::Text];

fn record(payload: &[u8]) -> Record<'_> {
    Record {
        captured_at_ns: 1_767_323_045_678_901_234,
        source_port: 514,
        destination: "2001:db8::1".parse().unwrap(),
        destination_port: 5140,
        format: sekiwake_identify::identify(None, payload),
        ..fixtures::record(payload)
    }
}

fn line(format: LineFormat, record: &Record<'_>) -> String {
    let mut out = Vec::new();
    LineEncoder::new(format).encode(record, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn lines_have_the_documented_fields() {
    let record = record(b"<189>1234: %SYS-5-CONFIG_I: \"quoted\" \\ \t\x1b[2J");
    assert_eq!(
        line(LineFormat::Json, &record),
        "{\"captured_at\":\"2026-01-02T03:04:05.678901234Z\",\"source\":\"198.51.100.7\",\"source_port\":514,\
         \"destination\":\"2001:db8::1\",\"destination_port\":5140,\"facility\":\"local7\",\"severity\":\"notice\",\
         \"format\":\"rfc3164\",\"payload\":\"<189>1234: %SYS-5-CONFIG_I: \\\"quoted\\\" \\\\ \\t\\u001b[2J\"}\n"
    );
    assert_eq!(
        line(LineFormat::Text, &record),
        "2026-01-02T03:04:05.678901234Z 198.51.100.7:514 [2001:db8::1]:5140 local7.notice rfc3164 \
         <189>1234: %SYS-5-CONFIG_I: \"quoted\" \\\\ \\t\\x1b[2J\n"
    );
    assert!(
        line(LineFormat::Json, &self::record(b"no PRI"))
            .contains("\"facility\":null,\"severity\":null,\"format\":\"unknown\"")
    );
    assert!(line(LineFormat::Text, &self::record(b"")).ends_with(" - unknown \n"));
}

#[test]
fn payload_cannot_end_a_line_or_control_a_terminal() {
    let payload = "<13>a\nb\r\u{85}\u{9b}31m\u{7f}\u{2028}\u{2029}\0é\u{2027}€".as_bytes();
    for format in FORMATS {
        let line = line(format, &record(payload));
        let body = line.strip_suffix('\n').unwrap();
        let is_harmless = |character: char| !character.is_control() && !matches!(character, '\u{2028}' | '\u{2029}');
        assert!(body.chars().all(is_harmless), "{body:?}");
        assert!(body.contains("é\u{2027}€"), "{body:?}");
        assert_eq!(Message::parse_exactly(format, body.as_bytes()).unwrap().payload, payload);
    }
}

#[test]
fn torn_zeroed_or_changed_line_is_rejected() {
    for format in FORMATS {
        let whole = line(format, &record("<13>1 2026-01-02T03:04:05Z host app - - - text, \u{fe} and \\".as_bytes()));
        let whole = whole.trim_end().as_bytes();
        assert!(Message::parse_exactly(format, whole).is_some());
        for cut in 0..whole.len() - 60 {
            assert_eq!(Message::parse_exactly(format, &whole[..cut]), None, "{cut}");
        }
        for at in 0..whole.len() {
            let mut torn = whole.to_vec();
            torn[at..].fill(0);
            assert_eq!(Message::parse_exactly(format, &torn), None, "{at}");
        }
        for invalid in [&b""[..], b"{}", b"null", b"\0", b"2026-01-02T03:04:05.678901234Z", &[b'x'; 100]] {
            assert_eq!(Message::parse(format, invalid), None);
        }
    }
    let twice = "{\"captured_at\":\"2026-01-02T03:04:05.678901234Z\",\"source\":\"198.51.100.7\",\"source_port\":514,\
         \"destination\":\"203.0.113.1\",\"destination_port\":514,\"facility\":null,\"severity\":null,\"format\":\"unknown\"";
    for end in
        ["}", ",\"payload\":\"x\",\"payload_base64\":\"eA==\"}", ",\"payload_base64\":\"!\"}", ",\"payload\":\"x\"} "]
    {
        assert_eq!(Message::parse_exactly(LineFormat::Json, format!("{twice}{end}").as_bytes()), None, "{end}");
    }
}

#[test]
fn longest_payload_has_a_line() {
    for payload in [vec![0; sekiwake_record::MAX_PAYLOAD], vec![0xff; sekiwake_record::MAX_PAYLOAD]] {
        for format in FORMATS {
            let line = line(format, &record(&payload));
            assert_eq!(Message::parse_exactly(format, line.trim_end().as_bytes()).unwrap().payload, payload);
        }
    }
}

/// `cargo test --release -p sekiwake-archive -- --ignored --nocapture measure_encoding`
#[test]
#[ignore = "a measurement"]
fn measure_encoding() {
    let payload =
        format!("<165>1 2026-01-02T03:04:05.000003Z host app - - [e@32473 n=\"7\"] {}", "text of a message ".repeat(8));
    let record = record(&payload.as_bytes()[..200]);
    for format in FORMATS {
        let mut encoder = LineEncoder::new(format);
        let mut out = Vec::new();
        #[allow(clippy::disallowed_methods, reason = "a measurement")]
        let started = std::time::Instant::now();
        for _ in 0..1_000_000 {
            out.clear();
            encoder.encode(&record, &mut out);
        }
        println!("{format:?}: {} ns per line of {} bytes", started.elapsed().as_nanos() / 1_000_000, out.len());
    }
}

proptest! {
    #[test]
    fn every_record_round_trips(
        payload in prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..200),
            ".{0,60}".prop_map(String::into_bytes),
            "<[0-9]{1,3}>[ -~\\n\\t\"\\\\]{0,80}".prop_map(String::into_bytes),
        ],
        captured_at_ns: u64, source: IpAddr, destination: IpAddr, ports: (u16, u16), format in 0u64..11,
    ) {
        let record = Record {
            captured_at_ns, source, destination, source_port: ports.0, destination_port: ports.1,
            format: Format::from_code(format), ..record(&payload)
        };
        for format in FORMATS {
            let line = line(format, &record);
            prop_assert_eq!(line.matches('\n').count(), 1);
            let line = line.trim_end_matches('\n').as_bytes();
            prop_assert_eq!(captured_at_of(format, line), Some(WallTime::from_nanos(captured_at_ns)));
            let message = Message::parse_exactly(format, line).expect("a line");
            prop_assert_eq!(message.record(), Record { flags: Flags::default(), vlans: Vlans::new(), dscp_ttl: 0, origin: None, ..record.clone() });
        }
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(line in proptest::collection::vec(any::<u8>(), 0..300)) {
        for format in FORMATS {
            let _ = (Message::parse_exactly(format, &line), captured_at_of(format, &line));
        }
    }
}
