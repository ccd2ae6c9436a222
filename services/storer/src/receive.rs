//! The receiving thread encodes batches from the bus as lines or packets in a load, and passes full
//! loads to the writing thread.
//!
//! ```text
//! GroupSource ─▶ RecordEncoder ─▶ open load ═▶ one queued ═▶ one written and fsynced ─▶ its ack tokens are dropped
//!                                   ▲                              │
//!                                   └────────── empty loads ◀══════┘
//! ```
//! There are at most three loads, each of [`LOAD_BYTES`] and one batch. When all are full, the
//! member stops receiving: publishers retain the data and can retransmit it later.

use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use sekiwake_bus::{AckToken, GroupDelivery, GroupSource, Leaving, Progress};
use sekiwake_runtime::Worker;

use crate::{Load, encode::RecordEncoder, metrics::StoreMetrics};

/// A load of this size is passed to the writing thread at once, bytes.
const LOAD_BYTES: usize = 16 << 20;

/// The longest wait for a batch while acknowledgements are expected, which have to reach the group
/// quickly when a shard changes its owner.
const RECEIVE_TIMEOUT: Duration = Duration::from_millis(20);

/// The same otherwise.
const IDLE_TIMEOUT: Duration = Duration::from_millis(200);

/// How often a full queue to the writing thread is checked.
const FULL_POLL: Duration = Duration::from_millis(2);

/// A load with its acknowledgement tokens.
pub(crate) struct Filled {
    pub(crate) load: Load,
    pub(crate) ack_tokens: Vec<AckToken>,
    pub(crate) records: u64,
}

impl Filled {
    pub(crate) fn new(load: Load) -> Filled {
        Filled { load, ack_tokens: Vec::new(), records: 0 }
    }
}

/// The receiving end of loads: filled ones arrive, empty ones are sent back for reuse.
pub(crate) struct LoadReceiver {
    pub(crate) filled: Receiver<Filled>,
    pub(crate) empty: Sender<Filled>,
}

/// The sending end of loads.
pub(crate) struct LoadSender {
    filled: Sender<Filled>,
    empty: Receiver<Filled>,
}

/// Connects the receiving and the writing thread. One load is filled, one is queued, one is
/// written.
pub(crate) fn load_channel() -> (LoadSender, LoadReceiver) {
    let (filled_sender, filled) = bounded(1);
    let (empty_sender, empty) = bounded(2);
    (LoadSender { filled: filled_sender, empty }, LoadReceiver { filled, empty: empty_sender })
}

/// Encodes batches from the bus for the writing thread.
pub(crate) struct ReceiveLoop {
    source: Box<dyn GroupSource>,
    encoder: RecordEncoder,
    commit: Duration,
    open: Filled,
    /// When its first record was received.
    since: Instant,
    loads: LoadSender,
    new_load: Box<dyn Fn() -> Load + Send>,
    leaving: Option<Leaving>,
    metrics: StoreMetrics,
}

impl ReceiveLoop {
    pub(crate) fn new(
        source: Box<dyn GroupSource>,
        encoder: RecordEncoder,
        commit: Duration,
        loads: LoadSender,
        new_load: impl Fn() -> Load + Send + 'static,
        metrics: StoreMetrics,
    ) -> ReceiveLoop {
        ReceiveLoop {
            source,
            encoder,
            commit,
            open: Filled::new(new_load()),
            since: Instant::now(),
            loads,
            new_load: Box::new(new_load),
            leaving: None,
            metrics,
        }
    }

    pub(crate) fn run(mut self, worker: &Worker) -> anyhow::Result<()> {
        loop {
            worker.beat();
            let is_stopping = worker.deadline().is_some();
            let is_behind = self.hand_over(is_stopping);
            self.source.set_is_full(is_behind);
            let delivery = if is_behind {
                self.source.poll_control(FULL_POLL)?;
                None
            } else {
                self.source.receive(self.timeout())?
            };
            let received = delivery.is_some();
            if let Some(delivery) = delivery {
                self.encode(delivery);
            }
            if let Some(deadline) = worker.deadline() {
                let now = Instant::now();
                let leaving = self.leaving.get_or_insert_with(|| Leaving::until(now, deadline));
                if leaving.advance(&mut *self.source, Progress { received, is_behind, is_put: true }, now) {
                    return Ok(());
                }
            }
        }
    }

    fn encode(&mut self, delivery: GroupDelivery) {
        if self.open.records == 0 {
            self.since = Instant::now();
        }
        let publisher = &*delivery.stream.name;
        for record in delivery.batch.records() {
            self.open.load.put(&mut self.encoder, &record, publisher);
        }
        let records = delivery.batch.len();
        self.open.records += records as u64;
        self.metrics.unsynced_records.add(records as i64);
        self.open.ack_tokens.push(delivery.ack_token);
    }

    /// How long to wait for the next batch.
    fn timeout(&self) -> Duration {
        if !self.source.has_outstanding() && self.leaving.is_none() {
            return IDLE_TIMEOUT;
        }
        if self.open.records == 0 {
            return RECEIVE_TIMEOUT;
        }
        self.commit.saturating_sub(self.since.elapsed()).min(RECEIVE_TIMEOUT)
    }

    /// Passes the open load on when it is due. Returns whether no more records can be received.
    fn hand_over(&mut self, is_stopping: bool) -> bool {
        if self.open.records == 0 {
            return false;
        }
        let is_full = self.open.load.bytes() >= LOAD_BYTES || self.open.load.is_full();
        if !is_full && !is_stopping && self.since.elapsed() < self.commit {
            return false;
        }
        // This is the only sender, so the channel cannot fill up before `try_send`.
        if self.loads.filled.is_full() {
            return is_full;
        }
        self.open.load.seal(&self.encoder);
        let next = self.loads.empty.try_recv().unwrap_or_else(|_| Filled::new((self.new_load)()));
        match self.loads.filled.try_send(std::mem::replace(&mut self.open, next)) {
            Ok(()) => false,
            // The writing thread has ended, and so will the process: leave the records to the
            // group.
            Err(TrySendError::Full(open) | TrySendError::Disconnected(open)) => {
                open.ack_tokens.iter().for_each(AckToken::abandon);
                self.open = open;
                true
            }
        }
    }
}
