//! What has been counted of one shard, and how far: the two go together, so that a take-over counts nothing twice.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use super::{positions::Positions, series::SEVERITIES};

/// Counts of a shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) positions: Positions,
    /// By interval.
    pub(super) open: BTreeMap<u64, Counts>,
    /// There was no room for the sources in the note: what they are in the open intervals is not known.
    pub(super) is_cut: bool,
    #[serde(skip)]
    pub(super) is_dirty: bool,
}

/// Messages of one interval.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counts {
    pub(super) total: u64,
    /// By severity, and without a PRI; all 0 where they are not asked for.
    pub(super) severities: [u64; SEVERITIES],
    pub(super) sources: HashMap<IpAddr, u32>,
}

impl Tally {
    /// How many messages are in intervals before this one, or this and later ones.
    pub(super) fn forget(&mut self, is_over: impl Fn(u64) -> bool) -> u64 {
        let over: Vec<u64> = self.open.keys().copied().filter(|&interval| is_over(interval)).collect();
        self.is_dirty |= !over.is_empty();
        over.iter().filter_map(|interval| self.open.remove(interval)).map(|counts| counts.total).sum()
    }
}
