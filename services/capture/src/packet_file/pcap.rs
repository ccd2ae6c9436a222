//! The pcap format (draft-ietf-opsawg-pcap).
//!
//! ```text
//! header  magic 4 | major 2 | minor 2 | reserved 8 | snapshot length 4 | FCS, link type 4
//! record  seconds 4 | fraction 4 | captured length 4 | original length 4 | [modified: 8] | packet
//! ```

use std::io::Read;

use super::{ByteOrder, FilePacket, MAX_PACKET_BYTES, PacketFileError, Source};

const MICROSECONDS: u32 = 0xa1b2_c3d4;
const NANOSECONDS: u32 = 0xa1b2_3c4d;
/// The format of Kuznetzov's patched libpcap of the 1990s: 8 more bytes per record.
const MODIFIED: u32 = 0xa1b2_cd34;

const MAJOR_VERSION: u16 = 2;

/// The format of a pcap file's records, from its header.
pub(super) struct PcapHeader {
    order: ByteOrder,
    minor: u16,
    fraction_ns: u64,
    /// Bytes between a record's header and its packet.
    extra_bytes: u32,
    link_number: [u16; 1],
}

impl PcapHeader {
    pub(super) fn read<R: Read>(magic: [u8; 4], source: &mut Source<R>) -> Result<PcapHeader, PacketFileError> {
        let known = |number| matches!(number, MICROSECONDS | NANOSECONDS | MODIFIED);
        let order = [ByteOrder::Little, ByteOrder::Big]
            .into_iter()
            .find(|order| known(order.u32(magic)))
            .ok_or(PacketFileError::UnknownFormat)?;
        let magic = order.u32(magic);
        let [major_0, major_1, minor_0, minor_1, _, _, _, _, _, _, _, _, _, _, _, _, link @ ..] =
            source.array::<20>()?;
        let major = order.u16([major_0, major_1]);
        let minor = order.u16([minor_0, minor_1]);
        if major != MAJOR_VERSION {
            return Err(PacketFileError::Version { format: "pcap", major, minor });
        }
        Ok(PcapHeader {
            order,
            minor,
            fraction_ns: if magic == NANOSECONDS { 1 } else { 1000 },
            extra_bytes: if magic == MODIFIED { 8 } else { 0 },
            // The upper half describes frame check sequences. They follow the packet and are
            // ignored like other trailing bytes.
            link_number: [order.u32(link) as u16],
        })
    }

    pub(super) fn next_packet<'a, R: Read>(
        &self,
        source: &'a mut Source<R>,
    ) -> Result<Option<FilePacket<'a>>, PacketFileError> {
        let Some(record) = source.array_or_end::<16>()? else {
            return Ok(None);
        };
        let field = |index: usize| self.order.u32_at(&record, index * 4).unwrap_or_default();
        let mut captured_length = field(2);
        let mut original_length = field(3);
        // Version 2.3 swapped the two lengths, and some of its writers still use the old order.
        if self.minor < 3 || (self.minor == 3 && captured_length > original_length) {
            (captured_length, original_length) = (original_length, captured_length);
        }
        if captured_length > MAX_PACKET_BYTES {
            return Err(PacketFileError::Damaged("packet longer than 262144 bytes"));
        }
        let seconds_ns = u64::from(field(0)) * 1_000_000_000;
        let captured_at_ns = seconds_ns + u64::from(field(1)) * self.fraction_ns;
        let data = &source.bytes(self.extra_bytes + captured_length)?[self.extra_bytes as usize..];
        Ok(Some(FilePacket { captured_at_ns, link_number: self.link_number[0], data, original_length }))
    }

    pub(super) fn link_numbers(&self) -> &[u16] {
        &self.link_number
    }
}
