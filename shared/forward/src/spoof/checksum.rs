//! The UDP header, and the checksum in it over pseudo header, header and payload (RFC 768, RFC 8200
//! §8.1, RFC 1071).

use std::net::{IpAddr, SocketAddr};

pub(super) const UDP_HEADER_BYTES: usize = 8;

/// The protocol number, as both pseudo headers have it.
const UDP: u16 = 17;

/// The header of a datagram; `None` if it is too long for the length field.
///
/// ```text
///  0      2      4      6        8
///  ├ from ┼ to ──┼ length ┼ checksum ┤
/// ```
pub(super) fn udp_header(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Option<[u8; UDP_HEADER_BYTES]> {
    let length = u16::try_from(UDP_HEADER_BYTES + payload.len()).ok()?;
    let words = [from.port(), to.port(), length, UDP, length];
    let pseudo =
        address_sum(from.ip()) + address_sum(to.ip()) + words.iter().map(|&word| u64::from(word.to_be())).sum::<u64>();
    let checksum = match !fold(pseudo + sum(payload)) {
        // 0 means no checksum, so a checksum of 0 is sent as its other form in ones' complement.
        0 => u16::MAX,
        checksum => checksum,
    };
    let mut header = [0; UDP_HEADER_BYTES];
    header[0..2].copy_from_slice(&from.port().to_be_bytes());
    header[2..4].copy_from_slice(&to.port().to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    // The sum is of words in memory order, so it is stored in memory order (RFC 1071 §2 (B)).
    header[6..8].copy_from_slice(&checksum.to_ne_bytes());
    Some(header)
}

fn address_sum(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(v4) => sum(&v4.octets()),
        IpAddr::V6(v6) => sum(&v6.octets()),
    }
}

/// The unfolded sum of the 16-bit words in the machine's byte order; an odd byte is padded with a
/// zero. Words are added two at a time, because the sum of 64 KiB fits 64 bits many times over.
fn sum(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks_exact(4);
    let rest = pairs.remainder();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let pairs = pairs.map(|pair| u64::from(u32::from_ne_bytes([pair[0], pair[1], pair[2], pair[3]])));
    pairs.sum::<u64>() + u64::from(u32::from_ne_bytes(last))
}

/// Adds the carries until 16 bits are left.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xFFFF {
        sum = (sum & 0xFFFF) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Word by word, as RFC 1071 defines it: 0xFFFF over a datagram with a correct checksum.
    fn plain_sum(from: SocketAddr, to: SocketAddr, header: &[u8], payload: &[u8]) -> u32 {
        let mut bytes = Vec::new();
        for address in [from.ip(), to.ip()] {
            match address {
                IpAddr::V4(v4) => bytes.extend(v4.octets()),
                IpAddr::V6(v6) => bytes.extend(v6.octets()),
            }
        }
        bytes.extend([0, 17]);
        bytes.extend_from_slice(&header[4..6]);
        bytes.extend_from_slice(header);
        bytes.extend_from_slice(payload);
        let mut sum = 0u32;
        for word in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        sum
    }

    #[test]
    fn known_datagram_has_its_known_checksum() {
        // Worked out by hand: 198.51.100.1:514 to 203.0.113.1:514, payload "ab".
        let from = "198.51.100.1:514".parse().unwrap();
        let to = "203.0.113.1:514".parse().unwrap();
        let words = [0xC633, 0x6401, 0xCB00, 0x7101, 17, 10, 514, 514, 10, 0x6162u32];
        let total: u32 = words.iter().sum();
        let expected = !(((total & 0xFFFF) + (total >> 16)) as u16);
        let header = udp_header(from, to, b"ab").unwrap();
        assert_eq!(header, [2, 2, 2, 2, 0, 10, (expected >> 8) as u8, expected as u8]);
    }

    #[test]
    fn too_long_datagram_has_no_header() {
        let end = "[2001:db8::1]:1".parse().unwrap();
        assert!(udp_header(end, end, &vec![0; 65_527]).is_some());
        assert!(udp_header(end, end, &vec![0; 65_528]).is_none());
    }

    proptest! {
        #[test]
        fn checksum_is_correct_and_never_absent(
            from: IpAddr, to: IpAddr, ports: (u16, u16),
            payload in prop_oneof![prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(Just(255u8), 60_000..65_527)],
        ) {
            let from = SocketAddr::new(from, ports.0);
            let to = SocketAddr::new(to, ports.1);
            let header = udp_header(from, to, &payload).unwrap();
            prop_assert_eq!(plain_sum(from, to, &header, &payload), 0xFFFF);
            prop_assert_ne!(&header[6..8], &[0, 0]);
        }

        #[test]
        fn checksum_of_zero_is_sent_as_ones(from: [u8; 4], to: [u8; 4], ports: (u16, u16), mut payload: Vec<u8>) {
            let from = SocketAddr::new(IpAddr::from(from), ports.0);
            let to = SocketAddr::new(IpAddr::from(to), ports.1);
            // A last word with the missing value makes the checksum 0.
            if payload.len() % 2 == 1 {
                payload.push(0);
            }
            payload.extend([0, 0]);
            let header = udp_header(from, to, &payload).unwrap();
            let end = payload.len() - 2;
            payload[end..].copy_from_slice(&header[6..8]);
            prop_assert_eq!(&udp_header(from, to, &payload).unwrap()[6..8], &[255, 255]);
        }
    }
}
