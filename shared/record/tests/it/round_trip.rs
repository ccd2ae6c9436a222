//! Everything written is read back unchanged.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, option, prelude::*};
use sekiwake_record::{
    Announcement, Batch, BatchBuilder, Flags, Format, Header, MAX_BATCH_BYTES, MAX_PAYLOAD, MAX_VLANS, Origin, Record,
    Topic, TopicPosition,
};

use crate::{batch_of, decode, record};

/// A record and its payload.
#[derive(Clone, Debug)]
struct Owned {
    record: Record<'static>,
    payload: Vec<u8>,
}

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
        any::<[u8; 16]>().prop_map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
        // A mapped address stays an IPv6 address: records have the address of the IP header.
        any::<[u8; 4]>().prop_map(|octets| IpAddr::V6(Ipv4Addr::from(octets).to_ipv6_mapped())),
    ]
}

fn records(payload_length: std::ops::Range<usize>) -> impl Strategy<Value = Owned> {
    let ends = (addresses(), any::<u16>(), addresses(), any::<u16>());
    let rest = (
        any::<u64>(),
        prop::sample::select(Format::ALL.to_vec()),
        any::<u32>(),
        vec(any::<u16>(), 0..=MAX_VLANS),
        any::<u16>(),
        option::of((option::of(any::<u32>()), any::<u8>())),
    );
    (ends, rest, vec(any::<u8>(), payload_length)).prop_map(|(ends, rest, payload)| {
        let (source, source_port, destination, destination_port) = ends;
        let (captured_at_ns, format, flags, vlans, dscp_ttl, origin) = rest;
        let record = Record {
            captured_at_ns,
            source,
            source_port,
            destination,
            destination_port,
            format,
            flags: Flags::from_bits(flags),
            payload: &[],
            vlans: vlans.into_iter().collect(),
            dscp_ttl,
            origin: origin.map(|(ip_id, interface)| Origin { ip_id, interface }),
        };
        Owned { record, payload }
    })
}

fn borrowed(owned: &Owned) -> Record<'_> {
    Record { payload: &owned.payload, ..owned.record.clone() }
}

/// Fills batches as a publisher does: a new one when the open one has no room.
fn batches(owned: &[Owned]) -> Vec<sekiwake_record::ClosedBatch> {
    let mut closed = Vec::new();
    let mut open = BatchBuilder::new(Vec::new());
    for record in owned.iter().map(borrowed) {
        if !open.has_room_for(&record) {
            closed.extend(std::mem::replace(&mut open, BatchBuilder::new(Vec::new())).close());
        }
        open.push(&record);
    }
    closed.extend(open.close());
    closed
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn batches_have_all_records_and_stay_within_their_limit(owned in vec(records(0..2_000), 1..100)) {
        let closed = batches(&owned);
        let mut decoded = Vec::new();
        for batch in &closed {
            prop_assert!(batch.count == 1 || batch.body.len() <= MAX_BATCH_BYTES);
            decoded.push(Batch::decode(&batch.body[..], batch.count).unwrap());
        }
        let records: Vec<Record<'_>> = decoded.iter().flat_map(Batch::records).collect();
        prop_assert_eq!(records, owned.iter().map(borrowed).collect::<Vec<_>>());
        let mut rest = &owned[..];
        for batch in &closed {
            let (own, after) = rest.split_at(batch.count as usize);
            rest = after;
            let times = own.iter().map(|owned| owned.record.captured_at_ns);
            prop_assert_eq!(Some(batch.first_captured_at_ns), times.clone().min());
            prop_assert_eq!(Some(batch.last_captured_at_ns), times.max());
        }
    }

    #[test]
    fn record_is_at_most_128_bytes_longer_than_its_payload(owned in records(0..300)) {
        let alone = batch_of(&[borrowed(&owned)]).body.len() - 3;
        prop_assert!(alone <= owned.payload.len() + 128, "{} bytes for a payload of {}", alone, owned.payload.len());
    }

    #[test]
    fn headers_are_read_back(name in "[A-Za-z0-9._-]{1,63}", epoch: u64, first_sequence: u64, count: u32, first_captured_at_ns: u64, last_captured_at_ns: u64) {
        let header = Header {
            stream_name: &name,
            stream_epoch: epoch,
            first_sequence,
            count,
            first_captured_at_ns,
            last_captured_at_ns,
        };
        let mut frame = Vec::new();
        header.encode(&mut frame);
        prop_assert_eq!(Header::decode(&frame), Ok(header.clone()));
        prop_assert!(header.next_sequence() >= first_sequence);
    }

    #[test]
    fn announcements_are_read_back(name in "[A-Za-z0-9._-]{1,63}", stream_epoch: u64, ended: bool, clock_ns: Option<u64>, sequences in vec((any::<u64>(), any::<u64>()), 0..=Topic::COUNT)) {
        let positions = Topic::all().zip(sequences);
        let announcement = Announcement {
            stream_name: name,
            stream_epoch,
            ended,
            positions: positions.map(|(topic, (oldest_sequence, next_sequence))| TopicPosition { topic, oldest_sequence, next_sequence }).collect(),
            clock_ns,
        };
        let mut frame = Vec::new();
        announcement.encode(&mut frame);
        prop_assert_eq!(Announcement::decode(&frame), Ok(announcement));
    }
}

#[test]
fn record_larger_than_a_batch_travels_alone() {
    let payload = vec![0x55; MAX_PAYLOAD];
    let large = Record { payload: &payload, ..record() };
    let mut builder = BatchBuilder::new(Vec::new());
    assert!(builder.has_room_for(&large));
    builder.push(&large);
    assert!(!builder.has_room_for(&record()));
    let closed = builder.close().unwrap();
    assert!(closed.body.len() > MAX_BATCH_BYTES);
    assert_eq!(decode(1, &closed.body).unwrap().get(0), Some(large.clone()));

    let mut builder = BatchBuilder::new(Vec::new());
    builder.push(&record());
    assert!(!builder.has_room_for(&large));
}

#[test]
fn empty_batch_is_none() {
    let builder = BatchBuilder::new(vec![1, 2, 3]);
    assert_eq!(builder.count(), 0);
    assert!(builder.close().is_none());
}

#[test]
fn reused_buffer_leaves_no_trace() {
    let mut builder = BatchBuilder::new(vec![0xff; 1_000]);
    builder.push(&record());
    assert_eq!(builder.close().unwrap(), batch_of(&[record()]));
}

#[test]
fn records_are_found_by_index() {
    let body = batch_of(&[record(), Record { payload: b"", ..record() }]).body;
    let batch = decode(2, &body).unwrap();
    assert_eq!((batch.len(), batch.is_empty(), batch.body_len()), (2, false, body.len()));
    assert_eq!(batch.get(1).unwrap().payload, b"");
    assert_eq!(batch.get(2), None);
    let empty = decode(0, &[0x90]).unwrap();
    assert!(empty.is_empty());
}
