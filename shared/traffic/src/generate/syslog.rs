//! Syslog messages with fields of fixed width.
//!
//! ```text
//! <PRI>Nov 23 03:38:00 skw-0000002a sender: source=0000002a sequence=000000000007 total=000000001000 words words …
//! <PRI>1 2026-11-23T03:38:00.123456Z skw-0000002a sender - - [sender@32473 source="0000002a" sequence="000000000007" total="000000001000"] words …
//! ```
//!
//! Facility local0 to local7, all severities: PRI 128 to 191. 32473 is the enterprise number for
//! examples (RFC 5612).

use super::Request;
use crate::{
    MAX_PAYLOAD_BYTES,
    mix::{below, mix_all},
};

/// Hexadecimal digits of a source.
pub(crate) const SOURCE_DIGITS: usize = 8;
/// Decimal digits of a sequence.
pub(crate) const SEQUENCE_DIGITS: usize = 12;

const WORDS: [&str; 16] = [
    "interface",
    "link",
    "neighbor",
    "session",
    "denied",
    "accepted",
    "GigabitEthernet0/1",
    "changed",
    "state",
    "to",
    "up",
    "down",
    "from",
    "198.51.100.7",
    "port",
    "timeout",
];

/// Range of offsets at which a message's text starts in the prepared text.
const WINDOW_BYTES: usize = 4096;

#[derive(Debug)]
pub(super) struct Maker {
    header: Vec<u8>,
    stamp: Stamp,
    stamp_offset: usize,
    source_offsets: [usize; 2],
    sequence_offset: usize,
    text: Vec<u8>,
}

#[derive(Debug)]
enum Stamp {
    Bsd,
    Rfc5424,
}

impl Maker {
    pub(super) fn rfc3164(seed: u64, total: u64) -> Maker {
        let header = format!(
            "<000>Mmm dd hh:mm:ss skw-00000000 sender: source=00000000 sequence=000000000000 total={total:012} "
        );
        Maker::new(header, Stamp::Bsd, 5, seed)
    }

    pub(super) fn rfc5424(seed: u64, total: u64) -> Maker {
        let header = format!(
            "<000>1 yyyy-mm-ddThh:mm:ss.uuuuuuZ skw-00000000 sender - - \
             [sender@32473 source=\"00000000\" sequence=\"000000000000\" total=\"{total:012}\"] "
        );
        Maker::new(header, Stamp::Rfc5424, 7, seed)
    }

    fn new(header: String, stamp: Stamp, stamp_offset: usize, seed: u64) -> Maker {
        let digits_behind =
            |name: &str| header.find(name).map_or(0, |start| header[start..].find('0').unwrap_or(0) + start);
        let source_offsets = [digits_behind("skw-"), digits_behind("source=")];
        let sequence_offset = digits_behind("sequence=");
        let mut text = Vec::with_capacity(MAX_PAYLOAD_BYTES + WINDOW_BYTES + 32);
        for number in 0.. {
            if text.len() >= MAX_PAYLOAD_BYTES + WINDOW_BYTES {
                break;
            }
            let word = below(mix_all(&[seed, number]), WORDS.len() as u64) as usize;
            text.extend_from_slice(WORDS[word].as_bytes());
            text.push(b' ');
        }
        Maker { header: header.into_bytes(), stamp, stamp_offset, source_offsets, sequence_offset, text }
    }

    pub(super) fn write(&self, request: &Request<'_>, variety: u64, out: &mut Vec<u8>) -> u64 {
        let start = out.len();
        out.extend_from_slice(&self.header);
        let text_length = request.size.min(MAX_PAYLOAD_BYTES).saturating_sub(self.header.len());
        let text_start = below(variety, WINDOW_BYTES as u64) as usize;
        out.extend_from_slice(&self.text[text_start..text_start + text_length]);
        let message = &mut out[start..];
        put_decimal(&mut message[1..4], 128 + (variety & 63));
        let stamp: &[u8] = match self.stamp {
            Stamp::Bsd => &request.moment.bsd,
            Stamp::Rfc5424 => &request.moment.rfc5424,
        };
        message[self.stamp_offset..self.stamp_offset + stamp.len()].copy_from_slice(stamp);
        for offset in self.source_offsets {
            put_hexadecimal(&mut message[offset..offset + SOURCE_DIGITS], request.source.index);
        }
        let sequence = &mut message[self.sequence_offset..self.sequence_offset + SEQUENCE_DIGITS];
        put_decimal(sequence, request.cursor.datagrams);
        1
    }
}

fn put_decimal(field: &mut [u8], mut value: u64) {
    for digit in field.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn put_hexadecimal(field: &mut [u8], mut value: u32) {
    for digit in field.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 15) as usize];
        value >>= 4;
    }
}
