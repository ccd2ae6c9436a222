//! What a reader of stored files finds.

use sekiwake_record::WallTime;

use crate::{FileFormat, LineEncoder, LineFormat, Message, captured_at_of, pcapng};

/// A datagram as it is stored.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    origin: Origin,
    format: FileFormat,
    bytes: &'a [u8],
}

/// Why something was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// It is selected.
    Selected,
    /// It holds templates that were known when a file of flows was begun. It was captured before,
    /// and is stored as data elsewhere: it must not be counted or sent as data.
    Template,
    /// It is in a file of flows before the selection, and may hold templates of what is selected.
    Earlier,
}

impl<'a> Found<'a> {
    /// A datagram in a file of this format: a line without its line feed, or a packet.
    pub(crate) fn new(origin: Origin, format: FileFormat, bytes: &'a [u8]) -> Found<'a> {
        Found { origin, format, bytes }
    }

    /// A line without its line feed.
    pub fn line(format: LineFormat, line: &'a [u8]) -> Found<'a> {
        Found::new(Origin::Selected, format.into(), line)
    }

    /// Why it was found.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// When it was captured; `None` if it is damaged. The rest is not parsed.
    pub fn captured_at(&self) -> Option<WallTime> {
        match self.format {
            FileFormat::Lines(format) => captured_at_of(format, self.bytes),
            FileFormat::Pcapng(_) => pcapng::captured_at_of(self.bytes),
        }
    }

    /// The datagram; `None` if it is damaged, which what a search gives is not.
    pub fn message(&self) -> Option<Message<'a>> {
        match self.format {
            FileFormat::Lines(format) => Message::parse(format, self.bytes),
            FileFormat::Pcapng(kind) => pcapng::parse(kind, self.bytes),
        }
    }

    /// Appends it as a JSON line with its line feed.
    pub fn write_json(&self, out: &mut Vec<u8>) {
        if let FileFormat::Lines(LineFormat::Json) = self.format {
            out.extend_from_slice(self.bytes);
            out.push(b'\n');
        } else if let Some(message) = self.message() {
            LineEncoder::new(LineFormat::Json).encode_message(&message, out);
        }
    }
}
