//! A stored message as a line of text.
//!
//! ```text
//! JSON   {"captured_at":"2026-01-02T03:04:05.678901234Z","source":"198.51.100.7","source_port":514,"destination":"203.0.113.1",
//!         "destination_port":514,"facility":"local7","severity":"notice","format":"rfc3164","payload":"<189>..."}
//! text   2026-01-02T03:04:05.678901234Z 198.51.100.7:514 203.0.113.1:514 local7.notice rfc3164 <189>...
//! ```
//! The time is first and of fixed width, so that it is found without parsing the line. A payload
//! that is not UTF-8 is `payload_base64` in JSON. Facility and severity are `null` (`-` in text)
//! if there is no PRI. Both formats escape everything that could end a line or control a terminal:
//! C0, DEL, C1, and Unicode's line and paragraph separators.

mod encode;
mod escape;
mod message;

pub use encode::LineEncoder;
pub use message::{MAX_LINE_BYTES, Message, captured_at_of};

#[cfg(test)]
mod tests;
