//! Datagrams of flows in any order: each is at least one row, rows and their lengths are bounded,
//! and text has no control characters.
//!
//! ```text
//! input   [what 1 | length 2 | datagram, or key 25 or 23 and value] …
//! ```

#![no_main]

use std::net::Ipv4Addr;

use libfuzzer_sys::fuzz_target;
use sekiwake_decode::{Decoder, FirstTemplates};
use sekiwake_record::{Flags, Format, Record, Vlans};

fuzz_target!(|input: &[u8]| {
    let mut decoder = Decoder::new();
    let mut templates = FirstTemplates::new();
    let mut rest = input;
    while let [what, high, low, following @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (payload, left) = following.split_at(following.len().min(length));
        rest = left;
        if what >> 5 == 0 {
            let key = if what % 2 == 0 { 23 } else { 25 };
            let (key, value) = payload.split_at(payload.len().min(key));
            decoder.learn(key, value, 1);
            continue;
        }
        let record = Record {
            captured_at_ns: 1,
            source: Ipv4Addr::new(198, 18, 0, what >> 7).into(),
            source_port: u16::from(what >> 5),
            destination: Ipv4Addr::new(203, 0, 113, 1).into(),
            destination_port: 2055,
            format: [Format::NetFlow5, Format::NetFlow9, Format::Ipfix, Format::Sflow5][usize::from(what % 4)],
            flags: Flags::default(),
            payload,
            vlans: Vlans::new(),
            dscp_ttl: 0,
            origin: None,
        };
        templates.observe(&record);
        let (mut rows, mut bytes) = (0, 0);
        decoder.decode(None, &record, |row| {
            rows += 1;
            let text = row.to_string();
            assert!(!text.contains(char::is_control));
            bytes += text.len();
        });
        assert!((1..=4_098).contains(&rows) && bytes <= 32 << 20, "{rows} rows, {bytes} bytes");
    }
    templates.into_decoder();
});
