//! The capture threads' end of a publisher.

use std::{io, sync::Arc};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use sekiwake_record::{Outbound, Topic};

use super::rejections::{Handover, Rejections};
use crate::{bell::Bell, metrics::PerKind};

/// Hand-overs from capture threads that may wait for the writer. Each has the batches of one tick,
/// or of one ring block: 256 KiB.
pub(crate) const HANDOVERS: usize = 256;
/// The same from a file reader, which can wait: each is some thousand packets.
const FILE_HANDOVERS: usize = 4;

/// What a producer does when the publisher cannot take more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overflow {
    /// Drop and count, because live capture cannot block.
    Drop,
    /// Wait, as the reader of a file can.
    Wait,
}

/// Gives batches, which have no sequence numbers yet, to the writer.
#[derive(Clone)]
pub struct Producer {
    handovers: Sender<Handover>,
    buffers: Receiver<Vec<u8>>,
    overflow: Overflow,
    rejections: Arc<Rejections>,
    /// Dropped after `handovers`, so that the writer sees that there are no producers left.
    bell: RingAtEnd,
}

/// Wakes the writer when it is dropped.
#[derive(Clone)]
struct RingAtEnd(Arc<Bell>);

impl Drop for RingAtEnd {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// The writer's end.
pub(crate) struct Intake {
    pub(crate) handovers: Receiver<Handover>,
    pub(crate) rejections: Arc<Rejections>,
    buffers: Sender<Vec<u8>>,
    /// Rung after each hand-over.
    pub(crate) bell: Arc<Bell>,
}

impl Producer {
    /// A producer, and the writer's end of it. `bus_full` counts the records that are dropped.
    ///
    /// # Errors
    /// No descriptor is left.
    pub(crate) fn new(overflow: Overflow, bus_full: PerKind) -> io::Result<(Producer, Intake)> {
        let rejections = Arc::new(Rejections::new(bus_full));
        let capacity = if overflow == Overflow::Wait { FILE_HANDOVERS } else { HANDOVERS };
        let (handovers_in, handovers) = bounded(capacity);
        let (buffers, buffers_out) = bounded(Topic::COUNT);
        let bell = Arc::new(Bell::new()?);
        let intake = Intake { handovers, rejections: Arc::clone(&rejections), buffers, bell: Arc::clone(&bell) };
        let producer =
            Producer { handovers: handovers_in, buffers: buffers_out, overflow, rejections, bell: RingAtEnd(bell) };
        Ok((producer, intake))
    }

    /// Gives batches to the writer. If it cannot keep up, they are dropped and counted, or this
    /// waits, depending on [`Overflow`]; once it has ended they are dropped and counted in any
    /// case. Returns the number of dropped records.
    pub fn offer(&self, batches: Vec<Outbound>) -> u64 {
        if batches.is_empty() {
            return 0;
        }
        let handover = Handover::new(batches, &self.rejections);
        let rejected = match self.overflow {
            Overflow::Wait => self.handovers.send(handover).err().map(|rejected| rejected.0),
            Overflow::Drop => match self.handovers.try_send(handover) {
                Ok(()) => None,
                Err(TrySendError::Full(handover) | TrySendError::Disconnected(handover)) => Some(handover),
            },
        };
        self.bell.0.ring();
        rejected.map_or(0, |handover| handover.records())
    }

    /// A used buffer for another batch.
    pub fn recycled(&self) -> Option<Vec<u8>> {
        self.buffers.try_recv().ok()
    }
}

impl Intake {
    /// Returns a buffer to the producers.
    pub(crate) fn recycle(&self, buffer: Vec<u8>) {
        // If the channel is full, there are enough buffers.
        drop(self.buffers.try_send(buffer));
    }

    /// Ends the intake: batches handed over from here on are rejected and counted. The channel
    /// itself would drop them only with the last producer.
    pub(crate) fn close(&mut self) {
        self.handovers.try_iter().take(2 * HANDOVERS).for_each(drop);
        self.handovers = crossbeam_channel::never();
    }
}
