//! Opening an interface: libpcap handles, as this service wants them.

use std::{fs, path::Path, time::Duration};

use pcap::{Active, Capture, Direction, Precision};
use sekiwake_sys::FanoutMode;

use crate::{decode::LinkType, filter, live::now_ns, ports::Ports};

/// Longer than any frame. With TPACKET_V3 it costs nothing: blocks hold as many frames as fit.
const SNAP_LENGTH: i32 = 262_144;

/// How an interface is captured.
#[derive(Clone, Debug)]
pub struct InterfaceSettings {
    /// Memory of the kernel's ring, bytes.
    pub ring_bytes: usize,
    /// A ring block that is not full is handed over after this time.
    pub retire: Duration,
    /// Threads that share the interface.
    pub threads: u16,
    /// Whether to look into tunnels.
    pub tunnels: bool,
    /// The user's own filter expression.
    pub filter: Option<String>,
}

/// An open interface.
pub(crate) struct Opened {
    pub(crate) capture: Capture<Active>,
    pub(crate) link: LinkType,
    /// The largest IP packet that the link carries, bytes; `None` where nobody says.
    pub(crate) mtu: Option<u32>,
    /// The kernel's number of the interface; `None` for the pseudo-device `any`.
    pub(crate) index: Option<u32>,
    /// Packets stamped before this time are not this handle's, nanoseconds since 1970-01-01T00:00:00Z: until it joins its
    /// fan-out group it sees what the others see too.
    pub(crate) joined_ns: u64,
}

/// What has become of an interface that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It is there and up.
    Up,
    /// It is there and down: libpcap waits without a word, and goes on when it comes up.
    Down,
    /// It is gone, renamed, or another one has its name.
    Gone,
}

/// Looks after the interface of this name that had this number when it was opened.
pub(crate) fn presence(interface: &str, index: Option<u32>) -> Presence {
    const IFF_UP: u32 = 0x1;
    if index.is_none() {
        return Presence::Up;
    }
    let flags = read_number(interface, "flags").unwrap_or(0);
    match read_number(interface, "ifindex") == index {
        true if flags & IFF_UP != 0 => Presence::Up,
        true => Presence::Down,
        false => Presence::Gone,
    }
}

/// Why an interface cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The process may not capture. Waiting does not help.
    #[error("no permission to capture on {interface}: the capability NET_RAW is needed")]
    Permission { interface: String, source: pcap::Error },
    /// The filter is wrong. Waiting does not help.
    #[error("the kernel filter for {interface} is refused (SEKIWAKE_CAPTURE_FILTER and the ports make it)")]
    Filter { interface: String, source: pcap::Error },
    /// The link layer is one that is not decoded. Waiting does not help.
    #[error("link type {number} of {interface} is not supported")]
    LinkType { interface: String, number: i32 },
    /// It is not there, or not up.
    #[error("cannot open {interface}")]
    Open { interface: String, source: pcap::Error },
    /// It cannot be shared between threads.
    #[error("cannot share {interface} between threads")]
    Fanout { interface: String, source: std::io::Error },
}

impl OpenError {
    /// Whether the interface may open later without anybody changing settings or rights.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, OpenError::Open { .. } | OpenError::Fanout { .. })
    }
}

/// Opens `interface` with the filter for `ports`. `group` is the fan-out group that all threads of the interface join.
pub(crate) fn open(
    interface: &str,
    settings: &InterfaceSettings,
    ports: &Ports,
    group: u16,
) -> Result<Opened, OpenError> {
    let opened = open_bare(interface, settings)?;
    let Opened { mut capture, link, mtu, index, mut joined_ns } = opened;
    let expression = filter::expression(ports, settings.tunnels, link, settings.filter.as_deref());
    set_filter(&mut capture, interface, &expression)?;
    if settings.threads > 1 {
        sekiwake_sys::join_fanout(&capture, group, FanoutMode::Hash)
            .map_err(|source| OpenError::Fanout { interface: interface.to_owned(), source })?;
        joined_ns = now_ns();
    }
    Ok(Opened { capture, link, mtu, index, joined_ns })
}

/// Opens `interface` without a filter.
pub(crate) fn open_bare(interface: &str, settings: &InterfaceSettings) -> Result<Opened, OpenError> {
    let failed = |source: pcap::Error| {
        let text = source.to_string();
        let interface = interface.to_owned();
        if text.contains("ermission") || text.contains("not permitted") || text.contains("CAP_NET_RAW") {
            OpenError::Permission { interface, source }
        } else {
            OpenError::Open { interface, source }
        }
    };
    // Asked before it is opened: should it be replaced just then, it is opened once more.
    let index = read_number(interface, "ifindex");
    let capture = Capture::from_device(interface)
        .map_err(failed)?
        .snaplen(SNAP_LENGTH)
        .promisc(interface != "any")
        .timeout(i32::try_from(settings.retire.as_millis()).unwrap_or(i32::MAX).max(1))
        .buffer_size(i32::try_from(settings.ring_bytes).unwrap_or(i32::MAX))
        .precision(Precision::Nano)
        .open()
        .and_then(Capture::setnonblock)
        .map_err(failed)?;
    if shows_packets_twice(interface) {
        capture.direction(Direction::In).map_err(failed)?;
    }
    let number = capture.get_datalink().0;
    let link =
        LinkType::from_number(number).ok_or_else(|| OpenError::LinkType { interface: interface.to_owned(), number })?;
    Ok(Opened { capture, link, mtu: mtu_of(interface), index, joined_ns: 0 })
}

pub(crate) fn set_filter(capture: &mut Capture<Active>, interface: &str, expression: &str) -> Result<(), OpenError> {
    let filtered = capture.filter(expression, true);
    filtered.map_err(|source| OpenError::Filter { interface: interface.to_owned(), source })
}

/// Whether no hardware is behind it (veth, bridge, tunnel, loopback): what local senders hand over in one piece arrives in one.
pub(crate) fn is_virtual(interface: &str) -> bool {
    !Path::new("/sys/class/net").join(interface).join("device").exists()
}

/// Loopback shows a packet when it leaves and when it arrives; the pseudo-device `any` does where it is routed on.
fn shows_packets_twice(interface: &str) -> bool {
    const IFF_LOOPBACK: u32 = 0x8;
    let flags = read_number(interface, "flags").unwrap_or(0);
    interface == "any" || flags & IFF_LOOPBACK != 0
}

pub(crate) fn mtu_of(interface: &str) -> Option<u32> {
    // Loopback hands over whatever it is given, up to 64 KiB; there is nothing that a frame could be too large for.
    read_number(interface, "mtu").filter(|_| !shows_packets_twice(interface))
}

/// A number from the interface's directory in sysfs, decimal or hexadecimal.
fn read_number(interface: &str, attribute: &str) -> Option<u32> {
    let text = fs::read_to_string(Path::new("/sys/class/net").join(interface).join(attribute)).ok()?;
    match text.trim().strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.trim().parse().ok(),
    }
}

/// The interface of the default route, IPv4 before IPv6; of several the one with the lowest metric.
pub(crate) fn default_route_interface() -> Option<String> {
    default_route_v4(&fs::read_to_string("/proc/net/route").unwrap_or_default())
        .or_else(|| default_route_v6(&fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default()))
}

/// proc(5), `/proc/net/route`: name, destination, gateway, flags, reference count, use, metric, mask, all but the name in hex.
fn default_route_v4(table: &str) -> Option<String> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_default = *fields.get(1)? == "00000000" && *fields.get(7)? == "00000000";
        is_default.then_some((fields.get(6)?.parse::<u32>().ok()?, fields[0].to_owned()))
    });
    routes.min().map(|(_, name)| name)
}

/// `/proc/net/ipv6_route`: destination, prefix length, source, prefix length, next hop, metric, references, use, flags, name.
fn default_route_v6(table: &str) -> Option<String> {
    let routes = table.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let name = *fields.get(9)?;
        let is_default = fields[0].bytes().all(|digit| digit == b'0') && fields[1] == "00" && name != "lo";
        is_default.then_some((u32::from_str_radix(fields[5], 16).ok()?, name.to_owned()))
    });
    routes.min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_with_the_lowest_metric_wins() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                     eth1\t00000000\t010200C0\t0003\t0\t0\t50\t00000000\t0\t0\t0\n\
                     eth2\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_route_v4(table).as_deref(), Some("eth1"));
        assert_eq!(default_route_v4("Iface\n"), None);
    }

    #[test]
    fn an_ipv6_default_route_is_found_and_loopback_is_not() {
        let zeros = "0".repeat(32);
        let table = format!(
            "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth1\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n"
        );
        assert_eq!(default_route_v6(&table).as_deref(), Some("eth1"));
    }
}
