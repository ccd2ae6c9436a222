//! Elements of BER (X.690 §8.1), as SNMP messages consist of them.

/// Universal and application tags (X.690 §8, RFC 2578 §7.1).
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const TIME_TICKS: u8 = 0x43;

/// The size of an element with contents of this length: tag, length, contents.
pub(crate) fn element_bytes(contents: usize) -> usize {
    let header = match contents {
        0..0x80 => 2,
        0x80..0x100 => 3,
        0x100..0x1_0000 => 4,
        _ => 5,
    };
    header + contents
}

/// Writes a tag and a length of less than 2²⁴, in its shortest form (X.690 §8.1.3).
pub(crate) fn put_header(tag: u8, contents: usize, out: &mut Vec<u8>) {
    let octets = (contents as u32).to_be_bytes();
    out.push(tag);
    match element_bytes(contents) - contents - 2 {
        0 => out.push(octets[3]),
        count => {
            out.push(0x80 | count as u8);
            out.extend_from_slice(&octets[4 - count..]);
        }
    }
}

/// An element with these contents.
pub(crate) fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(element_bytes(contents.len()));
    put_header(tag, contents.len(), &mut out);
    out.extend_from_slice(contents);
    out
}

/// An element that contains these.
pub(crate) fn constructed(tag: u8, elements: &[Vec<u8>]) -> Vec<u8> {
    element(tag, &elements.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_their_shortest_form() {
        for (length, header) in [
            (0, &[4, 0][..]),
            (127, &[4, 127]),
            (128, &[4, 0x81, 128]),
            (255, &[4, 0x81, 255]),
            (256, &[4, 0x82, 1, 0]),
            (65_535, &[4, 0x82, 255, 255]),
            (65_536, &[4, 0x83, 1, 0, 0]),
        ] {
            let element = element(OCTET_STRING, &vec![7; length]);
            assert_eq!(element[..header.len()], *header);
            assert_eq!((element.len(), element_bytes(length)), (header.len() + length, header.len() + length));
        }
    }
}
