//! From a captured packet to the UDP datagram in it.
//!
//! ```text
//! link layer ─▶ VLAN tags, MPLS, PPPoE ─▶ IPv4 or IPv6 ─▶ extension headers ─▶ UDP ─▶ datagram
//!                        ▲                      │                │              │
//!                        │                      └── fragments ───┤              │
//!                        │                          reassembled ─┘              │
//!                        └── GRE, ERSPAN, IP in IP ◀── VXLAN, Geneve ◀──────────┘     at most MAX_TUNNELS deep
//! ```
//!
//! The decoder has no clock and does no I/O: packets and their times go in, datagrams come out through a callback, borrowed
//! from the packet or from the reassembly buffer. Every packet ends as a datagram, as a fragment that waits or was joined
//! with others, or under one [`DropReason`]; [`Counters::close`] says so.
//!
//! A datagram counts as whole when all bytes that its UDP length promises are there. Checksums are no reason to drop: on the
//! sending host they are filled in after capture, and mirrors rewrite headers.

mod bytes;
mod counters;
mod ip;
mod link;
mod reassembly;
mod tunnel;

use std::net::IpAddr;

use sekiwake_record::Vlans;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use self::{
    bytes::{skip, u16_at},
    link::{Network, ether_type},
    reassembly::Reassembly,
    tunnel::{Tunnel, TunnelError},
};

pub use self::{
    counters::{Counters, DropReason, Dropped},
    link::LinkType,
    reassembly::ReassemblyLimits,
};

/// How many tunnels may be nested in one another.
pub const MAX_TUNNELS: u8 = 4;

/// A packet as libpcap gives it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// When it was captured, nanoseconds since 1970-01-01T00:00:00Z.
    pub captured_at_ns: u64,
    /// What the data begins with.
    pub link: LinkType,
    /// The captured bytes.
    pub data: &'a [u8],
    /// How long the packet was on the wire, bytes. More than `data` when it was cut by the snap length.
    pub original_length: u32,
}

/// A UDP datagram, whole.
#[derive(Clone, Debug)]
pub struct Datagram<'a> {
    /// When the packet that completed it was captured, nanoseconds since 1970-01-01T00:00:00Z.
    pub captured_at_ns: u64,
    /// Source address of the innermost IP header.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address of the innermost IP header.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// Exactly the bytes that the UDP length covers, without the UDP header.
    pub payload: &'a [u8],
    /// VLAN identifiers of the packet that completed it, outermost first, those inside of tunnels last.
    pub vlans: Vlans,
    /// Differentiated services code point, 6 bits; of a fragmented datagram, that of the first fragment.
    pub dscp: u8,
    /// Time to live or hop limit; of a fragmented datagram, that of the first fragment.
    pub ttl: u8,
    /// It came in IP fragments.
    pub reassembled: bool,
    /// It was taken out of a tunnel.
    pub decapsulated: bool,
}

/// What a decoder does and how much memory it may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderSettings {
    /// Bounds of fragment reassembly.
    pub reassembly: ReassemblyLimits,
    /// The link's MTU, bytes from the IP header on. What is longer is no packet of the wire but the work of segmentation
    /// offload, and is dropped as [`DropReason::Offload`]. `None` for savefiles, whose link is unknown.
    pub mtu: Option<u32>,
    /// Whether tunnels are looked into. If not, a tunnel over UDP is a datagram and any other is [`DropReason::NotUdp`].
    pub tunnels: bool,
}

impl Default for DecoderSettings {
    fn default() -> DecoderSettings {
        DecoderSettings { reassembly: ReassemblyLimits::default(), mtu: None, tunnels: true }
    }
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A datagram was delivered.
    Delivered,
    /// It is a fragment and waits for others.
    Held,
    /// It is counted under this reason.
    Dropped(DropReason),
}

/// Finds UDP datagrams in packets.
pub struct Decoder {
    settings: DecoderSettings,
    reassembly: Reassembly,
    counters: Counters,
}

/// What became of a packet that was not dropped.
enum Accepted {
    Delivered,
    Held,
}

/// What the headers read so far say about the packet.
struct Layers {
    captured_at_ns: u64,
    vlans: Vlans,
    /// How many tunnels the current header is in.
    tunnels: u8,
    /// A hash of these tunnels.
    context: u64,
    /// How many bytes the innermost length field promises that were not captured.
    missing: usize,
    /// How long the frame was on the wire, bytes.
    frame_bytes: usize,
    /// The outermost IP packet is longer than the link's MTU.
    oversize: bool,
    reassembled: bool,
}

impl Layers {
    /// The reason for a packet that ends too early.
    #[cold]
    fn cut(&self) -> DropReason {
        if self.missing > 0 { DropReason::Truncated } else { DropReason::BadLength }
    }
}

impl Decoder {
    /// A decoder that waits for no fragments yet.
    pub fn new(settings: DecoderSettings) -> Decoder {
        Decoder { settings, reassembly: Reassembly::new(settings.reassembly), counters: Counters::default() }
    }

    /// Decodes one packet and hands its datagram, if it completes one, to `deliver`: at most one call.
    ///
    /// The packet's time is also the clock of reassembly.
    #[inline]
    pub fn decode<F: FnMut(&Datagram<'_>)>(&mut self, packet: &Packet<'_>, deliver: &mut F) -> Outcome {
        self.counters.packets += 1;
        self.counters.bytes += packet.data.len() as u64;
        let mut layers = Layers {
            captured_at_ns: packet.captured_at_ns,
            vlans: Vlans::new(),
            tunnels: 0,
            context: 0,
            missing: (packet.original_length as usize).saturating_sub(packet.data.len()),
            frame_bytes: packet.original_length as usize,
            oversize: false,
            reassembled: false,
        };
        let accepted = match link::network(packet.link, packet.data) {
            Some(network) => self.network(&mut layers, network, deliver),
            None => Err(layers.cut()),
        };
        match accepted {
            Ok(Accepted::Delivered) => Outcome::Delivered,
            Ok(Accepted::Held) => Outcome::Held,
            Err(reason) => {
                self.counters.dropped.add(reason, 1);
                Outcome::Dropped(reason)
            }
        }
    }

    /// Gives up the fragments that have waited too long. To be called now and then with the time of day, so that a quiet
    /// link does not hold them for ever.
    pub fn expire(&mut self, now_ns: u64) {
        self.reassembly.expire(now_ns, &mut self.counters);
    }

    /// Gives up all fragments that wait: no more packets will come.
    pub fn finish(&mut self) {
        self.reassembly.finish(&mut self.counters);
    }

    /// Changes the largest IP packet that the link carries, bytes; `None`: not known.
    pub fn set_mtu(&mut self, mtu: Option<u32>) {
        self.settings.mtu = mtu;
    }

    /// What became of all packets so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Memory that waiting fragments take, bytes, as [`ReassemblyLimits::bytes`] bounds it.
    pub fn reassembly_bytes(&self) -> usize {
        self.reassembly.memory()
    }

    /// Goes through everything between the link layer and IP.
    #[inline]
    fn network<F: FnMut(&Datagram<'_>)>(
        &mut self,
        layers: &mut Layers,
        mut network: Network<'_>,
        deliver: &mut F,
    ) -> Result<Accepted, DropReason> {
        // Every turn consumes bytes of the packet.
        loop {
            network = match network {
                Network::EtherType(ether_type::IPV4, packet) => return self.ipv4(layers, packet, deliver),
                Network::EtherType(ether_type::IPV6, packet) => return self.ipv6(layers, packet, deliver),
                Network::EtherType(ether_type, packet) => self.between(layers, ether_type, packet)?,
                Network::Ip(packet) => match packet.first().map(|first| first >> 4) {
                    Some(4) => Network::EtherType(ether_type::IPV4, packet),
                    Some(6) => Network::EtherType(ether_type::IPV6, packet),
                    Some(_) => Network::Other,
                    None => return Err(layers.cut()),
                },
                Network::Other => return Err(DropReason::NotIp),
            };
        }
    }

    /// Reads one header that is neither the link layer's nor IP's.
    fn between<'a>(&self, layers: &mut Layers, ether_type: u16, packet: &'a [u8]) -> Result<Network<'a>, DropReason> {
        match ether_type {
            ether_type::VLAN | ether_type::SERVICE_VLAN | ether_type::OLD_SERVICE_VLAN => {
                let (Some(tag), Some(inner_type), Some(inner)) =
                    (u16_at(packet, 0), u16_at(packet, 2), skip(packet, 4))
                else {
                    return Err(layers.cut());
                };
                if !layers.vlans.is_full() {
                    layers.vlans.push(tag & 0x0fff);
                }
                Ok(Network::EtherType(inner_type, inner))
            }
            ether_type::MPLS | ether_type::MPLS_UPSTREAM => {
                tunnel::below_mpls(packet).map(Network::Ip).ok_or_else(|| layers.cut())
            }
            ether_type::PPPOE_SESSION => tunnel::pppoe_session(packet).map_err(|error| tunnel_drop(layers, &error)),
            ether_type::TRANSPARENT_ETHERNET => link::ethernet(packet).ok_or_else(|| layers.cut()),
            _ => Err(DropReason::NotIp),
        }
    }

    /// Goes into a tunnel.
    fn tunnel<F: FnMut(&Datagram<'_>)>(
        &mut self,
        layers: &mut Layers,
        outer: &ip::Header,
        tunnel: Tunnel<'_>,
        deliver: &mut F,
    ) -> Result<Accepted, DropReason> {
        if layers.tunnels == MAX_TUNNELS {
            return Err(DropReason::TooDeep);
        }
        layers.tunnels += 1;
        layers.context = outer.context(layers.context, tunnel.identifier);
        self.network(layers, tunnel.inner, deliver)
    }
}

fn tunnel_drop(layers: &Layers, error: &TunnelError) -> DropReason {
    match error {
        TunnelError::Short => layers.cut(),
        TunnelError::Unsupported => DropReason::UnsupportedEncapsulation,
    }
}

/// A hash that tells the surroundings of a packet from others. It decides which fragments belong together and nothing else.
fn mix(context: u64, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, context)
}
