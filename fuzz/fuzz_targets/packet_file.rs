//! Savefiles: reading ends, and gives no more bytes than the file has.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sekiwake_capture::packet_file::PacketFile;

fuzz_target!(|input: &[u8]| {
    let Ok(mut file) = PacketFile::new(input) else {
        return;
    };
    let mut packet_bytes = 0;
    let mut packets = 0;
    while let Ok(Some(packet)) = file.next_packet() {
        packets += 1;
        packet_bytes += packet.data.len();
        let link_number = packet.link_number;
        assert!(file.link_numbers().contains(&link_number));
    }
    assert!(packet_bytes <= input.len() && packets <= input.len());
});
