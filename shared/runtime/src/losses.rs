//! A loss is an event with a count, a stage and a reason: counted at once, logged at intervals.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, Mutex},
    time::Instant,
};

use prometheus::IntCounter;

use crate::{Metrics, health::lock, limit::LOG_INTERVAL};

/// The reasons for losses at one stage: an enum without fields, with discriminants from 0 up:
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

    /// The value of the label `reason` and of the log field.
    fn name(self) -> &'static str;
}

/// The losses of one stage, by reason. Made by [`Scope::losses`](crate::Scope::losses), which also
/// has them logged: the first loss within a second, then at most one line per reason every 10 s,
/// with the number since the previous line.
///
/// Clones count into the same counters.
pub struct Losses<R> {
    ledger: Arc<Ledger>,
    reasons: PhantomData<fn(R)>,
}

/// The losses at one stage for one reason since they were last logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossEvent {
    /// The stage.
    pub stage: String,
    /// The reason.
    pub reason: &'static str,
    /// The number since the last event, in the unit of the metric.
    pub count: u64,
    /// The number since the start.
    pub total: u64,
}

impl<R: LossReason> Losses<R> {
    /// Losses counted in the family `name`, a counter with `labels` and the label `reason`. Every
    /// reason is exported from the start, as 0. `stage` is for the log.
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
        let logged = cells.iter().map(|cell| Logged { total: cell.counter.get(), at: None }).collect();
        Losses {
            ledger: Arc::new(Ledger { stage: stage.into(), cells, logged: Mutex::new(logged) }),
            reasons: PhantomData,
        }
    }

    /// Counts. One atomic addition: for the hot path.
    pub fn add(&self, reason: R, count: u64) {
        self.ledger.cells[reason.index()].counter.inc_by(count);
    }

    /// The losses for this reason since the start.
    pub fn total(&self, reason: R) -> u64 {
        self.ledger.cells[reason.index()].counter.get()
    }

    /// The losses for all reasons since the start.
    pub fn sum(&self) -> u64 {
        self.ledger.cells.iter().map(|cell| cell.counter.get()).sum()
    }

    /// The losses since the start, by reason; those without any are left out.
    pub fn by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let totals = self.ledger.cells.iter().map(|cell| (cell.reason, cell.counter.get()));
        totals.filter(|(_, total)| *total > 0)
    }

    /// Logs the losses that are due. For losses made by [`Scope::losses`](crate::Scope::losses) the
    /// runtime does this once per second, and at the end.
    pub fn report(&self, now: Instant) {
        self.ledger.report(Due::At(now));
    }

    /// The losses that are due at `now`, which count as logged afterwards.
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
    logged: Mutex<Vec<Logged>>,
}

/// Which losses are due.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    /// Those whose reason was not logged for [`LOG_INTERVAL`].
    At(Instant),
    /// All: the process ends.
    Finally,
}

#[derive(Debug)]
struct Cell {
    reason: &'static str,
    counter: IntCounter,
}

/// The logging state of one reason.
#[derive(Debug)]
struct Logged {
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
        for (cell, logged) in self.cells.iter().zip(lock(&self.logged).iter_mut()) {
            let total = cell.counter.get();
            let is_due = match (due, logged.at) {
                (Due::At(now), Some(at)) => now.saturating_duration_since(at) >= LOG_INTERVAL,
                (Due::At(_), None) | (Due::Finally, _) => true,
            };
            if total <= logged.total || !is_due {
                continue;
            }
            events.push(LossEvent {
                stage: self.stage.clone(),
                reason: cell.reason,
                count: total - logged.total,
                total,
            });
            logged.total = total;
            if let Due::At(now) = due {
                logged.at = Some(now);
            }
        }
        events
    }
}
