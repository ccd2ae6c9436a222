//! Which source addresses can be spoofed towards a destination.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::metrics::Fallback;

/// Why datagrams of `source` cannot be spoofed towards `destination`; `None` if they can. Port 0 is
/// allowed: it means that no answer is expected (RFC 768). Directed broadcast addresses are not
/// recognised, because only their network knows them.
pub(super) fn fallback_reason(source: IpAddr, destination: SocketAddr) -> Option<Fallback> {
    match (source, destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let is_no_source = source.octets()[0] == 0 || source.is_multicast() || source.is_broadcast();
            let stays_here = source.is_loopback() && !destination.is_loopback();
            // The kernel chooses the interface of a limited broadcast by the source, which must be
            // one of its own addresses.
            let needs_own = destination == Ipv4Addr::BROADCAST;
            (is_no_source || stays_here || needs_own).then_some(Fallback::Address)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let is_no_source = source.is_unspecified() || source.is_multicast();
            let stays_here = source.is_loopback() && !destination.is_loopback();
            let stays_on_link = source.is_unicast_link_local() && !destination.is_unicast_link_local();
            (is_no_source || stays_here || stays_on_link).then_some(Fallback::Address)
        }
        _ => Some(Fallback::Family),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_routable_addresses_are_spoofed() {
        let v4 = "203.0.113.1:514";
        let v6 = "[2001:db8::1]:514";
        let cases = [
            ("198.51.100.7", v4, None),
            ("2001:db8::7", v6, None),
            ("198.51.100.7", v6, Some(Fallback::Family)),
            ("2001:db8::7", v4, Some(Fallback::Family)),
            ("0.0.0.0", v4, Some(Fallback::Address)),
            ("0.1.2.3", v4, Some(Fallback::Address)),
            ("224.0.0.1", v4, Some(Fallback::Address)),
            ("255.255.255.255", v4, Some(Fallback::Address)),
            ("127.0.0.1", v4, Some(Fallback::Address)),
            ("127.0.0.1", "127.0.0.1:514", None),
            ("198.51.100.7", "255.255.255.255:514", Some(Fallback::Address)),
            ("198.51.100.7", "224.1.2.3:514", None),
            ("::", v6, Some(Fallback::Address)),
            ("ff02::1", v6, Some(Fallback::Address)),
            ("::1", v6, Some(Fallback::Address)),
            ("fe80::1", v6, Some(Fallback::Address)),
            ("fe80::1", "[fe80::2%3]:514", None),
        ];
        for (source, destination, expected) in cases {
            let found = fallback_reason(source.parse().unwrap(), destination.parse().unwrap());
            assert_eq!(found, expected, "{source} to {destination}");
        }
    }
}
