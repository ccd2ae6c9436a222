//! Hostile input: each is an error, immediately, with little memory and little stack.

use proptest::{collection::vec, prelude::*};
use rmp::encode as msgpack;
use sekiwake_record::{Announcement, DecodeError, Header, MAX_PAYLOAD};

use crate::{batch_of, decode, header, record};

/// Nested arrays, one per level.
fn nested(levels: usize) -> Vec<u8> {
    let mut bytes = vec![0x91; levels];
    bytes.push(0xc0);
    bytes
}

/// A body of one record whose elements are these, each already msgpack.
fn body_of(elements: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![0x91];
    msgpack::write_array_len(&mut body, elements.len() as u32).unwrap();
    [body, elements.concat()].concat()
}

fn uint(number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    msgpack::write_uint(&mut out, number).unwrap();
    out
}

fn bin(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    msgpack::write_bin(&mut out, bytes).unwrap();
    out
}

/// The elements of a plain record.
fn elements() -> Vec<Vec<u8>> {
    vec![uint(1), bin(&[0; 4]), uint(2), bin(&[0; 16]), uint(3), uint(1), uint(0), bin(b"x"), vec![0x90], uint(0)]
}

fn with(index: usize, element: Vec<u8>) -> Vec<u8> {
    let mut elements = elements();
    elements[index] = element;
    body_of(&elements)
}

#[track_caller]
fn check_malformed(body: &[u8]) {
    let error = decode(1, body).unwrap_err();
    assert!(matches!(error, DecodeError::Malformed { part: "body", .. }), "{error}");
}

#[test]
fn unchanged_record_is_accepted() {
    assert_eq!(decode(1, &body_of(&elements())).unwrap().len(), 1);
}

#[test]
fn bytes_after_the_last_element_are_rejected() {
    let mut frame = Vec::new();
    header(1).encode(&mut frame);
    let body = batch_of(&[record()]).body;
    for garbage in [0x00, 0x90, 0xc0, 0xc1, 0xc2, 0xdc, 0xff] {
        assert_eq!(Header::decode(&[&frame[..], &[garbage]].concat()), Err(DecodeError::Trailing("header")));
        assert_eq!(decode(1, &[&body[..], &[garbage]].concat()).unwrap_err(), DecodeError::Trailing("body"));
        assert_eq!(
            Announcement::decode(&[0x95, 1, 0xa1, b'n', 0, 0xc2, 0x90, garbage]),
            Err(DecodeError::Trailing("announcement"))
        );
    }
}

#[test]
fn different_counts_are_rejected() {
    let body = batch_of(&[record(), record()]).body;
    for count in [0, 1, 3, u32::MAX] {
        assert_eq!(decode(count, &body).unwrap_err(), DecodeError::CountDisagrees { header: count, body: 2 });
    }
}

#[test]
fn body_with_more_or_fewer_records_than_counted_is_rejected() {
    let mut body = batch_of(&[record(), record()]).body;
    body[2] = 3;
    assert!(matches!(decode(3, &body).unwrap_err(), DecodeError::Malformed { .. }));
    body[2] = 1;
    assert_eq!(decode(1, &body).unwrap_err(), DecodeError::Trailing("body"));
}

#[test]
fn truncated_body_is_rejected_at_any_length() {
    let body = batch_of(&[record(), record()]).body;
    for end in 0..body.len() {
        assert!(decode(2, &body[..end]).is_err(), "{end} of {} bytes", body.len());
    }
    let mut frame = Vec::new();
    header(1).encode(&mut frame);
    for end in 0..frame.len() {
        assert!(Header::decode(&frame[..end]).is_err(), "{end} of {} bytes", frame.len());
    }
}

#[test]
fn elements_of_a_wrong_type_are_rejected() {
    for index in 0..elements().len() {
        for wrong in [vec![0xc0], vec![0xcb, 0, 0, 0, 0, 0, 0, 0, 0], vec![0x80], vec![0xff]] {
            check_malformed(&with(index, wrong));
        }
    }
    for not_a_body in [&[0xc0][..], &[0x80], &[0xc4, 0], &[0x01], &[]] {
        assert!(decode(0, not_a_body).is_err());
    }
}

#[test]
fn numbers_out_of_range_are_rejected() {
    for port in [2, 4] {
        check_malformed(&with(port, uint(65_536)));
    }
    check_malformed(&with(6, uint(1 << 32)));
    check_malformed(&with(8, [vec![0x91], uint(65_536)].concat()));
    check_malformed(&with(9, uint(65_536)));
}

#[test]
fn addresses_have_4_or_16_bytes() {
    for length in [0, 1, 3, 5, 8, 15, 17, 255] {
        check_malformed(&with(1, bin(&vec![0; length])));
        check_malformed(&with(3, bin(&vec![0; length])));
    }
}

#[test]
fn payload_longer_than_a_datagram_is_rejected() {
    let longest = decode(1, &with(7, bin(&vec![0xaa; MAX_PAYLOAD]))).map(|batch| batch.get(0).unwrap().payload.len());
    assert_eq!(longest, Ok(MAX_PAYLOAD));
    check_malformed(&with(7, bin(&vec![0xaa; MAX_PAYLOAD + 1])));
}

#[test]
fn huge_lengths_allocate_nothing() {
    let huge = [0xdd, 0xff, 0xff, 0xff, 0xff];
    assert!(matches!(decode(u32::MAX, &huge).unwrap_err(), DecodeError::Malformed { .. }));
    assert!(Header::decode(&huge).is_err());
    assert!(Announcement::decode(&huge).is_err());
    assert!(Announcement::decode(&[&[0x95, 1, 0xa1, b'n', 0, 0xc2][..], &huge].concat()).is_err());
    check_malformed(&with(8, huge.to_vec()));
    check_malformed(&with(7, vec![0xc6, 0xff, 0xff, 0xff, 0xff]));
    check_malformed(&with(1, vec![0xc6, 0xff, 0xff, 0xff, 0xff]));
    assert!(Header::decode(&[0x97, 1, 0xdb, 0xff, 0xff, 0xff, 0xff]).is_err());
}

/// Appended elements are skipped without recursion.
#[test]
fn deep_nesting_does_not_overflow_the_stack() {
    let reader = || {
        let mut frame = Vec::new();
        header(1).encode(&mut frame);
        frame[0] = 0x98;
        for levels in [100, 1_000, 10_000, 1_000_000] {
            let mut elements = elements();
            elements.push(nested(levels));
            assert_eq!(decode(1, &body_of(&elements)).map(|batch| batch.len()), Ok(1));
            assert_eq!(Header::decode(&[&frame[..], &nested(levels)].concat()), Ok(header(1)));
            let announcement = [&[0x97, 1, 0xa1, b'n', 0, 0xc2, 0x90, 0xc0][..], &nested(levels)].concat();
            assert_eq!(Announcement::decode(&announcement).unwrap().stream_name, "n");
        }
    };
    std::thread::Builder::new().stack_size(64 << 10).spawn(reader).unwrap().join().unwrap();
}

#[test]
fn record_shorter_than_version_one_is_rejected() {
    for count in 0..10 {
        check_malformed(&body_of(&elements()[..count]));
        let mut body = body_of(&elements());
        body[1] = 0x90 | count as u8;
        check_malformed(&body);
    }
}

#[test]
fn missing_or_truncated_appended_elements_are_rejected() {
    let mut body = body_of(&elements());
    body[1] = 0x9b;
    check_malformed(&body);
    for truncated in [
        &[0xd9][..],
        &[0xda, 0],
        &[0xc6, 0, 0, 0, 2, 1],
        &[0xcf, 1],
        &[0x92, 1],
        &[0x81, 1],
        &[0xdd, 0xff, 0xff, 0xff, 0xff],
        &[0xdf, 0xff, 0xff, 0xff, 0xff],
        &[0xc9, 0xff, 0xff, 0xff, 0xff, 1],
        &[0xd8, 1],
        &[0xc1],
    ] {
        check_malformed(&[&body[..], truncated].concat());
    }
}

#[test]
fn stream_name_must_be_a_valid_name() {
    let frame = |name: &str| {
        let mut frame = Vec::new();
        Header { stream_name: name, ..header(1) }.encode(&mut frame);
        frame
    };
    assert!(Header::decode(&frame(&"n".repeat(63))).is_ok());
    for name in ["", "a b", "a/b", "a\nb", "\u{e9}", &"n".repeat(64)] {
        assert!(matches!(Header::decode(&frame(name)), Err(DecodeError::Malformed { part: "header", .. })), "{name:?}");
    }
    assert!(matches!(
        Announcement::decode(&[0x95, 1, 0xa1, b'/', 0, 0xc2, 0x90]),
        Err(DecodeError::Malformed { part: "announcement", .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_an_error_or_as_many_records_as_counted(bytes in vec(any::<u8>(), 0..200), count in 0..4_u32) {
        let _ = Header::decode(&bytes);
        let _ = Announcement::decode(&bytes);
        if let Ok(batch) = decode(count, &bytes) {
            prop_assert_eq!(batch.len(), count as usize);
        }
    }

    #[test]
    fn changed_byte_is_an_error_or_another_record(at in 0..200_usize, change in 1..=255_u8) {
        let mut body = batch_of(&[record(), record()]).body;
        let at = at % body.len();
        body[at] ^= change;
        if let Ok(batch) = decode(2, &body) {
            prop_assert_eq!(batch.records().count(), 2);
            prop_assert!(batch.records().all(|record| record.payload.len() <= body.len()));
        }
    }
}
