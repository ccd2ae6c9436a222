//! Which addresses can be kept: whether a datagram can travel to its destination in the name of its device.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Why a datagram leaves with an address of this host after all: the value of the label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallback {
    /// The destination is of the other IP version.
    Family,
    /// Nothing can come from this address there: unspecified, multicast, broadcast, or of a scope that ends at this host or link.
    Address,
    /// The engine asked for it: an SNMPv3 inform, which must not be answered to the agent a second time.
    Inform,
}

impl Fallback {
    /// All of them, in the order of [`Fallback::index`].
    pub(crate) const ALL: [Fallback; 3] = [Fallback::Family, Fallback::Address, Fallback::Inform];

    /// Its place among [`Fallback::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// The value of the label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Fallback::Family => "family",
            Fallback::Address => "address",
            Fallback::Inform => "inform",
        }
    }
}

/// What keeps datagrams of `source` from reaching `destination` in its name. Port 0 is no hindrance: it means that nobody answers
/// (RFC 768). Which addresses are some network's broadcast address only that network knows.
pub(super) fn hindrance(source: IpAddr, destination: SocketAddr) -> Option<Fallback> {
    match (source, destination.ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let is_nobodys = source.octets()[0] == 0 || source.is_multicast() || source.is_broadcast();
            let stays_here = source.is_loopback() && !destination.is_loopback();
            // The kernel chooses the interface of a limited broadcast by the source, which has to be its own.
            let needs_own = destination == Ipv4Addr::BROADCAST;
            (is_nobodys || stays_here || needs_own).then_some(Fallback::Address)
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let is_nobodys = source.is_unspecified() || source.is_multicast();
            let stays_here = source.is_loopback() && !destination.is_loopback();
            let stays_on_link = source.is_unicast_link_local() && !destination.is_unicast_link_local();
            (is_nobodys || stays_here || stays_on_link).then_some(Fallback::Address)
        }
        _ => Some(Fallback::Family),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_can_travel_are_kept() {
        let (v4, v6) = ("203.0.113.1:514", "[2001:db8::1]:514");
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
            let found = hindrance(source.parse().unwrap(), destination.parse().unwrap());
            assert_eq!(found, expected, "{source} to {destination}");
        }
    }
}
