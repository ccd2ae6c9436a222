//! Acknowledgement tokens: the way back of a delivery to the group's member.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use sekiwake_group::{BootTime, Permission, Permit, Stream};
use sekiwake_record::Shard;

/// See [`GroupDelivery::ack_token`](super::GroupDelivery::ack_token).
#[derive(Debug)]
pub struct AckToken {
    permit: Arc<Permit>,
    completions: Arc<Completions>,
    completion: Option<Completion>,
    shard: Shard,
    generation: u64,
    abandoned: AtomicBool,
}

/// A batch that has been handled.
#[derive(Debug)]
pub(super) struct Completion {
    pub(super) stream: Stream,
    pub(super) shard: Shard,
    pub(super) generation: u64,
    pub(super) first_sequence: u64,
}

/// Completions on their way from any thread to the member.
#[derive(Debug, Default)]
pub(super) struct Completions(Mutex<Vec<Completion>>);

impl Completions {
    /// Swaps all completions with `taken`, which is empty, so that its memory is reused.
    pub(super) fn take(&self, taken: &mut Vec<Completion>) {
        std::mem::swap(taken, &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn push(&self, completion: Completion) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(completion);
    }
}

impl AckToken {
    pub(super) fn new(permit: &Arc<Permit>, completions: &Arc<Completions>, completion: Completion) -> AckToken {
        AckToken {
            permit: Arc::clone(permit),
            completions: Arc::clone(completions),
            shard: completion.shard,
            generation: completion.generation,
            completion: Some(completion),
            abandoned: AtomicBool::new(false),
        }
    }

    /// Whether the records may be acted on at `now`. To be asked just before each call that sends,
    /// with [`boot_now`](crate::boot_now) read for this purpose.
    #[inline]
    pub fn permission(&self, now: BootTime) -> Permission {
        self.permit.may_act(self.shard, self.generation, now)
    }

    /// Declares that the records have been neither acted on nor counted as dropped: the next owner
    /// of the shard receives them again.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    /// The shard and its generation. Tokens with the same key have the same permission.
    pub fn key(&self) -> (Shard, u64) {
        (self.shard, self.generation)
    }
}

impl Drop for AckToken {
    fn drop(&mut self) {
        // A panicking thread has not handled the records; the next owner will.
        if std::thread::panicking() || self.abandoned.load(Ordering::Acquire) {
            return;
        }
        if let Some(completion) = self.completion.take() {
            self.completions.push(completion);
        }
    }
}
