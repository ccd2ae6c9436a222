//! The counts of one shard with the positions that they include. Both are one value, so that a
//! take-over counts no record twice.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use super::{key::SEVERITIES, positions::Positions};

/// Counts of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) positions: Positions,
    /// Counts per open interval.
    pub(super) open: BTreeMap<u64, Counts>,
    /// The counts per source were left out, because the state entry would have been too large. They
    /// are unknown in the open intervals.
    pub(super) is_truncated: bool,
    #[serde(skip)]
    pub(super) is_dirty: bool,
}

/// Messages of one interval.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) total: u64,
    /// Per severity, the last one without a PRI; all 0 unless severities are counted.
    pub(super) severities: [u64; SEVERITIES],
    pub(super) sources: HashMap<IpAddr, u32>,
}

impl Tally {
    /// Drops the counts of some intervals. Returns the number of messages in them.
    pub(super) fn drop_intervals(&mut self, is_dropped: impl Fn(u64) -> bool) -> u64 {
        let dropped: Vec<u64> = self.open.keys().copied().filter(|&interval| is_dropped(interval)).collect();
        self.is_dirty |= !dropped.is_empty();
        dropped.iter().filter_map(|interval| self.open.remove(interval)).map(|counts| counts.total).sum()
    }
}
