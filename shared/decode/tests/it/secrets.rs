//! Communities and user names are in no row, whatever is wrong with a message.

use sekiwake_decode::Decoder;
use sekiwake_record::Format;

use crate::datagram::{EXPORTER, record};

/// An SNMPv2c message with the community "secret" and this PDU tag, without variable bindings.
fn message(pdu: u8) -> Vec<u8> {
    let pdu = [&[pdu, 11][..], &[2, 1, 9, 2, 1, 0, 2, 1, 0, 0x30, 0]].concat();
    let contents = [&[2, 1, 1, 4, 6][..], b"secret", &pdu].concat();
    [&[0x30, u8::try_from(contents.len()).unwrap()][..], &contents].concat()
}

#[test]
fn no_community_is_shown_of_requests_and_damaged_messages() {
    let formats = [Format::Unknown, Format::Snmp1Trap, Format::Snmp2cTrap, Format::Snmp3];
    let mut decoder = Decoder::new();
    let mut shown = 0;
    for pdu in [0xa0, 0xa2, 0xa4, 0xa6, 0xa7] {
        let whole = message(pdu);
        for position in 0..whole.len() {
            let mut flipped = whole.clone();
            // The first two elements say that it is SNMP.
            if position > 3 {
                flipped[position] ^= 0x40;
            }
            let cut = &whole[..position.max(5)];
            let long = [&[0x30, 0x82, 0, 200][..], &whole[2..]].concat();
            for (payload, format) in
                [&flipped, cut, &long].into_iter().flat_map(|payload| formats.map(|format| (payload, format)))
            {
                decoder.decode(None, &record(EXPORTER, format, payload), |row| {
                    shown += 1;
                    let text = format!("{} {row}", serde_json::to_string(row).unwrap());
                    for secret in ["secret", "736563", "637265"] {
                        assert!(!text.contains(secret), "{format:?} {payload:02x?}: {text}");
                    }
                });
            }
        }
    }
    assert!(shown > 1_000);
}
