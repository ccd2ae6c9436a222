//! The receiving thread: batches from the bus become lines in a load, and loads go to the writing thread.
//!
//! ```text
//! GroupSubscriber ─▶ LineEncoder ─▶ open load ═▶ one waits ═▶ one is written and synced ─▶ its tickets are dropped
//!                                       ▲                              │
//!                                       └───────── spent loads ◀═══════┘
//! ```
//! There are three loads at most, each of [`LOAD_BYTES`] and a batch: when all are full, the member takes no more data, for it can
//! have it repeated later.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use sekiwake_bus::{GroupDelivery, GroupSubscriber, Leaving, Progress, Ticket};
use sekiwake_runtime::Worker;
use sekiwake_store::LineEncoder;

use crate::{Load, metrics::StoreMetrics};

/// A load of this size is handed over at once, bytes.
const LOAD_BYTES: usize = 16 << 20;

/// The longest sleep: what is done with has to get to the group soon when a shard changes hands.
const PATIENCE: Duration = Duration::from_millis(20);

/// How soon it is looked again whether the writing thread takes more.
const CATCH_UP: Duration = Duration::from_millis(2);

/// A load with what belongs to it.
pub(crate) struct Filled {
    pub(crate) load: Load,
    pub(crate) tickets: Vec<Ticket>,
    pub(crate) records: u64,
}

impl Filled {
    pub(crate) fn new(load: Load) -> Filled {
        Filled { load, tickets: Vec::new(), records: 0 }
    }
}

/// Carries batches from the bus to the writing thread.
pub(crate) struct Receiving {
    subscriber: GroupSubscriber,
    encoder: LineEncoder,
    commit: Duration,
    open: Filled,
    /// When its first record came.
    since: Instant,
    filled: Sender<Filled>,
    spent: Receiver<Filled>,
    fresh: Box<dyn Fn() -> Load + Send>,
    leaving: Option<Leaving>,
    metrics: StoreMetrics,
}

impl Receiving {
    pub(crate) fn new(
        subscriber: GroupSubscriber,
        encoder: LineEncoder,
        commit: Duration,
        (filled, spent): (Sender<Filled>, Receiver<Filled>),
        fresh: impl Fn() -> Load + Send + 'static,
        metrics: StoreMetrics,
    ) -> Receiving {
        Receiving {
            subscriber,
            encoder,
            commit,
            open: Filled::new(fresh()),
            since: Instant::now(),
            filled,
            spent,
            fresh: Box::new(fresh),
            leaving: None,
            metrics,
        }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        loop {
            worker.beat();
            let is_stopping = worker.deadline().is_some();
            let is_behind = self.hand_over(is_stopping);
            self.subscriber.set_has_enough(is_behind);
            let delivery = if is_behind {
                self.subscriber.tend(CATCH_UP)?;
                None
            } else {
                self.subscriber.receive(self.patience())?
            };
            let received = delivery.is_some();
            if let Some(delivery) = delivery {
                self.take(delivery);
            }
            if let Some(deadline) = worker.deadline() {
                let now = Instant::now();
                let leaving = self.leaving.get_or_insert_with(|| Leaving::until(now, deadline));
                if leaving.go_on(&mut self.subscriber, Progress { received, is_behind, is_noted: true }, now) {
                    return Ok(());
                }
            }
        }
    }

    fn take(&mut self, delivery: GroupDelivery) {
        if self.open.records == 0 {
            self.since = Instant::now();
        }
        for record in delivery.batch.records() {
            let buffer = self.open.load.buffer(record.captured_at_ns, record.source);
            self.encoder.encode(&record, buffer);
        }
        let records = delivery.batch.len();
        self.open.records += records as u64;
        self.metrics.held_records.add(records as i64);
        self.open.tickets.push(delivery.ticket);
    }

    /// How long may be waited for the next batch.
    fn patience(&self) -> Duration {
        if self.open.records == 0 {
            return PATIENCE;
        }
        self.commit.saturating_sub(self.since.elapsed()).min(PATIENCE)
    }

    /// Hands the open load over when it is time. Says whether nothing more can be taken.
    fn hand_over(&mut self, is_stopping: bool) -> bool {
        if self.open.records == 0 {
            return false;
        }
        let is_full = self.open.load.bytes() >= LOAD_BYTES || self.open.load.is_full();
        if !is_full && !is_stopping && self.since.elapsed() < self.commit {
            return false;
        }
        // There is one sender, so what has room now has it below.
        if self.filled.is_full() {
            return is_full;
        }
        let next = self.spent.try_recv().unwrap_or_else(|_| Filled::new((self.fresh)()));
        match self.filled.try_send(std::mem::replace(&mut self.open, next)) {
            Ok(()) => false,
            // The writing thread has ended, and the process will: what is not written is the group's.
            Err(TrySendError::Full(open) | TrySendError::Disconnected(open)) => {
                open.tickets.iter().for_each(Ticket::abandon);
                self.open = open;
                true
            }
        }
    }
}
