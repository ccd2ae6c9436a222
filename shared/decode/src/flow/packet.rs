//! The beginning of a sampled packet.
//!
//! ```text
//! protocol u32 │ length of the frame u32 │ bytes removed from its end u32 │ bytes, with their length
//! ```

use etherparse::{LaxLinkExtSlice, LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice};

use super::{Flow, Name, Value, sflow::Reader};

/// Protocols of a header (sFlow v5, `header_protocol`).
const ETHERNET: u32 = 1;
const IPV4: u32 = 11;
const IPV6: u32 = 12;

/// Adds what the headers say. `None` if the record is incomplete. What is not Ethernet or IP is
/// shown in bytes.
pub(super) fn decode<'p>(reader: &mut Reader<'p>, flow: &mut Flow<'p>) -> Option<()> {
    let protocol = reader.u32()?;
    let (frame_length, removed) = (reader.u32()?, reader.u32()?);
    let header = reader.opaque()?;
    let mut add = |name, value| flow.push(Name::Known(name), value);
    add("headerProtocol", Value::Unsigned(protocol.into()));
    add("dataLinkFrameSize", Value::Unsigned(frame_length.into()));
    add("strippedOctets", Value::Unsigned(removed.into()));
    let packet = match protocol {
        ETHERNET => LaxSlicedPacket::from_ethernet(header).ok(),
        IPV4 | IPV6 => LaxSlicedPacket::from_ip(header).ok(),
        _ => None,
    };
    let Some(packet) = packet else {
        add("sampledHeader", Value::Bytes(header));
        return Some(());
    };
    if let Some(LinkSlice::Ethernet2(ethernet)) = &packet.link {
        add("sourceMacAddress", Value::Mac(ethernet.source()));
        add("destinationMacAddress", Value::Mac(ethernet.destination()));
        let last = packet.link_exts.iter().rev().find_map(|extension| match extension {
            LaxLinkExtSlice::Vlan(vlan) => Some(vlan.ether_type()),
            LaxLinkExtSlice::Macsec(_) => None,
        });
        let ether_type = last.unwrap_or(ethernet.ether_type());
        add("ethernetType", Value::Unsigned(ether_type.0.into()));
    }
    for extension in &packet.link_exts {
        if let LaxLinkExtSlice::Vlan(vlan) = extension {
            add("dot1qVlanId", Value::Unsigned(vlan.vlan_identifier().value().into()));
        }
    }
    match &packet.net {
        Some(LaxNetSlice::Ipv4(ip)) => {
            let header = ip.header();
            add("sourceIPv4Address", Value::Ipv4(header.source_addr()));
            add("destinationIPv4Address", Value::Ipv4(header.destination_addr()));
            add("protocolIdentifier", Value::Unsigned(header.protocol().0.into()));
            add("ipTotalLength", Value::Unsigned(header.total_len().into()));
            add("ipTTL", Value::Unsigned(header.ttl().into()));
            let traffic_class = header.dcp().value() << 2 | header.ecn().value();
            add("ipClassOfService", Value::Unsigned(traffic_class.into()));
            if header.is_fragmenting_payload() {
                add("fragmentIdentification", Value::Unsigned(header.identification().into()));
                add("fragmentOffset", Value::Unsigned(header.fragments_offset().value().into()));
            }
        }
        Some(LaxNetSlice::Ipv6(ip)) => {
            let header = ip.header();
            add("sourceIPv6Address", Value::Ipv6(header.source_addr()));
            add("destinationIPv6Address", Value::Ipv6(header.destination_addr()));
            add("protocolIdentifier", Value::Unsigned(ip.payload().ip_number.0.into()));
            add("ipTotalLength", Value::Unsigned(u64::from(header.payload_length()) + 40));
            add("ipTTL", Value::Unsigned(header.hop_limit().into()));
            add("ipClassOfService", Value::Unsigned(header.traffic_class().into()));
            add("flowLabelIPv6", Value::Unsigned(header.flow_label().value().into()));
        }
        _ => {}
    }
    let ports = match &packet.transport {
        Some(TransportSlice::Udp(udp)) => Some((udp.source_port(), udp.destination_port())),
        Some(TransportSlice::Tcp(tcp)) => Some((tcp.source_port(), tcp.destination_port())),
        _ => None,
    };
    if let Some((source, destination)) = ports {
        add("sourceTransportPort", Value::Unsigned(source.into()));
        add("destinationTransportPort", Value::Unsigned(destination.into()));
    }
    match &packet.transport {
        // The low byte of the flags is the fourteenth byte of the header (RFC 9293 §3.1).
        Some(TransportSlice::Tcp(tcp)) => {
            add("tcpControlBits", Value::Unsigned(tcp.header_slice()[13].into()));
        }
        Some(TransportSlice::Icmpv4(icmp)) => {
            add("icmpTypeIPv4", Value::Unsigned(icmp.type_u8().into()));
            add("icmpCodeIPv4", Value::Unsigned(icmp.code_u8().into()));
        }
        Some(TransportSlice::Icmpv6(icmp)) => {
            add("icmpTypeIPv6", Value::Unsigned(icmp.type_u8().into()));
            add("icmpCodeIPv6", Value::Unsigned(icmp.code_u8().into()));
        }
        _ => {}
    }
    Some(())
}
