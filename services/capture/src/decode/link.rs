//! Link-layer headers: what libpcap puts, or finds, before the IP packet.
//!
//! ```text
//! Ethernet          destination 6 | source 6 | EtherType 2
//! Linux cooked v1   packet type 2 | ARPHRD 2 | address length 2 | address 8 | protocol 2
//! Linux cooked v2   protocol 2 | reserved 2 | interface 4 | ARPHRD 2 | packet type 1 | address length 1 | address 8
//! null, loopback    address family 4, in the byte order of the host that captured
//! raw               nothing: the version nibble of the IP header decides
//! ```

use std::fmt;

use super::bytes::{skip, u16_at, u32_at};

/// The link types that are decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// Ethernet II, tagged or not.
    Ethernet,
    /// Linux cooked capture, version 1: the pseudo-device `any` before libpcap 1.10.
    LinuxCookedV1,
    /// Linux cooked capture, version 2.
    LinuxCookedV2,
    /// IPv4 or IPv6 without anything before it.
    Raw,
    /// An address family before the packet: BSD loopback and tunnel interfaces.
    Null,
}

impl LinkType {
    /// The link type of a libpcap `DLT_` or savefile `LINKTYPE_` number (they share the numbers that are known here);
    /// `None` for all that is not decoded.
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

    /// The name that an operator knows it by.
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

/// Values of EtherType, and of the fields that use the same numbers.
pub(super) mod ether_type {
    pub(crate) const IPV4: u16 = 0x0800;
    pub(crate) const IPV6: u16 = 0x86dd;
    pub(crate) const TRANSPARENT_ETHERNET: u16 = 0x6558;
    /// IEEE 802.1Q customer tag.
    pub(crate) const VLAN: u16 = 0x8100;
    /// IEEE 802.1ad service tag.
    pub(crate) const SERVICE_VLAN: u16 = 0x88a8;
    /// What stood for a service tag before 802.1ad.
    pub(crate) const OLD_SERVICE_VLAN: u16 = 0x9100;
    pub(crate) const MPLS: u16 = 0x8847;
    /// MPLS with an upstream-assigned label (RFC 5332), once: multicast.
    pub(crate) const MPLS_UPSTREAM: u16 = 0x8848;
    pub(crate) const PPPOE_SESSION: u16 = 0x8864;
}

/// What a link-layer header says about what follows it.
pub(super) enum Network<'a> {
    /// The EtherType, and the bytes after it.
    EtherType(u16, &'a [u8]),
    /// An IP packet of the version that its first nibble says.
    Ip(&'a [u8]),
    /// Nothing that could be IP.
    Other,
}

/// The length of an Ethernet header without tags, bytes.
const ETHERNET_BYTES: usize = 14;

/// Reads the header of an Ethernet frame; `None` when the frame ends inside it.
#[inline]
pub(super) fn ethernet(frame: &[u8]) -> Option<Network<'_>> {
    Some(Network::EtherType(u16_at(frame, 12)?, skip(frame, ETHERNET_BYTES)?))
}

/// Reads the link-layer header; `None` when the packet ends inside it.
#[inline]
pub(super) fn network(link: LinkType, data: &[u8]) -> Option<Network<'_>> {
    match link {
        LinkType::Ethernet => ethernet(data),
        LinkType::LinuxCookedV1 => Some(Network::EtherType(u16_at(data, 14)?, skip(data, 16)?)),
        LinkType::LinuxCookedV2 => Some(Network::EtherType(u16_at(data, 0)?, skip(data, 20)?)),
        LinkType::Raw => Some(Network::Ip(data)),
        LinkType::Null => {
            let family = u32_at(data, 0)?;
            let packet = skip(data, 4)?;
            Some(match family.min(family.swap_bytes()) {
                AF_INET => Network::EtherType(ether_type::IPV4, packet),
                // Every system has its own number for IPv6, and only the one that captured knows which it was.
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
