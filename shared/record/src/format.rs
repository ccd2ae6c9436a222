//! Payload formats.

use std::fmt;

/// The format of a payload. It is encoded as a number; unknown numbers of later versions are
/// decoded as [`Format::Unknown`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Format {
    /// Not recognised, but forwarded like the others.
    #[default]
    Unknown = 0,
    /// BSD syslog (RFC 3164): a PRI, followed by any text.
    Rfc3164 = 1,
    /// The syslog protocol (RFC 5424): a PRI and version 1.
    Rfc5424 = 2,
    /// Cisco NetFlow version 5.
    NetFlow5 = 3,
    /// Cisco NetFlow version 9 (RFC 3954).
    NetFlow9 = 4,
    /// IPFIX (RFC 7011).
    Ipfix = 5,
    /// sFlow version 5.
    Sflow5 = 6,
    /// SNMPv1 Trap-PDU (RFC 1157).
    Snmp1Trap = 7,
    /// SNMPv2-Trap-PDU in a v2c message (RFC 3416).
    Snmp2cTrap = 8,
    /// InformRequest-PDU in a v2c message (RFC 3416).
    Snmp2cInform = 9,
    /// An SNMPv3 message (RFC 3412), whose PDU may be encrypted.
    Snmp3 = 10,
}

impl Format {
    /// Every format, in the order of the codes.
    pub const ALL: [Format; 11] = [
        Format::Unknown,
        Format::Rfc3164,
        Format::Rfc5424,
        Format::NetFlow5,
        Format::NetFlow9,
        Format::Ipfix,
        Format::Sflow5,
        Format::Snmp1Trap,
        Format::Snmp2cTrap,
        Format::Snmp2cInform,
        Format::Snmp3,
    ];

    /// The number that encodes it in a record.
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The format that this number encodes; [`Format::Unknown`] for numbers of later versions.
    pub fn from_code(code: u64) -> Format {
        usize::try_from(code).ok().and_then(|index| Format::ALL.get(index)).copied().unwrap_or(Format::Unknown)
    }

    /// The name in JSON, metrics and filters.
    pub const fn as_str(self) -> &'static str {
        match self {
            Format::Unknown => "unknown",
            Format::Rfc3164 => "rfc3164",
            Format::Rfc5424 => "rfc5424",
            Format::NetFlow5 => "netflow5",
            Format::NetFlow9 => "netflow9",
            Format::Ipfix => "ipfix",
            Format::Sflow5 => "sflow5",
            Format::Snmp1Trap => "snmp1-trap",
            Format::Snmp2cTrap => "snmp2c-trap",
            Format::Snmp2cInform => "snmp2c-inform",
            Format::Snmp3 => "snmp3",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
