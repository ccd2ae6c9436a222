//! What is written is what is read.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::{collection::vec, prelude::*};
use sekiwake_record::{
    Announcement, Batch, BatchBuilder, Flags, Format, Header, MAX_BATCH_BYTES, MAX_PAYLOAD, MAX_VLANS, Record, Topic,
    TopicPosition,
};

use crate::{batch_of, decode, header, record};

/// A record and the payload that it borrows.
type Owned = (Record<'static>, Vec<u8>);

fn addresses() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<[u8; 4]>().prop_map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
        any::<[u8; 16]>().prop_map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
        // A mapped address is no IPv4 address: what stood in the header is what travels.
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
    );
    (ends, rest, vec(any::<u8>(), payload_length)).prop_map(|(ends, rest, payload)| {
        let (source, source_port, destination, destination_port) = ends;
        let (captured_at_ns, format, flags, vlans, dscp_ttl) = rest;
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
        };
        (record, payload)
    })
}

fn borrowed((record, payload): &Owned) -> Record<'_> {
    Record { payload, ..record.clone() }
}

/// Fills batches as a publisher does: a new one whenever the open one has no room.
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
    fn batches_hold_what_was_pushed_and_stay_within_their_limit(owned in vec(records(0..2_000), 1..100)) {
        let mut read = Vec::new();
        let closed = batches(&owned);
        for batch in &closed {
            prop_assert!(batch.count == 1 || batch.body.len() <= MAX_BATCH_BYTES);
            let batch = Batch::decode(&header(batch.count), &batch.body[..]).unwrap();
            read.extend(batch.records().map(|record| (Record { payload: &[], ..record.clone() }, record.payload.to_vec())));
        }
        prop_assert_eq!(&read, &owned);
        for (batch, first) in closed.iter().scan(0, |start, batch| {
            let first = *start;
            *start += batch.count as usize;
            Some((batch, first))
        }) {
            let times = owned[first..first + batch.count as usize].iter().map(|(record, _)| record.captured_at_ns);
            prop_assert_eq!(Some(batch.first_captured_at_ns), times.clone().min());
            prop_assert_eq!(Some(batch.last_captured_at_ns), times.max());
        }
    }

    #[test]
    fn no_record_takes_more_room_than_a_batch_reckons_with(owned in records(0..300)) {
        let alone = batch_of(&[borrowed(&owned)]).body.len() - 3;
        prop_assert!(alone <= owned.1.len() + 128, "{} bytes for a payload of {}", alone, owned.1.len());
    }

    #[test]
    fn headers_survive(name in "[A-Za-z0-9._-]{1,63}", epoch: u64, first_sequence: u64, count: u32, times: (u64, u64)) {
        let header = Header {
            stream_name: &name,
            stream_epoch: epoch,
            first_sequence,
            count,
            first_captured_at_ns: times.0,
            last_captured_at_ns: times.1,
        };
        let mut frame = Vec::new();
        header.encode(&mut frame);
        prop_assert_eq!(Header::decode(&frame), Ok(header.clone()));
        prop_assert!(header.next_sequence() >= first_sequence);
    }

    #[test]
    fn announcements_survive(name in "[A-Za-z0-9._-]{1,63}", stream_epoch: u64, ended: bool, sequences in vec((any::<u64>(), any::<u64>()), 0..=Topic::COUNT)) {
        let positions = Topic::all().zip(sequences);
        let announcement = Announcement {
            stream_name: name,
            stream_epoch,
            ended,
            positions: positions.map(|(topic, (oldest_sequence, next_sequence))| TopicPosition { topic, oldest_sequence, next_sequence }).collect(),
        };
        let mut frame = Vec::new();
        announcement.encode(&mut frame);
        prop_assert_eq!(Announcement::decode(&frame), Ok(announcement));
    }
}

#[test]
fn a_record_larger_than_a_batch_travels_alone() {
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
fn an_empty_batch_is_none() {
    let builder = BatchBuilder::new(vec![1, 2, 3]);
    assert_eq!(builder.count(), 0);
    assert!(builder.close().is_none());
}

#[test]
fn a_reused_buffer_leaves_nothing_behind() {
    let reused = BatchBuilder::new(vec![0xff; 1_000]);
    let mut builder = reused;
    builder.push(&record());
    assert_eq!(builder.close().unwrap(), batch_of(&[record()]));
}

#[test]
fn a_batch_gives_its_records_by_index() {
    let body = batch_of(&[record(), Record { payload: b"", ..record() }]).body;
    let batch = decode(2, &body).unwrap();
    assert_eq!((batch.len(), batch.is_empty(), batch.body_len()), (2, false, body.len()));
    assert_eq!(batch.get(1).unwrap().payload, b"");
    assert_eq!(batch.get(2), None);
    let empty = decode(0, &[0x90]).unwrap();
    assert!(empty.is_empty());
}
