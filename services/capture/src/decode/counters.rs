//! Counters of packets, and the reasons for dropping them.

use std::fmt;

/// Why a packet did not become a datagram. Every dropped packet has exactly one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The frame carries neither IPv4 nor IPv6 but ARP, LLDP, spanning tree, or an unknown
    /// EtherType.
    NotIp,
    /// The IP packet does not carry UDP but TCP, ICMP, ESP, ...
    NotUdp,
    /// The snapshot length or the mirroring device truncated the packet before the end of the
    /// datagram.
    Truncated,
    /// A header is malformed, or a length contradicts the header around it.
    BadLength,
    /// An unsupported tunnel type or version, such as the PPTP variant of GRE.
    UnsupportedEncapsulation,
    /// More nested tunnels than [`MAX_TUNNELS`](super::MAX_TUNNELS).
    TooDeep,
    /// Longer than the link's MTU: segmentation offload coalesced several datagrams before capture.
    Offload,
    /// The datagram was still incomplete at the timeout, or at the end of the savefile.
    FragmentTimeout,
    /// A fragment received before.
    FragmentDuplicate,
    /// Fragments overlap or contradict each other: the whole datagram is discarded (RFC 5722).
    FragmentOverlap,
    /// Evicted while incomplete, because pending fragments reached a memory limit.
    FragmentMemory,
    /// An impossible fragment: empty, past byte 65,535, or not the last one and of a length that is
    /// not a multiple of 8.
    FragmentInvalid,
}

impl DropReason {
    /// The number of reasons.
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

/// Running totals of a decoder. At any time
/// `packets == datagrams + dropped.total() + fragments_reassembled + fragments_pending`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets decoded.
    pub packets: u64,
    /// Captured bytes of these packets.
    pub bytes: u64,
    /// Datagrams delivered.
    pub datagrams: u64,
    /// Datagrams among them that were reassembled from fragments.
    pub reassembled: u64,
    /// Datagrams among them that were decapsulated from a tunnel.
    pub decapsulated: u64,
    /// Well-formed IP fragments, inside tunnels too. A packet may count twice: as a fragment of the
    /// tunnel and as one inside it.
    pub fragments: u64,
    /// Packets waiting in reassembly.
    pub fragments_pending: u64,
    /// Packets reassembled, except the one that completed each datagram.
    pub fragments_reassembled: u64,
    /// Packets dropped, by reason.
    pub dropped: Dropped,
}

impl Counters {
    /// Whether every packet is counted exactly once.
    pub fn add_up(&self) -> bool {
        self.packets == self.datagrams + self.dropped.total() + self.fragments_reassembled + self.fragments_pending
    }
}

/// Packets dropped, by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dropped([u64; DropReason::COUNT]);

impl Dropped {
    /// Packets dropped for `reason`.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0[reason.index()]
    }

    /// Packets dropped for any reason.
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
