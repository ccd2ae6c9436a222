//! The keys of series.

use std::{fmt, net::IpAddr};

use sekiwake_identify::syslog::severity_keyword;
use sekiwake_record::{Shard, canonical_octets};

/// The number of severities, including one for messages without a PRI.
pub(super) const SEVERITIES: usize = 9;

/// Identifies a series: what is counted in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// All messages.
    Total,
    /// Messages of a severity, 0 to 7; 8: messages without a PRI.
    Severity(u8),
    /// Messages from a source.
    Source(IpAddr),
}

impl Key {
    /// The source, if it is a source.
    pub fn source(self) -> Option<IpAddr> {
        match self {
            Key::Source(source) => Some(source),
            Key::Total | Key::Severity(_) => None,
        }
    }

    /// The shard of its state entry.
    pub(super) fn shard(self) -> Shard {
        match self {
            Key::Source(source) => Shard::of(source),
            // Any shard will do, because one member owns all of them.
            Key::Total | Key::Severity(_) => Shard::all().next().unwrap_or_else(|| Shard::of(IpAddr::from([0; 16]))),
        }
    }

    /// As the key of a state entry: a letter, and the severity or address.
    pub(super) fn to_bytes(self) -> Vec<u8> {
        match self {
            Key::Total => vec![b'T'],
            Key::Severity(severity) => vec![b'V', severity],
            Key::Source(source) => [&[b'S'][..], &canonical_octets(source)].concat(),
        }
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Key> {
        match bytes {
            [b'T'] => Some(Key::Total),
            [b'V', severity] => (usize::from(*severity) < SEVERITIES).then_some(Key::Severity(*severity)),
            [b'S', octets @ ..] => {
                let octets: [u8; 16] = octets.try_into().ok()?;
                Some(Key::Source(IpAddr::from(octets).to_canonical()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Key::Total => f.write_str("total"),
            Key::Severity(severity) => write!(f, "severity/{}", severity_keyword(*severity).unwrap_or("none")),
            Key::Source(source) => write!(f, "source/{source}"),
        }
    }
}
