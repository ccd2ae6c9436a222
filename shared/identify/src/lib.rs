//! Identifies the format of a datagram from its payload.
//!
//! The destination port determines the *kind* of traffic; this crate determines the *format* of the
//! payload, even if it does not belong on the port: an exporter configured with port 514 by mistake
//! shows as `netflow9` there. Formats of different kinds begin with different bytes, so the kind is
//! never needed to choose between two formats:
//!
//! ```text
//! '<'          PRI                             RFC 3164, RFC 5424
//! 00 05        version, count                  NetFlow v5
//! 00 09        version, count                  NetFlow v9
//! 00 0a        version, length                 IPFIX
//! 00 00 00 05  version, address type           sFlow v5
//! 30           SEQUENCE, INTEGER version       SNMP
//! ```
//!
//! The kind determines how strict the check is. Other protocols have the first bytes of flow
//! formats too (such as a DNS message with identifier 9), so on other ports the structure of a flow
//! datagram must be consistent. On a flow port the header is enough: a packet with damaged sets is
//! a damaged NetFlow v9 packet, which the collector counts as such.
//!
//! The number of steps is bounded for every payload, and nothing is allocated. That is why this
//! does not use snmp-parser or netflow_parser, which decode the whole datagram.

mod flow;
pub mod snmp;
pub mod syslog;

use sekiwake_record::{Format, Kind};

/// The format of a UDP payload, [`Format::Unknown`] if it is not recognised.
///
/// `kind` is the kind of the destination port; `None` if no setting claims the port.
pub fn identify(kind: Option<Kind>, payload: &[u8]) -> Format {
    match payload.first() {
        Some(b'<') => syslog::identify(payload),
        Some(0x00) if kind == Some(Kind::Xflow) => flow::identify_header(payload),
        Some(0x00) => flow::identify_structure(payload),
        Some(&snmp::SEQUENCE) => snmp::identify(payload),
        _ => None,
    }
    .unwrap_or(Format::Unknown)
}
