//! Tunnel headers, as mirror ports and overlay networks add them.
//!
//! ```text
//! GRE        C.KS flags, version 2 | protocol 2 | [checksum, reserved 4] | [key 4] | [sequence 4]
//! ERSPAN I   no header of its own; differs from II by a GRE header without a sequence number
//! ERSPAN II  version 1, VLAN 2 | COS, session 2 | index 4
//! ERSPAN III version 2, VLAN 2 | COS, session 2 | timestamp 4 | SGT 2 |
//!            P, type, hardware, D, Gra, O 2 | [platform 8]
//! VXLAN      flags 1 | reserved 3 | VNI 3 | reserved 1
//! VXLAN-GPE  flags 1 | reserved 2 | next protocol 1 | VNI 3 | reserved 1
//! Geneve     version, options length 1 | O, C, reserved 1 | protocol 2 | VNI 3 | reserved 1 | options
//! EoIP       20 01 64 00 | frame length 2 | tunnel 2, little-endian | frame
//! TZSP       version 1 | type 1 | protocol 2 | tagged fields | end tag 1 | frame
//!            tagged field: tag 1 | length 1 | contents; a padding tag is one byte
//! ```
//!
//! GRE is RFC 2784 and 2890, VXLAN RFC 7348, Geneve RFC 8926. EoIP is MikroTik's, in the place of a
//! GRE header; TZSP is the format in which MikroTik's routers mirror.

use sekiwake_record::bytes::{u16_at, u32_at};

use super::link::{Network, ether_type, ethernet};

/// A decoded tunnel header.
pub(super) struct Tunnel<'a> {
    /// What the tunnel carries.
    pub(super) inner: Network<'a>,
    /// GRE key, ERSPAN session, EoIP tunnel, VXLAN or Geneve network identifier: keeps fragments of
    /// different tunnels apart.
    pub(super) identifier: u32,
}

/// Why the packet in a tunnel cannot be decoded.
pub(super) enum TunnelError {
    /// The packet ends inside the tunnel header.
    Short,
    /// An unsupported version or variant.
    Unsupported,
}

const GRE_CHECKSUM: u16 = 0x8000;
const GRE_ROUTING: u16 = 0x4000;
const GRE_KEY: u16 = 0x2000;
const GRE_SEQUENCE: u16 = 0x1000;
const GRE_VERSION: u16 = 0x0007;

const ERSPAN_I_II: u16 = 0x88be;
const ERSPAN_III: u16 = 0x22eb;
const WCCP: u16 = 0x883e;

/// The flags (a key, version 1) and the protocol of MikroTik's EoIP.
const EOIP: (u16, u16) = (0x2001, 0x6400);

/// Decodes a GRE header and the ERSPAN header after it, if there is one.
pub(super) fn gre(packet: &[u8]) -> Result<Tunnel<'_>, TunnelError> {
    let flags = u16_at(packet, 0).ok_or(TunnelError::Short)?;
    let protocol = u16_at(packet, 2).ok_or(TunnelError::Short)?;
    if (flags, protocol) == EOIP {
        return eoip(packet);
    }
    // Version 1 is PPTP (RFC 2637); source routing (RFC 1701) was withdrawn.
    if flags & (GRE_VERSION | GRE_ROUTING) != 0 {
        return Err(TunnelError::Unsupported);
    }
    let mut offset = 4;
    if flags & GRE_CHECKSUM != 0 {
        offset += 4;
    }
    let mut identifier = 0;
    if flags & GRE_KEY != 0 {
        identifier = u32_at(packet, offset).ok_or(TunnelError::Short)?;
        offset += 4;
    }
    let sequenced = flags & GRE_SEQUENCE != 0;
    if sequenced {
        offset += 4;
    }
    let payload = packet.get(offset..).ok_or(TunnelError::Short)?;
    match protocol {
        ERSPAN_I_II if !sequenced => Ok(Tunnel { inner: ethernet(payload).ok_or(TunnelError::Short)?, identifier }),
        ERSPAN_I_II | ERSPAN_III => erspan(payload),
        WCCP => Ok(Tunnel { inner: wccp(payload).ok_or(TunnelError::Short)?, identifier }),
        _ => Ok(Tunnel { inner: Network::EtherType(protocol, payload), identifier }),
    }
}

fn eoip(packet: &[u8]) -> Result<Tunnel<'_>, TunnelError> {
    let length = usize::from(u16_at(packet, 4).ok_or(TunnelError::Short)?);
    let identifier = u32::from(u16_at(packet, 6).ok_or(TunnelError::Short)?);
    let frame = packet.get(8..).ok_or(TunnelError::Short)?;
    let frame = &frame[..length.min(frame.len())];
    let inner = match length {
        // Keepalive.
        0 => Network::Other,
        _ => ethernet(frame).ok_or(TunnelError::Short)?,
    };
    Ok(Tunnel { inner, identifier })
}

fn erspan(payload: &[u8]) -> Result<Tunnel<'_>, TunnelError> {
    const IP_FRAME: u16 = 2;
    let version = payload.first().ok_or(TunnelError::Short)? >> 4;
    let session = u16_at(payload, 2).ok_or(TunnelError::Short)? & 0x03ff;
    let inner = match version {
        1 => payload.get(8..).and_then(ethernet),
        2 => {
            let details = u16_at(payload, 10).ok_or(TunnelError::Short)?;
            let has_platform_header = details & 1 != 0;
            let frame_type = (details >> 10) & 0x1f;
            let header_bytes = if has_platform_header { 20 } else { 12 };
            let frame = payload.get(header_bytes..).ok_or(TunnelError::Short)?;
            if frame_type == IP_FRAME { Some(Network::Ip(frame)) } else { ethernet(frame) }
        }
        _ => return Err(TunnelError::Unsupported),
    };
    Ok(Tunnel { inner: inner.ok_or(TunnelError::Short)?, identifier: u32::from(session) })
}

/// WCCPv2 puts a header of 4 bytes before a redirected packet, WCCPv1 none. The header never begins
/// with IPv4's version nibble.
fn wccp(payload: &[u8]) -> Option<Network<'_>> {
    let packet = if payload.first()? >> 4 == 4 { payload } else { payload.get(4..)? };
    Some(Network::EtherType(ether_type::IPV4, packet))
}

/// Decodes the header of a tunnel over UDP. `None` if the port is not a tunnel's or the payload
/// does not have the tunnel's header: it is then an ordinary datagram, as with syslog on such a
/// port.
pub(super) fn over_udp(port: u16, payload: &[u8]) -> Option<Tunnel<'_>> {
    match port {
        VXLAN_PORT | VXLAN_PORT_BEFORE_IANA | VXLAN_GPE_PORT => vxlan(payload),
        GENEVE_PORT => geneve(payload),
        TZSP_PORT => tzsp(payload),
        _ => None,
    }
}

/// Whether [`over_udp`] looks for a tunnel in datagrams to this port.
pub(super) const fn is_udp_port(port: u16) -> bool {
    matches!(port, VXLAN_PORT | VXLAN_PORT_BEFORE_IANA | VXLAN_GPE_PORT | GENEVE_PORT | TZSP_PORT)
}

const VXLAN_PORT: u16 = 4789;
/// The Linux default from before IANA's assignment; some overlay networks still use it.
const VXLAN_PORT_BEFORE_IANA: u16 = 8472;
const VXLAN_GPE_PORT: u16 = 4790;
const GENEVE_PORT: u16 = 6081;
const TZSP_PORT: u16 = 37008;

fn vxlan(payload: &[u8]) -> Option<Tunnel<'_>> {
    const VNI_IS_VALID: u8 = 0x08;
    const NEXT_PROTOCOL_IS_VALID: u8 = 0x04;
    /// Version in VXLAN-GPE, reserved in VXLAN. Both bits are set in the `<` of a syslog PRI.
    const MUST_BE_ZERO: u8 = 0x30;

    let header: [u8; 8] = *payload.first_chunk()?;
    let flags = header[0];
    if flags & (VNI_IS_VALID | MUST_BE_ZERO) != VNI_IS_VALID || header[7] != 0 {
        return None;
    }
    let packet = payload.get(8..)?;
    let inner = if flags & NEXT_PROTOCOL_IS_VALID != 0 {
        match header[3] {
            1 => Network::EtherType(ether_type::IPV4, packet),
            2 => Network::EtherType(ether_type::IPV6, packet),
            3 => ethernet(packet)?,
            5 => Network::EtherType(ether_type::MPLS, packet),
            _ => Network::Other,
        }
    } else {
        ethernet(packet)?
    };
    Some(Tunnel { inner, identifier: network_identifier(&header) })
}

fn geneve(payload: &[u8]) -> Option<Tunnel<'_>> {
    const RESERVED: u8 = 0x3f;
    const FIRST_ETHER_TYPE: u16 = 0x0600;

    let header: [u8; 8] = *payload.first_chunk()?;
    let version = header[0] >> 6;
    let options_bytes = usize::from(header[0] & 0x3f) * 4;
    let protocol = u16::from_be_bytes([header[2], header[3]]);
    if version != 0 || header[1] & RESERVED != 0 || header[7] != 0 || protocol < FIRST_ETHER_TYPE {
        return None;
    }
    let packet = payload.get(8 + options_bytes..)?;
    Some(Tunnel { inner: Network::EtherType(protocol, packet), identifier: network_identifier(&header) })
}

fn tzsp(payload: &[u8]) -> Option<Tunnel<'_>> {
    const VERSION: u8 = 1;
    const RECEIVED: u8 = 0;
    const TO_TRANSMIT: u8 = 1;
    const ETHERNET: u16 = 1;
    const PADDING: u8 = 0;
    const END: u8 = 1;

    let (&[version, packet_type, high, low], mut fields) = payload.split_first_chunk()?;
    if version != VERSION || !matches!(packet_type, RECEIVED | TO_TRANSMIT) {
        return None;
    }
    let frame = loop {
        fields = match fields {
            [END, frame @ ..] => break frame,
            [PADDING, rest @ ..] => rest,
            [_, length, rest @ ..] => rest.get(usize::from(*length)..)?,
            _ => return None,
        };
    };
    let inner = match u16::from_be_bytes([high, low]) {
        ETHERNET => ethernet(frame)?,
        // IEEE 802.11, with or without a radio header.
        _ => Network::Other,
    };
    Some(Tunnel { inner, identifier: 0 })
}

/// The packet below a stack of MPLS labels (RFC 3032): label 20 bits, traffic class 3, bottom of
/// stack 1, TTL 8.
pub(super) fn below_mpls(mut stack: &[u8]) -> Option<&[u8]> {
    const BOTTOM_OF_STACK: u32 = 0x100;
    loop {
        let entry = u32_at(stack, 0)?;
        stack = stack.get(4..)?;
        if entry & BOTTOM_OF_STACK != 0 {
            return Some(stack);
        }
    }
}

fn network_identifier(header: &[u8; 8]) -> u32 {
    u32::from_be_bytes([0, header[4], header[5], header[6]])
}

/// The contents of a PPPoE session packet (RFC 2516):
/// `version, type 1 | code 1 | session 2 | length 2 | PPP protocol 2 | packet`.
pub(super) fn pppoe_session(packet: &[u8]) -> Result<Network<'_>, TunnelError> {
    const VERSION_1_TYPE_1: u8 = 0x11;
    const SESSION_DATA: u8 = 0;
    const PPP_IPV4: u16 = 0x0021;
    const PPP_IPV6: u16 = 0x0057;
    const PPP_MPLS: u16 = 0x0281;

    let &[version_type, code, ..] = packet else {
        return Err(TunnelError::Short);
    };
    if version_type != VERSION_1_TYPE_1 || code != SESSION_DATA {
        return Err(TunnelError::Unsupported);
    }
    let length = usize::from(u16_at(packet, 4).ok_or(TunnelError::Short)?);
    let frame = packet.get(6..).ok_or(TunnelError::Short)?;
    // Excess bytes are Ethernet padding. Missing bytes show in the IP packet's own length.
    let frame = &frame[..length.min(frame.len())];
    let payload = frame.get(2..).ok_or(TunnelError::Short)?;
    Ok(match u16_at(frame, 0) {
        Some(PPP_IPV4) => Network::EtherType(ether_type::IPV4, payload),
        Some(PPP_IPV6) => Network::EtherType(ether_type::IPV6, payload),
        Some(PPP_MPLS) => Network::EtherType(ether_type::MPLS, payload),
        _ => Network::Other,
    })
}
