//! Re-sends syslog to one or many destinations.
//!
//! A syslog datagram stands for itself, so what this service knows of its protocol is little: which records are syslog, and where
//! they go. Lines without a priority, with NULs or invalid UTF-8 leave as they came.

use sekiwake_forward::{Forwarder, Protocol};
use sekiwake_record::Kind;
use sekiwake_runtime::About;

/// The service.
pub type SyslogForwarder = Forwarder<Syslog>;

/// What the service knows of its protocol.
#[derive(Debug)]
pub enum Syslog {}

impl Protocol for Syslog {
    const ABOUT: About = About {
        service: "syslog-forwarder",
        binary: "sekiwake-syslog-forwarder",
        summary: "re-sends syslog to one or many destinations",
        admin_port: 9602,
    };
    const KIND: Kind = Kind::Syslog;
    const DESTINATIONS: &'static str = "SEKIWAKE_SYSLOG_DESTINATIONS";
    const DESTINATIONS_FILE: &'static str = "SEKIWAKE_SYSLOG_DESTINATIONS_FILE";
}
