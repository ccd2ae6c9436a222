//! The protocols that can be sent.

use std::{fmt, str::FromStr};

/// What a datagram is.
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
    #[must_use]
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
    #[must_use]
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

/// A protocol with its share of the datagrams: `rfc5424` or `rfc5424:3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// What is sent.
    pub protocol: Protocol,
    /// How many turns it takes in each round.
    pub weight: u32,
}

/// A mistake in a [`Share`].
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// No such protocol.
    #[error("expected one of {}, all, each optionally with a weight as in rfc5424:3", names())]
    Unknown,
    /// Not a number from 1 to 1000.
    #[error("the weight behind the colon is a number from 1 to 1000")]
    Weight,
}

fn names() -> String {
    Protocol::ALL.map(Protocol::name).join(", ")
}

impl FromStr for Share {
    type Err = ShareError;

    fn from_str(text: &str) -> Result<Share, ShareError> {
        let (name, weight) = text.split_once(':').map_or((text, None), |(name, weight)| (name, Some(weight)));
        let known = Protocol::ALL.into_iter().find(|protocol| protocol.name() == name);
        let weight = weight.map_or(Ok(1), |weight| weight.parse().map_err(|_| ShareError::Weight))?;
        if !(1..=1000).contains(&weight) {
            return Err(ShareError::Weight);
        }
        Ok(Share { protocol: known.ok_or(ShareError::Unknown)?, weight })
    }
}
