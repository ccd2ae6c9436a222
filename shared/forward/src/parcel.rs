//! A batch on its way to the destinations.

use sekiwake_bus::{AckToken, BootTime, Permission};
use sekiwake_record::Batch;

/// A batch, and the right to send it.
///
/// All destinations share one parcel. The last of them drops it, and with it the acknowledgement
/// token: the group's position moves past the batch.
#[derive(Debug)]
pub struct Parcel<B> {
    /// The records.
    pub batch: Batch<B>,
    ack_token: Option<AckToken>,
    /// Whether this forwarder made it: templates for a destination that lacks them. No device sent
    /// it, and the group does not know it.
    is_synthetic: bool,
}

impl<B> Parcel<B> {
    /// A batch that only the holder of this acknowledgement token may send.
    pub fn new(batch: Batch<B>, ack_token: AckToken) -> Parcel<B> {
        Parcel { batch, ack_token: Some(ack_token), is_synthetic: false }
    }

    /// A batch made by this forwarder.
    pub(crate) fn synthetic(batch: Batch<B>) -> Parcel<B> {
        Parcel { batch, ack_token: None, is_synthetic: true }
    }

    /// Whether a group's position waits for it.
    pub(crate) fn has_ack_token(&self) -> bool {
        self.ack_token.is_some()
    }

    /// Whether this forwarder made it.
    pub(crate) fn is_synthetic(&self) -> bool {
        self.is_synthetic
    }

    /// Whether it may be sent now. `now` is [`boot_now`](sekiwake_bus::boot_now), read for this
    /// call.
    pub(crate) fn permission(&self, now: BootTime) -> Permission {
        self.ack_token.as_ref().map_or(Permission::Granted, |ack_token| ack_token.permission(now))
    }

    /// The key of its permission, shared with other parcels; `None` if it needs no permission.
    pub(crate) fn permit_key(&self) -> Option<(usize, u64)> {
        self.ack_token.as_ref().map(|ack_token| (ack_token.key().0.index(), ack_token.key().1))
    }

    /// Leaves the parcel to the next owner of its shard, which receives it again. `false`: there is
    /// no group, and the caller has to count it as dropped.
    pub(crate) fn leave_to_group(&self) -> bool {
        self.ack_token.as_ref().map(AckToken::abandon).is_some()
    }
}

impl<B> From<Batch<B>> for Parcel<B> {
    /// A batch without a group: it needs no permission.
    fn from(batch: Batch<B>) -> Parcel<B> {
        Parcel { batch, ack_token: None, is_synthetic: false }
    }
}
