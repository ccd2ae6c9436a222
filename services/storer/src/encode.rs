//! Records in the format of a kind's files.

use sekiwake_archive::{FileFormat, LineEncoder, OpenGroup, PacketEncoder};
use sekiwake_record::Record;

use crate::heads::SharedHeads;

/// Encodes the records of one kind.
#[derive(Clone, Debug)]
pub enum RecordEncoder {
    /// Lines.
    Lines(Box<LineEncoder>),
    /// Packets.
    Packets(PacketEncoder),
}

impl RecordEncoder {
    /// An encoder for files of this format, which begin with these heads if they are of packets.
    pub fn new(format: FileFormat, heads: Option<&SharedHeads>) -> RecordEncoder {
        match (format, heads) {
            (FileFormat::Lines(format), _) => RecordEncoder::Lines(Box::new(LineEncoder::new(format))),
            (FileFormat::Pcapng(_), Some(heads)) => RecordEncoder::Packets(heads.encoder()),
            // Readers find no key, and so no packets.
            (FileFormat::Pcapng(_), None) => RecordEncoder::Packets(PacketEncoder::new(0)),
        }
    }

    /// Appends a record.
    pub(crate) fn encode(&mut self, record: &Record<'_>, publisher: &str, out: &mut Vec<u8>, group: &mut OpenGroup) {
        match self {
            RecordEncoder::Lines(encoder) => encoder.encode(record, out),
            RecordEncoder::Packets(encoder) => encoder.encode(record, publisher, out, group),
        }
    }

    /// Completes what was appended, so that it can be written.
    pub(crate) fn seal(&self, out: &mut Vec<u8>, group: &mut OpenGroup) {
        if let RecordEncoder::Packets(encoder) = self {
            encoder.seal(out, group);
        }
    }
}
