//! Datagrams as packets in a pcapng file, which tools of the field read.
//!
//! ```text
//! section header, interface description          LINKTYPE_RAW, nanoseconds; little-endian
//! seal
//! packet, packet, ...                            of a file of flows: the templates known at its start, with a comment
//! seal
//! packet, packet, ..., seal                      a group: at most 64 KiB and one packet
//! ...
//!
//! enhanced packet                                its data is an IP and a UDP header made from the record, and the payload
//!   option 2989   32473 u32 | 1 u8 | bits u8 | format u8 | VLANs u8 | flags u32 | VLAN u16, ... |
//!                 length of the publisher's name u8 | name | interface u8, IP identification u32
//!                 bits: 1 template, 2 source and 4 destination is an IPv4 address in an IPv6 header,
//!                 8 the interface is known, 16 and the identification
//!   option 1      a comment, if it is a template
//! seal            block for local use   0x8000534B | 60 | "skwseal1" | bytes of the group u32 | packets u32 |
//!                 earliest u64 | latest captured_at u64 | key u64 | XXH3 of all of the group and the seal before it u64,
//!                 with the key as its seed | 60
//! ```
//! 32473 is the enterprise number for documentation (RFC 5612). A seal is no custom block
//! (0x00000BAD), because tshark lists each of those like a packet; blocks for local use are skipped
//! by all readers.
//!
//! A group is read if its seal is right, and not otherwise. Where a file is damaged, reading goes
//! on with the next group that has a right seal, wherever that stands. **Invariant:** no datagram
//! is read that was not stored as one: a payload may hold packets and seals, but the key is random,
//! new for each run of a storer, and stands only in its files.
//!
//! Not one of the crates for pcapng: they read a file from its start, block by block, and stop at a
//! damaged one.

mod encode;
mod frames;
mod groups;
mod packet;
mod seal;

pub use encode::{OpenGroup, PacketEncoder};
pub use frames::FrameWriter;
pub use groups::{GroupReader, Item};
pub(crate) use packet::{captured_at_of, is_template, packets, parse};
pub use packet::{holds_data, messages, templates};
pub(crate) use seal::{SEAL_BYTES, Seal, VOTING_BYTES, head_key, key_of};

/// Types of blocks.
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
/// For local use.
const SEAL: u32 = 0x8000_534b;

/// Codes of options.
const END: u16 = 0;
const COMMENT: u16 = 1;
const APPLICATION: u16 = 4;
const INTERFACE_NAME: u16 = 2;
const RESOLUTION: u16 = 9;
const CUSTOM_BINARY: u16 = 2989;

/// Packets that start with an IP header.
const LINKTYPE_RAW: u16 = 101;

/// The enterprise number for documentation (RFC 5612).
const ENTERPRISE: u32 = 32_473;

/// The version of the option of a packet.
const VERSION: u8 = 1;

/// Bits in the option of a packet.
const TEMPLATE_BIT: u8 = 1;
const MAPPED_SOURCE_BIT: u8 = 2;
const MAPPED_DESTINATION_BIT: u8 = 4;
/// The last two fields are there.
const ORIGIN_BIT: u8 = 8;
/// The datagram has an identification.
const IDENTIFIED_BIT: u8 = 16;

/// A group is sealed once it has this size, bytes.
const GROUP_BYTES: usize = 64 << 10;

/// The limit on the bytes of a packet, which is a payload and less than 1 KiB.
const MAX_PACKET_BYTES: usize = 67 << 10;

/// The limit on the bytes of a group, without its seal.
const MAX_GROUP_BYTES: usize = GROUP_BYTES + MAX_PACKET_BYTES;

/// The same with its seal.
pub(crate) const MAX_SEALED: usize = MAX_GROUP_BYTES + SEAL_BYTES;

fn u16_of(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_of(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_of(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests;
