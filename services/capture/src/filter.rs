//! The kernel filter: made from the ports, right for tagged frames, fragments, extension headers and tunnels.
//!
//! `udp port 514` alone misses every tagged frame (the headers stand four bytes later), every fragment but the first (it has
//! no ports), and what comes behind an IPv6 extension header or in a tunnel. The filter lets these through; the decoder
//! looks closer.

use std::fmt::Write;

use crate::{decode::LinkType, ports::Ports};

/// How many VLAN tags the filter looks behind. Frames with more are not captured live.
const VLAN_DEPTH: usize = 3;

/// IPv6 next headers that stand before UDP: hop-by-hop options, routing, fragment, authentication, destination options,
/// mobility, HIP, Shim6 (IANA, "IPv6 Extension Header Types").
const IPV6_EXTENSIONS: [u8; 8] = [0, 43, 44, 51, 60, 135, 139, 140];

/// IP protocols that carry packets: IP in IP, 6in4 and 4in6, GRE (ERSPAN in it), MPLS in IP, Ethernet in IP.
const TUNNEL_PROTOCOLS: [u8; 5] = [4, 41, 47, 137, 143];

/// Runs of ports that the filter names one by one. With more it passes all UDP: libpcap takes seconds for hundreds of terms, and
/// the kernel refuses a program of more than 4096 instructions.
const MAX_PORT_RANGES: usize = 64;

/// UDP ports that carry packets: VXLAN (IANA's port and Linux's older one), VXLAN-GPE, Geneve.
const TUNNEL_PORTS: [u16; 4] = [4789, 8472, 4790, 6081];

/// EtherTypes in front of an IP packet: MPLS, unicast and upstream-assigned; PPPoE sessions; bridged Ethernet. libpcap's own
/// keywords for the first ones shift all that follows.
const TUNNEL_ETHERTYPES: [&str; 4] = ["0x8847", "0x8848", "0x8864", "0x6558"];

/// The expression, in the language of pcap-filter(7), that passes everything the decoder can make a claimed datagram of.
///
/// `extra` is the user's own expression. It is put first and applies as well, so that in it everything means what it means
/// for tcpdump: `vlan` shifts all that follows it.
pub fn expression(ports: &Ports, tunnels: bool, link: LinkType, extra: Option<&str>) -> String {
    let own = match link {
        LinkType::Ethernet => behind_tags(&untagged(ports, tunnels, true), VLAN_DEPTH),
        LinkType::LinuxCookedV1 | LinkType::LinuxCookedV2 => untagged(ports, tunnels, true),
        LinkType::Raw | LinkType::Null => untagged(ports, tunnels, false),
    };
    match extra {
        Some(extra) => format!("({extra}) and ({own})"),
        None => own,
    }
}

/// Passes every UDP datagram and fragment, behind tags and in tunnels too: for looking around.
pub fn any_udp(link: LinkType) -> String {
    let mut plain = format!("(udp or ip proto 17 or ip proto 51 or {}", ipv6_extensions());
    for protocol in TUNNEL_PROTOCOLS {
        // Writing to a String cannot fail.
        let _ = write!(plain, " or ip proto {protocol} or ip6 proto {protocol}");
    }
    plain.push(')');
    match link {
        LinkType::Ethernet => behind_tags(&plain, VLAN_DEPTH),
        _ => plain,
    }
}

/// `plain or (vlan and (plain or (vlan and ...)))`: each `vlan` shifts what follows it by one more tag.
fn behind_tags(plain: &str, depth: usize) -> String {
    match depth {
        0 => plain.to_owned(),
        _ => format!("{plain} or (vlan and ({}))", behind_tags(plain, depth - 1)),
    }
}

fn untagged(ports: &Ports, tunnels: bool, has_ethertype: bool) -> String {
    // An authentication header is the one thing that stands between IPv4 and UDP.
    let mut filter = String::from("(ip proto 17 and ip[6:2] & 0x1fff != 0) or ip proto 51");
    // Writing to a String cannot fail.
    let ranges = ranges(ports);
    if ranges.len() > MAX_PORT_RANGES {
        filter.push_str(" or udp");
    }
    for (first, last) in ranges.iter().take_while(|_| ranges.len() <= MAX_PORT_RANGES) {
        let _ = write!(filter, " or udp dst portrange {first}-{last}");
    }
    let _ = write!(filter, " or {}", ipv6_extensions());
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

/// The ports, neighbours joined: first and last of each run.
fn ranges(ports: &Ports) -> Vec<(u16, u16)> {
    let mut all: Vec<u16> = ports.iter().collect();
    all.sort_unstable();
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for port in all {
        match ranges.last_mut() {
            Some((_, last)) if port <= last.saturating_add(1) => *last = port,
            _ => ranges.push((port, port)),
        }
    }
    ranges
}

fn ipv6_extensions() -> String {
    let extensions: Vec<String> = IPV6_EXTENSIONS.iter().map(|number| format!("ip6[6] = {number}")).collect();
    format!("(ip6 and ({}))", extensions.join(" or "))
}
