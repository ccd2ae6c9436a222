//! Tunnel headers, between the outer IP or UDP header and the packet in the tunnel.

/// The optional fields of a GRE header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gre {
    /// Whether there is a checksum field (zero).
    pub checksum: bool,
    /// Key.
    pub key: Option<u32>,
    /// Sequence number.
    pub sequence: Option<u32>,
}

impl Gre {
    /// The GRE packet: header and payload.
    pub fn packet(self, protocol: u16, payload: &[u8]) -> Vec<u8> {
        let bit = |set: bool, position: u16| u16::from(set) << position;
        let flags = bit(self.checksum, 15) | bit(self.key.is_some(), 13) | bit(self.sequence.is_some(), 12);
        let mut packet = flags.to_be_bytes().to_vec();
        packet.extend(protocol.to_be_bytes());
        if self.checksum {
            packet.extend([0; 4]);
        }
        for field in [self.key, self.sequence].into_iter().flatten() {
            packet.extend(field.to_be_bytes());
        }
        packet.extend(payload);
        packet
    }
}

/// A GRE packet with ERSPAN type I.
pub fn erspan_1(frame: &[u8]) -> Vec<u8> {
    Gre::default().packet(0x88be, frame)
}

/// A GRE packet with ERSPAN type II.
pub fn erspan_2(session: u16, frame: &[u8]) -> Vec<u8> {
    let mut payload = 0x1000_u16.to_be_bytes().to_vec();
    payload.extend((session & 0x03ff).to_be_bytes());
    payload.extend([0; 4]);
    payload.extend(frame);
    Gre { sequence: Some(7), ..Gre::default() }.packet(0x88be, &payload)
}

/// A GRE packet with ERSPAN type III, with or without the platform-specific header.
pub fn erspan_3(session: u16, has_platform_header: bool, frame: &[u8]) -> Vec<u8> {
    let mut payload = 0x2000_u16.to_be_bytes().to_vec();
    payload.extend((session & 0x03ff).to_be_bytes());
    payload.extend([0; 6]);
    payload.extend(u16::from(has_platform_header).to_be_bytes());
    if has_platform_header {
        payload.extend([0; 8]);
    }
    payload.extend(frame);
    Gre { sequence: Some(7), ..Gre::default() }.packet(0x22eb, &payload)
}

/// MikroTik's EoIP, the payload of IP protocol 47.
pub fn eoip(tunnel: u16, frame: &[u8]) -> Vec<u8> {
    [&[0x20, 0x01, 0x64, 0x00][..], &(frame.len() as u16).to_be_bytes(), &tunnel.to_le_bytes(), frame].concat()
}

/// The UDP payload of TZSP. `fields` are tagged fields, without the end tag.
pub fn tzsp(fields: &[u8], frame: &[u8]) -> Vec<u8> {
    [&[1, 0, 0, 1][..], fields, &[1], frame].concat()
}

/// The UDP payload of VXLAN.
pub fn vxlan(network: u32, frame: &[u8]) -> Vec<u8> {
    [&[0x08, 0, 0, 0][..], &(network << 8).to_be_bytes(), frame].concat()
}

/// The UDP payload of VXLAN-GPE: next protocol 1 is IPv4, 2 IPv6, 3 Ethernet.
pub fn vxlan_gpe(network: u32, next_protocol: u8, packet: &[u8]) -> Vec<u8> {
    [&[0x0c, 0, 0, next_protocol][..], &(network << 8).to_be_bytes(), packet].concat()
}

/// The UDP payload of Geneve. `options` are a multiple of 4 bytes.
pub fn geneve(network: u32, protocol: u16, options: &[u8], packet: &[u8]) -> Vec<u8> {
    let head = [(options.len() / 4) as u8, 0];
    [&head[..], &protocol.to_be_bytes(), &(network << 8).to_be_bytes(), options, packet].concat()
}
