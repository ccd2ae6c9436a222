//! Forwards SNMP v1, v2c and v3 traps and informs to one or more destinations.
//!
//! Informs are answered by the collector that the agent addressed. Answers from our destinations
//! are not read. The engine is in `sekiwake-forward`.

use sekiwake_forward::{Forwarder, Protocol};
use sekiwake_record::Kind;
use sekiwake_runtime::{About, Process};

/// The service.
pub type TrapForwarder = Forwarder<Trap>;

/// The process and its subcommands.
pub fn process() -> Process {
    TrapForwarder::process()
}

/// The protocol of the service.
#[derive(Debug)]
pub enum Trap {}

impl Protocol for Trap {
    const ABOUT: About = About {
        service: "trap-forwarder",
        binary: "sekiwake-trap-forwarder",
        summary: "Forwards SNMP traps and informs to one or more destinations",
        admin_port: 9604,
    };
    const KIND: Kind = Kind::SnmpTrap;
    const DESTINATIONS: &'static str = "SEKIWAKE_TRAP_DESTINATIONS";
    const DESTINATIONS_FILE: &'static str = "SEKIWAKE_TRAP_DESTINATIONS_FILE";
}
