//! Decodes the datagrams that records carry into typed rows: syslog, flows, traps.
//!
//! No I/O. Input is hostile: rows, depth and output are bounded, and what cannot be decoded is a
//! row that says why.

mod decoder;
pub mod flow;
mod lines;
pub mod mib;
pub mod syslog;
mod text;
pub mod trap;
mod undecoded;

use std::fmt;

use serde::{Serialize, Serializer};

pub use decoder::{Decoder, FirstTemplates};
pub use lines::{Style, write_rows};
pub use undecoded::Undecoded;

/// One thing that a datagram says. In JSON it is an object without further levels, except for
/// lists; `format` is always in it.
#[derive(Clone, Debug, PartialEq)]
pub enum Row<'a> {
    /// A flow, or what else an exporter of flows says.
    Flow(flow::Flow<'a>),
    /// A syslog message.
    Syslog(Box<syslog::Message<'a>>),
    /// An SNMP trap or inform, or what else an agent sends to the same port.
    Trap(Box<trap::Trap<'a>>),
    /// Bytes that cannot be decoded.
    Undecoded(Undecoded<'a>),
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Row::Flow(flow) => flow.serialize(serializer),
            Row::Syslog(message) => message.serialize(serializer),
            Row::Trap(trap) => trap.serialize(serializer),
            Row::Undecoded(undecoded) => undecoded.serialize(serializer),
        }
    }
}

/// One line for a person. Text from the network is escaped.
impl fmt::Display for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Row::Flow(flow) => write!(f, "{flow}"),
            Row::Syslog(message) => write!(f, "{message}"),
            Row::Trap(trap) => write!(f, "{trap}"),
            Row::Undecoded(undecoded) => write!(f, "{undecoded}"),
        }
    }
}
