//! Tells the format of a datagram from its payload.
//!
//! The port decides what *kind* of traffic a datagram is; this crate says which *format* its payload has, and says it of a
//! format that is foreign to the port too: an exporter that was pointed at port 514 by mistake should show as `netflow9`
//! there. No first byte begins formats of two kinds, so the kind is never needed to choose between two answers:
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
//! The kind decides how much proof is asked for. The flow formats begin with bytes that other protocols begin with as well
//! (any DNS message whose identifier is 9), so elsewhere than on a flow port their structure must agree with itself. On a flow port
//! the header is enough: a packet whose sets are damaged is a damaged NetFlow v9 packet, and whoever
//! reads it counts it as such.
//!
//! Every answer costs a bounded number of steps, whatever the payload holds. Nothing is allocated.

mod bytes;
mod flow;
pub mod snmp;
pub mod syslog;

use sekiwake_record::{Format, Kind};

/// The format of a UDP payload, [`Format::Unknown`] if it has none of the formats that Sekiwake knows.
///
/// `kind` is what the destination port says; `None` where no setting claims the port.
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
