//! Savefiles: both formats, both byte orders, damaged files.

use proptest::prelude::*;
use sekiwake_capture::packet_file::{FilePacket, PacketFile, PacketFileError};
use sekiwake_testkit::packets::SaveFile;

/// A packet as it was read.
#[derive(Debug, PartialEq)]
struct Packet {
    captured_at_ns: u64,
    link_number: u16,
    data: Vec<u8>,
    original_length: u32,
}

impl Packet {
    fn new(captured_at_ns: u64, link_number: u16, data: &[u8], original_length: u32) -> Packet {
        Packet { captured_at_ns, link_number, data: data.to_vec(), original_length }
    }
}

/// Everything read from a file, and how it ended.
struct Read {
    packets: Vec<Packet>,
    end: Result<(), PacketFileError>,
}

fn read(bytes: &[u8]) -> Read {
    let mut packets = Vec::new();
    let mut file = match PacketFile::new(bytes) {
        Ok(file) => file,
        Err(error) => return Read { packets, end: Err(error) },
    };
    loop {
        match file.next_packet() {
            Ok(Some(packet)) => {
                let FilePacket { captured_at_ns, link_number, data, original_length } = packet;
                packets.push(Packet::new(captured_at_ns, link_number, data, original_length));
            }
            Ok(None) => return Read { packets, end: Ok(()) },
            Err(error) => return Read { packets, end: Err(error) },
        }
    }
}

/// Builds a pcapng file.
struct Ng {
    is_big_endian: bool,
    bytes: Vec<u8>,
}

impl Ng {
    fn new(is_big_endian: bool) -> Ng {
        let mut file = Ng { is_big_endian, bytes: Vec::new() };
        file.section();
        file
    }

    fn u16(&self, number: u16) -> [u8; 2] {
        if self.is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn u32(&self, number: u32) -> [u8; 4] {
        if self.is_big_endian { number.to_be_bytes() } else { number.to_le_bytes() }
    }

    fn block(&mut self, block_type: u32, body: &[u8]) {
        let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
        let length = self.u32((12 + body.len() + padding.len()) as u32);
        let block = [&self.u32(block_type)[..], &length, body, &padding, &length].concat();
        self.bytes.extend(block);
    }

    fn section(&mut self) {
        let body = [&self.u32(0x1a2b_3c4d)[..], &self.u16(1), &self.u16(0), &[0xff; 8]].concat();
        self.block(0x0a0d_0d0a, &body);
    }

    fn interface(&mut self, link: u16, snapshot_length: u32, options: &[(u16, &[u8])]) {
        let mut body = [&self.u16(link)[..], &[0, 0], &self.u32(snapshot_length)].concat();
        for (code, value) in options {
            body.extend(self.u16(*code));
            body.extend(self.u16(value.len() as u16));
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        self.block(1, &body);
    }

    fn enhanced(&mut self, interface: u32, ticks: u64, data: &[u8], original_length: u32) {
        let fields = [interface, (ticks >> 32) as u32, ticks as u32, data.len() as u32, original_length];
        let mut body: Vec<u8> = fields.iter().flat_map(|field| self.u32(*field)).collect();
        body.extend(data);
        self.block(6, &body);
    }
}

#[test]
fn pcap_file_is_read_in_both_byte_orders_and_all_resolutions() {
    let own = SaveFile::new(113).packet(1_000_000_002, b"abc").packet_cut(5, b"defgh", 2).into_bytes();
    let expected = [Packet::new(1_000_000_002, 113, b"abc", 3), Packet::new(5, 113, b"de", 5)];
    assert_eq!(read(&own).packets, expected);

    let mut big = Vec::new();
    big.extend(0xa1b2_c3d4_u32.to_be_bytes());
    big.extend([0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 101]);
    big.extend([0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 9, b'a', b'b', b'c']);
    assert_eq!(read(&big).packets, [Packet::new(1_000_002_000, 101, b"abc", 9)]);

    let mut modified = big.clone();
    modified[..4].copy_from_slice(&0xa1b2_cd34_u32.to_be_bytes());
    modified.splice(40..40, [0; 8]);
    assert_eq!(read(&modified).packets, [Packet::new(1_000_002_000, 101, b"abc", 9)]);
}

#[test]
fn pcapng_file_may_mix_interfaces_and_byte_orders() {
    for is_big_endian in [false, true] {
        let mut file = Ng::new(is_big_endian);
        file.interface(1, 96, &[]);
        let offset = if is_big_endian { 10_u64.to_be_bytes() } else { 10_u64.to_le_bytes() };
        file.interface(101, 0, &[(2, b"eth0"), (9, &[9]), (14, &offset)]);
        file.interface(276, 65_535, &[(9, &[0x8a])]);
        file.enhanced(0, 1_000_001, b"abcde", 100);
        file.enhanced(1, 7, b"", 0);
        file.block(0x0bad, b"skipped");
        file.enhanced(2, 1536, b"x", 1);
        let expected = [
            Packet::new(1_000_001_000, 1, b"abcde", 100),
            Packet::new(10_000_000_007, 101, b"", 0),
            Packet::new(1_500_000_000, 276, b"x", 1),
        ];
        let read_first = read(&file.bytes);
        assert_eq!(read_first.packets, expected);
        assert!(read_first.end.is_ok());

        let mut other = Ng::new(!is_big_endian);
        other.interface(12, 3, &[]);
        let simple = [&other.u32(4)[..], b"abc"].concat();
        other.block(3, &simple);
        let read_both = read(&[&file.bytes[..], &other.bytes].concat());
        assert_eq!(read_both.packets.last(), Some(&Packet::new(0, 12, b"abc", 4)));
        assert!(read_both.end.is_ok());
    }
}

#[test]
fn truncated_file_gives_the_packets_before() {
    let mut ng = Ng::new(false);
    ng.interface(1, 0, &[]);
    ng.enhanced(0, 1, b"abcd", 4);
    let whole = ng.bytes.len();
    ng.enhanced(0, 2, b"efgh", 4);
    let pcap = SaveFile::new(1).packet(1, b"abcd").into_bytes();
    let longer = SaveFile::new(1).packet(1, b"abcd").packet(2, b"efgh").into_bytes();
    for (bytes, whole) in [(&ng.bytes, whole), (&longer, pcap.len())] {
        for kept in whole + 1..bytes.len() {
            let Read { packets, end } = read(&bytes[..kept]);
            assert_eq!(packets.len(), 1);
            assert!(matches!(end, Err(PacketFileError::Truncated)), "{end:?}");
        }
        assert!(read(&bytes[..whole]).end.is_ok());
    }
}

#[test]
fn impossible_packet_length_is_damage() {
    let mut pcap = SaveFile::new(1).packet(1, b"abcd").into_bytes();
    pcap[32..36].fill(0xff);
    assert!(matches!(read(&pcap).end, Err(PacketFileError::Damaged(_))));
    let mut ng = Ng::new(false);
    ng.block(1, &[1, 0, 0, 0, 0, 0, 0, 0]);
    let start = ng.bytes.len();
    ng.enhanced(0, 1, b"abcd", 4);
    for length in [0_u32, 8, 11, 28, u32::MAX] {
        let mut bytes = ng.bytes.clone();
        bytes[start + 4..start + 8].copy_from_slice(&length.to_le_bytes());
        assert!(matches!(read(&bytes).end, Err(PacketFileError::Damaged(_))), "{length}");
    }
}

proptest! {
    #[test]
    fn damaged_file_gives_no_more_bytes_than_it_has(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        is_big_endian: bool,
        is_pcap: bool,
    ) {
        let mut ng = Ng::new(is_big_endian);
        ng.interface(1, 0, &[(9, &[6])]);
        ng.enhanced(0, 1, b"abcd", 4);
        ng.enhanced(0, u64::MAX, b"efgh", 4);
        let mut bytes = if is_pcap { SaveFile::new(1).packet(1, b"abcd").packet(2, b"ef").into_bytes() } else { ng.bytes };
        for (index, value) in flips {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        let packets = read(&bytes).packets;
        prop_assert!(packets.iter().map(|packet| packet.data.len()).sum::<usize>() <= bytes.len());
    }
}
