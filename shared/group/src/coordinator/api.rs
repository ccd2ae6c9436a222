//! The settings of a coordinator, and its counters.

use std::time::Duration;

use crate::mutants::Mutants;

/// Settings of a [`Coordinator`](super::Coordinator).
#[derive(Clone, Debug)]
pub struct CoordinatorSettings {
    /// How long the positions of a group are kept after its last member has left.
    pub keep_positions: Duration,
    pub(crate) mutants: Mutants,
}

impl Default for CoordinatorSettings {
    fn default() -> CoordinatorSettings {
        CoordinatorSettings { keep_positions: Duration::from_secs(24 * 3600), mutants: Mutants::default() }
    }
}

/// Rejected messages and parts of messages, by reason. A rejection changes nothing for other
/// parties.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejections {
    /// Malformed or too large messages, and messages that are not for a coordinator.
    pub malformed: u64,
    /// Joins with another kind or protocol, too many of one peer, or without room.
    pub joins: u64,
    /// Messages in the name of another peer's member or stream.
    pub foreign: u64,
    /// Messages that are older than one received before.
    pub stale: u64,
    /// Holdings in a generation that cannot have been granted.
    pub holdings: u64,
    /// Positions in another kind, or in more streams or groups than there is room for.
    pub commits: u64,
    /// Destinations that the list has no room for.
    pub destinations: u64,
    /// Requests for repair over the peer's rate or not from a member, and answers that were not
    /// requested.
    pub repairs: u64,
    /// Advertisements of streams that there is no room for.
    pub streams: u64,
    /// Advertisements in which a topic's oldest record comes after its next.
    pub advertisements: u64,
    /// Registrations of clients without a group that there is no room for, or that differ from the
    /// client's first.
    pub clients: u64,
}

impl Rejections {
    /// The counts with their label values in metrics.
    pub fn by_reason(&self) -> [(&'static str, u64); 11] {
        [
            ("malformed", self.malformed),
            ("joins", self.joins),
            ("foreign", self.foreign),
            ("stale", self.stale),
            ("holdings", self.holdings),
            ("commits", self.commits),
            ("destinations", self.destinations),
            ("repairs", self.repairs),
            ("streams", self.streams),
            ("advertisements", self.advertisements),
            ("clients", self.clients),
        ]
    }
}
