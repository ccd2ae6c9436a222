//! A batch on its way to the destinations.

use sekiwake_bus::{Permission, Ticket};
use sekiwake_record::Batch;

/// A batch, and the right to send it.
///
/// All destinations share one parcel. When the last of them is done with it, it is dropped, and with it the ticket: the group's
/// position moves past the batch.
#[derive(Debug)]
pub struct Parcel<B> {
    /// The records.
    pub batch: Batch<B>,
    ticket: Option<Ticket>,
    /// Whether this forwarder made it: templates for a destination that has not had them. No device sent it, and no group misses it.
    is_own: bool,
}

impl<B> Parcel<B> {
    /// A batch that only the holder of this ticket may send.
    pub fn new(batch: Batch<B>, ticket: Ticket) -> Parcel<B> {
        Parcel { batch, ticket: Some(ticket), is_own: false }
    }

    /// A batch that this forwarder made itself.
    pub(crate) fn own(batch: Batch<B>) -> Parcel<B> {
        Parcel { batch, ticket: None, is_own: true }
    }

    /// Whether a group's position waits for it.
    pub(crate) fn has_ticket(&self) -> bool {
        self.ticket.is_some()
    }

    /// Whether this forwarder made it itself.
    pub(crate) fn is_own(&self) -> bool {
        self.is_own
    }

    /// Whether it may be sent now, by [`boot_now`](sekiwake_bus::boot_now) read for this question.
    pub(crate) fn permission(&self, now: u64) -> Permission {
        self.ticket.as_ref().map_or(Permission::Granted, |ticket| ticket.permission(now))
    }

    /// What parcels of one permission have in common; `None` for those that nobody has to permit.
    pub(crate) fn permit_key(&self) -> Option<(usize, u64)> {
        self.ticket.as_ref().map(|ticket| (ticket.key().0.index(), ticket.key().1))
    }

    /// Leaves the parcel to the group's next owner of its shard, who will be given it again. `false`: there is no group, and
    /// whoever gives up on it has to count it.
    pub(crate) fn leave_to_group(&self) -> bool {
        self.ticket.as_ref().map(Ticket::abandon).is_some()
    }
}

impl<B> From<Batch<B>> for Parcel<B> {
    /// A batch that nobody else sends.
    fn from(batch: Batch<B>) -> Parcel<B> {
        Parcel { batch, ticket: None, is_own: false }
    }
}
