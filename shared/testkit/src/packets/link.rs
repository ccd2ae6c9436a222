//! Link-layer headers.

use super::ether_type_of;

const MACS: [u8; 12] = [0x02, 0, 0, 0, 0, 2, 0x02, 0, 0, 0, 0, 1];
/// The shortest Ethernet frame without its check sequence, bytes.
const MIN_FRAME_BYTES: usize = 60;

/// An Ethernet frame around an IP packet.
pub fn ethernet(packet: &[u8]) -> Vec<u8> {
    ethernet_frame(ether_type_of(packet), packet)
}

/// An Ethernet frame with any payload.
pub fn ethernet_frame(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&MACS[..], &ether_type.to_be_bytes(), payload].concat()
}

/// An Ethernet frame with VLAN tags: TPID (0x8100, 0x88a8, 0x9100) and VLAN identifier, outermost
/// first.
pub fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    for (tpid, vlan) in tags {
        // Priority 5, to detect a decoder that reads it as part of the identifier.
        tagged.extend(tpid.to_be_bytes());
        tagged.extend((vlan | 5 << 13).to_be_bytes());
    }
    tagged.extend(&frame[12..]);
    tagged
}

/// An Ethernet frame with another tag, VN-Tag (0x8926) and the like, in front of its EtherType.
pub fn with_tag(frame: &[u8], ether_type: u16, tag: &[u8]) -> Vec<u8> {
    [&frame[..12], &ether_type.to_be_bytes(), tag, &frame[12..]].concat()
}

/// An IEEE 802.3 frame with LLC and SNAP headers: a length where the Ethernet II frame has its
/// EtherType, or behind its tags.
pub fn snap(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let payload = [&[0xaa, 0xaa, 0x03, 0, 0, 0], &frame[12..]].concat();
    tagged(&ethernet_frame(payload.len() as u16, &payload), tags)
}

/// A frame padded to Ethernet's minimum length.
pub fn padded(frame: &[u8]) -> Vec<u8> {
    let mut padded = frame.to_vec();
    padded.resize(frame.len().max(MIN_FRAME_BYTES), 0xee);
    padded
}

/// An Ethernet frame with a stack of MPLS labels, outermost first.
pub fn mpls(labels: &[u32], packet: &[u8]) -> Vec<u8> {
    let mut stack = Vec::new();
    for (index, label) in labels.iter().enumerate() {
        let bottom = u32::from(index + 1 == labels.len());
        stack.extend((label << 12 | bottom << 8 | 64).to_be_bytes());
    }
    stack.extend(packet);
    ethernet_frame(0x8847, &stack)
}

/// An Ethernet frame of a PPPoE session.
pub fn pppoe_session(session: u16, packet: &[u8]) -> Vec<u8> {
    let protocol: u16 = if packet[0] >> 4 == 6 { 0x0057 } else { 0x0021 };
    let mut payload = vec![0x11, 0];
    payload.extend(session.to_be_bytes());
    payload.extend((packet.len() as u16 + 2).to_be_bytes());
    payload.extend(protocol.to_be_bytes());
    payload.extend(packet);
    ethernet_frame(0x8864, &payload)
}

/// Linux cooked capture, version 1 (link type 113).
pub fn linux_cooked_v1(packet: &[u8]) -> Vec<u8> {
    let header = [0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0];
    [&header[..], &ether_type_of(packet).to_be_bytes(), packet].concat()
}

/// Linux cooked capture, version 2 (link type 276).
pub fn linux_cooked_v2(packet: &[u8]) -> Vec<u8> {
    let header = [0, 0, 0, 0, 0, 2, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0];
    [&ether_type_of(packet).to_be_bytes()[..], &header, packet].concat()
}

/// BSD loopback (link types 0 and 108) with an address family in any byte order.
pub fn null(family: [u8; 4], packet: &[u8]) -> Vec<u8> {
    [&family[..], packet].concat()
}
