//! Builders of packets and savefiles, from the inside out: a [`Datagram`], its IP packet or
//! fragments, link and tunnel headers.
//!
//! ```
//! use sekiwake_testkit::packets::{Datagram, SaveFile, ethernet, tagged};
//!
//! let datagram = Datagram::new("198.51.100.1:5140", "198.51.100.2:514", "<13>hello");
//! let frame = tagged(&ethernet(&datagram.packet()), &[(0x88a8, 20), (0x8100, 30)]);
//! let bytes = SaveFile::new(1).packet(1_000, &frame).into_bytes();
//! ```

mod ip;
mod link;
mod savefile;
mod tunnel;

pub use self::{
    ip::{Datagram, Extension, ip_packet, ipv6_packet},
    link::{
        ethernet, ethernet_frame, linux_cooked_v1, linux_cooked_v2, mpls, null, padded, pppoe_session, snap, tagged,
        with_tag,
    },
    savefile::SaveFile,
    tunnel::{Gre, eoip, erspan_1, erspan_2, erspan_3, geneve, tzsp, vxlan, vxlan_gpe},
};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// Protocol type of an Ethernet frame in GRE or Geneve.
pub const TRANSPARENT_ETHERNET: u16 = 0x6558;

/// The EtherType of an IP packet, by its version.
pub fn ether_type_of(packet: &[u8]) -> u16 {
    if packet[0] >> 4 == 6 { IPV6 } else { IPV4 }
}
