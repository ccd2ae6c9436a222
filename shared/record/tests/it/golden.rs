//! The bytes on the wire, element by element. They were generated with Python's msgpack from the
//! description in the crate's documentation, so changing them changes the protocol.

use sekiwake_record::{Announcement, Header, Origin, Record, Topic, TopicPosition};

use crate::{batch_of, decode, header, record};

/// The bytes of hex digits, with a comment after `#` in each line.
fn bytes(explained: &str) -> Vec<u8> {
    let digits: String =
        explained.lines().flat_map(|line| line.split('#').next()).flat_map(str::split_whitespace).collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap()).collect()
}

const RECORD: &str = "
    9c                                      # array of 12
    cf 17979cfe3d85cd15                     # captured_at_ns: uint64 1700000000123456789
    c4 04 c6336407                          # source_ip: bin of 4, 198.51.100.7
    cd 0202                                 # source_port: uint16 514
    c4 10 20010db8000000000000000000000001  # destination_ip: bin of 16, 2001:db8::1
    cc a2                                   # destination_port: uint8 162
    01                                      # format: rfc3164
    03                                      # flags: reassembled, decapsulated
    c4 06 3c31333e6869                      # payload: bin of 6, <13>hi
    92 64 cd0ffe                            # vlans: 100, 4094
    cd 2e40                                 # dscp_ttl: uint16 46 << 8 | 64
    cd beef                                 # ip_id: uint16 48879
    01                                      # interface: 1
";

#[test]
fn record_has_these_bytes() {
    let expected = [bytes("dc 0001  # array16 of 1, always in this form"), bytes(RECORD)].concat();
    assert_eq!(batch_of(&[record()]).body, expected);
    assert_eq!(decode(1, &expected).unwrap().get(0), Some(record()));
}

/// The record as a version that does not know the appended elements writes it.
fn earlier_record() -> Vec<u8> {
    let mut earlier = bytes(RECORD);
    earlier.truncate(earlier.len() - 4);
    earlier[0] = 0x9a;
    earlier
}

#[test]
fn record_of_earlier_version_has_no_origin() {
    let expected = Record { origin: None, ..record() };
    assert_eq!(Record::decode(&earlier_record()), Ok(expected.clone()));
    let mut written = Vec::new();
    expected.encode(&mut written);
    assert_eq!(written, earlier_record(), "a record without an origin is that of the earlier version");
}

/// Earlier versions read ten elements, and skip those that are appended: a number or nil each.
#[test]
fn earlier_version_reads_the_same_ten_elements() {
    let no_ip_id = Record { origin: Some(Origin { ip_id: None, interface: 255 }), ..record() };
    let mut written = Vec::new();
    no_ip_id.encode(&mut written);
    let appended = bytes(
        "c0  # ip_id: nil
        cc ff                     # interface: uint8 255",
    );
    let earlier = earlier_record();
    assert_eq!(written, [&[0x9c], &earlier[1..], &appended].concat());
    assert_eq!(Record::decode(&written), Ok(no_ip_id));
    let whole = bytes(RECORD);
    assert_eq!(whole[1..earlier.len()], earlier[1..]);
}

#[test]
fn batch_of_two_has_these_bytes() {
    let expected = [bytes("dc 0002"), bytes(RECORD), bytes(RECORD)].concat();
    assert_eq!(batch_of(&[record(), record()]).body, expected);
    let batch = decode(2, &expected).unwrap();
    assert_eq!(batch.records().collect::<Vec<_>>(), [record(), record()]);
}

#[test]
fn header_has_these_bytes() {
    let expected = bytes(
        "97                          # array of 7
         01                          # version
         aa 726f757465722d746170     # stream_name: str of 10, router-tap
         cf 1122334455667788         # stream_epoch: uint64
         cd 03e8                     # first_sequence: uint16 1000
         02                          # count
         cf 17979cfe3d85cd15         # first_captured_at_ns
         cf 17979cfe3d85cd16         # last_captured_at_ns",
    );
    let mut frame = b"replaced".to_vec();
    header(2).encode(&mut frame);
    assert_eq!(frame, expected);
    assert_eq!(Header::decode(&expected), Ok(header(2)));
}

#[test]
fn announcement_has_these_bytes() {
    let expected = bytes(
        "96                               # array of 6
         01                               # version
         aa 726f757465722d746170          # stream_name: router-tap
         cf 1122334455667788              # stream_epoch
         c2                               # ended: false
         92                               # two positions
         93                               # array of 3
         a9 7379736c6f672f3030            # topic: syslog/00
         07                               # oldest_sequence
         cd 012c                          # next_sequence: 300
         93 ab 736e6d70747261702f3366     # snmptrap/3f
         00 01
         cf 17979cfe3d85cd15              # clock_ns",
    );
    let position = |name: &str, oldest_sequence, next_sequence| TopicPosition {
        topic: Topic::parse(name.as_bytes()).unwrap(),
        oldest_sequence,
        next_sequence,
    };
    let announcement = Announcement {
        stream_name: "router-tap".to_owned(),
        stream_epoch: 0x1122_3344_5566_7788,
        ended: false,
        positions: vec![position("syslog/00", 7, 300), position("snmptrap/3f", 0, 1)],
        clock_ns: Some(1_700_000_000_123_456_789),
    };
    let mut frame = b"replaced".to_vec();
    announcement.encode(&mut frame);
    assert_eq!(frame, expected);
    assert_eq!(Announcement::decode(&expected), Ok(announcement.clone()));
    // As an earlier version writes it.
    let mut earlier = expected;
    earlier.truncate(earlier.len() - 9);
    earlier[0] = 0x95;
    let announcement = Announcement { clock_ns: None, ..announcement };
    assert_eq!(Announcement::decode(&earlier), Ok(announcement.clone()));
    announcement.encode(&mut frame);
    assert_eq!(frame, earlier);
}
