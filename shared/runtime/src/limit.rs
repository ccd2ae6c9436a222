//! Rate-limited log lines. Written by hand, because the crates for this limit by level or message,
//! not by place in the code.

use std::{
    num::NonZeroU64,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::health::lock;

/// The shortest time between two lines about the same thing.
pub const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// How many lines were suppressed since the last one: as a field, absent if there were none.
pub type Suppressed = Option<NonZeroU64>;

/// Allows one line per interval and counts the others. Use one per place that logs:
///
/// ```
/// # use std::time::Instant;
/// # use sekiwake_runtime::RateLimited;
/// let rejected = RateLimited::default();
/// if let Some(suppressed) = rejected.allow(Instant::now()) {
///     tracing::warn!(suppressed, "peer rejected");
/// }
/// ```
#[derive(Debug)]
pub struct RateLimited {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    suppressed: u64,
}

impl Default for RateLimited {
    fn default() -> RateLimited {
        RateLimited::new(LOG_INTERVAL)
    }
}

impl RateLimited {
    /// At most one line per `interval`.
    pub fn new(interval: Duration) -> RateLimited {
        RateLimited { interval, state: Mutex::default() }
    }

    /// Whether to log now: `Some` with the number of lines suppressed since the last one, or
    /// `None`.
    pub fn allow(&self, now: Instant) -> Option<Suppressed> {
        let mut state = lock(&self.state);
        let is_due = state.last.is_none_or(|last| now.saturating_duration_since(last) >= self.interval);
        if !is_due {
            state.suppressed += 1;
            return None;
        }
        state.last = Some(now);
        Some(NonZeroU64::new(std::mem::take(&mut state.suppressed)))
    }
}
