//! The phases of a stream, as agreed between its writer and its control thread.
//!
//! ```text
//! Unattended             without a control thread, from the start to the end
//!    │ control attached
//!    ▼
//! AwaitingList ── list applied (C) ──▶ Publishing
//!    │ producers end (W)                  │ producers end (W)
//!    ▼                                    ▼
//! EndingWithoutList ── list applied (C) ─▶ Ending
//!    │                                    │
//!    └──────── all published (W) ─────────┴──▶ Draining ── groups caught up (C) ──▶ Drained
//!
//! EndingWithoutList, Ending, Draining ── gave up (C) ──▶ Abandoned
//! any phase but Unattended ── writer finished (W) ──▶ Finished ── control closed (C) ──▶ Closed
//!
//! (W) by the writer, (C) by the control thread
//! ```
//!
//! Both threads change the phase, each by its own events; an event that a phase does not expect
//! changes nothing. A change is one compare-and-swap, so that an event of one thread cannot undo an
//! event of the other.

use std::sync::atomic::{AtomicU8, Ordering};

/// A phase of a stream, in the order of the drawing above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum StreamPhase {
    /// There is no control thread: nothing to wait for.
    Unattended,
    /// Nothing may be published before the list of own destinations has been applied.
    AwaitingList,
    Publishing,
    /// The producers ended before the list was applied.
    EndingWithoutList,
    /// The producers have ended; the writer publishes the remaining batches.
    Ending,
    /// Everything has been published; the groups have not handled everything.
    Draining,
    /// The groups have handled everything.
    Drained,
    /// The writer need not wait any longer: out of time, or no proxy.
    Abandoned,
    /// The writer has ended, cleanly or by a panic.
    Finished,
    /// The control thread has ended.
    Closed,
}

/// An event of one of the two threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StreamEvent {
    ControlAttached,
    ListApplied,
    ProducersGone,
    AllPublished,
    GroupsCaughtUp,
    GaveUp,
    WriterFinished,
    ControlClosed,
}

impl StreamPhase {
    const ALL: [StreamPhase; 10] = [
        StreamPhase::Unattended,
        StreamPhase::AwaitingList,
        StreamPhase::Publishing,
        StreamPhase::EndingWithoutList,
        StreamPhase::Ending,
        StreamPhase::Draining,
        StreamPhase::Drained,
        StreamPhase::Abandoned,
        StreamPhase::Finished,
        StreamPhase::Closed,
    ];

    /// The phase after an event; `None` if the event changes nothing.
    fn after(self, event: StreamEvent) -> Option<StreamPhase> {
        use StreamEvent::{
            AllPublished, ControlAttached, ControlClosed, GaveUp, GroupsCaughtUp, ListApplied, ProducersGone,
            WriterFinished,
        };
        use StreamPhase::{
            Abandoned, AwaitingList, Closed, Drained, Draining, Ending, EndingWithoutList, Finished, Publishing,
            Unattended,
        };
        match (self, event) {
            (Unattended, ControlAttached) => Some(AwaitingList),
            (AwaitingList, ListApplied) => Some(Publishing),
            (EndingWithoutList, ListApplied) => Some(Ending),
            (AwaitingList, ProducersGone) => Some(EndingWithoutList),
            (Publishing, ProducersGone) => Some(Ending),
            (EndingWithoutList | Ending, AllPublished) => Some(Draining),
            (Draining, GroupsCaughtUp) => Some(Drained),
            (EndingWithoutList | Ending | Draining, GaveUp) => Some(Abandoned),
            (Unattended | Finished | Closed, WriterFinished) => None,
            (_, WriterFinished) => Some(Finished),
            (Finished, ControlClosed) => Some(Closed),
            _ => None,
        }
    }

    /// Whether records may be published. Not once the stream is abandoned, because the list may
    /// never have been applied.
    pub(super) fn may_publish(self) -> bool {
        use StreamPhase::{Drained, Draining, Ending, Publishing, Unattended};
        matches!(self, Unattended | Publishing | Ending | Draining | Drained)
    }

    /// Whether the producers have ended and the writer has not finished.
    pub(super) fn is_ending(self) -> bool {
        self.is_waiting() || matches!(self, StreamPhase::Drained | StreamPhase::Abandoned)
    }

    /// Whether the writer is ending and may still have to wait for the groups.
    pub(super) fn is_waiting(self) -> bool {
        matches!(self, StreamPhase::EndingWithoutList | StreamPhase::Ending | StreamPhase::Draining)
    }
}

/// A phase that two threads share.
#[derive(Debug)]
pub(super) struct SharedPhase(AtomicU8);

impl Default for SharedPhase {
    fn default() -> SharedPhase {
        SharedPhase(AtomicU8::new(StreamPhase::Unattended as u8))
    }
}

impl SharedPhase {
    /// The current phase. Acquire, so that a thread that sees a phase also sees what the other
    /// thread wrote before it changed to it: the applied list before `Publishing`, the number of
    /// unhandled records before `Abandoned`.
    pub(super) fn get(&self) -> StreamPhase {
        decode(self.0.load(Ordering::Acquire))
    }

    /// Applies an event.
    pub(super) fn apply(&self, event: StreamEvent) {
        // An error means that the event changes nothing, which is fine: see the module.
        let _ = self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, |phase| {
            decode(phase).after(event).map(|phase| phase as u8)
        });
    }
}

fn decode(phase: u8) -> StreamPhase {
    // Only phases are ever stored.
    StreamPhase::ALL[usize::from(phase)]
}

#[cfg(test)]
mod tests {
    use super::{
        StreamEvent::{
            AllPublished, ControlAttached, ControlClosed, GaveUp, GroupsCaughtUp, ListApplied, ProducersGone,
            WriterFinished,
        },
        *,
    };

    const EVENTS: [StreamEvent; 8] = [
        ControlAttached,
        ListApplied,
        ProducersGone,
        AllPublished,
        GroupsCaughtUp,
        GaveUp,
        WriterFinished,
        ControlClosed,
    ];

    fn after(events: &[StreamEvent]) -> StreamPhase {
        let shared = SharedPhase::default();
        events.iter().for_each(|&event| shared.apply(event));
        shared.get()
    }

    #[test]
    fn every_phase_is_decoded() {
        for phase in StreamPhase::ALL {
            assert_eq!(decode(phase as u8), phase);
        }
    }

    #[test]
    fn stream_drains_and_closes() {
        let life = [
            (ControlAttached, StreamPhase::AwaitingList),
            (ListApplied, StreamPhase::Publishing),
            (ProducersGone, StreamPhase::Ending),
            (AllPublished, StreamPhase::Draining),
            (GroupsCaughtUp, StreamPhase::Drained),
            (WriterFinished, StreamPhase::Finished),
            (ControlClosed, StreamPhase::Closed),
        ];
        let shared = SharedPhase::default();
        for (event, phase) in life {
            shared.apply(event);
            assert_eq!(shared.get(), phase, "after {event:?}");
            // Both threads report an event again in every round of their loops.
            shared.apply(event);
            assert_eq!(shared.get(), phase, "after {event:?} twice");
        }
    }

    #[test]
    fn list_may_be_applied_before_or_after_the_producers_are_gone() {
        let first = after(&[ControlAttached, ListApplied, ProducersGone]);
        let last = after(&[ControlAttached, ProducersGone, ListApplied]);
        assert_eq!((first, last), (StreamPhase::Ending, StreamPhase::Ending));
        let without = after(&[ControlAttached, ProducersGone]);
        assert!(!without.may_publish() && without.is_ending());
        assert_eq!(after(&[ControlAttached, ProducersGone, AllPublished]), StreamPhase::Draining);
        let abandoned = after(&[ControlAttached, ProducersGone, GaveUp]);
        assert!(abandoned == StreamPhase::Abandoned && !abandoned.may_publish());
    }

    #[test]
    fn nothing_changes_without_a_control_thread() {
        for event in EVENTS.into_iter().filter(|event| *event != ControlAttached) {
            assert_eq!(after(&[event]), StreamPhase::Unattended, "{event:?}");
        }
        assert!(StreamPhase::Unattended.may_publish());
    }

    #[test]
    fn first_of_drained_and_abandoned_holds() {
        let draining = [ControlAttached, ListApplied, ProducersGone, AllPublished];
        let drained = after(&[&draining[..], &[GroupsCaughtUp, GaveUp]].concat());
        let abandoned = after(&[&draining[..], &[GaveUp, GroupsCaughtUp]].concat());
        assert_eq!((drained, abandoned), (StreamPhase::Drained, StreamPhase::Abandoned));
        for phase in [drained, abandoned] {
            assert!(phase.is_ending() && !phase.is_waiting());
        }
    }

    #[test]
    fn groups_cannot_catch_up_before_everything_is_published() {
        let ending = after(&[ControlAttached, ListApplied, ProducersGone, GroupsCaughtUp]);
        assert_eq!(ending, StreamPhase::Ending);
        assert_eq!(after(&[ControlAttached, ListApplied, GaveUp]), StreamPhase::Publishing);
    }

    #[test]
    fn finished_writer_stays_finished() {
        let before = [ControlAttached, ListApplied, ProducersGone, AllPublished, GroupsCaughtUp];
        for length in 1..=before.len() {
            let finished = [&before[..length], &[WriterFinished]].concat();
            assert_eq!(after(&finished), StreamPhase::Finished, "after {length} events");
            for event in EVENTS.into_iter().filter(|event| *event != ControlClosed) {
                let events = [&finished[..], &[event]].concat();
                assert_eq!(after(&events), StreamPhase::Finished, "{event:?} after {length} events");
            }
        }
        let closed = after(&[ControlAttached, WriterFinished, ControlClosed, WriterFinished]);
        assert_eq!(closed, StreamPhase::Closed);
        assert_eq!(after(&[ControlAttached, ControlClosed]), StreamPhase::AwaitingList);
    }

    #[test]
    fn events_of_two_threads_do_not_undo_each_other() {
        for _ in 0..200 {
            let shared = SharedPhase::default();
            shared.apply(ControlAttached);
            std::thread::scope(|scope| {
                scope.spawn(|| [ProducersGone, AllPublished].map(|event| shared.apply(event)));
                scope.spawn(|| shared.apply(ListApplied));
            });
            assert_eq!(shared.get(), StreamPhase::Draining);
        }
    }
}
