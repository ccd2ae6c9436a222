//! Opens interfaces with libpcap, and reads their state from sysfs and procfs.

use std::{fs, path::Path, time::Duration};

use pcap::{Active, Capture, Direction, Precision};
use sekiwake_sys::{FanoutMode, InterfaceQueries, clock::wall_now_ns};

use crate::{
    decode::LinkType,
    deduplicate::DeduplicateSettings,
    filter::{self, Attached},
    ports::Ports,
};

/// Longer than any frame, bytes. With TPACKET_V3 this costs nothing, because a ring block holds as
/// many frames as fit, regardless of the snapshot length.
const SNAP_LENGTH: i32 = 262_144;

/// How an interface is captured.
#[derive(Clone, Debug)]
pub struct InterfaceSettings {
    /// Size of the kernel's ring buffer, bytes.
    pub ring_bytes: usize,
    /// The kernel hands over a ring block that is not full after this time.
    pub retire: Duration,
    /// Capture threads that share the interface.
    pub threads: u16,
    /// Whether to decode packets inside tunnels.
    pub tunnels: bool,
    /// How second copies of what the interface shows twice are recognised; `None` if they are not.
    pub deduplicate: Option<DeduplicateSettings>,
    /// The user's filter expression, in the language of pcap-filter(7).
    pub filter: Option<String>,
}

/// An open interface.
pub(crate) struct Opened {
    pub(crate) capture: Capture<Active>,
    pub(crate) link: LinkType,
    /// How it is filtered; `None` if it is not.
    pub(crate) filter: Option<Attached>,
    /// The largest IP packet that the link carries, bytes; `None` if unknown, or without meaning.
    pub(crate) mtu: Option<u32>,
    /// The kernel's interface index; `None` for the pseudo-device `any`.
    pub(crate) index: Option<u32>,
    /// Packets with an earlier capture time are ignored, nanoseconds since 1970-01-01T00:00:00Z:
    /// until a handle joins its fan-out group it receives packets that the other threads receive
    /// too.
    pub(crate) joined_ns: u64,
}

/// The state of an interface that was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// It exists and is up.
    Up,
    /// It exists and is down: libpcap reports nothing, and continues when it comes up.
    Down,
    /// It was removed or renamed, or another interface has its name.
    Removed,
}

/// The state of the interface that had this name and this index when it was opened. Asked once per
/// second, so it takes two system calls.
pub(crate) fn presence(queries: &InterfaceQueries, interface: &str, index: Option<u32>) -> Presence {
    const IFF_UP: u32 = 0x1;
    if index.is_none() {
        return Presence::Up;
    }
    let flags = queries.flags(interface).unwrap_or(0);
    match queries.index(interface).ok() == index {
        true if flags & IFF_UP != 0 => Presence::Up,
        true => Presence::Down,
        false => Presence::Removed,
    }
}

/// The state of an interface's link, in words; `None` for the pseudo-device `any`.
pub(crate) fn link_state(interface: &str) -> Option<&'static str> {
    let queries = InterfaceQueries::new().ok()?;
    let index = queries.index(interface).ok();
    index?;
    Some(match presence(&queries, interface, index) {
        Presence::Removed => "it no longer exists",
        Presence::Down => "it is down",
        Presence::Up if read_number(interface, "carrier") == Some(0) => "it is up, but has no carrier",
        Presence::Up => "it is up",
    })
}

/// Why an interface cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The process may not capture.
    #[error("no permission to capture on {interface}: the process needs the capability NET_RAW")]
    Permission { interface: String, source: pcap::Error },
    /// The filter does not compile, or the kernel rejects it.
    #[error("cannot set the kernel filter for {interface} (made from SEKIWAKE_CAPTURE_FILTER and the ports)")]
    Filter { interface: String, source: pcap::Error },
    /// The decoder does not support the link type.
    #[error("link type {number} of {interface} is not supported")]
    LinkType { interface: String, number: i32 },
    /// It does not exist, or is not up.
    #[error("cannot open {interface}")]
    Open { interface: String, source: pcap::Error },
    /// The handle cannot join the fan-out group.
    #[error("cannot share {interface} between capture threads")]
    Fanout { interface: String, source: std::io::Error },
}

impl OpenError {
    /// Whether a later attempt may succeed with the same settings and permissions.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, OpenError::Open { .. } | OpenError::Fanout { .. })
    }
}

/// Opens `interface` with the kernel filter for `ports`. `group` is the fan-out group that all
/// threads of the interface join.
pub(crate) fn open(
    interface: &str,
    settings: &InterfaceSettings,
    ports: &Ports,
    group: u16,
) -> Result<Opened, OpenError> {
    let opened = open_unfiltered(interface, settings)?;
    let Opened { mut capture, link, mtu, index, mut joined_ns, .. } = opened;
    let attached = filter::attach(&mut capture, ports, settings.tunnels, link, settings.filter.as_deref())
        .map_err(|source| OpenError::Filter { interface: interface.to_owned(), source })?;
    if settings.threads > 1 {
        sekiwake_sys::join_fanout(&capture, group, FanoutMode::Hash)
            .map_err(|source| OpenError::Fanout { interface: interface.to_owned(), source })?;
        joined_ns = wall_now_ns();
    }
    Ok(Opened { capture, link, filter: Some(attached), mtu, index, joined_ns })
}

/// Whether this process may capture on `interface`. All other obstacles may disappear while the
/// service runs.
///
/// # Errors
/// It has no permission.
pub(crate) fn check_permission(interface: &str, settings: &InterfaceSettings) -> Result<(), OpenError> {
    const SMALL_RING_BYTES: usize = 1 << 20;

    let settings = InterfaceSettings { ring_bytes: SMALL_RING_BYTES, ..settings.clone() };
    match open_unfiltered(interface, &settings) {
        Err(error @ OpenError::Permission { .. }) => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Opens `interface` without a kernel filter.
pub(crate) fn open_unfiltered(interface: &str, settings: &InterfaceSettings) -> Result<Opened, OpenError> {
    let failed = |source: pcap::Error| {
        let text = source.to_string();
        let interface = interface.to_owned();
        if text.contains("ermission") || text.contains("not permitted") || text.contains("CAP_NET_RAW") {
            OpenError::Permission { interface, source }
        } else {
            OpenError::Open { interface, source }
        }
    };
    // Read before opening, because an interface that is replaced in between is then noticed by
    // `presence` and reopened.
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
    Ok(Opened { capture, link, filter: None, mtu: mtu_of(interface), index, joined_ns: 0 })
}

/// A packet's capture time, nanoseconds since 1970-01-01T00:00:00Z: handles are opened with
/// nanosecond precision, and libpcap then puts nanoseconds into the field for microseconds.
pub(crate) fn captured_at_ns(header: &pcap::PacketHeader) -> u64 {
    let seconds = u64::try_from(header.ts.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(header.ts.tv_usec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// Whether the interface has no hardware (veth, bridge, tunnel, loopback): a local sender's
/// coalesced datagrams then arrive as one.
pub(crate) fn is_virtual(interface: &str) -> bool {
    !Path::new("/sys/class/net").join(interface).join("device").exists()
}

/// Whether libpcap sees packets both when they leave and when they arrive: on loopback, and on the
/// pseudo-device `any` if the host forwards them.
fn shows_packets_twice(interface: &str) -> bool {
    const IFF_LOOPBACK: u32 = 0x8;
    let flags = read_number(interface, "flags").unwrap_or(0);
    interface == "any" || flags & IFF_LOOPBACK != 0
}

/// The largest IP packet that the link carries, bytes; `None` if unknown.
fn mtu_of(interface: &str) -> Option<u32> {
    // Loopback carries packets of up to 64 KiB as they are, so its MTU says nothing about offload.
    read_number(interface, "mtu").filter(|_| !shows_packets_twice(interface))
}

/// A number from the interface's directory in sysfs, in decimal or hexadecimal.
fn read_number(interface: &str, attribute: &str) -> Option<u32> {
    let text = fs::read_to_string(Path::new("/sys/class/net").join(interface).join(attribute)).ok()?;
    match text.trim().strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.trim().parse().ok(),
    }
}

/// The interface of the default route, IPv4 before IPv6; with several routes, of the one with the
/// lowest metric.
pub(crate) fn default_route_interface() -> Option<String> {
    default_route_v4(&fs::read_to_string("/proc/net/route").unwrap_or_default())
        .or_else(|| default_route_v6(&fs::read_to_string("/proc/net/ipv6_route").unwrap_or_default()))
}

/// proc(5), `/proc/net/route`: name, destination, gateway, flags, reference count, use, metric,
/// mask. Addresses and masks are in hex.
fn default_route_v4(table: &str) -> Option<String> {
    let routes = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_default = *fields.get(1)? == "00000000" && *fields.get(7)? == "00000000";
        is_default.then_some((fields.get(6)?.parse::<u32>().ok()?, fields[0].to_owned()))
    });
    routes.min().map(|(_, name)| name)
}

/// `/proc/net/ipv6_route`: destination, prefix length, source, prefix length, next hop, metric,
/// references, use, flags, name.
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
    fn default_route_with_the_lowest_metric_wins() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                     eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                     eth1\t00000000\t010200C0\t0003\t0\t0\t50\t00000000\t0\t0\t0\n\
                     eth2\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_route_v4(table).as_deref(), Some("eth1"));
        assert_eq!(default_route_v4("Iface\n"), None);
    }

    #[test]
    fn ipv6_default_route_is_found_except_on_loopback() {
        let zeros = "0".repeat(32);
        let table = format!(
            "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth1\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n"
        );
        assert_eq!(default_route_v6(&table).as_deref(), Some("eth1"));
    }
}
