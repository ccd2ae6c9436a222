//! Reads savefiles: pcap and pcapng, in either byte order.
//!
//! Not libpcap, which rejects pcapng files whose interfaces differ in snapshot length or link type,
//! and truncates packets longer than the snapshot length in a pcap file's header. Not pcap-parser
//! either, which has no obsolete packet blocks and reads big-endian time offsets and modified pcap
//! records as little-endian; and it leaves interfaces, time conversion and buffer sizes to its
//! user, which is half of this module.
//!
//! A file is hostile input: memory grows with the bytes in the file, never with a length field.

mod pcap;
mod pcapng;

use std::io::{self, Read};

/// The longest packet in a savefile, bytes; libpcap and Wireshark have the same limit.
const MAX_PACKET_BYTES: u32 = 262_144;

/// The longest block in a pcapng file, bytes.
const MAX_BLOCK_BYTES: u32 = 16 << 20;

/// A packet of a savefile.
#[derive(Clone, Copy, Debug)]
pub struct FilePacket<'a> {
    /// Capture time, nanoseconds since 1970-01-01T00:00:00Z; 0 if the file has none.
    pub captured_at_ns: u64,
    /// The `LINKTYPE_` number of its interface.
    pub link_number: u16,
    /// The captured bytes.
    pub data: &'a [u8],
    /// Length on the wire, bytes.
    pub original_length: u32,
}

/// Why a savefile, or the rest of it, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum PacketFileError {
    /// I/O failed.
    #[error("cannot read")]
    Read(#[from] io::Error),
    /// The file is neither pcap nor pcapng.
    #[error("neither a pcap nor a pcapng file")]
    UnknownFormat,
    /// The file is compressed.
    #[error("compressed: {tool} FILE | sekiwake-capture explain -, or decompress the file first")]
    Compressed {
        /// The command that writes the file decompressed to its output.
        tool: &'static str,
    },
    /// The version is not supported.
    #[error("{format} version {major}.{minor} is not supported")]
    Version {
        /// `pcap` or `pcapng`.
        format: &'static str,
        /// The major version.
        major: u16,
        /// The minor version.
        minor: u16,
    },
    /// The file ends in the middle of a record: its writer was killed, or the copy is incomplete.
    #[error("the file ends in the middle of a record")]
    Truncated,
    /// A record is invalid.
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

/// A savefile, read packet by packet.
pub struct PacketFile<R> {
    source: Source<R>,
    format: Format,
}

enum Format {
    Pcap(pcap::PcapHeader),
    PcapNg(pcapng::Section),
}

impl<R: Read> PacketFile<R> {
    /// Reads the header of a savefile. `reader` should be buffered.
    ///
    /// # Errors
    /// When it is not a savefile, or of an unsupported version.
    pub fn new(reader: R) -> Result<PacketFile<R>, PacketFileError> {
        let mut source = Source { reader, buffer: Vec::new() };
        let magic: [u8; 4] = match source.array() {
            Err(PacketFileError::Truncated) => return Err(PacketFileError::UnknownFormat),
            magic => magic?,
        };
        if let Some(tool) = decompressor(magic) {
            return Err(PacketFileError::Compressed { tool });
        }
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
    /// When the file ends in the middle of a record or is damaged. The rest cannot be read then.
    pub fn next_packet(&mut self) -> Result<Option<FilePacket<'_>>, PacketFileError> {
        match &mut self.format {
            Format::Pcap(header) => header.next_packet(&mut self.source),
            Format::PcapNg(section) => section.next_packet(&mut self.source),
        }
    }

    /// The `LINKTYPE_` numbers of all interfaces read so far, each once.
    pub fn link_numbers(&self) -> &[u16] {
        match &self.format {
            Format::Pcap(header) => header.link_numbers(),
            Format::PcapNg(section) => section.link_numbers(),
        }
    }
}

/// The command that decompresses files that begin with these bytes; `None` if they do not belong to
/// a format in which savefiles are kept.
fn decompressor(magic: [u8; 4]) -> Option<&'static str> {
    match magic {
        [0x1f, 0x8b, ..] => Some("zcat"),
        [0x28, 0xb5, 0x2f, 0xfd] => Some("zstdcat"),
        [0xfd, b'7', b'z', b'X'] => Some("xzcat"),
        [b'B', b'Z', b'h', _] => Some("bzcat"),
        [0x04, 0x22, 0x4d, 0x18] => Some("lz4cat"),
        _ => None,
    }
}

/// The bytes of the file, and the record read last.
struct Source<R> {
    reader: R,
    buffer: Vec<u8>,
}

impl<R: Read> Source<R> {
    /// The next `N` bytes, or [`PacketFileError::Truncated`].
    fn array<const N: usize>(&mut self) -> Result<[u8; N], PacketFileError> {
        self.array_or_end()?.ok_or(PacketFileError::Truncated)
    }

    /// The next `N` bytes; `None` if the file ends before the first of them.
    fn array_or_end<const N: usize>(&mut self) -> Result<Option<[u8; N]>, PacketFileError> {
        let length = self.fill(N as u32)?;
        if length == 0 {
            return Ok(None);
        }
        self.buffer.first_chunk().copied().map(Some).ok_or(PacketFileError::Truncated)
    }

    /// The next `length` bytes, or [`PacketFileError::Truncated`].
    fn bytes(&mut self, length: u32) -> Result<&[u8], PacketFileError> {
        if self.fill(length)? < length as usize { Err(PacketFileError::Truncated) } else { Ok(&self.buffer) }
    }

    fn fill(&mut self, length: u32) -> io::Result<usize> {
        self.buffer.clear();
        self.reader.by_ref().take(u64::from(length)).read_to_end(&mut self.buffer)
    }
}

/// The byte order of a file or section.
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
