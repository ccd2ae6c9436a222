//! Hostile bytes: no panic, at least one row, and bounds.

use proptest::prelude::*;
use sekiwake_decode::{Decoder, FirstTemplates};
use sekiwake_record::Format;

use crate::datagram::{EXPORTER, ipfix, netflow9, numbered, record, rows, set, sflow, words, xdr};

const FLOWS: [Format; 4] = [Format::NetFlow5, Format::NetFlow9, Format::Ipfix, Format::Sflow5];

/// The most rows, and the most bytes of JSON, that a datagram has.
const MOST_ROWS: usize = 4_096 + 2;
const MOST_BYTES: usize = 16 << 20;

fn decode(decoder: &mut Decoder, format: Format, payload: &[u8]) -> (usize, usize) {
    let (mut rows, mut bytes) = (0, 0);
    decoder.decode(None, &record(EXPORTER, format, payload), |row| {
        rows += 1;
        bytes += serde_json::to_string(row).unwrap().len();
        assert!(!row.to_string().contains(char::is_control));
    });
    assert!((1..=MOST_ROWS).contains(&rows), "{rows} rows");
    assert!(bytes <= MOST_BYTES, "{bytes} bytes");
    (rows, bytes)
}

/// Elements that are decoded in different ways, and their lengths.
fn specifier() -> impl Strategy<Value = [u16; 2]> {
    let element = prop::sample::select(vec![
        1, 8, 22, 21, 27, 56, 71, 82, 90, 150, 152, 154, 160, 210, 276, 291, 292, 293, 311, 434,
    ]);
    let length = prop::sample::select(vec![0, 1, 2, 4, 8, 16, 0xffff]);
    (element, length).prop_map(|(element, length)| [element, length])
}

proptest! {
    #[test]
    fn any_bytes_are_rows(payload in prop::collection::vec(any::<u8>(), 0..600), format in 0..4_usize) {
        let mut templates = FirstTemplates::new();
        templates.observe(&record(EXPORTER, FLOWS[format], &payload));
        decode(&mut templates.into_decoder(), FLOWS[format], &payload);
    }

    #[test]
    fn any_data_of_any_template_is_rows(
        specifiers in prop::collection::vec(specifier(), 1..8),
        contents in prop::collection::vec(any::<u8>(), 0..400),
        is_v9 in any::<bool>(),
    ) {
        let count = u16::try_from(specifiers.len()).unwrap();
        let template = words(&[vec![256, count], specifiers.concat()].concat());
        let sets = [set(if is_v9 { 0 } else { 2 }, &template), set(256, &contents)];
        let payload = if is_v9 { netflow9(&sets) } else { ipfix(&sets) };
        decode(&mut Decoder::new(), if is_v9 { Format::NetFlow9 } else { Format::Ipfix }, &payload);
    }

    #[test]
    fn any_record_of_sflow_is_a_row(
        format in prop::sample::select(vec![1, 2, 3, 4, 1001, 1002, 1003, 1004, 1006, 1007, 2000, 2003, 2005, 77]),
        sample in 1..6_u32,
        body in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let header = match sample {
            1 => xdr(&[1, 2, 3, 4, 5, 6, 7, 1]),
            2 => xdr(&[1, 2, 1]),
            3 => xdr(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 1]),
            4 => xdr(&[1, 2, 3, 1]),
            _ => xdr(&[1, 2, 3, 4, 5, 6, 7, 1]),
        };
        let payload = sflow(&[numbered(sample, &[header, numbered(format, &body)].concat())]);
        decode(&mut Decoder::new(), Format::Sflow5, &payload);
    }
}

#[test]
fn rows_of_a_datagram_are_bounded() {
    let mut decoder = Decoder::new();
    rows(&mut decoder, &ipfix(&[set(2, &words(&[256, 1, 4, 1]))]));
    // Records of one byte.
    let payload = ipfix(&[set(256, &[6; 60_000])]);
    let (count, _) = decode(&mut decoder, Format::Ipfix, &payload);
    assert_eq!(count, 4_096);
    let last = rows(&mut decoder, &payload).pop().unwrap();
    assert!(last["reason"].as_str().unwrap().contains("more than 4096 rows"), "{last}");
}

#[test]
fn fields_of_a_datagram_are_bounded() {
    // Fields without a length, which cost nothing to send.
    let mut template = vec![256, 1000, 4, 1];
    template.extend([1, 0].repeat(999));
    let mut decoder = Decoder::new();
    rows(&mut decoder, &ipfix(&[set(2, &words(&template))]));
    let (count, _) = decode(&mut decoder, Format::Ipfix, &ipfix(&[set(256, &[6; 60_000])]));
    assert!(count < 70, "{count} rows");
    // Sets without a record cost as much as those with one.
    let sets = vec![set(256, &[]); 10_000];
    let (count, _) = decode(&mut decoder, Format::Ipfix, &ipfix(&sets));
    assert!(count < 70, "{count} rows");
    // Lists of empty texts.
    rows(&mut decoder, &ipfix(&[set(2, &words(&[257, 1, 291, 0xffff]))]));
    let list = [&[255][..], &words(&[50_005]), &[3], &words(&[82, 0xffff]), &[0; 50_000]].concat();
    let list = [&list[..], &[0; 3]].concat();
    decode(&mut decoder, Format::Ipfix, &ipfix(&[set(257, &list)]));
}
