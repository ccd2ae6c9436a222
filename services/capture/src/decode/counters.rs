//! What became of every packet.

use std::fmt;

/// Why a packet did not become a datagram. Every packet that is dropped has exactly one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// Something else than IPv4 or IPv6 is in the frame: ARP, LLDP, spanning tree, an unknown EtherType.
    NotIp,
    /// IP carries something else than UDP: TCP, ICMP, ESP.
    NotUdp,
    /// The packet was cut, by the snap length or by what mirrored it, before the end of the datagram.
    Truncated,
    /// A header is malformed, or a length contradicts the header around it.
    BadLength,
    /// A tunnel of a sort or version that is not decoded, such as the PPTP variant of GRE.
    UnsupportedEncapsulation,
    /// More tunnels in one another than [`MAX_TUNNELS`](super::MAX_TUNNELS).
    TooDeep,
    /// Longer than the link's MTU: segmentation offload joined several datagrams before they were captured.
    Offload,
    /// The rest of the datagram did not come in time, or not before the end of the savefile.
    FragmentTimeout,
    /// The same fragment a second time.
    FragmentDuplicate,
    /// Fragments contradict each other: all of the datagram is discarded (RFC 5722).
    FragmentOverlap,
    /// Put aside unfinished, because more fragments were waiting than memory is allowed for them.
    FragmentMemory,
    /// A fragment that cannot be one: empty, beyond 65,535 bytes, or of an odd length in the middle.
    FragmentInvalid,
}

impl DropReason {
    /// How many reasons there are.
    pub const COUNT: usize = DropReason::ALL.len();

    /// Every reason, in the order of [`DropReason::index`].
    pub const ALL: [DropReason; 12] = [
        DropReason::NotIp,
        DropReason::NotUdp,
        DropReason::Truncated,
        DropReason::BadLength,
        DropReason::UnsupportedEncapsulation,
        DropReason::TooDeep,
        DropReason::Offload,
        DropReason::FragmentTimeout,
        DropReason::FragmentDuplicate,
        DropReason::FragmentOverlap,
        DropReason::FragmentMemory,
        DropReason::FragmentInvalid,
    ];

    /// A dense index, for tables.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name in metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            DropReason::NotIp => "not_ip",
            DropReason::NotUdp => "not_udp",
            DropReason::Truncated => "truncated",
            DropReason::BadLength => "bad_length",
            DropReason::UnsupportedEncapsulation => "unsupported_encapsulation",
            DropReason::TooDeep => "too_deep",
            DropReason::Offload => "offload",
            DropReason::FragmentTimeout => "fragment_timeout",
            DropReason::FragmentDuplicate => "fragment_duplicate",
            DropReason::FragmentOverlap => "fragment_overlap",
            DropReason::FragmentMemory => "fragment_memory",
            DropReason::FragmentInvalid => "fragment_invalid",
        }
    }
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Running totals of a decoder. They close at any time:
/// `packets == datagrams + dropped.total() + fragments_joined + fragments_held`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets given to the decoder.
    pub packets: u64,
    /// Captured bytes of these packets.
    pub bytes: u64,
    /// Datagrams delivered.
    pub datagrams: u64,
    /// Datagrams among them that came in fragments.
    pub reassembled: u64,
    /// Datagrams among them that were taken out of a tunnel.
    pub decapsulated: u64,
    /// Well-formed IP fragments seen, in whatever tunnel. A packet may count twice: in the tunnel and around it.
    pub fragments: u64,
    /// Packets that wait in reassembly now.
    pub fragments_held: u64,
    /// Packets whose bytes went into a datagram that a later packet completed.
    pub fragments_joined: u64,
    /// Packets that became nothing, by reason.
    pub dropped: Dropped,
}

impl Counters {
    /// Whether every packet is accounted for.
    pub fn close(&self) -> bool {
        self.packets == self.datagrams + self.dropped.total() + self.fragments_joined + self.fragments_held
    }
}

/// Packets dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped([u64; DropReason::COUNT]);

impl Dropped {
    /// How many packets were dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason.index()]
    }

    /// How many packets were dropped at all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Every reason with its number of packets.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.into_iter().map(|reason| (reason, self.get(reason)))
    }

    pub(super) fn add(&mut self, reason: DropReason, packets: u64) {
        self.0[reason.index()] += packets;
    }
}
