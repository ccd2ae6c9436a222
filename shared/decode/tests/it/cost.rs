//! The cost per record. Run by hand: `cargo test --release -p sekiwake-decode -- --ignored
//! --nocapture cost`.

use std::time::Instant;

use sekiwake_decode::{Decoder, Row};
use sekiwake_record::Format;

use crate::datagram::{EXPORTER, ipfix, netflow9, numbered, record, rows, set, sflow, words, xdr};

/// The fields of an ordinary router: 20 of them, 62 bytes.
const FIELDS: [u16; 40] = [
    8, 4, 12, 4, 15, 4, 10, 4, 14, 4, 2, 4, 1, 4, 22, 4, 21, 4, 7, 2, 11, 2, 6, 1, 4, 1, 5, 1, 16, 4, 17, 4, 9, 1, 13,
    1, 61, 1, 89, 1,
];

#[test]
#[ignore = "a measurement"]
fn cost_of_a_record() {
    let template = words(&[&[256, 20], &FIELDS[..]].concat());
    let data = set(256, &[7; 55 * 24]);
    let netflow5 = [words(&[5, 30]), vec![1; 20], vec![7; 30 * 48]].concat();
    let packet = [xdr(&[1, 1000, 4, 64]), vec![0x45; 64]].concat();
    let sample = numbered(1, &[xdr(&[1, 2, 3, 4, 5, 6, 7, 1]), numbered(1, &packet)].concat());
    let cases = [
        ("NetFlow v5", Format::NetFlow5, netflow5),
        ("NetFlow v9", Format::NetFlow9, netflow9(std::slice::from_ref(&data))),
        ("IPFIX", Format::Ipfix, ipfix(&[data])),
        ("sFlow v5", Format::Sflow5, sflow(&[sample.clone(), sample.clone(), sample.clone(), sample])),
    ];
    let mut decoder = Decoder::new();
    rows(&mut decoder, &netflow9(&[set(0, &template)]));
    rows(&mut decoder, &ipfix(&[set(2, &template)]));
    for (name, format, payload) in &cases {
        let record = record(EXPORTER, *format, payload);
        let (mut rows, mut fields) = (0_u64, 0_u64);
        let started = Instant::now();
        for _ in 0..100_000 {
            decoder.decode(None, &record, |row| {
                let Row::Flow(flow) = std::hint::black_box(row) else { return };
                rows += 1;
                fields += flow.fields.len() as u64;
            });
        }
        let each = started.elapsed().as_nanos() / u128::from(rows);
        eprintln!("{name:10} {each:4} ns per row of {} fields", fields / rows);
    }
}
