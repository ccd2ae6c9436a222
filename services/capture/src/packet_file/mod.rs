//! Reads savefiles: pcap and pcapng, in either byte order.
//!
//! libpcap reads them too, but refuses what is in daily use elsewhere: a pcapng file whose interfaces have different snapshot
//! lengths or link types, and it cuts packets that are longer than a pcap file's header admits.
//!
//! A file is hostile input: memory grows with the bytes that are there, never with the lengths that they claim.

mod pcap;
mod pcapng;

use std::io::{self, Read};

/// The longest packet that a savefile may hold, bytes; libpcap and Wireshark have the same bound.
const MAX_PACKET_BYTES: u32 = 262_144;

/// The longest block of a pcapng file that is read, bytes.
const MAX_BLOCK_BYTES: u32 = 16 << 20;

/// A packet out of a savefile.
#[derive(Clone, Copy, Debug)]
pub struct FilePacket<'a> {
    /// When it was captured, nanoseconds since 1970-01-01T00:00:00Z; 0 where the file does not say.
    pub captured_at_ns: u64,
    /// The `LINKTYPE_` number of its interface.
    pub link_number: u16,
    /// The captured bytes.
    pub data: &'a [u8],
    /// How long it was on the wire, bytes.
    pub original_length: u32,
}

/// Why a savefile cannot be read, or not any further.
#[derive(Debug, thiserror::Error)]
pub enum PacketFileError {
    /// The file cannot be read.
    #[error("cannot read")]
    Read(#[from] io::Error),
    /// It is neither pcap nor pcapng.
    #[error("neither a pcap nor a pcapng file")]
    UnknownFormat,
    /// A version that is not known.
    #[error("{format} version {major}.{minor} is not supported")]
    Version {
        /// `pcap` or `pcapng`.
        format: &'static str,
        /// The version, before the dot.
        major: u16,
        /// The version, after the dot.
        minor: u16,
    },
    /// It ends in the middle of a record: its writer was stopped, or the copy is not complete.
    #[error("the file ends in the middle of a record")]
    CutShort,
    /// What stands where a record should be is none.
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

/// A savefile that is read packet by packet.
pub struct PacketFile<R> {
    source: Source<R>,
    format: Format,
}

enum Format {
    Pcap(pcap::PcapHeader),
    PcapNg(pcapng::Section),
}

impl<R: Read> PacketFile<R> {
    /// Reads the beginning of a savefile. `reader` should be buffered.
    ///
    /// # Errors
    /// When it is no savefile, or of an unknown version.
    pub fn new(reader: R) -> Result<PacketFile<R>, PacketFileError> {
        let mut source = Source { reader, buffer: Vec::new() };
        let magic: [u8; 4] = match source.array() {
            Err(PacketFileError::CutShort) => return Err(PacketFileError::UnknownFormat),
            magic => magic?,
        };
        let format = if magic == pcapng::SECTION_HEADER.to_be_bytes() {
            Format::PcapNg(pcapng::Section::read(&mut source)?)
        } else {
            Format::Pcap(pcap::PcapHeader::read(magic, &mut source)?)
        };
        Ok(PacketFile { source, format })
    }

    /// The next packet; `None` at the end of the file.
    ///
    /// # Errors
    /// When the file ends or is damaged in the middle of a record. Nothing after that can be read.
    pub fn next_packet(&mut self) -> Result<Option<FilePacket<'_>>, PacketFileError> {
        match &mut self.format {
            Format::Pcap(header) => header.next_packet(&mut self.source),
            Format::PcapNg(section) => section.next_packet(&mut self.source),
        }
    }

    /// The `LINKTYPE_` numbers of all interfaces that the file has named so far.
    pub fn link_numbers(&self) -> &[u16] {
        match &self.format {
            Format::Pcap(header) => header.link_numbers(),
            Format::PcapNg(section) => section.link_numbers(),
        }
    }
}

/// The bytes of the file, and the record that was read last.
struct Source<R> {
    reader: R,
    buffer: Vec<u8>,
}

impl<R: Read> Source<R> {
    /// The next bytes, all of them or [`PacketFileError::CutShort`].
    fn array<const N: usize>(&mut self) -> Result<[u8; N], PacketFileError> {
        self.array_or_end()?.ok_or(PacketFileError::CutShort)
    }

    /// The next bytes, or `None` when the file ends before the first of them.
    fn array_or_end<const N: usize>(&mut self) -> Result<Option<[u8; N]>, PacketFileError> {
        let length = self.fill(N as u32)?;
        if length == 0 {
            return Ok(None);
        }
        self.buffer.first_chunk().copied().map(Some).ok_or(PacketFileError::CutShort)
    }

    /// The next `length` bytes, all of them or [`PacketFileError::CutShort`].
    fn bytes(&mut self, length: u32) -> Result<&[u8], PacketFileError> {
        if self.fill(length)? < length as usize { Err(PacketFileError::CutShort) } else { Ok(&self.buffer) }
    }

    fn fill(&mut self, length: u32) -> io::Result<usize> {
        self.buffer.clear();
        self.reader.by_ref().take(u64::from(length)).read_to_end(&mut self.buffer)
    }
}

/// How numbers are written in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ByteOrder {
    Big,
    Little,
}

impl ByteOrder {
    fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            ByteOrder::Big => u16::from_be_bytes(bytes),
            ByteOrder::Little => u16::from_le_bytes(bytes),
        }
    }

    fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            ByteOrder::Big => u32::from_be_bytes(bytes),
            ByteOrder::Little => u32::from_le_bytes(bytes),
        }
    }

    fn u64(self, bytes: [u8; 8]) -> u64 {
        match self {
            ByteOrder::Big => u64::from_be_bytes(bytes),
            ByteOrder::Little => u64::from_le_bytes(bytes),
        }
    }

    fn u16_at(self, bytes: &[u8], offset: usize) -> Option<u16> {
        bytes.get(offset..)?.first_chunk().map(|chunk| self.u16(*chunk))
    }

    fn u32_at(self, bytes: &[u8], offset: usize) -> Option<u32> {
        bytes.get(offset..)?.first_chunk().map(|chunk| self.u32(*chunk))
    }

    fn u64_at(self, bytes: &[u8], offset: usize) -> Option<u64> {
        bytes.get(offset..)?.first_chunk().map(|chunk| self.u64(*chunk))
    }
}
