//! Three namespaces and two links: devices, the host that runs Sekiwake, and the collectors that it
//! forwards to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use sekiwake_testkit::netns::{End, Link, Namespace};

/// The devices' end of the wire.
pub const DEVICES_WIRE: &str = "dev0";
/// The interface that capture listens on.
pub const WIRE: &str = "wire0";
/// The host's address on the wire, where the old collector listens.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The host's IPv6 address on the wire.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 1);
/// An unused address with an unused link-layer address: datagrams to it pass by the host, as on a
/// mirror port.
pub const MIRRORED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The IPv6 counterpart of [`MIRRORED`].
pub const MIRRORED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 2);
/// The devices' first address.
pub const FIRST_DEVICE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// The devices' first IPv6 address.
pub const FIRST_DEVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 1, 0, 0, 0, 1);

/// Number of device addresses on the interface. Others can be bound with IP_TRANSPARENT; these have
/// a route back.
const DEVICES: u8 = 64;
/// Number of collector addresses.
const COLLECTORS: u8 = 8;

/// A link-layer address that no interface has.
const UNUSED_MAC: &str = "02:00:5e:00:53:99";

/// The address of collector `number`, from 0.
pub fn collector(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 11 + number)
}

/// The IPv6 address of collector `number`, from 0.
pub fn collector_v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, 0x11 + u16::from(number))
}

/// The namespaces. Dropping it removes them.
#[derive(Debug)]
pub struct Site {
    /// Where devices send.
    pub devices: Namespace,
    /// Where Sekiwake runs.
    pub host: Namespace,
    /// Where collectors receive.
    pub collectors: Namespace,
    links: Links,
}

/// Properties of the links.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// The largest IP packet, bytes.
    pub mtu: u32,
    /// Whether Sekiwake's GSO messages cross to the collectors unsegmented, as to a network card
    /// that segments.
    pub segmentation_offload: bool,
}

impl Default for Links {
    fn default() -> Links {
        Links { mtu: 1500, segmentation_offload: true }
    }
}

impl Site {
    /// Creates the namespaces and links.
    pub fn new() -> anyhow::Result<Site> {
        Site::with(Links::default())
    }

    /// Creates them with these links.
    pub fn with(links: Links) -> anyhow::Result<Site> {
        let site = Site {
            devices: Namespace::new("skw-dev")?,
            host: Namespace::new("skw-host")?,
            collectors: Namespace::new("skw-coll")?,
            links,
        };
        site.connect_wire()?;
        let out_left = End::new(&site.host, "out0").address("198.51.100.1/24").address("2001:db8:51::1/64");
        let out_right = End::new(&site.collectors, "in0")
            .addresses((0..COLLECTORS).map(|number| format!("{}/24", collector(number))))
            .addresses((0..COLLECTORS).map(|number| format!("{}/64", collector_v6(number))));
        Link::new(out_left, out_right)
            .mtu(links.mtu)
            .segmentation_offload(links.segmentation_offload)
            .checksum_offload(links.segmentation_offload)
            .create()?;
        // Spoofed datagrams have source addresses without a route from here, so that reverse path
        // filtering would drop them.
        site.collectors.enter(|| {
            let path = |scope| format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter");
            ["all", "in0"].iter().try_for_each(|scope| std::fs::write(path(scope), "0"))
        })??;
        Ok(site)
    }

    /// Creates the link between devices and host, also after it was deleted.
    pub fn connect_wire(&self) -> anyhow::Result<()> {
        let addresses = |first: u32| (0..u32::from(DEVICES)).map(move |n| Ipv4Addr::from(first + n));
        let addresses_v6 = |first: u128| (0..u128::from(DEVICES)).map(move |n| Ipv6Addr::from(first + n));
        let left = End::new(&self.devices, DEVICES_WIRE)
            .address("198.18.255.254/15")
            .address("2001:db8:18::ffff/48")
            .addresses(addresses(FIRST_DEVICE.into()).map(|address| format!("{address}/15")))
            .addresses(addresses_v6(FIRST_DEVICE_V6.into()).map(|address| format!("{address}/48")))
            .neighbour(IpAddr::V4(MIRRORED), UNUSED_MAC)
            .neighbour(IpAddr::V6(MIRRORED_V6), UNUSED_MAC);
        let right = End::new(&self.host, WIRE).address(&format!("{HOST}/15")).address(&format!("{HOST_V6}/48"));
        Link::new(left, right).mtu(self.links.mtu).segmentation_offload(false).create()
    }

    /// Frames from devices that the wire has dropped so far, because the queue between the ends of
    /// a veth pair is finite.
    pub fn dropped_by_wire(&self) -> anyhow::Result<u64> {
        let text = self.devices.ip(&format!("-s -j link show dev {DEVICES_WIRE}"))?;
        let interfaces: serde_json::Value = serde_json::from_str(&text)?;
        let dropped = interfaces[0]["stats64"]["tx"]["dropped"].as_u64();
        dropped.with_context(|| format!("no count of dropped frames in {text}"))
    }
}
