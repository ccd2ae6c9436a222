//! The frame of a message, and the messages of a queued batch.
//!
//! ```text
//! octet-counting  SYSLOG-FRAME = MSG-LEN SP SYSLOG-MSG     RFC 5425 §4.3, RFC 6587 §3.4.1
//!                 MSG-LEN = decimal octets of SYSLOG-MSG, without leading zeros, at least 1
//! newline         SYSLOG-FRAME = SYSLOG-MSG LF             RFC 6587 §3.4.2
//!                 without the line feeds at its end; others in it are spaces
//! ```
//! Octet counting leaves payloads unmodified, which may contain line feeds and NULs. Receivers that
//! read lines need the other one.

use std::io::Write;

/// How messages are told apart in a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Framing {
    /// Each message with its length before it.
    #[default]
    OctetCounting,
    /// Each message as a line.
    Newline,
}

use crate::{
    queue::Queued,
    rewrite::{Rewriting, Rewritten},
};

/// Reads the messages of queued batches: their records for this destination, rewritten if it asks
/// for that.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    rewriting: Option<Rewriting>,
    rewritten: Rewritten,
}

impl Messages {
    pub(crate) fn new(rewriting: Option<Rewriting>) -> Messages {
        Messages { rewriting, rewritten: Rewritten::default() }
    }

    /// Calls `visit` with the payload and capture time of each message of a batch from the number
    /// `from` on, as long as it returns `true`.
    pub(crate) fn each<B: AsRef<[u8]>>(
        &mut self,
        queued: &Queued<B>,
        from: usize,
        mut visit: impl FnMut(&[u8], u64) -> bool,
    ) {
        for record in queued.selected().skip(from) {
            self.rewritten.clear();
            if let Some(rewriting) = self.rewriting {
                self.rewritten.push(rewriting, &record);
            }
            if !visit(self.rewritten.payload(0, record.payload), record.captured_at_ns) {
                return;
            }
        }
    }
}

impl Framing {
    /// Appends the frame of a payload. An empty one has no frame: `false`.
    #[must_use]
    pub(crate) fn frame(self, payload: &[u8], out: &mut Vec<u8>) -> bool {
        let payload = self.framed(payload);
        if payload.is_empty() {
            return false;
        }
        match self {
            Framing::OctetCounting => {
                // Writing to a vector never fails.
                let _ = write!(out, "{} ", payload.len());
                out.extend_from_slice(payload);
            }
            Framing::Newline => {
                out.extend(payload.iter().map(|&byte| if byte == b'\n' { b' ' } else { byte }));
                out.push(b'\n');
            }
        }
        true
    }

    /// The part of a payload that has a frame.
    pub(crate) fn framed(self, payload: &[u8]) -> &[u8] {
        match self {
            Framing::OctetCounting => payload,
            Framing::Newline => {
                let end = payload.iter().rposition(|&byte| byte != b'\n').map_or(0, |last| last + 1);
                &payload[..end]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(framing: Framing, payload: &[u8]) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        framing.frame(payload, &mut out).then_some(out)
    }

    #[test]
    fn frame_is_length_in_octets_space_and_payload() {
        let framed = |payload: &[u8]| framed(Framing::OctetCounting, payload);
        assert_eq!(framed(b"<13>a\nb\0c\n").unwrap(), b"10 <13>a\nb\0c\n");
        assert_eq!(framed("ü".as_bytes()).unwrap(), "2 ü".as_bytes(), "octets, not characters");
        assert_eq!(framed(&[b'x'; 65_507]).unwrap().len(), "65507 ".len() + 65_507);
        assert_eq!(framed(b""), None, "MSG-LEN begins with a non-zero digit");
    }

    #[test]
    fn line_has_one_line_feed_at_its_end() {
        let framed = |payload: &[u8]| framed(Framing::Newline, payload);
        assert_eq!(framed(b"<13>a").unwrap(), b"<13>a\n");
        assert_eq!(framed(b"<13>a\n\n").unwrap(), b"<13>a\n");
        assert_eq!(framed(b"<13>a\nb\r\n\0c\r\n").unwrap(), b"<13>a b\r \0c\r\n");
        assert_eq!((framed(b""), framed(b"\n\n")), (None, None));
    }
}
