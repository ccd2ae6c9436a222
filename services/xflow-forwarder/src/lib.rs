//! Re-sends NetFlow v5 and v9, IPFIX and sFlow to one or many destinations.
//!
//! NetFlow v9 and IPFIX data can be read only after the templates of the same exporter: the engine keeps the order of each source.

use sekiwake_forward::{Forwarder, Protocol};
use sekiwake_record::Kind;
use sekiwake_runtime::About;

/// The service.
pub type XflowForwarder = Forwarder<Xflow>;

/// What the service knows of its protocol.
#[derive(Debug)]
pub enum Xflow {}

impl Protocol for Xflow {
    const ABOUT: About = About {
        service: "xflow-forwarder",
        binary: "sekiwake-xflow-forwarder",
        summary: "re-sends NetFlow, IPFIX and sFlow to one or many destinations",
        admin_port: 9603,
    };
    const KIND: Kind = Kind::Xflow;
    const DESTINATIONS: &'static str = "SEKIWAKE_XFLOW_DESTINATIONS";
    const DESTINATIONS_FILE: &'static str = "SEKIWAKE_XFLOW_DESTINATIONS_FILE";
}
