//! Readers and writers of different versions: a later writer appends elements to the arrays, and
//! this reader skips them. An array with fewer elements than version 1 has is an error.

use rmp::encode as msgpack;
use sekiwake_record::{Announcement, DecodeError, Format, Header, Topic};

use crate::{decode, header, record};

/// One element of every type that a later version might append.
fn write_unknown_elements(out: &mut Vec<u8>) -> u32 {
    msgpack::write_nil(out).unwrap();
    msgpack::write_bool(out, true).unwrap();
    msgpack::write_sint(out, -5).unwrap();
    msgpack::write_f64(out, 0.5).unwrap();
    msgpack::write_str(out, "text").unwrap();
    msgpack::write_bin(out, &[0xff; 300]).unwrap();
    msgpack::write_array_len(out, 2).unwrap();
    msgpack::write_array_len(out, 0).unwrap();
    msgpack::write_uint(out, 7).unwrap();
    msgpack::write_map_len(out, 1).unwrap();
    msgpack::write_str(out, "key").unwrap();
    msgpack::write_str(out, "value").unwrap();
    msgpack::write_ext_meta(out, 4, 9).unwrap();
    out.extend([1, 2, 3, 4]);
    9
}

/// A header with appended elements: `more` writes them, and returns their number.
fn header_with(version: u64, more: impl Fn(&mut Vec<u8>) -> u32) -> Vec<u8> {
    let mut tail = Vec::new();
    let appended = more(&mut tail);
    let mut out = Vec::new();
    msgpack::write_array_len(&mut out, 7 + appended).unwrap();
    msgpack::write_uint(&mut out, version).unwrap();
    msgpack::write_str(&mut out, header(2).stream_name).unwrap();
    for number in [header(2).stream_epoch, 1000, 2, header(2).first_captured_at_ns, header(2).last_captured_at_ns] {
        msgpack::write_uint(&mut out, number).unwrap();
    }
    [out, tail].concat()
}

/// The sample record with this format, ten VLAN identifiers if `deep`, and appended elements.
fn write_later_record(out: &mut Vec<u8>, format: u64, deep: bool) {
    let mut tail = Vec::new();
    let appended = write_unknown_elements(&mut tail);
    let it = record();
    msgpack::write_array_len(out, 12 + appended).unwrap();
    msgpack::write_uint(out, it.captured_at_ns).unwrap();
    msgpack::write_bin(out, &[198, 51, 100, 7]).unwrap();
    msgpack::write_uint(out, 514).unwrap();
    msgpack::write_bin(out, &"2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap().octets()).unwrap();
    msgpack::write_uint(out, 162).unwrap();
    msgpack::write_uint(out, format).unwrap();
    msgpack::write_uint(out, 3).unwrap();
    msgpack::write_bin(out, it.payload).unwrap();
    let vlans: &[u64] = if deep { &[100, 4094, 3, 4, 5, 6, 7, 8, 9, 10] } else { &[100, 4094] };
    msgpack::write_array_len(out, vlans.len() as u32).unwrap();
    for &vlan in vlans {
        msgpack::write_uint(out, vlan).unwrap();
    }
    msgpack::write_uint(out, u64::from(it.dscp_ttl)).unwrap();
    msgpack::write_uint(out, 0xbeef).unwrap();
    msgpack::write_uint(out, 1).unwrap();
    out.extend(tail);
}

#[test]
fn elements_appended_to_a_header_are_skipped() {
    assert_eq!(Header::decode(&header_with(1, write_unknown_elements)), Ok(header(2)));
}

#[test]
fn elements_appended_to_a_record_are_skipped() {
    let mut body = Vec::new();
    msgpack::write_array_len(&mut body, 2).unwrap();
    write_later_record(&mut body, 1, false);
    write_later_record(&mut body, 1, false);
    let batch = decode(2, &body).unwrap();
    assert_eq!(batch.records().collect::<Vec<_>>(), [record(), record()]);
}

#[test]
fn format_of_a_later_version_is_unknown() {
    for format in [11, 200, u64::MAX] {
        let mut body = Vec::new();
        msgpack::write_array_len(&mut body, 1).unwrap();
        write_later_record(&mut body, format, false);
        assert_eq!(decode(1, &body).unwrap().get(0).unwrap().format, Format::Unknown);
    }
}

#[test]
fn vlans_beyond_the_eighth_are_skipped() {
    let mut body = Vec::new();
    msgpack::write_array_len(&mut body, 1).unwrap();
    write_later_record(&mut body, 1, true);
    assert_eq!(decode(1, &body).unwrap().get(0).unwrap().vlans.as_slice(), [100, 4094, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn unknown_topics_and_elements_of_announcements_are_skipped() {
    let mut frame = Vec::new();
    let mut tail = Vec::new();
    let appended = write_unknown_elements(&mut tail);
    msgpack::write_array_len(&mut frame, 6 + appended).unwrap();
    msgpack::write_uint(&mut frame, 1).unwrap();
    msgpack::write_str(&mut frame, "router-tap").unwrap();
    msgpack::write_uint(&mut frame, 9).unwrap();
    msgpack::write_bool(&mut frame, true).unwrap();
    msgpack::write_array_len(&mut frame, 3).unwrap();
    for topic in ["metrics/00", "xflow/0a", "syslog/40"] {
        let mut more = Vec::new();
        let count = write_unknown_elements(&mut more);
        msgpack::write_array_len(&mut frame, 3 + count).unwrap();
        msgpack::write_str(&mut frame, topic).unwrap();
        msgpack::write_uint(&mut frame, 5).unwrap();
        msgpack::write_uint(&mut frame, 6).unwrap();
        frame.extend(more);
    }
    msgpack::write_uint(&mut frame, 8).unwrap();
    frame.extend(tail);
    let announcement = Announcement::decode(&frame).unwrap();
    assert!(announcement.ended);
    assert_eq!(announcement.clock_ns, Some(8));
    assert_eq!(announcement.positions.len(), 1);
    assert_eq!(announcement.positions[0].topic, Topic::parse(b"xflow/0a").unwrap());
}

#[test]
fn header_shorter_than_version_one_is_rejected() {
    let whole = header_with(1, |_| 0);
    for elements in 0..7 {
        let mut shorter = whole.clone();
        shorter[0] = 0x90 | elements;
        assert!(Header::decode(&shorter).is_err(), "{elements} elements");
    }
}

#[test]
fn other_protocol_version_is_reported_whatever_follows() {
    for version in [0, 2, u64::MAX] {
        assert_eq!(Header::decode(&header_with(version, write_unknown_elements)), Err(DecodeError::Version(version)));
    }
    assert_eq!(Header::decode(&[0x92, 2, 0x90]), Err(DecodeError::Version(2)));
}

#[test]
fn other_announcement_version_is_reported() {
    assert_eq!(Announcement::decode(&[0x92, 2, 0x90]), Err(DecodeError::Version(2)));
}

#[test]
fn body_may_have_any_form_of_array_length() {
    let ours = crate::batch_of(&[record()]).body;
    for length in [&[0x91][..], &[0xdc, 0, 1], &[0xdd, 0, 0, 0, 1]] {
        let body = [length, &ours[3..]].concat();
        assert_eq!(decode(1, &body).unwrap().get(0), Some(record()));
    }
}

/// One element in each form of msgpack. The record after it is only readable if exactly the bytes
/// of the element were skipped.
#[test]
fn appended_element_of_any_form_is_skipped_exactly() {
    let forms: &[(&[u8], usize)] = &[
        (&[0x7f], 0),
        (&[0x81, 1, 2], 0),
        (&[0x92, 1, 2], 0),
        (&[0xa3], 3),
        (&[0xc0], 0),
        (&[0xc2], 0),
        (&[0xc3], 0),
        (&[0xc4, 5], 5),
        (&[0xc5, 1, 0], 256),
        (&[0xc6, 0, 1, 0, 0], 65_536),
        (&[0xc7, 5, 1], 5),
        (&[0xc8, 1, 0, 1], 256),
        (&[0xc9, 0, 1, 0, 0, 1], 65_536),
        (&[0xca], 4),
        (&[0xcb], 8),
        (&[0xcc], 1),
        (&[0xcd], 2),
        (&[0xce], 4),
        (&[0xcf], 8),
        (&[0xd0], 1),
        (&[0xd1], 2),
        (&[0xd2], 4),
        (&[0xd3], 8),
        (&[0xd4, 1], 1),
        (&[0xd5, 1], 2),
        (&[0xd6, 1], 4),
        (&[0xd7, 1], 8),
        (&[0xd8, 1], 16),
        (&[0xd9, 5], 5),
        (&[0xda, 1, 0], 256),
        (&[0xdb, 0, 1, 0, 0], 65_536),
        (&[0xdc, 1, 0], 256),
        (&[0xdd, 0, 1, 0, 0], 65_536),
        (&[0xde, 1, 0], 512),
        (&[0xdf, 0, 1, 0, 0], 131_072),
        (&[0xff], 0),
    ];
    let plain = &crate::batch_of(&[record()]).body[3..];
    for (head, contents) in forms {
        let body = [&[0x92, 0x9d], &plain[1..], head, &vec![0; *contents], plain].concat();
        let batch = decode(2, &body).unwrap_or_else(|error| panic!("{head:02x?}: {error}"));
        assert_eq!(batch.records().collect::<Vec<_>>(), [record(), record()], "{head:02x?}");
    }
}
