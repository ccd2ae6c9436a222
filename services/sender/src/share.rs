//! A protocol with its share of the datagrams.

use std::str::FromStr;

use sekiwake_traffic::Protocol;

/// A protocol with its share of the datagrams: `rfc5424` or `rfc5424:3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The protocol.
    pub protocol: Protocol,
    /// Number of turns per round.
    pub weight: u32,
}

/// An error in a [`Share`].
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// Unknown protocol.
    #[error("expected one of {}, all, each optionally with a weight as in rfc5424:3", names())]
    Unknown,
    /// Not a number from 1 to 1000.
    #[error("expected a weight from 1 to 1000 after the colon")]
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
