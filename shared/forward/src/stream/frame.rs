//! Octet counting: how a message becomes a part of a stream, and what a queued batch gives to be sent.
//!
//! ```text
//! SYSLOG-FRAME = MSG-LEN SP SYSLOG-MSG        RFC 5425 §4.3, RFC 6587 §3.4.1
//! MSG-LEN      = decimal octets of SYSLOG-MSG, without leading zeros, at least 1
//! ```
//! Always octet counting, never a line feed at the end: payloads may hold line feeds and NULs and stay what they were.

use std::io::Write;

use crate::{
    queue::Queued,
    rewrite::{Rewriting, Rewritten},
};

/// What is sent of queued batches: their records for this destination, changed where it asks for that.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    rewriting: Option<Rewriting>,
    rewritten: Rewritten,
}

impl Messages {
    pub(crate) fn new(rewriting: Option<Rewriting>) -> Messages {
        Messages { rewriting, rewritten: Rewritten::default() }
    }

    /// Shows `heed` the payload of each message of a batch from the number `from` on, and when it was captured, as long as `heed`
    /// says `true`.
    pub(crate) fn each<B: AsRef<[u8]>>(
        &mut self,
        queued: &Queued<B>,
        from: usize,
        mut heed: impl FnMut(&[u8], u64) -> bool,
    ) {
        for record in queued.selected().skip(from) {
            self.rewritten.clear();
            if let Some(rewriting) = self.rewriting {
                self.rewritten.push(rewriting, &record);
            }
            if !heed(self.rewritten.payload(0, record.payload), record.captured_at_ns) {
                return;
            }
        }
    }
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
