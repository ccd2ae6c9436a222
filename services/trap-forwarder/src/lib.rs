//! Re-sends SNMP v1, v2c and v3 traps and informs to one or many destinations.
//!
//! Informs are answered by the collector that the agent addressed; what a destination of ours answers is not read.

use sekiwake_forward::{Forwarder, Protocol};
use sekiwake_record::Kind;
use sekiwake_runtime::About;

/// The service.
pub type TrapForwarder = Forwarder<Trap>;

/// What the service knows of its protocol.
#[derive(Debug)]
pub enum Trap {}

impl Protocol for Trap {
    const ABOUT: About = About {
        service: "trap-forwarder",
        binary: "sekiwake-trap-forwarder",
        summary: "re-sends SNMP traps and informs to one or many destinations",
        admin_port: 9604,
    };
    const KIND: Kind = Kind::SnmpTrap;
    const DESTINATIONS: &'static str = "SEKIWAKE_TRAP_DESTINATIONS";
    const DESTINATIONS_FILE: &'static str = "SEKIWAKE_TRAP_DESTINATIONS_FILE";
}
