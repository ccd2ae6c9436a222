//! Link-layer headers, real ones and those that libpcap makes up.
//!
//! ```text
//! Ethernet          destination 6 | source 6 | EtherType 2
//! Linux cooked v1   packet type 2 | ARPHRD 2 | address length 2 | address 8 | protocol 2
//! Linux cooked v2   protocol 2 | reserved 2 | interface 4 | ARPHRD 2 | packet type 1 |
//!                   address length 1 | address 8
//! null, loopback    address family 4, in the byte order of the host that captured
//! raw               no header: the version nibble of the IP header tells IPv4 from IPv6
//! ```
//!
//! Headers of other standards between the EtherType that announces them and the next EtherType:
//!
//! ```text
//! VLAN tag     priority, identifier 2 | EtherType 2
//! VN-Tag       direction, interfaces 4 | EtherType 2       Cisco, between switch and fabric extender
//! E-Tag        priority, E-CIDs 6 | EtherType 2            IEEE 802.1BR
//! CMD          version 1 | length 1 | option 2 | SGT 2 | EtherType 2       Cisco TrustSec
//! TTag         timestamp 6 | EtherType 2                   Cisco ACI
//! LLC, SNAP    DSAP 1 | SSAP 1 | control 1 | OUI 3 | EtherType 2           IEEE 802.3, RFC 1042
//! ```

use std::fmt;

use sekiwake_record::bytes::{u16_at, u32_at};

/// The supported link types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// Ethernet II, with or without VLAN tags.
    Ethernet,
    /// Linux cooked capture, version 1: the pseudo-device `any` before libpcap 1.10.
    LinuxCookedV1,
    /// Linux cooked capture, version 2.
    LinuxCookedV2,
    /// IPv4 or IPv6 without a link-layer header.
    Raw,
    /// An address family as the header: BSD loopback and tunnel interfaces.
    Null,
}

impl LinkType {
    /// The link type of a libpcap `DLT_` or savefile `LINKTYPE_` number (for these link types they
    /// do not conflict); `None` for all others.
    pub const fn from_number(number: i32) -> Option<LinkType> {
        match number {
            1 => Some(LinkType::Ethernet),
            113 => Some(LinkType::LinuxCookedV1),
            276 => Some(LinkType::LinuxCookedV2),
            12 | 101 | 228 | 229 => Some(LinkType::Raw),
            0 | 108 => Some(LinkType::Null),
            _ => None,
        }
    }

    /// The name in log lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            LinkType::Ethernet => "ethernet",
            LinkType::LinuxCookedV1 => "linux-cooked-v1",
            LinkType::LinuxCookedV2 => "linux-cooked-v2",
            LinkType::Raw => "raw",
            LinkType::Null => "null",
        }
    }
}

impl fmt::Display for LinkType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// EtherType values, also used by the protocol fields of GRE, Geneve and cooked headers.
pub(super) mod ether_type {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const IPV6: u16 = 0x86dd;
    pub(crate) const TRANSPARENT_ETHERNET: u16 = 0x6558;
    /// IEEE 802.1Q customer tag.
    pub(crate) const VLAN: u16 = 0x8100;
    /// IEEE 802.1ad service tag.
    pub(crate) const SERVICE_VLAN: u16 = 0x88a8;
    /// A service tag before IEEE 802.1ad.
    pub(crate) const OLD_SERVICE_VLAN: u16 = 0x9100;
    pub(crate) const MPLS: u16 = 0x8847;
    /// MPLS with an upstream-assigned label (RFC 5332), formerly MPLS multicast.
    pub(crate) const MPLS_UPSTREAM: u16 = 0x8848;
    pub(crate) const PPPOE_SESSION: u16 = 0x8864;
    /// Cisco VN-Tag, as Nexus and UCS mirror it.
    pub(crate) const VN_TAG: u16 = 0x8926;
    /// IEEE 802.1BR E-Tag.
    pub(crate) const E_TAG: u16 = 0x893f;
    /// Cisco MetaData (CMD), the security group tag of TrustSec.
    pub(crate) const CISCO_METADATA: u16 = 0x8909;
    /// Cisco timestamp tag, as ACI mirrors it.
    pub(crate) const TTAG: u16 = 0x8988;
    /// The lowest EtherType. A lower value is the length of an IEEE 802.3 frame, or says in a
    /// cooked header that such a frame follows.
    pub(crate) const MIN: u16 = 0x0600;

    pub(crate) const fn is_vlan(ether_type: u16) -> bool {
        matches!(ether_type, VLAN | SERVICE_VLAN | OLD_SERVICE_VLAN)
    }
}

/// What a link-layer or tunnel header carries.
pub(super) enum Network<'a> {
    /// An EtherType and the bytes that it describes.
    EtherType(u16, &'a [u8]),
    /// An IP packet, its version in the first nibble.
    Ip(&'a [u8]),
    /// Not IP.
    Other,
}

/// The length of an Ethernet header without tags, bytes.
const ETHERNET_BYTES: usize = 14;

/// Reads the header of an Ethernet frame; `None` when the frame ends inside it.
#[inline]
pub(super) fn ethernet(frame: &[u8]) -> Option<Network<'_>> {
    Some(Network::EtherType(u16_at(frame, 12)?, frame.get(ETHERNET_BYTES..)?))
}

/// The number of bytes between a tag's EtherType and the next one; `None` if `ether_type` is not a
/// tag that is skipped.
pub(super) const fn tag_bytes(ether_type: u16) -> Option<usize> {
    match ether_type {
        ether_type::VLAN | ether_type::SERVICE_VLAN | ether_type::OLD_SERVICE_VLAN => Some(2),
        ether_type::VN_TAG => Some(4),
        ether_type::E_TAG | ether_type::CISCO_METADATA | ether_type::TTAG => Some(6),
        _ => None,
    }
}

/// Reads an IEEE 802.2 header and the SNAP header after it; `None` when the packet ends inside.
pub(super) fn llc(packet: &[u8]) -> Option<Network<'_>> {
    const SNAP: u8 = 0xaa;
    const IP: u8 = 0x06;
    const UNNUMBERED_INFORMATION: u8 = 0x03;
    /// RFC 1042, and the bridge tunnel of IEEE 802.1H.
    const ENCAPSULATED_ETHERNET: [[u8; 3]; 2] = [[0, 0, 0], [0, 0, 0xf8]];

    let [destination_sap, source_sap, control, rest @ ..] = packet else { return None };
    match (destination_sap & !1, source_sap & !1, *control) {
        (SNAP, SNAP, UNNUMBERED_INFORMATION) => {
            let oui: &[u8; 3] = rest.first_chunk()?;
            let network = Network::EtherType(u16_at(rest, 3)?, rest.get(5..)?);
            Some(if ENCAPSULATED_ETHERNET.contains(oui) { network } else { Network::Other })
        }
        (IP, IP, UNNUMBERED_INFORMATION) => Some(Network::EtherType(ether_type::IPV4, rest)),
        _ => Some(Network::Other),
    }
}

/// Reads the link-layer header; `None` when the packet ends inside it.
#[inline]
pub(super) fn network(link: LinkType, data: &[u8]) -> Option<Network<'_>> {
    match link {
        LinkType::Ethernet => ethernet(data),
        LinkType::LinuxCookedV1 => Some(Network::EtherType(u16_at(data, 14)?, data.get(16..)?)),
        LinkType::LinuxCookedV2 => Some(Network::EtherType(u16_at(data, 0)?, data.get(20..)?)),
        LinkType::Raw => Some(Network::Ip(data)),
        LinkType::Null => {
            let family = u32_at(data, 0)?;
            let packet = data.get(4..)?;
            // The byte order is that of the capturing host, which is unknown here. The families are
            // small numbers, so the smaller reading is the right one.
            Some(match family.min(family.swap_bytes()) {
                AF_INET => Network::EtherType(ether_type::IPV4, packet),
                // AF_INET6 differs between systems, and the file does not say on which one it was
                // captured.
                AF_INET6_LINUX | AF_INET6_WINDOWS | AF_INET6_OPENBSD | AF_INET6_FREEBSD | AF_INET6_DARWIN => {
                    Network::EtherType(ether_type::IPV6, packet)
                }
                _ => Network::Other,
            })
        }
    }
}

const AF_INET: u32 = 2;
const AF_INET6_LINUX: u32 = 10;
const AF_INET6_WINDOWS: u32 = 23;
const AF_INET6_OPENBSD: u32 = 24;
const AF_INET6_FREEBSD: u32 = 28;
const AF_INET6_DARWIN: u32 = 30;
