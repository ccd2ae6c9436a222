//! What every bus does for the services. They know these traits and [`Bus`](crate::Bus) only.
//!
//! A trait object is called once per batch, never per record.

use std::time::Duration;

use sekiwake_deduplicate::StreamProgress;
use sekiwake_group::Stream;
use sekiwake_record::{Kind, Shard};
use sekiwake_runtime::{Stop, Worker};

use crate::{
    BusError, Delivery, Event, GroupDelivery, HandoffEntry, KnownTemplates, MissingRecent, NotPublished, Outcome,
    Outgoing, Registered, RegisteredDestination,
};

/// The thread that publishes a stream, the only one that numbers its records.
///
/// It has the batches from their hand-over on: it decides how many of them make a message, how long
/// they wait for others, and when a message is sent again. It learns by itself, whenever that is,
/// what the bus or the groups have acknowledged.
pub trait Writer: Send {
    /// Publishes until every [`Producer`](crate::Producer) is dropped. Then it publishes what is
    /// waiting, waits within the worker's deadline until everything is acknowledged, and announces
    /// the end of the stream.
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn run(self: Box<Self>, worker: &Worker) -> Result<Outcome, BusError>;
}

/// A thread that answers for a stream while its [`Writer`] runs.
pub trait Responder: Send {
    /// Answers until the writer has ended.
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn run(self: Box<Self>, worker: &Worker) -> Result<(), BusError>;
}

/// State of a shard that its owner leaves for the next owner. Belongs to the thread of a
/// [`GroupSource`].
pub trait HandoffState {
    /// Leaves a hand-off entry for the next owner of the shard. Of two entries
    /// with the same key (1 to 64 bytes) the one with the higher `at_ns` wins; an empty value
    /// deletes the entry. It is sent until it is acknowledged. Returns `false`, counted, if it is
    /// too large (8 KiB), if 16 MiB are pending, or if hand-off is disabled.
    fn put_handoff_entry(&mut self, shard: Shard, key: &[u8], value: &[u8], at_ns: u64) -> bool;

    /// The number of hand-off entries that are not known to be kept yet. A member that
    /// leaves before it is 0 loses them.
    fn pending_handoff(&self) -> usize;

    /// Whether all hand-off entries of a shard have been received and taken since this member owns
    /// it. Stays `false` with a bus that keeps no hand-off state; see
    /// [`HandoffWait`](crate::HandoffWait) for how long to wait.
    fn handoff_complete(&self, shard: Shard) -> bool;

    /// The next hand-off entry of a previous owner. May return an entry again, or one of this
    /// member's own.
    fn take_handoff_entry(&mut self) -> Option<HandoffEntry>;

    /// The next shard whose hand-off entries must all be put again because the bus has
    /// lost them. This member owned the shard then, but may not own it now.
    fn shard_to_present(&mut self) -> Option<Shard>;
}

/// A member of a group: it receives the records of the shards that it owns, from the group's
/// position on, in order. Belongs to one thread.
///
/// A position is known to the bus only: a delivery has an [`AckToken`](crate::AckToken), and the
/// bus moves the position when it is dropped. Records that cannot be delivered are counted, exactly
/// and by reason.
pub trait GroupSource: HandoffState + Send {
    /// The next batch to act on, or `None` if there is none within `timeout`. To be called
    /// continuously, even with nothing to act on, because it renews the lease.
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn receive(&mut self, timeout: Duration) -> Result<Option<GroupDelivery>, BusError>;

    /// The next batch to act on, or `None` if none has been received yet. Messages that are not for
    /// the caller do not keep it here: from time to time it returns `None` although there are more.
    /// To be followed by [`GroupSource::receive`] then, which renews the lease.
    ///
    /// # Errors
    /// As [`GroupSource::receive`].
    fn try_receive(&mut self) -> Result<Option<GroupDelivery>, BusError>;

    /// Whether batches that it has delivered are not acknowledged yet.
    fn has_outstanding(&self) -> bool;

    /// Renews the lease and processes acknowledgements for at most `timeout`, without receiving
    /// data: for a caller that cannot take more.
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn poll_control(&mut self, timeout: Duration) -> Result<(), BusError>;

    /// Sets whether the caller cannot take more for the moment, so that the member requests no
    /// repairs, and does not take records that wait for the caller for lost.
    fn set_is_full(&mut self, is_full: bool);

    /// Replaces the destinations that captures must not capture.
    fn set_destinations(&mut self, destinations: Vec<RegisteredDestination>);

    /// Sets the hash of the destinations as they are configured. Members of one group with
    /// different hashes are reported; 0, the default, is not compared.
    fn set_destinations_digest(&mut self, digest: u64);

    /// Whether the newest destinations may be sent to: every publisher has stopped capturing them,
    /// or has had enough time to.
    fn may_use_destinations(&self) -> bool;

    /// Whether everything known to be published has been delivered and acknowledged.
    fn is_caught_up(&self) -> bool;

    /// Whether everything known to be published on its shards has been delivered. Not all of it
    /// need be acknowledged.
    fn has_received_all(&self) -> bool;

    /// Whether this member owns all shards of the group.
    fn owns_all(&self) -> bool;

    /// Whether this member owns any shard of the group, or is releasing it.
    fn owns_any(&self) -> bool;

    /// Begins to release all shards. They are released while [`GroupSource::receive`] or
    /// [`GroupSource::poll_control`] is called; what fails is tried again.
    fn leave(&mut self);

    /// What a publisher has announced and the caller has received, since the last call; `None`
    /// while a batch that was received before is not taken. For members that deduplicate.
    fn next_progress(&mut self) -> Option<StreamProgress> {
        None
    }

    /// Whether all of these records are delivered to this member, or were handled by others, as far
    /// as is known. For members that deduplicate.
    fn is_covered(&self, _stream: &Stream, _shard: Shard, _from: u64, _to: u64) -> bool {
        true
    }

    /// Whether all shards have been released.
    fn has_left(&self) -> bool;

    /// Whether the member has a lease.
    fn has_lease(&self) -> bool;

    /// Whether the shards that are not released yet may be released if the member tries on. A
    /// member that leaves ends when they cannot.
    fn can_release(&self) -> bool;
}

/// Records for a reader that is in no group. Belongs to one thread.
pub trait Source: Send {
    /// The next batch, or `None` if none is received within `timeout`. What cannot be read is
    /// counted and skipped; records that are lost are counted.
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn receive(&mut self, timeout: Duration) -> Result<Option<Delivery>, BusError>;

    /// What is missing of the recent records that were asked for, found since the last call.
    fn next_missing(&mut self) -> Option<MissingRecent>;

    /// Whether all recent records that were asked for have been delivered, or are known to be
    /// missing.
    fn is_live(&self) -> bool {
        true
    }

    /// The capture time of the oldest recent records that are wanted, nanoseconds since 1970.
    /// Retransmitted batches may contain older ones. 0 if none were asked for.
    fn since_ns(&self) -> u64;
}

/// Events and status. Belongs to one thread.
pub trait EventSource: Send {
    /// The next event, or `None` if none is received within `timeout`. Malformed events are counted
    /// and skipped.
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn receive(&mut self, timeout: Duration) -> Result<Option<Event>, BusError>;

    /// Whether a connection was established when events were last received.
    fn is_connected(&self) -> bool;

    /// Begins or ends the subscription, which there is at first. While it has ended, events may be
    /// received or not.
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn set_subscribed(&mut self, _is_subscribed: bool) -> Result<(), BusError> {
        Ok(())
    }

    /// From now on a stop may end the wait of [`EventSource::receive`].
    fn end_waits_at(&mut self, _stop: Stop) {}
}

/// Publishes events. Belongs to one thread.
pub trait EventSink: Send {
    /// Publishes an event, a JSON object, and returns whether the bus accepted it. Does not block.
    /// An event that is not an object or too large, that has no subscriber, or for which there is
    /// no room, is dropped and counted.
    fn publish(&mut self, json: &[u8]) -> bool;

    /// To be called regularly, even with nothing to publish, so that the sink knows whether there
    /// is a subscriber. Most calls do nothing, so it may be called once per batch.
    fn poll(&mut self);
}

/// Requests of a client that is in no group. Belongs to one thread.
pub trait Requests: Send {
    /// Requests the templates of a kind, and waits for the answers: 4 s for the first, 30 s in all.
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn templates(&mut self, kind: Kind, is_stopped: &dyn Fn() -> bool) -> Result<KnownTemplates, BusError>;
}

/// Has captures leave destinations alone, from a client that is in no group. Belongs to one thread.
///
/// The registration lasts while [`Registrar::keep`] runs. When the client is dropped or dies,
/// captures leave the destinations alone for some seconds more.
pub trait Registrar: Send {
    /// Registers the destinations, and waits until every live capture has acknowledged them: 4 s
    /// for the first answer, 10 s in all.
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn register(&mut self, is_stopped: &dyn Fn() -> bool) -> Result<Registered, BusError>;

    /// Keeps the registration until `is_stopped`, and then ends it. `on_change` is told when
    /// captures may publish what is sent to the destinations (`false`), because the bus was
    /// unavailable for 3 s, and when they leave it alone again (`true`).
    ///
    /// # Errors
    /// The bus can no longer be used.
    fn keep(self: Box<Self>, is_stopped: &dyn Fn() -> bool, on_change: &mut dyn FnMut(bool)) -> Result<(), BusError>;
}

/// Delivers messages to one subject of NATS servers, whichever bus is used. Belongs to one thread.
pub trait SubjectPublisher: Send {
    /// Publishes the messages without an outcome, and waits for their outcomes. Messages of one
    /// lane are stored in order, however often this is called, if one per lane is on its way.
    ///
    /// # Errors
    /// Some have no outcome: they may be stored or not. Published again with the same id, a stream
    /// stores them once within its duplicate window.
    fn publish(&mut self, messages: &mut [Outgoing], within: Duration) -> Result<(), NotPublished>;

    /// Keeps the connection. To be called at least once per second between messages.
    fn tend(&mut self);
}
