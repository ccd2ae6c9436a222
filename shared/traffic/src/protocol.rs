//! The protocols of the test traffic.

use std::fmt;

/// The protocol of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// BSD syslog (RFC 3164).
    Rfc3164,
    /// The syslog protocol (RFC 5424).
    Rfc5424,
    /// NetFlow version 5.
    Netflow5,
    /// NetFlow version 9 (RFC 3954).
    Netflow9,
    /// IPFIX (RFC 7011).
    Ipfix,
    /// sFlow version 5.
    Sflow,
    /// SNMPv1 Trap-PDU (RFC 1157).
    Snmp1Trap,
    /// SNMPv2-Trap-PDU with a community (RFC 3416, RFC 1901).
    Snmp2cTrap,
    /// InformRequest-PDU with a community.
    Snmp2cInform,
    /// SNMPv2-Trap-PDU in an SNMPv3 message, noAuthNoPriv (RFC 3412, RFC 3414).
    Snmp3Trap,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Protocol; 10] = [
        Protocol::Rfc3164,
        Protocol::Rfc5424,
        Protocol::Netflow5,
        Protocol::Netflow9,
        Protocol::Ipfix,
        Protocol::Sflow,
        Protocol::Snmp1Trap,
        Protocol::Snmp2cTrap,
        Protocol::Snmp2cInform,
        Protocol::Snmp3Trap,
    ];

    /// Its name on the command line and in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Rfc3164 => "rfc3164",
            Protocol::Rfc5424 => "rfc5424",
            Protocol::Netflow5 => "netflow5",
            Protocol::Netflow9 => "netflow9",
            Protocol::Ipfix => "ipfix",
            Protocol::Sflow => "sflow",
            Protocol::Snmp1Trap => "snmp1-trap",
            Protocol::Snmp2cTrap => "snmp2c-trap",
            Protocol::Snmp2cInform => "snmp2c-inform",
            Protocol::Snmp3Trap => "snmp3-trap",
        }
    }

    /// The port that its collectors listen on.
    pub fn default_port(self) -> u16 {
        match self {
            Protocol::Rfc3164 | Protocol::Rfc5424 => 514,
            Protocol::Netflow5 | Protocol::Netflow9 => 2055,
            Protocol::Ipfix => 4739,
            Protocol::Sflow => 6343,
            Protocol::Snmp1Trap | Protocol::Snmp2cTrap | Protocol::Snmp2cInform | Protocol::Snmp3Trap => 162,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
