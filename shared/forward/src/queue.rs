//! The queue of one destination: batches, bounded by their number and by the memory they hold. It never makes its giver wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use prometheus::IntGauge;

use sekiwake_record::{Batch, BatchBuilder, Header, Record};

use crate::{Parcel, selection::Selection};

/// How long a record may wait in memory for a destination.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(2);

/// The most memory that the batches waiting for one destination may hold: one second of 200,000 datagrams of 200 bytes, two of
/// syslog at 100,000. A stall that lasts longer than a fraction of [`MAX_AGE`] loses data in any case.
const MAX_BYTES: i64 = 64 * 1024 * 1024;

/// The most batches that may wait for one destination: [`MAX_AGE`] of small batches, one for each of 64 topics every 2 ms.
const MAX_BATCHES: usize = 64_000;

/// What a record costs beside its bytes in the body: the entry that the decoder makes of it.
const BYTES_PER_RECORD: usize = 96;

/// A batch that waits, or that is being sent.
#[derive(Debug)]
pub(crate) struct Queued<B> {
    pub(crate) parcel: Arc<Parcel<B>>,
    /// Which of its records are for this destination.
    selection: Selection,
    pub(crate) since: Instant,
    bytes: i64,
}

impl<B> Drop for Queued<B> {
    fn drop(&mut self) {
        // A thread that panics has sent nothing of it, whatever other destinations have done.
        if std::thread::panicking() {
            self.parcel.leave_to_group();
        }
    }
}

impl<B> Queued<B> {
    /// How many records it holds for this destination.
    pub(crate) fn len(&self) -> usize {
        self.selection.count(self.parcel.batch.len())
    }

    /// How many of them came from devices: all, or none, when it is templates of our own.
    pub(crate) fn records(&self) -> usize {
        if self.parcel.is_own() { 0 } else { self.len() }
    }

    /// Whether it has waited too long for its destination. Time before `resumed_at`, when nothing could be sent for reasons of our
    /// own, does not count.
    pub(crate) fn is_expired(&self, now: Instant, resumed_at: Option<Instant>) -> bool {
        resumed_at.map_or(self.since, |at| at.max(self.since)) + MAX_AGE <= now
    }
}

impl<B: AsRef<[u8]>> Queued<B> {
    /// The records for this destination, in the order in which they were captured.
    pub(crate) fn selected(&self) -> impl Iterator<Item = Record<'_>> {
        let records = self.parcel.batch.records().enumerate();
        records.filter(|(index, _)| self.selection.contains(*index)).map(|(_, record)| record)
    }
}

impl<B: AsRef<[u8]> + From<Vec<u8>>> Queued<B> {
    /// Goes on with a copy of its records, so that the group's position no longer waits for this destination. It counts into the queue
    /// as before.
    pub(crate) fn detach(&mut self) {
        if !self.parcel.has_ticket() {
            return;
        }
        let mut builder = BatchBuilder::new(Vec::new());
        self.selected().for_each(|record| builder.push(&record));
        let Some(closed) = builder.close() else { return };
        let header = Header {
            stream_name: "detached",
            stream_epoch: 0,
            first_sequence: 0,
            count: closed.count,
            first_captured_at_ns: closed.first_captured_at_ns,
            last_captured_at_ns: closed.last_captured_at_ns,
        };
        // It is what the builder has just written.
        let Ok(batch) = Batch::decode(&header, B::from(closed.body)) else { return };
        self.parcel = Arc::new(batch.into());
        self.selection = Selection::All;
    }
}

/// The giver's end. There is one.
pub(crate) struct Intake<B> {
    sender: Sender<Queued<B>>,
    records: IntGauge,
    bytes: IntGauge,
    held: Arc<AtomicI64>,
    max_bytes: i64,
}

/// The worker's end.
pub(crate) struct Outlet<B> {
    receiver: Receiver<Queued<B>>,
    records: IntGauge,
    bytes: IntGauge,
    /// What this queue holds; the gauges may be shared with one that it replaces.
    held: Arc<AtomicI64>,
}

/// What [`Outlet::wait`] found.
pub(crate) enum Waited<B> {
    Batch(Queued<B>),
    Nothing,
    /// The giver is gone and everything is taken.
    Closed,
}

/// A queue whose gauges hold what was given and not yet released.
pub(crate) fn queue<B>(records: IntGauge, bytes: IntGauge) -> (Intake<B>, Outlet<B>) {
    queue_of(records, bytes, MAX_BATCHES, MAX_BYTES)
}

fn queue_of<B>(records: IntGauge, bytes: IntGauge, max_batches: usize, max_bytes: i64) -> (Intake<B>, Outlet<B>) {
    let (sender, receiver) = bounded(max_batches);
    let held = Arc::<AtomicI64>::default();
    let intake = Intake { sender, records: records.clone(), bytes: bytes.clone(), held: held.clone(), max_bytes };
    (intake, Outlet { receiver, records, bytes, held })
}

impl<B: AsRef<[u8]>> Intake<B> {
    /// Whether so much waits that whoever can should hold back: far below what there is room for.
    pub(crate) fn is_behind(&self) -> bool {
        self.held.load(Relaxed) >= MAX_BYTES / 4 || self.sender.len() >= MAX_BATCHES / 4
    }

    /// Gives the selected records of a batch. `false`: there is no room for them.
    #[must_use]
    pub(crate) fn offer(&self, parcel: &Arc<Parcel<B>>, selection: Selection, now: Instant) -> bool {
        let batch = &parcel.batch;
        let bytes = (batch.body_len() + batch.len() * BYTES_PER_RECORD) as i64;
        let held = self.held.load(Relaxed);
        // An empty queue takes any batch. Only this thread adds, so what is held can only shrink between the two lines.
        if held > 0 && held + bytes > self.max_bytes {
            return false;
        }
        let queued = Queued { parcel: Arc::clone(parcel), selection, since: now, bytes };
        let records = queued.records() as i64;
        self.held.fetch_add(bytes, Relaxed);
        self.bytes.add(bytes);
        self.records.add(records);
        match self.sender.try_send(queued) {
            Ok(()) => true,
            Err(refused) => {
                if let TrySendError::Disconnected(queued) = refused {
                    // The worker has died: the process ends, and has not sent this.
                    queued.parcel.leave_to_group();
                }
                self.held.fetch_sub(bytes, Relaxed);
                self.bytes.sub(bytes);
                self.records.sub(records);
                false
            }
        }
    }
}

impl<B: AsRef<[u8]>> Outlet<B> {
    /// The next batch, waiting for it.
    pub(crate) fn wait(&self, timeout: Duration) -> Waited<B> {
        match self.receiver.recv_timeout(timeout) {
            Ok(queued) => Waited::Batch(queued),
            Err(RecvTimeoutError::Timeout) => Waited::Nothing,
            Err(RecvTimeoutError::Disconnected) => Waited::Closed,
        }
    }

    /// The next batch, if there is one.
    pub(crate) fn take(&self) -> Option<Queued<B>> {
        self.receiver.try_recv().ok()
    }

    /// The memory that is held, what was taken and not released included.
    pub(crate) fn held_bytes(&self) -> i64 {
        self.held.load(Relaxed)
    }

    /// A batch that was taken is done with: sent or counted as dropped.
    pub(crate) fn release(&self, queued: &Queued<B>) {
        self.held.fetch_sub(queued.bytes, Relaxed);
        self.bytes.sub(queued.bytes);
        self.records.sub(queued.records() as i64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::batch;

    fn gauges() -> (IntGauge, IntGauge) {
        (IntGauge::new("records", "records").unwrap(), IntGauge::new("bytes", "bytes").unwrap())
    }

    #[test]
    fn a_full_queue_refuses_the_newest_and_its_gauges_stay_right() {
        let (records, bytes) = gauges();
        let (intake, outlet) = queue_of(records.clone(), bytes.clone(), 2, MAX_BYTES);
        let (three, now) = (batch(&[b"a", b"b", b"c"]), Instant::now());
        assert!(intake.offer(&three, Selection::All, now));
        assert!(intake.offer(&three, Selection::All, now));
        assert!(!intake.offer(&three, Selection::All, now), "two batches are all it takes");
        assert_eq!(records.get(), 6);
        let taken = outlet.take().unwrap();
        assert_eq!(records.get(), 6, "what is being sent still counts");
        outlet.release(&taken);
        assert_eq!(records.get(), 3);
        outlet.release(&outlet.take().unwrap());
        assert_eq!((records.get(), bytes.get()), (0, 0));
    }

    #[test]
    fn bytes_bound_it_but_one_batch_always_fits() {
        let (records, bytes) = gauges();
        let (intake, _outlet) = queue_of(records.clone(), bytes, 10, 1000);
        let large = batch(&[&[0; 5000]]);
        assert!(intake.offer(&large, Selection::All, Instant::now()));
        assert!(!intake.offer(&batch(&[b"small"]), Selection::All, Instant::now()));
        assert_eq!(records.get(), 1);
    }

    #[test]
    fn a_batch_expires_after_two_seconds() {
        let (records, bytes) = gauges();
        let (intake, outlet) = queue(records, bytes);
        let now = Instant::now();
        assert!(intake.offer(&batch(&[b"a"]), Selection::All, now));
        let queued = outlet.take().unwrap();
        assert!(!queued.is_expired(now + MAX_AGE - Duration::from_millis(1), None));
        assert!(queued.is_expired(now + MAX_AGE, None));
        let resumed_at = Some(now + MAX_AGE);
        assert!(!queued.is_expired(now + MAX_AGE, resumed_at), "it could not be sent until now");
        assert!(queued.is_expired(now + 2 * MAX_AGE, resumed_at));
    }
}
