//! Templates: unknown, changed, withdrawn, of two exporters, after their data; options;
//! enterprises; directions; variable lengths.

use std::net::SocketAddr;

use sekiwake_decode::{Decoder, FirstTemplates};
use sekiwake_flow::{Exporters, Limits};
use sekiwake_record::Format;
use serde_json::{Value, json};

use crate::datagram::{EXPORTER, data, ipfix, netflow9, record, rows, rows_from, set, words};

fn octets_then_packets() -> Vec<u8> {
    set(2, &words(&[256, 2, 1, 2, 2, 2]))
}

fn packets_then_octets() -> Vec<u8> {
    set(2, &words(&[256, 2, 2, 2, 1, 2]))
}

fn numbers() -> Vec<u8> {
    set(256, &words(&[300, 4]))
}

fn octets(rows: &[Value]) -> Vec<Option<u64>> {
    rows.iter().map(|row| row["octetDeltaCount"].as_u64()).collect()
}

#[test]
fn data_without_a_template_is_a_row_that_says_so() {
    let rows = rows(&mut Decoder::new(), &ipfix(&[numbers()]));
    let expected = json!([{
        "format": "ipfix", "type": "undecoded", "domain": 7, "template": 256,
        "reason": "template has not been received", "offset": 20, "length": 4, "bytes": "012c0004",
    }]);
    assert_eq!(Value::from(rows), expected);
}

#[test]
fn template_applies_to_the_data_after_it_also_in_its_datagram() {
    let mut decoder = Decoder::new();
    let sets = [octets_then_packets(), numbers(), packets_then_octets(), numbers()];
    assert_eq!(octets(&data(&mut decoder, &ipfix(&sets))), [Some(300), Some(4)]);
    assert_eq!(octets(&data(&mut decoder, &ipfix(&[numbers()]))), [Some(4)]);
}

#[test]
fn definitions_and_withdrawals_are_rows() {
    let mut decoder = Decoder::new();
    let defined = rows(&mut decoder, &ipfix(&[octets_then_packets()]));
    assert_eq!((&defined[0]["type"], &defined[0]["template"]), (&json!("template"), &json!(256)));
    assert_eq!(defined[0]["fields"], json!(["octetDeltaCount", "packetDeltaCount"]));
    let withdrawn = rows(&mut decoder, &ipfix(&[set(2, &words(&[256, 0])), numbers()]));
    assert_eq!((&withdrawn[0]["type"], &withdrawn[0]["template"]), (&json!("withdrawal"), &json!(256)));
    assert_eq!(withdrawn[1]["reason"], "template was withdrawn");
    let all = rows(&mut decoder, &ipfix(&[set(2, &words(&[2, 0]))]));
    assert_eq!((&all[0]["type"], &all[0]["template"]), (&json!("withdrawal"), &Value::Null));
}

#[test]
fn exporters_on_one_address_have_their_own_templates() {
    let mut decoder = Decoder::new();
    let other = SocketAddr::new(EXPORTER.ip(), EXPORTER.port() + 1);
    rows(&mut decoder, &ipfix(&[octets_then_packets()]));
    rows_from(&mut decoder, other, &ipfix(&[packets_then_octets()]));
    assert_eq!(octets(&data(&mut decoder, &ipfix(&[numbers()]))), [Some(300)]);
    assert_eq!(octets(&rows_from(&mut decoder, other, &ipfix(&[numbers()]))), [Some(4)]);
    // Another domain of the same process, and the other protocol.
    let mut domain = ipfix(&[numbers()]);
    domain[15] = 8;
    assert_eq!(data(&mut decoder, &domain)[0]["type"], "undecoded");
    assert_eq!(data(&mut decoder, &netflow9(&[numbers()]))[0]["type"], "undecoded");
}

#[test]
fn exporter_with_a_port_per_datagram_is_decoded_by_its_address() {
    let mut decoder = Decoder::new();
    rows(&mut decoder, &ipfix(&[octets_then_packets()]));
    for port in 1..100 {
        let source = SocketAddr::new(EXPORTER.ip(), port);
        assert_eq!(octets(&rows_from(&mut decoder, source, &ipfix(&[numbers()]))), [Some(300)], "port {port}");
    }
}

#[test]
fn handed_over_templates_are_used() {
    let mut forwarder = Exporters::new(Limits::default());
    forwarder.observe(EXPORTER, Format::Ipfix, &ipfix(&[octets_then_packets()]), 1, 0);
    let mut changes = Vec::new();
    forwarder.take_changes(&mut changes);
    let mut decoder = Decoder::new();
    for change in changes {
        decoder.learn(&change.key, &change.value, change.at_ns);
    }
    decoder.learn(b"invalid", b"invalid", 1);
    assert_eq!(octets(&rows(&mut decoder, &ipfix(&[numbers()]))), [Some(300)]);
}

#[test]
fn data_before_its_template_in_a_savefile_is_decoded() {
    let datagrams =
        [ipfix(&[numbers()]), ipfix(&[octets_then_packets()]), ipfix(&[numbers(), packets_then_octets(), numbers()])];
    let mut templates = FirstTemplates::new();
    for payload in &datagrams {
        templates.observe(&record(EXPORTER, Format::Ipfix, payload));
    }
    let mut decoder = templates.into_decoder();
    let decoded: Vec<Value> = datagrams.iter().flat_map(|payload| data(&mut decoder, payload)).collect();
    // The first definition, not the last, is that of what came before both.
    assert_eq!(octets(&decoded), [Some(300), Some(300), Some(4)]);
}

#[test]
fn sampling_and_interface_names_are_options_with_their_scope() {
    let template = set(1, &words(&[300, 4, 12, 2, 4, 34, 4, 35, 1, 82, 6]));
    let record = [&9_u32.to_be_bytes()[..], &100_u32.to_be_bytes(), &[2], b"Gi0/1\0"].concat();
    let rows = rows(&mut Decoder::new(), &netflow9(&[template, set(300, &record)]));
    assert_eq!(rows[0]["type"], "options-template");
    let expected = json!({
        "format": "netflow9", "type": "options", "domain": 7, "sequence": 21, "exported_at": "2026-01-02T03:04:05Z",
        "uptime_ms": 10_000, "template": 300,
        "scopeInterface": 9, "samplingInterval": 100, "samplingAlgorithm": 2, "interfaceName": "Gi0/1",
    });
    assert_eq!(rows[1], expected);
    // The rate is applied nowhere.
    let template = set(3, &words(&[301, 2, 1, 149, 4, 305, 4]));
    let sets = [template, set(301, &[0, 0, 0, 7, 0, 0, 0, 100]), octets_then_packets(), numbers()];
    let rows = data(&mut Decoder::new(), &ipfix(&sets));
    assert_eq!((&rows[0]["observationDomainId"], &rows[0]["samplingPacketInterval"]), (&json!(7), &json!(100)));
    assert_eq!(rows[1]["octetDeltaCount"], 300);
}

#[test]
fn enterprises_directions_repetitions_and_lengths_are_told() {
    // Element 12235 of Cisco, variable; octets in the reverse direction (RFC 5103); a label twice.
    let template = [256, 5, 0x8000 | 12_235, 0xffff, 0, 9, 0x8000 | 1, 8, 0, 29_305, 71, 3, 71, 3, 371, 0xffff];
    let long = vec![b'u'; 300];
    let record = [
        &[3, b'a', b'b', b'c'][..],
        &500_u64.to_be_bytes(),
        &[0, 1, 2, 0, 1, 3],
        &[255],
        &300_u16.to_be_bytes(),
        &long,
    ]
    .concat();
    let row = &data(&mut Decoder::new(), &ipfix(&[set(2, &words(&template)), set(256, &record)]))[0];
    assert_eq!(
        (&row["9/12235"], &row["reverseOctetDeltaCount"]),
        (&json!("616263"), &json!(500)),
        "enterprise in: {row}"
    );
    assert_eq!(
        (&row["mplsLabelStackSection2"], &row["mplsLabelStackSection2.2"]),
        (&json!("000102"), &json!("000103"))
    );
    assert_eq!(row["userName"], String::from_utf8(long).unwrap());
}

#[test]
fn what_does_not_fit_is_told_and_the_rest_is_decoded() {
    let template = set(2, &words(&[256, 1, 371, 0xffff]));
    let reason = |sets: &[Vec<u8>]| {
        let rows = data(&mut Decoder::new(), &ipfix(sets));
        assert_eq!(rows.last().unwrap()["type"], "undecoded", "{rows:?}");
        (rows.len(), rows.last().unwrap()["reason"].as_str().unwrap().to_owned())
    };
    let exceeding = [template.clone(), set(256, &[1, b'a', 9, b'b'])];
    assert_eq!(reason(&exceeding), (2, "record exceeds its set".to_owned()));
    let short = [set(2, &words(&[256, 1, 1, 8])), set(256, &[1; 13])];
    assert_eq!(reason(&short), (2, "bytes are shorter than a record".to_owned()));
    let no_length = [set(2, &words(&[256, 1, 1, 0])), set(256, &[1; 4])];
    assert_eq!(reason(&no_length), (1, "records have no length".to_owned()));
    assert_eq!(reason(&[set(5, &[1; 4])]), (1, "set has a reserved identifier".to_owned()));
    assert_eq!(reason(&[set(2, &words(&[9, 1, 1, 4]))]), (1, "set 2 is malformed".to_owned()));
    assert_eq!(reason(&[words(&[256, 900, 1])]), (1, "set 256 is malformed".to_owned()));
    assert_eq!(reason(&[]), (1, "datagram has no records".to_owned()));
    // Padding is nothing to tell.
    let padded = data(&mut Decoder::new(), &ipfix(&[template, set(256, &[1, b'a', 0, 0])]));
    assert!(padded.iter().all(|row| row["type"] == "flow"), "{padded:?}");
    let mut longer = ipfix(&[octets_then_packets(), numbers()]);
    longer.extend([1, 2, 3, 4]);
    assert_eq!(data(&mut Decoder::new(), &longer)[1]["reason"], "bytes after the message");
    let whole = ipfix(&[octets_then_packets(), numbers()]);
    assert_eq!(data(&mut Decoder::new(), &whole[..whole.len() - 1])[0]["type"], "undecoded");
}
