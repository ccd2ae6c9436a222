//! State shared by the writer of a stream and its control thread.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sekiwake_group::Retention;
use sekiwake_record::Kind;

use super::phase::{SharedPhase, StreamEvent, StreamPhase};

/// How long the writer waits for the end of the control thread, and how often it checks.
const CLOSE_WAIT: Duration = Duration::from_millis(300);
const CLOSE_CHECK_EVERY: Duration = Duration::from_millis(2);

/// The body of a retained batch.
pub(crate) type Body = Arc<[u8]>;

/// What the writer of a stream and its control thread share: retained batches, and the phase.
#[derive(Debug)]
pub(crate) struct StreamShared {
    retention: Mutex<Retention<Body>>,
    phase: SharedPhase,
    /// Records that a live group had not handled when the control thread gave up.
    uncommitted: AtomicU64,
    /// The kinds with a live group at the end, one bit each.
    live_kinds: AtomicU8,
}

/// For the writer.
impl StreamShared {
    /// With a memory budget per kind, in bytes.
    pub(crate) fn new(limits: [usize; Kind::ALL.len()]) -> StreamShared {
        StreamShared {
            retention: Mutex::new(Retention::new(limits)),
            phase: SharedPhase::default(),
            uncommitted: AtomicU64::new(0),
            live_kinds: AtomicU8::new(0),
        }
    }

    pub(crate) fn retention(&self) -> MutexGuard<'_, Retention<Body>> {
        self.retention.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn may_publish(&self) -> bool {
        self.phase.get().may_publish()
    }

    /// Whether more of a file may be read: no group is more than `limits` bytes behind, by kind.
    /// Without a control thread this is unknown, and reading goes on.
    pub(crate) fn may_read_ahead(&self, limits: [usize; Kind::ALL.len()]) -> bool {
        if self.is_drained() {
            return true;
        }
        let retention = self.retention();
        Kind::ALL.into_iter().zip(limits).all(|(kind, limit)| retention.uncommitted_bytes(kind) < limit)
    }

    pub(crate) fn producers_gone(&self) {
        self.phase.apply(StreamEvent::ProducersGone);
    }

    pub(crate) fn all_published(&self) {
        self.phase.apply(StreamEvent::AllPublished);
    }

    pub(crate) fn finish(&self) {
        self.phase.apply(StreamEvent::WriterFinished);
    }

    /// Whether the control thread gave up waiting for the groups.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.phase.get() == StreamPhase::Abandoned
    }

    /// Whether there is no group to wait for.
    pub(crate) fn is_drained(&self) -> bool {
        matches!(self.phase.get(), StreamPhase::Unattended | StreamPhase::Drained)
    }

    /// Published records that a live group had not handled when the drain ended.
    pub(crate) fn uncommitted(&self) -> u64 {
        self.uncommitted.load(Ordering::Acquire)
    }

    /// Whether this kind had a live group at the end.
    pub(crate) fn had_group(&self, kind: Kind) -> bool {
        self.live_kinds.load(Ordering::Acquire) & (1 << kind.index()) != 0
    }

    /// Waits for the control thread, which ends after the writer has finished.
    pub(crate) fn wait_for_control(&self) {
        let end = Instant::now() + CLOSE_WAIT;
        while self.phase.get() == StreamPhase::Finished && Instant::now() < end {
            std::thread::sleep(CLOSE_CHECK_EVERY);
        }
    }
}

/// For the control thread.
impl StreamShared {
    pub(super) fn phase(&self) -> StreamPhase {
        self.phase.get()
    }

    pub(super) fn apply(&self, event: StreamEvent) {
        self.phase.apply(event);
    }

    pub(super) fn set_live_kinds(&self, kinds: u8) {
        self.live_kinds.store(kinds, Ordering::Release);
    }

    /// Gives up waiting for the groups. `uncommitted` is stored first, because the writer reads it
    /// once it sees the phase.
    pub(super) fn give_up(&self, uncommitted: u64) {
        self.uncommitted.store(uncommitted, Ordering::Release);
        self.phase.apply(StreamEvent::GaveUp);
    }
}
