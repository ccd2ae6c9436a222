//! The destinations that a member sends to, and whether publishers know them.

use super::Member;
use crate::{
    BootTime, REGISTER_WITHIN,
    wire::{self, Destination, Grant, Register},
};

/// The newest registration of a member.
#[derive(Debug, Default)]
pub(super) struct Registration {
    destinations: Vec<Destination>,
    /// Counts registrations; 0 before the first.
    number: u64,
    /// The newest that the coordinator knows.
    known: u64,
    /// The newest that all publishers have acknowledged.
    acknowledged: u64,
    /// When the destinations may be used without an acknowledgement.
    deadline: BootTime,
}

impl Registration {
    /// Another coordinator, which will report by itself what publishers have acknowledged.
    pub(super) fn on_new_coordinator(&mut self) {
        self.acknowledged = 0;
    }

    pub(super) fn on_grant(&mut self, grant: &Grant) {
        // This may also decrease: a coordinator that has forgotten the member has forgotten its
        // destinations too.
        self.known = grant.known_registration;
        self.acknowledged = self.acknowledged.max(grant.registration.min(self.number));
    }
}

impl<B> Member<B> {
    /// Replaces the destinations that publishers have to know.
    pub fn set_destinations(&mut self, now: BootTime, mut destinations: Vec<Destination>) {
        destinations.truncate(wire::MAX_DESTINATIONS);
        self.registration.number += 1;
        self.registration.destinations = destinations;
        self.registration.deadline = now + REGISTER_WITHIN;
        self.renewals.schedule_soon(now);
    }

    /// Whether the newest destinations may be sent to: every publisher knows them, or has had the
    /// time to.
    pub fn may_use_destinations(&self, now: BootTime) -> bool {
        self.registration.acknowledged == self.registration.number || now >= self.registration.deadline
    }

    /// Sends the registration, unless the coordinator knows it.
    pub(super) fn register(&mut self) {
        if self.registration.known < self.registration.number {
            self.send(Register {
                group: self.settings.group.clone(),
                incarnation: self.incarnation,
                registration: self.registration.number,
                destinations: self.registration.destinations.clone(),
            });
        }
    }
}
