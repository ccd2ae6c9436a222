//! The queue of one endpoint: batches, bounded by their number and their memory. The sending side
//! never waits.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{
            AtomicI64,
            Ordering::{Acquire, Relaxed, Release, SeqCst},
            fence,
        },
    },
    thread::{self, Thread},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded, select};
use prometheus::IntGauge;

use sekiwake_record::{BatchBuilder, Record};
use sekiwake_runtime::StopClock;

use crate::{
    Parcel,
    routing::selection::{RecordSet, Selection},
    udp::flush::Unsent,
};

/// How long a record may wait in memory.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(2);

/// Maximum memory of the batches in one queue: one second of 200,000 datagrams of 200 bytes, two
/// of syslog at 100,000. A stall much longer than that exceeds [`MAX_AGE`] in any case.
const MAX_BYTES: i64 = 64 * 1024 * 1024;

/// Maximum number of batches in one queue: [`MAX_AGE`] of small batches, one per topic of 64 every
/// 2 ms.
pub(crate) const MAX_BATCHES: usize = 64_000;

/// The longest wait for an acknowledgement, even of a peer that reads a little now and then. Beyond
/// that the group's position does not wait for this endpoint.
pub(crate) const MAX_UNACKNOWLEDGED_TIME: Duration = Duration::from_secs(10);

/// A queued batch, or one that is being sent.
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
        // A panicking thread acknowledges nothing, even if other destinations have sent the batch.
        if thread::panicking() {
            self.parcel.leave_to_group();
        }
    }
}

impl<B> Queued<B> {
    /// How many of its records are for this destination.
    pub(crate) fn len(&self) -> usize {
        self.selection.count(self.parcel.batch.len())
    }

    /// How many of them came from devices: all of them, or 0 for synthetic templates.
    pub(crate) fn records(&self) -> usize {
        if self.parcel.is_synthetic() { 0 } else { self.len() }
    }

    /// Whether it has waited too long for its destination, without the time that the clock
    /// excludes.
    pub(crate) fn is_expired(&self, now: Instant, clock: &StopClock) -> bool {
        self.parcel.may_expire() && clock.waiting_since(self.since) + MAX_AGE <= now
    }
}

impl<B> Queued<B> {
    /// Keeps only the records at these positions, in order, among those for this destination.
    fn keep(&mut self, positions: &[usize]) {
        let len = self.parcel.batch.len();
        let mut kept = RecordSet::empty(len);
        let selected = (0..len).filter(|&index| self.selection.contains(index)).enumerate();
        let wanted = selected.filter(|(position, _)| positions.binary_search(position).is_ok());
        wanted.for_each(|(_, index)| kept.add(index));
        self.selection = Selection::Some(kept);
    }
}

impl<B: AsRef<[u8]>> Queued<B> {
    /// The records for this destination, in the order in which they were captured.
    pub(crate) fn selected(&self) -> impl Iterator<Item = Record<'_>> {
        self.indexed().map(|(_, record)| record)
    }

    /// The same, each with the distance of its sequence number from that of the batch's first
    /// record.
    pub(crate) fn selected_with_offsets(&self) -> impl Iterator<Item = (u64, Record<'_>)> {
        self.indexed().map(|(index, record)| (self.parcel.batch.offset(index), record))
    }

    fn indexed(&self) -> impl Iterator<Item = (usize, Record<'_>)> {
        let records = self.parcel.batch.records().enumerate();
        records.filter(|(index, _)| self.selection.contains(*index))
    }
}

impl<B: AsRef<[u8]> + From<Vec<u8>>> Queued<B> {
    /// Replaces the parcel by a copy of its records, so that the group's position no longer waits
    /// for this destination. It counts towards the queue as before.
    pub(crate) fn detach(&mut self) {
        if !self.parcel.has_ack_token() {
            return;
        }
        let mut builder = BatchBuilder::new(Vec::new());
        self.selected().for_each(|record| builder.push(&record));
        let Some(batch) = builder.into_batch::<B>() else { return };
        self.parcel = Arc::new(batch.into());
        self.selection = Selection::All;
    }
}

/// The sending side. There is one.
pub(crate) struct Intake<B> {
    sender: Sender<Queued<B>>,
    records: IntGauge,
    bytes: IntGauge,
    used: Arc<AtomicI64>,
    max_bytes: i64,
    max_batches: usize,
    /// Offered since the last flush, and in the gauges already.
    pending: Vec<Queued<B>>,
    pending_bytes: i64,
    /// Dropped after `sender`, so that the worker sees that the queue is closed.
    sleeper: WakeAtEnd,
}

/// The thread that sleeps in [`Outlet::wait`]. The channel's own wait yields several times before
/// it sleeps, which is most of what a quiet endpoint costs.
#[derive(Clone, Default)]
struct Sleeper(Arc<OnceLock<Thread>>);

/// Wakes the worker when it is dropped.
struct WakeAtEnd(Sleeper);

impl Sleeper {
    /// The thread looks at the channel after this call and before it sleeps.
    fn register(&self) {
        self.0.get_or_init(thread::current);
        fence(SeqCst);
    }

    /// To be called after a change of the channel.
    fn wake(&self) {
        // With the fence in `register`, either the thread sees the change or this sees the thread.
        fence(SeqCst);
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

impl Drop for WakeAtEnd {
    fn drop(&mut self) {
        self.0.wake();
    }
}

/// The worker's side.
pub(crate) struct Outlet<B> {
    receiver: Receiver<Queued<B>>,
    records: IntGauge,
    bytes: IntGauge,
    /// Bytes in this queue. The gauges may be shared with a queue that it replaces.
    used: Arc<AtomicI64>,
    sleeper: Sleeper,
}

/// The result of [`Outlet::wait`].
pub(crate) enum Waited<B> {
    Batch(Queued<B>),
    Nothing,
    /// The sending side is dropped and the queue is empty.
    Closed,
}

/// The result of [`Outlet::wait_or`].
pub(crate) enum WaitedFor<B, T> {
    Queue(Waited<B>),
    /// `None`: the other channel is closed.
    Other(Option<T>),
}

/// A queue whose gauges count batches that are offered and not yet released.
pub(crate) fn queue<B>(records: IntGauge, bytes: IntGauge) -> (Intake<B>, Outlet<B>) {
    queue_of(records, bytes, MAX_BATCHES, MAX_BYTES)
}

fn queue_of<B>(records: IntGauge, bytes: IntGauge, max_batches: usize, max_bytes: i64) -> (Intake<B>, Outlet<B>) {
    let (sender, receiver) = bounded(max_batches);
    let used = Arc::<AtomicI64>::default();
    let sleeper = Sleeper::default();
    let intake = Intake {
        sender,
        records: records.clone(),
        bytes: bytes.clone(),
        used: used.clone(),
        max_bytes,
        max_batches,
        pending: Vec::new(),
        pending_bytes: 0,
        sleeper: WakeAtEnd(sleeper.clone()),
    };
    (intake, Outlet { receiver, records, bytes, used, sleeper })
}

impl<B: AsRef<[u8]>> Intake<B> {
    /// Whether the queue is filling up, far below its bound, so that input should wait.
    pub(crate) fn is_behind(&self) -> bool {
        self.used.load(Relaxed) >= MAX_BYTES / 4 || self.sender.len() + self.pending.len() >= MAX_BATCHES / 4
    }

    /// Adds the selected records of a batch, which wait for [`Intake::flush`]. `false`: the queue
    /// is full.
    #[must_use]
    pub(crate) fn offer(&mut self, parcel: &Arc<Parcel<B>>, selection: Selection, now: Instant) -> bool {
        let batch = &parcel.batch;
        let bytes = batch.memory_bytes() as i64;
        let used = self.used.load(Relaxed);
        // An empty queue takes a batch of any size. Only this thread adds, so the value can only
        // have shrunk when it is used.
        if used > 0 && used + bytes > self.max_bytes || self.sender.len() + self.pending.len() >= self.max_batches {
            return false;
        }
        let queued = Queued { parcel: Arc::clone(parcel), selection, since: now, bytes };
        let records = queued.records() as i64;
        self.used.fetch_add(bytes, Relaxed);
        self.bytes.add(bytes);
        self.records.add(records);
        self.pending_bytes += bytes;
        self.pending.push(queued);
        true
    }
}

impl<B> Intake<B> {
    /// The batches offered since the last flush, if the worker has nothing to send: then they may
    /// be sent in this thread.
    pub(crate) fn pending_alone(&self) -> Option<&[Queued<B>]> {
        // Acquired, so that everything the worker has sent was sent before.
        let is_alone = !self.pending.is_empty() && self.used.load(Acquire) == self.pending_bytes;
        is_alone.then_some(&self.pending)
    }

    /// Removes the pending batches, which have been sent, except for what is `unsent`.
    pub(crate) fn sent(&mut self, unsent: &[Unsent]) {
        for (index, mut queued) in std::mem::take(&mut self.pending).into_iter().enumerate() {
            let mut positions: Vec<usize> =
                unsent.iter().filter(|left| left.batch == index).map(|left| left.position).collect();
            positions.sort_unstable();
            let records = queued.records();
            if positions.is_empty() {
                self.pending_bytes -= queued.bytes;
                self.remove(&queued);
            } else {
                queued.keep(&positions);
                self.records.sub((records - queued.records()) as i64);
                self.pending.push(queued);
            }
        }
    }

    /// Passes the pending batches to the worker. Gives the number of records that it cannot take,
    /// because it has died.
    pub(crate) fn flush(&mut self) -> usize {
        self.pending_bytes = 0;
        let mut rejected = 0;
        let has_pending = !self.pending.is_empty();
        for queued in std::mem::take(&mut self.pending) {
            // There is room: `offer` has checked that, and only the worker changes the channel.
            if let Err(error) = self.sender.try_send(queued) {
                let queued = error.into_inner();
                // The process ends without having sent this.
                queued.parcel.leave_to_group();
                rejected += queued.records();
                self.remove(&queued);
            }
        }
        if has_pending {
            self.sleeper.0.wake();
        }
        rejected
    }

    fn remove(&self, queued: &Queued<B>) {
        self.used.fetch_sub(queued.bytes, Relaxed);
        self.bytes.sub(queued.bytes);
        self.records.sub(queued.records() as i64);
    }
}

impl<B> Drop for Intake<B> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl<B: AsRef<[u8]>> Outlet<B> {
    /// Waits for the next batch. Only one thread may.
    pub(crate) fn wait(&self, timeout: Duration) -> Waited<B> {
        let mut until = None;
        loop {
            match self.receiver.try_recv() {
                Ok(queued) => return Waited::Batch(queued),
                Err(TryRecvError::Disconnected) => return Waited::Closed,
                Err(TryRecvError::Empty) => {}
            }
            let now = Instant::now();
            let Some(until) = until else {
                self.sleeper.register();
                until = Some(now + timeout);
                continue;
            };
            if now >= until {
                return Waited::Nothing;
            }
            thread::park_timeout(until - now);
        }
    }

    /// Waits for the next batch, or for something from another channel.
    pub(crate) fn wait_or<T>(&self, other: &Receiver<T>, timeout: Duration) -> WaitedFor<B, T> {
        select! {
            recv(other) -> received => WaitedFor::Other(received.ok()),
            recv(self.receiver) -> received => WaitedFor::Queue(match received {
                Ok(queued) => Waited::Batch(queued),
                Err(_) => Waited::Closed,
            }),
            default(timeout) => WaitedFor::Queue(Waited::Nothing),
        }
    }

    /// The next batch, if there is one.
    pub(crate) fn take(&self) -> Option<Queued<B>> {
        self.receiver.try_recv().ok()
    }

    /// Bytes in the queue, including batches that are taken and not yet released.
    pub(crate) fn used_bytes(&self) -> i64 {
        self.used.load(Relaxed)
    }

    /// Releases a batch that was taken, and is sent or counted as dropped.
    pub(crate) fn release(&self, queued: &Queued<B>) {
        self.used.fetch_sub(queued.bytes, Release);
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
    fn full_queue_rejects_the_newest_and_keeps_its_gauges() {
        let (records, bytes) = gauges();
        let (mut intake, outlet) = queue_of(records.clone(), bytes.clone(), 2, MAX_BYTES);
        let three = batch(&[b"a", b"b", b"c"]);
        let now = Instant::now();
        assert!(intake.offer(&three, Selection::All, now));
        assert!(intake.offer(&three, Selection::All, now));
        assert!(!intake.offer(&three, Selection::All, now), "its limit is two batches");
        assert_eq!((records.get(), intake.flush()), (6, 0));
        let taken = outlet.take().unwrap();
        assert_eq!(records.get(), 6, "batches being sent still count");
        outlet.release(&taken);
        assert_eq!(records.get(), 3);
        outlet.release(&outlet.take().unwrap());
        assert_eq!((records.get(), bytes.get()), (0, 0));
    }

    #[test]
    fn receiving_thread_sends_only_while_the_worker_has_nothing() {
        let (records, bytes) = gauges();
        let (mut intake, outlet) = queue(records.clone(), bytes.clone());
        let now = Instant::now();
        let three = batch(&[b"a", b"b", b"c"]);
        assert!(intake.pending_alone().is_none(), "nothing is pending");
        assert!(intake.offer(&three, Selection::All, now) && intake.offer(&three, Selection::All, now));
        assert_eq!(intake.pending_alone().map(<[_]>::len), Some(2));
        // Of the second batch the first and the last record are left.
        intake.sent(&[Unsent { batch: 1, position: 2 }, Unsent { batch: 1, position: 0 }]);
        assert_eq!((records.get(), intake.flush()), (2, 0));
        assert!(intake.offer(&three, Selection::All, now) && intake.pending_alone().is_none());
        let left = outlet.take().unwrap();
        let payloads: Vec<Vec<u8>> = left.selected().map(|record| record.payload.to_vec()).collect();
        assert_eq!(payloads, [b"a", b"c"]);
        assert!(intake.pending_alone().is_none(), "it is being sent");
        outlet.release(&left);
        intake.sent(if intake.pending_alone().is_some() { &[] } else { panic!("the worker has nothing") });
        assert_eq!((records.get(), bytes.get(), intake.flush()), (0, 0, 0));
    }

    #[test]
    fn one_batch_of_any_size_fits_an_empty_queue() {
        let (records, bytes) = gauges();
        let (mut intake, _outlet) = queue_of(records.clone(), bytes, 10, 1000);
        let large = batch(&[&[0; 5000]]);
        assert!(intake.offer(&large, Selection::All, Instant::now()));
        assert!(!intake.offer(&batch(&[b"small"]), Selection::All, Instant::now()));
        assert_eq!(records.get(), 1);
    }

    #[test]
    fn sleeping_worker_misses_neither_a_batch_nor_the_end() {
        const BATCHES: usize = 20_000;
        /// A wait of this length has missed it.
        const LONG: Duration = Duration::from_secs(60);

        let (records, bytes) = gauges();
        let (mut intake, outlet) = queue(records.clone(), bytes);
        let worker = thread::spawn(move || {
            let mut taken = 0;
            loop {
                match outlet.wait(LONG) {
                    Waited::Batch(queued) => outlet.release(&queued),
                    Waited::Nothing => panic!("a batch was missed"),
                    Waited::Closed => return taken,
                }
                taken += 1;
            }
        });
        let one = batch(&[b"a"]);
        for number in 0..BATCHES {
            assert!(intake.offer(&one, Selection::All, Instant::now()));
            assert_eq!(intake.flush(), 0);
            // Sometimes the worker sleeps before the next one.
            while number % 64 == 0 && records.get() > 0 {
                thread::yield_now();
            }
        }
        drop(intake);
        assert_eq!(worker.join().unwrap(), BATCHES);
    }

    #[test]
    fn batch_expires_after_two_seconds() {
        let (records, bytes) = gauges();
        let (mut intake, outlet) = queue(records, bytes);
        let now = Instant::now();
        assert!(intake.offer(&batch(&[b"a"]), Selection::All, now));
        assert_eq!(intake.flush(), 0);
        let queued = outlet.take().unwrap();
        let mut clock = StopClock::new(Duration::ZERO);
        assert!(!queued.is_expired(now + MAX_AGE - Duration::from_millis(1), &clock));
        assert!(queued.is_expired(now + MAX_AGE, &clock));
        clock.exclude_until(now + MAX_AGE);
        assert!(!queued.is_expired(now + MAX_AGE, &clock), "it could not be sent until now");
        assert!(queued.is_expired(now + 2 * MAX_AGE, &clock));
    }
}
