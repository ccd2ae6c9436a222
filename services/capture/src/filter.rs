//! The kernel filter, generated from the ports.
//!
//! `udp port 514` alone misses all VLAN-tagged frames (their headers start four bytes later), all
//! fragments but the first (they have no ports), and datagrams behind an IPv6 extension header or
//! in a tunnel. The filter passes all of these; the decoder then selects by port.

use std::{fmt::Write, ops::RangeInclusive};

use pcap::{Active, Capture};

use crate::{decode::LinkType, ports::Ports};

/// The most VLAN tags that the filter skips. Frames with more are not captured live.
const VLAN_DEPTH: usize = 3;

/// IPv6 extension headers that may precede UDP: hop-by-hop options, routing, fragment,
/// authentication, destination options, mobility, HIP, Shim6 (IANA, "IPv6 Extension Header Types").
const IPV6_EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// IP protocols that are tunnels: IP in IP, 6in4 and 4in6, GRE (with ERSPAN), MPLS in IP, Ethernet
/// in IP.
const TUNNEL_PROTOCOLS: [u8; 5] = [4, 41, 47, 137, 143];

/// The most port ranges that the filter lists, because libpcap takes seconds to compile hundreds of
/// terms. With more it passes all UDP. [`attach`] finds out whether the kernel accepts the list.
const MAX_PORT_RANGES: usize = 64;

/// The longest program that the kernel accepts, instructions (`BPF_MAXINSNS`).
const MAX_INSTRUCTIONS: usize = 4096;

/// How an interface is filtered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attached {
    /// The kernel filters. Otherwise libpcap does, and the kernel copies every frame of the link.
    pub in_kernel: bool,
    /// The filter lists the ports; otherwise it passes all UDP.
    pub lists_ports: bool,
}

/// UDP ports of tunnels: VXLAN (IANA's port and Linux's older one), VXLAN-GPE, Geneve, TZSP.
const TUNNEL_PORTS: [u16; 5] = [4789, 8472, 4790, 6081, 37008];

/// EtherTypes of tags other than VLAN tags: VN-Tag, E-Tag, Cisco MetaData, TTag; and the service
/// access points of LLC with SNAP and of IP, for which libpcap has the same syntax. All frames with
/// these headers pass, because pcap-filter(7) can skip VLAN tags, but not these.
const TAG_ETHERTYPES: [&str; 6] = ["0x8926", "0x893f", "0x8909", "0x8988", "0xaa", "0x06"];

/// EtherTypes of headers before IP: MPLS, unicast and upstream-assigned; PPPoE sessions; bridged
/// Ethernet. They are numbers because libpcap's keywords `mpls` and `pppoes` change the offsets of
/// everything after them in the expression.
const TUNNEL_ETHERTYPES: [&str; 4] = ["0x8847", "0x8848", "0x8864", "0x6558"];

/// The expression, in the language of pcap-filter(7), that passes all packets from which the
/// decoder can get a claimed datagram.
///
/// `extra` is the user's own expression, and both must match. It comes first, because `vlan`
/// changes the offsets of everything after it: in this position it means the same as in tcpdump.
pub fn expression(ports: &Ports, tunnels: bool, link: LinkType, extra: Option<&str>) -> String {
    wrap(&udp_terms(ports), tunnels, link, extra)
}

/// Attaches the filter to an interface. It lists the ports if the kernel accepts that, otherwise
/// it passes all UDP.
///
/// libpcap filters in user space, without an error, when the kernel rejects a program: one that is
/// too long, or needs more memory than `net.core.optmem_max`. So this compiles the program for the
/// interface, and afterwards asks the kernel whether the socket has a filter.
///
/// # Errors
/// The expression does not compile, or the socket's filter cannot be read.
pub fn attach(
    capture: &mut Capture<Active>,
    ports: &Ports,
    tunnels: bool,
    link: LinkType,
    extra: Option<&str>,
) -> Result<Attached, pcap::Error> {
    let listed = udp_terms(ports);
    let lists_ports = listed != ANY_UDP;
    if lists_ports {
        let expression = wrap(&listed, tunnels, link, extra);
        let fits = capture.compile(&expression, true)?.get_instructions().len() <= MAX_INSTRUCTIONS;
        if fits && set(capture, &expression)? {
            return Ok(Attached { in_kernel: true, lists_ports });
        }
    }
    let in_kernel = set(capture, &wrap(ANY_UDP, tunnels, link, extra))?;
    Ok(Attached { in_kernel, lists_ports: false })
}

/// Sets a filter, and returns whether it is in the kernel.
fn set(capture: &mut Capture<Active>, expression: &str) -> Result<bool, pcap::Error> {
    capture.filter(expression, true)?;
    let length = sekiwake_sys::kernel_filter_length(capture).map_err(|error| pcap::Error::IoError(error.kind()))?;
    Ok(length > 0)
}

fn wrap(udp: &str, tunnels: bool, link: LinkType, extra: Option<&str>) -> String {
    let own = match link {
        LinkType::Ethernet => skip_tags(&untagged(udp, tunnels, true), VLAN_DEPTH),
        LinkType::LinuxCookedV1 | LinkType::LinuxCookedV2 => untagged(udp, tunnels, true),
        LinkType::Raw | LinkType::Null => untagged(udp, tunnels, false),
    };
    match extra {
        Some(extra) => format!("({extra}) and ({own})"),
        None => own,
    }
}

/// `plain or (vlan and (plain or (vlan and ...)))`, because each `vlan` moves the offsets after it
/// by one more tag.
fn skip_tags(plain: &str, depth: usize) -> String {
    match depth {
        0 => plain.to_owned(),
        _ => format!("{plain} or (vlan and ({}))", skip_tags(plain, depth - 1)),
    }
}

/// The term that passes all UDP.
const ANY_UDP: &str = "udp";

/// The terms that pass datagrams to the ports, or all if there are too many.
fn udp_terms(ports: &Ports) -> String {
    let ranges = ranges(ports);
    if ranges.len() > MAX_PORT_RANGES {
        return ANY_UDP.to_owned();
    }
    let terms = ranges.iter().map(|range| format!("udp dst portrange {}-{}", range.start(), range.end()));
    terms.collect::<Vec<_>>().join(" or ")
}

fn untagged(udp: &str, tunnels: bool, has_ethertype: bool) -> String {
    // Fragments after the first, which have no ports, and datagrams behind an authentication
    // header, the only extension header of IPv4.
    let mut filter =
        format!("(ip proto 17 and ip[6:2] & 0x1fff != 0) or ip proto 51 or {udp} or {}", ipv6_extensions());
    // Writing to a String cannot fail.
    if has_ethertype {
        for ethertype in TAG_ETHERTYPES {
            let _ = write!(filter, " or ether proto {ethertype}");
        }
    }
    if tunnels {
        for protocol in TUNNEL_PROTOCOLS {
            let _ = write!(filter, " or ip proto {protocol} or ip6 proto {protocol}");
        }
        for port in TUNNEL_PORTS {
            let _ = write!(filter, " or udp dst port {port}");
        }
        if has_ethertype {
            for ethertype in TUNNEL_ETHERTYPES {
                let _ = write!(filter, " or ether proto {ethertype}");
            }
        }
    }
    format!("({filter})")
}

/// The ports in order, adjacent ones merged to ranges.
fn ranges(ports: &Ports) -> Vec<RangeInclusive<u16>> {
    let mut all: Vec<u16> = ports.iter().collect();
    all.sort_unstable();
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for port in all {
        match ranges.last_mut() {
            Some(range) if port <= range.end().saturating_add(1) => *range = *range.start()..=port,
            _ => ranges.push(port..=port),
        }
    }
    ranges
}

fn ipv6_extensions() -> String {
    let extensions: Vec<String> = IPV6_EXTENSIONS.iter().map(|number| format!("ip6[6] = {number}")).collect();
    format!("(ip6 and ({}))", extensions.join(" or "))
}
