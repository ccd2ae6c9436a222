//! The pcapng format (draft-ietf-opsawg-pcapng).
//!
//! ```text
//! block      type 4 | length 4 | body | length 4
//!
//! section    byte-order magic 4 | major 2 | minor 2 | section length 8 | options
//! interface  link type 2 | reserved 2 | snapshot length 4 | options
//! enhanced   interface 4 | time 4 + 4 | captured length 4 | original length 4 | packet | options
//! simple     original length 4 | packet
//! obsolete   interface 2 | drops 2 | time 4 + 4 | captured length 4 | original length 4 | packet |
//!            options
//! option     code 2 | length 2 | value, padded to 4
//! ```

use std::io::Read;

use super::{ByteOrder, FilePacket, MAX_BLOCK_BYTES, PacketFileError, Source};

/// The type of a section header block, the same in both byte orders.
pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;

const INTERFACE: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

/// Type and length before the body, and the length after it.
const BLOCK_OVERHEAD: u32 = 12;

const MAJOR_VERSION: u16 = 1;

/// The most interfaces per section, to bound memory; far more than any host has.
const MAX_INTERFACES: usize = 65_536;

/// The byte order and the interfaces of a section, from its blocks so far.
pub(super) struct Section {
    order: ByteOrder,
    interfaces: Vec<Interface>,
    /// Of all interfaces of all sections, each once.
    link_numbers: Vec<u16>,
}

#[derive(Clone, Copy)]
struct Interface {
    link_number: u16,
    snapshot_length: u32,
    /// Resolution of its times.
    ticks_per_second: u128,
    /// To be added to its times.
    offset_seconds: i64,
}

impl Section {
    /// Reads a section header whose block type has been read.
    pub(super) fn read<R: Read>(source: &mut Source<R>) -> Result<Section, PacketFileError> {
        let mut section = Section { order: ByteOrder::Little, interfaces: Vec::new(), link_numbers: Vec::new() };
        section.begin(source)?;
        Ok(section)
    }

    pub(super) fn link_numbers(&self) -> &[u16] {
        &self.link_numbers
    }

    pub(super) fn next_packet<'a, R: Read>(
        &mut self,
        source: &'a mut Source<R>,
    ) -> Result<Option<FilePacket<'a>>, PacketFileError> {
        let packet = loop {
            let Some(block_type) = source.array_or_end()? else {
                return Ok(None);
            };
            let block_type = self.order.u32(block_type);
            if block_type == SECTION_HEADER {
                self.begin(source)?;
                continue;
            }
            let length = self.order.u32(source.array()?);
            let body = self.body(source, length, 8)?;
            match block_type {
                INTERFACE => self.interface(body)?,
                ENHANCED_PACKET | SIMPLE_PACKET | OBSOLETE_PACKET => break self.packet(block_type, body)?,
                _ => {}
            }
        };
        Ok(Some(FilePacket {
            captured_at_ns: packet.captured_at_ns,
            link_number: packet.link_number,
            data: &source.buffer[packet.start..packet.start + packet.captured_length],
            original_length: packet.original_length,
        }))
    }

    fn begin<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), PacketFileError> {
        let [length_0, length_1, length_2, length_3, magic @ ..] = source.array::<8>()?;
        self.order = [ByteOrder::Little, ByteOrder::Big]
            .into_iter()
            .find(|order| order.u32(magic) == BYTE_ORDER_MAGIC)
            .ok_or(PacketFileError::Damaged("section without a byte order"))?;
        self.interfaces.clear();
        let length = self.order.u32([length_0, length_1, length_2, length_3]);
        let order = self.order;
        let body = self.body(source, length, 12)?;
        let version = order.u16_at(body, 0).zip(order.u16_at(body, 2));
        match version.ok_or(PacketFileError::Damaged("section header without a version"))? {
            (MAJOR_VERSION, _) => Ok(()),
            (major, minor) => Err(PacketFileError::Version { format: "pcapng", major, minor }),
        }
    }

    /// Reads the rest of a block of which `consumed` bytes were read, and returns it without the
    /// second length.
    fn body<'a, R: Read>(
        &self,
        source: &'a mut Source<R>,
        length: u32,
        consumed: u32,
    ) -> Result<&'a [u8], PacketFileError> {
        // The length must be a multiple of 4, but some writers do not count the padding.
        let padded = length.checked_next_multiple_of(4).unwrap_or(u32::MAX);
        if !(BLOCK_OVERHEAD.max(consumed + 4)..=MAX_BLOCK_BYTES).contains(&padded) {
            return Err(PacketFileError::Damaged("block of an impossible length"));
        }
        let order = self.order;
        let rest = source.bytes(padded - consumed)?;
        match rest.split_last_chunk() {
            Some((body, &again)) if order.u32(again) == length => Ok(body),
            _ => Err(PacketFileError::Damaged("block with two different lengths")),
        }
    }

    fn interface(&mut self, body: &[u8]) -> Result<(), PacketFileError> {
        let fields = self.order.u16_at(body, 0).zip(self.order.u32_at(body, 4));
        let (link_number, snapshot_length) = fields.ok_or(PacketFileError::Damaged("interface block too short"))?;
        if self.interfaces.len() == MAX_INTERFACES {
            return Err(PacketFileError::Damaged("more than 65536 interfaces"));
        }
        let mut interface = Interface { link_number, snapshot_length, ticks_per_second: 1_000_000, offset_seconds: 0 };
        interface.read_options(self.order, body.get(8..).unwrap_or_default());
        self.interfaces.push(interface);
        if !self.link_numbers.contains(&link_number) {
            self.link_numbers.push(link_number);
        }
        Ok(())
    }

    /// Decodes the fields of a packet block. The packet itself stays in the body.
    fn packet(&self, block_type: u32, body: &[u8]) -> Result<PacketPlace, PacketFileError> {
        const SHORT: PacketFileError = PacketFileError::Damaged("packet block too short");
        let u32_at = |offset| self.order.u32_at(body, offset).ok_or(SHORT);
        let number = match block_type {
            SIMPLE_PACKET => 0,
            OBSOLETE_PACKET => u32::from(self.order.u16_at(body, 0).ok_or(SHORT)?),
            _ => u32_at(0)?,
        };
        let interface = self
            .interfaces
            .get(number as usize)
            .ok_or(PacketFileError::Damaged("packet of an interface without a description"))?;
        let (start, captured_at_ns, captured_length, original_length) = if block_type == SIMPLE_PACKET {
            let original_length = u32_at(0)?;
            let limit = if interface.snapshot_length == 0 { u32::MAX } else { interface.snapshot_length };
            (4, 0, original_length.min(limit), original_length)
        } else {
            let ticks = u64::from(u32_at(4)?) << 32 | u64::from(u32_at(8)?);
            (20, interface.nanoseconds(ticks), u32_at(12)?, u32_at(16)?)
        };
        let captured_length = captured_length as usize;
        if body.len() - start < captured_length {
            return Err(PacketFileError::Damaged("packet longer than its block"));
        }
        Ok(PacketPlace { start, captured_length, captured_at_ns, original_length, link_number: interface.link_number })
    }
}

/// The position of a packet in the body of its block, and its fields.
struct PacketPlace {
    start: usize,
    captured_length: usize,
    captured_at_ns: u64,
    original_length: u32,
    link_number: u16,
}

impl Interface {
    fn read_options(&mut self, order: ByteOrder, mut options: &[u8]) {
        const TIME_RESOLUTION: u16 = 9;
        const TIME_OFFSET: u16 = 14;
        while let Some((code, length)) = order.u16_at(options, 0).zip(order.u16_at(options, 2)) {
            let length = usize::from(length);
            let Some(value) = options.get(4..4 + length) else {
                return;
            };
            match (code, value) {
                (TIME_RESOLUTION, &[resolution]) => {
                    let exponent = u32::from(resolution & 0x7f);
                    let base: u128 = if resolution & 0x80 == 0 { 10 } else { 2 };
                    self.ticks_per_second = base.saturating_pow(exponent);
                }
                (TIME_OFFSET, value) => {
                    self.offset_seconds = order.u64_at(value, 0).unwrap_or_default().cast_signed();
                }
                _ => {}
            }
            options = options.get(4 + length.next_multiple_of(4)..).unwrap_or_default();
        }
    }

    /// The time of a tick count, nanoseconds since 1970-01-01T00:00:00Z, saturating at 0 and at the
    /// largest 64-bit number.
    fn nanoseconds(&self, ticks: u64) -> u64 {
        let since_offset = u128::from(ticks) * 1_000_000_000 / self.ticks_per_second;
        let since_offset = i128::try_from(since_offset).unwrap_or(i128::MAX);
        let nanoseconds = since_offset.saturating_add(i128::from(self.offset_seconds) * 1_000_000_000);
        u64::try_from(nanoseconds.max(0)).unwrap_or(u64::MAX)
    }
}
