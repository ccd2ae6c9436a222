//! A loss is an event with a count, a stage and a reason: counted at once, logged now and then.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use prometheus::IntCounter;

use crate::Metrics;
use crate::health::lock;
use crate::limit::LOG_INTERVAL;

/// Why something is lost at one stage. An enum without fields, whose discriminants count up from 0:
///
/// ```
/// use sekiwake_runtime::LossReason;
///
/// #[derive(Clone, Copy)]
/// enum Drop { QueueFull, TooLarge }
///
/// impl LossReason for Drop {
///     const ALL: &'static [Drop] = &[Drop::QueueFull, Drop::TooLarge];
///     fn index(self) -> usize { self as usize }
///     fn name(self) -> &'static str {
///         match self { Drop::QueueFull => "queue_full", Drop::TooLarge => "too_large" }
///     }
/// }
/// ```
pub trait LossReason: Copy + Send + Sync + 'static {
    /// Every reason, in the order of [`LossReason::index`].
    const ALL: &'static [Self];

    /// The position in [`LossReason::ALL`].
    fn index(self) -> usize;

    /// The value of the label `reason`, and of the field in the log.
    fn name(self) -> &'static str;
}

/// The losses of one stage, by reason. Made by [`Scope::losses`](crate::Scope::losses), which also has them logged: the
/// first loss within a second, and after that at most one line per reason in 10 s, with the number since the line before.
///
/// Clones count into the same counters.
pub struct Losses<R> {
    ledger: Arc<Ledger>,
    reasons: PhantomData<fn(R)>,
}

/// What was lost at one stage for one reason since it was last said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossEvent {
    /// Where: what the role was doing with it.
    pub stage: String,
    /// Why.
    pub reason: &'static str,
    /// How much since the last event, in what the metric counts.
    pub count: u64,
    /// How much since the start.
    pub total: u64,
}

impl<R: LossReason> Losses<R> {
    /// Losses counted in the family `name`, a counter with `labels` and the label `reason`. Every reason is exported from
    /// the start, as 0. `stage` is for the log.
    pub fn new(
        metrics: &Metrics,
        name: &str,
        help: &str,
        stage: impl Into<String>,
        labels: &[(&str, &str)],
    ) -> Losses<R> {
        let cell = |reason: &R| {
            let labels: Vec<(&str, &str)> = labels.iter().copied().chain([("reason", reason.name())]).collect();
            Cell { reason: reason.name(), counter: metrics.counter(name, help, &labels) }
        };
        let cells: Box<[Cell]> = R::ALL.iter().map(cell).collect();
        let said = cells.iter().map(|cell| Said { total: cell.counter.get(), at: None }).collect();
        Losses { ledger: Arc::new(Ledger { stage: stage.into(), cells, said: Mutex::new(said) }), reasons: PhantomData }
    }

    /// Counts. One atomic addition: for the hot path.
    pub fn add(&self, reason: R, count: u64) {
        self.ledger.cells[reason.index()].counter.inc_by(count);
    }

    /// How much was lost for this reason since the start.
    pub fn total(&self, reason: R) -> u64 {
        self.ledger.cells[reason.index()].counter.get()
    }

    /// How much was lost for all reasons since the start.
    pub fn sum(&self) -> u64 {
        self.ledger.cells.iter().map(|cell| cell.counter.get()).sum()
    }

    /// Logs what is due. Of losses made by [`Scope::losses`](crate::Scope::losses) the runtime does this once a second, and at the end.
    pub fn report(&self, now: Instant) {
        self.ledger.report(Due::At(now));
    }

    /// What is due to be said at `now`, and is considered said after this.
    pub fn due(&self, now: Instant) -> Vec<LossEvent> {
        self.ledger.due(Due::At(now))
    }

    pub(crate) fn ledger(&self) -> Arc<Ledger> {
        self.ledger.clone()
    }
}

impl<R> Clone for Losses<R> {
    fn clone(&self) -> Losses<R> {
        Losses { ledger: self.ledger.clone(), reasons: PhantomData }
    }
}

impl<R> fmt::Debug for Losses<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.ledger, f)
    }
}

impl LossEvent {
    /// One line in the log.
    pub fn log(&self) {
        tracing::warn!(stage = self.stage, reason = self.reason, count = self.count, total = self.total, "lost");
    }
}

/// [`Losses`] without the type of its reasons.
#[derive(Debug)]
pub(crate) struct Ledger {
    stage: String,
    cells: Box<[Cell]>,
    said: Mutex<Vec<Said>>,
}

/// Which losses are to be said.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    /// Those whose reason was silent for [`LOG_INTERVAL`].
    At(Instant),
    /// All: the process ends.
    Finally,
}

#[derive(Debug)]
struct Cell {
    reason: &'static str,
    counter: IntCounter,
}

/// What the log knows of one reason.
#[derive(Debug)]
struct Said {
    total: u64,
    at: Option<Instant>,
}

impl Ledger {
    pub(crate) fn report(&self, due: Due) {
        for event in self.due(due) {
            event.log();
        }
    }

    fn due(&self, due: Due) -> Vec<LossEvent> {
        let mut events = Vec::new();
        for (cell, said) in self.cells.iter().zip(lock(&self.said).iter_mut()) {
            let total = cell.counter.get();
            let is_due = match (due, said.at) {
                (Due::At(now), Some(at)) => now.saturating_duration_since(at) >= LOG_INTERVAL,
                (Due::At(_), None) | (Due::Finally, _) => true,
            };
            if total <= said.total || !is_due {
                continue;
            }
            events.push(LossEvent { stage: self.stage.clone(), reason: cell.reason, count: total - said.total, total });
            said.total = total;
            if let Due::At(now) = due {
                said.at = Some(now);
            }
        }
        events
    }
}
