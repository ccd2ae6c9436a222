//! The list of destinations that must not be captured, on the publisher's side.
//!
//! ```text
//! version v of the coordinator ─▶ number n ─▶ [every capture thread filters by n] ─▶ v is acknowledged
//! ```
//!
//! Versions are the coordinator's, and start again with another coordinator. Numbers are the
//! publisher's own, and rise only when the destinations change.

use std::collections::VecDeque;

use crate::wire::Destination;

/// Maximum number of lists that are received and not applied. Beyond that, one in the middle is
/// never acknowledged; a newer one is instead.
const MAX_PENDING: usize = 16;

/// The list of destinations that must not be captured.
#[derive(Clone, Copy, Debug)]
pub struct CurrentList<'a> {
    /// Rises with every change; 0 before the first list.
    pub number: u64,
    /// The destinations.
    pub destinations: &'a [Destination],
    /// Those of clients: datagrams to them are counted.
    pub counted: &'a [Destination],
}

#[derive(Debug, Default)]
pub(super) struct ReceivedList {
    destinations: Vec<Destination>,
    counted: Vec<Destination>,
    /// Counts changes of the destinations, or of which are counted; 0 before the first.
    number: u64,
    /// The newest number that every capture thread filters by.
    applied: u64,
    pending: VecDeque<PendingList>,
    /// The newest version of this coordinator that is received.
    received_version: u64,
    /// The newest version of this coordinator that is applied.
    acknowledged_version: u64,
    /// A complete list is applied.
    has_complete: bool,
}

/// A version of the list that is acknowledged when the list with this number is applied.
#[derive(Debug)]
struct PendingList {
    number: u64,
    version: u64,
    /// The coordinator knows all members.
    is_complete: bool,
}

impl ReceivedList {
    pub(super) fn current(&self) -> CurrentList<'_> {
        CurrentList { number: self.number, destinations: &self.destinations, counted: &self.counted }
    }

    pub(super) fn acknowledged_version(&self) -> u64 {
        self.acknowledged_version
    }

    pub(super) fn has_complete(&self) -> bool {
        self.has_complete
    }

    /// Another coordinator has versions of its own.
    pub(super) fn on_new_coordinator(&mut self) {
        self.received_version = 0;
        self.acknowledged_version = 0;
        self.pending.clear();
    }

    /// Takes a version of the list, and which of it are counted. Returns whether the acknowledged
    /// version has changed.
    pub(super) fn receive(
        &mut self,
        version: u64,
        is_complete: bool,
        mut list: Vec<Destination>,
        mut counted: Vec<Destination>,
    ) -> bool {
        if version <= self.received_version {
            return false;
        }
        if !is_complete {
            // Members and clients that this coordinator does not know yet still send to the
            // destinations that they registered with the last one.
            list.extend_from_slice(&self.destinations);
            counted.extend_from_slice(&self.counted);
        }
        for list in [&mut list, &mut counted] {
            list.sort();
            list.dedup();
        }
        if list != self.destinations || counted != self.counted || self.number == 0 {
            self.destinations = list;
            self.counted = counted;
            self.number += 1;
        }
        self.received_version = version;
        if self.pending.len() == MAX_PENDING {
            self.pending.remove(MAX_PENDING / 2);
        }
        self.pending.push_back(PendingList { number: self.number, version, is_complete });
        // When the destinations have not changed, the list is applied already.
        self.acknowledge()
    }

    /// Every capture thread filters by the list with this number, or a newer one. Returns whether
    /// the acknowledged version has changed.
    pub(super) fn apply(&mut self, number: u64) -> bool {
        self.applied = self.applied.max(number.min(self.number));
        self.acknowledge()
    }

    fn acknowledge(&mut self) -> bool {
        let mut has_changed = false;
        while let Some(list) = self.pending.pop_front_if(|list| list.number <= self.applied) {
            self.acknowledged_version = list.version;
            self.has_complete |= list.is_complete;
            has_changed = true;
        }
        has_changed
    }
}
