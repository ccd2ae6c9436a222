//! Decodes captured packets to UDP datagrams.
//!
//! ```text
//! link layer ─▶ tags, LLC, MPLS, PPPoE ─▶ IPv4 or IPv6 ─▶ extension headers ─▶ UDP ─▶ datagram
//!                        ▲                      │                │              │
//!                        │                      └── fragments ───┤              │
//!                        │                          reassembled ─┘              │
//!                        └── GRE, ERSPAN, IP in IP ◀── VXLAN, Geneve ◀──────────┘
//!                            at most MAX_TUNNELS deep
//! ```
//!
//! The decoder has no clock and does no I/O: packets and their times go in, datagrams come out
//! through a callback, borrowed from the packet or from the reassembly buffer. Every packet is
//! counted once: as a datagram, as a pending or reassembled fragment, or under one [`DropReason`];
//! [`Counters::add_up`] checks that.
//!
//! A datagram is complete if all bytes that its UDP length covers were captured. Checksums are not
//! verified: a sending host fills them in after capture, and mirror ports rewrite headers.

mod counters;
mod ip;
mod link;
mod reassembly;
mod tunnel;
mod undecoded;

use std::net::{IpAddr, SocketAddr};

use sekiwake_record::{Vlans, bytes::u16_at};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::deduplicate::{DeduplicateSettings, Deduplicator};

use self::{
    link::{Network, ether_type},
    reassembly::Reassembly,
    tunnel::{Tunnel, TunnelError},
};

pub use self::{
    counters::{Counters, DropReason, Dropped},
    link::LinkType,
    reassembly::ReassemblyLimits,
    undecoded::{Undecoded, UndecodedCounts},
};

/// Tunnels that may be nested.
pub const MAX_TUNNELS: u8 = 4;

/// A packet as libpcap returns it.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// Capture time, nanoseconds since 1970-01-01T00:00:00Z.
    pub captured_at_ns: u64,
    /// The link type of the data.
    pub link: LinkType,
    /// The captured bytes.
    pub data: &'a [u8],
    /// Length of the packet on the wire, bytes. More than `data` if the snapshot length truncated
    /// it.
    pub original_length: u32,
}

/// A complete UDP datagram.
#[derive(Clone, Debug)]
pub struct Datagram<'a> {
    /// Capture time of the packet that completed it, nanoseconds since 1970-01-01T00:00:00Z.
    pub captured_at_ns: u64,
    /// Source address of the innermost IP header.
    pub source: IpAddr,
    /// Source port.
    pub source_port: u16,
    /// Destination address of the innermost IP header.
    pub destination: IpAddr,
    /// Destination port.
    pub destination_port: u16,
    /// The bytes that the UDP length covers, without the UDP header.
    pub payload: &'a [u8],
    /// IPv4 identification, or that of IPv6's fragment header; 0 without one.
    pub identification: u32,
    /// VLAN identifiers of the packet that completed it, outermost first, those inside tunnels
    /// last.
    pub vlans: Vlans,
    /// Differentiated services code point, 6 bits; that of the first fragment if it was fragmented.
    pub dscp: u8,
    /// Time to live or hop limit; that of the first fragment if it was fragmented.
    pub ttl: u8,
    /// It was reassembled from IP fragments.
    pub reassembled: bool,
    /// It was decapsulated from a tunnel.
    pub decapsulated: bool,
}

/// Settings of a [`Decoder`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderSettings {
    /// Bounds of fragment reassembly.
    pub reassembly: ReassemblyLimits,
    /// The link's MTU, bytes from the IP header on. A longer packet was never on the wire: it is an
    /// artefact of segmentation offload, and is dropped as [`DropReason::Offload`]. `None` for
    /// savefiles, whose link is unknown.
    pub mtu: Option<u32>,
    /// Whether packets inside tunnels are decoded. If not, a tunnel over UDP is a datagram, and any
    /// other is dropped as [`DropReason::NotUdp`].
    pub tunnels: bool,
    /// How copies of fragments are recognised, which are dropped as
    /// [`DropReason::FragmentDuplicate`]; `None` if they are not.
    pub deduplicate: Option<DeduplicateSettings>,
}

impl Default for DecoderSettings {
    fn default() -> DecoderSettings {
        DecoderSettings { reassembly: ReassemblyLimits::default(), mtu: None, tunnels: true, deduplicate: None }
    }
}

/// The result of decoding a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A datagram was delivered.
    Delivered,
    /// It is a fragment of an incomplete datagram.
    Pending,
    /// It was dropped for this reason.
    Dropped(DropReason),
}

/// Decodes packets to UDP datagrams.
pub struct Decoder {
    settings: DecoderSettings,
    reassembly: Reassembly,
    /// Of fragments.
    deduplicator: Option<Deduplicator>,
    counters: Counters,
    /// Of the last packet dropped for a reason that [`Decoder::undecoded`] lists.
    undecoded: Option<Undecoded>,
    /// Of the last packet dropped as [`DropReason::Offload`].
    coalesced_to: Option<SocketAddr>,
}

/// The result for a packet that was not dropped.
enum Accepted {
    Delivered,
    Pending,
}

/// What is known about a packet from the headers decoded so far.
struct Layers {
    captured_at_ns: u64,
    vlans: Vlans,
    /// Tunnels around the current header.
    tunnels: u8,
    /// A hash of these tunnels, see [`mix`].
    context: u64,
    /// Bytes that the innermost length field covers but that were not captured.
    missing: usize,
    /// Length of the frame on the wire, bytes.
    frame_bytes: usize,
    /// The outermost IP packet is longer than the link's MTU.
    oversize: bool,
    reassembled: bool,
}

impl Layers {
    /// The drop reason of a packet that ends inside a header: truncated if bytes are known to be
    /// missing, otherwise its length is wrong.
    #[cold]
    fn too_short(&self) -> DropReason {
        if self.missing > 0 { DropReason::Truncated } else { DropReason::BadLength }
    }
}

impl Decoder {
    /// A decoder without pending fragments.
    pub fn new(settings: DecoderSettings) -> Decoder {
        Decoder {
            settings,
            reassembly: Reassembly::new(settings.reassembly),
            deduplicator: settings.deduplicate.map(Deduplicator::new),
            counters: Counters::default(),
            undecoded: None,
            coalesced_to: None,
        }
    }

    /// Decodes one packet. If it completes a datagram, calls `deliver` once.
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
            None => Err(layers.too_short()),
        };
        match accepted {
            Ok(Accepted::Delivered) => Outcome::Delivered,
            Ok(Accepted::Pending) => Outcome::Pending,
            Err(reason) => {
                self.counters.dropped.add(reason, 1);
                Outcome::Dropped(reason)
            }
        }
    }

    /// Discards the fragments that have timed out at `now_ns`, nanoseconds since
    /// 1970-01-01T00:00:00Z. Call it about once per second: on a quiet link no packet arrives that
    /// would trigger this.
    pub fn expire(&mut self, now_ns: u64) {
        self.reassembly.expire(now_ns, &mut self.counters);
    }

    /// Discards all pending fragments at the end of a capture.
    pub fn finish(&mut self) {
        self.reassembly.finish(&mut self.counters);
    }

    /// Sets the largest IP packet that the link carries, bytes; `None` if unknown.
    pub fn set_mtu(&mut self, mtu: Option<u32>) {
        self.settings.mtu = mtu;
    }

    /// Fragments forgotten before their copies could be captured, because too many were remembered.
    pub fn evicted(&self) -> u64 {
        self.deduplicator.as_ref().map_or(0, Deduplicator::evicted)
    }

    /// The running totals.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Where decoding of the last packet stopped, if it was dropped for this reason; `None` if the
    /// reason is not an unsupported protocol, or no header field announced the protocol.
    pub fn undecoded(&self, reason: DropReason) -> Option<Undecoded> {
        match reason {
            DropReason::NotIp | DropReason::NotUdp | DropReason::UnsupportedEncapsulation => self.undecoded,
            _ => None,
        }
    }

    /// The destination of the last packet dropped as [`DropReason::Offload`]; `None` for a tunnel,
    /// whose inner datagrams may have any destination.
    pub fn coalesced_to(&self) -> Option<SocketAddr> {
        self.coalesced_to
    }

    /// Remembers where decoding stopped.
    #[cold]
    fn stop_at(&mut self, at: Option<Undecoded>, reason: DropReason) -> DropReason {
        self.undecoded = at;
        reason
    }

    /// Memory of pending fragments, bytes, which [`ReassemblyLimits::bytes`] bounds.
    pub fn reassembly_bytes(&self) -> usize {
        self.reassembly.memory()
    }

    /// Decodes the headers between the link layer and IP.
    #[inline]
    fn network<F: FnMut(&Datagram<'_>)>(
        &mut self,
        layers: &mut Layers,
        mut network: Network<'_>,
        deliver: &mut F,
    ) -> Result<Accepted, DropReason> {
        let mut announced_by = None;
        // Terminates, because each iteration consumes bytes, except one that only determines the IP
        // version.
        loop {
            network = match network {
                Network::EtherType(ether_type::IPV4, packet) => return self.ipv4(layers, packet, deliver),
                Network::EtherType(ether_type::IPV6, packet) => return self.ipv6(layers, packet, deliver),
                Network::EtherType(ether_type, packet) => {
                    announced_by = Some(Undecoded::EtherType(ether_type));
                    self.shim_header(layers, ether_type, packet)?
                }
                Network::Ip(packet) => match packet.first().map(|first| first >> 4) {
                    Some(4) => Network::EtherType(ether_type::IPV4, packet),
                    Some(6) => Network::EtherType(ether_type::IPV6, packet),
                    Some(_) => Network::Other,
                    None => return Err(layers.too_short()),
                },
                Network::Other => return Err(self.stop_at(announced_by, DropReason::NotIp)),
            };
        }
    }

    /// Decodes one header between the link layer and IP: a tag, LLC with SNAP, MPLS, PPPoE or
    /// bridged Ethernet.
    fn shim_header<'a>(
        &mut self,
        layers: &mut Layers,
        ether_type: u16,
        packet: &'a [u8],
    ) -> Result<Network<'a>, DropReason> {
        if let Some(tag_bytes) = link::tag_bytes(ether_type) {
            let (Some(tag), Some(inner_type), Some(inner)) =
                (u16_at(packet, 0), u16_at(packet, tag_bytes), packet.get(tag_bytes + 2..))
            else {
                return Err(layers.too_short());
            };
            if ether_type::is_vlan(ether_type) && !layers.vlans.is_full() {
                layers.vlans.push(tag & 0x0fff);
            }
            return Ok(Network::EtherType(inner_type, inner));
        }
        match ether_type {
            ..ether_type::MIN => match link::llc(packet).ok_or_else(|| layers.too_short())? {
                Network::EtherType(inner_type, inner) if inner_type >= ether_type::MIN => {
                    Ok(Network::EtherType(inner_type, inner))
                }
                _ => Err(self.stop_at(packet.first().copied().map(Undecoded::Llc), DropReason::NotIp)),
            },
            ether_type::MPLS | ether_type::MPLS_UPSTREAM => {
                tunnel::below_mpls(packet).map(Network::Ip).ok_or_else(|| layers.too_short())
            }
            ether_type::PPPOE_SESSION => tunnel::pppoe_session(packet)
                .map_err(|error| self.tunnel_drop(layers, Undecoded::EtherType(ether_type), &error)),
            ether_type::TRANSPARENT_ETHERNET => link::ethernet(packet).ok_or_else(|| layers.too_short()),
            _ => Err(self.stop_at(Some(Undecoded::EtherType(ether_type)), DropReason::NotIp)),
        }
    }

    /// The drop reason of a tunnel that `at` announces and that cannot be decoded.
    fn tunnel_drop(&mut self, layers: &Layers, at: Undecoded, error: &TunnelError) -> DropReason {
        match error {
            TunnelError::Short => layers.too_short(),
            TunnelError::Unsupported => self.stop_at(Some(at), DropReason::UnsupportedEncapsulation),
        }
    }

    /// Decodes the packet in a tunnel.
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

/// Adds bytes to the hash of the VLANs and tunnels around a packet. The hash only decides which
/// fragments belong together.
fn mix(context: u64, bytes: &[u8]) -> u64 {
    xxh3_64_with_seed(bytes, context)
}
