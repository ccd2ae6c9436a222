//! Datagrams as Ethernet frames in one pcapng file, for other tools: those that send frames want
//! the Ethernet header.

use std::io::{self, Write};

use sekiwake_record::Record;

use super::{
    APPLICATION, COMMENT, END, INTERFACE, PACKET, RESOLUTION, SECTION_HEADER,
    encode::{Addresses, addresses_of, append_ip, block, ip_bytes, option, pad},
};

/// LINKTYPE_ETHERNET.
const LINKTYPE: u16 = 1;

/// Destination and source: addresses for documentation (RFC 7042 §2.1.2).
const MACS: [u8; 12] = [0, 0, 0x5e, 0, 0x53, 2, 0, 0, 0x5e, 0, 0x53, 1];

/// Writes datagrams as frames.
pub struct FrameWriter<W> {
    out: W,
    block: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    /// Writes the start of the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn new(mut out: W) -> io::Result<FrameWriter<W>> {
        let mut head = Vec::new();
        block(&mut head, SECTION_HEADER, |head| {
            head.extend_from_slice(&0x1a2b_3c4d_u32.to_le_bytes());
            head.extend_from_slice(&1_u16.to_le_bytes());
            head.extend_from_slice(&0_u16.to_le_bytes());
            // The length of the section is unknown.
            head.extend_from_slice(&u64::MAX.to_le_bytes());
            option(head, APPLICATION, b"sekiwake-storer export");
            option(head, END, b"");
        });
        block(&mut head, INTERFACE, |head| {
            head.extend_from_slice(&LINKTYPE.to_le_bytes());
            head.extend_from_slice(&0_u16.to_le_bytes());
            head.extend_from_slice(&0_u32.to_le_bytes());
            option(head, RESOLUTION, &[9]);
            option(head, END, b"");
        });
        out.write_all(&head)?;
        Ok(FrameWriter { out, block: head })
    }

    /// Writes a datagram.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&mut self, record: &Record<'_>, comment: Option<&str>) -> io::Result<()> {
        self.block.clear();
        block(&mut self.block, PACKET, |out| {
            let addresses = addresses_of(record);
            let length = MACS.len() + 2 + ip_bytes(&addresses, record);
            let at = record.captured_at_ns;
            for number in [0, (at >> 32) as u32, at as u32, length as u32, length as u32] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.extend_from_slice(&MACS);
            let ether_type: u16 = if matches!(addresses, Addresses::V4(..)) { 0x0800 } else { 0x86dd };
            out.extend_from_slice(&ether_type.to_be_bytes());
            append_ip(record, &addresses, out);
            pad(out, length);
            if let Some(comment) = comment {
                option(out, COMMENT, comment.as_bytes());
                option(out, END, b"");
            }
        });
        self.out.write_all(&self.block)
    }

    /// What was written to.
    pub fn into_inner(self) -> W {
        self.out
    }
}
