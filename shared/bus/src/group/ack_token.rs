//! Acknowledgement tokens: the way back of a delivery to the group's member.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use sekiwake_group::{BootTime, Permission, Permit, Stream};
use sekiwake_record::Shard;

/// See [`GroupDelivery::ack_token`](super::GroupDelivery::ack_token).
#[derive(Debug)]
pub struct AckToken {
    duty: Arc<Duty>,
}

/// What is due when all tokens of a batch, and all that depend on it, are dropped.
#[derive(Debug)]
struct Duty {
    permit: Arc<Permit>,
    completions: Arc<Completions>,
    completion: Option<Completion>,
    shard: Shard,
    generation: u64,
    abandoned: AtomicBool,
    /// Duplicates of the batch's records wait for it here.
    handling: OnceLock<Arc<Handling>>,
}

/// Whether a batch has been handled. Batches with duplicates of its records are complete only
/// after it.
#[derive(Debug)]
pub(crate) struct Handling(Mutex<HandlingState>);

#[derive(Debug)]
enum HandlingState {
    /// It is being handled, and these wait for it.
    Open(Vec<Arc<Duty>>),
    Handled,
    /// The next owner of the shard receives it again.
    Abandoned,
}

/// A batch that has been handled.
#[derive(Debug)]
pub(crate) struct Completion {
    pub(crate) stream: Stream,
    pub(crate) shard: Shard,
    pub(crate) generation: u64,
    pub(crate) first_sequence: u64,
}

/// The member's end of its tokens.
#[derive(Debug)]
pub(crate) struct Acks {
    permit: Arc<Permit>,
    completions: Arc<Completions>,
    /// Reused memory.
    taken: Vec<Completion>,
}

impl Acks {
    pub(crate) fn new(permit: Arc<Permit>) -> Acks {
        Acks { permit, completions: Arc::default(), taken: Vec::new() }
    }

    /// The same, for a test that takes what a member would.
    #[cfg(test)]
    pub(crate) fn shared(&self) -> Acks {
        Acks { permit: Arc::clone(&self.permit), completions: Arc::clone(&self.completions), taken: Vec::new() }
    }

    /// The token of a batch, which is complete when the token is dropped.
    pub(crate) fn token(&self, completion: Completion) -> AckToken {
        let duty = Duty {
            permit: Arc::clone(&self.permit),
            completions: Arc::clone(&self.completions),
            shard: completion.shard,
            generation: completion.generation,
            completion: Some(completion),
            abandoned: AtomicBool::new(false),
            handling: OnceLock::new(),
        };
        AckToken { duty: Arc::new(duty) }
    }

    /// Takes the batches that are complete.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Completion> {
        std::mem::swap(&mut self.taken, &mut *self.completions.lock());
        self.taken.drain(..)
    }

    /// Whether there are tokens.
    pub(crate) fn has_outstanding(&self) -> bool {
        // Each token has a reference.
        Arc::strong_count(&self.completions) > 1
    }
}

/// Completions on their way from any thread to the member.
#[derive(Debug, Default)]
struct Completions(Mutex<Vec<Completion>>);

impl Completions {
    fn lock(&self) -> MutexGuard<'_, Vec<Completion>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, completion: Completion) {
        self.lock().push(completion);
    }
}

impl AckToken {
    /// Whether the records may be acted on at `now`. To be asked just before each call that sends,
    /// with [`boot_now`](crate::boot_now) read for this purpose.
    #[inline]
    pub fn permission(&self, now: BootTime) -> Permission {
        self.duty.permit.may_act(self.duty.shard, self.duty.generation, now)
    }

    /// Declares that the records have been neither acted on nor counted as dropped: the next owner
    /// of the shard receives them again.
    pub fn abandon(&self) {
        self.duty.abandon();
    }

    /// The shard and its generation. Tokens with the same key have the same permission.
    pub fn key(&self) -> (Shard, u64) {
        (self.duty.shard, self.duty.generation)
    }

    /// How the batch is handled, for duplicates of its records.
    pub(crate) fn handling(&self) -> Arc<Handling> {
        Arc::clone(self.duty.handling.get_or_init(Arc::default))
    }

    /// The batch has a duplicate of a record of another one: it is complete only after that one,
    /// and abandoned with it.
    pub(crate) fn wait_for(&self, other: &Handling) {
        match &mut *other.lock() {
            HandlingState::Open(waiting) => {
                // Most duplicates follow another one of the same batch.
                if !waiting.last().is_some_and(|last| Arc::ptr_eq(last, &self.duty)) {
                    waiting.push(Arc::clone(&self.duty));
                }
            }
            HandlingState::Handled => {}
            HandlingState::Abandoned => self.abandon(),
        }
    }
}

impl Default for Handling {
    fn default() -> Handling {
        Handling(Mutex::new(HandlingState::Open(Vec::new())))
    }
}

impl Handling {
    fn lock(&self) -> MutexGuard<'_, HandlingState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends, and returns what waits.
    fn end(&self, is_handled: bool) -> Vec<Arc<Duty>> {
        let end = if is_handled { HandlingState::Handled } else { HandlingState::Abandoned };
        match std::mem::replace(&mut *self.lock(), end) {
            HandlingState::Open(waiting) => waiting,
            HandlingState::Handled | HandlingState::Abandoned => Vec::new(),
        }
    }
}

impl Duty {
    fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// Completes the batch, and returns what waited for it.
    fn complete(&mut self) -> Vec<Arc<Duty>> {
        // A panicking thread has not handled the records; the next owner will.
        let is_handled = !std::thread::panicking() && !self.abandoned.load(Ordering::Acquire);
        let completion = self.completion.take();
        let waiting = self.handling.take().map_or_else(Vec::new, |handling| handling.end(is_handled));
        if !is_handled {
            waiting.iter().for_each(|duty| duty.abandon());
        } else if let Some(completion) = completion {
            self.completions.push(completion);
        }
        waiting
    }
}

impl Drop for Duty {
    fn drop(&mut self) {
        // Batches may wait for each other in a long chain, so this must not recurse.
        let mut waiting = self.complete();
        while let Some(duty) = waiting.pop() {
            if let Some(mut duty) = Arc::into_inner(duty) {
                waiting.append(&mut duty.complete());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sekiwake_group::{Member, MemberSettings};
    use sekiwake_record::{Kind, Name};

    use super::*;
    use crate::boot_now;

    fn acks() -> Acks {
        let name = |text| Name::new(text).unwrap();
        let settings = MemberSettings::new(name("storer.default"), Kind::Syslog, name("m1"));
        Acks::new(Member::<()>::new(settings, 1, boot_now()).permit())
    }

    fn token(acks: &Acks, first_sequence: u64) -> AckToken {
        let stream = Stream::new(&Name::new("wire-1").unwrap(), 7);
        acks.token(Completion { stream, shard: Shard::new(0).unwrap(), generation: 1, first_sequence })
    }

    fn taken(acks: &mut Acks) -> Vec<u64> {
        acks.take().map(|completion| completion.first_sequence).collect()
    }

    #[test]
    fn duplicate_is_complete_after_the_delivered_copy() {
        let mut acks = acks();
        let (delivered, duplicate) = (token(&acks, 0), token(&acks, 1));
        let handling = delivered.handling();
        duplicate.wait_for(&handling);
        drop(duplicate);
        assert_eq!(taken(&mut acks), [0; 0]);
        drop(delivered);
        assert_eq!(taken(&mut acks), [0, 1]);
        let late = token(&acks, 2);
        late.wait_for(&handling);
        drop(late);
        assert_eq!(taken(&mut acks), [2]);
        assert!(!acks.has_outstanding());
    }

    #[test]
    fn delivered_copy_does_not_complete_a_batch_that_has_more() {
        let mut acks = acks();
        let (delivered, other) = (token(&acks, 0), token(&acks, 1));
        other.wait_for(&delivered.handling());
        drop(delivered);
        assert_eq!(taken(&mut acks), [0]);
        drop(other);
        assert_eq!(taken(&mut acks), [1]);
    }

    #[test]
    fn duplicates_are_abandoned_with_the_delivered_copy() {
        let mut acks = acks();
        let (delivered, before, after) = (token(&acks, 0), token(&acks, 1), token(&acks, 2));
        let handling = delivered.handling();
        before.wait_for(&handling);
        drop(before);
        delivered.abandon();
        drop(delivered);
        after.wait_for(&handling);
        drop(after);
        assert_eq!(taken(&mut acks), [0; 0]);
        assert!(!acks.has_outstanding());
    }

    #[test]
    fn long_chain_completes_without_recursion() {
        let mut acks = acks();
        let first = token(&acks, 0);
        let mut handling = first.handling();
        for sequence in 1..100_000 {
            let next = token(&acks, sequence);
            next.wait_for(&handling);
            handling = next.handling();
        }
        assert_eq!(taken(&mut acks), [0; 0]);
        drop(first);
        assert_eq!(taken(&mut acks).len(), 100_000);
    }
}
