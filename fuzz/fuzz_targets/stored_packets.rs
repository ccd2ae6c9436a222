//! Files of packets: reading any bytes ends, covers them all, and finds no datagram in a file whose
//! key is not in it; damage to a file costs only what it touches.
//!
//! ```text
//! input  place 2 | change 1 | payload of the first packet
//! ```

#![no_main]

use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use sekiwake_archive::{FileFormat, GroupReader, Item, OpenGroup, PacketEncoder, compress, messages};
use sekiwake_record::{Flags, Format, Kind, Record, Vlans};

/// No input knows it.
const KEY: u64 = 0x5a17_c0de_93b1_7e2d;

fuzz_target!(|input: &[u8]| {
    let [high, low, change, payload @ ..] = input else { return };
    let _ = read(payload);
    let payload = &payload[..payload.len().min(60_000)];
    let payloads = [payload, &b"second"[..], b"third"];
    let encoder = PacketEncoder::new(KEY);
    let mut file = encoder.head(Kind::Xflow);
    let (mut body, mut group) = (Vec::new(), OpenGroup::default());
    for payload in payloads {
        encoder.encode(&record(payload), "capture", &mut body, &mut group);
        encoder.seal(&mut body, &mut group);
    }
    file.extend(body);
    assert_eq!(read(&file), payloads);
    let mut compressed = Vec::new();
    compress(&file[..], FileFormat::Pcapng(Kind::Xflow), 1, &mut compressed).expect("compressing into memory");
    let mut groups = GroupReader::of_file(&compressed[..]).expect("memory can be read");
    let mut count = 0;
    while let Some(item) = groups.next_item().expect("memory can be read") {
        if let Item::Group { bytes, .. } = item {
            count += messages(Kind::Xflow, bytes).count();
        }
    }
    assert_eq!(count, 3);
    let at = usize::from(u16::from_be_bytes([*high, *low])) * file.len() / 65_536;
    file[at] ^= change;
    let damaged = read(&file);
    assert!(damaged.len() >= 2 && damaged.iter().all(|found| payloads.contains(&&found[..])));
});

/// The payloads in a file.
fn read(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut groups = GroupReader::new(bytes).expect("memory can be read");
    let mut found = Vec::new();
    let mut end = 0;
    while let Some(item) = groups.next_item().expect("memory can be read") {
        let (Item::Group { offset, bytes } | Item::Damaged { offset, bytes }) = item;
        assert_eq!(offset, end, "the items cover all of the file");
        end += bytes.len() as u64;
        if let Item::Group { bytes, .. } = item {
            found.extend(messages(Kind::Xflow, bytes).map(|message| message.payload.into_owned()));
        }
    }
    assert_eq!(end, bytes.len() as u64);
    found
}

fn record(payload: &[u8]) -> Record<'_> {
    Record {
        captured_at_ns: 1_700_000_000_000_000_000,
        source: IpAddr::from([198, 51, 100, 7]),
        source_port: 50_000,
        destination: IpAddr::from([203, 0, 113, 1]),
        destination_port: 2055,
        format: Format::NetFlow9,
        flags: Flags::default(),
        payload,
        vlans: Vlans::new(),
        dscp_ttl: 64,
        origin: None,
    }
}
