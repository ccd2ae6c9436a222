//! What will bite an operator, looked for before it does: on the way to a destination, on this host, in this process.
//!
//! Only sockets and /proc are asked, and a question without an answer is no failure: what is not known is `ok`, and the detail
//! says so.

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

use crate::{metrics::names, spoof::SpoofSender};

/// What the sending sockets ask for, bytes: a burst of this size waits in the kernel and not in the engine's queue.
const SEND_BUFFER_BYTES: usize = 4 * 1024 * 1024;

/// Every link that carries IPv6 takes packets of this size (RFC 8200 §5).
const LEAST_MTU: u32 = 1280;

/// What exporters assume when they fill their packets.
const USUAL_MTU: u32 = 1500;

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    /// What was looked at: the value of the label `check`.
    pub(crate) name: &'static str,
    /// Whether nothing speaks against sending.
    pub(crate) ok: bool,
    /// What was found, and what to do about it.
    pub(crate) detail: String,
}

impl Check {
    fn new(name: &'static str, ok: bool, detail: impl Display) -> Check {
        Check { name, ok, detail: detail.to_string() }
    }
}

/// Tells an operator what was found about the addresses of one place: once for each address.
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

    /// Looks at the way to this address, shows the outcome and logs what is not well.
    pub(crate) fn look(&self, address: SocketAddr) {
        for Check { name, ok, detail } in preflight(address, self.spoof) {
            let labels = [("destination", &*self.label), ("check", name)];
            let help = "Whether a check of the way to the destination found nothing.";
            self.metrics.gauge(names::PREFLIGHT_OK, help, &labels).set(ok.into());
            let destination = &*self.label;
            match ok {
                true => debug!(destination, %address, check = name, detail, "preflight"),
                false => warn!(destination, %address, check = name, detail, "preflight: this will bite"),
            }
        }
    }
}

/// Looks at everything that concerns sending to `destination`, with the devices' addresses or with our own.
pub(crate) fn preflight(destination: SocketAddr, spoof: bool) -> Vec<Check> {
    let probe = probe(destination);
    let mut checks = vec![route(destination, &probe), mtu(destination, &probe), send_buffer()];
    if spoof {
        checks.push(reverse_path_filter(destination, &probe));
        checks.push(privilege());
    }
    checks
}

/// A socket that is connected to `destination` and sends nothing.
pub(crate) fn probe(destination: SocketAddr) -> io::Result<UdpSocket> {
    let any = match destination {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_broadcast(true)?;
    socket.connect(destination)?;
    Ok(socket)
}

fn route(destination: SocketAddr, probe: &io::Result<UdpSocket>) -> Check {
    let to = destination.ip();
    match probe.as_ref().map(UdpSocket::local_addr) {
        Ok(Ok(local)) => Check::new("route", true, format!("from {}", local.ip())),
        Ok(Err(error)) => Check::new("route", true, format!("not known: {error}")),
        Err(error) => Check::new("route", false, format!("{error}: see `ip route get {to}`")),
    }
}

fn mtu(destination: SocketAddr, probe: &io::Result<UdpSocket>) -> Check {
    let Ok(socket) = probe else { return Check::new("mtu", true, "not known without a route") };
    let found = if destination.is_ipv4() { sockopt::ip_mtu(socket) } else { sockopt::ipv6_mtu(socket) };
    match found {
        Err(error) => Check::new("mtu", true, format!("not known: {error}")),
        Ok(mtu) if mtu < LEAST_MTU => {
            let advice = "most datagrams are fragmented, and many networks drop fragments: raise the MTU of the interface or route";
            Check::new("mtu", false, format!("{mtu} bytes, less than {LEAST_MTU}: {advice}"))
        }
        Ok(mtu) if mtu < USUAL_MTU => {
            let note = "full packets of exporters that assume more are fragmented";
            Check::new("mtu", true, format!("{mtu} bytes, less than {USUAL_MTU}: {note}"))
        }
        Ok(mtu) => Check::new("mtu", true, format!("{mtu} bytes")),
    }
}

/// Asks a socket and not `net.core.wmem_max`, which only the first network namespace shows.
fn send_buffer() -> Check {
    let ask = || -> io::Result<usize> {
        let socket =
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).or_else(|_| UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)))?;
        let socket = SockRef::from(&socket);
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        // The kernel doubles what it grants, for its own book-keeping (socket(7)).
        Ok(socket.send_buffer_size()? / 2)
    };
    match ask() {
        Ok(granted) if granted < SEND_BUFFER_BYTES => {
            let advice = format!("set net.core.wmem_max={SEND_BUFFER_BYTES}");
            Check::new("send_buffer", false, format!("{granted} of {SEND_BUFFER_BYTES} bytes granted: {advice}"))
        }
        Ok(granted) => Check::new("send_buffer", true, format!("{granted} bytes")),
        Err(error) => Check::new("send_buffer", true, format!("not known: {error}")),
    }
}

/// The filter that drops what comes from an address to which no route leads back (RFC 3704). It works where packets come in, so of
/// another host it can only be named here. Only what a container on a bridge of this host has inherited is known.
fn reverse_path_filter(destination: SocketAddr, probe: &io::Result<UdpSocket>) -> Check {
    const NAME: &str = "reverse_path_filter";
    let to = destination.ip();
    let local = probe.as_ref().ok().and_then(|socket| socket.local_addr().ok());
    if local.is_some_and(|local| local.ip() == to) {
        return Check::new(NAME, true, "the destination is on this host, and what stays here passes no such filter");
    }
    let IpAddr::V4(to) = to else {
        let where_to_look = "look for a reverse-path match (`rpfilter`, `fib saddr`) in its packet filter";
        return Check::new(NAME, true, format!("decided by the receiving host, not seen from here: {where_to_look}"));
    };
    let needed = "net.ipv4.conf.{all,INTERFACE}.rp_filter must be 0, or 2 with any route towards the devices";
    if let (Some(bridge), true) = (interface_towards(to).filter(|interface| is_bridge(interface)), is_strict_here()) {
        let found = format!("strict on this host, which its containers on {bridge} inherit");
        return Check::new(NAME, false, format!("{found}; in the container that receives {needed}"));
    }
    Check::new(NAME, true, format!("decided by the receiving host, not seen from here: there {needed}"))
}

/// The larger of two settings counts; 1 is strict, 2 loose (ip-sysctl, `rp_filter`).
fn is_strict_here() -> bool {
    let setting = |scope| fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter")).ok();
    let value = |scope| setting(scope).and_then(|text| text.trim().parse::<u8>().ok()).unwrap_or(0);
    value("all").max(value("default")) == 1
}

fn is_bridge(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).join("bridge").exists()
}

/// The interface of the most specific route in the main table; policy routing is not looked at.
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

/// NET_RAW is what spoofing takes. NET_BIND_SERVICE it does not: no port is bound that would need it.
fn privilege() -> Check {
    let effective = capabilities(None).map(|sets| sets.effective);
    match SpoofSender::check_privilege() {
        Err(error) => Check::new("privilege", false, error),
        Ok(()) if effective.is_ok_and(|set| set.contains(CapabilitySet::NET_RAW)) => {
            Check::new("privilege", true, "CAP_NET_RAW is there; nothing else is needed")
        }
        Ok(()) => Check::new("privilege", true, "raw sockets can be had"),
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_testkit::netns::{End, Link, Namespace, available_or_skipped};

    use super::*;

    fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap()
    }

    #[test]
    fn a_destination_on_this_host_has_nothing_against_it_but_perhaps_a_small_buffer() {
        for destination in ["127.0.0.1:514", "[::1]:514"] {
            let checks = preflight(destination.parse().unwrap(), false);
            let names: Vec<&str> = checks.iter().map(|check| check.name).collect();
            assert_eq!(names, ["route", "mtu", "send_buffer"]);
            assert!(find(&checks, "route").ok && find(&checks, "mtu").ok, "{checks:?}");
        }
    }

    #[test]
    fn a_missing_route_and_a_narrow_link_are_found() {
        if !available_or_skipped("a_missing_route_and_a_narrow_link_are_found") {
            return;
        }
        let (here, there) = (Namespace::new("skw-pre").unwrap(), Namespace::new("skw-pre").unwrap());
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
    fn a_missing_capability_is_found() {
        if !available_or_skipped("a_missing_capability_is_found") {
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
    fn the_most_specific_route_names_the_interface() {
        if !available_or_skipped("the_most_specific_route_names_the_interface") {
            return;
        }
        let (here, there) = (Namespace::new("skw-pre").unwrap(), Namespace::new("skw-pre").unwrap());
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
