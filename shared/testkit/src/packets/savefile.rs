//! A pcap file with nanosecond timestamps.

use std::{fs, io, path::Path};

/// Builds a savefile in memory.
#[derive(Clone, Debug)]
pub struct SaveFile {
    bytes: Vec<u8>,
}

impl SaveFile {
    /// An empty savefile of this `LINKTYPE_` number.
    pub fn new(link_number: u32) -> SaveFile {
        let mut bytes = 0xa1b2_3c4d_u32.to_le_bytes().to_vec();
        bytes.extend(2_u16.to_le_bytes());
        bytes.extend(4_u16.to_le_bytes());
        bytes.extend([0; 8]);
        bytes.extend(262_144_u32.to_le_bytes());
        bytes.extend(link_number.to_le_bytes());
        SaveFile { bytes }
    }

    /// Adds a packet. The time is in nanoseconds since 1970.
    pub fn packet(self, captured_at_ns: u64, data: &[u8]) -> SaveFile {
        self.packet_cut(captured_at_ns, data, data.len())
    }

    /// Adds a packet of which only `captured` bytes were captured.
    pub fn packet_cut(mut self, captured_at_ns: u64, data: &[u8], captured: usize) -> SaveFile {
        let seconds = (captured_at_ns / 1_000_000_000) as u32;
        let nanoseconds = (captured_at_ns % 1_000_000_000) as u32;
        for field in [seconds, nanoseconds, captured as u32, data.len() as u32] {
            self.bytes.extend(field.to_le_bytes());
        }
        self.bytes.extend(&data[..captured]);
        self
    }

    /// The file's contents.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes the file.
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        fs::write(path, &self.bytes)
    }
}
