//! Checks of the path to a destination before anything is sent: routes, settings of this host,
//! privileges of this process.
//!
//! They use sockets and /proc only. A check without a result passes, and its detail says so.

use std::{
    fmt::Display,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::Path,
};

use rustix::{
    net::sockopt,
    thread::{CapabilitySet, capabilities},
};
use socket2::SockRef;

use sekiwake_runtime::Metrics;
use tracing::{debug, warn};

use crate::{
    metrics::names,
    spoof::SpoofSender,
    udp::socket::{SEND_BUFFER_BYTES, probe},
};

/// Every link with IPv6 carries packets of this size (RFC 8200 §5).
const LEAST_MTU: u32 = 1280;

/// The MTU that exporters assume when they fill their packets.
const USUAL_MTU: u32 = 1500;

/// The outcome of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// Its name: the value of the label `check`.
    pub(crate) name: &'static str,
    /// Whether it passed.
    pub(crate) ok: bool,
    /// The findings, and what to do about them.
    pub(crate) detail: String,
}

impl Check {
    fn new(name: &'static str, ok: bool, detail: impl Display) -> Check {
        Check { name, ok, detail: detail.to_string() }
    }
}

/// Checks the path to each address of one endpoint, and reports the outcome.
#[derive(Clone, Debug)]
pub(crate) struct Preflight {
    label: String,
    spoof: bool,
    metrics: Metrics,
}

impl Preflight {
    pub(crate) fn new(label: &str, spoof: bool, metrics: &Metrics) -> Preflight {
        Preflight { label: label.to_owned(), spoof, metrics: metrics.clone() }
    }

    /// Checks the path to this address, sets the gauges and logs failed checks.
    pub(crate) fn check(&self, address: SocketAddr) {
        for Check { name, ok, detail } in preflight(address, self.spoof) {
            let labels = [("destination", &*self.label), ("check", name)];
            let help = "Whether a check of the path to the destination passed.";
            self.metrics.gauge(names::PREFLIGHT_OK, help, &labels).set(ok.into());
            let destination = &*self.label;
            match ok {
                true => debug!(destination, %address, check = name, detail, "preflight check passed"),
                false => warn!(destination, %address, check = name, detail, "preflight check failed"),
            }
        }
    }
}

/// Runs all checks for sending to `destination`, with the devices' addresses or with our own.
pub(crate) fn preflight(destination: SocketAddr, spoof: bool) -> Vec<Check> {
    let probe = probe(destination);
    let mut checks = vec![route(destination, &probe), mtu(destination, &probe), send_buffer()];
    if spoof {
        checks.push(reverse_path_filter(destination, &probe));
        checks.push(privilege());
    }
    checks
}

fn route(destination: SocketAddr, probe: &io::Result<UdpSocket>) -> Check {
    let to = destination.ip();
    match probe.as_ref().map(UdpSocket::local_addr) {
        Ok(Ok(local)) => Check::new("route", true, format!("from {}", local.ip())),
        Ok(Err(error)) => Check::new("route", true, format!("unknown: {error}")),
        Err(error) => Check::new("route", false, format!("{error}: see `ip route get {to}`")),
    }
}

fn mtu(destination: SocketAddr, probe: &io::Result<UdpSocket>) -> Check {
    let Ok(socket) = probe else { return Check::new("mtu", true, "unknown without a route") };
    let found = if destination.is_ipv4() { sockopt::ip_mtu(socket) } else { sockopt::ipv6_mtu(socket) };
    match found {
        Err(error) => Check::new("mtu", true, format!("unknown: {error}")),
        Ok(mtu) if mtu < LEAST_MTU => {
            let advice = "most datagrams will be fragmented, and many networks drop fragments: raise the MTU of the interface or route";
            Check::new("mtu", false, format!("{mtu} bytes, less than {LEAST_MTU}: {advice}"))
        }
        Ok(mtu) if mtu < USUAL_MTU => {
            let note = "full packets of exporters will be fragmented";
            Check::new("mtu", true, format!("{mtu} bytes, less than {USUAL_MTU}: {note}"))
        }
        Ok(mtu) => Check::new("mtu", true, format!("{mtu} bytes")),
    }
}

/// Uses a socket and not `net.core.wmem_max`, which only the first network namespace has.
fn send_buffer() -> Check {
    let ask = || -> io::Result<usize> {
        let socket =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).or_else(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))?;
        let socket = SockRef::from(&socket);
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        // The kernel reports twice the granted size, for its own book-keeping (socket(7)).
        Ok(socket.send_buffer_size()? / 2)
    };
    match ask() {
        Ok(granted) if granted < SEND_BUFFER_BYTES => {
            let advice = format!("set net.core.wmem_max={SEND_BUFFER_BYTES}");
            Check::new("send_buffer", false, format!("{granted} of {SEND_BUFFER_BYTES} bytes granted: {advice}"))
        }
        Ok(granted) => Check::new("send_buffer", true, format!("{granted} bytes")),
        Err(error) => Check::new("send_buffer", true, format!("unknown: {error}")),
    }
}

/// The filter that drops packets from an address without a route back (RFC 3704). It applies at the
/// receiving host, so for another host it can only be named here. Only the setting that a container
/// on a bridge of this host inherits is known.
fn reverse_path_filter(destination: SocketAddr, probe: &io::Result<UdpSocket>) -> Check {
    const NAME: &str = "reverse_path_filter";
    let to = destination.ip();
    let local = probe.as_ref().ok().and_then(|socket| socket.local_addr().ok());
    if local.is_some_and(|local| local.ip() == to) {
        return Check::new(NAME, true, "the destination is on this host, where no such filter applies");
    }
    let IpAddr::V4(to) = to else {
        let where_to_look = "look for a reverse-path match (`rpfilter`, `fib saddr`) in its packet filter";
        return Check::new(NAME, true, format!("up to the receiving host, unknown here: {where_to_look}"));
    };
    let needed = "net.ipv4.conf.{all,INTERFACE}.rp_filter must be 0, or 2 with any route towards the devices";
    if let (Some(bridge), true) = (interface_towards(to).filter(|interface| is_bridge(interface)), is_strict_here()) {
        let found = format!("strict on this host, inherited by its containers on {bridge}");
        return Check::new(NAME, false, format!("{found}; in the receiving container {needed}"));
    }
    Check::new(NAME, true, format!("up to the receiving host, unknown here: there {needed}"))
}

/// The larger of the two settings applies; 1 is strict, 2 loose (ip-sysctl, `rp_filter`).
fn is_strict_here() -> bool {
    let setting = |scope| fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter")).ok();
    let value = |scope| setting(scope).and_then(|text| text.trim().parse::<u8>().ok()).unwrap_or(0);
    value("all").max(value("default")) == 1
}

fn is_bridge(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).join("bridge").exists()
}

/// The interface of the most specific route in the main table. Policy routing is ignored.
fn interface_towards(destination: Ipv4Addr) -> Option<String> {
    let table = fs::read_to_string("/proc/thread-self/net/route").ok()?;
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        // Addresses are words in the machine's byte order.
        let word = |index: usize| u32::from_str_radix(fields.get(index)?, 16).ok().map(u32::from_be);
        Some((*fields.first()?, word(1)?, word(7)?))
    });
    let fitting = routes.filter(|&(_, network, mask)| u32::from(destination) & mask == network);
    fitting.max_by_key(|&(_, _, mask)| mask).map(|(interface, _, _)| interface.to_owned())
}

/// Spoofing needs NET_RAW. It does not need NET_BIND_SERVICE, because no port below 1024 is bound.
fn privilege() -> Check {
    let effective = capabilities(None).map(|sets| sets.effective);
    match SpoofSender::check_privilege() {
        Err(error) => Check::new("privilege", false, error),
        Ok(()) if effective.is_ok_and(|set| set.contains(CapabilitySet::NET_RAW)) => {
            Check::new("privilege", true, "CAP_NET_RAW is set, no other is needed")
        }
        Ok(()) => Check::new("privilege", true, "raw sockets can be opened"),
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_testkit::netns::{End, Link, Namespace, namespaces_or_skipped};

    use super::*;

    fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn local_destination_passes_all_but_the_send_buffer() {
        for destination in ["127.0.0.1:514", "[::1]:514"] {
            let checks = preflight(destination.parse().unwrap(), false);
            let names: Vec<&str> = checks.iter().map(|check| check.name).collect();
            assert_eq!(names, ["route", "mtu", "send_buffer"]);
            assert!(find(&checks, "route").ok && find(&checks, "mtu").ok, "{checks:?}");
        }
    }

    #[test]
    fn missing_route_and_small_mtu_are_found() {
        if !namespaces_or_skipped() {
            return;
        }
        let here = Namespace::new("skw-pre").unwrap();
        let there = Namespace::new("skw-pre").unwrap();
        let left = End::new(&here, "pre0").address("198.18.0.1/24");
        Link::new(left, End::new(&there, "pre1").address("198.18.0.2/24")).mtu(1400).create().unwrap();
        let look = |destination: &str| here.enter(|| preflight(destination.parse().unwrap(), true)).unwrap();
        for lost in ["203.0.113.1:514", "[2001:db8::1]:514"] {
            let checks = look(lost);
            let route = find(&checks, "route");
            assert!(!route.ok && route.detail.contains("ip route get"), "{route:?}");
            assert!(find(&checks, "mtu").ok);
        }
        let checks = look("198.18.0.2:514");
        assert!(checks.iter().filter(|check| check.name != "send_buffer").all(|check| check.ok), "{checks:?}");
        assert!(find(&checks, "mtu").detail.starts_with("1400 bytes, less than 1500"));
        assert!(find(&checks, "reverse_path_filter").detail.contains("receiving host"));
        here.ip("link set pre0 mtu 1000").unwrap();
        let mtu = find(&look("198.18.0.2:514"), "mtu").clone();
        assert!(!mtu.ok && mtu.detail.starts_with("1000 bytes"), "{mtu:?}");
    }

    #[test]
    fn missing_capability_is_found() {
        if !namespaces_or_skipped() {
            return;
        }
        let unprivileged = || {
            let mut sets = capabilities(None).unwrap();
            sets.effective -= CapabilitySet::NET_RAW | CapabilitySet::NET_ADMIN;
            rustix::thread::set_capabilities(None, sets).unwrap();
            preflight("127.0.0.1:514".parse().unwrap(), true)
        };
        let checks = std::thread::spawn(unprivileged).join().unwrap();
        let privilege = find(&checks, "privilege");
        assert!(!privilege.ok && privilege.detail.contains("setcap cap_net_raw"), "{privilege:?}");
    }

    #[test]
    fn most_specific_route_names_the_interface() {
        if !namespaces_or_skipped() {
            return;
        }
        let here = Namespace::new("skw-pre").unwrap();
        let there = Namespace::new("skw-pre").unwrap();
        for (name, address) in [("pre0", "198.18.0.1/24"), ("pre1", "198.18.1.1/24")] {
            let peer = format!("{name}p");
            Link::new(End::new(&here, name).address(address), End::new(&there, &peer)).create().unwrap();
        }
        here.ip("route add default via 198.18.1.2").unwrap();
        here.ip("route add 203.0.113.0/24 via 198.18.0.2").unwrap();
        let interfaces =
            here.enter(|| ["203.0.113.9", "198.51.100.1"].map(|to| interface_towards(to.parse().unwrap())));
        assert_eq!(interfaces.unwrap(), [Some("pre0".to_owned()), Some("pre1".to_owned())]);
    }
}
