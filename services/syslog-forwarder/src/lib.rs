//! Forwards syslog to one or more destinations.
//!
//! Syslog datagrams are independent of each other, so this service only defines which records
//! are syslog and which settings name their destinations. Everything else is in `sekiwake-forward`.
//! Messages without a priority, with NULs or invalid UTF-8 are sent unmodified.

use sekiwake_forward::{Forwarder, Protocol};
use sekiwake_record::Kind;
use sekiwake_runtime::{About, Process};

/// The service.
pub type SyslogForwarder = Forwarder<Syslog>;

/// The process and its subcommands.
pub fn process() -> Process {
    SyslogForwarder::process()
}

/// The protocol of the service.
#[derive(Debug)]
pub enum Syslog {}

impl Protocol for Syslog {
    const ABOUT: About = About {
        service: "syslog-forwarder",
        binary: "sekiwake-syslog-forwarder",
        summary: "Forwards syslog to one or more destinations",
        admin_port: 9602,
    };
    const KIND: Kind = Kind::Syslog;
    const DESTINATIONS: &'static str = "SEKIWAKE_SYSLOG_DESTINATIONS";
    const DESTINATIONS_FILE: &'static str = "SEKIWAKE_SYSLOG_DESTINATIONS_FILE";
}
