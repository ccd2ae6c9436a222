//! Three namespaces and two links: devices, the host that Sekiwake runs on, and the collectors that it forwards to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;
use sekiwake_testkit::netns::{End, Link, Namespace};

/// The devices' end of the wire.
pub const DEVICES_WIRE: &str = "dev0";
/// The interface that capture listens on.
pub const WIRE: &str = "wire0";
/// The host's address on the wire: where the old collector listens.
pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The same, IPv6.
pub const HOST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 1);
/// An address that nobody has, behind a link-layer address that nobody has: what is sent there passes by, as on a mirror port.
pub const MIRRORED: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// The same, IPv6.
pub const MIRRORED_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 0, 0, 0, 0, 2);
/// The first address of the devices' own.
pub const FIRST_DEVICE: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 1);
/// The same, IPv6.
pub const FIRST_DEVICE_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0x18, 1, 0, 0, 0, 1);

/// Devices with addresses of their own. More can be bound freely; these have a route back.
const DEVICES: u8 = 64;
/// Collectors with addresses of their own.
const COLLECTORS: u8 = 8;

/// A link-layer address that no interface has.
const NOBODY: &str = "02:00:5e:00:53:99";

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
    /// Where devices send from.
    pub devices: Namespace,
    /// Where Sekiwake runs.
    pub host: Namespace,
    /// Where it forwards to.
    pub collectors: Namespace,
    links: Links,
}

/// How the links are made.
#[derive(Clone, Copy, Debug)]
pub struct Links {
    /// The largest IP packet, bytes.
    pub mtu: u32,
    /// Whether what Sekiwake sends may cross to the collectors in segments of 64 KiB, as to a network card that segments.
    pub segmentation_offload: bool,
}

impl Default for Links {
    fn default() -> Links {
        Links { mtu: 1500, segmentation_offload: true }
    }
}

impl Site {
    /// Makes the namespaces and links.
    ///
    /// # Errors
    /// Without root, iproute2 or ethtool.
    pub fn new() -> anyhow::Result<Site> {
        Site::with(Links::default())
    }

    /// The same, with links of one's own.
    ///
    /// # Errors
    /// As [`Site::new`].
    pub fn with(links: Links) -> anyhow::Result<Site> {
        let (devices, host, collectors) =
            (Namespace::new("skw-dev")?, Namespace::new("skw-host")?, Namespace::new("skw-coll")?);
        let site = Site { devices, host, collectors, links };
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
        // What comes in the name of a device has no way back to it from here.
        site.collectors.enter(|| {
            let path = |scope| format!("/proc/sys/net/ipv4/conf/{scope}/rp_filter");
            ["all", "in0"].iter().try_for_each(|scope| std::fs::write(path(scope), "0"))
        })??;
        Ok(site)
    }

    /// Lays the link between devices and host, as [`Site::with`] does and as it can be done again when it was cut.
    ///
    /// # Errors
    /// It is there already.
    pub fn connect_wire(&self) -> anyhow::Result<()> {
        let own = |first: u32| (0..u32::from(DEVICES)).map(move |n| Ipv4Addr::from(first + n));
        let own_v6 = |first: u128| (0..u128::from(DEVICES)).map(move |n| Ipv6Addr::from(first + n));
        let left = End::new(&self.devices, DEVICES_WIRE)
            .address("198.18.255.254/15")
            .address("2001:db8:18::ffff/48")
            .addresses(own(FIRST_DEVICE.into()).map(|address| format!("{address}/15")))
            .addresses(own_v6(FIRST_DEVICE_V6.into()).map(|address| format!("{address}/48")))
            .neighbour(IpAddr::V4(MIRRORED), NOBODY)
            .neighbour(IpAddr::V6(MIRRORED_V6), NOBODY);
        let right = End::new(&self.host, WIRE).address(&format!("{HOST}/15")).address(&format!("{HOST_V6}/48"));
        Link::new(left, right).mtu(self.links.mtu).segmentation_offload(false).create()
    }

    /// Frames that devices have sent and the wire has dropped so far: the queue between the ends of a veth pair is finite.
    ///
    /// # Errors
    /// iproute2 does not say.
    pub fn dropped_by_wire(&self) -> anyhow::Result<u64> {
        let text = self.devices.ip(&format!("-s -j link show dev {DEVICES_WIRE}"))?;
        let interfaces: serde_json::Value = serde_json::from_str(&text)?;
        let dropped = interfaces[0]["stats64"]["tx"]["dropped"].as_u64();
        dropped.with_context(|| format!("no count of dropped frames in {text}"))
    }
}
