use std::net::IpAddr;

use proptest::prelude::*;
use sekiwake_record::{Flags, Format, Kind, Origin, Record, Vlans, WallTime, dscp_ttl};
use sekiwake_testkit::{fixtures, random::Random};

use super::*;
use crate::FileState;

const KEY: u64 = 0x0123_4567_89ab_cdef;

/// A file of these payloads, and of each the offset behind its group.
fn file(key: u64, payloads: &[Vec<u8>]) -> Vec<u8> {
    let encoder = PacketEncoder::new(key);
    let mut out = encoder.head(Kind::Xflow);
    let mut body = Vec::new();
    let mut group = OpenGroup::default();
    for (number, payload) in payloads.iter().enumerate() {
        let record = Record { captured_at_ns: 1000 + number as u64, ..fixtures::record(payload) };
        encoder.encode(&record, "capture-1", &mut body, &mut group);
    }
    encoder.seal(&mut body, &mut group);
    out.extend(body);
    out
}

/// The payloads that are read, and how many places are damaged.
fn read(bytes: &[u8]) -> (Vec<Vec<u8>>, u64) {
    let mut groups = GroupReader::new(bytes).unwrap();
    let mut payloads = Vec::new();
    let mut damaged = 0;
    let mut end = 0;
    let mut is_damaged = false;
    while let Some(item) = groups.next_item().unwrap() {
        let (Item::Group { offset, bytes } | Item::Damaged { offset, bytes }) = item;
        assert_eq!(offset, end, "the items cover all of the file");
        assert!(!bytes.is_empty());
        end += bytes.len() as u64;
        let was_damaged = std::mem::replace(&mut is_damaged, matches!(item, Item::Damaged { .. }));
        damaged += u64::from(is_damaged && !was_damaged);
        if let Item::Group { bytes, .. } = item {
            for (_, block) in packets(bytes) {
                payloads.push(parse(Kind::Xflow, block).expect("a packet").payload.into_owned());
            }
        }
    }
    assert_eq!(end, bytes.len() as u64);
    (payloads, damaged)
}

fn payloads(count: usize, bytes: usize) -> Vec<Vec<u8>> {
    let mut random = Random::new(7);
    let payload = |number: usize| {
        let mut payload = format!("number {number} ").into_bytes();
        payload.resize_with(bytes, || random.below(256) as u8);
        payload
    };
    (0..count).map(payload).collect()
}

#[test]
fn flipped_bit_costs_one_group() {
    let payloads = payloads(400, 1400);
    let whole = file(KEY, &payloads);
    assert_eq!(read(&whole), (payloads.clone(), 0));
    let group = GROUP_BYTES / 1400 + 1;
    // All of the head, and places in all groups.
    for at in (0..300).chain((300..whole.len()).step_by(997)) {
        let mut changed = whole.clone();
        changed[at] ^= 1 << (at % 8);
        let (read, damaged) = read(&changed);
        assert!(read.len() + group >= payloads.len(), "{at}: {}", read.len());
        assert!(read.iter().all(|payload| payloads.contains(payload)) && damaged == 1, "{at}");
    }
}

#[test]
fn removed_and_added_bytes_cost_what_they_touch() {
    let payloads = payloads(400, 1400);
    let whole = file(KEY, &payloads);
    let group = GROUP_BYTES / 1400 + 1;
    for (at, length) in [(0, 1), (0, 4096), (10, 3), (100, 70_000), (5000, 1), (200_000, 13), (65_000, 2000)] {
        let removed = [&whole[..at], &whole[at + length..]].concat();
        let lost = group * (length / GROUP_BYTES + 2);
        assert!(read(&removed).0.len() + lost >= payloads.len(), "{at} {length}");
        let added = [&whole[..at], &vec![0xa5; length][..], &whole[at..]].concat();
        assert!(read(&added).0.len() + group >= payloads.len(), "{at} {length}");
        let zeroed = [&whole[..at], &vec![0; length][..], &whole[at + length..]].concat();
        assert!(read(&zeroed).0.len() + lost >= payloads.len(), "{at} {length}");
    }
    for cut in (0..whole.len()).step_by(991) {
        let (read, _) = read(&whole[..cut]);
        assert!(payloads.starts_with(&read), "{cut}");
        assert!((read.len() + group) * 1600 >= cut.saturating_sub(300), "{cut}: {}", read.len());
    }
}

#[test]
fn planted_blocks_are_never_read() {
    // Whole files, and groups of them, of another key and of a guessed one, in the payloads.
    let inner: Vec<Vec<u8>> = (0..8).map(|number| format!("forged {number}").into_bytes()).collect();
    let forged = [1, KEY ^ 1, 0].map(|key| file(key, &inner));
    let mut payloads = payloads(200, 100);
    for (index, payload) in payloads.iter_mut().enumerate() {
        let forged = &forged[index % forged.len()];
        let from =
            if index % 2 == 0 { 0 } else { memchr::memmem::find(forged, &seal::SEAL_START).unwrap() + SEAL_BYTES };
        payload.extend_from_slice(&vec![b'x'; index % 5]);
        payload.extend_from_slice(&forged[from..]);
    }
    let whole = file(KEY, &payloads);
    assert_eq!(read(&whole).0, payloads);
    let mut random = Random::new(3);
    for round in 0..1500 {
        let mut changed = whole.clone();
        let places = 1 + random.below(4);
        for _ in 0..places {
            // The head in half of the rounds.
            let end = if round % 2 == 0 { changed.len() } else { 300 };
            let at = random.below(end as u64) as usize;
            match random.below(3) {
                0 => changed[at] ^= 1 << random.below(8),
                1 => drop(changed.drain(at..(at + 1 + random.below(3000) as usize).min(changed.len()))),
                _ => changed.truncate(changed.len() - random.below(2000) as usize),
            }
        }
        for payload in read(&changed).0 {
            assert!(payloads.contains(&payload), "round {round}: {:?}", String::from_utf8_lossy(&payload));
        }
    }
}

#[test]
fn unknown_key_reads_nothing() {
    assert_eq!(read(b""), (Vec::new(), 0));
    assert_eq!(read(&[0; 100_000]).0.len(), 0);
    let whole = file(KEY, &payloads(3, 100));
    let head = Seal::read(&whole[memchr::memmem::find(&whole, &seal::SEAL_START).unwrap()..]).unwrap();
    assert_eq!(head.key, KEY);
    // A group that was appended from another file.
    let other = file(KEY + 1, &payloads(3, 100));
    assert_eq!(read(&[whole.clone(), other].concat()).0.len(), 3);
}

fn any_address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(IpAddr::from),
        any::<[u8; 16]>().prop_map(IpAddr::from),
        any::<[u8; 4]>().prop_map(|octets| std::net::Ipv4Addr::from(octets).to_ipv6_mapped().into()),
    ]
}

proptest! {
    #[test]
    fn record_round_trips_through_its_packet(
        captured_at_ns: u64,
        source in any_address(),
        destination in any_address(),
        ports: [u16; 2],
        code in 0..11_u64,
        flags: u32,
        vlans in prop::collection::vec(0..4096_u16, 0..=8),
        dscp in 0..64_u8,
        ttl: u8,
        payload in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            prop::sample::select(vec![vec![7; 65_527], vec![9; 65_508]]),
        ],
        publisher in "[a-z0-9.-]{0,63}",
        template: bool,
        origin in prop::option::of((prop::option::of(any::<u32>()), any::<u8>())),
    ) {
        let record = Record {
            captured_at_ns,
            source,
            source_port: ports[0],
            destination,
            destination_port: ports[1],
            format: Format::from_code(code),
            flags: Flags::from_bits(flags),
            payload: &payload,
            vlans: vlans.iter().copied().collect::<Vlans>(),
            dscp_ttl: dscp_ttl(dscp, ttl),
            origin: origin.map(|(ip_id, interface)| Origin { ip_id, interface }),
        };
        let encoder = PacketEncoder::new(KEY);
        let (mut out, mut group) = (Vec::new(), OpenGroup::default());
        match template {
            true => encoder.encode_template(&record, &mut out, &mut group),
            false => encoder.encode(&record, &publisher, &mut out, &mut group),
        }
        encoder.seal(&mut out, &mut group);
        prop_assert!(out.len() <= MAX_GROUP_BYTES + SEAL_BYTES && out.len() % 4 == 0);
        let found: Vec<(usize, &[u8])> = packets(&out).collect();
        prop_assert_eq!(found.len(), 1);
        prop_assert_eq!(is_template(found[0].1), template);
        prop_assert_eq!(captured_at_of(found[0].1), Some(WallTime::from_nanos(captured_at_ns)));
        let message = parse(Kind::Xflow, found[0].1).unwrap();
        prop_assert_eq!(message.publisher.unwrap_or_default(), if template { "" } else { &publisher });
        prop_assert_eq!(message.record(), record);
    }

    /// Any bytes are read without a panic, and give nothing.
    #[test]
    fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..2000), block in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(read(&bytes).0.len(), 0);
        let _ = (parse(Kind::Xflow, &block), is_template(&block), packets(&block).count(), key_of(&block, FileState::Open));
    }
}
