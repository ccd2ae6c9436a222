//! A batch on its way to the destinations.

use std::{
    any::Any,
    fmt::{self, Write},
};

use sekiwake_bus::{AckToken, BootTime, Frame, GroupDelivery, Permission, Stream};
use sekiwake_record::{Batch, Topic};

/// A batch, and the right to send it.
///
/// All destinations share one parcel. The last of them drops it, and with it the acknowledgement
/// token: the group's position moves past the batch.
#[derive(Debug)]
pub struct Parcel<B> {
    /// The records.
    pub batch: Batch<B>,
    origin: Origin,
    numbers: Option<Numbers>,
}

/// Where the records of a batch are numbered.
#[derive(Debug)]
struct Numbers {
    stream: Stream,
    topic: Topic,
    /// The sequence number of the first record.
    first: u64,
}

/// Where a batch comes from, and so what may happen to it.
#[derive(Debug)]
enum Origin {
    /// From a group: only the holder of this acknowledgement token may send it.
    Group(AckToken),
    /// This forwarder made it: templates for a destination that lacks them. No device sent it, and
    /// the group does not know it.
    Synthetic,
    /// Without a group: it needs no permission.
    Alone,
    /// The same, and it waits for its destinations as long as it must.
    Patient { _done: Done },
}

/// Dropped with the batch.
struct Done(#[expect(dead_code, reason = "only its drop matters")] Box<dyn Any + Send + Sync>);

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Done")
    }
}

impl<B> Parcel<B> {
    /// A batch that does not expire in the queues of its destinations. `done` is dropped when each
    /// of them has sent it, or has counted it as dropped.
    pub fn patient(batch: Batch<B>, done: impl Send + Sync + 'static) -> Parcel<B> {
        Parcel { batch, origin: Origin::Patient { _done: Done(Box::new(done)) }, numbers: None }
    }

    /// A batch made by this forwarder.
    pub(crate) fn synthetic(batch: Batch<B>) -> Parcel<B> {
        Parcel { batch, origin: Origin::Synthetic, numbers: None }
    }

    /// Appends the id of the record whose sequence number is this much after the first one's, the
    /// same whenever and wherever the record is received; nothing if the batch is not from the bus.
    pub(crate) fn write_id(&self, offset: u64, out: &mut String) {
        if let Some(Numbers { stream: Stream { name, epoch }, topic, first }) = &self.numbers {
            // Writing to a string never fails.
            let _ = write!(out, "{name}.{epoch:016x}.{topic}.{}", first.wrapping_add(offset));
        }
    }

    /// Whether a group's position waits for it.
    pub(crate) fn has_ack_token(&self) -> bool {
        self.ack_token().is_some()
    }

    /// Whether it may expire while its destination does not take it.
    pub(crate) fn may_expire(&self) -> bool {
        !matches!(self.origin, Origin::Patient { .. })
    }

    fn ack_token(&self) -> Option<&AckToken> {
        match &self.origin {
            Origin::Group(ack_token) => Some(ack_token),
            Origin::Synthetic | Origin::Alone | Origin::Patient { .. } => None,
        }
    }

    /// Whether this forwarder made it.
    pub(crate) fn is_synthetic(&self) -> bool {
        matches!(self.origin, Origin::Synthetic)
    }

    /// Whether it may be sent now. `now` is [`boot_now`](sekiwake_bus::boot_now), read for this
    /// call.
    pub(crate) fn permission(&self, now: BootTime) -> Permission {
        self.ack_token().map_or(Permission::Granted, |ack_token| ack_token.permission(now))
    }

    /// The key of its permission, shared with other parcels; `None` if it needs no permission.
    pub(crate) fn permit_key(&self) -> Option<(usize, u64)> {
        self.ack_token().map(|ack_token| (ack_token.key().0.index(), ack_token.key().1))
    }

    /// Leaves the parcel to the next owner of its shard, which receives it again. `false`: there is
    /// no group, and the caller has to count it as dropped.
    pub(crate) fn leave_to_group(&self) -> bool {
        self.ack_token().map(AckToken::abandon).is_some()
    }
}

impl From<GroupDelivery> for Parcel<Frame> {
    /// A batch that only the holder of its acknowledgement token may send.
    fn from(delivery: GroupDelivery) -> Parcel<Frame> {
        let GroupDelivery { topic, stream, first_sequence, batch, ack_token, .. } = delivery;
        let numbers = Some(Numbers { stream, topic, first: first_sequence });
        Parcel { batch, origin: Origin::Group(ack_token), numbers }
    }
}

impl<B> From<Batch<B>> for Parcel<B> {
    /// A batch without a group: it needs no permission.
    fn from(batch: Batch<B>) -> Parcel<B> {
        Parcel { batch, origin: Origin::Alone, numbers: None }
    }
}
