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
    let tunnels = "ip proto 4 or ip proto 41 or ip proto 47 or ip6 proto 4 or ip6 proto 41 or ip6 proto 47";
    let plain = format!("(udp or ip proto 17 or ip6 proto 44 or ip6 proto 0 or {tunnels})");
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
    let mut filter = String::from("(ip proto 17 and ip[6:2] & 0x1fff != 0)");
    // Writing to a String cannot fail.
    for port in ports.iter() {
        let _ = write!(filter, " or udp dst port {port}");
    }
    let extensions: Vec<String> = IPV6_EXTENSIONS.iter().map(|number| format!("ip6[6] = {number}")).collect();
    let _ = write!(filter, " or (ip6 and ({}))", extensions.join(" or "));
    if tunnels {
        // IP in IP, 6in4 and 4in6, GRE (ERSPAN in it); VXLAN (IANA's port and Linux's older one) and Geneve.
        for protocol in [4, 41, 47] {
            let _ = write!(filter, " or ip proto {protocol} or ip6 proto {protocol}");
        }
        for port in [4789, 8472, 6081] {
            let _ = write!(filter, " or udp dst port {port}");
        }
        if has_ethertype {
            // MPLS, unicast and upstream-assigned; PPPoE sessions. libpcap's own keywords for them shift all that follows.
            for ethertype in ["0x8847", "0x8848", "0x8864"] {
                let _ = write!(filter, " or ether proto {ethertype}");
            }
        }
    }
    format!("({filter})")
}
