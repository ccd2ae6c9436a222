//! Octet counting: how a message becomes a part of a stream, and what a queued batch gives to be sent.
//!
//! ```text
//! SYSLOG-FRAME = MSG-LEN SP SYSLOG-MSG        RFC 5425 §4.3, RFC 6587 §3.4.1
//! MSG-LEN      = decimal octets of SYSLOG-MSG, without leading zeros, at least 1
//! ```
//! Always octet counting, never a line feed at the end: payloads may hold line feeds and NULs and stay what they were.

use std::io::Write;

use crate::queue::Queued;

/// What is sent of one record.
pub(crate) struct Message<'a> {
    pub(crate) payload: &'a [u8],
    pub(crate) captured_at_ns: u64,
}

/// How many messages a queued batch has.
pub(crate) fn count<B: AsRef<[u8]>>(queued: &Queued<B>) -> usize {
    queued.records()
}

/// The message at this place of a queued batch.
pub(crate) fn message<B: AsRef<[u8]>>(queued: &Queued<B>, index: usize) -> Option<Message<'_>> {
    let record = queued.parcel.batch.get(index)?;
    Some(Message { payload: record.payload, captured_at_ns: record.captured_at_ns })
}

/// Appends the frame of a payload. An empty one has no frame: `false`.
#[must_use]
pub(crate) fn frame(payload: &[u8], out: &mut Vec<u8>) -> bool {
    if payload.is_empty() {
        return false;
    }
    // A vector takes everything.
    let _ = write!(out, "{} ", payload.len());
    out.extend_from_slice(payload);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(payload: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        frame(payload, &mut out).then_some(out)
    }

    #[test]
    fn a_frame_is_the_length_in_octets_a_space_and_the_payload_as_it_is() {
        assert_eq!(framed(b"<13>a\nb\0c\n").unwrap(), b"10 <13>a\nb\0c\n");
        assert_eq!(framed("ü".as_bytes()).unwrap(), "2 ü".as_bytes(), "octets, not characters");
        assert_eq!(framed(&[b'x'; 65_507]).unwrap().len(), "65507 ".len() + 65_507);
        assert_eq!(framed(b""), None, "MSG-LEN begins with a non-zero digit");
    }
}
