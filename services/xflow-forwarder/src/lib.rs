//! Forwards NetFlow v5 and v9, IPFIX and sFlow to one or more destinations.
//!
//! NetFlow v9 and IPFIX data can be decoded only after the templates of the same exporter. So the
//! engine (`sekiwake-forward`) keeps the order of each source, and sends templates ahead to
//! destinations that lack them.

use sekiwake_forward::{Forwarder, Protocol};
use sekiwake_record::Kind;
use sekiwake_runtime::{About, Process};

/// The service.
pub type XflowForwarder = Forwarder<Xflow>;

/// The process and its subcommands.
pub fn process() -> Process {
    XflowForwarder::process()
}

/// The protocol of the service.
#[derive(Debug)]
pub enum Xflow {}

impl Protocol for Xflow {
    const ABOUT: About = About {
        service: "xflow-forwarder",
        binary: "sekiwake-xflow-forwarder",
        summary: "Forwards NetFlow, IPFIX and sFlow to one or more destinations",
        admin_port: 9603,
    };
    const KIND: Kind = Kind::Xflow;
    const DESTINATIONS: &'static str = "SEKIWAKE_XFLOW_DESTINATIONS";
    const DESTINATIONS_FILE: &'static str = "SEKIWAKE_XFLOW_DESTINATIONS_FILE";
}
