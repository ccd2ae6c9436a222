//! IPv4, IPv6 and its extension headers, fragments, and UDP.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, UdpHeaderSlice,
};

use crate::deduplicate::FragmentParts;

use super::{
    Accepted, Datagram, Decoder, DropReason, Layers, Undecoded,
    link::{Network, ether_type},
    mix,
    reassembly::{Fragment, HeaderFields, Key},
    tunnel::{self, Tunnel},
};

/// IP protocol numbers: IPv4's protocol field, IPv6's next header.
mod protocol {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const IPV4: u8 = 4;
    pub(super) const UDP: u8 = 17;
    pub(super) const IPV6: u8 = 41;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const GRE: u8 = 47;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION_OPTIONS: u8 = 60;
    pub(super) const MOBILITY: u8 = 135;
    pub(super) const MPLS: u8 = 137;
    pub(super) const HOST_IDENTITY: u8 = 139;
    pub(super) const SHIM6: u8 = 140;
    pub(super) const ETHERNET: u8 = 143;
}

/// The fields of an IP header that outlive its decoding.
#[derive(Clone, Copy)]
pub(super) struct Header {
    source: IpAddr,
    destination: IpAddr,
    dscp: u8,
    ttl: u8,
    /// 0 without one; of IPv6, that of the fragment header.
    identification: u32,
}

impl Header {
    /// The context of the packets in a tunnel with this outer header. `around` is the context that
    /// the tunnel itself is in.
    pub(super) fn context(&self, around: u64, identifier: u32) -> u64 {
        let context = mix(around, &identifier.to_be_bytes());
        [self.source, self.destination].iter().fold(context, |context, address| match address {
            IpAddr::V4(v4) => mix(context, &v4.octets()),
            IpAddr::V6(v6) => mix(context, &v6.octets()),
        })
    }
}

/// An IP payload to be decoded.
#[derive(Clone, Copy)]
struct Payload<'a> {
    /// The protocol of its first header.
    protocol: u8,
    bytes: &'a [u8],
    /// It was reassembled, so it must not contain another fragment header.
    reassembled: bool,
}

impl Decoder {
    #[inline]
    pub(super) fn ipv4<F: FnMut(&Datagram<'_>)>(
        &mut self,
        layers: &mut Layers,
        packet: &[u8],
        deliver: &mut F,
    ) -> Result<Accepted, DropReason> {
        let header = Ipv4HeaderSlice::from_slice(packet).map_err(|error| match error {
            etherparse::err::ipv4::HeaderSliceError::Len(_) => layers.too_short(),
            etherparse::err::ipv4::HeaderSliceError::Content(_) => DropReason::BadLength,
        })?;
        let header_bytes = header.slice().len();
        let total_bytes = usize::from(header.total_len());
        if total_bytes < header_bytes {
            return Err(DropReason::BadLength);
        }
        self.measure(layers, packet, total_bytes);
        let payload = Payload {
            protocol: header.protocol().0,
            bytes: &packet[header_bytes..total_bytes.min(packet.len())],
            reassembled: false,
        };
        let kept = Header {
            source: IpAddr::V4(header.source_addr()),
            destination: IpAddr::V4(header.destination_addr()),
            dscp: header.dcp().value(),
            ttl: header.ttl(),
            identification: u32::from(header.identification()),
        };
        if !header.is_fragmenting_payload() {
            return self.payload(layers, &kept, payload, deliver);
        }
        let fragment = Fragment {
            offset: u32::from(header.fragments_offset().value()) * 8,
            more: header.more_fragments(),
            bytes: payload.bytes,
            fields: kept.fields(payload.protocol),
        };
        self.fragment(layers, &kept, payload.protocol, fragment, deliver)
    }

    #[inline]
    pub(super) fn ipv6<F: FnMut(&Datagram<'_>)>(
        &mut self,
        layers: &mut Layers,
        packet: &[u8],
        deliver: &mut F,
    ) -> Result<Accepted, DropReason> {
        let header = Ipv6HeaderSlice::from_slice(packet).map_err(|error| match error {
            etherparse::err::ipv6::HeaderSliceError::Len(_) => layers.too_short(),
            etherparse::err::ipv6::HeaderSliceError::Content(_) => DropReason::BadLength,
        })?;
        let header_bytes = header.slice().len();
        let total_bytes = header_bytes + usize::from(header.payload_length());
        self.measure(layers, packet, total_bytes);
        let payload = Payload {
            protocol: header.next_header().0,
            bytes: &packet[header_bytes..total_bytes.min(packet.len())],
            reassembled: false,
        };
        let kept = Header {
            source: IpAddr::V6(header.source_addr()),
            destination: IpAddr::V6(header.destination_addr()),
            dscp: header.dscp().value(),
            ttl: header.hop_limit(),
            identification: 0,
        };
        self.payload(layers, &kept, payload, deliver)
    }

    /// Compares the length field of an IP header with the captured bytes and with the MTU.
    #[inline]
    fn measure(&self, layers: &mut Layers, packet: &[u8], total_bytes: usize) {
        layers.missing = total_bytes.saturating_sub(packet.len());
        // A length field larger than the frame is damage, not a sign of offload.
        let carried_bytes = total_bytes.min(layers.frame_bytes);
        if layers.tunnels == 0 && self.settings.mtu.is_some_and(|mtu| carried_bytes > mtu as usize) {
            layers.oversize = true;
        }
    }

    /// Decodes the headers after an IP header, up to UDP or into a tunnel.
    #[inline]
    fn payload<F: FnMut(&Datagram<'_>)>(
        &mut self,
        layers: &mut Layers,
        ip: &Header,
        mut payload: Payload<'_>,
        deliver: &mut F,
    ) -> Result<Accepted, DropReason> {
        let mut ip = *ip;
        // Terminates, because each iteration consumes at least the bytes of one header.
        loop {
            let bytes = payload.bytes;
            let (next, header_bytes) = match payload.protocol {
                protocol::UDP => return self.udp(layers, &ip, bytes, deliver),
                protocol::AUTHENTICATION => match IpAuthHeaderSlice::from_slice(bytes) {
                    Ok(header) => (header.next_header().0, header.slice().len()),
                    Err(_) => return Err(layers.too_short()),
                },
                protocol::FRAGMENT if ip.source.is_ipv6() => {
                    let header = Ipv6FragmentHeaderSlice::from_slice(bytes).map_err(|_| layers.too_short())?;
                    let header_bytes = header.slice().len();
                    // An extension header occurs once (RFC 8200 §4.1). Nested ones must not be
                    // followed, because each level is a recursive call.
                    if payload.reassembled {
                        return Err(DropReason::FragmentInvalid);
                    }
                    ip.identification = header.identification();
                    if header.is_fragmenting_payload() {
                        let fragment = Fragment {
                            offset: u32::from(header.fragment_offset().value()) * 8,
                            more: header.more_fragments(),
                            bytes: &bytes[header_bytes..],
                            fields: ip.fields(header.next_header().0),
                        };
                        return self.fragment(layers, &ip, 0, fragment, deliver);
                    }
                    // An atomic fragment (RFC 6946) is a whole datagram. It must not be combined
                    // with other fragments of the same identification.
                    (header.next_header().0, header_bytes)
                }
                protocol::HOP_BY_HOP
                | protocol::ROUTING
                | protocol::DESTINATION_OPTIONS
                | protocol::MOBILITY
                | protocol::HOST_IDENTITY
                | protocol::SHIM6
                    if ip.source.is_ipv6() =>
                {
                    let header = Ipv6RawExtHeaderSlice::from_slice(bytes).map_err(|_| layers.too_short())?;
                    (header.next_header().0, header.slice().len())
                }
                _ if self.settings.tunnels => return self.encapsulated(layers, &ip, payload, deliver),
                protocol => return Err(self.stop_at(Some(Undecoded::IpProtocol(protocol)), DropReason::NotUdp)),
            };
            payload = Payload { protocol: next, bytes: &bytes[header_bytes..], ..payload };
        }
    }

    /// Decodes a tunnel directly over IP.
    fn encapsulated<F: FnMut(&Datagram<'_>)>(
        &mut self,
        layers: &mut Layers,
        ip: &Header,
        payload: Payload<'_>,
        deliver: &mut F,
    ) -> Result<Accepted, DropReason> {
        let inner = match payload.protocol {
            protocol::IPV4 => Network::EtherType(ether_type::IPV4, payload.bytes),
            protocol::IPV6 => Network::EtherType(ether_type::IPV6, payload.bytes),
            protocol::MPLS => Network::EtherType(ether_type::MPLS, payload.bytes),
            protocol::ETHERNET => Network::EtherType(ether_type::TRANSPARENT_ETHERNET, payload.bytes),
            protocol::GRE => {
                let tunnel = tunnel::gre(payload.bytes)
                    .map_err(|error| self.tunnel_drop(layers, Undecoded::IpProtocol(payload.protocol), &error))?;
                return self.tunnel(layers, ip, tunnel, deliver);
            }
            protocol => return Err(self.stop_at(Some(Undecoded::IpProtocol(protocol)), DropReason::NotUdp)),
        };
        self.tunnel(layers, ip, Tunnel { inner, identifier: u32::from(payload.protocol) }, deliver)
    }

    /// Adds a fragment to reassembly and decodes the datagram that it completes.
    fn fragment<F: FnMut(&Datagram<'_>)>(
        &mut self,
        layers: &mut Layers,
        ip: &Header,
        protocol: u8,
        fragment: Fragment<'_>,
        deliver: &mut F,
    ) -> Result<Accepted, DropReason> {
        self.counters.fragments += 1;
        if layers.missing > 0 {
            return Err(DropReason::Truncated);
        }
        let context = layers.vlans.iter().fold(layers.context, |context, vlan| mix(context, &vlan.to_be_bytes()));
        let Header { source, destination, identification, .. } = *ip;
        if let Some(deduplicator) = &mut self.deduplicator {
            let fingerprint = deduplicator.fragment_fingerprint(&FragmentParts {
                context,
                source,
                destination,
                identification,
                protocol: fragment.fields.protocol,
                offset: fragment.offset,
                more: fragment.more,
                bytes: fragment.bytes,
            });
            if deduplicator.is_copy(fingerprint, layers.captured_at_ns) {
                return Err(DropReason::FragmentDuplicate);
            }
        }
        let key = Key { source, destination, identification, protocol, context };
        let Some(datagram) = self.reassembly.push(key, fragment, layers.captured_at_ns, &mut self.counters)? else {
            return Ok(Accepted::Pending);
        };
        layers.reassembled = true;
        let first = Header { dscp: datagram.fields.dscp, ttl: datagram.fields.ttl, ..*ip };
        let payload = Payload { protocol: datagram.fields.protocol, bytes: &datagram.bytes, reassembled: true };
        let accepted = self.payload(layers, &first, payload, deliver);
        self.reassembly.recycle(datagram);
        accepted
    }

    #[inline]
    fn udp<F: FnMut(&Datagram<'_>)>(
        &mut self,
        layers: &mut Layers,
        ip: &Header,
        segment: &[u8],
        deliver: &mut F,
    ) -> Result<Accepted, DropReason> {
        let header = UdpHeaderSlice::from_slice(segment).map_err(|_| layers.too_short())?;
        let header_bytes = header.slice().len();
        let length = usize::from(header.length());
        if length < header_bytes || length > segment.len() + layers.missing {
            return Err(DropReason::BadLength);
        }
        if layers.oversize {
            let is_tunnel = self.settings.tunnels && tunnel::is_udp_port(header.destination_port());
            self.coalesced_to = (!is_tunnel).then(|| SocketAddr::new(ip.destination, header.destination_port()));
            return Err(DropReason::Offload);
        }
        let Some(payload) = segment.get(header_bytes..length) else {
            return Err(DropReason::Truncated);
        };
        if self.settings.tunnels
            && let Some(tunnel) = tunnel::over_udp(header.destination_port(), payload)
        {
            return self.tunnel(layers, ip, tunnel, deliver);
        }
        self.counters.datagrams += 1;
        self.counters.reassembled += u64::from(layers.reassembled);
        self.counters.decapsulated += u64::from(layers.tunnels > 0);
        deliver(&Datagram {
            captured_at_ns: layers.captured_at_ns,
            source: ip.source,
            source_port: header.source_port(),
            destination: ip.destination,
            destination_port: header.destination_port(),
            payload,
            identification: ip.identification,
            vlans: layers.vlans.clone(),
            dscp: ip.dscp,
            ttl: ip.ttl,
            reassembled: layers.reassembled,
            decapsulated: layers.tunnels > 0,
        });
        Ok(Accepted::Delivered)
    }
}

impl Header {
    fn fields(&self, protocol: u8) -> HeaderFields {
        HeaderFields { protocol, dscp: self.dscp, ttl: self.ttl }
    }
}
