//! What happens to the members of groups and to clients, for the log and the metrics of the proxy.

use std::time::Duration;

use sekiwake_record::Name;

use super::{Coordinator, assignment::Incarnation, group::Group};
use crate::{BootTime, LEASE, LEASE_MARGIN, wire::Destination};

/// What happened to a member or a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CoordinatorEvent {
    /// A member has released its shards and left, as on an orderly stop.
    Left {
        /// The group.
        group: Name,
        /// The member's label.
        member: Name,
    },
    /// A member did not renew its lease in time.
    LeaseExpired(LeaseExpired),
    /// A client that is in no group has registered destinations, which captures leave alone.
    ClientCame {
        /// Its name.
        client: Name,
        /// The destinations.
        destinations: Vec<Destination>,
    },
    /// The destinations of such a client, which has left or died, are captured again.
    ClientGone {
        /// Its name.
        client: Name,
        /// Datagrams to the destinations that publishers have left alone.
        left_alone: u64,
    },
}

/// A lease that expired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseExpired {
    /// The group.
    pub group: Name,
    /// The label of the member that did not renew it.
    pub member: Name,
    /// How long ago the newest renewal arrived.
    pub silent_for: Duration,
    /// Its shards, one bit each.
    pub shards: u64,
    /// The members that take these shards. None if there is no other member, or if the coordinator
    /// has not assigned them yet because it, or the group, has just returned.
    pub takers: Vec<Taker>,
    /// Records of these shards that were published, as far as is known, and not reported as
    /// handled. The member may have sent some of them, and the next owners send all of them: at
    /// most so many are sent twice.
    pub unacknowledged: u64,
}

/// A member that takes shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taker {
    /// Its label.
    pub member: Name,
    /// The shards, one bit each.
    pub shards: u64,
}

impl Coordinator {
    /// The next event, in the order in which they happened. To be polled like
    /// [`Coordinator::poll_output`].
    pub fn poll_event(&mut self) -> Option<CoordinatorEvent> {
        self.events.pop_front()
    }

    pub(super) fn on_left(&mut self, group: &Name, incarnation: Incarnation) {
        let member = self.groups.get(group).and_then(|group| group.members.get(&incarnation));
        if let Some(member) = member {
            let (group, member) = (group.clone(), member.label.clone());
            self.events.push_back(CoordinatorEvent::Left { group, member });
        }
    }

    /// What is lost with a lease, before the member is removed. The takers are not known yet.
    pub(super) fn expired_lease(&self, now: BootTime, name: &Name, incarnation: Incarnation) -> Option<LeaseExpired> {
        let group = self.groups.get(name)?;
        let member = group.members.get(&incarnation)?;
        let shards = group.held_by(incarnation);
        let positions = self.position_views(group);
        let unacknowledged = positions.filter(|position| shards & (1 << position.shard) != 0);
        Some(LeaseExpired {
            group: name.clone(),
            member: member.label.clone(),
            silent_for: now - (member.lease_until - (LEASE + LEASE_MARGIN)),
            shards,
            takers: Vec::new(),
            unacknowledged: unacknowledged.map(|position| position.lag).sum(),
        })
    }

    /// Reports expired leases, after the shards have been reassigned.
    pub(super) fn report_expired(&mut self, expired: Vec<LeaseExpired>) {
        for mut lease in expired {
            if let Some(group) = self.groups.get(&lease.group) {
                lease.takers = group.takers(lease.shards);
            }
            self.events.push_back(CoordinatorEvent::LeaseExpired(lease));
        }
    }
}

impl Group {
    /// The shards that a member holds, one bit each.
    pub(super) fn held_by(&self, incarnation: Incarnation) -> u64 {
        let held = self.shards.iter().enumerate().filter(|(_, slot)| slot.holder == Some(incarnation));
        held.fold(0, |held, (index, _)| held | 1 << index)
    }

    /// The members that have, or are planned to have, these shards.
    fn takers(&self, shards: u64) -> Vec<Taker> {
        let mut takers = Vec::new();
        for (&incarnation, member) in &self.members {
            let is_taken = |index: &usize| shards & (1 << index) != 0 && self.next_owner(*index) == Some(incarnation);
            let taken = (0..self.shards.len()).filter(is_taken).fold(0, |taken, index| taken | 1 << index);
            if taken != 0 {
                takers.push(Taker { member: member.label.clone(), shards: taken });
            }
        }
        takers
    }
}
