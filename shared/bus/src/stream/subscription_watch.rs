//! Waiting for a subscriber before publishing.

use std::{
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often a waiting thread asks whether to give up.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// Reports the first subscription to threads that wait for it. Clones share their state.
#[derive(Clone, Default)]
pub struct SubscriptionWatch {
    state: Arc<State>,
}

#[derive(Default)]
struct State {
    /// The time of the newest subscription to data.
    newest: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl SubscriptionWatch {
    /// Waits until there is a subscription to data and no other has followed for `quiet`, at most
    /// for `limit`. Returns whether there is a subscriber. `give_up` is called regularly.
    pub fn wait(&self, limit: Duration, quiet: Duration, give_up: impl Fn() -> bool) -> bool {
        let end = Instant::now() + limit;
        let mut newest = self.state.newest.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let now = Instant::now();
            if newest.is_some_and(|newest| now.duration_since(newest) >= quiet) || now >= end || give_up() {
                return newest.is_some();
            }
            let pause = CHECK_EVERY.min(end - now);
            newest = self.state.changed.wait_timeout(newest, pause).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(crate) fn subscribed(&self) {
        *self.state.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        self.state.changed.notify_all();
    }
}
