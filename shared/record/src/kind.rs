//! Kinds of traffic.

use std::fmt;

/// The three kinds of traffic. Each has its own topics, budgets and forwarders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Syslog: RFC 3164, RFC 5424, or any other datagram to a syslog port.
    Syslog,
    /// Flow records: NetFlow, IPFIX, sFlow.
    Xflow,
    /// SNMP traps and informs.
    SnmpTrap,
}

impl Kind {
    /// Every kind, in the order of [`Kind::index`].
    pub const ALL: [Kind; 3] = [Kind::Syslog, Kind::Xflow, Kind::SnmpTrap];

    /// The name in topics, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Syslog => "syslog",
            Kind::Xflow => "xflow",
            Kind::SnmpTrap => "snmptrap",
        }
    }

    /// A dense index, 0 to 2, for tables.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The kind with this name, or `None`.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
